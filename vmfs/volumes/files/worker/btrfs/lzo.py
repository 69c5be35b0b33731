# SPDX-License-Identifier: MIT
"""LZO1X, expanded. Written from "LZO stream format as understood by Linux's LZO decompressor" of the kernel's
documentation: the libraries for it are under the GPL."""

from __future__ import annotations


class LzoError(ValueError):
    """The data are no LZO1X, or more than was asked for."""


def decompress(data: bytes, limit: int) -> bytes:
    """All of the stream's bytes; at most `limit` of them are given. Raises LzoError."""
    try:
        return _decompress(data, limit)
    except IndexError:
        raise LzoError("the compressed data end too soon") from None


def _decompress(data: bytes, limit: int) -> bytes:
    out = bytearray()
    at = 0
    # How many literals the last instruction copied: 0 to 3, or 4 for more. It changes what the first 16 codes
    # mean.
    state = 0
    if data[0] > 17:
        count = data[0] - 17
        out += data[1 : 1 + count]
        at = 1 + count
        state = min(count, 4)
    while len(out) < limit:
        code = data[at]
        at += 1
        if code >= 64:
            length = (code >> 5) + 1
            distance = (data[at] << 3) + (code >> 2 & 7) + 1
            state = code & 3
            at += 1
        elif code >= 32:
            length = code & 31
            if not length:
                length, at = _long(data, at, 31)
            length += 2
            distance = (data[at] | data[at + 1] << 8) // 4 + 1
            state = data[at] & 3
            at += 2
        elif code >= 16:
            length = code & 7
            if not length:
                length, at = _long(data, at, 7)
            length += 2
            distance = 16384 + ((code & 8) << 11) + (data[at] | data[at + 1] << 8) // 4
            state = data[at] & 3
            at += 2
            if distance == 16384:
                break
        elif state == 0:
            length = code
            if not length:
                length, at = _long(data, at, 15)
            length += 3
            if at + length > len(data):
                raise LzoError("the compressed data end too soon")
            out += data[at : at + length]
            at += length
            state = 4
            continue
        else:
            length = 2 if state < 4 else 3
            distance = (data[at] << 2) + (code >> 2) + (1 if state < 4 else 2049)
            state = code & 3
            at += 1
        start = len(out) - distance
        if start < 0:
            raise LzoError("a copy from before the start")
        length = min(length, limit - len(out))
        if length <= distance:
            out += out[start : start + length]
        else:
            # What is copied overlaps what it is copied to: the last bytes again and again.
            pattern = out[start:]
            out += (pattern * (length // distance + 1))[:length]
        out += data[at : at + state]
        at += state
    return bytes(out[:limit])


def _long(data: bytes, at: int, base: int) -> tuple[int, int]:
    """A length that goes on in further bytes, zeros counting 255 each; and where the next part begins."""
    length = base
    while data[at] == 0:
        length += 255
        at += 1
    return length + data[at], at + 1
