"""How a backup goes on, and how it fails."""

from __future__ import annotations

import time

from lab.engine import snapshots
from lab.engine.core import USER, Engine
from lab.engine.model import AUTO_SNAPSHOT, FINISHED_BACKUP, Backup, Vm, now


def command_failed(engine: Engine, vm: Vm, command: str, text: str) -> None:
    """The event that brings what the host said."""
    host = engine.hosts.get(vm.host_id or "")
    name = host.name if host else next(iter(engine.hosts.values())).name
    engine.event(10802, f"VDSM {name} command {command}VDS failed: {text}", "error", vm=vm)


def set_phase(engine: Engine, backup: Backup, phase: str) -> None:
    """What has ended stays so, whatever its task still does."""
    with engine.lock:
        if backup.phase in FINISHED_BACKUP:
            return
        backup.phase = phase
        backup.modified = now()
        if phase in FINISHED_BACKUP:
            backup.finished = time.monotonic()
        engine.changed.notify_all()


def fail(engine: Engine, vm: Vm, backup: Backup) -> None:
    """It has failed; what is left in the hypervisor is the caller's to end."""
    engine.event(10792, f"Backup {backup.id} for VM {vm.name} failed (User: {USER}).", "error", vm=vm)
    if backup.kind != "hybrid":
        snapshots.unlock(engine, list(backup.disks))
    else:
        backup.snapshot_id = None
    set_phase(engine, backup, "failed")
    purge(engine, backup)


def purge(engine: Engine, backup: Backup) -> None:
    if engine.faults.take("backup-purged", vm=backup.vm_id) is not None:
        with engine.lock:
            engine.backups.pop(backup.id, None)


def end_in_hypervisor(engine: Engine, vm: Vm, backup: Backup, *, merge: bool) -> None:
    """Raises MachineError."""
    vm.machine.end_backup(backup.id, merge=merge)
    snapshot = next((each for each in vm.snapshots if each.machine_id == backup.id), None)
    if snapshot is None:
        return
    if merge or backup.id not in vm.machine.snapshots:
        snapshots.forget(engine, vm, snapshot)
        engine.event(
            356, f"Snapshot '{AUTO_SNAPSHOT}' deletion for VM '{vm.name}' has been completed.", vm=vm
        )
