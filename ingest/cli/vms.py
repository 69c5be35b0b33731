"""vmfs-ingest vms: the VMs of an engine."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from ingest.cli.engines import add_engine_arguments, open_engine
from ingest.engine.session import Engine
from ingest.engine.vms import EngineDisk, EngineVm, find_vm, list_vms, vm_disks
from vmfs.cli import common
from vmfs.cli.tables import format_table


def register(subparsers: Any) -> None:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "vms",
        help="list the VMs of an engine",
        description="List the VMs of an engine that the user may see, or with --vm the disks of one: their "
        "alias is what --disk of vmfs-ingest backup takes, and those left out of backups are told with a "
        "reason.",
    )
    add_engine_arguments(parser)
    parser.add_argument("--vm", metavar="NAME", help="list the disks of this VM; its name or id")
    common.add_verbosity(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    with open_engine(args) as engine:
        if args.vm is not None:
            return _print_disks(args, engine)
        vms = list_vms(engine)
    if args.json:
        common.print_json({"engine": engine.id, "vms": [_facts(vm) for vm in vms]})
    elif vms:
        print(format_table(("NAME", "ID", "STATUS", "CLUSTER"), [_cells(vm) for vm in vms]))
    elif not args.quiet:
        print("There are no VMs that the user may see.")
    return 0


def _print_disks(args: argparse.Namespace, engine: Engine) -> int:
    vm = find_vm(engine, args.vm)
    disks = vm_disks(engine, vm)
    if args.json:
        common.print_json({"engine": engine.id, **_facts(vm), "disks": [asdict(disk) for disk in disks]})
    elif disks:
        header = ("ALIAS", "ID", ">SIZE", "FORMAT", "INCREMENTAL", "BACKED UP")
        print(format_table(header, [_disk_cells(disk) for disk in disks]))
    elif not args.quiet:
        print("The VM has no disks.")
    return 0


def _facts(vm: EngineVm) -> dict[str, Any]:
    facts = asdict(vm)
    facts["level"] = ".".join(map(str, vm.level)) if vm.level else None
    return facts


def _cells(vm: EngineVm) -> tuple[str, ...]:
    level = f" ({vm.level[0]}.{vm.level[1]})" if vm.level else ""
    return vm.name, vm.id, vm.status, f"{vm.cluster or vm.cluster_id or '-'}{level}"


def _disk_cells(disk: EngineDisk) -> tuple[str, ...]:
    return (
        disk.alias,
        disk.id,
        common.format_size(disk.size),
        disk.format,
        "yes" if disk.format == "cow" else "no (raw)",
        f"no: {disk.left_out}" if disk.left_out else "yes",
    )
