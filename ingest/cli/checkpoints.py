"""vmfs-ingest checkpoints: the moments that the next backup of a VM can start from."""

from __future__ import annotations

import argparse
import logging
from dataclasses import asdict
from functools import partial
from typing import Any

from ingest.cli.engines import add_engine_arguments, open_engine
from ingest.engine.checkpoints import (
    Checkpoint,
    checkpoint_disks,
    list_checkpoints,
    of_live_runs,
    prune_checkpoints,
    still_needed,
    tracked_disks,
)
from ingest.engine.errors import NotFoundError
from ingest.engine.marks import short_id
from ingest.engine.runs import is_alive
from ingest.engine.session import Engine
from ingest.engine.vms import EngineVm, find_vm
from vmfs.catalog.resolve import show_time
from vmfs.cli import common
from vmfs.cli.tables import count, format_table
from vmfs.errors import IntegrityError
from vmfs.repo.repository import Repository

log = logging.getLogger(__name__)


def register(subparsers: Any) -> None:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "checkpoints",
        help="list and remove checkpoints of a VM",
        description="A checkpoint is a moment since which the engine knows what a VM's disks have changed. A "
        "backup takes one, and the next backup starts from it; then the older one is of no more use, and "
        "vmfs-ingest backup removes it.",
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    listing: argparse.ArgumentParser = actions.add_parser(
        "list",
        help="list the checkpoints of a VM",
        description="List the checkpoints of a VM, oldest first: those of other products as well.",
    )
    _add_vm(listing)
    common.add_verbosity(listing)
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(run=_list)

    prune = common.add_repository_command(
        actions,
        "prune",
        _prune,
        help="remove the checkpoints that are of no more use",
        description="Remove the checkpoints that backups into this repository have taken, but for those that "
        "the next one will start from, and those of backups that go on. Checkpoints of other repositories "
        "and products are left alone.",
    )
    _add_vm(prune)
    prune.add_argument(
        "--all", action="store_true", help="keep none: the next backup reads all disks of the VM in full"
    )


def _add_vm(parser: argparse.ArgumentParser) -> None:
    add_engine_arguments(parser)
    parser.add_argument("--vm", required=True, metavar="NAME", help="the VM; its name or id in the engine")


def _list(args: argparse.Namespace) -> int:
    with open_engine(args) as engine:
        vm = find_vm(engine, args.vm)
        checkpoints = list_checkpoints(engine, vm)
        disks = {checkpoint.id: _disks(engine, vm, checkpoint.id) for checkpoint in checkpoints}
    if args.json:
        facts = [_facts(checkpoint, disks[checkpoint.id]) for checkpoint in checkpoints]
        common.print_json({"vm": vm.name, "id": vm.id, "checkpoints": facts})
    elif checkpoints:
        header = ("ID", "CREATED", "STATE", ">DISKS", "REPOSITORY")
        print(format_table(header, [_cells(item, disks[item.id]) for item in checkpoints]))
    elif not args.quiet:
        print("The VM has no checkpoints: its next backup reads all disks in full.")
    return 0


def _prune(args: argparse.Namespace) -> int:
    with common.open_repository(args) as repository, open_engine(args) as engine:
        vm = find_vm(engine, args.vm)
        present = list_checkpoints(engine, vm)
        short = short_id(repository.id)
        keep = of_live_runs(present, repository=short, alive=partial(is_alive, repository))
        recorded = _recorded(repository, engine, vm)
        if not args.all:
            usable = {item.id for item in present if item.valid}
            keep |= still_needed(recorded, existing=usable, disks=tracked_disks(engine, vm))
        own = {checkpoint for point in recorded for checkpoint in point.values()}
        removed = prune_checkpoints(engine, vm, present, keep=keep, own=own, repository=short)
    if args.json:
        common.print_json({"vm": vm.name, "id": vm.id, "kept": sorted(keep), "removed": removed})
    elif not args.quiet:
        print(f"Removed {count(len(removed), 'checkpoint')} of {vm.name}.")
    return 0


def _recorded(repository: Repository, engine: Engine, vm: EngineVm) -> list[dict[str, str]]:
    """The checkpoints of each restore point of the VM, by disk id, newest first."""
    recorded = []
    for point_id in sorted(repository.point_ids(), reverse=True):
        try:
            manifest = repository.load_point(point_id).manifest
        except IntegrityError as error:
            log.warning("restore point %s is damaged: %s", point_id, error)
            continue
        if (manifest.vm.engine, manifest.vm.id) == (engine.id, vm.id):
            recorded.append({disk.id: disk.checkpoint for disk in manifest.disks if disk.checkpoint})
    return recorded


def _disks(engine: Engine, vm: EngineVm, checkpoint_id: str) -> list[str]:
    try:
        return checkpoint_disks(engine, vm, checkpoint_id)
    except NotFoundError:
        return []


def _facts(checkpoint: Checkpoint, disks: list[str]) -> dict[str, Any]:
    created = checkpoint.created.isoformat() if checkpoint.created else None
    return {
        **asdict(checkpoint),
        "created": created,
        "repository": checkpoint.repository,
        "disks": disks,
    }


def _cells(checkpoint: Checkpoint, disks: list[str]) -> tuple[str, ...]:
    return (
        checkpoint.id,
        show_time(checkpoint.created) if checkpoint.created else "-",
        "valid" if checkpoint.valid else "invalid",
        str(len(disks)),
        checkpoint.repository or "-",
    )
