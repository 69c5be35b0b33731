"""Restore points of VMs of the lab, made without a backup: what the disks hold, and the OVF of the engine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ingest.engine.session import Engine
from ingest.engine.settings import EngineSettings
from ingest.engine.vms import get_vm, vm_disks, vm_ovf
from vmfs.format.keys import Kind
from vmfs.format.manifest import Disk, Manifest, Vm
from vmfs.repo.diskmap import EMPTY
from vmfs.repo.repository import Point, Repository


def engine_settings(lab: Any) -> EngineSettings:
    return EngineSettings(
        name="lab", url=lab.url, username=lab.username, password=lab.password, ca_file=str(lab.ca_file)
    )


def keep(
    repository: Repository,
    engine: Engine,
    lab: Any,
    vm_id: str,
    folder: Path,
    *,
    artifacts: Mapping[str, bytes] | None = None,
) -> Point:
    """A restore point of the VM as it is now; the content of its disks is left in `folder`, `<disk id>.raw`.
    `artifacts` instead of what the engine gives."""
    vm = get_vm(engine, vm_id)
    disks = vm_disks(engine, vm)
    facts = {"disks": [asdict(disk) for disk in disks]}
    kept = artifacts
    if kept is None:
        kept = {"vm.ovf": vm_ovf(engine, vm), "vm.json": json.dumps(facts).encode()}
    folder.mkdir(exist_ok=True)
    taken = []
    with repository.write_session() as session:
        stored = [session.store_artifact(name, content) for name, content in kept.items()]
        for disk in disks:
            path = lab.content(disk.id, folder / f"{disk.id}.raw")
            taken.append(_store(session, repository.chunk_size, path, disk.id, disk.alias, disk.size))
        point_id = session.commit(
            Manifest(
                vm=Vm(name=vm.name, id=vm.id, engine=engine.id, cluster=vm.cluster),
                time=datetime.now(UTC),
                consistency="crash",
                disks=tuple(taken),
                artifacts=tuple(stored),
            )
        )
    return repository.load_point(point_id)


def _store(session: Any, chunk: int, path: Path, disk_id: str, alias: str, size: int) -> Disk:
    writer = session.map_writer(size, EMPTY)
    zeros = bytes(chunk)
    with path.open("rb") as file:
        for index in range(-(-size // chunk)):
            data = file.read(chunk).ljust(chunk, b"\0")
            if data != zeros:
                writer.set(index, session.store_blob(Kind.DATA, data).id)
    written = writer.finish()
    return Disk(id=disk_id, alias=alias, size=size, root=written.root, allocated=written.allocated)
