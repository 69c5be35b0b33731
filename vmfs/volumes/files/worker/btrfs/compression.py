# SPDX-License-Identifier: MIT
"""What Btrfs compresses extents with. None of these gives more bytes than it is asked for."""

from __future__ import annotations

import zlib
from errno import EIO, EOPNOTSUPP

import zstandard
from lzallright import LZOCompressor, LZOError

from ..model import ReaderError

NONE, ZLIB, LZO, ZSTD = range(4)
MAX_UNCOMPRESSED = 128 << 10
"""Bytes; Btrfs compresses no more in one extent."""
LZO_GROWTH = 16
"""What cannot be made smaller grows by such a part of it at most, and LZO_MORE bytes."""
LZO_MORE = 67
LZO_LENGTH = 4
"""Bytes of the length before the whole, and before each segment."""
ZSTD_WINDOW = 1 << 17
"""Bytes; Btrfs needs no larger window."""
_ZSTD = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW)


def expand(kind: int, data: bytes, size: int, sector_size: int) -> bytes:
    """`size` bytes from an extent's `data`, which may be padded; zeros after what was compressed. Raises
    ReaderError."""
    if size > MAX_UNCOMPRESSED:
        raise ReaderError(EIO, f"a compressed extent of {size} bytes cannot be")
    try:
        if kind == ZLIB:
            result = zlib.decompressobj().decompress(data, size) if size else b""
        elif kind == LZO:
            result = _lzo(data, size, sector_size)
        elif kind == ZSTD:
            with _ZSTD.stream_reader(data) as reader:
                result = reader.read(size)
        else:
            raise ReaderError(EOPNOTSUPP, f"compression of the unknown type {kind}")
    except (zlib.error, zstandard.ZstdError, LZOError) as error:
        raise ReaderError(EIO, f"a compressed extent is damaged: {error}") from error
    return result.ljust(size, b"\0")


def _lzo(data: bytes, size: int, sector_size: int) -> bytes:
    """Segments of at most a sector each, compressed on their own. The length of one is never split between
    two sectors."""
    end = min(int.from_bytes(data[:LZO_LENGTH], "little"), len(data))
    most = sector_size + sector_size // LZO_GROWTH + LZO_MORE
    at = LZO_LENGTH
    pieces: list[bytes] = []
    done = 0
    while at + LZO_LENGTH <= end and done < size:
        length = int.from_bytes(data[at : at + LZO_LENGTH], "little")
        at += LZO_LENGTH
        # The library gives all that there is: what it gives is bounded by what it is given.
        if not length or length > most or at + length > end:
            raise ReaderError(EIO, "a compressed extent is damaged: a segment has an impossible size")
        piece = LZOCompressor.decompress(data[at : at + length], sector_size)
        if not 0 < len(piece) <= sector_size:
            raise ReaderError(EIO, "a compressed extent is damaged: a segment holds too much, or nothing")
        pieces.append(piece)
        done += len(piece)
        at += length
        left = sector_size - at % sector_size
        if left < LZO_LENGTH:
            at += left
    return b"".join(pieces)[:size]
