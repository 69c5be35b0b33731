# SPDX-License-Identifier: MIT
"""Where the blocks of a fork lie on the volume. Source: "XFS Algorithms & Data Structures", chapter "Data
Extents"."""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator
from errno import EIO
from typing import NamedTuple

from ..cache import Cache
from ..model import Device, ReaderError
from .inode import BTREE, EXTENTS, Fork, Inode
from .superblock import Superblock, checksum_holds

RECORD = struct.Struct(">QQ")
MAX_LEVELS = 9
"""More than a fork can have."""
CACHED = 50_000
"""Extents of blocks of trees that are kept: about 10 MB."""


class Extent(NamedTuple):
    """So many `blocks` of the fork from `start` on are those of the file system from `block` on. What is
    unwritten (preallocated) reads as zeros. All in blocks."""

    start: int
    block: int
    blocks: int
    is_unwritten: bool


class _Branch(NamedTuple):
    """A block of the tree above its leaves."""

    starts: tuple[int, ...]
    children: tuple[int, ...]


class Mapping:
    """Reads the extents of forks."""

    def __init__(self, device: Device, superblock: Superblock) -> None:
        self._device = device
        self._superblock = superblock
        self._blocks: Cache[tuple[int, int], _Branch | list[Extent]] = Cache(CACHED)
        self._lists: Cache[tuple[int, bool], list[Extent]] = Cache(64)

    def extents(self, inode: Inode, fork: Fork, start: int = 0) -> Iterator[Extent]:
        """Those of the fork that end after its block `start`, ascending. Raises ReaderError."""
        end = 0
        for extent in self._unchecked(inode, fork, start):
            if extent.start < end:
                raise self._damaged(inode, "its extents overlap")
            end = extent.start + extent.blocks
            if end <= start:
                continue
            if not extent.blocks:
                raise self._damaged(inode, "it has an extent of no blocks")
            self._superblock.block_offset(extent.block, extent.blocks)
            yield extent

    def _unchecked(self, inode: Inode, fork: Fork, start: int) -> Iterator[Extent]:
        if fork.format == EXTENTS:
            key = (inode.number, fork is inode.data)
            extents = self._lists.get(key)
            if extents is None:
                if fork.extents * RECORD.size > len(fork.area):
                    raise self._damaged(inode, f"it cannot have {fork.extents} extents")
                extents = _records(fork.area[: fork.extents * RECORD.size])
                self._lists.put(key, extents)
            yield from extents
        elif fork.format == BTREE:
            level, count = struct.unpack_from(">HH", fork.area)
            if not 0 < level <= MAX_LEVELS:
                raise self._damaged(inode, "its tree of extents has an impossible depth")
            branch = _branch(fork.area, 4, count)
            if branch is None:
                raise self._damaged(inode, "the root of its tree of extents has impossible sizes")
            yield from self._descend(inode, branch, level, start)
        else:
            raise self._damaged(inode, f"its content has the unknown format {fork.format}")

    def _descend(self, inode: Inode, branch: _Branch, level: int, start: int) -> Iterator[Extent]:
        """The extents below a branch of this level, from the last child on that begins at or before
        `start`."""
        first = max(0, bisect_right(branch.starts, start) - 1)
        last = -1
        for index in range(first, len(branch.children)):
            # Ascending: a tree whose branches lead to the same blocks again and again would never end.
            if branch.starts[index] <= last:
                raise self._damaged(inode, "its tree of extents is out of order")
            last = branch.starts[index]
            child = self._block(inode, branch.children[index], level - 1)
            if isinstance(child, list):
                if child and child[0].start != last:
                    raise self._damaged(inode, "its tree of extents is out of order")
                yield from child
            else:
                if child.starts[0] != last:
                    raise self._damaged(inode, "its tree of extents is out of order")
                yield from self._descend(inode, child, level - 1, start)

    def _block(self, inode: Inode, number: int, level: int) -> _Branch | list[Extent]:
        known = self._blocks.get((number, level))
        if known is not None:
            return known
        superblock = self._superblock
        offset = superblock.block_offset(number)
        raw = self._device.read(offset, superblock.block_size)
        magic, header = (b"BMA3", 72) if superblock.has_checksums else (b"BMAP", 24)
        found, found_level, count = struct.unpack_from(">4sHH", raw.ljust(72, b"\0"))
        if len(raw) < superblock.block_size or found != magic or found_level != level:
            raise self._damaged(inode, f"block {number} is none of its tree of extents")
        if superblock.has_checksums:
            own, owner = struct.unpack_from(">Q24xQ", raw, 24)
            if not checksum_holds(raw, 64) or own != offset // 512 or owner != inode.number:
                raise self._damaged(inode, f"block {number} of its tree of extents is not sound")
        block: _Branch | list[Extent] | None
        if level:
            block = _branch(raw, header, count)
        else:
            end = header + count * RECORD.size
            block = _records(raw[header:end]) if count and end <= len(raw) else None
        if block is None:
            raise self._damaged(inode, f"block {number} of its tree of extents has impossible sizes")
        self._blocks.put((number, level), block, count)
        return block

    @staticmethod
    def _damaged(inode: Inode, why: str) -> ReaderError:
        return ReaderError(EIO, f"inode {inode.number} is damaged: {why}")


def _branch(area: bytes, at: int, count: int) -> _Branch | None:
    """Its keys come first, then, after the room for as many as fit, its pointers."""
    room = (len(area) - at) // 16
    if not 0 < count <= room:
        return None
    starts = struct.unpack_from(f">{count}Q", area, at)
    return _Branch(starts, struct.unpack_from(f">{count}Q", area, at + 8 * room))


def _records(raw: bytes) -> list[Extent]:
    """From 128 bits: a flag, 54 bits of start, 52 of block, 21 of count."""
    return [
        Extent(
            start=high >> 9 & (1 << 54) - 1,
            block=(high & 0x1FF) << 43 | low >> 21,
            blocks=low & (1 << 21) - 1,
            is_unwritten=bool(high >> 63),
        )
        for high, low in RECORD.iter_unpack(raw)
    ]
