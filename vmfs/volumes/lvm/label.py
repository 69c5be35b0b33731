"""What LVM2 writes at the start of a physical volume: its label, and the areas that hold the metadata.

From lib/label/label.c, lib/format_text/layout.h and format-text.c of LVM2. All numbers are little-endian,
offsets are bytes from the start of the physical volume unless said otherwise.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import NamedTuple

from vmfs.volumes.space import Space

SECTOR = 512
LABEL_SECTORS = 4
# id, own sector, CRC of what follows it to the end of the sector, offset of the header, type
LABEL = struct.Struct("<8sQII8s")
PAIR = struct.Struct("<QQ")
MAX_AREAS = 16
# CRC, magic, version, start and size of the area
AREA = struct.Struct("<I16sIQQ")
AREA_MAGIC = b" LVM2 x[5A%r0N*>"
# offset from the start of the area, size, CRC, flags
PLACE = struct.Struct("<QQII")
IGNORED = 1
INITIAL_CRC = 0xF597A6CF
MAX_TEXT = 8 << 20
"""Bytes of metadata. LVM2 2.03 refuses to write more than its area, of 1 MiB unless asked."""

Warn = Callable[[str], None]


class Label(NamedTuple):
    """`areas` are (offset, size) of the metadata areas; a physical volume may have none."""

    uuid: str
    device_size: int
    areas: tuple[tuple[int, int], ...]


class Place(NamedTuple):
    """Where a metadata area says that the text in force lies: two with one `checksum` and `size` are copies
    of each other."""

    area: int
    area_size: int
    offset: int
    size: int
    checksum: int


def checksum(data: bytes) -> int:
    """LVM2's CRC: the usual polynomial, another start, not inverted at the end."""
    return zlib.crc32(data, INITIAL_CRC ^ 0xFFFFFFFF) ^ 0xFFFFFFFF


def read_label(space: Space) -> Label | None:
    """The label, in one of the first four sectors. None when there is none, or a damaged one."""
    head = space.read(0, LABEL_SECTORS * SECTOR)
    for number in range(LABEL_SECTORS):
        block = head[number * SECTOR : (number + 1) * SECTOR]
        if len(block) < SECTOR:
            return None
        mark, sector, crc, offset, kind = LABEL.unpack_from(block)
        if mark != b"LABELONE" or kind != b"LVM2 001" or sector != number or checksum(block[20:]) != crc:
            continue
        label = _header(block, offset)
        if label is not None:
            return label
    return None


def _header(block: bytes, offset: int) -> Label | None:
    if not LABEL.size <= offset <= SECTOR - 40:
        return None
    raw = block[offset : offset + 32]
    if not raw.isalnum():
        return None
    size = struct.unpack_from("<Q", block, offset + 32)[0]
    # Two lists, each ended by a pair of zeros: the data areas, then the metadata areas.
    lists: list[list[tuple[int, int]]] = [[], []]
    at = offset + 40
    for found in lists:
        while at + PAIR.size <= len(block):
            start, length = PAIR.unpack_from(block, at)
            at += PAIR.size
            if not start:
                break
            found.append((start, length))
    return Label(raw.decode("ascii"), size, tuple(lists[1][:MAX_AREAS]))


def read_place(space: Space, area: tuple[int, int], warn: Warn) -> Place | None:
    """Where the metadata of an area lies. None when the area is unused, ignored or damaged, the last with a
    warning."""
    start, size = area
    if start + SECTOR > space.size or size < 2 * SECTOR:
        warn("a metadata area lies beyond its end")
        return None
    block = space.read(start, SECTOR)
    crc, magic, version, own, own_size = AREA.unpack_from(block)
    if magic != AREA_MAGIC or version != 1 or checksum(block[4:]) != crc or own != start:
        warn("the header of a metadata area is damaged")
        return None
    offset, length, text_crc, flags = PLACE.unpack_from(block, AREA.size)
    if not offset or flags & IGNORED:
        return None
    size = min(own_size, space.size - start)
    if not (SECTOR <= offset < size and 0 < length <= min(size - SECTOR, MAX_TEXT)):
        warn("a metadata area says that its text lies at an impossible place")
        return None
    return Place(start, size, offset, length, text_crc)


def read_text(space: Space, place: Place) -> bytes | None:
    """The text; what does not fit before the end of the area goes on behind its header. None when its CRC
    is wrong."""
    first = min(place.size, place.area_size - place.offset)
    data = space.read(place.area + place.offset, first)
    if first < place.size:
        data += space.read(place.area + SECTOR, place.size - first)
    return data.rstrip(b"\0") if len(data) == place.size and checksum(data) == place.checksum else None
