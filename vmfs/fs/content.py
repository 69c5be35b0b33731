"""What an open file reads from. Offsets are bytes from the start of the file."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Protocol

from vmfs.volumes.space import Space


class DiskReader(Protocol):
    """The part of `vmfs.repo.reader.DiskReader` that a mount needs. It is a Space."""

    size: int
    chunk_size: int

    def read(self, offset: int, length: int) -> bytes: ...

    def extents(self, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int, bool]]: ...

    def cached(self, offset: int, length: int) -> bytes | None: ...

    def chunk_ids(self, first: int, count: int) -> list[bytes | None]: ...


class Content(Protocol):
    size: int

    def cached(self, offset: int, length: int) -> bytes | None:
        """What `read` would give if that can be had at once; else None."""

    def read(self, offset: int, length: int) -> bytes:
        """Bytes [offset, offset + length), clipped at the end. May block; raises IntegrityError and
        StoreError."""


class BytesContent:
    """A small file, whole in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def cached(self, offset: int, length: int) -> bytes | None:
        return self.read(offset, length)

    def read(self, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length]


class DiskContent:
    """The part [start, start + size) of a disk: all of it, or one volume. `disk` tells it from others,
    to people too."""

    def __init__(self, disk: str, reader: DiskReader, start: int, size: int) -> None:
        self.disk = disk
        self.reader = reader
        self.start = start
        self.size = size

    def cached(self, offset: int, length: int) -> bytes | None:
        return self.reader.cached(self.start + offset, min(length, max(0, self.size - offset)))

    def read(self, offset: int, length: int) -> bytes:
        return self.reader.read(self.start + offset, min(length, max(0, self.size - offset)))


class SpaceContent:
    """A volume that is made of disks in any other way: stripes, thin volumes. `name` tells it from others, to
    people too."""

    def __init__(self, name: str, space: Space) -> None:
        self.name = name
        self.space = space
        self.size = space.size

    def cached(self, offset: int, length: int) -> bytes | None:
        return None

    def read(self, offset: int, length: int) -> bytes:
        length = min(length, self.size - offset)
        return self.space.read(offset, length) if length > 0 else b""


class PiecesContent:
    """Pieces of disks, one after the other: a logical volume that lies on several, or on one in parts.
    `whole` is the same volume, read with all that it has, such as the other leg of a mirror; `others` are the
    pieces of these legs."""

    def __init__(
        self,
        pieces: Sequence[DiskContent],
        whole: SpaceContent,
        others: Sequence[Sequence[DiskContent]] = (),
    ) -> None:
        self.pieces = pieces
        self.whole = whole
        self.others = others
        self._starts = [0, *accumulate(piece.size for piece in pieces)]
        self.size = self._starts.pop()

    def within(self, offset: int, length: int) -> list[tuple[int, int, int]]:
        """The parts of the range, in order: (number of the piece, offset in it, length)."""
        end = min(offset + length, self.size)
        parts = []
        number = bisect_right(self._starts, offset) - 1
        while offset < end:
            start = offset - self._starts[number]
            count = min(end - offset, self.pieces[number].size - start)
            if count > 0:
                parts.append((number, start, count))
            offset += count
            number += 1
        return parts

    def cached(self, offset: int, length: int) -> bytes | None:
        return None

    def read(self, offset: int, length: int) -> bytes:
        return self.whole.read(offset, length)
