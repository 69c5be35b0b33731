"""vmfs export: a disk of a restore point as a file."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from vmfs.catalog.catalog import Catalog
from vmfs.cli import common
from vmfs.cli.progress import ProgressBars
from vmfs.errors import UsageError
from vmfs.format.manifest import Disk
from vmfs.repo.export import FORMATS, export_file, export_stream
from vmfs.repo.repository import Point, Repository
from vmfs.store import LocalStore


def register(subparsers: Any) -> None:
    parser = common.add_repository_command(
        subparsers,
        "export",
        run,
        help="write a disk to a file",
        description="Write a disk of a restore point to a file or standard output. The file appears whole "
        "or not at all, readable by you only; a raw one has holes where the disk holds nothing.",
    )
    parser.add_argument(
        "point",
        nargs="*",
        metavar="POINT[:DISK]",
        help="a restore point (an id, a prefix, VM@latest, VM@TIME) and the alias of its disk, which may be "
        "left out where there is one",
    )
    parser.add_argument(
        "-o", "--output", required=True, metavar="FILE", help="where to write it; - is standard output"
    )
    parser.add_argument("--format", choices=FORMATS, default="raw", help="format of the file; default raw")
    parser.add_argument("--force", action="store_true", help="replace FILE if it is there")


def run(args: argparse.Namespace) -> int:
    specs = common.take_repository(args, args.point)
    if len(specs) != 1:
        raise UsageError("vmfs export takes a repository and one POINT[:DISK]")
    to_stdout = args.output == "-"
    if to_stdout and args.json:
        raise UsageError("standard output takes the disk or the JSON, not both; leave out --json")
    if to_stdout and sys.stdout.isatty():
        raise UsageError("standard output is a terminal; give -o FILE, or a pipe")
    with common.open_repository(args) as repository:
        path = None if to_stdout else outside(Path(args.output), repository)
        with common.open_catalog(repository, args) as catalog:
            point, disk = find_disk(catalog, repository, specs[0])
        reader = repository.open_disk(disk)
        with ProgressBars(quiet=args.quiet or args.json) as bars:

            def progress(done: int) -> None:
                bars.update(disk.alias, done, min(disk.allocated, disk.size))

            if path is None:
                written = export_stream(reader, sys.stdout.fileno(), args.format, progress=progress)
            else:
                written = export_file(reader, path, args.format, replace=args.force, progress=progress)
    if args.json:
        common.print_json(_facts(point, disk, args, written))
    elif not args.quiet and not to_stdout:
        print(
            f"Exported {disk.alias} of {point.manifest.vm.name} to {args.output}: "
            f"{common.format_size(disk.size)}, {common.format_size(written)} of it data"
        )
    return 0


def find_disk(catalog: Catalog, repository: Repository, spec: str) -> tuple[Point, Disk]:
    """What POINT[:DISK] means. Times, VM names and aliases may all hold colons: the longest POINT there is
    wins. Raises UsageError naming what there is."""
    unknown: list[UsageError] = []
    wrong_disk: list[UsageError] = []
    cuts = [len(spec), *(at for at in range(len(spec) - 1, 0, -1) if spec[at] == ":")]
    for cut in cuts:
        try:
            point_id = catalog.resolve(spec[:cut])
        except UsageError as error:
            unknown.append(error)
            continue
        point = repository.load_point(point_id)
        try:
            return point, _disk(point, spec[cut + 1 :] if cut < len(spec) else None)
        except UsageError as error:
            wrong_disk.append(error)
    if wrong_disk:
        raise wrong_disk[0]
    # The last colon, where there is one, most likely begins the disk; unless it is one of a time.
    begins_disk = len(cuts) > 1 and not spec[cuts[1] + 1 :][:2].isdigit()
    raise unknown[1 if begins_disk else 0]


def _disk(point: Point, alias: str | None) -> Disk:
    disks = point.manifest.disks
    known = ", ".join(repr(disk.alias) for disk in disks)
    if alias is None:
        if len(disks) == 1:
            return disks[0]
        if not disks:
            raise UsageError(f"restore point {point.id} has no disks")
        raise UsageError(
            f"restore point {point.id} has {len(disks)} disks; write POINT:DISK, DISK is {known}"
        )
    for disk in disks:
        if disk.alias == alias:
            return disk
    raise UsageError(f"restore point {point.id} has no disk {alias!r}; it has {known or 'none'}")


def outside(path: Path, repository: Repository) -> Path:
    """The path, unless it is the repository's or in it, where a file of ours would pass for an object."""
    if isinstance(repository.store, LocalStore):
        root = os.path.realpath(repository.store.root)
        if f"{os.path.realpath(path)}{os.sep}".startswith(f"{root}{os.sep}"):
            raise UsageError(f"{path} is inside the repository; choose another place")
    return path


def _facts(point: Point, disk: Disk, args: argparse.Namespace, written: int) -> dict[str, Any]:
    """`written` are the bytes of data that were read and written."""
    return {
        "point": point.id,
        "vm": point.manifest.vm.name,
        "disk": disk.alias,
        "output": args.output,
        "format": args.format,
        "size": disk.size,
        "written": written,
    }
