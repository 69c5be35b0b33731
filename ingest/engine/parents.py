"""Which restore point an incremental backup of a VM starts from, and which of its disks can.

The engine's checkpoint says what changed since the moment when it was taken; the restore point that was taken
with it holds the disks as they were then.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from ingest.engine.vms import EngineDisk
from vmfs.catalog.catalog import Catalog
from vmfs.errors import IntegrityError, ObjectMissingError
from vmfs.format.manifest import Disk
from vmfs.repo.repository import Point, Repository

log = logging.getLogger(__name__)

_RAW = "a raw disk, of which changes cannot be known"
_OLDER = 100
"""Restore points before the parent in which checkpoints to be removed are looked for."""


@dataclass(frozen=True, slots=True)
class Parent:
    """`checkpoint` is the engine's, taken with `point`. `resized` are the ids of disks that had another size
    in a later point: a bitmap keeps no record of what a disk lost and got back as zeros."""

    point: Point
    checkpoint: str
    resized: frozenset[str] = frozenset()

    def disk(self, disk_id: str) -> Disk | None:
        return next((disk for disk in self.point.manifest.disks if disk.id == disk_id), None)


@dataclass(frozen=True, slots=True)
class Chain:
    """`parent` None for a full backup, because of `reason` where an incremental one was to be expected.
    `recorded` are checkpoints that restore points of the VM record, as far as the engine may still have them;
    `newest` tells of each disk, by id, the newest that can be used."""

    parent: Parent | None
    reason: str | None
    recorded: frozenset[str]
    newest: Mapping[str, str]

    def in_full(self, reason: str | None) -> Chain:
        """With nothing to start from; `reason` None where nothing was to be expected."""
        return replace(self, parent=None, reason=reason)


def find_chain(
    repository: Repository,
    catalog: Catalog,
    *,
    engine_id: str,
    vm_id: str,
    disks: Collection[str],
    valid: Collection[str],
    present: Collection[str],
) -> Chain:
    """The newest restore point of the VM that has most of `disks` (their ids) with a checkpoint among the
    `valid` ones: disks may be backed up in turns. `present` are all checkpoints that the engine has."""
    chosen, usable, all_present = set(disks), set(valid), set(present)
    recorded: set[str] = set()
    newest: dict[str, str] = {}
    sizes: dict[str, set[int]] = {}
    parent: Parent | None = None
    best = seen = older = 0
    ours = (row for row in catalog.points(vm_id) if (row.engine, row.vm_id) == (engine_id, vm_id))
    for row in sorted(ours, key=lambda row: row.id, reverse=True):
        if (recorded and not usable) or (parent and (recorded >= all_present or older == _OLDER)):
            # Nothing more to be learnt, or only of checkpoints that are hardly ours.
            break
        older += parent is not None
        try:
            point = repository.load_point(row.id)
        except (IntegrityError, ObjectMissingError) as error:
            log.warning("restore point %s cannot be a parent: %s", row.id, error)
            continue
        seen += 1
        with_checkpoint = {disk.id: disk.checkpoint for disk in point.manifest.disks if disk.checkpoint}
        recorded.update(with_checkpoint.values())
        for disk in point.manifest.disks:
            sizes.setdefault(disk.id, set()).add(disk.size)
        good = {key: value for key, value in with_checkpoint.items() if value in usable}
        for disk_id, checkpoint in good.items():
            newest.setdefault(disk_id, checkpoint)
        if len(chosen & good.keys()) > best:
            best = len(chosen & good.keys())
            resized = frozenset(disk_id for disk_id, known in sizes.items() if len(known) > 1)
            parent = Parent(point, next(good[key] for key in sorted(chosen & good.keys())), resized)
    reason = _why_none(recorded, newest, all_present) if seen and parent is None else None
    return Chain(parent, reason, frozenset(recorded), newest)


def full_reason(disk: EngineDisk, size: int, chain: Chain, incremental: Mapping[str, bool]) -> str | None:
    """Why a disk of a backup is to be read in full; None when it need not be, or nothing else was to be
    expected. `size` is that of the disk in the backup, bytes; `incremental` is what the engine says of each
    disk, by id."""
    parent = chain.parent
    if parent is None:
        # Whatever broke the chain, a raw disk would not have been part of it.
        return _RAW if chain.reason and disk.format == "raw" else chain.reason
    base = parent.disk(disk.id)
    if base is None:
        return f"not in restore point {parent.point.id}"
    if disk.format == "raw":
        return _RAW
    if base.checkpoint != parent.checkpoint:
        return f"not in checkpoint {parent.checkpoint}"
    if size != base.size:
        return f"it has {size} bytes, and had {base.size} in restore point {parent.point.id}"
    if disk.id in parent.resized:
        return f"it was resized after restore point {parent.point.id} and back"
    if not incremental.get(disk.id, False):
        return f"the engine does not know what changed since checkpoint {parent.checkpoint}"
    return None


def _why_none(recorded: Collection[str], newest: Collection[str], present: Collection[str]) -> str:
    if not recorded:
        return "no restore point of this VM has a checkpoint"
    if newest:
        return "not in a restore point whose checkpoint the engine still has"
    if set(recorded) & set(present):
        return "the engine says that the VM's checkpoints are invalid"
    return "the engine has no checkpoint of this VM's restore points any more"
