# SPDX-License-Identifier: MIT
"""Whether the log of an XFS holds changes that are not in place yet. Source: "XFS Algorithms & Data
Structures", chapter "Journaling Log".

The log is a ring of blocks of 512 bytes. Each begins with the number of the round in which it was written
(a record's header: with its magic, then the round), so the end of the newest record is where that number
drops. A log that was unmounted cleanly ends with a record that says so."""

from __future__ import annotations

import struct
from collections.abc import Callable

from ..model import Device
from .superblock import Superblock

BLOCK = 512
HEADER_MAGIC = 0xFEEDBABE
# magic, round, version, length, LSN, tail LSN, CRC, previous block, operations
HEADER = struct.Struct(">IIIIQQIII")
HEADER_SIZE_AT = 320
"""Bytes from a header's start to the size of the buffer that its record was written from."""
VERSION_2 = 2
HEADER_COVERS = 32 << 10
"""Bytes of a record that one block of header has room for."""
UNMOUNT = 0x20
"""The flag of the operation that unmounting writes."""
WINDOW = 2048
"""Blocks before the end in which the header of the last record is looked for: eight buffers of 256 KiB are
written at a time, and a record that is not in the last is not an unmounting's."""


def is_dirty(device: Device, superblock: Superblock) -> bool:
    """Raises ReaderError when the log lies outside of the file system, and OSError."""
    start = superblock.block_offset(superblock.log_start, superblock.log_blocks)
    count = superblock.log_blocks * superblock.block_size // BLOCK

    def block(number: int) -> bytes:
        return device.read(start + number * BLOCK, BLOCK).ljust(BLOCK, b"\0")

    def round_of(number: int) -> int:
        first, second = struct.unpack_from(">II", block(number))
        return int(second if first == HEADER_MAGIC else first)

    if not count:
        return False
    end = _end(round_of, count)
    if end is None:
        return False
    for back in range(1, min(WINDOW, count) + 1):
        number = (end - back) % count
        header = block(number)
        if int.from_bytes(header[:4], "big") == HEADER_MAGIC:
            return not _is_unmounting(header, block, number, end, count)
    return True


def _end(round_of: Callable[[int], int], count: int) -> int | None:
    """The block after the newest; None when nothing was ever written."""
    oldest, newest = round_of(0), round_of(count - 1)
    if oldest == 0:
        return None
    if oldest == newest:
        return 0
    # Before the end the round is that of block 0, from it on another: an older one, or 0.
    low, high = 0, count - 1
    while high - low > 1:
        middle = (low + high) // 2
        if round_of(middle) == oldest:
            low = middle
        else:
            high = middle
    return high


def _is_unmounting(header: bytes, block: Callable[[int], bytes], number: int, end: int, count: int) -> bool:
    """Whether the record whose header is block `number` says that the file system was unmounted, and is the
    last thing in the log."""
    _, _, version, length, _, _, _, _, operations = HEADER.unpack_from(header)
    headers = 1
    if version & VERSION_2:
        size = int.from_bytes(header[HEADER_SIZE_AT : HEADER_SIZE_AT + 4], "big")
        headers = max(1, -(-size // HEADER_COVERS))
    after = (number + headers + -(-length // BLOCK)) % count
    operation = block((number + headers) % count)
    # transaction id, length, client, flags
    return operations == 1 and after == end and bool(operation[9] & UNMOUNT)
