"""Snapshots of the classic kind: what was overwritten in the origin is copied to a store first.

From drivers/md/dm-snap-persistent.c of Linux. All is little-endian and counted in the store's chunks:
a header, then areas of one chunk that list exceptions (old chunk, new chunk), each followed by as many chunks
of data as it has entries. The list ends with an entry whose new chunk is 0.
"""

from __future__ import annotations

import struct
import threading
from array import array
from bisect import bisect_left
from collections.abc import Iterator

from vmfs.volumes.damage import Unmappable, VolumeDamagedError
from vmfs.volumes.pieces import Joined, LaidSpace, Part, Zeros
from vmfs.volumes.remapped import Remapped, Run

HEADER = struct.Struct("<4sIII")
MAGIC = b"SnAp"
VERSION = 1
SECTOR = 512
MAX_CHUNK = 1 << 26
MAX_EXCEPTIONS = 1 << 21
"""8 GiB of changes in the chunks of 4 KiB that LVM2 takes unless asked."""
ENTRY = 16


def open_snapshot(origin: LaidSpace, store: LaidSpace, size: int) -> LaidSpace:
    """The state of `origin` that `store` keeps, of `size` bytes. Raises Unmappable when the store is damaged
    or ran full, and what reading raises."""
    header = store.read(0, HEADER.size)
    if len(header) < HEADER.size or not any(header):
        # Never written to: the header comes with the first activation.
        return _sized(origin, size)
    magic, valid, version, sectors = HEADER.unpack(header)
    chunk = sectors * SECTOR
    if magic != MAGIC or version != VERSION or not SECTOR <= chunk <= MAX_CHUNK:
        raise Unmappable("the store of its snapshot is damaged")
    if valid != 1:
        raise Unmappable("the snapshot is no longer valid: its store ran full, or it was dropped")
    exceptions = _Exceptions(store, chunk)
    return Remapped(_sized(origin, size), store, chunk, exceptions.runs)


def _sized(origin: LaidSpace, size: int) -> LaidSpace:
    """An origin that was grown or shrunk since."""
    if origin.size >= size:
        return Part(origin, 0, size)
    return Joined([origin, Zeros(size - origin.size)])


class _Exceptions:
    """The list of what was copied, read when it is first asked for. Thread-safe."""

    def __init__(self, store: LaidSpace, chunk: int) -> None:
        self._store = store
        self._chunk = chunk
        self._lock = threading.Lock()
        self._lists: tuple[array[int], array[int]] | None = None

    def runs(self, first: int, end: int) -> Iterator[Run]:
        with self._lock:
            if self._lists is None:
                self._lists = self._load()
        old, new = self._lists
        index = bisect_left(old, first)
        while index < len(old) and old[index] < end:
            begin = index
            index += 1
            while (
                index < len(old)
                and old[index] < end
                and old[index] - old[begin] == new[index] - new[begin] == index - begin
            ):
                index += 1
            yield Run(old[begin], new[begin], index - begin)

    def _load(self) -> tuple[array[int], array[int]]:
        per_area = self._chunk // ENTRY
        chunks = self._store.size // self._chunk
        found: list[int] = []
        # Chunk 0 is the header.
        for area in range(1, chunks, per_area + 1):
            values = struct.unpack(
                f"<{2 * per_area}Q", self._store.read(area * self._chunk, per_area * ENTRY)
            )
            for index in range(0, 2 * per_area, 2):
                old, new = values[index], values[index + 1]
                if new == 0:
                    return _sorted(found)
                if new >= chunks or old >= 1 << 55:
                    raise VolumeDamagedError("the list of a snapshot's exceptions is damaged")
                found.append(old << 64 | new)
            if len(found) > MAX_EXCEPTIONS:
                raise VolumeDamagedError(f"a snapshot has more than {MAX_EXCEPTIONS} exceptions")
        return _sorted(found)


def _sorted(found: list[int]) -> tuple[array[int], array[int]]:
    """From (old chunk << 64 | new chunk)."""
    found.sort()
    return array("Q", (item >> 64 for item in found)), array("Q", (item & (1 << 64) - 1 for item in found))
