"""A small real repository whose points are written in one go, for tests of the catalog."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from conftest import COST, SECRET

from vmfs.catalog import Catalog
from vmfs.format.manifest import Disk, Manifest, Vm
from vmfs.repo.repository import Repository
from vmfs.repo.session import WriteSession
from vmfs.store import LocalStore

START = datetime(2026, 11, 20, 10, 0, 0, 500_000, tzinfo=UTC)


@dataclass
class Backups:
    """Points of disks that hold nothing: a catalog does not look further than the manifest."""

    repository: Repository
    session: WriteSession
    root: Path
    made: int = 0

    def add(
        self, vm: str = "web", when: datetime = START, *, vm_id: str | None = None, engine: str | None = None
    ) -> str:
        number = self.made
        self.made += 1
        disks = tuple(
            Disk(
                id=f"disk-{i}",
                alias=f"vd{'ab'[i]}",
                size=(number + 1) << 20,
                root=None,
                allocated=4096 * number,
                mode="incremental" if number else "full",
                full_reason=None if number else "first point",
                bytes_read=number,
                bytes_new=number + 1,
                bytes_stored=(1 << 60) + number,
            )
            for i in range(2)
        )
        return self.session.commit(
            Manifest(
                vm=Vm(name=vm, id=vm_id or vm, engine=engine, cluster="rack 1"),
                time=when,
                consistency="filesystem",
                disks=disks,
                artifacts=(self.session.store_artifact("vm.ovf", b"<ovf/>"),),
                producer="vmfs 1",
            )
        )

    def path(self, point_id: str) -> Path:
        return self.root / "points" / point_id


@contextmanager
def backups_in(directory: Path) -> Iterator[Backups]:
    root = directory / "repository"
    with (
        Repository.create(LocalStore(root), SECRET, cost=COST, cache_root=directory / "cache") as repository,
        repository.write_session() as session,
    ):
        yield Backups(repository, session, root)


def answers(catalog: Catalog) -> object:
    return catalog.vms(), catalog.points()
