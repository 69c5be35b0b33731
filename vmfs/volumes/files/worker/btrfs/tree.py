# SPDX-License-Identifier: MIT
"""The B-trees of Btrfs. Each node has a checksum, its own address and its level; keys ascend."""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from errno import EIO
from itertools import pairwise
from typing import NamedTuple

from ..cache import Cache
from ..model import Device, ReaderError
from .chunks import ChunkMap
from .superblock import CHECKSUM_SIZE, MAX_LEVEL, Superblock

# UUID of the file system, own address, flags, UUID of the chunk tree, generation, owner, items, level
HEADER = struct.Struct("<16sQQ16sQQIB")
HEADER_SIZE = CHECKSUM_SIZE + HEADER.size
# key; offset from the end of the header, size
ITEM = struct.Struct("<QBQII")
# key; address, generation
POINTER = struct.Struct("<QBQQQ")

Key = tuple[int, int, int]
"""Object, type, offset."""
LAST = (1 << 64) - 1
CACHED = 100_000
"""Items of nodes that are kept: about 30 MB."""
LEAVES = 64
"""Trees of which the leaf that was read last is tried first: what is looked for is often near."""
WEIGHT = 256
"""Bytes of a node that weigh as much as an item."""


class Root(NamedTuple):
    """Where a tree begins: logical address, level of that node, its generation."""

    address: int
    level: int
    generation: int


class _Node(NamedTuple):
    keys: list[Key]
    targets: list[tuple[int, int]]
    """Of a leaf: where in `raw` the value begins and ends; of others: address and generation of the child."""
    raw: bytes


class Trees:
    """Reads items of any tree of the file system."""

    def __init__(self, device: Device, superblock: Superblock, chunks: ChunkMap) -> None:
        self._device = device
        self._superblock = superblock
        self._chunks = chunks
        self._uuid = superblock.metadata_uuid.bytes
        self._cache: Cache[tuple[int, int, int], _Node] = Cache(CACHED)
        self._leaves: Cache[Root, _Node] = Cache(LEAVES)

    def get(self, root: Root, key: Key) -> bytes | None:
        """The value of exactly this key. Raises ReaderError, and OSError where no copy can be read."""
        found = self.last(root, key, key)
        return found[1] if found else None

    def last(self, root: Root, first: Key, last: Key) -> tuple[Key, bytes] | None:
        """The last item in [first, last]. Raises ReaderError."""
        leaf = self._leaves.get(root)
        if leaf is None or not leaf.keys or not leaf.keys[0] <= last <= leaf.keys[-1]:
            leaf = self._leaf(root, last)
            self._leaves.put(root, leaf)
        index = bisect_right(leaf.keys, last) - 1
        if index < 0 or leaf.keys[index] < first:
            return None
        begin, end = leaf.targets[index]
        return leaf.keys[index], leaf.raw[begin:end]

    def _leaf(self, root: Root, key: Key) -> _Node:
        """The leaf that has the last item up to `key`; the first leaf when there is none."""
        node = self._node(root)
        while root.level:
            root, node = self._child(root, node, max(0, bisect_right(node.keys, key) - 1))
        return node

    def items(self, root: Root, first: Key, last: Key) -> Iterator[tuple[Key, bytes]]:
        """Keys and values in [first, last], ascending. Raises ReaderError."""
        previous: Key | None = None
        for key, value in self._below(root, first, last):
            # A tree whose branches lead to the same node again and again would never end.
            if previous is not None and key <= previous:
                raise ReaderError(EIO, f"the Btrfs tree at {root.address} is out of order")
            previous = key
            yield key, value

    def _below(self, root: Root, first: Key, last: Key) -> Iterator[tuple[Key, bytes]]:
        node = self._node(root)
        if root.level == 0:
            start, end = bisect_left(node.keys, first), bisect_right(node.keys, last)
            for index in range(start, end):
                begin, stop = node.targets[index]
                yield node.keys[index], node.raw[begin:stop]
            return
        for index in range(max(0, bisect_right(node.keys, first) - 1), len(node.keys)):
            if node.keys[index] > last:
                return
            child, _ = self._child(root, node, index)
            yield from self._below(child, first, last)

    def _child(self, root: Root, node: _Node, index: int) -> tuple[Root, _Node]:
        """Child `index` of the node at `root`: where it is, and itself."""
        address, generation = node.targets[index]
        child = Root(address, root.level - 1, generation)
        below = self._node(child)
        if below.keys[:1] != node.keys[index : index + 1]:
            raise ReaderError(EIO, f"the Btrfs tree at {root.address} is out of order")
        return child, below

    def _node(self, root: Root) -> _Node:
        node = self._cache.get(root)
        if node is not None:
            return node
        size = self._superblock.node_size
        if root.address % self._superblock.sector_size:
            raise ReaderError(EIO, f"there can be no Btrfs node at {root.address}")
        copies, count = self._chunks.places(root.address, size)
        if count < size:
            raise ReaderError(EIO, f"the Btrfs node at {root.address} ends outside of its chunk")
        problem: Exception | None = None
        for place in copies:
            try:
                node = self._parse(self._device.read(place, size), root)
            except (ReaderError, OSError) as error:
                problem = error
                continue
            self._cache.put(root, node, len(node.keys) + len(node.raw) // WEIGHT)
            return node
        raise problem or ReaderError(EIO, f"the Btrfs node at {root.address} has no copy")

    def _parse(self, raw: bytes, root: Root) -> _Node:
        name = f"the Btrfs node at {root.address} is damaged"
        if len(raw) < self._superblock.node_size:
            raise ReaderError(EIO, f"{name}: the volume ends before it")
        digest = self._superblock.checksum(raw[CHECKSUM_SIZE:])
        if raw[: len(digest)] != digest:
            raise ReaderError(EIO, f"{name}: its checksum is wrong")
        uuid, address, _, _, generation, _, count, level = HEADER.unpack_from(raw, CHECKSUM_SIZE)
        if uuid != self._uuid or address != root.address or generation != root.generation:
            raise ReaderError(EIO, f"{name}: it is another one, or an older state of it")
        if level != root.level or level > MAX_LEVEL:
            raise ReaderError(EIO, f"{name}: its level is {level}")
        struct_of_item = POINTER if level else ITEM
        end = HEADER_SIZE + count * struct_of_item.size
        if end > len(raw) or (level and not count):
            raise ReaderError(EIO, f"{name}: it cannot have {count} items")
        keys: list[Key] = []
        targets: list[tuple[int, int]] = []
        for object, kind, offset, one, other in struct_of_item.iter_unpack(raw[HEADER_SIZE:end]):
            keys.append((object, kind, offset))
            targets.append((one, other) if level else (HEADER_SIZE + one, HEADER_SIZE + one + other))
        if any(later <= earlier for earlier, later in pairwise(keys)):
            raise ReaderError(EIO, f"{name}: its keys are out of order")
        if not level and any(begin < end or stop > len(raw) for begin, stop in targets):
            raise ReaderError(EIO, f"{name}: an item lies outside of it")
        return _Node(keys, targets, raw if not level else b"")
