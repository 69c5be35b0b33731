"""What both programs share: finding the command, and turning what goes wrong into a line and an exit status.

Exit status: 0 done, 1 failed, 2 usage, 3 integrity, 128 + n ended by signal n.
"""

from __future__ import annotations

import argparse
import importlib
import io
import logging
import os
import signal
import sys
import unicodedata
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn

from vmfs import __version__
from vmfs.errors import UsageError, VmfsError
from vmfs.memory import keep_freed_memory

log = logging.getLogger(__name__)

_CONTROL = ("Cc", "Zl", "Zp")
_MARK = "\0"
"""No argument of a program can hold that."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; the usage of some commands would push it off the screen. An option has
    its whole name: `--password X` is no `--password-file`, and X is not shown in an error about a file."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        self.exit(
            UsageError.exit_status, f"{one_line(f'{self.prog}: {_plain(message)}; see {self.prog} --help')}\n"
        )


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
        parser = Parser(prog=self.name, description=self.description)
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
        parser = chosen = self.parser(only=command)
        words = argv
        while words and (found := _subparsers(chosen).get(words[0])):
            chosen, words = found, words[1:]
        if _subparsers(chosen):
            return parser.parse_args(argv)
        # Options may stand between the positional arguments: REPO --vm NAME DISK.
        return _unmark(chosen.parse_intermixed_args(_mark(_with_values(chosen, words))))

    def main(self, argv: list[str] | None = None) -> int:
        _prepare_stdout()
        try:
            # That imports the command: long enough for an impatient user.
            args = self.parse(sys.argv[1:] if argv is None else argv)
            verbose, quiet = getattr(args, "verbose", 0), getattr(args, "quiet", False)
            _log_to_stderr(self.name, verbose=verbose, quiet=quiet)
            signal.signal(signal.SIGTERM, _terminate)
            args.program = self
            keep_freed_memory()
            status: int = args.run(args)
            sys.stdout.flush()
            return status
        except VmfsError as error:
            print(one_line(f"{self.name}: {error}"), file=sys.stderr)
            return error.exit_status
        except BrokenPipeError:
            # Whoever read our output has seen enough.
            _drop_stdout()
            return 128 + signal.SIGPIPE
        except OSError as error:
            # What no part of ours has put in words: standard output on a full disk, for one.
            log.debug("", exc_info=True)
            print(one_line(f"{self.name}: {_reason(error)}"), file=sys.stderr)
            try:
                sys.stdout.flush()
            except OSError:
                _drop_stdout()
            return VmfsError.exit_status
        except KeyboardInterrupt:
            print(f"{self.name}: interrupted", file=sys.stderr)
            return 128 + signal.SIGINT
        except Terminated as end:
            print(f"{self.name}: terminated", file=sys.stderr)
            return 128 + end.number


def one_line(text: str) -> str:
    """The text with line ends and other control characters shown as escapes: names are not ours to choose."""
    return "".join(ascii(char)[1:-1] if unicodedata.category(char) in _CONTROL else char for char in text)


def _reason(error: OSError) -> str:
    reason = error.strerror or str(error)
    return f"{os.fsdecode(error.filename)}: {reason}" if isinstance(error.filename, str | bytes) else reason


def _prepare_stdout() -> None:
    if sys.stdout is None:
        # Closed by the caller, as in `>&-`.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    elif isinstance(sys.stdout, io.TextIOWrapper):
        # A path need not be text; in JSON, what this writes is an escape as well.
        sys.stdout.reconfigure(errors="backslashreplace")


def _drop_stdout() -> None:
    """Keep the interpreter from complaining at exit about what it cannot write."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _subparsers(parser: argparse.ArgumentParser) -> Mapping[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return action.choices
    return {}


def _with_values(parser: argparse.ArgumentParser, words: list[str]) -> list[str]:
    """An option whose value may be left out has one only if it is attached, as in --data=10: in
    `--data REPO` it is left out."""
    left_out = {
        name: f"{name}={action.const}"
        for action in parser._actions
        if action.nargs == argparse.OPTIONAL
        for name in action.option_strings
    }
    return [left_out.get(word, word) for word in words]


def _mark(words: list[str]) -> list[str]:
    """What follows `--` and looks like an option, marked, in place of the `--`: argparse forgets that one
    when arguments may be intermixed and it comes before all of them."""
    if "--" not in words:
        return words
    end = words.index("--")
    return words[:end] + [_MARK + word if word.startswith("-") else word for word in words[end + 1 :]]


def _plain(text: str) -> str:
    return text.replace(_MARK, "")


def _unmark(args: argparse.Namespace) -> argparse.Namespace:
    for name, value in vars(args).items():
        if isinstance(value, str):
            setattr(args, name, _plain(value))
        elif isinstance(value, list):
            setattr(args, name, [_plain(item) if isinstance(item, str) else item for item in value])
    return args


def _terminate(number: int, _: FrameType | None) -> None:
    raise Terminated(number)


def _log_to_stderr(name: str, *, verbose: int, quiet: bool) -> None:
    level = logging.ERROR if quiet else (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(f"{name}: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])


class _Formatter(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        return one_line(super().formatMessage(record))
