"""Checkpoints of a VM: the moments since which its disks' changes are known.

Each one costs the host a bitmap on every disk, which grows with the disk and is written out at each stop of
the VM. So those that no backup will start from again are removed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ingest.engine.errors import ConflictError, EngineError, NotFoundError, RefusedError
from ingest.engine.marks import read_mark
from ingest.engine.session import Engine
from ingest.engine.values import text_of, utc
from ingest.engine.vms import EngineVm, vm_disks

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """`valid` is what the engine believes: whether the bitmaps are, a backup will show. `created` is UTC."""

    id: str
    parent: str | None
    valid: bool
    created: datetime | None
    description: str

    @property
    def repository(self) -> str | None:
        """The beginning of the id of the repository that it was taken for, if its description tells."""
        mark = read_mark(self.description)
        return mark.repository if mark else None

    @property
    def run(self) -> str | None:
        """The run that took it, if it was one of ours."""
        mark = read_mark(self.description)
        return mark.run if mark else None


def list_checkpoints(engine: Engine, vm: EngineVm) -> list[Checkpoint]:
    """Oldest first: each after its parent."""
    service = _service(engine, vm)
    found = engine.ask(f"VM {vm.name}: checkpoints", lambda: service.list(), repeat=True)
    return _in_order(_checkpoint(item) for item in found)


def checkpoint_disks(engine: Engine, vm: EngineVm, checkpoint_id: str) -> list[str]:
    """Ids of the disks that took part. Raises NotFoundError."""
    service = _service(engine, vm).checkpoint_service(checkpoint_id).disks_service()
    what = f"VM {vm.name}: checkpoint {checkpoint_id}"
    return sorted(disk.id for disk in engine.ask(what, lambda: service.list(), repeat=True))


def remove_checkpoint(engine: Engine, vm: EngineVm, checkpoint_id: str, *, limit: float = 300.0) -> None:
    """Remove it and wait until it is gone; nothing is done if it is already. Raises EngineError."""
    service = _service(engine, vm).checkpoint_service(checkpoint_id)
    what = f"VM {vm.name}: checkpoint {checkpoint_id}"
    try:
        engine.ask(what, lambda: service.remove(), repeat=True)
    except NotFoundError:
        return
    engine.wait(
        what,
        lambda: [item.id for item in list_checkpoints(engine, vm)],
        lambda ids: checkpoint_id not in ids,
        limit=limit,
    )


def tracked_disks(engine: Engine, vm: EngineVm) -> set[str]:
    """Ids of the VM's disks whose changes a checkpoint can tell. Raises EngineError."""
    # One that was qcow2 by a snapshot, and is in checkpoints, may be raw again.
    return {disk.id for disk in vm_disks(engine, vm) if disk.format != "raw"}


def still_needed(
    newest_first: Iterable[Mapping[str, str]], *, existing: Collection[str], disks: Collection[str]
) -> set[str]:
    """Of the checkpoints that restore points record, by disk id for each point, those that the next backups
    will start from: of each of the `disks`, the newest among the `existing` ones."""
    newest: dict[str, str] = {}
    for recorded in newest_first:
        for disk_id, checkpoint in recorded.items():
            if disk_id in disks and checkpoint in existing:
                newest.setdefault(disk_id, checkpoint)
    return set(newest.values())


def of_live_runs(
    checkpoints: Collection[Checkpoint], *, repository: str, alive: Callable[[str], bool]
) -> set[str]:
    """Ids of those that runs of ours have taken which are going on: a restore point may be about to record
    them. `repository` begins the repository's id: 8 hex digits. `alive` tells of the id of a run whether it
    is going on. What restore points record is to be looked for after this: a run that has ended by now has
    left its point, or never will."""
    ours = [checkpoint for checkpoint in checkpoints if checkpoint.repository == repository]
    living = {run for run in {checkpoint.run for checkpoint in ours} if run and alive(run)}
    return {checkpoint.id for checkpoint in ours if checkpoint.run in living}


def prune_checkpoints(
    engine: Engine,
    vm: EngineVm,
    checkpoints: Iterable[Checkpoint],
    *,
    keep: Collection[str],
    own: Collection[str],
    repository: str,
) -> list[str]:
    """Remove those of ours that are not to be kept, in the order in which they are given: that of
    `list_checkpoints`. `own` are the ids that restore points record; others are ours by their description,
    which begins the repository's id: `repository`, 8 hex digits. Those of other products are left alone. What
    cannot be removed now is warned of. Returns the ids removed."""
    removed = []
    for checkpoint in checkpoints:
        if checkpoint.id in keep or not (checkpoint.id in own or checkpoint.repository == repository):
            continue
        try:
            remove_checkpoint(engine, vm, checkpoint.id)
        except (ConflictError, RefusedError) as error:
            log.warning("a checkpoint that is not needed any more stays: %s", error)
            # It is the same with the ones after it.
            break
        except EngineError as error:
            log.warning("%s", error)
            break
        removed.append(checkpoint.id)
    return removed


def _service(engine: Engine, vm: EngineVm) -> Any:
    return engine.services().vms_service().vm_service(vm.id).checkpoints_service()


def _checkpoint(found: Any) -> Checkpoint:
    return Checkpoint(
        id=found.id,
        parent=found.parent_id,
        valid=text_of(found.state) != "invalid",
        created=utc(found.creation_date),
        description=found.description or "",
    )


def _in_order(found: Iterable[Checkpoint]) -> list[Checkpoint]:
    left = {item.id: item for item in found}
    ordered: list[Checkpoint] = []
    while left:
        ready = [item for item in left.values() if item.parent not in left] or list(left.values())
        for item in ready:
            ordered.append(left.pop(item.id))
    return ordered
