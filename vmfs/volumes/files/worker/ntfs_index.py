# SPDX-License-Identifier: MIT
"""Directories of NTFS. Own, because libfsntfs leaves out most of the names where clusters are larger than the
records of an index (4 KiB), and says nothing. Numbers are little-endian; structures as in the layout.h of
ntfs-3g."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from .model import Device, ReaderError
from .ntfs_records import Attribute, attributes, mended

_LIST, _INDEX_ROOT, _INDEX_ALLOCATION = 0x20, 0x90, 0xA0
_INDEX_NAME = "$I30"
_SECTOR = 512
_HAS_NODE, _IS_LAST = 1, 2
_DOS_NAME = 2
_NUMBER = (1 << 48) - 1
_LARGEST_LIST = 256 << 10
_NODE_HEADER = 24
"""Bytes of a record of an index before the header of its entries, from which their offsets count."""


class Directories:
    """`read_record` gives a record of the MFT by its number."""

    def __init__(self, device: Device, read_record: Callable[[int], bytes], cluster_size: int) -> None:
        self._device = device
        self._record = read_record
        self._cluster_size = cluster_size

    def entries(self, number: int) -> Iterator[tuple[bytes, int]]:
        """(name, number of its record) of all in a directory, but for the short forms of other names. Raises
        ReaderError for what is damaged."""
        parts = list(self._attributes(number))
        root = next((part.value for part in parts if part.kind == _INDEX_ROOT), b"")
        if len(root) < 32:
            raise _damaged()
        (size,) = struct.unpack_from("<I", root, 8)
        if size not in (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536):
            raise _damaged()
        nodes = _Nodes(
            self._stream([part for part in parts if part.kind == _INDEX_ALLOCATION]), size, self._unit(size)
        )
        yield from nodes.entries(root[16:])

    def _unit(self, size: int) -> int:
        """Bytes in which the numbers of nodes count."""
        return self._cluster_size if self._cluster_size <= size else _SECTOR

    def _attributes(self, number: int) -> Iterator[Attribute]:
        """Those of the index, of the record and of all that continue it."""
        own = list(attributes(self._record(number)))
        others: set[int] = set()
        for each in own:
            if each.kind == _LIST:
                others.update(_listed(each.value or self._stream([each])(0, min(each.size, _LARGEST_LIST))))
        for other in sorted(others - {number}):
            own += attributes(self._record(other))
        return (each for each in own if each.name == _INDEX_NAME)

    def _stream(self, parts: list[Attribute]) -> Callable[[int, int], bytes]:
        """Reads (offset, length) of what the parts of an attribute hold."""
        runs = [run for part in sorted(parts, key=lambda part: part.first) for run in part.runs]
        size = self._cluster_size

        def read(offset: int, length: int) -> bytes:
            pieces = []
            at = 0
            for cluster, count in runs:
                start, stop = max(offset, at), min(offset + length, at + count * size)
                if start < stop:
                    if cluster is None:
                        raise _damaged()
                    pieces.append(self._device.read(cluster * size + start - at, stop - start))
                at += count * size
            return b"".join(pieces)

        return read


class _Nodes(NamedTuple):
    """A tree of names: `read` reads its records, of `size` bytes, whose numbers count in `unit` bytes."""

    read: Callable[[int, int], bytes]
    size: int
    unit: int

    def entries(self, root: bytes) -> Iterator[tuple[bytes, int]]:
        pending: list[int] = []
        yield from _node(root, pending)
        seen = set()
        while pending:
            number = pending.pop()
            if number in seen:
                raise _damaged()
            seen.add(number)
            record = mended(self.read(number * self.unit, self.size), b"INDX")
            if not record:
                raise _damaged()
            yield from _node(record[_NODE_HEADER:], pending)


def _node(data: bytes, pending: list[int]) -> Iterator[tuple[bytes, int]]:
    """The names of a node; the numbers of those below it go to `pending`."""
    at, end = struct.unpack_from("<II", data)
    end = min(end, len(data))
    while at + 16 <= end:
        reference, length, key_length, flags = struct.unpack_from("<QHHH", data, at)
        if length < 16 or at + length > end:
            raise _damaged()
        if flags & _HAS_NODE:
            if length < 24:
                raise _damaged()
            pending.append(struct.unpack_from("<Q", data, at + length - 8)[0])
        if flags & _IS_LAST:
            return
        key = data[at + 16 : at + 16 + key_length]
        if len(key) < 66 or len(key) < 66 + key[64] * 2:
            raise _damaged()
        if key[65] != _DOS_NAME:
            name = key[66 : 66 + key[64] * 2].decode("utf-16-le", "surrogatepass")
            yield name.encode("utf-8", "surrogatepass"), reference & _NUMBER
        at += length
    raise _damaged()


def _listed(data: bytes) -> Iterator[int]:
    """The numbers of records that an attribute list names for the index."""
    at = 0
    while at + 26 <= len(data):
        kind, length = struct.unpack_from("<IH", data, at)
        if length < 24:
            return
        if kind in (_INDEX_ROOT, _INDEX_ALLOCATION):
            yield struct.unpack_from("<Q", data, at + 16)[0] & _NUMBER
        at += length


def _damaged() -> ReaderError:
    return ReaderError(errno.EIO, "its index is damaged")
