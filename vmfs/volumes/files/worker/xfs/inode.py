# SPDX-License-Identifier: MIT
"""Inodes of XFS. Source: "XFS Algorithms & Data Structures", chapter "On-disk Inode"."""

from __future__ import annotations

import os
import stat
import struct
from errno import EIO, ESTALE
from typing import NamedTuple

from ..cache import Cache
from ..model import Device, ReaderError, Stat
from .superblock import Superblock, checksum_holds

MAGIC = b"IN"
# magic, mode, version, format, links of version 1, uid, gid, links; size, blocks, extent size hint, extents,
# extents of attributes, fork offset, format of attributes; flags
CORE = struct.Struct(">2sHBBHIII36xQQIIHBb6xH")
# Of version 3: more flags, own number
CORE_3 = struct.Struct(">Q24xQ")
CORE_3_AT = 120
BIG_EXTENTS_AT = 24
BIG_ATTRIBUTE_EXTENTS_AT = 76
TIMES_AT = 32
TIMES = struct.Struct(">6i")
BIG_TIMES = struct.Struct(">3Q")
CRC_AT = 100
CORE_SIZE = {1: 100, 2: 100, 3: 176}
"""Bytes, by version: what follows is the forks."""

# Formats of forks
DEVICE, LOCAL, EXTENTS, BTREE = 0, 1, 2, 3

FLAG_REALTIME = 0x1
FLAG2_BIG_TIME = 0x08
FLAG2_MANY_EXTENTS = 0x10

SECOND = 1_000_000_000
"""Nanoseconds."""
BIG_TIME_EPOCH = -(1 << 31) * SECOND
"""What a big time of 0 means, in nanoseconds since 1970."""
MAX_SIZE = (1 << 63) - 1


class Fork(NamedTuple):
    """A part of an inode that says where its data or its attributes are. `format` says how to read `area`."""

    format: int
    area: bytes
    extents: int


class Inode(NamedTuple):
    number: int
    stat: Stat
    data: Fork
    attributes: Fork | None
    is_realtime: bool


class Inodes:
    """The inodes of a file system, read by number."""

    def __init__(self, device: Device, superblock: Superblock) -> None:
        self._device = device
        self._superblock = superblock
        self._cache: Cache[int, Inode] = Cache(4096)

    def get(self, number: int) -> Inode:
        """Raises ReaderError when it is none, is free, or is damaged."""
        inode = self._cache.get(number)
        if inode is None:
            offset = self._superblock.inode_offset(number)
            inode = parse(self._device.read(offset, self._superblock.inode_size), number, self._superblock)
            self._cache.put(number, inode)
        return inode


def parse(raw: bytes, number: int, superblock: Superblock) -> Inode:
    """Raises ReaderError."""
    if len(raw) < superblock.inode_size or raw[:2] != MAGIC:
        raise ReaderError(EIO, f"inode {number} is damaged: it is none")
    _, mode, version, format, old_links, uid, gid, links, *rest = CORE.unpack_from(raw)
    size, blocks, _, extents, attribute_extents, fork_offset, attribute_format, flags = rest
    if version not in CORE_SIZE or (version == 3) != superblock.has_checksums:
        raise ReaderError(EIO, f"inode {number} is damaged: its version is {version}")
    flags2 = 0
    if version == 3:
        flags2, own = CORE_3.unpack_from(raw, CORE_3_AT)
        if not checksum_holds(raw, CRC_AT):
            raise ReaderError(EIO, f"inode {number} is damaged: its checksum is wrong")
        if own != number:
            raise ReaderError(EIO, f"inode {number} is damaged: it has the number of another")
    if mode == 0:
        raise ReaderError(ESTALE, f"inode {number} is free")
    if size > MAX_SIZE:
        raise ReaderError(EIO, f"inode {number} is damaged: its size is {size}")
    if flags2 & FLAG2_MANY_EXTENTS:
        extents, attribute_extents = (
            int.from_bytes(raw[BIG_EXTENTS_AT : BIG_EXTENTS_AT + 8], "big"),
            int.from_bytes(raw[BIG_ATTRIBUTE_EXTENTS_AT : BIG_ATTRIBUTE_EXTENTS_AT + 4], "big"),
        )
    forks = raw[CORE_SIZE[version] :]
    if fork_offset * 8 >= len(forks):
        raise ReaderError(EIO, f"inode {number} is damaged: its attributes begin outside of it")
    data, attributes = forks, None
    if fork_offset:
        data = forks[: fork_offset * 8]
        attributes = Fork(attribute_format, forks[fork_offset * 8 :], attribute_extents)
    device = 0
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        # As in System V: 14 bits of major, 18 of minor.
        number_of_device = int.from_bytes(data[:4], "big")
        device = os.makedev(number_of_device >> 18, number_of_device & 0x3FFFF)
    atime, mtime, ctime = _times(raw, bool(flags2 & FLAG2_BIG_TIME))
    return Inode(
        number=number,
        stat=Stat(
            node=number,
            mode=mode,
            uid=uid,
            gid=gid,
            links=old_links if version == 1 else links,
            size=size,
            atime=atime,
            mtime=mtime,
            ctime=ctime,
            device=device,
            allocated=min(blocks * superblock.block_size, MAX_SIZE),
        ),
        data=Fork(format, data, extents),
        attributes=attributes,
        is_realtime=bool(flags & FLAG_REALTIME),
    )


def _times(raw: bytes, are_big: bool) -> list[int]:
    """Of access, of content, of the inode: nanoseconds since 1970."""
    if are_big:
        return [time + BIG_TIME_EPOCH for time in BIG_TIMES.unpack_from(raw, TIMES_AT)]
    parts = TIMES.unpack_from(raw, TIMES_AT)
    return [seconds * SECOND + rest for seconds, rest in zip(parts[::2], parts[1::2], strict=True)]
