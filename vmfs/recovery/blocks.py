"""What differs between two restore points, by the maps of their disks alone: no data is read."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from vmfs.format import node
from vmfs.format.manifest import Disk
from vmfs.repo.diskmap import Load, chunks
from vmfs.repo.mapdiff import differing_chunks


class Range(NamedTuple):
    """Bytes [start, start + length) of a disk."""

    start: int
    length: int


def changed_ranges(load: Load, one: Disk | None, other: Disk | None, chunk_size: int) -> list[Range]:
    """Where two states of a disk differ, in whole chunks cut at the end of the larger; what only one of them
    has counts as changed, but for zeros. Raises IntegrityError."""
    sizes = [disk.size if disk else 0 for disk in (one, other)]
    return list(_merged(_changed_chunks(load, one, other, chunk_size), chunk_size, max(sizes)))


def _changed_chunks(load: Load, one: Disk | None, other: Disk | None, chunk_size: int) -> Iterator[int]:
    disks = [disk for disk in (one, other) if disk is not None]
    if len(disks) == 2:
        tops = [_top(disk, chunk_size) for disk in disks]
        level = min(tops)
        left, right = (_lowered(load, disk.root, top, level) for disk, top in zip(disks, tops, strict=True))
        common = min(node.chunk_count(disk.size, chunk_size) for disk in disks)
        yield from differing_chunks(load, left, right, level, 0, common)
    else:
        common = 0
    larger = max(disks, key=lambda disk: disk.size)
    last = node.chunk_count(larger.size, chunk_size)
    for index, _ in chunks(load, larger.root, _top(larger, chunk_size), common, last):
        yield index


def _top(disk: Disk, chunk_size: int) -> int:
    return node.levels(disk.size, chunk_size) - 1


def _lowered(load: Load, root: bytes | None, top: int, level: int) -> bytes | None:
    """The node of that level that a higher map begins with."""
    for _ in range(level, top):
        root = node.child(load(root), 0) if root else None
    return root


def _merged(indexes: Iterable[int], chunk_size: int, end: int) -> Iterator[Range]:
    begin = until = -1
    for index in indexes:
        if index != until:
            if until > begin:
                yield Range(begin * chunk_size, (until - begin) * chunk_size)
            begin = index
        until = index + 1
    if until > begin:
        yield Range(begin * chunk_size, min(until * chunk_size, end) - begin * chunk_size)


def overlap(ranges: Sequence[Range], start: int, length: int) -> int:
    """Bytes of [start, start + length) that the ranges, ascending, cover."""
    covered = 0
    first = max(0, bisect_right(ranges, start, key=lambda item: item.start) - 1)
    for item in ranges[first:]:
        if item.start >= start + length:
            break
        covered += max(0, min(item.start + item.length, start + length) - max(item.start, start))
    return covered
