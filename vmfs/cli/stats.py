"""vmfs stats: how much is in the repository, and how much it takes."""

from __future__ import annotations

import argparse
from collections import defaultdict
from datetime import datetime
from typing import Any

from vmfs.catalog.resolve import show_time
from vmfs.catalog.rows import PointRow, VmRow
from vmfs.cli import common
from vmfs.cli.tables import count, format_table, printable
from vmfs.repo.repository import Repository
from vmfs.repo.statistics import Statistics, measure


def register(subparsers: Any) -> None:
    common.add_repository_command(
        subparsers,
        "stats",
        run,
        help="how much is in the repository",
        description="Print how many restore points of which VMs there are, how much data they show, and how "
        "much the repository takes.",
    )


def run(args: argparse.Namespace) -> int:
    with common.open_repository(args) as repository:
        with common.open_catalog(repository, args) as catalog:
            vms, points, damaged = catalog.vms(), catalog.points(), len(catalog.damaged)
        facts = _facts(repository, measure(repository), vms, points, damaged)
    if args.json:
        common.print_json(facts)
    else:
        _print(facts)
    return 0


def _facts(
    repository: Repository, measured: Statistics, vms: list[VmRow], points: list[PointRow], damaged: int
) -> dict[str, Any]:
    """`size` is what the restore points show, `data` what of it is not zeros; `stored` is the whole
    repository, `ratio` the data divided by it."""
    data = sum(disk.allocated for point in points for disk in point.disks)
    of_vm: dict[tuple[str | None, str], list[PointRow]] = defaultdict(list)
    for point in points:
        of_vm[point.engine, point.vm_id].append(point)
    return {
        "repository": repository.store.url,
        "id": repository.id.hex(),
        "chunk_size": repository.chunk_size,
        "points": len(points),
        "damaged_points": damaged,
        "size": sum(disk.size for point in points for disk in point.disks),
        "data": data,
        "stored": measured.bytes,
        "ratio": round(data / measured.bytes, 3),
        "blobs": measured.blobs,
        "objects": {kind: total._asdict() for kind, total in measured.stored.items()},
        "cache": measured.cache,
        "vms": [_vm_facts(vm, of_vm[vm.engine, vm.id]) for vm in vms],
    }


def _vm_facts(vm: VmRow, points: list[PointRow]) -> dict[str, Any]:
    newest = next(point for point in points if point.id == vm.latest_point)
    return {
        "name": vm.name,
        "id": vm.id,
        "engine": vm.engine,
        "points": vm.points,
        "first": vm.first.isoformat(),
        "latest": vm.latest.isoformat(),
        "size": sum(disk.size for disk in newest.disks),
        "data": sum(disk.allocated for disk in newest.disks),
        "bytes_stored": sum(disk.bytes_stored for point in points for disk in point.disks),
    }


def _print(facts: dict[str, Any]) -> None:
    size = common.format_size
    objects = facts["objects"]
    metadata = facts["stored"] - objects["packs"]["bytes"]
    damaged = f", {facts['damaged_points']} more damaged" if facts["damaged_points"] else ""
    lines = {
        "Repository": facts["repository"],
        "Id": facts["id"],
        "Chunks of": size(facts["chunk_size"]),
        "Points": f"{facts['points']} of {count(len(facts['vms']), 'VM')}{damaged}",
        "They show": f"{size(facts['size'])} of disks, {size(facts['data'])} of it data",
        "Stored": f"{size(facts['stored'])}: {count(objects['packs']['objects'], 'pack')} with "
        f"{count(facts['blobs'], 'blob')}, and {size(metadata)} beside them",
        "Ratio": f"{facts['ratio']:.1f} bytes of data for each that is stored",
        "Local cache": size(facts["cache"]),
    }
    for name, value in lines.items():
        print(f"{name + ':':<13}{printable(value)}")
    if facts["vms"]:
        print()
        print(format_table(_HEADER, [_cells(vm) for vm in facts["vms"]]))


_HEADER = ("VM", ">POINTS", "LATEST", ">SIZE", ">DATA", ">STORED IN ALL")


def _cells(vm: dict[str, Any]) -> tuple[str, ...]:
    return (
        vm["name"],
        str(vm["points"]),
        show_time(datetime.fromisoformat(vm["latest"])),
        common.format_size(vm["size"]),
        common.format_size(vm["data"]),
        common.format_size(vm["bytes_stored"]),
    )
