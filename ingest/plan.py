"""From a source's extents to whole chunks: which to read, which are zeros, which are left as they were.

Rules: a chunk that any extent touches is taken whole, for a parent's chunk is never patched; a chunk is zeros
without being read only when extents known to be zeros cover all of it (up to the end of the disk).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ingest.sources.base import Extent, SourceError


class Run(NamedTuple):
    """Chunks [first, first + chunks): to be read, or known to be zeros."""

    first: int
    chunks: int
    zero: bool


class Runs:
    """Runs, ascending. Held in 16 bytes a run, for a large disk may have millions."""

    def __init__(self, runs: Iterable[Run]) -> None:
        self._first = array("Q")
        self._rest = array("Q")
        for run in runs:
            self._first.append(run.first)
            self._rest.append(run.chunks << 1 | run.zero)
        self.chunks_to_read = sum(run.chunks for run in self if not run.zero)

    def __iter__(self) -> Iterator[Run]:
        for first, rest in zip(self._first, self._rest, strict=True):
            yield Run(first, rest >> 1, bool(rest & 1))


class Plan(Runs):
    """The runs of a disk."""

    def __init__(self, extents: Iterable[Extent], size: int, chunk_size: int, *, whole: bool = False) -> None:
        """`size` of the disk and `chunk_size` in bytes; `whole` says that the extents are all of the disk.
        Raises SourceError for extents that are not ascending or not inside the disk, and for a gap in those
        of a whole disk."""
        all_of_it = without_gaps(extents, size) if whole else extents
        super().__init__(merged(classified(all_of_it, size, chunk_size)))


def without_gaps(extents: Iterable[Extent], size: int) -> Iterator[Extent]:
    """The same extents. Raises SourceError when a part of the disk is missing: it would read back as zeros,
    whatever is there."""
    end = 0
    for extent in extents:
        if extent.start != end:
            raise _impossible(extent.start, extent.length)
        end += extent.length
        yield extent
    if end != size:
        raise _impossible(end, 0)


def classified(extents: Iterable[Extent], size: int, chunk_size: int) -> Iterator[Run]:
    """Runs in ascending order, not merged. A chunk that several extents share is held back until the last of
    them has been seen."""
    shared = -1
    covered = 0
    end = 0
    for start, length, zero in extents:
        if start < end or length <= 0 or start + length > size:
            raise _impossible(start, length)
        end = start + length
        first = start // chunk_size
        last = end // chunk_size
        if first != shared:
            if shared >= 0:
                yield Run(shared, 1, covered >= _span(shared, size, chunk_size))
            shared, covered = first, 0
        if first == last:
            covered += length if zero else 0
            continue
        covered += (first + 1) * chunk_size - start if zero else 0
        yield Run(first, 1, covered >= chunk_size)
        if last > first + 1:
            yield Run(first + 1, last - first - 1, zero)
        tail = end - last * chunk_size
        shared, covered = (last, tail if zero else 0) if tail else (-1, 0)
    if shared >= 0:
        yield Run(shared, 1, covered >= _span(shared, size, chunk_size))


def merged(runs: Iterable[Run]) -> Iterator[Run]:
    """Adjacent runs of one sort made one."""
    current: Run | None = None
    for run in runs:
        if current and current.zero == run.zero and current.first + current.chunks == run.first:
            current = Run(current.first, current.chunks + run.chunks, run.zero)
            continue
        if current:
            yield current
        current = run
    if current:
        yield current


def _impossible(start: int, length: int) -> SourceError:
    return SourceError(f"the source lists impossible extents (byte {start}, {length} long)")


def _span(index: int, size: int, chunk_size: int) -> int:
    """Bytes of that chunk that are inside the disk."""
    return min(chunk_size, size - index * chunk_size)
