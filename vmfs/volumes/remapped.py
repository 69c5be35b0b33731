"""A space of which some chunks lie elsewhere: thin volumes, and snapshots that copy on write."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from vmfs.volumes.damage import VolumeDamagedError
from vmfs.volumes.pieces import Ground, LaidSpace, Pieces, bounds, clipped, footprint, merged, moved


class Run(NamedTuple):
    """Chunks [first, first + chunks) lie in the store from its chunk `stored` on."""

    first: int
    stored: int
    chunks: int


Runs = Callable[[int, int], Iterator[Run]]
"""The runs within chunks [first, end), ascending. Raises VolumeDamagedError."""


class Remapped:
    """Chunks of `chunk` bytes that `runs` knows lie in `store`, all others where they are, in `base`.
    `also` are spaces that the answer of `runs` comes from."""

    def __init__(
        self, base: LaidSpace, store: LaidSpace, chunk: int, runs: Runs, also: Sequence[LaidSpace] = ()
    ) -> None:
        self.size = base.size
        self.base = base
        self.store = store
        self.chunk = chunk
        self._runs = runs
        self._also = tuple(also)

    def read(self, offset: int, length: int) -> bytes:
        length = clipped(self.size, offset, length)
        if not length:
            return b""
        parts = []
        for start, size, stored in self._ranges(offset, offset + length):
            data = self.base.read(start, size) if stored is None else self.store.read(stored, size)
            if len(data) != size:
                raise VolumeDamagedError("a chunk of the volume lies beyond the end of what stores it")
            parts.append(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def extents(self, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int, bool]]:
        start, end = bounds(self.size, start, end)
        return merged(self._extents(start, end))

    def _extents(self, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
        for first, size, stored in self._ranges(start, end):
            if stored is None:
                yield from self.base.extents(first, first + size)
            elif stored + size <= self.store.size:
                yield from moved(self.store.extents(stored, stored + size), first - stored)
            else:
                yield first, size, False

    def _ranges(self, start: int, end: int) -> Iterator[tuple[int, int, int | None]]:
        """[start, end) as (start, length, where in the store, or None for the base)."""
        chunk = self.chunk
        for first, stored, count in self._runs(start // chunk, -(-end // chunk)):
            low, high = max(start, first * chunk), min(end, (first + count) * chunk)
            if low >= high:
                continue
            if start < low:
                yield start, low - start, None
            yield low, high - low, stored * chunk + low - first * chunk
            start = high
        if start < end:
            yield start, end - start, None

    def copies(self) -> Sequence[Pieces]:
        return ()

    def footprint(self) -> Sequence[Ground]:
        return footprint((self.base, self.store, *self._also))
