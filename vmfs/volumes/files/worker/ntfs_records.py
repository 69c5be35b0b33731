# SPDX-License-Identifier: MIT
"""What libfsntfs does not tell of an NTFS volume: reparse points other than symbolic links, and whether the
log was closed. Numbers are little-endian; structures as in Microsoft's [MS-FSCC] 2.1.2 and in the layout.h of
ntfs-3g."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

MOUNT_POINT, SYMLINK, LX_SYMLINK, WOF = 0xA0000003, 0xA000000C, 0xA000001D, 0x80000017
"""Tags: a junction, a symbolic link, one of WSL, and a file compressed by the Windows Overlay Filter."""
_NAMES = {
    0x80000013: "deduplicated",
    0xC0000004: "moved to other storage",
    0x80000007: "single instance store",
}
"""Of reparse points that stand for data which lies elsewhere. Files of a cloud have 16 tags of their own."""
_CLOUD, _CLOUD_MASK = 0x9000001A, 0xFFFF0FFF
_SECTOR = 512
_REPARSE_POINT, _END = 0xC0, 0xFFFFFFFF
_NO_CLIENT = 0xFFFF
_CLEAN = 0x2


class ReparsePoint(NamedTuple):
    tag: int
    data: bytes

    @property
    def target(self) -> str | None:
        """Of a link as Windows writes it, with backslashes; None for what is no link."""
        if self.tag == LX_SYMLINK:
            return self.data[4:].decode("utf-8", "replace")
        if self.tag not in (MOUNT_POINT, SYMLINK) or len(self.data) < 8:
            return None
        start, length = struct.unpack_from("<HH", self.data)
        # Flags of a symbolic link come before the names.
        start += 12 if self.tag == SYMLINK else 8
        return self.data[start : start + length].decode("utf-16-le", "surrogatepass")

    @property
    def kind(self) -> str:
        """For a person."""
        known = "in a cloud" if self.tag & _CLOUD_MASK == _CLOUD else _NAMES.get(self.tag)
        return f"{known}, reparse point {self.tag:#x}" if known else f"reparse point {self.tag:#x}"


class Attribute(NamedTuple):
    """`value` of one that lies in its record; else its `size` and `runs`: (first cluster, or None for a hole,
    count) from cluster `first` of the attribute on."""

    kind: int
    name: str
    value: bytes = b""
    size: int = 0
    first: int = 0
    runs: tuple[tuple[int | None, int], ...] = ()


def attributes(record: bytes) -> Iterator[Attribute]:
    """Those within a record of the MFT, as far as it makes sense."""
    record = mended(record, b"FILE")
    if not record:
        return
    (at,) = struct.unpack_from("<H", record, 20)
    while at + 24 <= len(record):
        kind, length, elsewhere, name_length, name_at = struct.unpack_from("<IIBBH", record, at)
        if kind == _END or length < 24 or at + length > len(record):
            return
        data = record[at : at + length]
        name = data[name_at : name_at + name_length * 2].decode("utf-16-le", "replace")
        if not elsewhere:
            size, offset = struct.unpack_from("<IH", data, 16)
            yield Attribute(kind, name, data[offset : offset + size])
        elif length >= 64:
            first, runs_at, size = struct.unpack_from("<Q8xH14xQ", data, 16)
            yield Attribute(kind, name, b"", size, first, tuple(_runs(data[runs_at:])))
        at += length


def reparse_point(record: bytes) -> ReparsePoint | None:
    """Of a record of the MFT. None where it has none, or not within the record itself."""
    for attribute in attributes(record):
        if attribute.kind == _REPARSE_POINT and len(attribute.value) >= 8:
            tag, size = struct.unpack_from("<IH", attribute.value)
            return ReparsePoint(tag, attribute.value[8 : 8 + size])
    return None


def log_is_open(log: bytes) -> bool:
    """Whether the $LogFile, of which this is the beginning (16 KiB), says that changes may be in it which the
    volume does not have."""
    newest, is_open = -1, False
    at = 0
    while at + 48 <= len(log):
        page_size = struct.unpack_from("<I", log, 16)[0] if at == 0 and log.startswith(b"RSTR") else 4096
        page = mended(log[at : at + page_size], b"RSTR")
        if len(page) >= 48:
            (area,) = struct.unpack_from("<H", page, 24)
            if area + 16 <= len(page):
                lsn, clients, flags = struct.unpack_from("<q4xHH", page, area)
                if lsn > newest:
                    newest, is_open = lsn, clients != _NO_CLIENT and not flags & _CLEAN
        if at or not page_size:
            break
        at = page_size
    return is_open


def _runs(data: bytes) -> Iterator[tuple[int | None, int]]:
    at, cluster = 0, 0
    while at < len(data) and data[at]:
        count_size, step_size = data[at] & 15, data[at] >> 4
        middle, end = at + 1 + count_size, at + 1 + count_size + step_size
        cluster += int.from_bytes(data[middle:end], "little", signed=True)
        yield cluster if step_size else None, int.from_bytes(data[at + 1 : middle], "little")
        at = end


def mended(data: bytes, magic: bytes) -> bytes:
    """A multi-sector structure with the ends of its sectors put back in place; nothing if it is none, or was
    written in part only."""
    if len(data) < 48 or not data.startswith(magic):
        return b""
    place, count = struct.unpack_from("<HH", data, 4)
    if place + count * 2 > len(data) or (count - 1) * _SECTOR > len(data):
        return b""
    whole = bytearray(data)
    mark = data[place : place + 2]
    for number in range(1, count):
        end = number * _SECTOR
        if data[end - 2 : end] != mark:
            return b""
        whole[end - 2 : end] = data[place + number * 2 : place + number * 2 + 2]
    return bytes(whole)
