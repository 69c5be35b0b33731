"""Which restore point an incremental starts from, and what to do when the chain is broken.

A dirty bitmap says what changed since some moment; the parent must hold the disk as it was at that moment. A
bitmap named like the checkpoint that a point recorded belongs to that point (libvirt and oVirt name them so).
Where points record no checkpoints, the bitmap is the user's to keep in step, and belongs to the newest point.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import ExitStack

from ingest.pipeline import PlannedDisk
from ingest.sources.base import BitmapError, DiskSource
from ingest.sources.spec import DiskSpec, open_source
from vmfs.errors import IntegrityError, UsageError
from vmfs.format.manifest import Disk
from vmfs.repo.repository import Point, Repository

log = logging.getLogger(__name__)


def find_parent(repository: Repository, newest_first: Iterable[str], bitmap: str) -> Point | None:
    """The point that `bitmap` tells the changes since; None when the VM has no point yet. Raises BitmapError
    when its points record checkpoints, and none of that name."""
    newest: Point | None = None
    for point_id in newest_first:
        try:
            point = repository.load_point(point_id)
        except IntegrityError as error:
            log.warning("restore point %s cannot be a parent: %s", point_id, error)
            continue
        checkpoints = {disk.checkpoint for disk in point.manifest.disks}
        if bitmap in checkpoints:
            return point
        newest = newest or point
    if newest and any(disk.checkpoint for disk in newest.manifest.disks):
        raise BitmapError(
            f"no restore point of this VM was taken at checkpoint {bitmap!a}, so its bitmap cannot be used; "
            "name another one, or use --full"
        )
    return newest


def plan_disks(
    specs: Sequence[DiskSpec],
    parent: Point | None,
    *,
    bitmap: str | None,
    checkpoint: str | None,
    heal: bool,
    opened: ExitStack,
) -> list[PlannedDisk]:
    """Open every disk and decide whether it is read in full. With `heal`, a disk whose bitmap cannot be used
    is read in full; else it is a BitmapError. Sources are closed by `opened`."""
    aliases = [spec.alias for spec in specs]
    for alias in aliases:
        if aliases.count(alias) > 1:
            raise UsageError(f"two disks are called {alias!a}; tell them apart with ALIAS=")
    return [_plan(spec, parent, bitmap, checkpoint, heal, opened) for spec in specs]


def _plan(
    spec: DiskSpec,
    parent: Point | None,
    bitmap: str | None,
    checkpoint: str | None,
    heal: bool,
    opened: ExitStack,
) -> PlannedDisk:
    def full(reason: str | None) -> PlannedDisk:
        source = open_source(spec)
        opened.callback(source.close)
        return PlannedDisk(spec.alias, source, None, checkpoint, reason)

    if bitmap is None:
        return full(None)
    base = parent.manifest.disk(spec.alias) if parent else None
    if parent is None or base is None:
        return full(
            "no restore point of this VM yet" if parent is None else f"not in restore point {parent.id}"
        )
    try:
        source = open_source(spec, bitmap=bitmap)
        opened.callback(source.close)
        _check_size(source, base, parent, bitmap)
    except BitmapError as error:
        if not heal:
            raise
        log.warning("%s; reading the disk in full", error)
        return full(str(error))
    return PlannedDisk(spec.alias, source, base, checkpoint)


def _check_size(source: DiskSource, base: Disk, parent: Point, bitmap: str) -> None:
    if source.size != base.size:
        raise BitmapError(
            f"disk {source.name} has {source.size} bytes, and had {base.size} in restore point {parent.id}: "
            f"bitmap {bitmap!a} is of a disk of another size; use --full"
        )
