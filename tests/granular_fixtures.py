"""The disks of granular_images.py. To use them: `pytest_plugins = "granular_fixtures"`."""

from __future__ import annotations

import fcntl
import os

import pytest
from granular_images import GuestImage, build, load


@pytest.fixture(scope="session")
def guest_image(tmp_path_factory: pytest.TempPathFactory) -> GuestImage:
    """Made once, for all processes of a run. Nobody may change it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "guest-image"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "output").exists():
            build(folder)
    return load(folder)
