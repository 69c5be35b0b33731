"""What an open file reads from. Offsets are bytes from the start of the file."""

from __future__ import annotations

from typing import Protocol


class DiskReader(Protocol):
    """The part of `vmfs.repo.reader.DiskReader` that a mount needs."""

    size: int
    chunk_size: int

    def read(self, offset: int, length: int) -> bytes: ...

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
