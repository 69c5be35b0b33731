# SPDX-License-Identifier: MIT
"""What a reader of a file system gives. Times are nanoseconds since 1970 (UTC), sizes are bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable


class Device(Protocol):
    """The volume, read-only."""

    size: int

    def read(self, offset: int, length: int) -> bytes:
        """Bytes [offset, offset + length), clipped at the end. Raises OSError."""


class Stat(NamedTuple):
    """`node` names the file within its file system as long as that is open; two names of one file (hard
    links) have the same. `mode` is st_mode, kind and permissions. `device` is st_rdev of a device, else
    0. `allocated`: bytes that the file takes on the disk, None where that is not known."""

    node: int
    mode: int
    uid: int
    gid: int
    links: int
    size: int
    mtime: int
    atime: int
    ctime: int
    device: int = 0
    allocated: int | None = None


class Found(NamedTuple):
    """An entry of a directory, without `.` and `..`. `stat` is None where the entry cannot be read: `problem`
    says why."""

    name: bytes
    stat: Stat | None
    problem: str | None = None


class Run(NamedTuple):
    """Bytes [start, start + length) of a file lie in the volume as they are, from byte `place` on."""

    start: int
    length: int
    place: int


class ReaderError(Exception):
    """One file, directory or range cannot be read. `errno` is the system's number: EIO for what is damaged,
    ENOENT, ENOTDIR, EOPNOTSUPP for what the reader does not know."""

    def __init__(self, errno: int, message: str) -> None:
        super().__init__(message)
        self.errno = errno


class Reader(Protocol):
    """One file system, opened. Its class is called with a Device, and raises ReaderError when it is none of
    its kind. All methods raise ReaderError; any other exception of a library is taken for EIO."""

    type: str
    """As blkid has it: ext4, xfs, btrfs, ntfs, vfat, exfat, iso9660."""
    label: str
    uuid: str
    warnings: Sequence[str]
    """What a person should know before believing the content: a journal to replay, a dirty log."""

    def root(self) -> Stat: ...

    def stat(self, node: int) -> Stat: ...

    def scan(self, directory: int) -> Iterator[Found]: ...

    def lookup(self, directory: int, name: bytes) -> Stat: ...

    def readlink(self, node: int) -> bytes: ...

    def read(self, node: int, offset: int, length: int) -> bytes:
        """Clipped at the end of the file; holes are zeros."""

    def extents(self, node: int) -> Iterator[tuple[int, int]]:
        """(offset, length) of the runs of a regular file that hold data, ascending; all else is a hole."""

    def xattrs(self, node: int) -> dict[bytes, bytes]:
        """By full name (`user.x`, `security.capability`)."""


@runtime_checkable
class PlainReader(Protocol):
    """A Reader that knows where the data of files lies. What it says must give what `read` gives."""

    def runs(self, node: int) -> Iterator[Run]:
        """Of a regular file, ascending and within its size; all that is in none of them reads as zeros.
        Raises ReaderError, with EOPNOTSUPP for data that does not lie in the volume as it is."""
