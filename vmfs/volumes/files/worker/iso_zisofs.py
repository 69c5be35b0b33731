# SPDX-License-Identifier: MIT
"""zisofs: files that mkzftree or xorriso compressed, which Linux shows as they were. After zisofs-tools and
the kernel's fs/isofs/compress.c. Numbers are little-endian."""

from __future__ import annotations

import errno
import struct
import zlib
from collections.abc import Callable

from .model import ReaderError

_MAGIC = b"\x37\xe4\x53\x96\xc9\xdb\xd6\x07"
_ALGORITHM = b"pz"
_SHIFTS = range(15, 18)

Read = Callable[[int, int], bytes]
"""Reads (offset, length) of the file as it is stored, clipped at its end."""


class Compressed:
    """One file. Of its blocks of equal size, pointers behind the header say where each begins, and the last
    ends."""

    def __init__(self, read: Read, algorithm: bytes, header: int, shift: int, size: int) -> None:
        """Raises ReaderError for what is not known."""
        if algorithm != _ALGORITHM or shift not in _SHIFTS:
            raise ReaderError(errno.EOPNOTSUPP, "its compression (a form of zisofs) is not known here")
        if not read(0, len(_MAGIC)).startswith(_MAGIC):
            raise _damaged()
        self._read = read
        self._header = header * 4
        self._block = 1 << shift
        self._size = size

    def read(self, offset: int, length: int) -> bytes:
        end = min(offset + length, self._size)
        if offset >= end:
            return b""
        first, last = offset // self._block, (end - 1) // self._block
        count = last - first + 2
        raw = self._read(self._header + first * 4, count * 4)
        if len(raw) < count * 4:
            raise _damaged()
        places = struct.unpack(f"<{count}I", raw)
        data = b"".join(
            self._content(number, *places[number - first : number - first + 2])
            for number in range(first, last + 1)
        )
        start = offset - first * self._block
        return data[start : start + end - offset]

    def _content(self, number: int, start: int, stop: int) -> bytes:
        size = min(self._block, self._size - number * self._block)
        if start == stop:
            return bytes(size)
        # Compressed, what cannot be made smaller grows by a little.
        if not start < stop <= start + 2 * self._block:
            raise _damaged()
        try:
            data = zlib.decompressobj().decompress(self._read(start, stop - start), size)
        except zlib.error as error:
            raise _damaged() from error
        if len(data) < size:
            raise _damaged()
        return data


def _damaged() -> ReaderError:
    return ReaderError(errno.EIO, "its compressed data (zisofs) is damaged")
