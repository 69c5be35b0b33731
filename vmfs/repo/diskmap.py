"""The map of a disk: reading it, and writing a new one that shares what did not change with its parent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from vmfs.format import node

Load = Callable[[bytes], bytes]
"""The content of a node by id. Raises IntegrityError."""


class Map(NamedTuple):
    """A finished map. `size` and `allocated` in bytes; `root` None when all is zeros."""

    root: bytes | None
    size: int
    allocated: int


EMPTY = Map(None, 0, 0)


def count_chunks(load: Load, root: bytes | None, level: int) -> int:
    """Chunks that are not null below a node of that level."""
    if root is None:
        return 0
    content = load(root)
    if level == 0:
        return node.count(content)
    return sum(count_chunks(load, child, level - 1) for child in node.children(content) if child)


def chunks(load: Load, root: bytes | None, level: int, first: int, last: int) -> Iterator[tuple[int, bytes]]:
    """(index, id) of every chunk in [first, last) that is not null, ascending; null subtrees cost nothing."""
    if root is None or first >= last:
        return
    content = load(root)
    span = 1 << (node.BITS * level)
    for slot in range(first // span, min(-(-last // span), node.FANOUT)):
        child = node.child(content, slot)
        if child is None:
            continue
        if level == 0:
            yield slot, child
            continue
        base = slot * span
        for index, chunk in chunks(load, child, level - 1, max(first - base, 0), min(last - base, span)):
            yield base + index, chunk


@dataclass(slots=True)
class _Node:
    index: int
    before: bytes
    content: bytearray


class MapWriter:
    """Writes the map of a disk of `size` bytes, starting from `parent` (which may be of another size).

    Changes must come in ascending order of chunks. Only the nodes on the way to what changed are loaded and
    stored. The caller sets the chunk that a parent's end cuts through, if the size changes: the map knows
    nothing of the bytes inside chunks.
    """

    def __init__(
        self, size: int, chunk_size: int, parent: Map, load: Load, store: Callable[[bytes], bytes]
    ) -> None:
        self._size = size
        self._chunk_size = chunk_size
        self._load = load
        self._store = store
        self._chunks = node.chunk_count(size, chunk_size)
        self._top = node.levels(size, chunk_size) - 1
        self._shrunk = size < parent.size
        self._count = parent.allocated // chunk_size
        self._open: list[_Node | None] = [None] * (self._top + 1)
        self._root = self._resize(parent.root, node.levels(parent.size, chunk_size) - 1)

    def set(self, index: int, chunk: bytes | None) -> None:
        """Chunk number `index` is now the one of that id; None for zeros."""
        leaf = self._node(0, index >> node.BITS)
        start = (index % node.FANOUT) * node.ID_SIZE
        leaf.content[start : start + node.ID_SIZE] = chunk or node.NULL

    def clear(self, first: int, last: int) -> None:
        """Chunks [first, last) are now zeros."""
        self._clear(0, first, last)

    def finish(self) -> Map:
        if self._shrunk:
            self.clear(self._chunks, node.FANOUT ** (self._top + 1))
        self._close(self._top)
        return Map(self._root, self._size, self._count * self._chunk_size)

    def _resize(self, root: bytes | None, top: int) -> bytes | None:
        """The root of the same chunks in a map of this disk's height. A higher map begins with its new nodes
        open, the old root their first child."""
        for _ in range(self._top, top):
            if root is not None:
                root = node.child(self._load(root), 0)
        if top > self._top:
            # Branches were cut off unseen. Counted now, while all nodes are the parent's: new ones cannot be
            # loaded yet.
            self._count = count_chunks(self._load, root, self._top)
        if root is None or top >= self._top:
            return root
        for level in range(top + 1, self._top + 1):
            self._open[level] = _Node(0, node.EMPTY, bytearray(node.EMPTY))
        self._replace(top, 0, root)
        return None

    def _node(self, level: int, index: int) -> _Node:
        """The open node of that place; opening one closes its left neighbour and all below that."""
        found = self._open[level]
        if found is not None:
            if found.index == index:
                return found
            if found.index > index:
                raise ValueError("a map is written in ascending order")
            self._close(level)
        if level == self._top:
            child = self._root
        else:
            child = node.child(self._node(level + 1, index >> node.BITS).content, index % node.FANOUT)
        before = node.EMPTY if child is None else self._load(child)
        opened = self._open[level] = _Node(index, before, bytearray(before))
        return opened

    def _close(self, top: int) -> None:
        for level in range(top + 1):
            closing = self._open[level]
            if closing is None:
                continue
            if closing.content != closing.before:
                if level == 0:
                    self._count += node.count(closing.content) - node.count(closing.before)
                empty = closing.content == node.EMPTY
                new = None if empty else self._store(bytes(closing.content))
                self._replace(level, closing.index, new)
            self._open[level] = None

    def _replace(self, level: int, index: int, child: bytes | None) -> None:
        """Node number `index` of `level` is now the one of that id."""
        if level == self._top:
            self._root = child
            return
        parent = self._node(level + 1, index >> node.BITS)
        start = (index % node.FANOUT) * node.ID_SIZE
        parent.content[start : start + node.ID_SIZE] = child or node.NULL

    def _clear(self, level: int, first: int, last: int) -> None:
        """Null the children [first, last) of nodes of `level`; whole nodes are nulled in their parents."""
        while first < last:
            opened = self._open[level]
            # An open node may be new, and new ones cannot be loaded to be counted: it is emptied itself.
            open_here = opened is not None and opened.index == first >> node.BITS
            whole_nodes = first % node.FANOUT == 0 and last - first >= node.FANOUT
            if level < self._top and whole_nodes and not open_here:
                self._close(level)
                whole = (last - first) >> node.BITS
                self._clear(level + 1, first >> node.BITS, (first >> node.BITS) + whole)
                first += whole << node.BITS
                continue
            if level:
                self._close(level - 1)
            here = self._node(level, first >> node.BITS)
            end = min(last, (first | (node.FANOUT - 1)) + 1)
            for slot in range(first % node.FANOUT, first % node.FANOUT + end - first):
                if level and (child := node.child(here.content, slot)):
                    self._count -= count_chunks(self._load, child, level - 1)
                here.content[slot * node.ID_SIZE : (slot + 1) * node.ID_SIZE] = node.NULL
            first = end
