"""vmfs-ingest image: back up disk images, block devices and NBD exports."""

from __future__ import annotations

import argparse
import gc
import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ingest.chain import Parent, find_parent, plan_disks
from ingest.cli.facts import disk_facts, disk_summary
from ingest.pipeline import ingest
from ingest.sources.base import BitmapError
from ingest.sources.qemu import FORMATS
from ingest.sources.spec import parse_spec
from vmfs.catalog.catalog import Catalog
from vmfs.cli import common
from vmfs.cli.index_option import add_index_option, index_new_point
from vmfs.cli.progress import ProgressBars
from vmfs.errors import UsageError, VmfsError
from vmfs.format.blob import MAX_PLAIN
from vmfs.format.manifest import Vm, check_name
from vmfs.repo.repository import Point, Repository

log = logging.getLogger(__name__)


def register(subparsers: Any) -> None:
    parser = common.add_repository_command(
        subparsers,
        "image",
        run,
        help="back up disk images, block devices and NBD exports",
        description="Back up disks as a new restore point of a VM. All of a disk is read, and only what the "
        "repository does not have is stored; with --bitmap, only what changed is read.",
    )
    parser.add_argument(
        "disks",
        nargs="+",
        metavar="DISK",
        help="[ALIAS=]PATH of a raw file, block device, qcow2, vmdk, vdi or vhdx image, or [ALIAS=]NBD-URI",
    )
    parser.add_argument("--vm", required=True, metavar="NAME", help="whose disks they are")
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--bitmap",
        metavar="NAME",
        help="read only what this dirty bitmap says has changed since the parent point",
    )
    how.add_argument(
        "--full", action="store_true", help="read the disks in full; the default without --bitmap"
    )
    parser.add_argument(
        "--heal",
        action="store_true",
        help="read a disk in full where its bitmap cannot be used, instead of failing",
    )
    parser.add_argument(
        "--since",
        metavar="ID",
        help="the checkpoint that the bitmap tells the changes since; the bitmap's own name if left out",
    )
    parser.add_argument(
        "--checkpoint",
        metavar="ID",
        help="record that this checkpoint was taken with this backup; an incremental by a bitmap of that "
        "name will start from here",
    )
    parser.add_argument(
        "--attach",
        action="append",
        default=[],
        metavar="FILE",
        help="keep FILE (vm.ovf, domain.xml) with the point",
    )
    parser.add_argument("--format", choices=FORMATS, help="format of the images; found out if not given")
    parser.add_argument(
        "--consistency",
        choices=("crash", "filesystem", "offline"),
        default="crash",
        help="how the guest's data was fixed when the disks were; default crash",
    )
    add_index_option(parser)


def run(args: argparse.Namespace) -> int:
    disks = common.take_repository(args, args.disks)
    if args.repository is None and len(disks) == 1 and common.names_repository(disks[0]):
        raise UsageError("no disk; give the path or NBD URI of at least one after REPO")
    check_name("VM name", args.vm)
    if args.bitmap is not None:
        check_name("bitmap", args.bitmap)
    if args.checkpoint is not None:
        check_name("checkpoint", args.checkpoint)
    specs = [parse_spec(text, format=args.format) for text in disks]
    artifacts = _read_artifacts(args.attach)
    with ExitStack() as opened:
        repository = opened.enter_context(common.open_repository(args))
        catalog = opened.enter_context(common.open_catalog(repository, args))
        parent, broken = None, None
        if args.bitmap:
            try:
                parent = _find_parent(args, repository, catalog)
            except BitmapError as error:
                if not args.heal:
                    raise
                broken = str(error)
                log.warning("%s; reading all disks in full", broken)
        planned = plan_disks(
            specs,
            parent,
            bitmap=None if broken else args.bitmap,
            full_reason=broken,
            checkpoint=args.checkpoint,
            heal=args.heal,
            opened=opened,
        )
        if parent:
            _check_parent(parent, args, repository, catalog)
        bars = opened.enter_context(ProgressBars(quiet=args.quiet or args.json))
        # What was imported stays: the collector need not look at it again, with all threads waiting.
        gc.freeze()
        point = ingest(
            repository,
            Vm(name=args.vm, id=args.vm),
            planned,
            parent=parent and parent.point,
            artifacts=artifacts,
            consistency=args.consistency,
            progress=lambda now: bars.update(now.alias, now.done, now.total),
        )
        catalog.sync(repository)
        bars.close()
        if not args.json and not args.quiet:
            _print(point)
        index_new_point(args, repository, catalog, point.id)
    if args.json:
        common.print_json(_facts(point))
    return 0


def _find_parent(args: argparse.Namespace, repository: Repository, catalog: Catalog) -> Parent | None:
    known = [point.id for point in catalog.points(args.vm) if point.engine is None]
    return find_parent(
        repository,
        reversed(known),
        args.since or args.bitmap,
        damaged=[point.id for point in catalog.damaged],
    )


def _check_parent(parent: Parent, args: argparse.Namespace, repository: Repository, catalog: Catalog) -> None:
    """Now that the bitmap is open: where it has been begun anew since the parent was looked for, it was with
    another point."""
    catalog.sync(repository)
    now = _find_parent(args, repository, catalog)
    if now and now.point.id != parent.point.id:
        raise VmfsError(
            f"another backup of VM {args.vm} has made restore point {now.point.id} meanwhile, and bitmap "
            f"{args.bitmap!a} may have been begun anew with it; run this one again"
        )


def _read_artifacts(paths: list[str]) -> dict[str, bytes]:
    artifacts = {}
    for path in map(Path, paths):
        name = check_name("artifact", path.name)
        if name in artifacts:
            raise UsageError(f"two attached files are called {name}; rename one")
        try:
            with path.open("rb") as file:
                artifacts[name] = file.read(MAX_PLAIN + 1)
        except OSError as error:
            raise VmfsError(f"attached file {path}: {error.strerror}") from None
        if len(artifacts[name]) > MAX_PLAIN:
            raise VmfsError(
                f"attached file {path} is too large; at most {common.format_size(MAX_PLAIN)} are kept"
            )
    return artifacts


def _facts(point: Point) -> dict[str, Any]:
    return {
        "id": point.id,
        "vm": point.manifest.vm.name,
        "time": point.manifest.time.isoformat(),
        "parent": point.manifest.parent,
        "disks": [disk_facts(disk) for disk in point.manifest.disks],
        "artifacts": [{"name": item.name, "size": item.size} for item in point.manifest.artifacts],
    }


def _print(point: Point) -> None:
    print(f"Restore point {point.id} of {point.manifest.vm.name}")
    for disk in point.manifest.disks:
        print(f"  {disk.alias}: {disk_summary(disk)}")
