"""What `vmfs find` does, and takes long to import."""

from __future__ import annotations

import argparse
import logging
import re
import stat
from collections.abc import Sequence
from dataclasses import replace

from vmfs.catalog.catalog import Catalog
from vmfs.catalog.filesearch import FileQuery, FileRow, order_of
from vmfs.catalog.globs import Glob, compile_glob
from vmfs.catalog.resolve import show_time
from vmfs.catalog.rows import PointRow
from vmfs.cli import common, found_files
from vmfs.cli.tables import count, format_table
from vmfs.errors import UsageError, VmfsError
from vmfs.format.filelist import to_text
from vmfs.repo.repository import Repository

log = logging.getLogger(__name__)

_KINDS = {"f": stat.S_IFREG, "d": stat.S_IFDIR, "l": stat.S_IFLNK}
_DRIVE = re.compile(r"[A-Za-z]:/")


def find(args: argparse.Namespace, patterns: Sequence[str], repository: Repository) -> int:
    with common.open_catalog(repository, args) as catalog:
        found_files.sync_files(repository, catalog)
        scope = _scope(args, catalog)
        query = make_query(args, patterns[0] if patterns else None, scope, repository)
        rows = catalog.find_files(query, vm=args.vm)
        unindexed = catalog.unindexed()
        missing = [point for point in scope if point.id in unindexed]
        asked = {point.id for point in scope}
        unlisted = [volume for volume in catalog.unlisted() if volume.point in asked]
        status = 0
        if args.walk:
            status = _walk(repository, missing, query, rows)
            rows = _merged(rows)
    if args.json:
        common.print_json(
            {
                "files": [found_files.facts_of(row) for row in rows],
                "not_indexed": [] if args.walk else [point.id for point in missing],
                "not_listed": [volume._asdict() for volume in unlisted],
            }
        )
    elif rows:
        header = ("VM", "FIRST", "LAST", ">POINTS", "T", ">SIZE", "MODIFIED", "PATH")
        print(format_table(header, [_cells(row) for row in rows]))
    if unlisted:
        log.warning(
            "%s of indexed restore points could not be listed, %s of %s the last",
            count(len(unlisted), "volume"),
            unlisted[-1].volume,
            unlisted[-1].point,
        )
    if not args.walk:
        found_files.warn_of_unindexed(len(missing), len(scope), ", or look through them now with --walk")
    return status


def make_query(
    args: argparse.Namespace, pattern: str | None, scope: Sequence[PointRow], repository: Repository
) -> FileQuery:
    name = _glob(args.name, args) if args.name is not None else None
    path: Glob | None = None
    if pattern is not None and "/" in pattern:
        anchored = pattern.startswith(("/", "**/")) or _DRIVE.match(pattern)
        path = _glob(pattern if anchored else f"**/{pattern}", args)
    elif pattern is not None:
        if name is not None:
            raise UsageError(f"{pattern!r} and --name are both for the name; give one of them, or a path")
        name = _glob(pattern, args)
    now = found_files.nanoseconds(repository.store.now())
    sizes = args.size
    return FileQuery(
        points=None if not (args.point or args.latest) else {point.id for point in scope},
        name=name,
        path=path,
        smallest=max((low for low, _ in sizes if low is not None), default=None),
        largest=min((high for _, high in sizes if high is not None), default=None),
        newer=None if args.newer is None else args.newer(now),
        older=None if args.older is None else args.older(now),
        kinds=(_KINDS[args.type],) if args.type else (),
    )


def _glob(pattern: str, args: argparse.Namespace) -> Glob:
    return compile_glob(to_text(pattern.encode(errors="surrogateescape")), ignore_case=args.ignore_case)


def _scope(args: argparse.Namespace, catalog: Catalog) -> list[PointRow]:
    """The points that are asked about."""
    if args.vm is not None:
        catalog.select_vms(args.vm)
    points = catalog.points(args.vm)
    if args.point is not None:
        point_id = catalog.resolve(args.point)
        points = [point for point in points if point.id == point_id]
        if not points:
            raise UsageError(f"restore point {args.point} is none of VM {args.vm!r}")
    if args.latest:
        points = list({(point.engine, point.vm_id): point for point in points}.values())
    return points


def _walk(repository: Repository, points: Sequence[PointRow], query: FileQuery, rows: list[FileRow]) -> int:
    # What it takes to read file systems takes a while to import.
    from vmfs.search.look import look

    status = 0
    for point in points:
        log.info("looking through %s@%s", point.vm, show_time(point.time))
        try:
            for found in look(repository, repository.load_point(point.id), query):
                if isinstance(found, VmfsError):
                    log.warning("%s@%s: %s", point.vm, show_time(point.time), found)
                    status = 1
                else:
                    rows.append(found)
        except VmfsError as error:
            log.error("restore point %s: %s", point.id, error)
            status = error.exit_status
    return status


def _merged(rows: Sequence[FileRow]) -> list[FileRow]:
    """Each version once, in the order of the catalog's."""
    merged: dict[tuple[object, ...], FileRow] = {}
    for row in rows:
        key = (row.vm_id, row.volume_key, row.path, row.mode, row.size, row.mtime, row.ctime)
        known = merged.get(key)
        points = {*row.points, *(known.points if known else ())}
        ordered = sorted(points, key=lambda point: (point.time, point.id))
        merged[key] = replace(known or row, points=tuple(ordered))
    return sorted(merged.values(), key=order_of)


def _cells(row: FileRow) -> tuple[str, ...]:
    return (
        row.vm,
        show_time(row.points[0].time),
        show_time(row.points[-1].time),
        str(len(row.points)),
        found_files.kind_letter(row.mode),
        common.format_size(row.size),
        found_files.shown_time(row.mtime),
        found_files.shown_path(row),
    )
