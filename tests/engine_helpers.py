"""The lab's engine as the client sees it, and reading and writing disks through its transfers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from lab_helpers import DEFAULT, MIB, DiskRecipe, Lab, LabVm
from ovirt_imageio.client import ImageioClient

from ingest.engine.backups import Backup, running_backup
from ingest.engine.marks import make_mark
from ingest.engine.session import Engine
from ingest.engine.settings import EngineSettings
from ingest.engine.transfers import Transfer, download
from ingest.engine.vms import EngineVm, get_vm

PATIENCE = 60.0
"""Seconds: longer than anything in the lab takes."""
REPOSITORY = bytes.fromhex("deadbeef" + 12 * "00")
SIZE = 4 * MIB
"""Of a small disk: the second MiB of it holds something."""
_NUMBERS = count(1)


def settings(lab: Lab, **other: Any) -> EngineSettings:
    known = {
        "name": "lab",
        "url": lab.url,
        "username": lab.username,
        "password": lab.password,
        "ca_file": str(lab.ca_file),
    }
    return EngineSettings(**{**known, **other})


@contextmanager
def connected(lab: Lab, *, patience: float = PATIENCE, timeout: float = 60.0) -> Iterator[Engine]:
    with Engine.connect(settings(lab), patience=patience, timeout=timeout) as engine:
        yield engine


class Guest(NamedTuple):
    """A VM of the lab with small disks, and how the client sees it."""

    engine: Engine
    lab: Lab
    made: LabVm
    vm: EngineVm

    @property
    def disks(self) -> list[str]:
        """Ids."""
        return list(self.made.disks.values())

    def write(self, content: bytes = b"changed", *, at: int = 0, disk: int = 0) -> None:
        self.made.machine.write(self.disks[disk], at, content)

    @contextmanager
    def backup(self, *, run: str = "01JD5Z8Q8Y0000000000000000", **options: Any) -> Iterator[Backup]:
        mark = str(make_mark(run, REPOSITORY))
        with running_backup(self.engine, self.vm, self.disks, description=mark, **options) as backup:
            yield backup

    def checkpoint(self) -> str:
        """Taken by a backup that nobody reads."""
        with self.backup() as backup:
            pass
        assert backup.checkpoint is not None
        return backup.checkpoint

    def record(self, backup: Backup, disk: int = 0) -> bytes:
        """What the lab says the disk held at that instant."""
        path: Path = self.lab.backup_records(self.made)[backup.id][self.disks[disk]]
        return path.read_bytes()

    def read(self, backup: Backup, disk: int = 0) -> bytes:
        """All of a disk of the backup, through imageio."""
        with download(
            self.engine, disk_id=self.disks[disk], backup_id=backup.id, host_id=backup.host_id
        ) as transfer:
            return read_all(self.lab, transfer)


def small_guest(
    lab: Lab,
    engine: Engine,
    *,
    formats: Sequence[str] = ("cow",),
    cluster: str = DEFAULT,
    up: bool = True,
) -> Guest:
    name = f"vm{next(_NUMBERS)}"
    recipes = [
        DiskRecipe(
            f"{name}-disk{number}",
            SIZE,
            format=format,
            bootable=number == 1,
            chunks=[(MIB, bytes([number]) * MIB)],
        )
        for number, format in enumerate(formats, 1)
    ]
    made = lab.create_vm(name, recipes, cluster=cluster, up=up)
    return Guest(engine, lab, made, get_vm(engine, made.id))


@contextmanager
def client_of(lab: Lab, transfer: Transfer) -> Iterator[ImageioClient]:
    with ImageioClient(transfer.url, str(lab.ca_file), proxy_url=transfer.proxy_url) as client:
        yield client


def read_all(lab: Lab, transfer: Transfer) -> bytes:
    with client_of(lab, transfer) as client:
        buffer = bytearray(client.size())
        client.read(0, buffer)
    return bytes(buffer)


@contextmanager
def meanwhile(act: Callable[[], object]) -> Iterator[None]:
    """Does it in another thread; what it raises is raised at the end."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            act()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    if failures:
        raise failures[0]


def check_clean(lab: Lab) -> None:
    """Nothing of ours is left in the engine, and the lab did what it should."""
    left = lab.leftovers()
    assert not left, left
    assert lab.problems == []
