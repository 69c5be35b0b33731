# SPDX-License-Identifier: MIT
"""exFAT, after Microsoft's "exFAT file system specification"."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator

from .clusters import DIRECTORY, ENTRY, ROOT, Chains, ClusterReader, Entry, dos_time
from .model import Device, ReaderError

_SIGNATURE = b"EXFAT   "
_BOOT = struct.Struct("<IIIIIIHHBBB")
"""From byte 80: offset and length of the table, offset and number of the clusters, first cluster of the root,
serial, revision, flags, shifts of bytes per sector and of sectors per cluster, number of tables."""
_SECOND_TABLE = 0x1
_END, _LABEL, _FILE, _STREAM, _NAME = 0x00, 0x83, 0x85, 0xC0, 0xC1
_NO_CHAIN = 0x02
_PARENT_CONTIGUOUS = 0x1
"""In a node: the directory has no chain. Says where the entries of a file go on, beyond a cluster."""
_END_OF_CHAIN = 0xFFFFFFF8


class ExfatTable:
    """Implements `clusters.Table`."""

    def __init__(self, device: Device, place: int, data: int, cluster_size: int, clusters: int) -> None:
        self.cluster_size = cluster_size
        self.clusters = clusters
        self._device = device
        self._place = place
        self._data = data

    def next(self, cluster: int) -> int | None:
        value = int.from_bytes(self._device.read(self._place + cluster * 4, 4), "little")
        return None if value >= _END_OF_CHAIN else value

    def place(self, cluster: int) -> int:
        return self._data + (cluster - 2) * self.cluster_size

    def cluster_at(self, place: int) -> int:
        return (place - self._data) // self.cluster_size + 2


class ExfatReader(ClusterReader):
    type = "exfat"

    def __init__(self, device: Device) -> None:
        boot = device.read(0, 512)
        if len(boot) < 512 or boot[3:11] != _SIGNATURE:
            raise ReaderError(errno.EIO, "there is no exFAT file system")
        fields = _BOOT.unpack_from(boot, 80)
        table, table_length, data, clusters, root, serial, _, flags, sector_shift, cluster_shift, tables = (
            fields
        )
        if not 9 <= sector_shift <= 12 or cluster_shift > 25 - sector_shift or not 1 <= tables <= 2:
            raise ReaderError(errno.EIO, "its boot sector makes no sense")
        if flags & _SECOND_TABLE and tables == 2:
            table += table_length
        clusters = min(clusters, (device.size - (data << sector_shift)) >> (sector_shift + cluster_shift))
        if clusters < 1:
            raise ReaderError(errno.EIO, "its boot sector makes no sense")
        self._device = device
        self._root = root
        self._table = ExfatTable(
            device, table << sector_shift, data << sector_shift, 1 << (sector_shift + cluster_shift), clusters
        )
        self.chains = Chains(device, self._table)
        self.uuid = f"{serial >> 16:04X}-{serial & 0xFFFF:04X}"
        self.label = self._root_label()

    def entry(self, node: int) -> Entry:
        if node == ROOT:
            return Entry(ROOT, DIRECTORY, self._root, None, 0, False)
        place = node & ~_PARENT_CONTIGUOUS
        raw = self._device.read(place, ENTRY)
        if place % ENTRY or len(raw) < ENTRY or raw[0] != _FILE:
            raise ReaderError(errno.EIO, "there is no such entry")
        following = place + ENTRY
        cluster = self._table.cluster_at(place)
        if self._table.cluster_at(following) != cluster and not node & _PARENT_CONTIGUOUS:
            after = self._table.next(cluster)
            if after is None:
                raise ReaderError(errno.EIO, "the entry is cut short")
            following = self._table.place(after)
        stream = self._device.read(following, ENTRY)
        if len(stream) < ENTRY or stream[0] != _STREAM:
            raise ReaderError(errno.EIO, "the entry is damaged")
        return _parse(node, raw, stream)

    def entries(self, directory: Entry) -> Iterator[tuple[bytes, Entry]]:
        mark = _PARENT_CONTIGUOUS if directory.contiguous else 0
        head: tuple[int, bytes] | None = None
        stream: bytes | None = None
        name = b""
        for place, raw in self.chains.entries(directory):
            kind = raw[0]
            if kind == _END:
                return
            if kind == _FILE:
                head, stream, name = (place, raw), None, b""
            elif kind == _STREAM and head is not None and stream is None:
                stream = raw
            elif kind == _NAME and head is not None and stream is not None:
                name += raw[2:32]
                length = stream[3]
                if len(name) >= length * 2:
                    text = name[: length * 2].decode("utf-16-le", "surrogatepass")
                    yield text.encode("utf-8", "surrogatepass"), _parse(head[0] | mark, head[1], stream)
                    head = None
            elif kind < 0xC0:
                head = None

    def _root_label(self) -> str:
        for _, raw in self.chains.entries(self.entry(ROOT)):
            if raw[0] == _END:
                break
            if raw[0] == _LABEL:
                return raw[2 : 2 + min(raw[1], 11) * 2].decode("utf-16-le", "replace")
        return ""


def _parse(node: int, head: bytes, stream: bytes) -> Entry:
    attributes, modified, accessed = struct.unpack_from("<H6xII", head, 4)
    modified_10ms, modified_zone, accessed_zone = struct.unpack_from("<BxBB", head, 21)
    valid, _, first, length = struct.unpack_from("<QIIQ", stream, 8)
    mtime = _time(modified, modified_10ms, modified_zone)
    return Entry(
        node,
        attributes,
        first,
        length,
        min(valid, length),
        bool(stream[1] & _NO_CHAIN),
        mtime,
        _time(accessed, 0, accessed_zone),
        mtime,
    )


def _time(stamp: int, hundredths: int, zone: int) -> int:
    east = 0
    if zone & 0x80:
        # Seven bits, signed, in quarters of an hour.
        east = ((zone & 0x7F) - (0x80 if zone & 0x40 else 0)) * 15
    return dos_time(stamp >> 16, stamp & 0xFFFF, hundredths, east)
