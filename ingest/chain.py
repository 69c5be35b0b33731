"""Which restore point an incremental starts from, and what to do when the chain is broken.

A dirty bitmap says what changed since some moment; the parent must hold the disk as it was at that moment. A
bitmap named like the checkpoint that a point recorded belongs to that point (libvirt and oVirt name them so).
Where points record no checkpoints, the bitmap is the user's to keep in step, and belongs to the newest point.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import NamedTuple

from ingest.pipeline import PlannedDisk
from ingest.sources.base import BitmapError, DiskSource
from ingest.sources.spec import DiskSpec, open_source
from vmfs.errors import IntegrityError, UsageError
from vmfs.format.manifest import Disk
from vmfs.repo.repository import Point, Repository

log = logging.getLogger(__name__)


class Parent(NamedTuple):
    """The point that an incremental starts from. `resized` are the aliases of disks that had another size
    later on: a bitmap keeps no record of what a disk lost and got back as zeros, even if it now has the size
    that it had."""

    point: Point
    resized: frozenset[str]


def find_parent(
    repository: Repository, newest_first: Iterable[str], bitmap: str, *, damaged: Iterable[str] = ()
) -> Parent | None:
    """The point that `bitmap` tells the changes since; None when the VM has no point yet. Raises BitmapError
    when the newest point records a checkpoint, and no point one of that name; and when a damaged point may
    be the newest, which the bitmap was begun with. `damaged` are the ids of points whose VM is not known."""
    unread = list(damaged)
    newest: Point | None = None
    sizes: dict[str, set[int]] = {}
    for point_id in newest_first:
        try:
            point = repository.load_point(point_id)
        except IntegrityError as error:
            log.warning("restore point %s cannot be a parent: %s", point_id, error)
            unread.append(point_id)
            continue
        checkpoints = {disk.checkpoint for disk in point.manifest.disks}
        for disk in point.manifest.disks:
            sizes.setdefault(disk.alias, set()).add(disk.size)
        if bitmap in checkpoints:
            return Parent(point, frozenset(alias for alias, seen in sizes.items() if len(seen) > 1))
        newest = newest or point
    if newest and any(disk.checkpoint for disk in newest.manifest.disks):
        raise BitmapError(
            f"no restore point of this VM was taken at checkpoint {bitmap!a}, so its bitmap cannot be used; "
            "name another one, or use --full"
        )
    # Ids ascend with the time of their making.
    if newest and (later := [point_id for point_id in unread if point_id > newest.id]):
        raise BitmapError(
            f"restore point {max(later)} is damaged and may be the one that bitmap {bitmap!a} was begun "
            "with; use --full"
        )
    return Parent(newest, frozenset()) if newest else None


def plan_disks(
    specs: Sequence[DiskSpec],
    parent: Parent | None,
    *,
    bitmap: str | None,
    checkpoint: str | None,
    heal: bool,
    opened: ExitStack,
    full_reason: str | None = None,
) -> list[PlannedDisk]:
    """Open every disk and decide whether it is read in full: without `bitmap` all are, for `full_reason` if
    there is one to tell. With `heal`, a disk whose bitmap cannot be used is read in full; else it is a
    BitmapError. Sources are closed by `opened`."""
    aliases = [spec.alias for spec in specs]
    for alias in aliases:
        if aliases.count(alias) > 1:
            raise UsageError(f"two disks are called {alias!a}; tell them apart with ALIAS=")
    if bitmap is None:
        return [_read_in_full(spec, checkpoint, opened, full_reason) for spec in specs]
    return [_plan(spec, parent, bitmap, checkpoint, heal, opened) for spec in specs]


def _read_in_full(
    spec: DiskSpec, checkpoint: str | None, opened: ExitStack, reason: str | None
) -> PlannedDisk:
    source = open_source(spec)
    opened.callback(source.close)
    return PlannedDisk(spec.alias, source, None, checkpoint, reason)


def _plan(
    spec: DiskSpec,
    parent: Parent | None,
    bitmap: str,
    checkpoint: str | None,
    heal: bool,
    opened: ExitStack,
) -> PlannedDisk:
    base = parent.point.manifest.disk(spec.alias) if parent else None
    if parent is None or base is None:
        missing = f"not in restore point {parent.point.id}" if parent else "no restore point of this VM yet"
        return _read_in_full(spec, checkpoint, opened, missing)
    try:
        source = open_source(spec, bitmap=bitmap)
        opened.callback(source.close)
        _check_size(source, base, parent, bitmap)
    except BitmapError as error:
        if not heal:
            raise
        log.warning("%s; reading the disk in full", error)
        return _read_in_full(spec, checkpoint, opened, str(error))
    return PlannedDisk(spec.alias, source, base, checkpoint)


def _check_size(source: DiskSource, base: Disk, parent: Parent, bitmap: str) -> None:
    if source.size != base.size:
        raise BitmapError(
            f"disk {source.name} has {source.size} bytes, and had {base.size} in restore point "
            f"{parent.point.id}: bitmap {bitmap!a} is of a disk of another size; use --full"
        )
    if base.alias in parent.resized:
        raise BitmapError(
            f"disk {source.name} was resized after restore point {parent.point.id} and back: bitmap "
            f"{bitmap!a} may not tell all that changed; use --full"
        )
