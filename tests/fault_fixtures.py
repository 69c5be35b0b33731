"""Fixtures of the fault tests: places in memory, for they sync far more often than they write, and a
repository to be damaged."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from damage_helpers import Damage, Scene, make_scene

from vmfs.repo.lease import Lease

_MEMORY = "/dev/shm"


def _place() -> Iterator[Path]:
    memory = _MEMORY if os.access(_MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="vmfs-test-", dir=memory) as directory:
        yield Path(directory)


@pytest.fixture
def place() -> Iterator[Path]:
    yield from _place()


@pytest.fixture(scope="module")
def module_place() -> Iterator[Path]:
    yield from _place()


@pytest.fixture
def killed_leases(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For kills that are an exception: a process that is killed renews its leases no more, but this one lives
    on, and would complain of them in the middle of another test."""
    made: list[Lease] = []

    class Recorded(Lease):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            made.append(self)

    monkeypatch.setattr("vmfs.repo.session.Lease", Recorded)
    yield
    for lease in made:
        lease.abandon()


@pytest.fixture(scope="module")
def scene(module_place: Path) -> Scene:
    return make_scene(module_place)


@pytest.fixture
def damage(scene: Scene, place: Path) -> Damage:
    root = place / "repository"
    shutil.copytree(scene.root, root)
    shutil.copytree(scene.cache, place / "cache")
    return Damage(scene, root, place)
