"""Running the commands: the installed programs, or for speed their `main` in this process."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conftest import SECRET

import ingest.cli.main
import vmfs.cli.main
from vmfs.repo.repository import Repository
from vmfs.store import LocalStore

PROGRAMS = {"vmfs": vmfs.cli.main.main, "vmfs-ingest": ingest.cli.main.main}


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str

    def json(self) -> Any:
        assert self.status == 0, self.err
        return json.loads(self.out)


def call(program: str, *argv: object) -> Done:
    """`main(argv)` with what it printed."""
    out, err = io.StringIO(), io.StringIO()
    root = logging.getLogger()
    before = root.handlers[:]
    root.handlers[:] = []
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = PROGRAMS[program]([str(word) for word in argv])
            except SystemExit as leaving:
                status = int(leaving.code or 0)
    finally:
        root.handlers[:] = before
    return Done(status, out.getvalue(), err.getvalue())


def program(name: str) -> str:
    """The path of the installed console script."""
    return str(Path(sys.executable).with_name(name))


def unmeasured() -> dict[str, str]:
    """The environment without coverage: a thread that an exception of a signal handler ends in coverage.py
    keeps its lock, and all others wait for it for ever."""
    return {name: value for name, value in os.environ.items() if name != "COVERAGE_PROCESS_START"}


def spawn(name: str, *argv: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """The console script in a process of its own."""
    words = [program(name), *map(str, argv)]
    return subprocess.run(words, capture_output=True, stdin=subprocess.DEVNULL, check=False, **options)


@dataclass(frozen=True)
class Site:
    """A repository as a user has it: a directory, a passphrase file, a cache."""

    root: Path

    @property
    def repository(self) -> Path:
        return self.root / "repository"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def passphrase(self) -> Path:
        return self.root / "passphrase"

    def options(self) -> list[object]:
        return ["--passphrase-file", self.passphrase, "--cache-dir", self.cache]

    def vmfs(self, command: str, *argv: object) -> Done:
        return call("vmfs", *command.split(), self.repository, *argv, *self.options())

    def ingest(self, vm: str, *argv: object) -> Done:
        done = call("vmfs-ingest", "image", self.repository, "--vm", vm, *argv, *self.options())
        assert done.status == 0, done.err
        return done

    def write_passphrase(self) -> None:
        self.passphrase.write_bytes(SECRET.secret + b"\n")

    def open(self, cache: Path | None = None) -> Repository:
        """By the library, with another cache if one is given."""
        return Repository.open(LocalStore(self.repository), SECRET, cache_root=cache or self.cache)

    def init(self) -> None:
        self.write_passphrase()
        done = self.vmfs("init", "--chunk-size", "64K", "--kdf-cost", 10)
        assert done.status == 0, done.err
