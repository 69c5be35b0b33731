"""vmfs find: which restore points hold a file?"""

from __future__ import annotations

import argparse
import importlib
import re
from datetime import timedelta
from threading import Thread
from typing import Any

from vmfs.cli import common
from vmfs.errors import UsageError

_AGO = re.compile(r"(\d{1,6})([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def register(subparsers: Any) -> None:
    parser = common.add_repository_command(
        subparsers,
        "find",
        run,
        help="find files in restore points",
        description="Find files by name, path, size, time and type, in all indexed restore points at once. "
        "Each line is a version of a file: the first and the last restore point that have it, and how many "
        "do.",
    )
    parser.add_argument(
        "pattern",
        nargs="*",
        metavar="PATTERN",
        help="a name, or a path if it has a slash, with * ? [a-z], and ** for any directories",
    )
    parser.add_argument("--name", metavar="GLOB", help="files of that name, such as 'payroll*.xlsx'")
    parser.add_argument("-i", "--ignore-case", action="store_true", help="take a and A for the same")
    parser.add_argument("--vm", metavar="NAME", help="only in points of this VM")
    parser.add_argument("--point", metavar="POINT", help="only in this restore point")
    parser.add_argument("--latest", action="store_true", help="only in the newest point of each VM")
    parser.add_argument(
        "--size",
        action="append",
        default=[],
        type=_size,
        metavar="SIZE",
        help="of at least +SIZE, at most -SIZE (as --size=-10M) or exactly SIZE bytes; may be given twice",
    )
    parser.add_argument(
        "--newer",
        type=_time,
        metavar="TIME",
        help="changed at TIME or later; 2026-11-20T10:00, or 7d for a week ago",
    )
    parser.add_argument("--older", type=_time, metavar="TIME", help="changed before TIME")
    parser.add_argument(
        "--type", choices=("f", "d", "l"), help="only files (f), directories (d) or symbolic links (l)"
    )
    parser.add_argument(
        "--walk", action="store_true", help="look through points that are not indexed, which takes time"
    )


def run(args: argparse.Namespace) -> int:
    patterns = common.take_repository(args, args.pattern)
    if len(patterns) > 1:
        raise UsageError("one pattern at a time; put it in quotes, or the shell takes it for its own")
    # To derive a key from a passphrase takes half a second without the interpreter's lock, and to import all
    # that as long with it.
    importing = Thread(target=importlib.import_module, args=("vmfs.cli.finding",), daemon=True)
    importing.start()
    with common.open_repository(args) as repository:
        importing.join()
        from vmfs.cli.finding import find

        return find(args, patterns, repository)


def _size(text: str) -> tuple[int | None, int | None]:
    """(at least, at most) bytes."""
    size = common.parse_size(text.lstrip("+-") if text[:1] in ("+", "-") else text)
    return (size, None) if text.startswith("+") else (None, size) if text.startswith("-") else (size, size)


def _time(text: str) -> Any:
    """A function from now to then, both nanoseconds since 1970."""
    if match := _AGO.fullmatch(text):
        length = timedelta(**{_UNITS[match[2]]: int(match[1])}) // timedelta(microseconds=1) * 1000
        return lambda now: now - length
    from vmfs.catalog.timespan import span_of

    try:
        begin = span_of(text)[0] * 1000
    except UsageError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a time; write 2026-11-20, 2026-11-20T10:00, or 12h, 7d, 2w for so long ago"
        ) from None
    return lambda now: begin
