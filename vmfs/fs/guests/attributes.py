"""How a guest's files look to stat(2): as in the guest. What the file system says is not believed to be
within any bounds."""

from __future__ import annotations

import stat

import pyfuse3

from vmfs.fs.attributes import IMMUTABLE_TIMEOUT, SECTOR
from vmfs.volumes.files.worker.model import Stat

_KINDS = frozenset(
    (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFBLK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK)
)
# Nanoseconds: until the year 2262, which is as far as pyfuse3 takes them.
_TIME_MAX = (1 << 63) - 1
_SIZE_MAX = (1 << 63) - 1
_U32 = (1 << 32) - 1
# The largest read that the kernel sends: programs take the hint.
_BLOCK_SIZE = 128 << 10


def of_guest(number: int, status: Stat) -> pyfuse3.EntryAttributes:
    """The attributes of a file of a guest."""
    kind = stat.S_IFMT(status.mode)
    found = pyfuse3.EntryAttributes()
    found.st_ino = pyfuse3.InodeT(number)
    # Of no known kind, it is a file that nobody may open.
    found.st_mode = pyfuse3.ModeT(status.mode & 0o177777 if kind in _KINDS else stat.S_IFREG)
    found.st_nlink = min(max(status.links, 0), _U32)
    found.st_uid = status.uid & _U32
    found.st_gid = status.gid & _U32
    found.st_rdev = status.device & _U32 if kind in (stat.S_IFBLK, stat.S_IFCHR) else 0
    found.st_size = size = min(max(status.size, 0), _SIZE_MAX)
    allocated = size if status.allocated is None else status.allocated
    found.st_blocks = min(max(-(-allocated // SECTOR), 0), _SIZE_MAX)
    found.st_blksize = _BLOCK_SIZE
    found.st_mtime_ns = _time(status.mtime)
    found.st_atime_ns = _time(status.atime)
    found.st_ctime_ns = _time(status.ctime)
    found.entry_timeout = found.attr_timeout = IMMUTABLE_TIMEOUT
    return found


def of_unreadable(number: int) -> pyfuse3.EntryAttributes:
    """What a listing says of a name whose file cannot be read. Nobody is to believe it: who looks closer gets
    the error."""
    found = pyfuse3.EntryAttributes()
    found.st_ino = pyfuse3.InodeT(number)
    found.st_mode = pyfuse3.ModeT(stat.S_IFREG)
    found.entry_timeout = found.attr_timeout = 0
    return found


def _time(value: int) -> int:
    return min(max(value, -_TIME_MAX), _TIME_MAX)
