"""vmfs show: all about one restore point."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from vmfs.catalog.resolve import show_time
from vmfs.cli import common
from vmfs.cli.tables import format_table, printable
from vmfs.errors import IntegrityError, StoreError, UsageError, VmfsError
from vmfs.format.manifest import Disk, Manifest
from vmfs.repo.keyring import list_slots
from vmfs.repo.notes import list_notes
from vmfs.repo.repository import Point, Repository
from vmfs.volumes.facts import is_readable, volume_facts
from vmfs.volumes.files.client import Limits, open_filesystem
from vmfs.volumes.layout import FoundVolume, PointDisk, find_volumes

# A file system that was made to take long must not keep the rest from being shown.
_LIMITS = Limits(seconds=10.0)


def register(subparsers: Any) -> None:
    parser = common.add_repository_command(
        subparsers,
        "show",
        run,
        help="all about one restore point",
        description="Print what is known of a restore point: its VM, disks, the files kept with it, and the "
        "volumes that are on the disks: partitions, logical volumes, arrays, with their file systems.",
    )
    parser.add_argument(
        "point", nargs="*", metavar="POINT", help="a restore point: an id, a prefix, VM@latest, VM@TIME"
    )


def run(args: argparse.Namespace) -> int:
    specs = common.take_repository(args, args.point)
    if len(specs) != 1:
        raise UsageError("vmfs show takes a repository and one restore point")
    with common.open_repository(args) as repository:
        with common.open_catalog(repository, args) as catalog:
            point = repository.load_point(catalog.resolve(specs[0]))
        # Only slots that a key holder made: the store could put any label beside any public key.
        slots = list_slots(repository.store, repository.keys)
        labels = {slot.public: slot.label for slot in slots if slot.error is None}
        volumes, warnings = _volumes(repository, point.manifest)
        boot = _boot_test(repository, point)
    key = labels.get(point.signer)
    if args.json:
        common.print_json(
            _facts(point, key) | {"volumes": volumes, "volume_warnings": warnings, "boot_test": boot}
        )
    else:
        _print(point, key)
        _print_volumes(volumes, warnings)
        if boot is not None:
            print()
            print(printable(_boot_line(boot)))
    return 0


def _boot_test(repository: Repository, point: Point) -> dict[str, Any] | None:
    """What the latest `vmfs boot --check` of the point found, without the console; None if there was none."""
    notes = list_notes(repository, point.id, "boot").found
    if not notes:
        return None
    facts = {name: value for name, value in notes[-1].facts.items() if name != "console"}
    return {"note": notes[-1].id, "time": notes[-1].time.isoformat(), **facts}


def _boot_line(boot: dict[str, Any]) -> str:
    when = show_time(datetime.fromisoformat(boot["time"]))
    if not boot.get("passed"):
        return f"Boot test {when}: FAILED, {boot.get('check')!r} did not come"
    return (
        f"Boot test {when}: passed in {int(boot.get('milliseconds', 0)) / 1000:.1f} s, {boot.get('matched')}"
    )


def _volumes(repository: Repository, manifest: Manifest) -> tuple[list[dict[str, Any]], list[str]]:
    """The volumes, with what their file systems warn of, and what is wrong with the disks' tables. A point is
    shown whatever its disks hold, and whether or not they can be read."""
    disks = [PointDisk(disk.alias, repository.open_disk(disk), disk.block_size) for disk in manifest.disks]
    try:
        layout = find_volumes(disks)
    except (IntegrityError, StoreError) as error:
        return [], [f"the disks cannot be read: {error}"]
    return [volume_facts(volume) | {"warnings": _warnings(volume)} for volume in layout.volumes], list(
        layout.warnings
    )


def _warnings(volume: FoundVolume) -> Sequence[str]:
    if volume.content is None or not is_readable(volume):
        return ()
    try:
        with open_filesystem(volume.space, volume.content.type, name=volume.name, limits=_LIMITS) as opened:
            return opened.warnings
    except VmfsError as error:
        return (str(error).removeprefix(f"volume {volume.name}: "),)


def _print_volumes(volumes: Sequence[dict[str, Any]], warnings: Sequence[str]) -> None:
    if volumes:
        print()
        header = ("VOLUME", "KIND", ">SIZE", "TYPE", "LABEL", "UUID", "ON")
        names = {volume["key"]: volume["name"] for volume in volumes}
        print(format_table(header, [_volume_cells(volume, names) for volume in volumes]))
    for volume in volumes:
        for warning in volume["warnings"]:
            print(printable(f"{volume['name']}: {warning}"))
    for warning in warnings:
        print(printable(warning))


def _volume_cells(volume: dict[str, Any], names: Mapping[str, str]) -> tuple[str, ...]:
    return (
        volume["name"],
        volume["kind"],
        common.format_size(volume["size"]),
        volume["type"] or "",
        volume["label"] or "",
        volume["uuid"] or "",
        ", ".join(names.get(key, key) for key in volume["on"]),
    )


def _facts(point: Point, key: str | None) -> dict[str, Any]:
    """The manifest as docs/format.md has it, and what stands beside it. `key` is the label of the key slot
    that signed the point, null if that slot is gone."""
    return {
        **json.loads(point.manifest.to_bytes()),
        "id": point.id,
        "signer": point.signer.hex(),
        "key": key,
    }


def _print(point: Point, key: str | None) -> None:
    manifest = point.manifest
    facts = {
        "Point": point.id,
        "VM": _vm(manifest),
        "Time": show_time(manifest.time),
        "Consistency": manifest.consistency,
        "Parent": manifest.parent or "none",
        "Written by": manifest.producer or "unknown",
        "Signed by": f"key slot '{key}'" if key is not None else f"a key that is gone ({point.signer.hex()})",
    }
    for name, value in facts.items():
        print(f"{name + ':':<13}{printable(value)}")
    print()
    header = ("DISK", ">SIZE", ">DATA", "MODE", ">READ", ">NEW", ">STORED")
    print(format_table(header, [_cells(disk) for disk in manifest.disks]))
    for disk in manifest.disks:
        if details := _details(disk):
            print(printable(f"{disk.alias}: {details}"))
    if manifest.artifacts:
        print()
        rows = [(item.name, common.format_size(item.size)) for item in manifest.artifacts]
        print(format_table(("FILE", ">SIZE"), rows))


def _vm(manifest: Manifest) -> str:
    vm = manifest.vm
    identity = f", id {vm.id}" if vm.id != vm.name else ""
    engine = f", engine {vm.engine}" if vm.engine else ""
    cluster = f", cluster {vm.cluster}" if vm.cluster else ""
    return f"{vm.name}{identity}{engine}{cluster}"


def _cells(disk: Disk) -> tuple[str, ...]:
    size = common.format_size
    return (
        disk.alias,
        size(disk.size),
        size(disk.allocated),
        disk.mode,
        size(disk.bytes_read),
        size(disk.bytes_new),
        size(disk.bytes_stored),
    )


def _details(disk: Disk) -> str:
    known = {
        "read in full because": disk.full_reason,
        "id": disk.id if disk.id != disk.alias else None,
        "bus": disk.bus,
        "boot order": disk.boot_order,
        "checkpoint": disk.checkpoint,
        "blocks of": disk.block_size if disk.block_size != 512 else None,
    }
    return ", ".join(f"{name} {value}" for name, value in known.items() if value is not None)
