# SPDX-License-Identifier: MIT
"""Items of Btrfs's file trees: inodes, entries of directories, extents."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from errno import EIO
from typing import NamedTuple

from ..model import ReaderError, Stat
from .tree import Key

# Types of keys
INODE_ITEM = 1
XATTR_ITEM = 24
DIR_ITEM = 84
DIR_INDEX = 96
EXTENT_DATA = 108
ROOT_ITEM = 132
ROOT_REF = 156

# generation, transaction, size, bytes, block group, links, uid, gid, mode, device
INODE = struct.Struct("<QQQQQIIIIQ")
INODE_SIZE = 160
TIMES_AT = 112
TIME = struct.Struct("<qI")
SECOND = 1_000_000_000
"""Nanoseconds."""
MAX_SIZE = (1 << 63) - 1

# key of what it names, transaction, length of data, of the name, type
ENTRY = struct.Struct("<QBQQHHB")

# generation, expanded size, compression, encryption, other encoding, kind
EXTENT = struct.Struct("<QQBBHB")
# logical address and size there (before decompression), offset into what it expands to, bytes of the file
REGULAR_EXTENT = struct.Struct("<QQQQ")
INLINE, REGULAR, PREALLOCATED = range(3)

NODE_BITS = 40
"""The node number of an inode is that of its tree, shifted by so many bits, and its own."""
PLACEHOLDER = 1 << NODE_BITS - 1
"""This and the number of a subvolume is the inode of the empty directory that stands in a snapshot where that
subvolume was."""


def node_of(tree: int, inode: int) -> int:
    """Raises ReaderError for numbers that no file system gets to."""
    if inode >= PLACEHOLDER or tree >> 63 - NODE_BITS:
        raise ReaderError(EIO, f"inode {inode} of tree {tree} cannot be")
    return tree << NODE_BITS | inode


class Entry(NamedTuple):
    """An entry of a directory, or an attribute (`data` is its value)."""

    target: Key
    name: bytes
    data: bytes


class Extent(NamedTuple):
    """Bytes [start, start + length) of a file. `inline` are its bytes as they are stored, when they are in
    the tree; else they are at logical address `address`, 0 for a hole."""

    start: int
    length: int
    expanded: int
    compression: int
    is_preallocated: bool
    address: int
    stored: int
    skip: int
    inline: bytes | None

    @property
    def is_hole(self) -> bool:
        return self.is_preallocated or (self.inline is None and not self.address)


def parse_inode(node: int, raw: bytes, sector_size: int) -> Stat:
    """Raises ReaderError."""
    if len(raw) < INODE_SIZE:
        raise ReaderError(EIO, f"inode {node} is damaged: it has only {len(raw)} bytes")
    _, _, size, allocated, _, links, uid, gid, mode, device = INODE.unpack_from(raw)
    if size > MAX_SIZE:
        raise ReaderError(EIO, f"inode {node} is damaged: its size is {size}")
    atime, ctime, mtime = (
        seconds * SECOND + nanoseconds
        for seconds, nanoseconds in (TIME.unpack_from(raw, TIMES_AT + 12 * index) for index in range(3))
    )
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        # As the kernel has it in memory: 20 bits of minor.
        device = os.makedev(device >> 20 & 0xFFF, device & 0xFFFFF)
    else:
        device = 0
    # What is inline takes as much as it is; the kernel says whole sectors.
    allocated = min(-(-allocated // sector_size) * sector_size, MAX_SIZE)
    return Stat(node, mode, uid, gid, links, size, mtime, atime, ctime, device, allocated)


def parse_entries(raw: bytes) -> Iterator[Entry]:
    """Those of one item: names of one hash share it. Raises ReaderError."""
    at = 0
    while at < len(raw):
        if at + ENTRY.size > len(raw):
            raise ReaderError(EIO, "an entry of a Btrfs directory is cut off")
        object, kind, offset, _, data_length, name_length, _ = ENTRY.unpack_from(raw, at)
        at += ENTRY.size
        end = at + name_length + data_length
        if not name_length or end > len(raw):
            raise ReaderError(EIO, "an entry of a Btrfs directory does not fit")
        yield Entry((object, kind, offset), raw[at : at + name_length], raw[at + name_length : end])
        at = end


def parse_extent(start: int, raw: bytes) -> Extent:
    """Raises ReaderError."""
    if len(raw) < EXTENT.size:
        raise ReaderError(EIO, "a Btrfs extent is cut off")
    _, expanded, compression, encryption, other, kind = EXTENT.unpack_from(raw)
    if encryption or other or kind > PREALLOCATED:
        raise ReaderError(EIO, "a Btrfs extent is encoded in an unknown way")
    if kind == INLINE:
        return Extent(start, expanded, expanded, compression, False, 0, 0, 0, raw[EXTENT.size :])
    if len(raw) < EXTENT.size + REGULAR_EXTENT.size:
        raise ReaderError(EIO, "a Btrfs extent is cut off")
    address, stored, skip, length = REGULAR_EXTENT.unpack_from(raw, EXTENT.size)
    # Not what it expands to where nothing is compressed: old kernels wrote that wrong.
    limit = expanded if compression else stored
    if not length or start + length > 1 << 63 or (address and skip + length > limit):
        raise ReaderError(EIO, "a Btrfs extent has impossible sizes")
    return Extent(start, length, expanded, compression, kind == PREALLOCATED, address, stored, skip, None)
