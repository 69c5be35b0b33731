"""vmfs show: all about one restore point."""

from __future__ import annotations

import argparse
import json
from typing import Any

from vmfs.catalog.resolve import show_time
from vmfs.cli import common
from vmfs.cli.tables import format_table, printable
from vmfs.errors import UsageError
from vmfs.format.manifest import Disk, Manifest
from vmfs.repo.keyring import list_slots
from vmfs.repo.repository import Point


def register(subparsers: Any) -> None:
    parser = common.add_repository_command(
        subparsers,
        "show",
        run,
        help="all about one restore point",
        description="Print what is known of a restore point: its VM, disks, and the files kept with it.",
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
    key = labels.get(point.signer)
    if args.json:
        common.print_json(_facts(point, key))
    else:
        _print(point, key)
    return 0


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
