"""What the repository needs of a place that keeps objects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Protocol

Buffer = bytes | bytearray | memoryview


class Store(Protocol):
    """Named, immutable objects. Names are segments of `[a-zA-Z0-9_-]`, joined by slashes.

    Every method may raise StoreError; those that name an object, ObjectMissingError when it is not there.
    All methods may be called from several threads.
    """

    url: str

    @property
    def writable(self) -> bool:
        """Whether a put has a chance."""

    def put(self, name: str, parts: Iterable[Buffer]) -> None:
        """Make the object from its parts. On return it is durable; before, nobody sees any of it.
        Raises ObjectExistsError if there is one of that name, which stays as it was."""

    def get(self, name: str) -> bytes: ...

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        """Bytes [offset, offset + length) of the object; fewer where it ends before."""

    def read_into(self, name: str, offset: int, out: memoryview) -> int:
        """Fill `out` with bytes [offset, offset + len(out)) of the object, and give how many that were: fewer
        where it ends before."""

    def size(self, name: str) -> int:
        """Bytes."""

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """(name, size in bytes) of every object below `prefix`, whole segments, in no order."""

    def delete(self, name: str) -> None:
        """On return it is gone for good. Deleting what is not there is no error."""

    def now(self) -> datetime:
        """The time as the store tells it, UTC: the one clock that all its clients share."""

    def sweep(self, prefix: str = "") -> int:
        """Remove what dead writers left half-written, below `prefix` or everywhere; how many."""

    def settle(self, prefix: str) -> None:
        """On return the objects directly below `prefix` are durable, even those of a writer that died before
        its put returned."""
