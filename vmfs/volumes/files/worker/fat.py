# SPDX-License-Identifier: MIT
"""FAT12, FAT16 and FAT32 with long names, after Microsoft's "FAT: General Overview of On-Disk Format" (1.03).

Own, because the libraries have it wrong: The Sleuth Kit cuts names over 195 characters, libfsfat takes every
month for the next. Times are local to the guest, and taken for UTC, as Linux does.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator

from .clusters import DIRECTORY, ENTRY, ROOT, Chains, ClusterReader, Entry, dos_time
from .model import Device, ReaderError

_BOOT = struct.Struct("<11xHBHBHHxHxxxxxxxxI")
_DELETED, _END = 0xE5, 0x00
_LABEL, _LONG_NAME = 0x08, 0x0F
_LAST = 0x40
"""Marks the first of the entries of a long name, which is of its last part."""
_LOWER_BASE, _LOWER_EXTENSION = 0x08, 0x10
_LONGEST = 20
"""Entries of a long name: 255 characters, 13 in each."""
_MOST_FAT12, _MOST_FAT16 = 4085, 65525
_NO_NAME = "NO NAME"


class FatTable:
    """Implements `clusters.Table`."""

    def __init__(self, device: Device, bits: int, place: int, data: int, cluster_size: int, clusters: int):
        self.cluster_size = cluster_size
        self.clusters = clusters
        self._device = device
        self._bits = bits
        self._place = place
        self._data = data

    def next(self, cluster: int) -> int | None:
        if self._bits == 12:
            raw = self._device.read(self._place + cluster * 3 // 2, 2)
            value = int.from_bytes(raw, "little") >> (4 if cluster & 1 else 0) & 0xFFF
        elif self._bits == 16:
            value = int.from_bytes(self._device.read(self._place + cluster * 2, 2), "little")
        else:
            value = int.from_bytes(self._device.read(self._place + cluster * 4, 4), "little") & 0xFFFFFFF
        # The last eight numbers mean the end, whichever width they have.
        return None if value >= (1 << min(self._bits, 28)) - 8 else value

    def place(self, cluster: int) -> int:
        return self._data + (cluster - 2) * self.cluster_size


class FatReader(ClusterReader):
    type = "vfat"

    def __init__(self, device: Device) -> None:
        boot = device.read(0, 512)
        if len(boot) < 512:
            raise ReaderError(errno.EIO, "there is no FAT file system")
        sector, per_cluster, reserved, tables, root_entries, sectors, table, many_sectors = _BOOT.unpack_from(
            boot
        )
        sectors = sectors or many_sectors
        (table_32, flags) = struct.unpack_from("<IH", boot, 36)
        wide = not table
        table = table or table_32
        if (
            sector not in (512, 1024, 2048, 4096)
            or not per_cluster
            or per_cluster & (per_cluster - 1)
            or not reserved
            or not 1 <= tables <= 4
            or not table
        ):
            raise ReaderError(errno.EIO, "there is no FAT file system")
        root = (reserved + tables * table) * sector
        data = root + -(-root_entries * ENTRY // sector) * sector
        clusters = (sectors * sector - data) // (per_cluster * sector)
        bits = 32 if wide else 12 if clusters < _MOST_FAT12 else 16
        # What the table has no room for cannot be used.
        clusters = min(clusters, table * sector * 8 // bits - 2)
        if clusters < 1:
            raise ReaderError(errno.EIO, "there is no FAT file system")
        # FAT32 can have one of its tables in use alone.
        active = flags & 15 if wide and flags & 0x80 and flags & 15 < tables else 0
        self._device = device
        self._wide = wide
        self._root_region = None if wide else (root, root_entries)
        self._root_cluster = struct.unpack_from("<I", boot, 44)[0] if wide else 0
        place = (reserved + active * table) * sector
        self.chains = Chains(device, FatTable(device, bits, place, data, per_cluster * sector, clusters))
        serial, label = struct.unpack_from("<I11s", boot, 67 if wide else 39)
        self.uuid = f"{serial >> 16:04X}-{serial & 0xFFFF:04X}"
        self.label = self._root_label() or _text(label).strip()
        if self.label == _NO_NAME:
            self.label = ""

    def entry(self, node: int) -> Entry:
        if node == ROOT:
            return Entry(ROOT, DIRECTORY, self._root_cluster, None, 0, False)
        raw = self._device.read(node, ENTRY)
        if node % ENTRY or len(raw) < ENTRY or raw[0] in (_DELETED, _END) or raw[11] & _LABEL:
            raise ReaderError(errno.EIO, "there is no such entry")
        return self._parse(node, raw)

    def entries(self, directory: Entry) -> Iterator[tuple[bytes, Entry]]:
        long: list[bytes] = []
        checksum = -1
        for place, raw in self._raw_entries(directory):
            if raw[0] == _END:
                return
            attributes = raw[11]
            if raw[0] == _DELETED:
                long = []
            elif attributes & 0x3F == _LONG_NAME:
                number = raw[0] & ~_LAST
                if raw[0] & _LAST:
                    long = [b""] * min(number, _LONGEST)
                    checksum = raw[13]
                if 1 <= number <= len(long) and raw[13] == checksum:
                    long[number - 1] = raw[1:11] + raw[14:26] + raw[28:32]
                else:
                    long = []
            else:
                name = _long_name(long) if long and all(long) and checksum == _checksum(raw[:11]) else None
                long = []
                if attributes & _LABEL:
                    continue
                name = name or _short_name(raw)
                if name not in (".", ".."):
                    yield name.encode("utf-8", "surrogatepass"), self._parse(place, raw)

    def _raw_entries(self, directory: Entry) -> Iterator[tuple[int, bytes]]:
        if directory.node != ROOT or self._root_region is None:
            yield from self.chains.entries(directory)
            return
        place, count = self._root_region
        data = self._device.read(place, count * ENTRY)
        for at in range(0, len(data) - ENTRY + 1, ENTRY):
            yield place + at, data[at : at + ENTRY]

    def _parse(self, place: int, raw: bytes) -> Entry:
        accessed, high, time, date, low, size = struct.unpack_from("<HHHHHI", raw, 18)
        first = (high << 16 | low) & 0xFFFFFFF if self._wide else low
        mtime = dos_time(date, time)
        directory = raw[11] & DIRECTORY
        return Entry(
            place,
            raw[11],
            first,
            None if directory else size,
            0 if directory else size,
            False,
            mtime,
            dos_time(accessed),
            mtime,
        )

    def _root_label(self) -> str:
        for _, raw in self._raw_entries(self.entry(ROOT)):
            if raw[0] == _END:
                break
            if raw[0] != _DELETED and raw[11] & 0x3F != _LONG_NAME and raw[11] & _LABEL:
                return _text(raw[:11]).strip()
        return ""


def _text(raw: bytes) -> str:
    return raw.decode("cp437")


def _short_name(raw: bytes) -> str:
    base = _text((b"\xe5" if raw[0] == 0x05 else raw[:1]) + raw[1:8]).rstrip(" ")
    extension = _text(raw[8:11]).rstrip(" ")
    if raw[12] & _LOWER_BASE:
        base = base.lower()
    if raw[12] & _LOWER_EXTENSION:
        extension = extension.lower()
    return f"{base}.{extension}" if extension else base


def _long_name(parts: list[bytes]) -> str:
    return b"".join(parts).decode("utf-16-le", "surrogatepass").split("\0")[0]


def _checksum(short: bytes) -> int:
    value = 0
    for byte in short:
        value = ((value >> 1) | (value & 1) << 7) + byte & 0xFF
    return value
