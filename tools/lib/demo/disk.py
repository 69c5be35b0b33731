"""Disks with file systems in them: made, filled, changed, mounted. Needs root."""

from __future__ import annotations

import contextlib
import os
import random
import shlex
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import copying

from .terminal import MIB, DemoError, run, tell

SECTOR = 512
RELEASE_SECONDS = 30


class Partition(NamedTuple):
    """A partition of the demo's disk. Bytes."""

    number: int
    start: int
    length: int
    file_system: str
    sources: tuple[str, ...]
    """Where its files are copied from."""
    clone_options: str
    """Mount options for a restore point's copy of the file system, in a file."""


PARTITIONS = (
    Partition(1, 1 * MIB, 480 * MIB, "ext4", ("/usr/lib", "/usr/libexec"), "ro,loop"),
    # XFS refuses two file systems with one UUID, and the same disk at two points in time is just that.
    Partition(2, 481 * MIB, 542 * MIB, "xfs", ("/usr/share", "/usr/bin", "/usr/sbin"), "ro,loop,nouuid"),
)
DISK_SIZE = 1024 * MIB
FILES_PER_PARTITION = 280 * MIB


def make_disk(disk: Path) -> None:
    """A GPT disk with empty file systems."""
    run("truncate", "-s", str(DISK_SIZE), disk)
    table = "label: gpt\n" + "".join(
        f"start={part.start // SECTOR}, size={part.length // SECTOR}, type=linux\n" for part in PARTITIONS
    )
    tell(f"$ sfdisk {disk} <<< {shlex.quote(table)}")
    subprocess.run(["sfdisk", "--quiet", str(disk)], input=table, text=True, check=True)
    for part in PARTITIONS:
        with loop_device(disk, part) as device:
            run(f"mkfs.{part.file_system}", "-q", device)


@contextlib.contextmanager
def loop_device(disk: Path, part: Partition, *options: str) -> Iterator[str]:
    """A partition of a disk as a block device. Not by `mount -o loop`, which could take up the read-only
    device of the mount before, if the kernel has not let go of it yet."""
    place = ("--offset", str(part.start), "--sizelimit", str(part.length))
    device = run("losetup", "--find", "--show", *options, *place, disk).strip()
    try:
        yield device
    finally:
        run("losetup", "--detach", device)
        wait_for_release(disk)


def wait_for_release(file: Path) -> None:
    """The kernel lets go of a loop device when nobody has it open any more, and only then is all of it
    written: whoever looks at every device or has a mount namespace of his own can put that off."""
    end = time.monotonic() + RELEASE_SECONDS
    while run("losetup", "--noheadings", "--associated", file, show=False).strip():
        if time.monotonic() > end:
            raise DemoError(f"{file}: its loop device is still in use after {RELEASE_SECONDS} seconds")
        time.sleep(0.05)


@contextlib.contextmanager
def mounted(device: str | Path, part: Partition, mountpoint: Path, options: str) -> Iterator[Path]:
    """A file system, by the kernel."""
    mountpoint.mkdir(parents=True, exist_ok=True)
    run("mount", "-t", part.file_system, "-o", options, device, mountpoint)
    try:
        yield mountpoint
    finally:
        run("umount", mountpoint)
        if "loop" in options.split(","):
            wait_for_release(Path(device))


@contextlib.contextmanager
def mounted_partition(disk: Path, part: Partition, *, write: bool) -> Iterator[Path]:
    """A file system of a whole disk."""
    options = "rw" if write else "ro"
    if write and part.file_system == "xfs":
        # Or XFS puts 64 KiB by for each file until it is written out: thousands of them fill the volume
        # where that takes its time, on a busy machine.
        options += ",allocsize=4k"
    with (
        loop_device(disk, part, *(() if write else ("--read-only",))) as device,
        mounted(device, part, Path(f"p{part.number}"), options) as root,
    ):
        yield root


def fill(part: Partition, root: Path) -> None:
    """Copy files of this machine, the same ones every time, and make some of the awkward kinds."""
    chosen = list(choose(part.sources, FILES_PER_PARTITION))
    tell(f"copying {len(chosen):,} files and links from {', '.join(part.sources)}")
    if not copying.copy_files(chosen, root):
        raise DemoError("copying files failed")
    odd = root / "odd"
    odd.mkdir()
    (odd / "empty").touch()
    (odd / ("long name " * 20).strip()).write_text("a file with a long name\n")
    (odd / "naïve 名前 \n newline").write_text("a file with an awkward name\n")
    os.link(odd / "empty", odd / "hard link")
    (odd / "dangling").symlink_to("nowhere/at/all")
    with (odd / "sparse").open("wb") as file:
        file.truncate(50 * MIB)
        file.seek(20 * MIB)
        file.write(b"an island")
    os.chown(odd / "empty", 1234, 4321)
    (odd / "empty").chmod(0o6711)


def choose(sources: Sequence[str], budget: int) -> Iterator[str]:
    """Files below `sources`, relative to /, whose contents fit in `budget` bytes."""
    for source in sources:
        for folder, folders, names in os.walk(source):
            folders.sort()
            for name in sorted(names):
                path = os.path.join(folder, name)
                if os.path.islink(path):
                    yield path.lstrip("/")
                elif os.path.isfile(path) and (size := os.path.getsize(path)) <= min(budget, 16 * MIB):
                    # What a file takes on disk is more than what is in it.
                    budget -= size + 4096
                    yield path.lstrip("/")
            if budget < 64 * 1024:
                return


def change(root: Path, part: Partition) -> Path:
    """What a day does to a disk. Gives a file that is deleted, relative to `root`."""
    order = random.Random(part.number)  # noqa: S311 - the same choice every time is what is wanted
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    sizes = {path: path.stat().st_size for path in files}
    large = sorted(files, key=lambda path: (-sizes[path], str(path)))
    deleted = large[3]
    small = [path for path in files if path not in large[:20] and "odd" not in path.parts]
    order.shuffle(small)
    deletions, appended, moved = small[:40], small[40:60], small[60:70]
    for path in (deleted, *deletions):
        path.unlink()
    for path in appended:
        with path.open("ab") as file:
            file.write(b"appended\n" * 100)
    with large[0].open("r+b") as file:  # in place, in the middle
        file.seek(sizes[large[0]] // 2)
        file.write(order.randbytes(300_000))
    with large[1].open("r+b") as file:  # data becomes zeros: that must come back as zeros
        file.write(bytes(512 * 1024))
    os.truncate(large[2], sizes[large[2]] // 3)
    new = root / "new"
    new.mkdir()
    for number in range(20):
        (new / f"report-{number}.bin").write_bytes(order.randbytes(100_000))
    for path in moved:
        path.rename(new / f"moved-{path.name}")
    (root / "odd" / "empty").chmod(0o600)
    (root / "odd" / "dangling").unlink()
    (root / "odd" / "dangling").symlink_to("somewhere/else")
    tell(
        f"{part.file_system}: {len(deletions) + 1} files deleted, {len(appended)} appended to, 3 large ones "
        f"changed in the middle, {len(moved)} moved, 20 made"
    )
    return deleted.relative_to(root)


def scribble(root: Path) -> None:
    """What the guest does while its backup is taken: nothing of it may be in the restore point."""
    (root / "too late.bin").write_bytes(os.urandom(5 * MIB))
    for number in range(0, 20, 2):
        (root / "new" / f"report-{number}.bin").write_bytes(b"overwritten during the backup" * 3000)
    (root / "new" / "report-1.bin").unlink()
