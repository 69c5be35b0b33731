"""Fixtures that all tests share."""

from __future__ import annotations

import os
import signal
import sys
import threading
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
    """For long loops over code that other tests measure: coverage.py would make them twice as long, or worse.
    Of threads too, that begin in the test."""
    tracer, of_threads = sys.gettrace(), threading.gettrace()
    sys.settrace(None)
    threading.settrace(None)
    try:
        yield
    finally:
        threading.settrace(of_threads)
        sys.settrace(tracer)


@pytest.fixture(autouse=True)
def _slow_is_untraced(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("slow"):
        request.getfixturevalue("untraced")


_MEASURE = "COVERAGE_PROCESS_START"
"""By this variable coverage.py measures a Python from its start."""


@pytest.fixture(scope="session", autouse=True)
def _children_are_not_measured() -> Iterator[str | None]:
    """It would double the time of each, and the tests start thousands: daemons of others', and programs whose
    code other tests measure. See `measured`."""
    with pytest.MonkeyPatch.context() as patch:
        found = os.environ.get(_MEASURE)
        patch.delenv(_MEASURE, raising=False)
        yield found


@pytest.fixture
def measured(_children_are_not_measured: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of code that runs in processes of its own only: these are measured."""
    if _children_are_not_measured is not None:
        monkeypatch.setenv(_MEASURE, _children_are_not_measured)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long ones first: all workers would wait for one that is begun last."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
