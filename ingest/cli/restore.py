"""vmfs-ingest restore: a restore point back into an engine."""

from __future__ import annotations

import argparse
import gc
from dataclasses import asdict
from typing import Any

from ingest.cli.engines import add_engine_arguments, connection_count, open_engine
from ingest.engine.networks import parse_mapping
from ingest.engine.restore import Restored, restore
from ingest.engine.restore_plan import RestoreOptions
from ingest.engine.upload import CONNECTIONS
from vmfs.cli import common
from vmfs.cli.progress import ProgressBars
from vmfs.errors import UsageError
from vmfs.repo.repository import Point


def register(subparsers: Any) -> None:
    parser = common.add_repository_command(
        subparsers,
        "restore",
        run,
        help="put a restore point back into an engine",
        description="Make a VM, or only disks, of a restore point: the disks are made and uploaded, and a "
        "VM is made of the configuration that was kept with them. A restore that fails removes what it has "
        "made.",
    )
    parser.add_argument(
        "point", nargs="*", metavar="POINT", help="a restore point: an id, a prefix, VM@latest, VM@TIME"
    )
    add_engine_arguments(parser)
    parser.add_argument(
        "--as",
        dest="name",
        metavar="NAME",
        help="name of the new VM, with a number behind it if it is taken; default as it was",
    )
    parser.add_argument("--cluster", metavar="CLUSTER", help="cluster of the new VM; default as it was")
    parser.add_argument(
        "--storage-domain", metavar="SD", help="where the disks are made; default as it was if it is there"
    )
    parser.add_argument("--format", choices=("cow", "raw"), help="format of the disks; default as it was")
    parser.add_argument(
        "--allocation", choices=("sparse", "preallocated"), help="allocation of the disks; default as it was"
    )
    parser.add_argument(
        "--disk",
        action="append",
        default=[],
        metavar="ALIAS",
        help="restore only this disk, by its alias or id; may be repeated",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--into-disk", metavar="ID", help="replace the content of this disk of the engine; makes no VM"
    )
    where.add_argument(
        "--attach-to", metavar="VM", help="attach the restored disks to this VM instead of making one"
    )
    parser.add_argument(
        "--keep-mac",
        action="store_true",
        help="keep the MAC addresses; a NIC whose address is in use stays unplugged",
    )
    parser.add_argument(
        "--keep-ids", action="store_true", help="keep the ids of VM, NICs and disks, if they are not in use"
    )
    parser.add_argument(
        "--vnic-profile",
        action="append",
        default=[],
        metavar="[OLD=]PROFILE",
        help="vNIC profile of the NICs, or of those that had OLD; NETWORK/PROFILE where the name "
        "is not unique",
    )
    parser.add_argument("--start", action="store_true", help="power the new VM on afterwards")
    parser.add_argument(
        "--keep-failed", action="store_true", help="remove nothing if the restore fails, to look into it"
    )
    parser.add_argument(
        "--connections",
        type=connection_count,
        default=CONNECTIONS,
        metavar="N",
        help=f"connections to imageio for a disk; default {CONNECTIONS}",
    )


def run(args: argparse.Namespace) -> int:
    specs = common.take_repository(args, args.point)
    if len(specs) != 1:
        raise UsageError("vmfs-ingest restore takes a repository and one POINT")
    options = _options(args)
    with common.open_repository(args) as repository:
        with common.open_catalog(repository, args) as catalog:
            point = repository.load_point(catalog.resolve(specs[0]))
        with open_engine(args) as engine, ProgressBars(quiet=args.quiet or args.json) as bars:
            # What was imported stays: the collector need not look at it again, with all threads waiting.
            gc.freeze()
            restored = restore(engine, repository, point, options, progress=bars.update)
    if args.json:
        common.print_json(_facts(point, restored))
    elif not args.quiet:
        _print(point, restored)
    return 0


def _options(args: argparse.Namespace) -> RestoreOptions:
    alone = {
        "--as": args.name,
        "--cluster": args.cluster,
        "--keep-mac": args.keep_mac,
        "--vnic-profile": args.vnic_profile,
        "--start": args.start,
    }
    new = {"--storage-domain": args.storage_domain, "--format": args.format, "--allocation": args.allocation}
    if args.attach_to is not None or args.into_disk is not None:
        where = "--attach-to" if args.attach_to is not None else "--into-disk"
        if args.into_disk is not None:
            alone |= new | {"--keep-ids": args.keep_ids}
        for option, value in alone.items():
            if value:
                raise UsageError(f"{option} makes no sense with {where}; leave one of them out")
    return RestoreOptions(
        name=args.name,
        cluster=args.cluster,
        storage_domain=args.storage_domain,
        form=args.format,
        allocation=args.allocation,
        disks=tuple(args.disk),
        into_disk=args.into_disk,
        attach_to=args.attach_to,
        keep_mac=args.keep_mac,
        keep_ids=args.keep_ids,
        profiles=parse_mapping(args.vnic_profile),
        start=args.start,
        keep_failed=args.keep_failed,
        connections=args.connections,
    )


def _facts(point: Point, restored: Restored) -> dict[str, Any]:
    return {
        "point": point.id,
        "vm": {"id": restored.vm_id, "name": restored.vm_name, "started": restored.started}
        if restored.vm_id
        else None,
        "disks": [asdict(disk) for disk in restored.disks],
        "warnings": list(restored.warnings),
    }


def _print(point: Point, restored: Restored) -> None:
    name = point.manifest.vm.name
    if restored.vm_name is None:
        print(f"Restored the content of a disk of {name}, point {point.id}")
    elif restored.wanted_name is None:
        print(f"Restored disks of {name}, point {point.id}, and attached them to VM {restored.vm_name}")
    else:
        print(f"Restored VM {restored.vm_name} ({restored.vm_id}) from {name}, point {point.id}")
        if restored.vm_name != restored.wanted_name:
            print(f"  the name {restored.wanted_name} was taken")
    for disk in restored.disks:
        size = common.format_size
        where = f" on {disk.storage_domain}" if disk.storage_domain else ""
        sizes = f"{size(disk.size)}, {size(disk.sent)} sent"
        print(f"  {disk.alias}: disk {disk.id}, {disk.format}{where}, {sizes}")
    if restored.started:
        print("  it is started")
