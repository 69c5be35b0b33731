# SPDX-License-Identifier: MIT
"""Inodes."""

from __future__ import annotations

import errno
import os
import stat
import struct
from functools import lru_cache
from typing import NamedTuple

from ..model import Device, ReaderError, Stat
from .superblock import INCOMPAT_LARGE_DIR, Superblock, inode_table

FLAG_ENCRYPT = 0x800
_FLAG_HUGE_FILE = 0x40000
FLAG_EXTENTS = 0x80000
FLAG_INLINE_DATA = 0x10000000
_HEAD = struct.Struct("<HHIiiiIHHIII60sIIIIHHHH")
_SECOND = 1_000_000_000


class Inode(NamedTuple):
    """`block` is i_block: the place of the data, or the data. `body` is what follows the fixed fields:
    extended attributes; `attributes` is the block with more of them, 0 for none. `allocated` is in bytes."""

    number: int
    mode: int
    uid: int
    gid: int
    links: int
    size: int
    mtime: int
    atime: int
    ctime: int
    flags: int
    allocated: int
    block: bytes
    attributes: int
    body: bytes

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def stat(self) -> Stat:
        allocated = self.allocated
        if self.flags & FLAG_INLINE_DATA and stat.S_ISREG(self.mode):
            # As ext4_file_getattr() does: programs would take it for one that is all hole.
            allocated += -(-self.size // 512) * 512
        return Stat(
            *(self.number, self.mode, self.uid, self.gid, self.links, self.size),
            *(self.mtime, self.atime, self.ctime),
            self._device() if stat.S_ISCHR(self.mode) or stat.S_ISBLK(self.mode) else 0,
            allocated,
        )

    def _device(self) -> int:
        old, new = struct.unpack_from("<II", self.block)
        if old:
            return os.makedev((old >> 8) & 0xFF, old & 0xFF)
        return os.makedev((new & 0xFFF00) >> 8, (new & 0xFF) | ((new >> 12) & 0xFFF00))


class Inodes:
    """All of a file system."""

    def __init__(self, device: Device, superblock: Superblock) -> None:
        self._device = device
        self._superblock = superblock
        self._count = superblock.inodes
        self._per_group = superblock.inodes_per_group
        self._size = superblock.inode_size
        self._table = lru_cache(4096)(self._find_table)

    def read(self, number: int) -> Inode:
        """Raises ReaderError for one that cannot be, or is not in use."""
        if not 1 <= number <= self._count:
            raise ReaderError(errno.EIO, f"there is no inode {number}")
        group, index = divmod(number - 1, self._per_group)
        data = self._device.read(self._table(group) + index * self._size, self._size)
        if len(data) < self._size:
            raise ReaderError(errno.EIO, f"inode {number} lies outside of the volume")
        return _parse(number, data, self._superblock)

    def _find_table(self, group: int) -> int:
        return inode_table(self._device, self._superblock, group)


def _parse(number: int, data: bytes, superblock: Superblock) -> Inode:
    fields = _HEAD.unpack_from(data)
    mode, uid, size, atime, ctime, mtime, deleted, gid, links, blocks, flags = fields[:11]
    _, block, _, attributes, size_high, _, blocks_high, attributes_high, uid_high, gid_high = fields[11:]
    if not mode or (not links and deleted):
        raise ReaderError(errno.EIO, f"inode {number} is not in use")
    extra_size = struct.unpack_from("<H", data, 128)[0] if len(data) >= 132 else 0
    if 128 + extra_size > len(data) or extra_size % 4:
        raise ReaderError(errno.EIO, f"inode {number} is damaged")
    # What the inode does not have room for reads as zero.
    more = data[132 : 128 + extra_size].ljust(12, b"\0")
    ctime_extra, mtime_extra, atime_extra = struct.unpack_from("<III", more)
    if stat.S_ISREG(mode) or superblock.incompat & INCOMPAT_LARGE_DIR:
        size |= size_high << 32
    return Inode(
        number,
        mode,
        uid | uid_high << 16,
        gid | gid_high << 16,
        links,
        size,
        _time(mtime, mtime_extra),
        _time(atime, atime_extra),
        _time(ctime, ctime_extra),
        flags,
        (blocks | blocks_high << 32) * (superblock.block_size if flags & _FLAG_HUGE_FILE else 512),
        block,
        attributes | attributes_high << 32,
        data[128 + extra_size :] if extra_size else b"",
    )


def _time(seconds: int, extra: int) -> int:
    """Two bits of `extra` go above the 32 of the seconds, which are signed; the rest are nanoseconds."""
    return (seconds + ((extra & 3) << 32)) * _SECOND + (extra >> 2)
