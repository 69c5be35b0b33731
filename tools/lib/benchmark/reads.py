"""Reads of a mounted disk: what they give, bytes and times, as a program that copies files out would see."""

from __future__ import annotations

import mmap
import os
import random
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from .process import BenchError

MIB = 1 << 20


def sequential(path: Path, offset: int, length: int, *, direct: bool) -> float:
    """Read a region in 1 MiB steps. Gives bytes a second."""
    buffer = mmap.mmap(-1, MIB)  # O_DIRECT wants aligned memory
    fd = os.open(path, os.O_RDONLY | (os.O_DIRECT if direct else 0))
    try:
        done = 0
        begin = time.monotonic()
        while done < length:
            count = os.preadv(fd, [buffer], offset + done)
            if count <= 0:
                break
            done += count
        seconds = time.monotonic() - begin
        os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
        buffer.close()
    return done / seconds


def together(path: Path, offsets: Sequence[int], length: int, *, direct: bool) -> float:
    """Read regions as so many programs that read one each, all at once. Gives bytes a second, in sum, from
    the first's begin to the last's end."""
    ready = threading.Barrier(len(offsets))
    spans: list[tuple[float, float]] = []

    def read(offset: int) -> None:
        ready.wait()
        begin = time.monotonic()
        sequential(path, offset, length, direct=direct)
        spans.append((begin, time.monotonic()))

    threads = [threading.Thread(target=read, args=(offset,)) for offset in offsets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(spans) < len(offsets):
        raise BenchError(f"{path}: not every reader came to its end")
    return len(offsets) * length / (max(end for _, end in spans) - min(begin for begin, _ in spans))


def random_reads(path: Path, regions: Sequence[int], region: int, seconds: float, seed: str) -> float:
    """Read 4 KiB at random places in the regions, O_DIRECT, for some seconds. Gives reads a second."""
    places = random.Random(seed)  # noqa: S311 - repeatable is what is wanted
    buffer = mmap.mmap(-1, 4096)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        count = 0
        begin = time.monotonic()
        while (took := time.monotonic() - begin) < seconds:
            os.preadv(fd, [buffer], places.choice(regions) + places.randrange(region // 4096) * 4096)
            count += 1
    finally:
        os.close(fd)
        buffer.close()
    return count / took


def warm(root: Path) -> None:
    """Bring a file, or every file of a folder, into the page cache."""
    files = [root] if root.is_file() else [path for path in root.rglob("*") if path.is_file()]
    buffer = bytearray(4 * MIB)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def read_ahead(mountpoint: Path) -> Path:
    """Where the kernel keeps the read-ahead of a mount, KiB."""
    device = mountpoint.stat().st_dev
    return Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")


def differs(path: Path, original: Path, offsets: Sequence[int], length: int) -> int | None:
    """The first of the offsets at which `length` bytes of the two are not the same, or None."""
    with path.open("rb", buffering=0) as file, original.open("rb", buffering=0) as expected:
        for offset in offsets:
            if os.pread(file.fileno(), length, offset) != os.pread(expected.fileno(), length, offset):
                return offset
    return None
