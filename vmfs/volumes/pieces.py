"""Spaces made of parts of other spaces: a slice, a concatenation, stripes, mirror legs.

Whoever makes one has checked that what it refers to lies within the spaces below: these classes only compute.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple, Protocol

from vmfs.errors import VmfsError
from vmfs.volumes.space import Extent, Space

MAX_PIECES = 1 << 16
"""More pieces than a reader ahead could make use of; a volume of more does not tell them."""


class Piece(NamedTuple):
    """Bytes [start, start + length) of a volume lie on the point's disk number `disk`, from `offset` on."""

    start: int
    length: int
    disk: int
    offset: int


class Ground(NamedTuple):
    """Bytes [offset, offset + length) of the point's disk number `disk`."""

    disk: int
    offset: int
    length: int


Pieces = Sequence[Piece]
"""Of a whole volume, in order and without gaps."""


class LaidSpace(Space, Protocol):
    """A Space that knows where on the point's disks it lies."""

    def copies(self) -> Sequence[Pieces]:
        """The volume, as often as it is there: once, or more often for a mirror. Copies may have pieces in
        common. Empty when the volume is no plain concatenation."""

    def footprint(self) -> Sequence[Ground]:
        """All that the content depends on: where none of these bytes differ, nor does the content. It may be
        more than needed, and overlap."""


class WholeDisk:
    """A disk of the point, under its number."""

    def __init__(self, disk: Space, number: int) -> None:
        self.size = disk.size
        self.number = number
        self.read = disk.read
        self.extents = disk.extents

    def copies(self) -> Sequence[Pieces]:
        return ((Piece(0, self.size, self.number, 0),) if self.size else (),)

    def footprint(self) -> Sequence[Ground]:
        return (Ground(self.number, 0, self.size),) if self.size else ()


class Zeros:
    """`size` bytes that are all zeros."""

    def __init__(self, size: int) -> None:
        self.size = size

    def read(self, offset: int, length: int) -> bytes:
        return bytes(clipped(self.size, offset, length))

    def extents(self, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int, bool]]:
        start, end = bounds(self.size, start, end)
        if start < end:
            yield Extent(start, end - start, True)

    def copies(self) -> Sequence[Pieces]:
        return ()

    def footprint(self) -> Sequence[Ground]:
        return ()


class Part:
    """Bytes [start, start + size) of another space."""

    def __init__(self, space: LaidSpace, start: int, size: int) -> None:
        if not 0 <= start <= start + size <= space.size:
            raise ValueError(f"[{start}, {start + size}) is not within {space.size} bytes")
        self.space: LaidSpace = space.space if isinstance(space, Part) else space
        self.start: int = start + space.start if isinstance(space, Part) else start
        self.size = size

    def read(self, offset: int, length: int) -> bytes:
        length = clipped(self.size, offset, length)
        return self.space.read(self.start + offset, length) if length else b""

    def extents(self, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int, bool]]:
        start, end = bounds(self.size, start, end)
        if start < end:
            yield from moved(self.space.extents(self.start + start, self.start + end), -self.start)

    def copies(self) -> Sequence[Pieces]:
        return tuple(self._within(pieces) for pieces in self.space.copies())

    def _within(self, pieces: Pieces) -> Pieces:
        found = []
        end = self.start + self.size
        # Pieces are without gaps, so the first that matters is the last that starts at or before us.
        first = bisect_right(pieces, self.start, key=lambda piece: piece.start) - 1
        for piece in pieces[max(0, first) :]:
            low, high = max(piece.start, self.start), min(piece.start + piece.length, end)
            if piece.start >= end:
                break
            if low < high:
                found.append(
                    Piece(low - self.start, high - low, piece.disk, piece.offset + low - piece.start)
                )
        return tuple(found)

    def footprint(self) -> Sequence[Ground]:
        copies = self.copies()
        if not copies:
            return self.space.footprint()
        grounds = (Ground(piece.disk, piece.offset, piece.length) for pieces in copies for piece in pieces)
        return tuple(dict.fromkeys(grounds))


class Joined:
    """Spaces one after the other."""

    def __init__(self, parts: Sequence[LaidSpace]) -> None:
        self.parts = tuple(part for part in parts if part.size)
        ends = list(accumulate(part.size for part in self.parts))
        self.size = ends[-1] if ends else 0
        self._starts = [0, *ends[:-1]] if ends else []

    def read(self, offset: int, length: int) -> bytes:
        length = clipped(self.size, offset, length)
        if not length:
            return b""
        index = bisect_right(self._starts, offset) - 1
        inner = offset - self._starts[index]
        if inner + length <= self.parts[index].size:
            return self.parts[index].read(inner, length)
        data = []
        while length:
            part = self.parts[index]
            count = min(length, part.size - inner)
            data.append(part.read(inner, count))
            length -= count
            inner = 0
            index += 1
        return b"".join(data)

    def extents(self, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int, bool]]:
        start, end = bounds(self.size, start, end)
        return merged(self._extents(start, end))

    def _extents(self, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
        index = max(0, bisect_right(self._starts, start) - 1)
        while start < end:
            first, part = self._starts[index], self.parts[index]
            until = min(end, first + part.size)
            yield from moved(part.extents(start - first, until - first), first)
            start = until
            index += 1

    def copies(self) -> Sequence[Pieces]:
        below = [part.copies() for part in self.parts]
        if not all(below):
            return ()
        # Where only some parts are mirrors, the others are in all copies.
        return tuple(
            pieces
            for number in range(max(map(len, below), default=1))
            if (pieces := self._row([copies[min(number, len(copies) - 1)] for copies in below])) is not None
        )

    def _row(self, parts: Sequence[Pieces]) -> Pieces | None:
        if sum(map(len, parts)) > MAX_PIECES:
            return None
        return tuple(
            piece._replace(start=first + piece.start)
            for first, pieces in zip(self._starts, parts, strict=True)
            for piece in pieces
        )

    def footprint(self) -> Sequence[Ground]:
        return footprint(self.parts)


class Mirror:
    """Legs with the same content. Where one cannot be read the next is."""

    def __init__(self, legs: Sequence[LaidSpace]) -> None:
        self.legs = tuple(legs)
        self.size = min(leg.size for leg in legs)

    def read(self, offset: int, length: int) -> bytes:
        length = clipped(self.size, offset, length)
        *others, last = self.legs
        for leg in others:
            try:
                return leg.read(offset, length)
            except VmfsError:
                continue
        return last.read(offset, length)

    def extents(self, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int, bool]]:
        start, end = bounds(self.size, start, end)
        return self.legs[0].extents(start, end)

    def copies(self) -> Sequence[Pieces]:
        legs = [Part(leg, 0, self.size).copies() for leg in self.legs]
        return tuple(pieces for copies in legs for pieces in copies) if all(legs) else ()

    def footprint(self) -> Sequence[Ground]:
        return footprint(self.legs)


Place = Callable[[int], tuple[int, int]]
"""Number of a chunk of the volume -> number of the column it lies in, and its row there."""


class Striped:
    """Chunks of `chunk` bytes dealt out over columns: chunk n lies at `row * chunk` of a column, which of
    them `place` says. A row of all columns holds `chunks_per_row` chunks that follow each other."""

    def __init__(
        self, columns: Sequence[LaidSpace], chunk: int, size: int, place: Place, chunks_per_row: int
    ) -> None:
        self.columns = tuple(columns)
        self.chunk = chunk
        self.size = size
        self._place = place
        self._chunks_per_row = chunks_per_row

    def read(self, offset: int, length: int) -> bytes:
        length = clipped(self.size, offset, length)
        if not length:
            return b""
        # Chunks that follow each other in a column are read at once.
        runs: dict[int, list[_Run]] = {}
        parts: list[tuple[_Run, int, int]] = []
        end = offset + length
        while offset < end:
            number, inner = divmod(offset, self.chunk)
            count = min(self.chunk - inner, end - offset)
            column, row = self._place(number)
            at = row * self.chunk + inner
            known = runs.setdefault(column, [])
            if not known or known[-1].end != at:
                known.append(_Run(at))
            parts.append((known[-1], at - known[-1].start, count))
            known[-1].end += count
            offset += count
        for column, known in runs.items():
            for run in known:
                run.data = memoryview(self.columns[column].read(run.start, run.end - run.start))
        return b"".join(run.data[start : start + count] for run, start, count in parts)

    def extents(self, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int, bool]]:
        start, end = bounds(self.size, start, end)
        return merged(self._extents(start, end))

    def _extents(self, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """A row of chunks is a hole when it is one in every column."""
        per_row = self._chunks_per_row * self.chunk
        low = start // per_row * self.chunk
        high = -(-end // per_row) * self.chunk
        for first, until, zero in all_zero(self.columns, low, high):
            if zero:
                # Only whole rows: the rest of a row that data begins in is data.
                first_row, end_row = -(-first // self.chunk), until // self.chunk
                if until == high:
                    end_row = -(-until // self.chunk)
                first_byte, end_byte = max(start, first_row * per_row), min(end, end_row * per_row)
                if first_byte < end_byte:
                    if start < first_byte:
                        yield Extent(start, first_byte - start, False)
                    yield Extent(first_byte, end_byte - first_byte, True)
                    start = end_byte
        if start < end:
            yield Extent(start, end - start, False)

    def copies(self) -> Sequence[Pieces]:
        return ()

    def footprint(self) -> Sequence[Ground]:
        return footprint(self.columns)


class _Run:
    """A read of one column, from `start` to `end`."""

    __slots__ = ("data", "end", "start")

    def __init__(self, start: int) -> None:
        self.start = start
        self.end = start
        self.data = memoryview(b"")


def all_zero(columns: Sequence[LaidSpace], start: int, end: int) -> Iterator[tuple[int, int, bool]]:
    """[start, end) of the columns as (start, end, whether it is zeros in all of them); what is beyond the end
    of a column counts as zeros."""
    walks = [column.extents(start, min(end, column.size)) for column in columns if column.size > start]
    heads = [next(walk, None) for walk in walks]
    while start < end:
        until, zero = end, True
        for index, walk in enumerate(walks):
            head = heads[index]
            while head is not None and head[0] + head[1] <= start:
                head = next(walk, None)
            heads[index] = head
            if head is not None:
                until = min(until, head[0] + head[1])
                zero = zero and head[2]
        yield start, until, zero
        start = until


def footprint(spaces: Iterable[LaidSpace]) -> Sequence[Ground]:
    """That of all of them, each place once."""
    return tuple(dict.fromkeys(ground for space in spaces for ground in space.footprint()))


def clipped(size: int, offset: int, length: int) -> int:
    """How many of `length` bytes at `offset` there are in a space of `size` bytes."""
    return max(0, min(length, size - offset)) if offset >= 0 else 0


def bounds(size: int, start: int, end: int | None) -> tuple[int, int]:
    """[start, end) cut to a space of `size` bytes."""
    end = size if end is None else min(end, size)
    return max(0, start), max(0, end)


def moved(extents: Iterable[tuple[int, int, bool]], by: int) -> Iterator[tuple[int, int, bool]]:
    for start, length, zero in extents:
        yield Extent(start + by, length, zero)


def merged(extents: Iterable[tuple[int, int, bool]]) -> Iterator[tuple[int, int, bool]]:
    """Extents of one kind that follow each other, as one."""
    begin, size, kind = 0, 0, False
    for start, length, zero in extents:
        if size and zero is kind:
            size += length
            continue
        if size:
            yield Extent(begin, size, kind)
        begin, size, kind = start, length, zero
    if size:
        yield Extent(begin, size, kind)
