# SPDX-License-Identifier: MIT
"""Inodes of XFS. Source: "XFS Algorithms & Data Structures", chapter "On-disk Inode"."""

from __future__ import annotations

import os
import stat
import struct
from dataclasses import dataclass
from errno import EIO, ESTALE

from ..cache import Cache
from ..model import Device, ReaderError, Stat
from .superblock import Superblock, checksum_holds

MAGIC = b"IN"
# magic, mode, version, format, links of version 1, uid, gid, links
HEAD = struct.Struct(">2sHBBHIII")
# size, blocks, extent size hint, extents, extents of attributes, fork offset, format of attributes
MIDDLE = struct.Struct(">QQIIHBb")
MIDDLE_AT = 56
BIG_EXTENTS_AT = 24
BIG_ATTRIBUTE_EXTENTS_AT = 76
TIMES_AT = 32
FLAGS_AT = 90
FLAGS2_AT = 120
CRC_AT = 100
OWN_NUMBER_AT = 152
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


@dataclass(frozen=True, slots=True)
class Fork:
    """A part of an inode that says where its data or its attributes are. `format` says how to read `area`."""

    format: int
    area: bytes
    extents: int


@dataclass(frozen=True, slots=True)
class Inode:
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
    _, mode, version, format, old_links, uid, gid, links = HEAD.unpack_from(raw)
    if version not in CORE_SIZE or (version == 3) != superblock.has_checksums:
        raise ReaderError(EIO, f"inode {number} is damaged: its version is {version}")
    flags2 = 0
    if version == 3:
        if not checksum_holds(raw, CRC_AT):
            raise ReaderError(EIO, f"inode {number} is damaged: its checksum is wrong")
        if int.from_bytes(raw[OWN_NUMBER_AT : OWN_NUMBER_AT + 8], "big") != number:
            raise ReaderError(EIO, f"inode {number} is damaged: it has the number of another")
        flags2 = int.from_bytes(raw[FLAGS2_AT : FLAGS2_AT + 8], "big")
    if mode == 0:
        raise ReaderError(ESTALE, f"inode {number} is free")
    size, _, _, extents, attribute_extents, fork_offset, attribute_format = MIDDLE.unpack_from(raw, MIDDLE_AT)
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
    times = [_time(raw, TIMES_AT + 8 * index, bool(flags2 & FLAG2_BIG_TIME)) for index in range(3)]
    return Inode(
        number=number,
        stat=Stat(
            node=number,
            mode=mode,
            uid=uid,
            gid=gid,
            links=old_links if version == 1 else links,
            size=size,
            atime=times[0],
            mtime=times[1],
            ctime=times[2],
            device=device,
        ),
        data=Fork(format, data, extents),
        attributes=attributes,
        is_realtime=bool(int.from_bytes(raw[FLAGS_AT : FLAGS_AT + 2], "big") & FLAG_REALTIME),
    )


def _time(raw: bytes, at: int, is_big: bool) -> int:
    """Nanoseconds since 1970."""
    if is_big:
        return int.from_bytes(raw[at : at + 8], "big") + BIG_TIME_EPOCH
    seconds, nanoseconds = struct.unpack_from(">ii", raw, at)
    return int(seconds) * SECOND + int(nanoseconds)
