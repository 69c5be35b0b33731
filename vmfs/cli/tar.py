"""vmfs tar: files of a restore point as a tar stream."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vmfs.cli import common
from vmfs.cli.export import outside
from vmfs.cli.guest_arguments import Problems, add_guest_command, load_points, open_guest, take_words
from vmfs.cli.progress import ProgressBars
from vmfs.cli.tables import count
from vmfs.errors import UsageError
from vmfs.recovery.reading import total_size
from vmfs.recovery.tar import TarWriter
from vmfs.repo.newfile import NewFile
from vmfs.volumes.files.client import GuestError
from vmfs.volumes.guest import Guest
from vmfs.volumes.tree import File, Tree

log = logging.getLogger(__name__)


def register(subparsers: Any) -> None:
    parser = add_guest_command(
        subparsers,
        "tar",
        run,
        arguments="POINT PATH",
        help="write files of a restore point as a tar archive",
        description="Write files and directories of a restore point as a tar archive (pax format) to "
        "standard output or a file, with owners, modes, times, links, extended attributes and holes.",
    )
    parser.add_argument("-o", "--output", default="-", metavar="FILE", help="where to write it; default -")
    parser.add_argument("--force", action="store_true", help="replace FILE if it is there")


def run(args: argparse.Namespace) -> int:
    spec, *places = take_words(args, "tar", 2, None, "a restore point and paths in it")
    if args.output == "-":
        if args.json:
            raise UsageError("standard output takes the archive or the JSON, not both; leave out --json")
        if sys.stdout.isatty():
            raise UsageError("standard output is a terminal; give -o FILE, or a pipe")
        sys.stdout.flush()
    problems = Problems()
    with common.open_repository(args) as repository:
        (point,) = load_points(args, repository, [spec])
        with open_guest(repository, point) as guest:
            if args.output == "-":
                writer = _archive(guest, places, _to_stdout, args, problems)
            else:
                with NewFile(outside(Path(args.output), repository), replace=args.force) as file:
                    writer = _archive(guest, places, _to_file(file), args, problems)
                    if writer.files:
                        file.commit()
    if args.json:
        facts = {"output": args.output, "files": writer.files, "bytes": writer.bytes}
        common.print_json({**facts, "problems": problems.count, "first_problems": problems.texts})
    elif args.output != "-" and not writer.files:
        log.error("%s is not written: there is nothing to put into it", args.output)
    elif args.output != "-" and not args.quiet:
        print(
            f"Wrote {count(writer.files, 'file')} to {args.output}: "
            f"{common.format_size(writer.bytes)} of data"
        )
    return problems.status


def _archive(
    guest: Guest,
    places: list[str],
    write: Callable[[bytes], None],
    args: argparse.Namespace,
    problems: Problems,
) -> TarWriter:
    chosen = _choose(guest, places, problems)
    with ProgressBars(quiet=args.quiet or args.json) as bars:
        total = total_size(chosen) if bars.shown else 0
        writer = TarWriter(
            write, problems.add_error, lambda done: bars.update("archiving", done, max(total, done))
        )
        for tree, file, name in chosen:
            writer.add(tree, file, name)
        writer.finish()
    return writer


def _choose(guest: Guest, places: list[str], problems: Problems) -> list[tuple[Tree, File, bytes]]:
    """What to archive, and under which name: that which was asked for, like tar's own; but what is of several
    volumes, each by itself, goes below its volume's name, or it would come to lie over the other."""
    chosen = []
    for place in places:
        try:
            tree, path = guest.locate(place)
            file = tree.find(path, follow=path.endswith(b"/"))
            name = os.path.normpath(b"/" + path).lstrip(b"/")
            chosen.append((tree, file, name))
        except GuestError as error:
            problems.add_error(os.fsencode(place), error)
    tops = [_top(guest, tree) for tree, _, _ in chosen]
    if len(set(tops)) <= 1:
        return chosen
    return [
        (tree, file, b"/".join(filter(None, (top, name))))
        for top, (tree, file, name) in zip(tops, chosen, strict=True)
    ]


def _top(guest: Guest, tree: Tree) -> bytes:
    """Nothing for the tree of all that the guest has mounted; a drive's letter; or a volume's name."""
    target = guest.target_of(tree)
    return os.fsencode(guest.volume_of(tree.root).name) if target is None else target.strip(b"/:")


def _to_stdout(data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(sys.stdout.fileno(), rest) :]


def _to_file(file: NewFile) -> Callable[[bytes], None]:
    offset = 0

    def write(data: bytes) -> None:
        nonlocal offset
        file.write_at(offset, data)
        offset += len(data)

    return write
