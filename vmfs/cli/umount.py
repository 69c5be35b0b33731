"""vmfs umount: end a mount."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vmfs.cli import common
from vmfs.fs import mountpoint


def register(subparsers: Any) -> None:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "umount",
        help="end a mount",
        description="Unmount what 'vmfs mount' mounted; umount(8) and fusermount3 -u do as well.",
    )
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", help="where it is mounted")
    parser.add_argument(
        "-l",
        "--lazy",
        action="store_true",
        help="although it is busy: out of sight now, gone with the last open file",
    )
    common.add_verbosity(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    mountpoint.unmount(Path(args.mountpoint), lazy=args.lazy)
    return 0
