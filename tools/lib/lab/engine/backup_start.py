"""From an accepted backup to one that is ready: live (libvirt's pull backup), cold (the VM is down) and
hybrid (on an automatic snapshot)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lab.engine import snapshots
from lab.engine.backup_phases import command_failed, end_in_hypervisor, fail, set_phase
from lab.engine.core import USER, Engine
from lab.engine.errors import Refused
from lab.engine.model import (
    AUTO_SNAPSHOT,
    FINISHED_BACKUP,
    Backup,
    Checkpoint,
    Snapshot,
    Vm,
    new_id,
)
from lab.machine import BackupExport, MachineError


def run(engine: Engine, vm: Vm, backup: Backup) -> None:
    if backup.kind == "live" and not _redefine_checkpoints(engine, vm, backup):
        return
    checkpoint = _new_checkpoint(engine, vm, backup)
    if backup.kind == "live":
        set_phase(engine, backup, "starting")
    engine.step()
    engine.faults.moment("backup-starting", vm=vm.id, backup=backup.id)
    if backup.phase in FINISHED_BACKUP:  # it was aborted meanwhile
        _forget(engine, vm, checkpoint)
        return
    try:
        _spoil(engine, vm, backup)
        begin_backup = vm.machine.begin_live_backup if backup.kind == "live" else vm.machine.begin_cold_backup
        exports = begin_backup(
            backup.id,
            _since(engine, vm, backup),
            checkpoint.id if checkpoint else None,
            Recorder(engine, vm, backup),
        )
    except MachineError as error:
        _forget(engine, vm, checkpoint)
        command_failed(engine, vm, "StartVmBackup" if backup.kind == "live" else "StartNbdServer", str(error))
        fail(engine, vm, backup)
        return
    if backup.stopped or backup.phase in FINISHED_BACKUP:  # finalized before it was ready: it fails
        vm.machine.end_backup(backup.id)
        _forget(engine, vm, checkpoint)
        if backup.phase not in FINISHED_BACKUP:
            fail(engine, vm, backup)
        return
    _ready(engine, vm, backup, exports, checkpoint)


def _redefine_checkpoints(engine: Engine, vm: Vm, backup: Backup) -> bool:
    """libvirt is told of the chain again, and looks at the bitmaps of the checkpoint that is asked for.
    When that fails, the whole chain is removed, and so the next backup must be full."""
    spoiled = engine.faults.take("checkpoint-redefine-fails", vm=vm.id) is not None
    since = backup.from_checkpoint
    if since is not None and not spoiled:
        asked = next((each for each in vm.checkpoints if each.id == since), None)
        present = vm.machine.disks
        spoiled = asked is None or not all(
            vm.machine.checkpoint_valid(since, disk_id) for disk_id in asked.disks if disk_id in present
        )
    if not spoiled:
        return True
    with engine.lock:
        chain, vm.checkpoints[:] = list(vm.checkpoints), []
    for checkpoint in chain:
        vm.machine.remove_checkpoint(checkpoint.id)
    engine.event(
        10791,
        f"Incremental backup {backup.id} for VM {vm.name} failed. Full backup is now needed (User: {USER}).",
        "error",
        vm=vm,
    )
    fail(engine, vm, backup)
    return False


def run_hybrid(engine: Engine, vm: Vm, backup: Backup) -> None:
    set_phase(engine, backup, "starting")
    for disk_id in backup.disks:
        engine.disk(disk_id).status = "locked"
    snapshot = Snapshot(
        new_id(), AUTO_SNAPSHOT, {}, status="locked", machine_id=backup.id, backup_id=backup.id
    )
    with engine.lock:
        backup.snapshot_id = snapshot.id
        vm.snapshots.append(snapshot)
    engine.event(
        45, f"Snapshot '{AUTO_SNAPSHOT}' creation for VM '{vm.name}' was initiated by {USER}.", vm=vm
    )
    engine.step()
    engine.faults.moment("backup-starting", vm=vm.id, backup=backup.id)
    if backup.phase in FINISHED_BACKUP:  # it was aborted meanwhile: the engine takes back what it has begun
        with engine.lock:
            if snapshot in vm.snapshots:
                vm.snapshots.remove(snapshot)
        return
    checkpoint_id = new_id()
    try:
        # What the disks were below the snapshot decides which are in the checkpoint.
        members = [disk_id for disk_id in backup.disks if engine.disk_format(engine.disk(disk_id)) == "cow"]
        _spoil(engine, vm, backup)
        # A VM that is down is read below the snapshot as well; there the machine does without one.
        begin_backup = vm.machine.begin_hybrid_backup if vm.machine.running else vm.machine.begin_cold_backup
        exports = begin_backup(
            backup.id, _since(engine, vm, backup), checkpoint_id, Recorder(engine, vm, backup)
        )
    except (MachineError, Refused) as error:
        command_failed(engine, vm, "Snapshot", str(error))
        with engine.lock:
            vm.snapshots.remove(snapshot)
        snapshots.unlock(engine, list(backup.disks))
        fail(engine, vm, backup)
        return
    if backup.id in vm.machine.snapshots:
        snapshots.record(engine, vm, snapshot, list(backup.disks))
    snapshot.status = "ok"
    snapshots.unlock(engine, list(backup.disks))
    engine.event(68, f"Snapshot '{AUTO_SNAPSHOT}' creation for VM '{vm.name}' has been completed.", vm=vm)
    engine.step()
    if backup.phase in FINISHED_BACKUP:  # it was aborted meanwhile
        end_in_hypervisor(engine, vm, backup, merge=True)
        return
    if engine.faults.take("stale-snapshot", vm=vm.id) is not None:
        vm.machine.end_backup(backup.id, merge=False)
        fail(engine, vm, backup)
        return
    checkpoint = _new_checkpoint(engine, vm, backup, checkpoint_id, members)
    _ready(engine, vm, backup, exports, checkpoint)


def _spoil(engine: Engine, vm: Vm, backup: Backup) -> None:
    if engine.faults.take("backup-fails", vm=vm.id) is not None:
        raise MachineError("internal error: unable to execute QEMU command 'transaction': a fault of the lab")


def _new_checkpoint(
    engine: Engine,
    vm: Vm,
    backup: Backup,
    checkpoint_id: str | None = None,
    members: Sequence[str] | None = None,
) -> Checkpoint | None:
    """With the qcow2 disks; none for a backup of raw disks, unless it is hybrid."""
    with engine.lock:
        if members is None:
            members = [each for each in backup.disks if engine.disk_format(engine.disk(each)) == "cow"]
            if not members:
                return None
        made = Checkpoint(
            checkpoint_id or new_id(),
            vm.checkpoints[-1].id if vm.checkpoints else None,
            list(members),
            backup.description or "",
        )
        vm.checkpoints.append(made)
        return made


def _forget(engine: Engine, vm: Vm, checkpoint: Checkpoint | None) -> None:
    """The checkpoint of a backup that was not taken."""
    if checkpoint is not None:
        with engine.lock:
            snapshots.forget_checkpoint(vm, checkpoint)


def _since(engine: Engine, vm: Vm, backup: Backup) -> dict[str, str | None]:
    """The checkpoint to tell the changes since, for each disk, and the disks' modes by it."""
    since = backup.from_checkpoint
    asked = next((each for each in vm.checkpoints if each.id == since), None)
    found: dict[str, str | None] = {}
    for disk_id in backup.disks:
        incremental = (
            asked is not None
            and disk_id in asked.disks
            and engine.faults.take("disk-not-in-checkpoint", vm=vm.id, disk=disk_id) is None
        )
        backup.disks[disk_id] = "incremental" if incremental else "full"
        found[disk_id] = since if incremental else None
    return found


class Recorder:
    """Keeps what each disk holds at the instant of the backup. Called by the machine while the guest is
    frozen, so it takes no lock of the engine's."""

    def __init__(self, engine: Engine, vm: Vm, backup: Backup) -> None:
        self._engine = engine
        self._vm = vm
        self._backup = backup

    def __call__(self) -> None:
        folder = self._engine.folder / "records" / self._backup.id
        folder.mkdir(parents=True)
        kept: dict[str, Path] = {}
        for disk_id in self._backup.disks:
            kept[disk_id] = folder / f"{disk_id}.raw"
            self._vm.machine.record(disk_id, kept[disk_id])
        self._engine.records.setdefault(self._vm.id, {})[self._backup.id] = kept


def _ready(
    engine: Engine, vm: Vm, backup: Backup, exports: Mapping[str, BackupExport], checkpoint: Checkpoint | None
) -> None:
    with engine.lock:
        backup.exports = dict(exports)
        backup.to_checkpoint = checkpoint.id if checkpoint else None
        hidden = engine.faults.take("checkpoint-absent", vm=vm.id)
        if hidden is not None:
            backup.hidden_checkpoint = int(hidden.get("replies", -1))
    set_phase(engine, backup, "ready")
    engine.faults.moment("backup-ready", vm=vm.id, backup=backup.id)
