"""vmfs cp: files and trees out of a restore point."""

from __future__ import annotations

import argparse
import logging
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vmfs.cli import common
from vmfs.cli.export import outside
from vmfs.cli.guest_arguments import Problems, add_guest_command, load_points, open_guest, take_words
from vmfs.cli.progress import ProgressBars
from vmfs.cli.tables import count
from vmfs.errors import UsageError, VmfsError
from vmfs.recovery.copying import Copied, Copier, How
from vmfs.recovery.destination import open_directory
from vmfs.recovery.reading import total_size
from vmfs.volumes.guest import Guest
from vmfs.volumes.tree import File, Tree

log = logging.getLogger(__name__)


def register(subparsers: Any) -> None:
    parser = add_guest_command(
        subparsers,
        "cp",
        run,
        arguments="POINT PATH DEST",
        help="copy files out of a restore point",
        description="Copy files and directories of a restore point into the directory DEST, or one under the "
        "name DEST. Nothing is ever written outside DEST, whatever the guest's names and links are.",
    )
    parser.add_argument(
        "-a",
        "--archive",
        action="store_true",
        help="copy directories, and keep modes, times, links and extended attributes; as root, owners and "
        "devices, too",
    )
    parser.add_argument("-r", "--recursive", action="store_true", help="copy directories")
    parser.add_argument("--force", action="store_true", help="replace files that are there")


def run(args: argparse.Namespace) -> int:
    spec, *places, target = take_words(
        args, "cp", 3, None, "a restore point, paths in it and a place to copy to"
    )
    directory, new_name = _target(target, several=len(places) > 1)
    problems = Problems()
    with common.open_repository(args) as repository:
        outside(Path(directory), repository)
        (point,) = load_points(args, repository, [spec])
        top = open_directory(directory)
        try:
            with open_guest(repository, point) as guest:
                chosen = _choose(guest, places, new_name, args, problems)
                if new_name and target.endswith("/") and not all(file.is_directory for _, file, _ in chosen):
                    raise UsageError(f"{target} is no directory; make it first")
                done = _copy(chosen, top, args, problems)
        finally:
            os.close(top)
    _report(done, problems, target, args)
    return problems.status


def _target(target: str, *, several: bool) -> tuple[str, bytes | None]:
    """The directory to write to, and the name to give to the one thing that is copied, if it gets another."""
    if os.path.isdir(target):
        return target, None
    parent, name = os.path.split(target.rstrip("/"))
    if several:
        raise UsageError(f"{target} is no directory; make it first")
    if not os.path.isdir(parent or "."):
        raise UsageError(f"{parent} is no directory; make it first")
    return parent or ".", os.fsencode(name)


def _choose(
    guest: Guest, places: list[str], new_name: bytes | None, args: argparse.Namespace, problems: Problems
) -> list[tuple[Tree, File, bytes]]:
    """What to copy, and under which name."""
    chosen = []
    for place in places:
        try:
            tree, path = guest.locate(place)
            file = tree.find(path, follow=not args.archive or path.endswith(b"/"))
            if file.is_directory and not (args.archive or args.recursive):
                raise VmfsError("it is a directory; copy it with --archive or --recursive")
            name = new_name or path.rstrip(b"/").rpartition(b"/")[2]
            if name in (b"", b".", b".."):
                # All of a volume: it has no name of its own.
                name = os.fsencode(guest.volume_of(file).name) if file is tree.root else b"root"
            chosen.append((tree, file, name))
        except UsageError:
            raise
        except VmfsError as error:
            problems.add_error(os.fsencode(place), error)
    return chosen


def _copy(
    chosen: list[tuple[Tree, File, bytes]], top: int, args: argparse.Namespace, problems: Problems
) -> Copied:
    with ProgressBars(quiet=args.quiet or args.json) as bars:
        total = total_size(chosen) if bars.shown else 0
        copier = Copier(
            top,
            How(archive=args.archive, force=args.force),
            problems.add_error,
            lambda done: bars.update("copying", done, max(total, done)),
        )
        for tree, file, name in chosen:
            copier.copy(tree, file, name)
    return copier.done


def _report(done: Copied, problems: Problems, target: str, args: argparse.Namespace) -> None:
    for kind, number in done.unkept.items():
        log.warning("%s of %s.* could not be kept there", count(number, "extended attribute"), kind)
    if args.json:
        common.print_json({**asdict(done), "problems": problems.count, "first_problems": problems.texts})
    elif problems.count:
        log.error(
            "%s could not be copied; %s copied",
            count(problems.count, "file"),
            count(done.files + done.links, "file"),
        )
    elif not args.quiet:
        print(
            f"Copied {count(done.files + done.links, 'file')} to {target}: "
            f"{common.format_size(done.bytes)} of data"
        )
