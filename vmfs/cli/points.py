"""vmfs points: list the restore points."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from vmfs.catalog.resolve import show_time
from vmfs.catalog.rows import PointRow
from vmfs.cli import common
from vmfs.cli.tables import format_table


def register(subparsers: Any) -> None:
    parser = common.add_repository_command(
        subparsers,
        "points",
        run,
        help="list the restore points",
        description="List the restore points, oldest first. SIZE is that of the disks, READ what was read of "
        "them, STORED what the point added to the repository.",
    )
    parser.add_argument("--vm", metavar="NAME", help="only those of this VM; its name, id or a former name")


def run(args: argparse.Namespace) -> int:
    with common.open_repository(args) as repository, common.open_catalog(repository, args) as catalog:
        if args.vm is not None:
            catalog.select_vms(args.vm)
        points = catalog.points(args.vm)
        damaged = catalog.damaged
    if args.json:
        common.print_json(
            {"points": [_facts(point) for point in points], "damaged": [asdict(point) for point in damaged]}
        )
    elif points:
        header = ("TIME", "VM", "ID", "MODE", "CONSISTENCY", ">DISKS", ">SIZE", ">READ", ">STORED")
        print(format_table(header, [_cells(point) for point in points]))
    elif not args.quiet:
        print("There are no restore points yet; make one with vmfs-ingest.")
    return 0


def _facts(point: PointRow) -> dict[str, Any]:
    return {**asdict(point), "time": point.time.isoformat(), "signer": point.signer.hex()}


def _cells(point: PointRow) -> tuple[str, ...]:
    modes = {disk.mode for disk in point.disks}
    return (
        show_time(point.time),
        point.vm,
        point.id,
        modes.pop() if len(modes) == 1 else "mixed" if modes else "-",
        point.consistency,
        str(len(point.disks)),
        common.format_size(sum(disk.size for disk in point.disks)),
        common.format_size(sum(disk.bytes_read for disk in point.disks)),
        common.format_size(sum(disk.bytes_stored for disk in point.disks)),
    )
