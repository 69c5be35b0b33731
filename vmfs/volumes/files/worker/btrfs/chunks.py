# SPDX-License-Identifier: MIT
"""Where logical addresses of Btrfs lie on the one device that is at hand."""

from __future__ import annotations

import struct
from bisect import bisect_right
from errno import EIO, EOPNOTSUPP
from typing import NamedTuple

from ..model import ReaderError

# length, owner, stripe length, type, I/O alignment and width, sector, stripes, sub-stripes
ITEM = struct.Struct("<QQQQIIIHH")
# device, offset on it, its UUID
STRIPE = struct.Struct("<QQ16s")
KEY = struct.Struct("<QBQ")

CHUNK_ITEM = 228
# Types that spread data over devices. With one stripe they are the same as single.
RAID0, RAID1, DUP, RAID10, RAID5, RAID6, RAID1C3, RAID1C4 = 0x8, 0x10, 0x20, 0x40, 0x80, 0x100, 0x200, 0x400
MIRRORED = RAID1 | DUP | RAID1C3 | RAID1C4
STRIPED = RAID0 | RAID10 | RAID5 | RAID6
SPREAD = (
    "this Btrfs is spread over several devices, of which this is one: "
    "mount the raw files of all together, by loop devices"
)


class Chunk(NamedTuple):
    """Bytes [start, start + length) of logical addresses; `copies` are where they begin on the device."""

    start: int
    length: int
    copies: tuple[int, ...]


class ChunkMap:
    """The chunks, by logical address."""

    def __init__(self, device_id: int, device_size: int) -> None:
        self._device_id = device_id
        self._device_size = device_size
        self._starts: list[int] = []
        self._chunks: list[Chunk] = []

    def add(self, start: int, item: bytes) -> None:
        """An item of the chunk tree; once more the same does nothing. Raises ReaderError when it is damaged,
        or lies on devices that are not here."""
        if len(item) < ITEM.size:
            raise ReaderError(EIO, f"the Btrfs chunk {start} is damaged")
        length, _, _, kind, _, _, _, count, _ = ITEM.unpack_from(item)
        if not length or not count or len(item) < ITEM.size + count * STRIPE.size:
            raise ReaderError(EIO, f"the Btrfs chunk {start} is damaged")
        stripes = list(STRIPE.iter_unpack(item[ITEM.size : ITEM.size + count * STRIPE.size]))
        if count > 1 and (kind & STRIPED or not kind & MIRRORED):
            raise ReaderError(EOPNOTSUPP, SPREAD)
        copies = tuple(offset for device, offset, _ in stripes if device == self._device_id)
        if not copies:
            raise ReaderError(EOPNOTSUPP, SPREAD)
        if any(offset + length > self._device_size for offset in copies):
            raise ReaderError(EIO, f"the Btrfs chunk {start} lies outside of the volume")
        index = bisect_right(self._starts, start)
        if index and self._starts[index - 1] == start:
            self._chunks[index - 1] = Chunk(start, length, copies)
            return
        self._starts.insert(index, start)
        self._chunks.insert(index, Chunk(start, length, copies))

    def add_system(self, array: bytes) -> None:
        """The chunks that the superblock has in itself: those that the chunk tree lies in."""
        at = 0
        while at + KEY.size + ITEM.size <= len(array):
            _, kind, start = KEY.unpack_from(array, at)
            at += KEY.size
            size = ITEM.size + STRIPE.size * int.from_bytes(array[at + 44 : at + 46], "little")
            if kind != CHUNK_ITEM:
                raise ReaderError(EIO, "the system chunks in the Btrfs superblock are damaged")
            self.add(start, array[at : at + size])
            at += size

    def places(self, logical: int, length: int) -> tuple[tuple[int, ...], int]:
        """The offsets on the device of the copies of bytes from `logical` on, and how many of at most
        `length` bytes lie there in a row. Raises ReaderError when there is no chunk."""
        index = bisect_right(self._starts, logical) - 1
        if index >= 0:
            chunk = self._chunks[index]
            within = logical - chunk.start
            if within < chunk.length:
                return tuple(copy + within for copy in chunk.copies), min(length, chunk.length - within)
        raise ReaderError(EIO, f"the Btrfs has no chunk for its address {logical}")
