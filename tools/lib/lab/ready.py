"""The VMs of `tools/lab up`."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from lab import guest
from lab.lab import DEFAULT, LEGACY, DiskRecipe, Lab, LabVm

MIB = 1 << 20


@dataclass(frozen=True)
class ReadyVm:
    """A VM, and how its guest writes."""

    vm: LabVm
    what: str
    file_systems: bool


def create(lab: Lab) -> dict[str, ReadyVm]:
    """By name. Without root there is none with file systems."""
    made: dict[str, ReadyVm] = {}
    if guest.can_mount():
        disk = lab.folder / "web.raw"
        guest.make_disk(disk)
        recipe = DiskRecipe("web_system", guest.DISK_SIZE, bootable=True, source=disk)
        vm = lab.create_vm("web", [recipe], cluster=DEFAULT, description="a web server")
        disk.unlink()
        made["web"] = ReadyVm(vm, "one qcow2 disk: GPT with ext4 and XFS, full of files", True)
    chunks = [(16 * MIB, _noise(1, 8 * MIB)), (100 * MIB, _noise(2, 4 * MIB))]
    vm = lab.create_vm("db", [DiskRecipe("db_data", 128 * MIB, format="raw", bootable=True, chunks=chunks)])
    made["db"] = ReadyVm(vm, "one raw disk: always backed up in full", False)
    recipes = [
        DiskRecipe("files_system", 128 * MIB, bootable=True, chunks=[(0, _noise(3, 16 * MIB))]),
        DiskRecipe("files_raw", 64 * MIB, format="raw", chunks=[(MIB, _noise(4, MIB))]),
        DiskRecipe("files_old", 128 * MIB, snapshots=1, chunks=[(32 * MIB, _noise(5, 8 * MIB))]),
    ]
    vm = lab.create_vm("files", recipes, cluster=LEGACY)
    made["files"] = ReadyVm(vm, "three disks: qcow2, raw, qcow2 with a snapshot; live backups", False)
    return made


def write(ready: ReadyVm, seed: int) -> int:
    """The guest works a little. Gives the bytes it wrote."""
    if ready.file_systems and guest.can_mount():
        return sum(guest.change_files(ready.vm.machine, disk_id, seed) for disk_id in ready.vm.disks.values())
    return guest.scribble(ready.vm.machine, list(ready.vm.disks.values()), seed)


def _noise(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)  # noqa: S311 - the same every time


def default_folder() -> Path:
    """Where `tools/lab` keeps its lab."""
    import os

    return Path(os.environ.get("VMFS_LAB_DIR", f"/var/tmp/vmfs-lab-{os.getuid()}"))  # noqa: S108
