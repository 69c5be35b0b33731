"""A qcow2 image (version 3, as in QEMU's docs/interop/qcow2.txt) that is written front to back.

Which parts of a disk hold data is known before any of it is read, so every offset is known before the first
byte is written: no seeking, no second look at the data, and a pipe will do. In clusters of 64 KiB:

    header | refcount table | refcount blocks | L1 table | L2 table, its data | L2 table, its data | …

Every cluster of the file is in use once. What is not data has no cluster and reads as zeros. All integers are
big-endian.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import NamedTuple

CLUSTER_BITS = 16
CLUSTER = 1 << CLUSTER_BITS
L2_ENTRIES = CLUSTER // 8
GROUP = L2_ENTRIES * CLUSTER
"""Bytes of the disk that one L2 table covers: 512 MiB."""

_MAGIC = b"QFI\xfb"
_VERSION = 3
_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
_REFCOUNT_ORDER = 4
_BLOCK_ENTRIES = CLUSTER // 2
_FULL_BLOCK = b"\0\1" * _BLOCK_ENTRIES
_COPIED = 1 << 63
"""On an entry: its cluster is in use once, and may be written to in place."""


class Range(NamedTuple):
    """Bytes [start, start + length) of the disk."""

    start: int
    length: int


Ranges = Callable[[], Iterable[Range]]
"""What of the disk holds data, the same at each call: ascending, apart, each beginning at a multiple of
CLUSTER and ending at one too, or at the end of the disk."""


class Layout(NamedTuple):
    """How many clusters of the file each part takes; `groups` are the data clusters of each L2 table."""

    table: int
    blocks: int
    l1: int
    total: int
    groups: array[int]

    @property
    def size(self) -> int:
        """Of the whole file, bytes."""
        return self.total * CLUSTER


def layout(size: int, ranges: Ranges) -> Layout:
    """The layout of the image of a disk of `size` bytes. Takes 4 bytes of memory for every 512 MiB of it."""
    groups = array("I", bytes(4 * max(1, -(-size // GROUP))))
    for start, length in _in_groups(ranges()):
        groups[start // GROUP] += -(-length // CLUSTER)
    l1 = -(-len(groups) * 8 // CLUSTER)
    counted = 1 + l1 + sum(groups) + sum(1 for clusters in groups if clusters)
    blocks = table = 1
    # The refcounts' own clusters are counted too.
    while blocks * _BLOCK_ENTRIES < counted + blocks + table:
        blocks = -(-(counted + blocks + table) // _BLOCK_ENTRIES)
        table = -(-blocks * 8 // CLUSTER)
    return Layout(table, blocks, l1, counted + blocks + table, groups)


def stream(size: int, ranges: Ranges) -> Iterator[bytes | Range]:
    """The image of a disk of `size` bytes, front to back: bytes, and ranges of the disk whose bytes go there.
    The longest range is GROUP."""
    plan = layout(size, ranges)
    yield _padded(_header(size, plan))
    yield from _refcounts(plan)
    yield _l1_table(plan)
    place = 1 + plan.table + plan.blocks + plan.l1
    for group, found in groupby(_in_groups(ranges()), key=lambda found: found.start // GROUP):
        yield from _group(list(found), place)
        place += 1 + plan.groups[group]


def _header(size: int, plan: Layout) -> bytes:
    no_backing_file = no_encryption = no_snapshots = no_features = 0
    return _HEADER.pack(
        _MAGIC,
        _VERSION,
        no_backing_file,
        no_backing_file,
        CLUSTER_BITS,
        size,
        no_encryption,
        len(plan.groups),
        (1 + plan.table + plan.blocks) * CLUSTER,
        CLUSTER,
        plan.table,
        no_snapshots,
        no_snapshots,
        no_features,
        no_features,
        no_features,
        _REFCOUNT_ORDER,
        _HEADER.size,
    )


def _refcounts(plan: Layout) -> Iterator[bytes]:
    """The table, and the blocks it points to, in which every cluster up to the end counts 1."""
    first = 1 + plan.table
    yield _padded(_big_endian((first + block) * CLUSTER for block in range(plan.blocks)))
    for _ in range(plan.blocks - 1):
        yield _FULL_BLOCK
    yield _padded(_FULL_BLOCK[: 2 * (plan.total - (plan.blocks - 1) * _BLOCK_ENTRIES)])


def _l1_table(plan: Layout) -> bytes:
    place = 1 + plan.table + plan.blocks + plan.l1
    entries = array("Q", bytes(8 * len(plan.groups)))
    for group, clusters in enumerate(plan.groups):
        if clusters:
            entries[group] = place * CLUSTER | _COPIED
            place += 1 + clusters
    return _padded(_big_endian(entries))


def _group(ranges: list[Range], place: int) -> Iterator[bytes | Range]:
    """An L2 table at cluster `place`, and its data."""
    entries = array("Q", bytes(CLUSTER))
    for start, length in ranges:
        first = start % GROUP // CLUSTER
        for entry in range(first, first + -(-length // CLUSTER)):
            place += 1
            entries[entry] = place * CLUSTER | _COPIED
    yield _big_endian(entries)
    for found in ranges:
        yield found
        if found.length % CLUSTER:
            yield bytes(-found.length % CLUSTER)


def _in_groups(ranges: Iterable[Range]) -> Iterator[Range]:
    """The ranges, cut where an L2 table ends."""
    for start, length in ranges:
        end = start + length
        while start < end:
            cut = min(end, (start // GROUP + 1) * GROUP)
            yield Range(start, cut - start)
            start = cut


def _big_endian(values: Iterable[int]) -> bytes:
    entries = array("Q", values)
    if sys.byteorder == "little":
        entries.byteswap()
    return entries.tobytes()


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % CLUSTER)
