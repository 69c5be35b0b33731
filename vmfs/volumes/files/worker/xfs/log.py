# SPDX-License-Identifier: MIT
"""Whether the log of an XFS holds changes that are not in place yet. Source: "XFS Algorithms & Data
Structures", chapter "Journaling Log".

The log is a ring of blocks of 512 bytes. Each begins with the number of the round in which it was written
(a record's header: with its magic, then the round), so the end of the newest record is where that number
drops. A log that was unmounted cleanly ends with a record that says so. One of a file system that is frozen,
or has rested for a minute, ends with a record of nothing but the superblock: all else is in place."""

from __future__ import annotations

import struct
from typing import NamedTuple

from ..model import Device
from .superblock import Superblock

BLOCK = 512
HEADER_MAGIC = 0xFEEDBABE
# magic, round, version, length, LSN, round and block of the tail, CRC, block of the record before,
# operations, first word of the content
HEADER = struct.Struct(">IIIIQIIIII4s")
ORDER_AT = 300
"""Bytes from a header's start to the order of bytes in what is logged."""
LITTLE_ENDIAN = 1
SIZE_AT = 320
"""Bytes from a header's start to the size of the buffer that its record was written from."""
VERSION_2 = 2
HEADER_COVERS = 32 << 10
"""Bytes of a record that one block of header has room for."""
WINDOW = 4096
"""Blocks before the end in which the header of the last record is looked for: eight buffers of 256 KiB are
written at a time."""

# Of an operation: transaction, length, client, flags
OPERATION = struct.Struct(">IIBBxx")
UNMOUNT = 0x20
SUPERBLOCK_OPERATIONS = 5
"""Begin, header of the transaction, which buffer, its content, commit."""
BUFFER_AT = 3 * OPERATION.size + 16
# type, size, flags, length, place
BUFFER = "HHHHQ"
BUFFER_TYPE = 0x123C


class _Record(NamedTuple):
    """`number` is the block of its header, `end` that after it, `tail` that from which on the log is
    replayed, `content` the first after the header."""

    number: int
    end: int
    tail: int
    previous: int
    operations: int
    content: bytes
    is_little_endian: bool


def is_dirty(device: Device, superblock: Superblock) -> bool:
    """Raises ReaderError when the log lies outside of the file system, and OSError."""
    log = _Log(device, superblock)
    end = log.end()
    if end is None:
        return False
    for back in range(1, min(WINDOW, log.count) + 1):
        newest = log.record((end - back) % log.count)
        if newest is not None:
            return newest.end != end or not (_is_unmounting(newest) or _is_covered(newest))
    return True


class _Log:
    def __init__(self, device: Device, superblock: Superblock) -> None:
        self._device = device
        self._start = superblock.block_offset(superblock.log_start, superblock.log_blocks)
        self.count = superblock.log_blocks * superblock.block_size // BLOCK

    def end(self) -> int | None:
        """The block after the newest; None when nothing was ever written."""
        if not self.count:
            return None
        oldest, newest = self._round_of(0), self._round_of(self.count - 1)
        if oldest == 0:
            return None
        if oldest == newest:
            return 0
        # Before the end the round is that of block 0, from it on another: an older one, or 0.
        low, high = 0, self.count - 1
        while high - low > 1:
            middle = (low + high) // 2
            if self._round_of(middle) == oldest:
                low = middle
            else:
                high = middle
        return high

    def record(self, number: int) -> _Record | None:
        """The one whose header is that block; None when it is none."""
        header = self._block(number)
        magic, _, version, length, _, _, tail, _, previous, operations, word = HEADER.unpack_from(header)
        if magic != HEADER_MAGIC:
            return None
        headers = 1
        if version & VERSION_2:
            size = int.from_bytes(header[SIZE_AT : SIZE_AT + 4], "big")
            headers = max(1, -(-size // HEADER_COVERS))
        return _Record(
            number=number,
            end=(number + headers + -(-length // BLOCK)) % self.count,
            tail=tail,
            previous=previous,
            operations=operations,
            # In the place of this word is the number of the round.
            content=word + self._block(number + headers)[4:],
            is_little_endian=int.from_bytes(header[ORDER_AT : ORDER_AT + 4], "big") == LITTLE_ENDIAN,
        )

    def _round_of(self, number: int) -> int:
        first, second = struct.unpack_from(">II", self._block(number))
        return int(second if first == HEADER_MAGIC else first)

    def _block(self, number: int) -> bytes:
        return self._device.read(self._start + number % self.count * BLOCK, BLOCK).ljust(BLOCK, b"\0")


def _is_unmounting(record: _Record) -> bool:
    _, _, _, flags = OPERATION.unpack_from(record.content)
    return record.operations == 1 and bool(flags & UNMOUNT)


def _is_covered(record: _Record) -> bool:
    """Whether it holds the superblock alone, and nothing before it waits to be put in place: then the tail is
    the record before."""
    order = "<" if record.is_little_endian else ">"
    kind, _, _, _, place = struct.unpack_from(order + BUFFER, record.content, BUFFER_AT)
    return (
        record.operations == SUPERBLOCK_OPERATIONS
        and (kind, place) == (BUFFER_TYPE, 0)
        and record.tail in (record.previous, record.number)
    )
