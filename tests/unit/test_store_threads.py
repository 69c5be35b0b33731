"""Several threads reading from one store, with more files than it keeps open."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vmfs.store import LocalStore, local


@pytest.fixture
def _restless() -> Iterator[None]:
    """Threads change places as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_restless")
def test_a_file_that_is_read_from_stays_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_OPEN_FILES", 1)
    store = LocalStore(tmp_path)
    for number in range(8):
        store.put(f"packs/{number}", [bytes((number,)) * 100])

    def read(turn: int) -> None:
        number = turn % 8
        assert store.get_range(f"packs/{number}", 10, 5) == bytes((number,)) * 5

    with ThreadPoolExecutor(4) as executor:
        list(executor.map(read, range(8000)))
