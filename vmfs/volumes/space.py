"""What volumes are made of, and are themselves: bytes in a row that can be read, with their holes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol


class Extent(NamedTuple):
    """Bytes [start, start + length); `zero` when they are known to be zeros without being read."""

    start: int
    length: int
    zero: bool


class Space(Protocol):
    """A disk of a restore point, or a volume on one or more of them. Thread-safe."""

    @property
    def size(self) -> int:
        """Bytes."""

    def read(self, offset: int, length: int) -> bytes:
        """Bytes [offset, offset + length), clipped at the end. May block; raises IntegrityError and
        StoreError."""

    def extents(self, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int, bool]]:
        """[start, end) as ascending, adjacent extents (see Extent). Raises IntegrityError and StoreError."""
