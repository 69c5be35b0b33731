"""What `vmfs find` does, and takes long to import."""

from __future__ import annotations

import argparse
import logging
import re
import stat
from collections.abc import Sequence

from vmfs.catalog.catalog import Catalog
from vmfs.catalog.filesearch import FileQuery, FileRow
from vmfs.catalog.globs import Glob, compile_glob
from vmfs.catalog.rows import PointRow
from vmfs.cli import common, found_files
from vmfs.cli.tables import count, format_table
from vmfs.cli.unindexed import merge_rows, walk_points, warn_of_unindexed
from vmfs.errors import UsageError
from vmfs.format.filelist import to_text
from vmfs.repo.repository import Repository

log = logging.getLogger(__name__)

_KINDS = {"f": stat.S_IFREG, "d": stat.S_IFDIR, "l": stat.S_IFLNK}
_DRIVE = re.compile(r"[A-Za-z]:[/\\]")


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
            walked, status = walk_points(repository, missing, query)
            rows = merge_rows([*rows, *walked])
    if args.json:
        common.print_json(
            {
                "files": [found_files.facts_of(row) for row in rows],
                "not_indexed": [] if args.walk else [point.id for point in missing],
                "not_listed": [volume._asdict() for volume in unlisted],
            }
        )
    elif rows:
        header = ("VM", *found_files.HEADER, "PATH")
        print(format_table(header, [_cells(row) for row in rows]))
    if unlisted:
        log.warning(
            "%s of indexed restore points could not be listed, %s of %s the last",
            count(len(unlisted), "volume"),
            unlisted[-1].volume,
            unlisted[-1].point,
        )
    if not args.walk:
        warn_of_unindexed(len(missing), len(scope))
    return status


def make_query(
    args: argparse.Namespace, pattern: str | None, scope: Sequence[PointRow], repository: Repository
) -> FileQuery:
    name = _glob(args.name, ignore_case=args.ignore_case) if args.name is not None else None
    path: Glob | None = None
    if pattern is not None and _DRIVE.match(pattern):
        # As Windows writes it; there, it makes no difference which case letters are of.
        path = _glob(pattern.replace("\\", "/").rstrip("/"), ignore_case=True)
    elif pattern is not None and "/" in pattern:
        pattern = pattern.rstrip("/") or "/"
        anchored = pattern.startswith(("/", "**/"))
        path = _glob(pattern if anchored else f"**/{pattern}", ignore_case=args.ignore_case)
    elif pattern is not None:
        if name is not None:
            raise UsageError(f"{pattern!r} and --name are both for the name; give one of them, or a path")
        name = _glob(pattern, ignore_case=args.ignore_case)
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


def _glob(pattern: str, *, ignore_case: bool) -> Glob:
    return compile_glob(to_text(pattern.encode(errors="surrogateescape")), ignore_case=ignore_case)


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


def _cells(row: FileRow) -> tuple[str, ...]:
    return (row.vm, *found_files.cells_of(row), found_files.shown_path(row))
