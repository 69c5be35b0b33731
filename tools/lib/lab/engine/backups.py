"""Backups of VMs: what clients ask for, and their end.

The order of checks and phases is that of StartVmBackupCommand, HybridBackupCommand and StopVmBackupCommand in
https://github.com/oVirt/ovirt-engine.
"""

from __future__ import annotations

from collections.abc import Sequence

from lab.engine import backup_start, snapshots, transfers
from lab.engine.backup_phases import command_failed, end_in_hypervisor, fail, purge, set_phase
from lab.engine.core import USER, Engine
from lab.engine.errors import Refused, bad_request, conflict, disks_locked
from lab.engine.model import FINISHED_BACKUP, FINISHED_TRANSFER, Backup, Vm, new_id
from lab.machine import MachineError

MAX_DESCRIPTION = 1024


def begin(
    engine: Engine,
    vm: Vm,
    disk_ids: Sequence[str],
    *,
    backup_id: str | None = None,
    description: str | None = None,
    from_checkpoint: str | None = None,
    legacy: bool = False,
    require_consistency: bool = False,
    correlation_id: str | None = None,
) -> Backup:
    """Accept a backup, or raise Refused. Under the engine's lock."""
    hybrid = engine.clusters[vm.cluster_id].hybrid and not legacy
    _check(engine, vm, disk_ids, backup_id, description, from_checkpoint)
    kind = "hybrid" if hybrid else "live" if vm.status == "up" else "cold"
    backup = Backup(
        id=backup_id or new_id(),
        vm_id=vm.id,
        kind=kind,
        disks=dict.fromkeys(disk_ids),
        description=description,
        from_checkpoint=from_checkpoint,
        host_id=None if kind == "hybrid" else vm.host_id,
        require_consistency=require_consistency,
    )
    engine.backups[backup.id] = backup
    if kind != "hybrid":
        for disk_id in disk_ids:
            engine.disk(disk_id).status = "locked"
    engine.event(
        10790,
        f"Backup {backup.id} for VM {vm.name} started (User: {USER}).",
        vm=vm,
        correlation_id=correlation_id,
    )

    def task() -> None:
        with engine.job(f"Creating backup of VM {vm.name}", correlation_id):
            engine.faults.moment("backup-requested", vm=vm.id, backup=backup.id)
            engine.step()
            if backup.phase in FINISHED_BACKUP:
                return
            if kind == "hybrid":
                backup_start.run_hybrid(engine, vm, backup)
            else:
                backup_start.run(engine, vm, backup)
        if backup.kind == "hybrid" and backup.stopped and backup.phase == "ready":  # it was finalized early
            _finish(engine, vm, backup)

    engine.spawn(f"backup-{vm.name}", task)
    return backup


def _check(
    engine: Engine,
    vm: Vm,
    disk_ids: Sequence[str],
    backup_id: str | None,
    description: str | None,
    from_checkpoint: str | None,
) -> None:
    """In the order of the engine's own checks."""
    if vm.hosted_engine:
        raise conflict("Cannot backup VM. Backup of Hosted Engine VM is not supported")
    missing = [disk_id for disk_id in disk_ids if disk_id not in engine.disks]
    if missing:
        raise bad_request(
            f"Cannot backup VM. The following disk(s) ID(s) does not exist: {', '.join(missing)}."
        )
    if not disk_ids:
        raise bad_request("Backup [disks.disks[0].id] required for add")
    locked = [engine.disk(each).alias for each in disk_ids if engine.disk(each).status == "locked"]
    if locked:
        raise disks_locked("backup VM", locked)
    unplugged = [each for each in disk_ids if each not in vm.attachments or not vm.attachments[each].active]
    if unplugged:
        raise conflict(
            f"Cannot backup VM. The following disks are not active on VM {vm.name}: {', '.join(unplugged)}"
        )
    if from_checkpoint is not None:
        found = [each for each in vm.checkpoints if each.id == from_checkpoint]
        if not found:
            raise bad_request(f"Cannot backup VM. Checkpoint ID {from_checkpoint} doesn't exist.")
        if found[0].state == "invalid":
            raise bad_request(
                f"Cannot backup VM. Checkpoint ID {from_checkpoint} is invalid and should be removed."
            )
    if vm.status not in ("up", "down"):
        raise conflict("Cannot backup VM. The Virtual Machine should be in Up or Down status.")
    if vm.preview is not None:
        raise conflict("Cannot backup VM. VM is previewing a Snapshot.")
    engine.refuse_during_backup(vm, "backup")
    if description is not None and len(description) > MAX_DESCRIPTION:
        raise bad_request(
            "Cannot backup VM. The VM backup description shouldn't contain more than 1024 characters."
        )
    if backup_id in engine.backups:
        raise bad_request(f"Cannot backup VM. The specified VM backup ID {backup_id} already exists.")


def finalize(engine: Engine, backup: Backup) -> None:
    """Accept it, or raise Refused. Under the engine's lock."""
    vm = engine.vm(backup.vm_id)
    if any(
        each.backup_id == backup.id and each.phase not in FINISHED_TRANSFER
        for each in engine.transfers.values()
    ):
        raise conflict("Cannot stop VM backup. There is an active image transfer for VM backup")
    if backup.phase in (*FINISHED_BACKUP, "finalizing") or backup.stopped:
        raise _stopped_before(backup, backup.phase)
    early = backup.phase != "ready"
    backup.stopped = True
    if early:
        if backup.kind == "hybrid":
            return  # it is ended when it is ready
        raise bad_request(
            f"Backup '{backup.id}' is in '{backup.phase.upper()}' phase, premature backup stop was initiated."
        )
    if backup.kind == "hybrid":
        engine.event(10796, f"Backup {backup.id} for VM {vm.name} stopped (User: {USER}).", vm=vm)
    else:
        engine.event(10794, f"Backup {backup.id} for VM {vm.name} finalized (User: {USER}).", vm=vm)
    engine.spawn(f"finalize-{vm.name}", lambda: _finish(engine, vm, backup))
    if engine.faults.take("finalize-refused", vm=vm.id) is not None:
        raise _stopped_before(backup, "finalizing")


def _stopped_before(backup: Backup, phase: str) -> Refused:
    state = "stopped" if phase == "ready" else f"in '{phase.upper()}' phase"
    return bad_request(
        f"VM '{backup.vm_id}' backup '{backup.id}' is already {state}, no need to stop the backup again"
    )


def _finish(engine: Engine, vm: Vm, backup: Backup) -> None:
    """End it in the hypervisor. A hybrid one takes as long as the merge."""
    engine.step()
    if backup.phase in FINISHED_BACKUP:
        return
    set_phase(engine, backup, "finalizing")
    engine.faults.moment("backup-finalizing", vm=vm.id, backup=backup.id)
    slow = engine.faults.take("finalize-slow", vm=vm.id)
    if slow is not None:
        engine.pause(float(slow.get("seconds", 3)))
    engine.step()
    if backup.phase in FINISHED_BACKUP:
        return
    fails = engine.faults.take("finalize-fails", vm=vm.id) is not None
    leftover = backup.kind == "hybrid" and engine.faults.take("snapshot-leftover", vm=vm.id) is not None
    try:
        end_in_hypervisor(engine, vm, backup, merge=not leftover)
    except MachineError as error:
        if backup.kind != "hybrid":
            fails = True
        leftover = backup.kind == "hybrid"
        command_failed(engine, vm, "Merge" if leftover else "StopVmBackup", str(error))
    if leftover:
        engine.event(
            10813,
            "Possible failure while removing a snapshot that was generated automatically during backup of VM "
            f"'{vm.name}'. The snapshot may be removed manually",
            "warning",
            vm=vm,
        )
    if fails:
        if backup.kind != "hybrid":
            code_text = f"Backup {backup.id} for VM {vm.name} failed to finalize (User: {USER})."
            engine.event(10795, code_text, "error", vm=vm)
            # The engine forgets the checkpoint of a backup that failed; its bitmap stays.
            with engine.lock:
                vm.checkpoints[:] = [each for each in vm.checkpoints if each.id != backup.to_checkpoint]
        fail(engine, vm, backup)
        return
    if backup.kind != "hybrid":
        snapshots.unlock(engine, list(backup.disks))
    engine.event(10793, f"Backup {backup.id} for VM {vm.name} completed successfully (User: {USER}).", vm=vm)
    set_phase(engine, backup, "succeeded")
    purge(engine, backup)


def machine_ended(engine: Engine, vm: Vm) -> None:
    """qemu is gone, and with it a live backup: the engine notices when it looks. Its snapshot, if it has one,
    is removed; the client finds a failed backup."""
    backup = engine.running_backup(vm)
    if backup is not None:
        abort(engine, vm, backup)


def abort(engine: Engine, vm: Vm, backup: Backup, *, keep_snapshot: bool = False) -> None:
    """A running backup fails, wherever it is, and its transfers with it. Not under the engine's lock."""
    with engine.lock:
        if backup.phase in FINISHED_BACKUP:
            return
        disks = list(backup.disks)
    transfers.backup_ended(engine, backup)
    try:
        end_in_hypervisor(engine, vm, backup, merge=not keep_snapshot)
    except MachineError as error:
        command_failed(engine, vm, "StopVmBackup", str(error))
    snapshots.unlock(engine, disks)
    fail(engine, vm, backup)


def fail_unmonitored(engine: Engine) -> None:
    """What an engine does, when it starts, with backups that no command of its own watches any more."""
    with engine.lock:
        running = [each for each in engine.backups.values() if each.phase not in FINISHED_BACKUP]
    for backup in running:
        vm = engine.vms.get(backup.vm_id)
        if vm is None:
            continue
        engine.event(
            10814,
            f"Backup {backup.id} for VM {vm.name} was marked as failed since it is no longer monitored, "
            "cleanup may be required.",
            "error",
            vm=vm,
        )
        # The host ends the backup when the engine has forgotten it; a snapshot stays.
        abort(engine, vm, backup, keep_snapshot=True)
