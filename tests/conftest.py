"""Fixtures that all tests share."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

# Before trio: a run whose tests do not use it would import it when they are over, and its way of taking over
# trio's random numbers is a warning then, which is an error here.
import hypothesis  # noqa: F401
import pytest

from vmfs.repo.repository import Repository
from vmfs.repo.secret import Passphrase
from vmfs.store import LocalStore

COST = 10
"""scrypt cost: as cheap as the format allows."""
SECRET = Passphrase(b"correct horse")

# A shell that starts us in the background has us ignore it, and every program that a test starts would too.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _own_environment(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the user's cache, configuration or secrets."""
    for name in ("CONFIG", "REPOSITORY", "PASSPHRASE_FILE", "PASSPHRASE_COMMAND", "KEY_FILE"):
        monkeypatch.delenv(f"VMFS_{name}", raising=False)
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("VMFS_CACHE_DIR", str(home / "cache"))
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    """A new repository with chunks of 64 KiB, opened with SECRET."""
    store = LocalStore(tmp_path / "repository")
    with Repository.create(
        store, SECRET, chunk_size=64 << 10, cost=COST, cache_root=tmp_path / "cache"
    ) as repository:
        yield repository


@pytest.fixture
def untraced() -> Iterator[None]:
    """For long loops over code that other tests measure: coverage.py would make them four times longer."""
    tracer = sys.gettrace()
    sys.settrace(None)
    try:
        yield
    finally:
        sys.settrace(tracer)
