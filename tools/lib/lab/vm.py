"""A VM of the lab, as tests and commands have it in hand."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lab.engine import snapshots, vms
from lab.engine.model import Snapshot, Vm, new_id
from lab.machine import DiskImage, Machine
from lab.qemu_img import DRIVERS, qemu_img

if TYPE_CHECKING:
    from lab.lab import Lab

READY_SECONDS = 60


@dataclass(frozen=True)
class DiskRecipe:
    """A disk for a new VM. `size` in bytes. `source`: a raw file with its content. `chunks`: what is
    written to it, by offset. `snapshots`: so many snapshots of the VM are taken with this disk in it (and
    only those of the disks that have at least as many)."""

    alias: str
    size: int
    format: str = "cow"
    sparse: bool = True
    interface: str = "virtio_scsi"
    bootable: bool = False
    description: str = ""
    source: Path | None = None
    chunks: Sequence[tuple[int, bytes]] = ()
    snapshots: int = 0


@dataclass
class LabVm:
    """A VM of the lab. `disks`: disk ids by alias."""

    lab: Lab
    id: str
    name: str
    disks: dict[str, str] = field(default_factory=dict)

    @property
    def record(self) -> Vm:
        """What the engine knows of it."""
        return self.lab.core.vm(self.id)

    @property
    def machine(self) -> Machine:
        return self.record.machine

    def write(self, alias: str, offset: int, data: bytes) -> None:
        """As the guest."""
        self.machine.write(self.disks[alias], offset, data)

    def start(self) -> None:
        """Start it and wait until it is up."""
        with self.lab.core.lock:
            vms.start(self.lab.core, self.record)
        self._wait("up")

    def stop(self) -> None:
        """Power it off, and wait until it is down."""
        with self.lab.core.lock:
            vms.stop(self.lab.core, self.record)
        self._wait("down")

    def kill(self) -> None:
        """Its qemu is killed: a hard power-off."""
        self.lab.faults.break_("power-off-hard", vm=self.id, up=False)

    def snapshot(self, description: str = "snapshot") -> str:
        """Take one and wait for it. Gives its id."""
        made = Snapshot(new_id(), description, {})
        made.machine_id = made.id
        snapshots.take(self.lab.core, self.record, made)
        return made.id

    def remove_snapshot(self, snapshot_id: str) -> None:
        snapshots.discard(self.lab.core, self.record, snapshots.find(self.record, snapshot_id))

    def _wait(self, status: str) -> None:
        if not self.lab.core.wait(lambda: self.record.status == status, READY_SECONDS):
            raise TimeoutError(f"VM {self.name} is {self.record.status} and not {status}")


def fill(image: DiskImage, recipe: DiskRecipe) -> None:
    """Write a new image's content."""
    if recipe.source is None and not recipe.chunks:
        return
    raw = image.paths[0].with_name("content.raw")
    if recipe.source is not None:
        subprocess.run(["cp", "--sparse=always", recipe.source, raw], check=True)
    with raw.open("r+b" if raw.exists() else "w+b") as file:
        file.truncate(recipe.size)
        for offset, data in recipe.chunks:
            file.seek(offset)
            file.write(data)
    if image.format == "raw":
        shutil.move(raw, image.paths[0])
        return
    driver = DRIVERS[image.format]
    qemu_img("convert", "-q", "-f", "raw", "-O", driver, raw, image.paths[0])
    raw.unlink()
