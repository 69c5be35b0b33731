"""What both programs share: finding the command, and turning what goes wrong into a line and an exit status.

Exit status: 0 done, 1 failed, 2 usage, 3 integrity, 128 + n ended by signal n.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import FrameType

from vmfs import __version__
from vmfs.errors import VmfsError


class Terminated(BaseException):
    """A signal asks us to end; raised in the main thread so that everything is put in order first."""

    def __init__(self, number: int) -> None:
        self.number = number


@dataclass(frozen=True, slots=True)
class Program:
    """`commands` maps each command's name to its module, imported only when it is needed."""

    name: str
    description: str
    commands: Mapping[str, str]

    def parser(self, only: str | None = None) -> argparse.ArgumentParser:
        """With all commands (for help and completion), or with just one (to start quickly)."""
        parser = argparse.ArgumentParser(prog=self.name, description=self.description)
        parser.add_argument("--version", action="version", version=f"{self.name} {__version__}")
        subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
        for command, module in self.commands.items():
            if only in (None, command):
                importlib.import_module(module).register(subparsers)
        return parser

    def parse(self, argv: list[str]) -> argparse.Namespace:
        command = argv[0] if argv else ""
        if command not in self.commands:
            return self.parser().parse_args(argv)
        parser = self.parser(only=command)
        chosen = _subparsers(parser)[command]
        if _subparsers(chosen):
            return parser.parse_args(argv)
        # Options may stand between the positional arguments: REPO --vm NAME DISK.
        return chosen.parse_intermixed_args(argv[1:])

    def main(self, argv: list[str] | None = None) -> int:
        args = self.parse(sys.argv[1:] if argv is None else argv)
        _log_to_stderr(self.name, verbose=getattr(args, "verbose", 0), quiet=getattr(args, "quiet", False))
        try:
            signal.signal(signal.SIGTERM, _terminate)
            args.program = self
            status: int = args.run(args)
            sys.stdout.flush()
            return status
        except VmfsError as error:
            print(f"{self.name}: {error}", file=sys.stderr)
            return error.exit_status
        except BrokenPipeError:
            # Whoever read our output has seen enough; keep the interpreter from complaining at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + signal.SIGPIPE
        except KeyboardInterrupt:
            print(f"{self.name}: interrupted", file=sys.stderr)
            return 128 + signal.SIGINT
        except Terminated as end:
            print(f"{self.name}: terminated", file=sys.stderr)
            return 128 + end.number


def _subparsers(parser: argparse.ArgumentParser) -> Mapping[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return action.choices
    return {}


def _terminate(number: int, _: FrameType | None) -> None:
    raise Terminated(number)


def _log_to_stderr(name: str, *, verbose: int, quiet: bool) -> None:
    level = logging.ERROR if quiet else (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logging.basicConfig(level=level, format=f"{name}: %(message)s", stream=sys.stderr)
