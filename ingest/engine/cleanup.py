"""What an interrupted run of ours has left in the engine: found by the description that it gave, and ended.

In this order: transfers, as a backup cannot be finalized under one; backups; snapshots that a hybrid backup
has left; disks that a restore had not finished. What belongs to a run that is still alive is left alone, and
what a run has finished before it ended.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from ingest.engine import snapshots
from ingest.engine.backups import finish_backup
from ingest.engine.errors import BackupFailedError, BrokenChain, NotFoundError
from ingest.engine.marks import read_mark
from ingest.engine.session import Engine
from ingest.engine.transfers import active_transfers, cancel_transfer
from ingest.engine.values import found_by, has_ended
from ingest.engine.vms import EngineVm

log = logging.getLogger(__name__)


def clean_up_backups(
    engine: Engine, vm: EngineVm, *, repository: str, alive: Callable[[str], bool]
) -> list[str]:
    """End the backups of a VM that runs for this repository have left, with their transfers and snapshots.

    `repository` begins the repository's id: 8 hex digits. `alive` tells of the id of a run whether it is
    going on. Returns what was done, a line each, which is also logged as a warning. Raises EngineError when
    what was left cannot be ended; a new backup would be refused.
    """
    service = engine.services().vms_service().vm_service(vm.id).backups_service()

    def going_on() -> list[Any]:
        found = engine.ask(f"VM {vm.name}: backups", lambda: service.list(), repeat=True)
        return [item for item in found if not has_ended(item)]

    done: list[str] = []
    for item in of_dead_runs(going_on, repository=repository, alive=alive):
        disks = engine.ask(
            f"VM {vm.name}: backup {item.id}",
            lambda: service.backup_service(item.id).disks_service().list(),  # noqa: B023
            repeat=True,
        )
        done += _cancel_transfers(engine, {disk.id for disk in disks})
        try:
            finish_backup(engine, vm, item.id, limit=snapshots.MERGE_LIMIT)
        except (BackupFailedError, BrokenChain) as error:
            log.debug("%s", error)
        done.append(_say(f"VM {vm.name}: ended backup {item.id}, which an interrupted run had left"))
    # A run that was killed cannot have told us which was its own.
    removed = snapshots.remove_left_behind(engine, vm, snapshots.left_behind(engine, vm))
    done += [f"VM {vm.name}: removed snapshot {snapshot}, which a backup had left" for snapshot in removed]
    return done


def clean_up_disks(engine: Engine, *, repository: str, alive: Callable[[str], bool]) -> list[str]:
    """Remove the disks, with their transfers, that restores from this repository have begun and not finished:
    those with our description that belong to no VM. Arguments and result as in `clean_up_backups`."""
    service = engine.services().disks_service()

    def unattached() -> list[Any]:
        found = engine.ask("disks", lambda: service.list(search="description=vmfs*"), repeat=True)
        return [disk for disk in found if not disk.vms]

    done: list[str] = []
    for disk in of_dead_runs(unattached, repository=repository, alive=alive):
        done += _cancel_transfers(engine, {disk.id})
        if remove_disk(engine, disk.id):
            done.append(_say(f"removed disk {disk.id}, which an interrupted restore had left"))
    return done


def of_dead_runs(
    look: Callable[[], list[Any]], *, repository: str, alive: Callable[[str], bool]
) -> list[Any]:
    """Of what `look` finds, all with a description, that of runs of ours which are dead. Other arguments as
    in `clean_up_backups`."""

    def ours() -> list[tuple[str, Any]]:
        marked = [(read_mark(item.description), item) for item in look()]
        return [(mark.run, item) for mark, item in marked if mark and mark.repository == repository]

    dead = {run for run in {run for run, _ in ours()} if not alive(run)}
    # Once more: a run may have finished what it was at, and then have ended, between our two questions.
    return [item for run, item in ours() if run in dead] if dead else []


def remove_disk(engine: Engine, disk_id: str, *, limit: float = 300.0) -> bool:
    """Remove a disk and wait until it is gone; False if it was already. Raises EngineError."""
    service = engine.services().disks_service().disk_service(disk_id)
    what = f"disk {disk_id}"

    try:
        engine.ask(what, lambda: service.remove(), repeat=True)
    except NotFoundError:
        return False
    engine.wait(what, lambda: found_by(service), lambda now: now is None, limit=limit)
    return True


def _cancel_transfers(engine: Engine, disk_ids: set[str]) -> list[str]:
    done = []
    for transfer in active_transfers(engine, disk_ids):
        cancel_transfer(engine, transfer)
        done.append(_say(f"ended image transfer {transfer.id}, which an interrupted run had left"))
    return done


def _say(text: str) -> str:
    log.warning("%s", text)
    return text
