"""A host and a machine of the lab, without an engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from lab_machine_helpers import (
    DISK_SIZE,
    Backups,
    Machine,
    Site,
    create_image,
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("site"))
    yield site
    site.host.close()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """Running, with disks `cow` (DISK_SIZE) and `raw` (half of it), in a folder whose path is too long for a
    socket."""
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    disks = [
        create_image("cow", folder / "cow.qcow2", "cow", DISK_SIZE),
        create_image("raw", folder / "raw.img", "raw", DISK_SIZE // 2),
    ]
    machine = Machine(folder / "machine", disks)
    machine.start()
    yield machine
    machine.close()


@pytest.fixture
def backups(site: Site, machine: Machine) -> Backups:
    return Backups(site, machine)


@pytest.fixture(params=["live", "hybrid"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)
