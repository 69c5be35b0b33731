# SPDX-License-Identifier: MIT
"""Directories. The blocks of an index (htree) look like such without entries: all can be read in a row."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator

from ..model import ReaderError

_ENTRY = struct.Struct("<IHBB")
_HEAD = 8
_CHECKSUM_TAIL = 0xDE


def entries(data: bytes, block_size: int) -> Iterator[tuple[bytes, int]]:
    """(name, inode) of a block of `block_size` bytes or less (inline data), without `.` and `..`. Raises
    ReaderError after the last that makes sense."""
    at = 0
    while at + _HEAD <= len(data):
        inode, length, name_length, kind = _ENTRY.unpack_from(data, at)
        # Of 64 KiB, which 16 bits cannot say.
        length = block_size if length in (0, 65535) and block_size == 65536 else length
        if length < _HEAD or length % 4 or at + length > len(data) or name_length + _HEAD > length:
            raise ReaderError(errno.EIO, "a block of the directory is damaged")
        name = data[at + _HEAD : at + _HEAD + name_length]
        if inode and name not in (b".", b"..", b"") and kind != _CHECKSUM_TAIL:
            yield name, inode
        at += length
