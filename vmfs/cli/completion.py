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
    parser = args.program.parser()
    _complete_paths(parser)
    print(shtab.complete(parser, shell=args.shell))
    return 0


def _complete_paths(parser: argparse.ArgumentParser) -> None:
    """Tell shtab which arguments are paths."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for chosen in action.choices.values():
                _complete_paths(chosen)
        elif action.metavar in ("FILE", "DISK"):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.metavar in ("DIR", "REPO", "MOUNTPOINT"):
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
