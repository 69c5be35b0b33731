"""Which parts of which restore points are hit when some blobs cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from vmfs.errors import IntegrityError
from vmfs.format import node
from vmfs.format.manifest import Disk
from vmfs.repo.diskmap import Load

Check = Callable[[bytes], bool]
"""Whether the data chunk of that id can be had."""


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes [start, start + length) of a disk, that cannot be read."""

    start: int
    length: int


class MapChecker:
    """Walks maps, each node once however many points share it, and remembers where the damage is."""

    def __init__(self, load: Load, check: Check, chunk_size: int) -> None:
        self._load = load
        self._check = check
        self._chunk_size = chunk_size
        self._good: set[bytes] = set()
        self._bad_nodes: dict[bytes, str] = {}
        self._bad_below: dict[bytes, list[int]] = {}
        """Slots that lead to damage, by node."""

    def walk(self, disk: Disk) -> None:
        """Look at everything below the disk's root that no earlier walk saw."""
        if disk.root is not None:
            self._sound(disk.root, node.levels(disk.size, self._chunk_size) - 1)

    def ranges(self, disk: Disk) -> list[Range]:
        """What of a walked disk cannot be read: ascending, not touching."""
        merged: list[Range] = []
        if disk.root is None:
            return merged
        for first, count in self._runs(disk.root, node.levels(disk.size, self._chunk_size) - 1, 0):
            start = first * self._chunk_size
            end = min(start + count * self._chunk_size, disk.size)
            if start >= disk.size:
                break
            if merged and merged[-1].start + merged[-1].length == start:
                merged[-1] = Range(merged[-1].start, end - merged[-1].start)
            else:
                merged.append(Range(start, end - start))
        return merged

    def _sound(self, node_id: bytes, level: int) -> bool:
        if node_id in self._good:
            return True
        if node_id in self._bad_nodes or node_id in self._bad_below:
            return False
        try:
            children = node.children(self._load(node_id))
        except IntegrityError as error:
            self._bad_nodes[node_id] = str(error)
            return False
        bad = [
            slot
            for slot, child in enumerate(children)
            if child and not (self._sound(child, level - 1) if level else self._check(child))
        ]
        if bad:
            self._bad_below[node_id] = bad
            return False
        self._good.add(node_id)
        return True

    def _runs(self, node_id: bytes, level: int, first: int) -> Iterator[tuple[int, int]]:
        """(first chunk, chunks) of the damage below a node whose first chunk is number `first`."""
        span = 1 << (node.BITS * (level + 1))
        if node_id in self._bad_nodes:
            yield first, span
            return
        content = b""
        for slot in self._bad_below.get(node_id, ()):
            content = content or self._load(node_id)
            at = first + slot * (span >> node.BITS)
            child = node.child(content, slot)
            if level and child:
                yield from self._runs(child, level - 1, at)
            else:
                yield at, 1
