"""What the pipeline needs of a disk, whatever hypervisor or file it comes from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol, runtime_checkable

from ingest.memory import Memory
from vmfs.errors import VmfsError


class SourceError(VmfsError):
    """A disk to back up is missing, unreadable, or changed under us."""


class BitmapError(SourceError):
    """The dirty bitmap cannot tell what changed: it is missing, inconsistent, or of another disk."""


class Extent(NamedTuple):
    """A run of bytes [start, start + length) of a disk. `zero` means that it is known to read as zeros
    without reading it."""

    start: int
    length: int
    zero: bool


class SourceReader(Protocol):
    """One connection to the disk's bytes. Each pipeline thread opens its own and is alone in using it."""

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill the whole buffer from byte `offset`. Raises SourceError naming the disk and the offset on
        a read error, or when the source ends before the buffer is full."""

    def close(self) -> None: ...


class DiskSource(Protocol):
    """A disk at one instant (or one that nobody writes to).

    Opening one checks what can be checked before any byte is stored: it exists, it is readable, its size
    is a multiple of 512 bytes, the bitmap is there and usable.
    """

    name: str
    """What the user called it, for messages and progress."""
    size: int
    """Virtual size, bytes, a multiple of 512."""
    block_size: int
    """Logical block size, bytes."""

    def extents(self) -> Iterator[Extent]:
        """The whole disk [0, size) as ascending, adjacent extents."""

    def dirty_extents(self) -> Iterator[Extent] | None:
        """What changed according to the dirty bitmap the source was opened with: ascending, not overlapping
        extents within [0, size). A changed extent that reads as zeros has `zero` set. None when the source
        was opened with no bitmap."""

    def reader(self, memory: Memory, /) -> SourceReader:
        """It reads into buffers that are parts of `memory`."""

    def close(self) -> None: ...


@runtime_checkable
class Interruptible(Protocol):
    """A source whose readers may wait long for another machine."""

    def interrupt(self) -> None:
        """From any thread: whoever waits for the source gives up soon, with SourceError. It is of no use
        afterwards."""
