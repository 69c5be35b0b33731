"""Whether two disks hold the same bytes, told by their maps: what they share is never looked into."""

from __future__ import annotations

from collections.abc import Iterator

from vmfs.format import node
from vmfs.format.manifest import Disk
from vmfs.repo.blobs import BlobReader
from vmfs.repo.diskmap import Load
from vmfs.repo.reader import DiskReader


def differing_chunks(
    load: Load, one: bytes | None, other: bytes | None, level: int, first: int, last: int
) -> Iterator[int]:
    """The chunks of [first, last) that two maps have different ids for, ascending; the roots are nodes of
    that level. Raises IntegrityError."""
    if one == other or first >= last:
        return
    span = 1 << (node.BITS * level)
    here = load(one) if one else node.EMPTY
    there = load(other) if other else node.EMPTY
    for slot in range(first // span, min(-(-last // span), node.FANOUT)):
        left, right = node.child(here, slot), node.child(there, slot)
        if left == right:
            continue
        if level == 0:
            yield slot
            continue
        base = slot * span
        low, high = max(first - base, 0), min(last - base, span)
        for index in differing_chunks(load, left, right, level - 1, low, high):
            yield base + index


def same_bytes(blobs: BlobReader, one: Disk, other: Disk, start: int, length: int) -> bool:
    """Whether bytes [start, start + length) of two disks are equal. Only chunks that the range covers in part
    are read, where they differ. Raises IntegrityError and StoreError."""
    if start + length > min(one.size, other.size):
        return False
    if one.root == other.root and one.size == other.size:
        return True
    size = blobs.chunk_size
    level = min(_top(one, size), _top(other, size))
    left = _lowered(blobs.node, one.root, _top(one, size), level)
    right = _lowered(blobs.node, other.root, _top(other, size), level)
    readers = None
    for chunk in differing_chunks(
        blobs.node, left, right, level, start // size, -(-(start + length) // size)
    ):
        low, high = max(chunk * size, start), min((chunk + 1) * size, start + length)
        if high - low == size:
            return False
        readers = readers or [DiskReader(disk, blobs) for disk in (one, other)]
        if readers[0].read(low, high - low) != readers[1].read(low, high - low):
            return False
    return True


def _top(disk: Disk, chunk_size: int) -> int:
    return node.levels(disk.size, chunk_size) - 1


def _lowered(load: Load, root: bytes | None, top: int, level: int) -> bytes | None:
    """The node of that level that a map begins with: all that a smaller disk can be compared with."""
    for _ in range(level, top):
        root = node.child(load(root), 0) if root else None
    return root
