# SPDX-License-Identifier: MIT
"""The trees of hashes that large directories and large sets of attributes are found through. Source: "XFS
Algorithms & Data Structures", chapters "Directories" and "Extended Attributes"."""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Iterator
from errno import EIO

from ..cache import Cache
from ..model import Device, ReaderError
from .inode import Fork, Inode
from .mapping import Mapping
from .superblock import Superblock, checksum_holds

# Magic numbers of versions 4 and 5
NODE = (0xFEBE, 0x3EBE)
DIRECTORY_LEAF = (0xD2F1, 0x3DF1)
DIRECTORY_LEAF_OF_NODE = (0xD2FF, 0x3DFF)
ATTRIBUTE_LEAF = (0xFBEE, 0x3BEE)
MAX_LEVELS = 5
"""As the kernel has it (XFS_DA_NODE_MAXDEPTH)."""
WORD = 0xFFFFFFFF
PAIR = struct.Struct(">II")
CACHED = 8 << 20
"""Bytes of blocks of trees that are kept."""


class HashIndex:
    """Reads the blocks of directories and attributes, and their trees of hashes."""

    def __init__(self, device: Device, superblock: Superblock, mapping: Mapping) -> None:
        self._device = device
        self._superblock = superblock
        self._mapping = mapping
        self._sound: Cache[tuple[int, bool, int], bytes] = Cache(CACHED)
        self._version = 1 if superblock.has_checksums else 0
        self._info = 56 if superblock.has_checksums else 12
        self._header = 64 if superblock.has_checksums else 16

    def directory_block(self, inode: Inode, number: int) -> tuple[bytes, int]:
        """Directory block `number` and where it begins on the volume. Raises ReaderError."""
        size = self._superblock.directory_block_size
        return self.block(inode, inode.data, number * (size // self._superblock.block_size), size)

    def block(self, inode: Inode, fork: Fork, start: int, size: int) -> tuple[bytes, int]:
        """`size` bytes of a fork from its block `start` on, and where they begin on the volume. Raises
        ReaderError."""
        superblock = self._superblock
        pieces: list[bytes] = []
        place = 0
        at, end = start, start + size // superblock.block_size
        for extent in self._mapping.extents(inode, fork, start):
            if extent.start > at:
                break
            skip = at - extent.start
            count = min(end - at, extent.blocks - skip)
            offset = superblock.block_offset(extent.block + skip, count)
            pieces.append(self._device.read(offset, count * superblock.block_size))
            if at == start:
                place = offset
            at += count
            if at == end:
                break
        raw = b"".join(pieces)
        if len(raw) < size:
            raise ReaderError(EIO, f"inode {inode.number} is damaged: its block {start} is missing")
        return raw, place

    def addresses(self, inode: Inode, base: int, size: int, wanted: int) -> Iterator[int]:
        """What the index that begins `base` bytes into a directory gives for a hash. Raises ReaderError."""
        header = self._header
        number = base // self._superblock.block_size
        kinds = NODE + DIRECTORY_LEAF + DIRECTORY_LEAF_OF_NODE
        magic, raw = self._read(inode, inode.data, number, size, kinds)
        level: int | None = None
        while magic == NODE[self._version]:
            count, level = self._node(inode, raw, level, size)
            index = _find(raw, header, count, wanted)
            if index == count:
                return
            number = _pair(raw, header, index)[1]
            magic, raw = self._read(inode, inode.data, number, size, kinds)
        seen: set[int] = set()
        while True:
            seen.add(number)
            count = int.from_bytes(raw[self._info : self._info + 2], "big")
            if header + 8 * count > size:
                raise self._damaged(inode, "a leaf of its index has impossible sizes")
            index = _find(raw, header, count, wanted)
            while index < count:
                found, address = _pair(raw, header, index)
                if found != wanted:
                    break
                yield address
                index += 1
            number = int.from_bytes(raw[:4], "big")
            # Names of one hash may go on in the next leaf.
            if index < count or not number or magic == DIRECTORY_LEAF[self._version]:
                return
            if number in seen:
                raise self._damaged(inode, "the leaves of its index go round in a circle")
            magic, raw = self._read(inode, inode.data, number, size, DIRECTORY_LEAF_OF_NODE)

    def attribute_leaves(self, inode: Inode, fork: Fork) -> Iterator[bytes]:
        """The blocks that attributes lie in. Raises ReaderError."""
        size = self._superblock.block_size
        number = 0
        magic, raw = self._read(inode, fork, number, size, NODE + ATTRIBUTE_LEAF)
        level: int | None = None
        while magic == NODE[self._version]:
            _, level = self._node(inode, raw, level, size)
            number = int.from_bytes(raw[self._header + 4 : self._header + 8], "big")
            magic, raw = self._read(inode, fork, number, size, NODE + ATTRIBUTE_LEAF)
        seen: set[int] = set()
        while True:
            seen.add(number)
            yield raw
            number = int.from_bytes(raw[:4], "big")
            if not number:
                return
            if number in seen:
                raise self._damaged(inode, "its attributes go round in a circle")
            magic, raw = self._read(inode, fork, number, size, ATTRIBUTE_LEAF)

    def _node(self, inode: Inode, raw: bytes, above: int | None, size: int) -> tuple[int, int]:
        """The number of entries of a node, and its level, which must be one below that of the node above."""
        count, level = struct.unpack_from(">HH", raw, self._info)
        if not 0 < level <= MAX_LEVELS or (above is not None and level != above - 1):
            raise self._damaged(inode, "its index has impossible levels")
        if not count or self._header + 8 * count > size:
            raise self._damaged(inode, "a node of its index has impossible sizes")
        return count, level

    def _read(
        self, inode: Inode, fork: Fork, number: int, size: int, kinds: tuple[int, ...]
    ) -> tuple[int, bytes]:
        key = (inode.number, fork is inode.data, number)
        raw = self._sound.get(key)
        if raw is not None and (magic := int.from_bytes(raw[8:10], "big")) in kinds[self._version :: 2]:
            return magic, raw
        raw, place = self.block(inode, fork, number, size)
        magic = int.from_bytes(raw[8:10], "big")
        if magic not in kinds[self._version :: 2]:
            raise self._damaged(inode, f"its block {number} is none of its index")
        if self._superblock.has_checksums:
            own, owner = struct.unpack_from(">Q24xQ", raw, 16)
            if not checksum_holds(raw, 12) or own != place // 512 or owner != inode.number:
                raise self._damaged(inode, f"its block {number} is not sound")
        self._sound.put(key, raw, size)
        return magic, raw

    @staticmethod
    def _damaged(inode: Inode, why: str) -> ReaderError:
        return ReaderError(EIO, f"inode {inode.number} is damaged: {why}")


def _pair(raw: bytes, header: int, index: int) -> tuple[int, int]:
    """A hash, and what it leads to."""
    found: tuple[int, int] = PAIR.unpack_from(raw, header + PAIR.size * index)
    return found


def _find(raw: bytes, header: int, count: int, wanted: int) -> int:
    """The first of a block's pairs with this hash or a larger one; `count` when there is none."""
    return bisect_left(range(count), wanted, key=lambda index: _pair(raw, header, index)[0])


def name_hash(name: bytes) -> int:
    """Of a name in a directory, 32 bits."""
    value = 0
    at = 0
    while len(name) - at >= 4:
        a, b, c, d = name[at : at + 4]
        value = (a << 21) ^ (b << 14) ^ (c << 7) ^ d ^ _rotated(value, 28)
        at += 4
    rest = name[at:]
    if rest:
        folded = 0
        for byte in rest:
            folded = folded << 7 ^ byte
        value = folded ^ _rotated(value, 7 * len(rest))
    return value & WORD


def _rotated(value: int, bits: int) -> int:
    """To the left, in 32 bits."""
    return (value << bits | value >> 32 - bits) & WORD
