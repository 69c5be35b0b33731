# SPDX-License-Identifier: MIT
"""The superblock of XFS, and where its numbers of blocks and inodes point on the volume. Source: "XFS
Algorithms & Data Structures", 3rd edition, chapters "Superblocks" and "Inode Numbers"."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from errno import EIO, EOPNOTSUPP
from uuid import UUID

import google_crc32c

from ..model import Device, ReaderError

MAGIC = b"XFSB"
SIZE = 512
"""Bytes that are looked at; the superblock itself takes a sector."""

# versionnum: the low four bits are the version
VERSION_MASK = 0x000F
VERSION_ASCII_CI = 0x4000
VERSION_MORE_BITS = 0x8000
VERSION_DIRECTORY_2 = 0x2000
# features2, of version 4
FEATURES2_FILE_TYPE = 0x200
# incompatible features, of version 5
FILE_TYPE = 0x001
SPARSE_INODES = 0x002
META_UUID = 0x004
BIG_TIME = 0x008
NEEDS_REPAIR = 0x010
MANY_EXTENTS = 0x020
EXCHANGE_RANGE = 0x040
PARENT_POINTERS = 0x080
METADATA_DIRECTORY = 0x100
KNOWN = (
    FILE_TYPE
    | SPARSE_INODES
    | META_UUID
    | BIG_TIME
    | NEEDS_REPAIR
    | MANY_EXTENTS
    | EXCHANGE_RANGE
    | PARENT_POINTERS
    | METADATA_DIRECTORY
)
NOT_READ = {0x200: "zones", 0x400: "gaps between zones"}
"""Of a realtime device, or what stands in for one."""


@dataclass(frozen=True, slots=True)
class Superblock:
    """Sizes are bytes; `…_log` are powers of two."""

    version: int
    block_size: int
    block_log: int
    blocks: int
    group_blocks: int
    group_log: int
    groups: int
    inode_size: int
    inodes_per_block_log: int
    directory_block_size: int
    sector_size: int
    root: int
    log_start: int
    log_blocks: int
    uuid: UUID
    label: str
    has_file_type: bool
    ignores_case: bool
    needs_repair: bool

    @property
    def has_checksums(self) -> bool:
        return self.version == 5

    def block_offset(self, block: int, count: int = 1) -> int:
        """Bytes from the start of the volume to a file-system block; `count` blocks from it on must lie in
        the file system. Raises ReaderError."""
        group, within = block >> self.group_log, block & ((1 << self.group_log) - 1)
        linear = group * self.group_blocks + within
        if within + count > self.group_blocks or linear + count > self.blocks:
            raise ReaderError(EIO, f"block {block} lies outside of the file system")
        return linear * self.block_size

    def inode_offset(self, inode: int) -> int:
        """Bytes from the start of the volume to an inode. Raises ReaderError."""
        if inode <= 0:
            raise ReaderError(EIO, f"there can be no inode {inode}")
        block = inode >> self.inodes_per_block_log
        index = inode & ((1 << self.inodes_per_block_log) - 1)
        return self.block_offset(block) + index * self.inode_size


def checksum_holds(block: bytes, at: int) -> bool:
    """Of a block of version 5: CRC-32C over all of it, the checksum itself (little-endian, at `at`) as
    zeros."""
    crc = google_crc32c.value(block[:at] + bytes(4) + block[at + 4 :])
    return bool(crc == int.from_bytes(block[at : at + 4], "little"))


def read_superblock(device: Device) -> Superblock:
    """The primary one. Raises ReaderError when it is none, is damaged, or needs what this reader does not
    know."""
    head = device.read(0, SIZE)
    if len(head) < SIZE or head[:4] != MAGIC:
        raise ReaderError(EIO, "there is no XFS superblock at the start")
    block_size, blocks = struct.unpack_from(">IQ", head, 4)
    log_start, root = struct.unpack_from(">QQ", head, 48)
    group_blocks, groups, _, log_blocks, version_bits, sector_size, inode_size, _ = struct.unpack_from(
        ">IIIIHHHH", head, 84
    )
    block_log, sector_log, inode_log, inodes_per_block_log, group_log = head[120:125]
    directory_log = head[192]
    features2 = int.from_bytes(head[200:204], "big")
    version = version_bits & VERSION_MASK
    if version not in (4, 5):
        raise ReaderError(EOPNOTSUPP, f"XFS of version {version} is not known; 4 and 5 are")
    if (
        not 9 <= block_log <= 16
        or block_size != 1 << block_log
        or not 9 <= sector_log <= 15
        or sector_size != 1 << sector_log
        or not 8 <= inode_log <= 11
        or inode_size != 1 << inode_log
        or inodes_per_block_log != block_log - inode_log
        or directory_log > 16 - block_log
        or not groups
        or not 0 < group_blocks <= 1 << group_log
        or group_log > 31
        or blocks > groups * group_blocks
        or blocks <= (groups - 1) * group_blocks
    ):
        raise ReaderError(EIO, "the sizes in the XFS superblock contradict each other")
    incompatible = int.from_bytes(head[216:220], "big") if version == 5 else 0
    if version == 5:
        sector = device.read(0, sector_size)
        if len(sector) < sector_size or not checksum_holds(sector, 224):
            raise ReaderError(EIO, "the checksum of the XFS superblock is wrong")
        if unknown := incompatible & ~KNOWN:
            names = [name for bit, name in NOT_READ.items() if unknown & bit]
            raise ReaderError(
                EOPNOTSUPP,
                f"the XFS uses what is not read here ({', '.join(names) or f'features {unknown:#x}'}); "
                "use its raw file",
            )
        has_file_type = bool(incompatible & FILE_TYPE)
    else:
        if not version_bits & VERSION_DIRECTORY_2:
            raise ReaderError(EOPNOTSUPP, "XFS with directories of version 1 is not known")
        has_file_type = bool(version_bits & VERSION_MORE_BITS and features2 & FEATURES2_FILE_TYPE)
    return Superblock(
        version=version,
        block_size=block_size,
        block_log=block_log,
        blocks=blocks,
        group_blocks=group_blocks,
        group_log=group_log,
        groups=groups,
        inode_size=inode_size,
        inodes_per_block_log=inodes_per_block_log,
        directory_block_size=block_size << directory_log,
        sector_size=sector_size,
        root=root,
        log_start=log_start,
        log_blocks=log_blocks,
        uuid=UUID(bytes=head[32:48]),
        label=head[108:120].split(b"\0")[0].decode("utf-8", "replace"),
        has_file_type=has_file_type,
        ignores_case=bool(version_bits & VERSION_ASCII_CI),
        needs_repair=bool(incompatible & NEEDS_REPAIR),
    )
