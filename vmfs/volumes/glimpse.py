"""A look at a volume's start and end, where signatures and tables are: each is read once."""

from __future__ import annotations

from vmfs.volumes.pieces import clipped
from vmfs.volumes.space import Space

HEAD = 68 << 10
"""Bytes at the start that hold all signatures that are looked for: Btrfs has its own at 64 KiB."""
TAIL = 128 << 10
"""Bytes at the end: a backup GPT, and md's superblocks of the versions 1.0 and 0.90."""


class Glimpse:
    """Reads of `space`, of which start and end are kept. For a moment, and one thread."""

    def __init__(self, space: Space) -> None:
        self.size = space.size
        self._space = space
        self._head: bytes | None = None
        self._tail: bytes | None = None
        self._tail_at = max(0, space.size - TAIL)

    def read(self, offset: int, length: int) -> bytes:
        """As the space's own."""
        length = clipped(self.size, offset, length)
        if not length:
            return b""
        if offset + length <= HEAD:
            if self._head is None:
                self._head = self._space.read(0, min(HEAD, self.size))
            return self._head[offset : offset + length]
        if offset >= self._tail_at:
            if self._tail is None:
                self._tail = self._space.read(self._tail_at, self.size - self._tail_at)
            return self._tail[offset - self._tail_at : offset - self._tail_at + length]
        return self._space.read(offset, length)
