"""Thin pools: which blocks of a pool's data belong to which volume, by its metadata, read-only.

From drivers/md/dm-thin-metadata.c and persistent-data/dm-btree-internal.h of Linux; all is little-endian.
The metadata are blocks of 4 KiB. A B-tree leads from a device's number to the root of the B-tree of
its blocks, in which a value is (block of data << 24 | time).
"""

from __future__ import annotations

import struct
import threading
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import google_crc32c

from vmfs.volumes.damage import Unmappable, VolumeDamagedError
from vmfs.volumes.pieces import LaidSpace
from vmfs.volumes.remapped import Remapped, Run

SECTOR = 512
BLOCK = 4096
# CRC, flags, own block, UUID, magic, version, time, transaction, held root
SUPERBLOCK = struct.Struct("<IIQ16sQIIQQ")
# root of the mappings, root of the details, size of a block of data in sectors
ROOTS = struct.Struct("<QQI")
ROOTS_AT = 320
MAGIC = 27022010
VERSIONS = (1, 2)
SUPERBLOCK_SALT = 160774
NODE_SALT = 121107
NODE = struct.Struct("<IIQIII")
NODE_SIZE = 32
INTERNAL = 1
LEAF = 2
TIME_BITS = 24
MAX_DEPTH = 10
"""126 entries in a node at the least half full: 63 ** 10 blocks are more than there can be."""
MIN_CHUNK = 64 << 10
MAX_CHUNK = 1 << 30
KEPT_NODES = 256


class _Node(NamedTuple):
    leaf: bool
    keys: tuple[int, ...]
    values: tuple[int, ...]


class ThinPool:
    """A pool by the spaces of its metadata and its data. Raises Unmappable when it is none, and what reading
    raises. Thread-safe."""

    def __init__(self, metadata: LaidSpace, data: LaidSpace) -> None:
        block = metadata.read(0, BLOCK)
        if len(block) < BLOCK:
            raise Unmappable("its thin pool has no metadata")
        crc, _, _, _, magic, version, _, _, _ = SUPERBLOCK.unpack_from(block)
        if magic != MAGIC or version not in VERSIONS or _checksum(block, SUPERBLOCK_SALT) != crc:
            raise Unmappable("the metadata of its thin pool is damaged")
        self._root, _, sectors = ROOTS.unpack_from(block, ROOTS_AT)
        self.chunk = sectors * SECTOR
        if not MIN_CHUNK <= self.chunk <= MAX_CHUNK or self.chunk % MIN_CHUNK:
            raise Unmappable(f"its thin pool is said to have blocks of {self.chunk} bytes")
        self._metadata = metadata
        self._data = data
        self._lock = threading.Lock()
        self._nodes: OrderedDict[int, _Node] = OrderedDict()

    def volume(self, device: int, base: LaidSpace) -> LaidSpace:
        """The volume of a device's number: what the pool does not hold of it lies in `base`. Raises
        Unmappable, and what reading raises."""
        try:
            found = list(self._entries(self._root, device, device + 1))
        except VolumeDamagedError as error:
            raise Unmappable(str(error)) from error
        if not found:
            raise Unmappable(f"its thin pool has no device {device}: it was never used")
        runs = partial(self._runs, found[0][1])
        return Remapped(base, self._data, self.chunk, runs, also=(self._metadata,))

    def _runs(self, root: int, first: int, end: int) -> Iterator[Run]:
        begin = stored = count = 0
        for key, value in self._entries(root, first, end):
            block = value >> TIME_BITS
            if count and key == begin + count and block == stored + count:
                count += 1
                continue
            if count:
                yield Run(begin, stored, count)
            begin, stored, count = key, block, 1
        if count:
            yield Run(begin, stored, count)

    def _entries(self, root: int, low: int, high: int) -> Iterator[tuple[int, int]]:
        """The entries of the tree at `root` with keys in [low, high), ascending."""
        yield from self._below(root, low, high, 0, 1 << 64, 0)

    def _below(
        self, block: int, low: int, high: int, least: int, limit: int, depth: int
    ) -> Iterator[tuple[int, int]]:
        """Every key below a node lies in [least, limit), which its parent says. That the ranges of siblings
        do not overlap bounds the walk: no node comes twice, whatever the blocks refer to."""
        if depth >= MAX_DEPTH:
            raise VolumeDamagedError("the metadata of a thin pool is damaged: its tree is too deep")
        node = self._node(block)
        keys = node.keys
        if keys and not (least <= keys[0] and keys[-1] < limit):
            raise VolumeDamagedError(f"the metadata of a thin pool is damaged: block {block} is out of place")
        end = bisect_left(keys, high)
        if node.leaf:
            for index in range(bisect_left(keys, low), end):
                yield keys[index], node.values[index]
            return
        # A child holds the keys from its own on to the next child's.
        for index in range(max(0, bisect_right(keys, low) - 1), end):
            until = keys[index + 1] if index + 1 < len(keys) else limit
            yield from self._below(node.values[index], low, high, keys[index], until, depth + 1)

    def _node(self, block: int) -> _Node:
        with self._lock:
            node = self._nodes.get(block)
            if node is not None:
                self._nodes.move_to_end(block)
                return node
        node = self._parse(block)
        with self._lock:
            self._nodes[block] = node
            if len(self._nodes) > KEPT_NODES:
                self._nodes.popitem(last=False)
        return node

    def _parse(self, block: int) -> _Node:
        data = self._metadata.read(block * BLOCK, BLOCK)
        if len(data) == BLOCK:
            crc, flags, own, count, most, size = NODE.unpack_from(data)
            if (
                _checksum(data, NODE_SALT) == crc
                and flags in (INTERNAL, LEAF)
                and own == block
                and size == 8
                and count <= most
                and NODE_SIZE + 16 * most <= BLOCK
            ):
                keys = struct.unpack_from(f"<{count}Q", data, NODE_SIZE)
                values = struct.unpack_from(f"<{count}Q", data, NODE_SIZE + 8 * most)
                if all(first < second for first, second in pairwise(keys)):
                    return _Node(flags == LEAF, keys, values)
        raise VolumeDamagedError(f"the metadata of a thin pool is damaged: block {block} is no node")


def _checksum(block: bytes, salt: int) -> int:
    """Of all but the checksum itself. Device-mapper's CRC-32C is not inverted at the end."""
    crc: int = google_crc32c.value(block[4:])
    return crc ^ 0xFFFFFFFF ^ salt
