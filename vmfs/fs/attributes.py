"""How entries look to stat(2), and for how long the kernel may believe it."""

from __future__ import annotations

import stat
from dataclasses import dataclass

import pyfuse3

from vmfs.fs.entries import CHANGING, SETTLING, Entry, Role

# Seconds. New points must show by themselves, so what the upper directories hold is believed briefly.
CHANGING_TIMEOUT = 1.0
POINT_TIMEOUT = 300.0
IMMUTABLE_TIMEOUT = 86_400.0
SECTOR = 512
_BLOCK_MIN = 128 * 1024
_BLOCK_MAX = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Ownership:
    """Whose the files are. `everybody` lets others than the owner read them."""

    uid: int
    gid: int
    everybody: bool = False

    def mode(self, entry: Entry) -> int:
        if entry.role is Role.LATEST:
            return stat.S_IFLNK | 0o777
        if entry.is_directory:
            return stat.S_IFDIR | (0o555 if self.everybody else 0o500)
        return stat.S_IFREG | (0o444 if self.everybody else 0o400)


class Attributes:
    """Makes what pyfuse3 answers with. `chunk_size` is the repository's, bytes."""

    def __init__(self, ownership: Ownership, chunk_size: int) -> None:
        self._ownership = ownership
        # Programs read in pieces of this size: a whole number of chunks where that is sensible.
        self._block_size = min(max(chunk_size, _BLOCK_MIN), _BLOCK_MAX)

    def of(self, number: int, entry: Entry) -> pyfuse3.EntryAttributes:
        found = pyfuse3.EntryAttributes()
        found.st_ino = pyfuse3.InodeT(number)
        found.st_mode = pyfuse3.ModeT(self._ownership.mode(entry))
        found.st_uid = self._ownership.uid
        found.st_gid = self._ownership.gid
        found.st_size = entry.size
        found.st_blocks = -(-entry.allocated // SECTOR)
        found.st_blksize = self._block_size
        found.st_atime_ns = found.st_mtime_ns = found.st_ctime_ns = entry.mtime_ns
        found.entry_timeout, found.attr_timeout = _timeouts(entry)
        return found


def absent(timeout: float) -> pyfuse3.EntryAttributes:
    """The answer that there is no such name, to be believed for `timeout` seconds."""
    found = pyfuse3.EntryAttributes()
    found.st_ino = pyfuse3.InodeT(0)
    found.entry_timeout = timeout
    return found


def _timeouts(entry: Entry) -> tuple[float, float]:
    """For the name, for the attributes; seconds."""
    if entry.role in CHANGING:
        return CHANGING_TIMEOUT, CHANGING_TIMEOUT
    if entry.role in SETTLING:
        return POINT_TIMEOUT, 0
    if entry.role is Role.POINT:
        return POINT_TIMEOUT, IMMUTABLE_TIMEOUT
    return IMMUTABLE_TIMEOUT, IMMUTABLE_TIMEOUT
