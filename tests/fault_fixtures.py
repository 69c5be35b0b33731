"""Fixtures of the fault tests: places in memory, for they sync far more often than they write, and a
repository to be damaged."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from damage_helpers import Damage, Scene, make_scene

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


@pytest.fixture(scope="module")
def scene(module_place: Path) -> Scene:
    return make_scene(module_place)


@pytest.fixture
def damage(scene: Scene, place: Path) -> Damage:
    root = place / "repository"
    shutil.copytree(scene.root, root)
    shutil.copytree(scene.cache, place / "cache")
    return Damage(scene, root, place)
