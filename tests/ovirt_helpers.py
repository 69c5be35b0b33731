"""Backups of the lab's VMs, and what is right about each of them afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from lab_helpers import DEFAULT, LEGACY, MIB, DiskRecipe, Lab, LabVm

from ingest.engine.checkpoints import list_checkpoints
from ingest.engine.run import Options, Outcome, back_up_vm
from ingest.engine.session import Engine
from ingest.engine.settings import EngineSettings
from ingest.engine.vms import get_vm
from vmfs.catalog.catalog import Catalog
from vmfs.format.manifest import Disk
from vmfs.repo.repository import Point, Repository

PATIENCE = 20.0
"""Seconds, for engine and imageio."""
KIB = 1 << 10
CHUNK = 64 * KIB
"""Of the repository of these tests."""
SIZE = 16 * MIB
both_modes = pytest.mark.parametrize("cluster", [DEFAULT, LEGACY], ids=["hybrid", "live"])

_names = iter(range(1_000_000))


def recipe(alias: str, **options: Any) -> DiskRecipe:
    """1 MiB of data at 2 MiB."""
    chunks = [(2 * MIB, alias.encode()[:1] * MIB)]
    return DiskRecipe(alias, **{"size": SIZE, "chunks": chunks, **options})


def make_vm(lab: Lab, cluster: str = DEFAULT, disks: list[DiskRecipe] | None = None, **options: Any) -> LabVm:
    """With the disks root and data."""
    chosen = disks or [recipe("root", bootable=True), recipe("data")]
    return lab.create_vm(f"vm{next(_names)}", chosen, cluster=cluster, **options)


def settings_of(lab: Lab, *, password: str | None = None) -> EngineSettings:
    return EngineSettings(
        name="lab",
        url=lab.url,
        username=lab.username,
        password=password or lab.password,
        ca_file=str(lab.ca_file),
    )


@dataclass
class Bench:
    """A repository and a session, to back up VMs of the lab with."""

    lab: Lab
    repository: Repository
    catalog: Catalog
    engine: Engine
    before: list[str] = field(default_factory=list)

    def back_up(self, vm: LabVm, **options: Any) -> Outcome:
        self.catalog.sync(self.repository)
        return back_up_vm(
            self.repository, self.catalog, self.engine, vm.id, Options(**{"patience": PATIENCE, **options})
        )

    def backed_up(self, vm: LabVm, **options: Any) -> Outcome:
        """A backup that is as it should be: see `check`."""
        outcome = self.back_up(vm, **options)
        self.check(vm, outcome.point)
        return outcome

    def check(self, vm: LabVm, point: Point) -> None:
        """Every disk is what the lab recorded at the instant of the newest backup; nothing is left in the
        engine."""
        *_, records = self.lab.backup_records(vm).values()
        for disk in point.manifest.disks:
            self.check_disk(disk, records[disk.id])
        assert {artifact.name for artifact in point.manifest.artifacts} == {"vm.ovf", "vm.json"}
        self.check_clean()

    def check_disk(self, disk: Disk, record: Path) -> None:
        reader = self.repository.open_disk(disk)
        assert disk.size == record.stat().st_size
        with record.open("rb") as file:
            for start in range(0, disk.size, 8 << 20):
                assert reader.read(start, 8 << 20) == file.read(8 << 20), f"{disk.alias} from {start}"

    def check_clean(self) -> None:
        assert self.lab.leftovers() == []

    def checkpoints(self, vm: LabVm) -> list[str]:
        return [item.id for item in list_checkpoints(self.engine, get_vm(self.engine, vm.id))]

    def transferred(self, vm: LabVm) -> dict[str, int]:
        """Bytes that the daemons counted for the newest backup, by alias."""
        *_, backup_id = self.lab.backup_records(vm)
        aliases = {disk_id: alias for alias, disk_id in vm.disks.items()}
        counted: dict[str, int] = {}
        for transfer in self.lab.transfer_stats():
            if transfer["backup_id"] == backup_id:
                alias = aliases[transfer["disk_id"]]
                counted[alias] = counted.get(alias, 0) + transfer["transferred"]
        return counted


@contextmanager
def bench(lab: Lab, repository: Repository, folder: Path) -> Iterator[Bench]:
    with ExitStack() as opened:
        engine = opened.enter_context(Engine.connect(settings_of(lab), patience=PATIENCE))
        catalog = opened.enter_context(Catalog.open(folder / "catalog.sqlite", repository.id))
        yield Bench(lab, repository, catalog, engine)


def modes(point: Point) -> dict[str, str]:
    return {disk.alias: disk.mode for disk in point.manifest.disks}


def reasons(point: Point) -> dict[str, str | None]:
    return {disk.alias: disk.full_reason for disk in point.manifest.disks}


def artifact(repository: Repository, point: Point, name: str) -> bytes:
    (found,) = (item for item in point.manifest.artifacts if item.name == name)
    return repository.read_artifact(found)


def facts_of(repository: Repository, point: Point) -> Any:
    return json.loads(artifact(repository, point, "vm.json"))
