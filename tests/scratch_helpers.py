"""Guest file systems that lost power in the middle of writes, and what the tests of writable views share."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from mount_helpers import MIB, run, wait_until

START = MIB
"""Where the partition begins on the disk, bytes."""


@dataclass(frozen=True)
class Guest:
    """A file system: how it is made and checked. `dirty` prints the text after it, a regular expression, of
    one that has a journal to replay. `size` is that of its partition, bytes."""

    name: str
    mkfs: tuple[str, ...]
    check: tuple[str, ...]
    dirty: tuple[tuple[str, ...], str]
    size: int

    def skip_without_tools(self) -> None:
        if missing := [tool for tool in (self.mkfs[0], self.check[0]) if shutil.which(tool) is None]:
            pytest.skip(f"needs {missing[0]}")
        if f"\t{self.name}\n" not in Path("/proc/filesystems").read_text():
            pytest.skip(f"needs {self.name} in the kernel")


GUESTS = (
    Guest(
        "ext4",
        ("mkfs.ext4", "-q", "-F"),
        ("fsck.ext4", "-f", "-n"),
        (("dumpe2fs", "-h"), r"needs_recovery"),
        64 * MIB,
    ),
    Guest(
        "xfs",
        ("mkfs.xfs", "-q", "-f"),
        ("xfs_repair", "-n", "-f"),
        (("xfs_repair", "-n", "-f"), r"valuable metadata changes in a log"),
        320 * MIB,
    ),
    Guest(
        "btrfs",
        ("mkfs.btrfs", "-q", "-f"),
        ("btrfs", "check", "--readonly"),
        (("btrfs", "inspect-internal", "dump-super"), r"log_root\s+[1-9]"),
        160 * MIB,
    ),
)


@contextmanager
def loop_mounted(source: Path, place: Path, *options: str) -> Iterator[Path]:
    """The file system in `source`, mounted by the kernel through a loop device."""
    place.mkdir(exist_ok=True)
    done = run("mount", "-o", ",".join(("loop", *options)), source, place)
    assert done.returncode == 0, done.stderr
    try:
        yield place
    finally:
        wait_until(lambda: run("umount", place).returncode == 0)
        # The loop device lets go of the file a little later.
        wait_until(lambda: str(source) not in run("losetup", "-a").stdout)


def power_cut(guest: Guest, tmp_path: Path) -> tuple[Path, Mapping[str, bytes]]:
    """A disk with one partition as it was when the power was cut in the middle of writes, and the files on it
    that had been synced. The disk's image is cloned in an instant, by the XFS that it lies on."""
    host = tmp_path / "host.img"
    with host.open("wb") as file:
        file.truncate(1 << 30)
    assert run("mkfs.xfs", "-q", "-m", "reflink=1", host).returncode == 0
    with loop_mounted(host, tmp_path / "host") as top:
        image = top / "guest.img"
        with image.open("wb") as file:
            file.truncate(START + guest.size + MIB)
        run("sfdisk", "-q", "--no-reread", image, input=f"label: gpt\nstart=1M, size={guest.size // MIB}M\n")
        plain = tmp_path / "part.img"
        with plain.open("wb") as file:
            file.truncate(guest.size)
        done = run(*guest.mkfs, plain)
        assert done.returncode == 0, done.stderr
        run("dd", f"if={plain}", f"of={image}", "bs=1M", "seek=1", "conv=notrunc,sparse")
        plain.unlink()
        options = (f"offset={START}", f"sizelimit={guest.size}")
        with loop_mounted(image, tmp_path / "live", *options) as live:
            synced = _write_and_clone(live, image, top / "cut.img")
        cut = tmp_path / f"{guest.name}.img"
        run("cp", "--sparse=always", top / "cut.img", cut)
    host.unlink()
    return cut, synced


def _write_and_clone(live: Path, image: Path, target: Path) -> Mapping[str, bytes]:
    stop = threading.Event()
    synced: dict[str, bytes] = {}
    (live / "old").mkdir()
    for number in range(20):
        (live / "old" / str(number)).write_bytes(bytes([number]) * 5000)
    os.sync()

    def write() -> None:
        number = 0
        while not stop.is_set():
            name = f"file{number % 150}-{number}"
            data = os.urandom(3000) * (number % 7 + 1)
            with (live / name).open("wb") as file:
                file.write(data)
                if number % 3 == 0:
                    file.flush()
                    os.fsync(file.fileno())
                    synced[name] = data
            if number % 3 == 1:
                (live / name).rename(live / f"moved{number % 40}")
            number += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        wait_until(lambda: len(synced) > 30)
        time.sleep(0.05)
        known = dict(synced)
        done = run("cp", "--reflink=always", image, target)
        assert done.returncode == 0, done.stderr
    finally:
        stop.set()
        writer.join()
    return known


def check_guest(guest: Guest, volume: Path) -> None:
    """The file system is clean, as its own program sees it."""
    done = run(*guest.check, volume)
    assert done.returncode == 0, done.stdout + done.stderr


def check_dirty(guest: Guest, volume: Path) -> None:
    command, text = guest.dirty
    done = run(*command, volume)
    assert re.search(text, done.stdout + done.stderr), done.stdout + done.stderr


def fingerprint(top: Path) -> dict[str, str]:
    """A hash of every file below the directory."""
    return {
        str(path.relative_to(top)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(top.rglob("*"))
        if path.is_file()
    }
