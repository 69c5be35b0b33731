"""The disk that is backed up: a GPT image with one ext4 partition, full of this machine's own files."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import copying

from .process import BenchError, output, say

MIB = 1 << 20
PARTITION_START = MIB
CHANGE_SIZE = 64 * 1024


def make_image(path: Path, size: int, data: int, sources: Sequence[Path]) -> None:
    """Make a disk image of `size` bytes holding about `data` bytes of files from `sources`. Needs root.

    The choice of files is the same every time on the same machine. Raises BenchError when the sources
    have too little.
    """
    say(f"making {path.name}: {size / MIB:.0f} MiB, {data / MIB:.0f} MiB of files")
    chosen = list(_choose(sources, data))
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    with partial.open("wb") as file:
        file.truncate(size)
    _run(["sfdisk", "--quiet", str(partial)], "label: gpt\nstart=2048, type=linux\n")
    length = size - 2 * PARTITION_START
    options = f"offset={PARTITION_START},lazy_itable_init=0,lazy_journal_init=0,nodiscard"
    _run(["mkfs.ext4", "-q", "-F", "-m", "0", "-E", options, str(partial), f"{length // 1024}k"])
    mountpoint = path.with_suffix(".mnt")
    mountpoint.mkdir(exist_ok=True)
    loop = f"loop,offset={PARTITION_START},sizelimit={length}"
    _run(["mount", "-o", loop, str(partial), str(mountpoint)])
    try:
        if not copying.copy_files(chosen, mountpoint):
            raise BenchError("copying files into the image failed")
    finally:
        _run(["umount", str(mountpoint)])
        mountpoint.rmdir()
    partial.rename(path)


def _choose(sources: Sequence[Path], budget: int) -> Iterator[str]:
    """Files to copy, relative to /, till their contents make `budget` bytes."""
    left = budget
    seen: set[tuple[int, int]] = set()
    for source in sources:
        device = source.stat().st_dev
        for folder, folders, names in os.walk(source):
            folders.sort()
            if os.lstat(folder).st_dev != device:
                folders.clear()
                continue
            for name in sorted(names):
                path = os.path.join(folder, name)
                status = os.lstat(path)
                if not os.path.isfile(path) or os.path.islink(path) or (status.st_dev, status.st_ino) in seen:
                    continue
                seen.add((status.st_dev, status.st_ino))
                if status.st_size > left:
                    continue
                left -= status.st_size
                yield path.lstrip("/")
                if left < 64 * 1024:
                    return
    if left > budget // 50:
        raise BenchError(
            f"{', '.join(map(str, sources))}: {left / MIB:.0f} MiB too few for the image; "
            "name more folders with --source, or a smaller --data"
        )


def _run(argv: Sequence[str], text: str = "") -> None:
    result = subprocess.run(argv, input=text, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise BenchError(f"{' '.join(argv)}: {result.stderr.strip()}")


def data_regions(path: Path, length: int) -> list[int]:
    """Offsets of aligned regions of `length` bytes that are data and not holes, in a fixed random order."""
    size = path.stat().st_size
    dense = []
    with path.open("rb") as file:
        for offset in range(0, size - length + 1, length):
            if _allocated(file.fileno(), offset, offset + length) >= length * 0.98:
                dense.append(offset)
    shuffled(dense, "regions")
    return dense


def shuffled(items: list[int], seed: str) -> None:
    """Put `items` in an order that is the same in every run."""
    random.Random(seed).shuffle(items)  # noqa: S311 - repeatable is what is wanted


def _allocated(fd: int, start: int, end: int) -> int:
    total = 0
    while start < end:
        try:
            begin = os.lseek(fd, start, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole is left
            break
        if begin >= end:
            break
        start = min(os.lseek(fd, begin, os.SEEK_HOLE), end)
        total += start - begin
    return total


def changes(path: Path, fraction: float, seed: str) -> list[tuple[int, bytes]]:
    """Scattered 64 KiB writes that make up `fraction` of the disk: (offset, bytes).

    The bytes are of the same kind as the disk's own (a block from elsewhere on it), with a stamp in each
    4 KiB that makes them new to any deduplication.
    """
    offsets = data_regions(path, CHANGE_SIZE)
    count = max(1, round(path.stat().st_size * fraction / CHANGE_SIZE))
    shuffled(offsets, f"targets {seed}")
    origins = list(offsets)
    shuffled(origins, f"origins {seed}")
    if count > len(offsets):
        raise BenchError(f"{path}: too little data for changing {fraction:.1%} of it")
    made = []
    with path.open("rb") as file:
        for offset, origin in zip(offsets[:count], origins, strict=False):
            block = bytearray(os.pread(file.fileno(), CHANGE_SIZE, origin))
            for position in range(0, CHANGE_SIZE, 4096):
                stamp = f"{seed}/{offset + position}/".encode()
                block[position : position + len(stamp)] = stamp
            made.append((offset, bytes(block)))
    return made


def apply(path: Path, writes: Iterable[tuple[int, bytes]]) -> None:
    """Make the writes to a raw image, or to a disk that qemu shows as a file."""
    with path.open("r+b") as file:
        for offset, block in writes:
            os.pwrite(file.fileno(), block, offset)
        os.fsync(file.fileno())


def make_overlay(path: Path, base: Path) -> None:
    """A qcow2 that shows `base` and keeps what is written for itself."""
    path.unlink(missing_ok=True)
    output(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", path])
