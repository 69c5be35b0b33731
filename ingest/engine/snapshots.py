"""Snapshots that the engine makes for its own use in a hybrid backup, and sometimes forgets to remove
(ovirt-engine#951)."""

from __future__ import annotations

import logging

from ingest.engine.errors import EngineError, NotFoundError
from ingest.engine.session import Engine
from ingest.engine.values import has_ended, text_of
from ingest.engine.vms import EngineVm

log = logging.getLogger(__name__)

GENERATED = "Auto-generated for Backup VM"
"""How the engine describes the snapshot of a hybrid backup; the VM's name follows."""
MERGE_LIMIT = 6 * 3600.0
"""Seconds. Removing a snapshot takes as long as merging what the guest wrote since."""


def backup_snapshots(engine: Engine, vm: EngineVm) -> set[str]:
    """Ids of the snapshots that the engine has made for backups of the VM and not removed yet."""
    service = engine.services().vms_service().vm_service(vm.id).snapshots_service()
    found = engine.ask(f"VM {vm.name}: snapshots", lambda: service.list(), repeat=True)
    return {snapshot.id for snapshot in found if (snapshot.description or "").startswith(GENERATED)}


def left_behind(engine: Engine, vm: EngineVm) -> set[str]:
    """Those of them that no backup uses any more: all, or none while a backup of the VM goes on, whoever
    began it, for the engine does not tell which is its own before it is ready. Raises EngineError."""
    # In this order: what has a snapshot by now has been a backup for longer, so it is seen, or has ended.
    present = backup_snapshots(engine, vm)
    if not present:
        return present
    service = engine.services().vms_service().vm_service(vm.id).backups_service()
    found = engine.ask(f"VM {vm.name}: backups", lambda: service.list(), repeat=True)
    return present if all(has_ended(backup) for backup in found) else set()


def remove_snapshot(engine: Engine, vm: EngineVm, snapshot_id: str, *, limit: float = MERGE_LIMIT) -> None:
    """Remove it and wait until it is merged. Nothing is done if it is gone already. Raises EngineError."""
    service = engine.services().vms_service().vm_service(vm.id).snapshots_service()
    snapshot = service.snapshot_service(snapshot_id)
    what = f"VM {vm.name}: snapshot {snapshot_id}"

    def status() -> str | None:
        found = snapshot.get()
        return text_of(found.snapshot_status) or "ok"

    try:
        engine.wait(what, status, lambda now: now != "locked", limit=limit)
        engine.ask(what, lambda: snapshot.remove(), repeat=True)
        # Until it is gone, or, where the merge has failed, is there again as it was.
        engine.wait(what, status, lambda now: now != "locked", limit=limit)
    except NotFoundError:
        return
    try:
        engine.ask(what, status, repeat=True)
    except NotFoundError:
        return
    raise EngineError(f"{what} could not be removed; see the engine's events, and remove it there")


def remove_left_behind(engine: Engine, vm: EngineVm, snapshot_ids: set[str]) -> list[str]:
    """Remove these as far as that is possible, with a warning for each. What could not be removed is for
    the user. Returns what was removed."""
    removed = []
    for snapshot_id in sorted(snapshot_ids):
        try:
            remove_snapshot(engine, vm, snapshot_id)
        except EngineError as error:
            log.warning("a snapshot that a backup has left behind stays: %s", error)
        else:
            log.warning("VM %s: removed snapshot %s, which a backup had left behind", vm.name, snapshot_id)
            removed.append(snapshot_id)
    return removed
