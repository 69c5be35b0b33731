"""What both programs share: finding the command, one line for each error, exit status."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vmfs.cli import common
from vmfs.cli.entry import Program, Terminated, one_line
from vmfs.cli.main import PROGRAM as VMFS
from vmfs.errors import IntegrityError, UsageError, VmfsError

Run = Callable[[argparse.Namespace], int]


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Run], Program]]:
    """A program with one command, `do REPO [ITEM...] [--flag]`, which runs that."""
    before = signal.getsignal(signal.SIGTERM)
    handlers = logging.getLogger().handlers[:]

    def make(run: Run) -> Program:
        def register(subparsers: Any) -> None:
            parser = subparsers.add_parser("do")
            parser.add_argument("repo")
            parser.add_argument("items", nargs="*")
            parser.add_argument("--flag")
            common.add_verbosity(parser)
            parser.set_defaults(run=run)

        module = types.ModuleType("command_do")
        module.register = register  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "command_do", module)
        return Program("prog", "A program.", {"do": "command_do", "other": "no_such_module"})

    yield make
    signal.signal(signal.SIGTERM, before)
    logging.getLogger().handlers[:] = handlers


def raising(error: BaseException) -> Run:
    def run(_: argparse.Namespace) -> int:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (VmfsError("it failed; try again"), 1, "prog: it failed; try again"),
        (UsageError("no"), 2, "prog: no"),
        (IntegrityError("packs/x is damaged"), 3, "prog: packs/x is damaged"),
        (VmfsError("disk a\nb\x1b[31m\u2028"), 1, "prog: disk a\\nb\\x1b[31m\\u2028"),
        (OSError(28, "No space left on device"), 1, "prog: No space left on device"),
        (FileNotFoundError(2, "No such file", "/x/y"), 1, "prog: /x/y: No such file"),
        (KeyboardInterrupt(), 130, "prog: interrupted"),
        (Terminated(15), 143, "prog: terminated"),
    ],
)
def test_errors_are_one_line_and_a_status(
    program: Callable[[Run], Program],
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    status: int,
    line: str,
) -> None:
    assert program(raising(error)).main(["do", "r"]) == status
    assert capsys.readouterr() == ("", f"{line}\n")


def test_what_is_a_mistake_of_ours_is_not_hidden(program: Callable[[Run], Program]) -> None:
    with pytest.raises(ZeroDivisionError):
        program(raising(ZeroDivisionError())).main(["do", "r"])


def test_options_may_stand_between_positional_arguments(program: Callable[[Run], Program]) -> None:
    seen: list[argparse.Namespace] = []

    def run(args: argparse.Namespace) -> int:
        seen.append(args)
        return 0

    for argv in (
        ["r", "--flag", "f", "a", "-q", "b"],
        ["--flag=f", "r", "a", "b"],
        ["r", "a", "b", "--flag", "f"],
    ):
        assert program(run).main(["do", *argv]) == 0
        assert (seen[-1].repo, seen[-1].items, seen[-1].flag) == ("r", ["a", "b"], "f")


def test_what_follows_two_dashes_is_no_option(
    program: Callable[[Run], Program], capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[argparse.Namespace] = []

    def run(args: argparse.Namespace) -> int:
        seen.append(args)
        return 0

    for argv, expected in (
        (["--", "-r", "-a", "--"], ("-r", ["-a", "--"], None)),
        (["--flag", "f", "--", "-r", "a"], ("-r", ["a"], "f")),
        (["r", "--", "-a", "--flag"], ("r", ["-a", "--flag"], None)),
        (["r", "a", "--flag", "f", "--"], ("r", ["a"], "f")),
    ):
        assert program(run).main(["do", *argv]) == 0
        assert (seen[-1].repo, seen[-1].items, seen[-1].flag) == expected
    with pytest.raises(SystemExit):
        VMFS.main(["points", "--", "r", "-x"])
    assert "unrecognized arguments: -x;" in capsys.readouterr().err


def test_an_interruption_while_a_command_is_imported(
    program: Callable[[Run], Program],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = program(raising(AssertionError()))

    def register(_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["command_do"], "register", register)
    assert made.main(["do", "r"]) == 130
    assert capsys.readouterr().err == "prog: interrupted\n"


@pytest.mark.parametrize("argv", [[], ["nothing"], ["do"], ["do", "r", "--wrong"], ["do", "r", "--fl\nag"]])
def test_usage_errors_are_one_line(
    program: Callable[[Run], Program], capsys: pytest.CaptureFixture[str], argv: list[str]
) -> None:
    made = program(raising(AssertionError()))
    made = Program(made.name, made.description, {"do": "command_do"})
    with pytest.raises(SystemExit) as caught:
        made.main(argv)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("prog")
    assert "--help" in err
    assert err.count("\n") == 1


def test_only_the_command_that_runs_is_imported(program: Callable[[Run], Program]) -> None:
    assert program(lambda args: 7).main(["do", "r"]) == 7


def test_sigterm_ends_the_command(
    program: Callable[[Run], Program], capsys: pytest.CaptureFixture[str]
) -> None:
    def run(_: argparse.Namespace) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
        raise AssertionError

    assert program(run).main(["do", "r"]) == 143
    assert capsys.readouterr().err == "prog: terminated\n"


@pytest.mark.parametrize(
    ("options", "level"),
    [([], logging.WARNING), (["-q"], logging.ERROR), (["-v"], logging.INFO), (["-vvv"], logging.DEBUG)],
)
def test_log_lines(
    program: Callable[[Run], Program], capsys: pytest.CaptureFixture[str], options: list[str], level: int
) -> None:
    def run(_: argparse.Namespace) -> int:
        for at in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
            logging.getLogger("some").log(at, "level %d\nof it", at)
        return 0

    root = logging.getLogger()
    before, root.handlers[:] = root.handlers[:], []
    try:
        assert program(run).main(["do", "r", *options]) == 0
    finally:
        root.handlers[:] = before
        root.setLevel(logging.WARNING)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"prog: level {at}\\nof it" for at in (10, 20, 30, 40) if at >= level]


def test_one_line() -> None:
    assert one_line("plain ü – 'x'") == "plain ü – 'x'"
    assert one_line("a\r\n\t\x00\x7f\x85\u2029b") == "a\\r\\n\\t\\x00\\x7f\\x85\\u2029b"


SCRIPT = """
import sys, types
from vmfs.cli.entry import Program
module = types.ModuleType("m")
def register(subparsers):
    parser = subparsers.add_parser("do")
    parser.set_defaults(run=lambda args: print({text}) or 0)
module.register = register
sys.modules["m"] = module
sys.exit(Program("prog", "", {{"do": "m"}}).main())
"""


def run_script(text: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-c", SCRIPT.format(text=text), "do"]
    return subprocess.run(command, stderr=subprocess.PIPE, check=False, timeout=30, **options)


def test_nobody_reads_the_output() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = run_script("'x'", stdout=writing)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def test_no_room_for_the_output() -> None:
    with Path("/dev/full").open("wb") as full:
        done = run_script("'x'", stdout=full)
    assert (done.returncode, done.stderr) == (1, b"prog: No space left on device\n")


def test_standard_output_is_closed() -> None:
    done = run_script("'x'", preexec_fn=lambda: os.close(1))
    assert (done.returncode, done.stderr) == (0, b"")


def test_output_that_is_no_text() -> None:
    """Such as a path: shown with escapes, which are JSON's too."""
    done = run_script(r"'\"\udcff\"'", stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout, done.stderr) == (0, b'"\\udcff"\n', b"")
