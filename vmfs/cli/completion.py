"""completion: print the shell's completion script, made from the very parser."""

from __future__ import annotations

import argparse
from typing import Any

import shtab

SHELLS = ("bash", "zsh")


def register(subparsers: Any) -> None:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "completion",
        help="print a completion script for the shell",
        description="Print a completion script; put it where the shell looks for them, as "
        "/etc/bash_completion.d or a directory of zsh's $fpath.",
    )
    parser.add_argument("shell", choices=SHELLS, help="which shell")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    print(shtab.complete(args.program.parser(), shell=args.shell))
    return 0
