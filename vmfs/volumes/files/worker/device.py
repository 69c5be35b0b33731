# SPDX-License-Identifier: MIT
"""The volume as a worker sees it: its client's answers, with a cache for the small reads of the readers."""

from __future__ import annotations

import errno
import mmap
import socket
from collections import OrderedDict

from . import wire

BLOCK = 64 << 10
"""Bytes that are asked for at a time for small reads. libyal reads metadata in pieces of some bytes."""
BLOCKS = 512
"""Of these, in the cache."""
LARGE = 256 << 10
"""Bytes. Reads of that many go past the cache: what they read is the data of files, once."""


class RemoteDevice:
    """Implements `model.Device` over the client's socket and the shared memory."""

    def __init__(self, connection: socket.socket, memory: mmap.mmap, size: int) -> None:
        self.size = size
        self._connection = connection
        self._memory = memory
        self._cache: OrderedDict[int, bytes] = OrderedDict()

    def read(self, offset: int, length: int) -> bytes:
        if offset < 0 or length < 0:
            raise OSError(errno.EINVAL, f"a read of {length} bytes at {offset}")
        length = min(length, self.size - offset)
        if length <= 0:
            return b""
        if length >= LARGE:
            pieces = [
                self._fetch(at, min(wire.PIECE, offset + length - at))
                for at in range(offset, offset + length, wire.PIECE)
            ]
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)
        number, start = divmod(offset, BLOCK)
        if start + length <= BLOCK:
            return self._block(number)[start : start + length]
        last = (offset + length - 1) // BLOCK
        joined = b"".join([self._block(each) for each in range(number, last + 1)])
        return joined[start : start + length]

    def _block(self, number: int) -> bytes:
        block = self._cache.get(number)
        if block is not None:
            self._cache.move_to_end(number)
            return block
        block = self._fetch(number * BLOCK, min(BLOCK, self.size - number * BLOCK))
        self._cache[number] = block
        if len(self._cache) > BLOCKS:
            self._cache.popitem(last=False)
        return block

    def _fetch(self, offset: int, length: int) -> bytes:
        self._connection.send(wire.WANT.pack(wire.Reply.WANT, offset, length))
        answer = self._connection.recv(wire.REQUEST.size)
        if not answer:
            raise SystemExit(0)  # The client is gone.
        if answer[0] != wire.Op.BLOCK:
            raise OSError(errno.EIO, f"bytes {offset} to {offset + length} of the volume cannot be read")
        return self._memory[:length]
