# SPDX-License-Identifier: MIT
"""What FAT and exFAT have in common: files are chains of clusters, and nobody owns them.

As Linux shows them: everything is root's, with mode 0755, or 0555 for files that are marked read-only; on a
directory the mark does not keep anything from being made in it. The number of links of a directory is not
known, which by convention is 1.
"""

from __future__ import annotations

import errno
import stat
from calendar import timegm
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple, Protocol

from .model import Device, Found, ReaderError, Run, Stat

ROOT = 1
"""As node. All others are where their entry lies, in bytes of the volume, which is never there."""
ENTRY = 32
"""Bytes of an entry of a directory."""
READ_ONLY, DIRECTORY = 0x01, 0x10
_SECOND = 1_000_000_000


class Entry(NamedTuple):
    """A file or directory. `length` is None when only the chain says; of its bytes those from `valid` on read
    as zeros. `contiguous`: there is no chain, all clusters lie in a row."""

    node: int
    attributes: int
    first: int
    length: int | None
    valid: int
    contiguous: bool
    mtime: int = 0
    atime: int = 0
    ctime: int = 0


class Table(Protocol):
    """The file allocation table, and where clusters lie. Clusters are numbered from 2 on."""

    cluster_size: int
    clusters: int

    def next(self, cluster: int) -> int | None:
        """The one that follows in the chain. None at its end; raises ReaderError for what cannot be."""

    def place(self, cluster: int) -> int:
        """In bytes of the volume."""


class Chains:
    """Reads files by their chains."""

    def __init__(self, device: Device, table: Table) -> None:
        self._device = device
        self._table = table
        self.cluster_size = self._size = table.cluster_size
        self._runs = lru_cache(64)(self._find_runs)

    def length(self, entry: Entry) -> int:
        """Bytes that the entry has room for."""
        return sum(count for _, count in self.runs(entry)) * self._size

    def runs(self, entry: Entry) -> list[tuple[int, int]]:
        """(first cluster, count) in the order of the file."""
        most = self._table.clusters if entry.length is None else -(-entry.length // self._size)
        if not most or not entry.first:
            return []
        if most > self._table.clusters:
            raise ReaderError(errno.EIO, "it is larger than the file system")
        return self._runs(entry.first, most, entry.contiguous)

    def places(self, entry: Entry) -> Iterator[tuple[int, int]]:
        """(place in the volume, length) of the runs, bytes."""
        for first, count in self.runs(entry):
            yield self._table.place(first), count * self._size

    def read(self, entry: Entry, offset: int, length: int) -> bytes:
        """Raises ReaderError if the chain ends too early."""
        end = offset + length
        pieces = []
        at = 0
        for first, count in self.runs(entry):
            stop = at + count * self._size
            if stop > offset and at < end:
                start = max(offset, at)
                piece = self._device.read(self._table.place(first) + start - at, min(end, stop) - start)
                pieces.append(piece)
            at = stop
            if at >= end:
                break
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if len(data) < length:
            raise ReaderError(errno.EIO, "its chain of clusters ends too early")
        return data

    def entries(self, entry: Entry) -> Iterator[tuple[int, bytes]]:
        """(place in the volume, the 32 bytes) of all entries of a directory."""
        for first, count in self.runs(entry):
            for cluster in range(first, first + count):
                place = self._table.place(cluster)
                data = self._device.read(place, self._size)
                for at in range(0, len(data) - ENTRY + 1, ENTRY):
                    yield place + at, data[at : at + ENTRY]

    def _find_runs(self, first: int, most: int, contiguous: bool) -> list[tuple[int, int]]:
        last = self._table.clusters + 1
        if contiguous:
            if not 2 <= first <= last or first + most - 1 > last:
                raise ReaderError(errno.EIO, "its clusters lie outside of the volume")
            return [(first, most)]
        runs: list[tuple[int, int]] = []
        start, count, total = first, 0, 0
        cluster: int | None = first
        while cluster is not None and total < most:
            if not 2 <= cluster <= last:
                raise ReaderError(errno.EIO, "its chain of clusters is damaged")
            if cluster != start + count:
                runs.append((start, count))
                start, count = cluster, 0
            count += 1
            total += 1
            cluster = self._table.next(cluster)
        # As many as there are clusters, and still no end.
        if cluster is not None and total >= self._table.clusters:
            raise ReaderError(errno.EIO, "its chain of clusters is a loop")
        runs.append((start, count))
        return runs


class ClusterReader:
    """`model.Reader` for both; what differs are the entries of directories."""

    type: str
    label: str
    uuid: str
    warnings: tuple[str, ...] = ()
    chains: Chains

    def entries(self, directory: Entry) -> Iterator[tuple[bytes, Entry]]:
        """All files and directories of a directory, with their names."""
        raise NotImplementedError

    def entry(self, node: int) -> Entry:
        """By node, the root included."""
        raise NotImplementedError

    def root(self) -> Stat:
        return self.stat(ROOT)

    def stat(self, node: int) -> Stat:
        return self._stat(self.entry(node))

    def scan(self, directory: int) -> Iterator[Found]:
        for name, entry in self.entries(self._directory(directory)):
            try:
                yield Found(name, self._stat(entry))
            except ReaderError as error:
                yield Found(name, None, str(error))

    def lookup(self, directory: int, name: bytes) -> Stat:
        for found, entry in self.entries(self._directory(directory)):
            if found == name:
                return self._stat(entry)
        raise ReaderError(errno.ENOENT, "no such file")

    def readlink(self, node: int) -> bytes:
        raise ReaderError(errno.EINVAL, "not a symbolic link")

    def read(self, node: int, offset: int, length: int) -> bytes:
        entry = self._file(node)
        end = min(offset + length, entry.length or 0)
        if offset >= end:
            return b""
        stored = min(end, max(entry.valid, offset))
        data = self.chains.read(entry, offset, stored - offset) if stored > offset else b""
        return data + bytes(end - stored) if stored < end else data

    def extents(self, node: int) -> Iterator[tuple[int, int]]:
        entry = self._file(node)
        if entry.length and entry.valid:
            yield 0, min(entry.length, entry.valid)

    def runs(self, node: int) -> Iterator[Run]:
        entry = self._file(node)
        stored = min(entry.length or 0, entry.valid)
        start = 0
        for place, room in self.chains.places(entry):
            if start >= stored:
                return
            yield Run(start, min(room, stored - start), place)
            start += room
        if start < stored:
            raise ReaderError(errno.EIO, "its chain of clusters ends too early")

    def xattrs(self, node: int) -> dict[bytes, bytes]:
        return {}

    def _directory(self, node: int) -> Entry:
        entry = self.entry(node)
        if not entry.attributes & DIRECTORY:
            raise ReaderError(errno.ENOTDIR, "not a directory")
        return entry

    def _file(self, node: int) -> Entry:
        entry = self.entry(node)
        if entry.attributes & DIRECTORY:
            raise ReaderError(errno.EISDIR, "a directory")
        return entry

    def _stat(self, entry: Entry) -> Stat:
        if entry.attributes & DIRECTORY:
            mode, size = stat.S_IFDIR | 0o755, self.chains.length(entry)
        else:
            mode, size = stat.S_IFREG | (0o555 if entry.attributes & READ_ONLY else 0o755), entry.length or 0
        return Stat(
            *(entry.node, mode, 0, 0, 1, size),
            *(entry.mtime, entry.atime, entry.ctime),
            0,
            -(-size // self.chains.cluster_size) * self.chains.cluster_size,
        )


def dos_time(date: int, time: int = 0, hundredths: int = 0, minutes_east: int = 0) -> int:
    """Nanoseconds since 1970 of DOS's date and time of day, which counts in two seconds; 0 for no date."""
    month, day = date >> 5 & 15, date & 31
    if not 1 <= month <= 12 or not day:
        return 0
    seconds = timegm(
        ((date >> 9) + 1980, month, day, time >> 11, time >> 5 & 63, (time & 31) * 2 - minutes_east * 60)
    )
    return seconds * _SECOND + hundredths * 10_000_000
