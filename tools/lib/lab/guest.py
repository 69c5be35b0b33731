"""What guests do with their disks: real file systems, and files that change in them.

A file system is made and changed by the kernel in a file, and what differs is then written through the
machine's virtual disk, as the guest's own kernel would. Needs root, for loop devices and mounts.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from lab import sparse
from lab.machine import Machine

MIB = 1 << 20
SECTOR = 512
BLOCK = 64 << 10


class Partition(NamedTuple):
    """Bytes."""

    start: int
    length: int
    file_system: str


PARTITIONS = (Partition(1 * MIB, 160 * MIB, "ext4"), Partition(161 * MIB, 320 * MIB, "xfs"))
"""XFS wants 300 MiB at least."""
DISK_SIZE = 512 * MIB
FILES = 24 * MIB
"""Bytes of files in each."""


def can_mount() -> bool:
    return os.geteuid() == 0


def make_disk(path: Path) -> None:
    """A raw disk with a GPT and file systems with files of this machine in them."""
    with path.open("wb") as file:
        file.truncate(DISK_SIZE)
    table = "label: gpt\n" + "".join(
        f"start={part.start // SECTOR}, size={part.length // SECTOR}, type=linux\n" for part in PARTITIONS
    )
    subprocess.run(["sfdisk", "--quiet", path], input=table, text=True, check=True)
    for part in PARTITIONS:
        with _loop(path, part) as device:
            subprocess.run([f"mkfs.{part.file_system}", "-q", device], check=True)
            with _mounted(device, part) as root:
                _fill(root)


def change_files(machine: Machine, disk_id: str, seed: int) -> int:
    """What a day does to the file systems of a disk that make_disk made. Gives how many bytes were written to
    the virtual disk."""
    order = random.Random(seed)  # noqa: S311 - not for secrets
    with tempfile.TemporaryDirectory(prefix="lab-guest-", dir="/var/tmp") as folder:
        copy = Path(folder) / "disk.raw"
        machine.record(disk_id, copy)
        before = Path(folder) / "before.raw"
        sparse.copy(copy, before)
        for part in PARTITIONS:
            with _loop(copy, part) as device, _mounted(device, part) as root:
                _change(root, order)
        return _write_differences(machine, disk_id, before, copy)


def _write_differences(machine: Machine, disk_id: str, before: Path, after: Path) -> int:
    written = 0
    with before.open("rb") as old, after.open("rb") as new:
        offset = 0
        while block := new.read(BLOCK):
            if block != old.read(BLOCK):
                machine.write(disk_id, offset, block)
                written += len(block)
            offset += len(block)
    return written


def _fill(root: Path) -> None:
    budget = FILES
    for source in ("/usr/share/doc", "/usr/lib/python3", "/usr/share/perl", "/usr/bin"):
        for folder, _, names in os.walk(source):
            for name in sorted(names):
                path = Path(folder) / name
                size = path.stat().st_size if path.is_file() and not path.is_symlink() else 0
                if 0 < size < min(budget, 2 * MIB):
                    target = root / path.relative_to("/")
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, target)
                    budget -= size + 4096
            if budget < BLOCK:
                return


def _change(root: Path, order: random.Random) -> None:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    for path in order.sample(files, min(10, len(files))):
        path.unlink()
    for path in order.sample(files, min(10, len(files))):
        if path.exists():
            with path.open("ab") as file:
                file.write(order.randbytes(5000))
    for number in range(5):
        (root / f"new-{order.getrandbits(32):08x}-{number}").write_bytes(order.randbytes(100_000))


@contextlib.contextmanager
def _loop(disk: Path, part: Partition) -> Iterator[str]:
    place = ["--offset", str(part.start), "--sizelimit", str(part.length)]
    device = _output("losetup", "--find", "--show", *place, str(disk)).strip()
    try:
        yield device
    finally:
        # Whoever else looks at the device puts off its end, and with it the writing of what is cached.
        with open(device, "rb") as opened:
            os.fsync(opened.fileno())
        subprocess.run(["losetup", "--detach", device], check=True)


@contextlib.contextmanager
def _mounted(device: str, part: Partition) -> Iterator[Path]:
    root = Path(tempfile.mkdtemp(prefix="lab-mount-", dir="/var/tmp"))
    try:
        subprocess.run(["mount", "-t", part.file_system, device, root], check=True)
        try:
            yield root
        finally:
            subprocess.run(["umount", root], check=True)
    finally:
        root.rmdir()


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def scribble(machine: Machine, disk_ids: Sequence[str], seed: int, *, writes: int = 20) -> int:
    """Writes of a guest without file systems: data, zeros, discards, all over its disks. Gives the bytes."""
    order = random.Random(seed)  # noqa: S311 - not for secrets
    done = 0
    for number in range(writes):
        disk_id = disk_ids[number % len(disk_ids)]
        size = machine.disks[disk_id].size
        length = order.choice((4096, 65536, 200_704))
        offset = order.randrange(0, size - length) // 512 * 512
        kind = order.random()
        if kind < 0.8:
            machine.write(disk_id, offset, order.randbytes(length))
        elif kind < 0.9:
            machine.zero(disk_id, offset, length)
        else:
            machine.discard(disk_id, offset, length)
        done += length
    return done
