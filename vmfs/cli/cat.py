"""vmfs cat: the content of files of a restore point."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from typing import Any

from vmfs.cli.guest_arguments import Problems, add_guest_command, find_file, point_and_guest, take_words
from vmfs.volumes.files.client import GuestError
from vmfs.volumes.tree import File

_PIECE = 4 << 20


def register(subparsers: Any) -> None:
    add_guest_command(
        subparsers,
        "cat",
        run,
        arguments="POINT PATH",
        prints_json=False,
        help="print files of a restore point",
        description="Write the content of files of a restore point to standard output, one after the other.",
    )


def run(args: argparse.Namespace) -> int:
    spec, *places = take_words(args, "cat", 2, None, "a restore point and paths in it")
    problems = Problems()
    sys.stdout.flush()
    with point_and_guest(args, spec) as (_, guest):
        for place in places:
            try:
                file = find_file(guest, place)
                if file.is_directory:
                    raise GuestError(errno.EISDIR, "it is a directory; see vmfs ls, vmfs cp and vmfs tar")
                if not file.is_regular:
                    raise GuestError(errno.EINVAL, "it is no regular file")
                _copy(file)
            except GuestError as error:
                problems.add_error(os.fsencode(place), error)
    return problems.status


def _copy(file: File) -> None:
    offset = 0
    while piece := file.system.read(file.stat.node, offset, _PIECE):
        offset += len(piece)
        _write(piece)
    if offset < file.stat.size:
        raise GuestError(errno.EIO, f"it ends after {offset} of {file.stat.size} bytes")


def _write(data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(sys.stdout.fileno(), rest) :]
