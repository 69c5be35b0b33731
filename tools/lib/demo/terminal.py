"""What the reader of the demonstration sees: titles, commands and what they print."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

MIB = 1 << 20


class DemoError(Exception):
    """The demonstration failed. One line for the user."""


def title(text: str) -> None:
    sys.stdout.write(f"\n\033[1m== {text}\033[0m\n" if sys.stdout.isatty() else f"\n== {text}\n")
    sys.stdout.flush()


def tell(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def run(*argv: str | Path, quiet: bool = False, show: bool = True) -> str:
    """Run a command as a reader would type it, and show what it prints. Raises DemoError when it fails."""
    arguments = [str(argument) for argument in argv]
    if show:
        tell("$ " + shlex.join(arguments))
    result = subprocess.run(
        arguments,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        raise DemoError(f"{arguments[0]}: exit status {result.returncode}: {result.stdout.strip()}")
    if not quiet and show and result.stdout.strip():
        tell(result.stdout.rstrip())
    return result.stdout


def mebibytes(count: int) -> str:
    return f"{count / MIB:,.1f} MiB"
