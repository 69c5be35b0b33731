"""vmfs index: make the file lists of restore points, for vmfs find and vmfs history."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape

from vmfs.catalog.catalog import Catalog
from vmfs.catalog.resolve import show_time
from vmfs.catalog.rows import PointRow
from vmfs.cli import common
from vmfs.cli.found_files import sync_files
from vmfs.cli.tables import count, printable
from vmfs.errors import IntegrityError, ObjectMissingError, UsageError
from vmfs.format.filelist import to_bytes
from vmfs.repo.filelists import VolumeList
from vmfs.search.index import Indexed, Indexer, Progress

log = logging.getLogger(__name__)

_SHOWN = 100


def register(subparsers: Any) -> None:
    parser = common.add_repository_command(
        subparsers,
        "index",
        run,
        help="make the file lists of restore points, to find files in",
        description="List the files of restore points and keep the lists in the repository, so that vmfs "
        "find and vmfs history need not look into the disks. Volumes that did not change since another "
        "restore point of the VM are not read. The exit status is 1 if some files could not be listed.",
    )
    parser.add_argument(
        "points",
        nargs="*",
        metavar="POINT",
        help="a restore point: an id, a prefix, VM@latest, VM@TIME",
    )
    parser.add_argument("--all", action="store_true", help="all restore points that have no file list yet")
    parser.add_argument("--vm", metavar="NAME", help="those of this VM; its name, id or a former name")
    parser.add_argument(
        "--again",
        action="store_true",
        help="also those that have one, reading again what could not be read in full",
    )


def run(args: argparse.Namespace) -> int:
    specs = common.take_repository(args, args.points)
    if sum((bool(specs), args.all, args.vm is not None)) != 1:
        raise UsageError("say which restore points: name some, or use --vm NAME, or --all")
    with common.open_repository(args) as repository, common.open_catalog(repository, args) as catalog:
        chosen = _choose(catalog, specs, args.vm)
        done: list[Indexed] = []
        status = IntegrityError.exit_status if args.all and catalog.damaged else 0
        with (
            show_progress(quiet=args.quiet or args.json) as progress,
            Indexer(repository, progress=progress) as indexer,
        ):
            for point in chosen:
                try:
                    result = indexer.index(point.id, siblings_of(catalog, point), again=args.again)
                except (IntegrityError, ObjectMissingError) as error:
                    log.error("restore point %s: %s", point.id, error)
                    status = IntegrityError.exit_status
                    continue
                done.append(result)
                if result.fresh:
                    tell_problems(result)
                if not args.json and not args.quiet:
                    print(f"{show_time(point.time)}  {printable(point.vm)}  {point.id}  {summary(result)}")
        sync_files(repository, catalog)
    if args.json:
        common.print_json({"points": [_facts(result) for result in done]})
    trouble = any(volume.error or volume.problem_count for item in done for volume in item.lists.volumes)
    return status or int(trouble or any(item.lost for item in done))


def siblings_of(catalog: Catalog, point: PointRow) -> list[str]:
    """All points of its VM, in the order of time."""
    same = (point.engine, point.vm_id)
    return [other.id for other in catalog.points(point.vm_id) if (other.engine, other.vm_id) == same]


def tell_problems(result: Indexed) -> None:
    """File by file, as far as they are kept."""
    walked = set(result.walked)
    for text in result.lost:
        log.warning("%s@%s: volumes may be missing: %s", result.vm, result.point, text)
    for volume in result.lists.volumes:
        if volume.error:
            log.warning(
                "%s@%s: volume %s is not indexed: %s", result.vm, result.point, volume.name, volume.error
            )
        if volume.name not in walked:
            continue
        for warning in volume.warnings:
            log.warning("volume %s: %s", volume.name, warning)
        for problem in volume.problems[:_SHOWN]:
            path = to_bytes(problem.path).decode(errors="backslashreplace")
            log.warning("%s:%s: %s", volume.name, path, problem.problem)
        if volume.problem_count > _SHOWN:
            log.warning("%s: %d more problems", volume.name, volume.problem_count - _SHOWN)


def _choose(catalog: Catalog, specs: Sequence[str], vm: str | None) -> list[PointRow]:
    if vm is not None:
        catalog.select_vms(vm)
        return catalog.points(vm)
    if not specs:
        return catalog.points()
    ids = {catalog.resolve(spec) for spec in specs}
    return [point for point in catalog.points() if point.id in ids]


def summary(result: Indexed) -> str:
    volumes = result.lists.volumes
    files = sum(volume.entries for volume in volumes)
    if not result.fresh:
        return f"{count(files, 'file')}, indexed before"
    parts = [count(files, "file")]
    if result.walked:
        parts.append(f"{count(len(result.walked), 'volume')} read")
    if result.taken:
        parts.append(f"{len(result.taken)} not changed")
    if problems := sum(volume.problem_count for volume in volumes):
        parts.append(count(problems, "problem"))
    if lost := [volume.name for volume in volumes if volume.error]:
        parts.append(f"not indexed: {', '.join(map(printable, lost))}")
    return ", ".join(parts)


def _facts(result: Indexed) -> dict[str, Any]:
    return {
        "id": result.point,
        "vm": result.vm,
        "note": result.note,
        "new": result.fresh,
        "walked": list(result.walked),
        "unchanged": list(result.taken),
        "volumes": [_volume_facts(volume) for volume in result.lists.volumes],
        "warnings": list(result.lists.warnings),
    }


def _volume_facts(volume: VolumeList) -> dict[str, Any]:
    return {
        "key": volume.key,
        "name": volume.name,
        "type": volume.type,
        "mounts": [list(mount) for mount in volume.mounts],
        "entries": volume.entries,
        "listed": volume.listed,
        "error": volume.error,
        "problem_count": volume.problem_count,
        "problems": [
            {"path": to_bytes(item.path).decode(errors="surrogateescape"), "problem": item.problem}
            for item in volume.problems
        ],
        "warnings": list(volume.warnings),
    }


@contextmanager
def show_progress(*, quiet: bool) -> Iterator[Progress]:
    """What is being read, on a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda *_: None
        return
    with Console(file=sys.stderr).status("reading") as status:
        yield lambda point, volume, entries: status.update(
            escape(f"{point} {printable(volume)}: {entries} files")
        )
