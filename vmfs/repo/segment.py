"""The files of the local index: found in, written, merged, checked. Each is an index as vmfs.format.index has
it."""

from __future__ import annotations

import heapq
import os
import secrets
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from vmfs.errors import ContentError
from vmfs.format import index
from vmfs.format.keys import Keys

_READ = 1 << 20


class Location(NamedTuple):
    """Where a blob lies: `length` bytes from byte `offset` of the pack of that name."""

    pack: bytes
    offset: int
    length: int


class Segment:
    """One index file, open for look-ups. Safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        size = os.fstat(self._fd).st_size
        self.header = index.parse_header(os.pread(self._fd, index.HEADER.size, 0), size)
        head = os.pread(self._fd, self.header.entries_offset, 0)
        self.packs = index.packs(head, self.header)
        self._fanout = index.u32s(head[self.header.fanout_offset :])

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def find(self, blob_id: bytes) -> Location | None:
        bits = self.header.fanout_bits
        bucket = index.bucket(blob_id, bits)
        first, end = self._fanout[bucket - 1] if bucket else 0, self._fanout[bucket]
        if not first <= end <= self.header.entries:
            raise ContentError(f"{self.path} makes no sense")
        rows = self._read(first, end - first)
        at = rows.find(blob_id)
        while at >= 0 and at % index.ENTRY.size:
            at = rows.find(blob_id, at + 1)
        if at < 0:
            return None
        number, offset, length = index.PLACE.unpack_from(rows, at + index.ID_SIZE)
        if number >= len(self.packs):
            raise ContentError(f"the index has blob {blob_id.hex()} in a pack that it does not name")
        return Location(self.packs[number].name, offset, length)

    def rows(self) -> Iterator[bytes]:
        step = _READ // index.ENTRY.size
        for first in range(0, self.header.entries, step):
            data = self._read(first, min(step, self.header.entries - first))
            for at in range(0, len(data), index.ENTRY.size):
                yield data[at : at + index.ENTRY.size]

    def _read(self, first: int, count: int) -> bytes:
        size = index.ENTRY.size
        return os.pread(self._fd, count * size, self.header.entries_offset + first * size)


def make_row(blob_id: bytes, number: int, offset: int, length: int) -> bytes:
    """An index entry; `number` is the pack's place in the pack table."""
    return index.ENTRY.pack(blob_id, number, offset, length)


def unique_sorted(rows: Iterable[bytes]) -> list[bytes]:
    """Rows ascending by id, the first of each id."""
    out: list[bytes] = []
    for row in sorted(rows):
        if not out or out[-1][: index.ID_SIZE] != row[: index.ID_SIZE]:
            out.append(row)
    return out


def write(directory: Path, data: bytes) -> str:
    """A new file with that content; its name."""
    file = f"{secrets.token_hex(8)}.vmfi"
    write_durably(directory / file, data)
    return file


def write_durably(path: Path, data: bytes) -> None:
    """So that a power cut leaves no file that looks whole and is not."""
    with path.open("wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())


def is_sound(path: Path, keys: Keys) -> bool:
    """Whether the file is as it was written."""
    running = index.mac(keys)
    with path.open("rb") as file:
        left = os.fstat(file.fileno()).st_size - index.MAC_SIZE
        while left > 0 and (piece := file.read(min(_READ, left))):
            running.update(piece)
            left -= len(piece)
        return file.read() == index.finish_mac(running, keys)


def merge(directory: Path, files: list[str], keys: Keys) -> str:
    """The name of a new file with the entries of all, each id once. Needs little memory, whatever their size.
    Raises ContentError for a file that is damaged."""
    if damaged := [file for file in files if not is_sound(directory / file, keys)]:
        raise ContentError(f"{directory / damaged[0]} is damaged")
    segments = [Segment(directory / file) for file in files]
    table: dict[index.PackRef, int] = {}
    streams = [_renumbered(segment, table) for segment in segments]
    bits = index.fanout_bits(sum(segment.header.entries for segment in segments))
    counts = array("I", bytes(4 << bits))
    merged = f"{secrets.token_hex(8)}.vmfi"
    with open(directory / merged, "w+b") as out:
        out.seek(len(index.encode_head(list(table), counts)))
        last = b""
        for row in heapq.merge(*streams):
            if row[: index.ID_SIZE] != last:
                last = row[: index.ID_SIZE]
                counts[index.bucket(last, bits)] += 1
                out.write(row)
        out.seek(0)
        out.write(index.encode_head(list(table), counts))
        out.seek(0)
        running = index.mac(keys)
        while piece := out.read(_READ):
            running.update(piece)
        out.write(index.finish_mac(running, keys))
        out.flush()
        os.fsync(out.fileno())
    return merged


def _renumbered(segment: Segment, table: dict[index.PackRef, int]) -> Iterator[bytes]:
    """The segment's rows, with pack numbers of the common table, which this first adds its packs to."""
    numbers = [table.setdefault(ref, len(table)) for ref in segment.packs]

    def rows() -> Iterator[bytes]:
        for row in segment.rows():
            blob_id, number, offset, length = index.ENTRY.unpack(row)
            yield make_row(blob_id, numbers[number], offset, length)

    return rows()
