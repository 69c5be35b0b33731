# SPDX-License-Identifier: MIT
"""Where the blocks of a file lie: trees of extents (ext4), and maps of blocks (ext2, ext3)."""

from __future__ import annotations

import errno
import struct
from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

from ..model import Device, ReaderError
from .inode import FLAG_EXTENTS, Inode
from .superblock import Superblock

_EXTENT_MAGIC = 0xF30A
_MAX_DEPTH = 5
_UNWRITTEN = 32768
"""Extents of more blocks are preallocated: as many as are above it, which read as zeros."""
_DIRECT = 12


class Run(NamedTuple):
    """`blocks` of the file from block `logical` lie in the volume from block `physical`."""

    logical: int
    physical: int
    blocks: int


class BlockMap:
    """The runs of one file, ascending and without overlap; preallocated ones left out."""

    def __init__(self, runs: list[Run]) -> None:
        self.runs = runs
        self._starts = [run.logical for run in runs]

    def within(self, first: int, end: int) -> Iterator[Run]:
        """The parts of runs in blocks [first, end) of the file."""
        at = max(bisect_right(self._starts, first) - 1, 0)
        for index in range(at, len(self.runs)):
            run = self.runs[index]
            if run.logical >= end:
                return
            start = max(run.logical, first)
            stop = min(run.logical + run.blocks, end)
            if start < stop:
                yield Run(start, run.physical + start - run.logical, stop - start)


def block_map(device: Device, superblock: Superblock, inode: Inode) -> BlockMap:
    """Raises ReaderError for one that is damaged. The work is bounded by the size of the volume: no block is
    taken twice."""
    if inode.flags & FLAG_EXTENTS:
        runs = _Extents(device, superblock, inode.number).runs(inode.block)
    else:
        runs = _Blocks(device, superblock, inode).runs()
    merged: list[Run] = []
    for run in runs:
        last = merged[-1] if merged else None
        if last is not None and run.logical < last.logical + last.blocks:
            raise _damaged(inode.number)
        if run.physical + run.blocks > superblock.blocks:
            raise _damaged(inode.number)
        if (
            last is not None
            and last.logical + last.blocks == run.logical
            and last.physical + last.blocks == run.physical
        ):
            merged[-1] = Run(last.logical, last.physical, last.blocks + run.blocks)
        else:
            merged.append(run)
    return BlockMap(merged)


class _Extents:
    def __init__(self, device: Device, superblock: Superblock, number: int) -> None:
        self._device = device
        self._superblock = superblock
        self._number = number
        self._seen: set[int] = set()

    def runs(self, node: bytes, depth: int | None = None) -> Iterator[Run]:
        """Of a node and all below it; `depth` is what it must have."""
        magic, entries, _, its_depth = struct.unpack_from("<HHHH", node)
        if (
            magic != _EXTENT_MAGIC
            or 12 + entries * 12 > len(node)
            or its_depth > _MAX_DEPTH
            or (depth is not None and its_depth != depth)
        ):
            raise _damaged(self._number)
        if its_depth == 0:
            for logical, blocks, high, low in struct.iter_unpack("<IHHI", node[12 : 12 + entries * 12]):
                if blocks and blocks <= _UNWRITTEN:
                    yield Run(logical, high << 32 | low, blocks)
            return
        for _, low, high, _ in struct.iter_unpack("<IIHH", node[12 : 12 + entries * 12]):
            block = high << 32 | low
            size = self._superblock.block_size
            if block in self._seen:
                raise _damaged(self._number)
            self._seen.add(block)
            child = self._device.read(block * size, size)
            if len(child) < size:
                raise _damaged(self._number)
            yield from self.runs(child, its_depth - 1)


class _Blocks:
    def __init__(self, device: Device, superblock: Superblock, inode: Inode) -> None:
        self._device = device
        self._size = superblock.block_size
        self._inode = inode
        self._end = -(-inode.size // self._size)
        self._seen: set[int] = set()

    def runs(self) -> Iterator[Run]:
        pointers = struct.unpack("<15I", self._inode.block)
        for logical, physical in enumerate(pointers[:_DIRECT]):
            if physical and logical < self._end:
                yield Run(logical, physical, 1)
        logical = _DIRECT
        for level, pointer in enumerate(pointers[_DIRECT:]):
            yield from self._indirect(pointer, level, logical)
            logical += (self._size // 4) ** (level + 1)

    def _indirect(self, block: int, level: int, logical: int) -> Iterator[Run]:
        """Of a block of pointers with `level` levels of such below it."""
        if not block or logical >= self._end:
            return
        if block in self._seen:
            raise _damaged(self._inode.number)
        self._seen.add(block)
        data = self._device.read(block * self._size, self._size)
        if len(data) < self._size:
            raise _damaged(self._inode.number)
        step = (self._size // 4) ** level
        for index, pointer in enumerate(struct.unpack(f"<{self._size // 4}I", data)):
            if not pointer:
                continue
            at = logical + index * step
            if at >= self._end:
                return
            if level:
                yield from self._indirect(pointer, level - 1, at)
            else:
                yield Run(at, pointer, 1)


def _damaged(number: int) -> ReaderError:
    return ReaderError(errno.EIO, f"the block map of inode {number} is damaged")
