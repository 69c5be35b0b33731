"""Restore points without a file list: what `vmfs find` and `vmfs history` do about them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from vmfs.catalog.filesearch import FileQuery, FileRow, order_of
from vmfs.catalog.resolve import show_time
from vmfs.catalog.rows import PointRow
from vmfs.cli.tables import count
from vmfs.errors import VmfsError
from vmfs.repo.repository import Repository

log = logging.getLogger(__name__)


def warn_of_unindexed(missing: int, total: int) -> None:
    if missing:
        log.warning(
            "%d of %s not indexed and left out: run 'vmfs index --all', or look through them now with --walk",
            missing,
            f"{count(total, 'restore point')} {'is' if missing == 1 else 'are'}",
        )


def walk_points(
    repository: Repository, points: Sequence[PointRow], query: FileQuery
) -> tuple[list[FileRow], int]:
    """What of those points is as `query` says, and the exit status; what cannot be read is said."""
    # What it takes to read file systems takes a while to import.
    from vmfs.search.look import look

    rows: list[FileRow] = []
    status = 0
    for point in points:
        log.info("looking through %s@%s", point.vm, show_time(point.time))
        try:
            for found in look(repository, repository.load_point(point.id), query):
                if isinstance(found, VmfsError):
                    log.warning("%s@%s: %s", point.vm, show_time(point.time), found)
                    status = max(status, found.exit_status)
                else:
                    rows.append(found)
        except VmfsError as error:
            log.error("restore point %s: %s", point.id, error)
            status = max(status, error.exit_status)
    return rows, status


def merge_rows(rows: Sequence[FileRow]) -> list[FileRow]:
    """Each version once, in the order of the catalog's."""
    merged: dict[tuple[object, ...], FileRow] = {}
    for row in rows:
        key = (row.vm_id, row.volume_key, row.path, row.mode, row.size, row.mtime, row.ctime)
        known = merged.get(key)
        points = {*row.points, *(known.points if known else ())}
        ordered = sorted(points, key=lambda point: (point.time, point.id))
        merged[key] = replace(known or row, points=tuple(ordered))
    return sorted(merged.values(), key=order_of)
