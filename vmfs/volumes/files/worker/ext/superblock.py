# SPDX-License-Identifier: MIT
"""The superblock and the group descriptors."""

from __future__ import annotations

import errno
import struct
import uuid
from typing import NamedTuple

from ..model import Device, ReaderError

OFFSET = 1024
_MAGIC = 0xEF53

COMPAT_HAS_JOURNAL = 0x4
COMPAT_SPARSE_SUPER2 = 0x200
INCOMPAT_FILETYPE = 0x2
INCOMPAT_RECOVER = 0x4
INCOMPAT_JOURNAL_DEV = 0x8
INCOMPAT_META_BG = 0x10
INCOMPAT_64BIT = 0x80
INCOMPAT_LARGE_DIR = 0x4000
_INCOMPAT_KNOWN = 0x2 | 0x4 | 0x10 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x1000 | 0x2000 | 0x4000
_INCOMPAT_KNOWN |= 0x8000 | 0x10000 | 0x20000  # inline_data, encrypt, casefold
_INCOMPAT_EXT3 = 0x2 | 0x4 | 0x10
_RO_COMPAT_EXT3 = 0x1 | 0x2 | 0x4
_RO_COMPAT_SPARSE_SUPER = 0x1
_STATE_ERRORS = 0x2
_OLD_INODE_SIZE = 128


class Superblock(NamedTuple):
    """Sizes in bytes, places in blocks."""

    block_size: int
    blocks: int
    inodes: int
    blocks_per_group: int
    inodes_per_group: int
    first_data_block: int
    inode_size: int
    descriptor_size: int
    compat: int
    incompat: int
    ro_compat: int
    first_meta_group: int
    backup_groups: tuple[int, int]
    journal_inode: int
    has_errors: bool
    label: str
    uuid: str

    @property
    def type(self) -> str:
        """By the rules of blkid."""
        if self.incompat & ~_INCOMPAT_EXT3 or self.ro_compat & ~_RO_COMPAT_EXT3:
            return "ext4"
        return "ext3" if self.compat & COMPAT_HAS_JOURNAL else "ext2"

    @property
    def groups(self) -> int:
        return -(-(self.blocks - self.first_data_block) // self.blocks_per_group)


def read_superblock(device: Device) -> Superblock:
    """Raises ReaderError when there is none, or one that asks for what is not known here."""
    data = device.read(OFFSET, 1024)
    if len(data) < 1024 or struct.unpack_from("<H", data, 0x38)[0] != _MAGIC:
        raise ReaderError(errno.EIO, "there is no superblock of ext2, ext3 or ext4")
    inodes, blocks = struct.unpack_from("<II", data, 0)
    first_data_block, log_block_size = struct.unpack_from("<II", data, 0x14)
    blocks_per_group, _, inodes_per_group = struct.unpack_from("<III", data, 0x20)
    (state,) = struct.unpack_from("<H", data, 0x3A)
    (revision,) = struct.unpack_from("<I", data, 0x4C)
    inode_size = struct.unpack_from("<H", data, 0x58)[0] if revision else _OLD_INODE_SIZE
    compat, incompat, ro_compat = struct.unpack_from("<III", data, 0x5C) if revision else (0, 0, 0)
    descriptor_size = 32
    if incompat & INCOMPAT_64BIT:
        (descriptor_size,) = struct.unpack_from("<H", data, 0xFE)
        blocks |= struct.unpack_from("<I", data, 0x150)[0] << 32
    if incompat & ~_INCOMPAT_KNOWN:
        raise ReaderError(
            errno.EOPNOTSUPP, f"it has features that are not known here ({incompat & ~_INCOMPAT_KNOWN:#x})"
        )
    if (
        log_block_size > 6
        or not 0 < blocks_per_group <= 8 << (10 + log_block_size + 16)
        or inodes_per_group < 1
        or not 128 <= inode_size <= 1024 << log_block_size
        or inode_size & (inode_size - 1)
        or not 32 <= descriptor_size <= 1024
        or descriptor_size & (descriptor_size - 1)
        or blocks <= first_data_block
    ):
        raise ReaderError(errno.EIO, "its superblock makes no sense")
    return Superblock(
        block_size=1024 << log_block_size,
        blocks=blocks,
        inodes=inodes,
        blocks_per_group=blocks_per_group,
        inodes_per_group=inodes_per_group,
        first_data_block=first_data_block,
        inode_size=inode_size,
        descriptor_size=descriptor_size,
        compat=compat,
        incompat=incompat,
        ro_compat=ro_compat,
        first_meta_group=struct.unpack_from("<I", data, 0x104)[0],
        backup_groups=struct.unpack_from("<II", data, 0x24C),
        journal_inode=struct.unpack_from("<I", data, 0xE0)[0],
        has_errors=bool(state & _STATE_ERRORS),
        label=data[0x78:0x88].split(b"\0")[0].decode("utf-8", "replace"),
        uuid=str(uuid.UUID(bytes=data[0x68:0x78])),
    )


def inode_table(device: Device, superblock: Superblock, group: int) -> int:
    """Where the inodes of a group begin, in bytes of the volume. Raises ReaderError where that cannot be."""
    if not 0 <= group < superblock.groups:
        raise ReaderError(errno.EIO, f"there is no group {group}")
    descriptor = device.read(_descriptor_place(superblock, group), superblock.descriptor_size)
    if len(descriptor) < superblock.descriptor_size:
        raise ReaderError(errno.EIO, f"the descriptor of group {group} lies outside of the volume")
    (table,) = struct.unpack_from("<I", descriptor, 8)
    if superblock.descriptor_size >= 64:
        table |= struct.unpack_from("<I", descriptor, 0x28)[0] << 32
    return int(table) * superblock.block_size


def _descriptor_place(superblock: Superblock, group: int) -> int:
    per_block = superblock.block_size // superblock.descriptor_size
    meta_group, index = divmod(group, per_block)
    if superblock.incompat & INCOMPAT_META_BG and meta_group >= superblock.first_meta_group:
        # In the first group of the meta group, after the copy of the superblock if it has one.
        first = meta_group * per_block
        block = superblock.first_data_block + first * superblock.blocks_per_group
        block += _has_super(superblock, first)
        # Of 1 KiB blocks with bigalloc the first is before the superblock, and yet belongs to the group.
        block += superblock.block_size == 1024 and not meta_group and not superblock.first_data_block
    else:
        block = OFFSET // superblock.block_size + 1 + meta_group
    return block * superblock.block_size + index * superblock.descriptor_size


def _has_super(superblock: Superblock, group: int) -> bool:
    if not group:
        return True
    if superblock.compat & COMPAT_SPARSE_SUPER2:
        return group in superblock.backup_groups
    if group == 1 or not superblock.ro_compat & _RO_COMPAT_SPARSE_SUPER:
        return True
    return any(_is_power(group, base) for base in (3, 5, 7))


def _is_power(number: int, base: int) -> bool:
    while number % base == 0:
        number //= base
    return number == 1
