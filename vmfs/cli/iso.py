"""vmfs iso: files of a restore point as a CD image."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path
from typing import Any

from vmfs.cli import common
from vmfs.cli.export import outside
from vmfs.cli.guest_arguments import Problems, add_guest_command, load_points, open_guest, take_words
from vmfs.cli.progress import ProgressBars
from vmfs.cli.tables import count
from vmfs.errors import UsageError
from vmfs.repo.newfile import NewFile
from vmfs.volumes.files.client import GuestError
from vmfs.volumes.guest import Guest

log = logging.getLogger(__name__)


def register(subparsers: Any) -> None:
    parser = add_guest_command(
        subparsers,
        "iso",
        run,
        arguments="POINT PATH",
        help="write files of a restore point as an ISO image",
        description="Write files and directories of a restore point as an ISO 9660 image with Rock Ridge and "
        "Joliet, to be attached to a VM as a CD.",
    )
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="where to write it")
    parser.add_argument("--label", metavar="TEXT", help="the image's label; default the VM's name")
    parser.add_argument("--force", action="store_true", help="replace FILE if it is there")


def run(args: argparse.Namespace) -> int:
    spec, *places = take_words(args, "iso", 2, None, "a restore point and paths in it")
    if args.output == "-":
        raise UsageError("an ISO image cannot be written to standard output; give -o FILE")
    problems = Problems()
    with common.open_repository(args) as repository:
        path = outside(Path(args.output), repository)
        (point,) = load_points(args, repository, [spec])
        with (
            open_guest(repository, point) as guest,
            NewFile(path, replace=args.force) as new,
            ProgressBars(quiet=args.quiet or args.json) as bars,
        ):
            written = _write(guest, places, args.label or point.manifest.vm.name, new, bars, problems)
            size = os.fstat(new.fd).st_size
            if written:
                new.commit()
    if args.json:
        facts = {"output": args.output, "files": written, "size": size}
        common.print_json({**facts, "problems": problems.count, "first_problems": problems.texts})
    elif not written:
        log.error("%s is not written: there is nothing to put into it", args.output)
    elif not args.quiet:
        print(f"Wrote {count(written, 'file')} to {args.output}: {common.format_size(size)}")
    return problems.status


def _write(
    guest: Guest, places: list[str], label: str, new: NewFile, bars: ProgressBars, problems: Problems
) -> int:
    # Only this command needs the library.
    from vmfs.recovery.iso import IsoImage

    image = IsoImage(label, problems.add_error, lambda done, total: bars.update("writing", done, total))
    for place in places:
        try:
            tree, path = guest.locate(place)
            file = tree.find(path)
        except GuestError as error:
            problems.add_error(os.fsencode(place), error)
            continue
        name = path.rstrip(b"/").rpartition(b"/")[2]
        if name in (b"", b".", b".."):
            name = os.fsencode(guest.volume_of(file).name)
        image.add(tree, file, name)
    with new.errors(), open(new.fd, "r+b", closefd=False) as file_object:
        image.write(file_object)
    return image.files
