"""Snapshots of VMs, and checkpoints."""

from __future__ import annotations

from collections.abc import Collection

from lab.engine.core import Engine
from lab.engine.errors import bad_request, conflict, disks_locked, not_found
from lab.engine.model import Checkpoint, Snapshot, Vm, new_id
from lab.machine import MachineError


def find(vm: Vm, snapshot_id: str) -> Snapshot:
    """Raises Refused (404)."""
    for snapshot in vm.snapshots:
        if snapshot.id == snapshot_id:
            return snapshot
    raise not_found(snapshot_id)


def record(engine: Engine, vm: Vm, snapshot: Snapshot, disk_ids: Collection[str]) -> None:
    """The machine has taken it: each disk has one more layer."""
    with engine.lock:
        for disk_id in disk_ids:
            disk = engine.disks[disk_id]
            snapshot.disks[disk_id] = disk.image_id
            disk.images.append(new_id())
        engine.changed.notify_all()
    engine.look_at(vm.machine)


def forget(engine: Engine, vm: Vm, snapshot: Snapshot) -> None:
    """The machine has removed it: the layer above each of its images is gone."""
    with engine.lock:
        for disk_id, image_id in snapshot.disks.items():
            disk = engine.disks.get(disk_id)
            if disk is not None and image_id in disk.images[:-1]:
                del disk.images[disk.images.index(image_id) + 1]
        if snapshot in vm.snapshots:
            vm.snapshots.remove(snapshot)
        engine.changed.notify_all()
    engine.look_at(vm.machine)


def add(engine: Engine, vm: Vm, description: str, *, persist_memory: bool = False) -> Snapshot:
    """Of all disks. Raises Refused."""
    backup = engine.running_backup(vm)
    if backup is not None:
        raise conflict("Cannot create Snapshot. The VM is during a backup operation.")
    _refuse_locked(engine, vm, "create Snapshot")
    snapshot = Snapshot(new_id(), description, {}, status="locked", persist_memory=persist_memory)
    snapshot.machine_id = snapshot.id
    vm.snapshots.append(snapshot)
    disk_ids = list(vm.attachments)
    for disk_id in disk_ids:
        engine.disks[disk_id].status = "locked"
    engine.event(45, f"Snapshot '{description}' creation for VM '{vm.name}' was initiated by admin.", vm=vm)

    def task() -> None:
        engine.step()
        try:
            take(engine, vm, snapshot)
        except MachineError as error:
            with engine.lock:
                vm.snapshots.remove(snapshot)
                engine.event(
                    69, f"Failed to complete snapshot '{description}' creation: {error}", "error", vm=vm
                )
        else:
            engine.event(
                68, f"Snapshot '{description}' creation for VM '{vm.name}' has been completed.", vm=vm
            )
        unlock(engine, disk_ids)

    engine.spawn(f"snapshot-{vm.name}", task)
    return snapshot


def take(engine: Engine, vm: Vm, snapshot: Snapshot) -> None:
    """Now, whatever the rules say. Raises MachineError."""
    disk_ids = list(vm.machine.disks)
    vm.machine.snapshot(snapshot.machine_id)
    record(engine, vm, snapshot, disk_ids)
    with engine.lock:
        if snapshot not in vm.snapshots:
            vm.snapshots.append(snapshot)
        snapshot.status = "ok"


def remove(engine: Engine, vm: Vm, snapshot: Snapshot) -> None:
    """Merge it, running or not. Raises Refused."""
    if snapshot.status != "ok":
        raise conflict("Cannot remove Snapshot. The snapshot is locked. Please try again later.")
    engine.refuse_during_backup(vm, "remove", "Snapshot")
    _refuse_locked(engine, vm, "remove Snapshot")
    snapshot.status = "locked"
    disk_ids = [disk_id for disk_id in snapshot.disks if disk_id in engine.disks]
    for disk_id in disk_ids:
        engine.disks[disk_id].status = "locked"
    engine.event(
        342, f"Snapshot '{snapshot.description}' deletion for VM '{vm.name}' was initiated by admin.", vm=vm
    )

    def task() -> None:
        engine.step()
        try:
            discard(engine, vm, snapshot)
        except MachineError as error:
            with engine.lock:
                snapshot.status = "ok"
                engine.event(
                    357, f"Failed to delete snapshot '{snapshot.description}': {error}", "error", vm=vm
                )
        else:
            name = snapshot.description
            engine.event(356, f"Snapshot '{name}' deletion for VM '{vm.name}' has been completed.", vm=vm)
        unlock(engine, disk_ids)

    engine.spawn(f"remove-snapshot-{vm.name}", task)


def discard(engine: Engine, vm: Vm, snapshot: Snapshot) -> None:
    """Now, whatever the rules say. Raises MachineError."""
    if snapshot.machine_id in vm.machine.snapshots:
        vm.machine.remove_snapshot(snapshot.machine_id)
    forget(engine, vm, snapshot)


def restore(engine: Engine, vm: Vm, snapshot: Snapshot) -> None:
    """The VM goes back to it; later ones and all checkpoints are gone. Raises Refused."""
    engine.refuse_during_backup(vm, "revert to", "Snapshot")
    if vm.running:
        raise conflict("Cannot revert to Snapshot. VM is running.")
    _refuse_locked(engine, vm, "revert to Snapshot")
    if snapshot.status == "locked":
        raise conflict("Cannot revert to Snapshot. The snapshot is locked. Please try again later.")
    vm.status = "image_locked"
    snapshot.status = "locked"

    def task() -> None:
        engine.step()
        try:
            revert(engine, vm, snapshot)
        except MachineError as error:
            engine.event(101, f"Failed to restore VM '{vm.name}': {error}", "error", vm=vm)
        else:
            name = snapshot.description
            engine.event(100, f"VM '{vm.name}' restoring from snapshot '{name}' has been completed.", vm=vm)
        with engine.lock:
            snapshot.status = "ok"
            vm.status = "down"
            vm.preview = None
            engine.changed.notify_all()

    engine.spawn(f"restore-{vm.name}", task)


def revert(engine: Engine, vm: Vm, snapshot: Snapshot) -> None:
    """Now; the VM is down. Raises MachineError."""
    vm.machine.revert_snapshot(snapshot.machine_id)
    with engine.lock:
        for disk_id, image_id in snapshot.disks.items():
            disk = engine.disks.get(disk_id)
            if disk is not None and image_id in disk.images:
                disk.images[disk.images.index(image_id) + 1 :] = [new_id()]
        position = vm.snapshots.index(snapshot)
        del vm.snapshots[position + 1 :]
        # Restoring or committing a snapshot removes all checkpoints.
        vm.checkpoints.clear()
        engine.changed.notify_all()
    engine.look_at(vm.machine)


def unlock(engine: Engine, disk_ids: Collection[str]) -> None:
    with engine.lock:
        for disk_id in disk_ids:
            disk = engine.disks.get(disk_id)
            if disk is not None and disk.status == "locked":
                disk.status = "ok"
        engine.changed.notify_all()


def _refuse_locked(engine: Engine, vm: Vm, action: str) -> None:
    locked = [
        engine.disks[disk_id].alias for disk_id in vm.attachments if engine.disks[disk_id].status == "locked"
    ]
    if locked:
        raise disks_locked(action, locked)


def find_checkpoint(vm: Vm, checkpoint_id: str) -> Checkpoint:
    """Raises Refused (404)."""
    for checkpoint in vm.checkpoints:
        if checkpoint.id == checkpoint_id:
            return checkpoint
    raise not_found(checkpoint_id)


def remove_checkpoint(engine: Engine, vm: Vm, checkpoint: Checkpoint) -> None:
    """At once, as the engine does. Raises Refused."""
    engine.refuse_during_backup(vm, "remove", "checkpoint")
    if any(engine.disks[each].status == "locked" for each in checkpoint.disks if each in engine.disks):
        raise conflict(
            "Cannot remove checkpoint: The following disks are locked. Please try again in a few minutes."
        )
    try:
        vm.machine.remove_checkpoint(checkpoint.id)
    except MachineError as error:
        engine.event(10798, f"Failed to delete checkpoint {checkpoint.id} for VM {vm.name}.", "error", vm=vm)
        raise bad_request(f"Failed to delete the checkpoint: {error}") from None
    with engine.lock:
        forget_checkpoint(vm, checkpoint)
    engine.event(10797, f"Checkpoint {checkpoint.id} for VM {vm.name} deleted.", vm=vm)


def forget_checkpoint(vm: Vm, checkpoint: Checkpoint) -> None:
    """The chain closes over it."""
    for child in vm.checkpoints:
        if child.parent_id == checkpoint.id:
            child.parent_id = checkpoint.parent_id
    if checkpoint in vm.checkpoints:
        vm.checkpoints.remove(checkpoint)
