"""A disk's map against a dict of chunks: whatever is done to it, and however it was reached."""

from __future__ import annotations

import time
from typing import NamedTuple

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from vmfs.format import node
from vmfs.repo.diskmap import EMPTY, Map, MapWriter, chunks, count_chunks

CHUNK = 64 << 10
LEVEL_CHUNKS = (node.FANOUT, node.FANOUT**2, node.FANOUT**3, node.FANOUT**4)

Content = dict[int, bytes]
"""The chunks of a disk that are not zeros, by number."""


class Nodes:
    """Where nodes are kept: content-addressed, with every store and load counted. As in a write session, what
    was just stored cannot be loaded before the write is over."""

    def __init__(self) -> None:
        self.kept: dict[bytes, bytes] = {}
        self.pending: dict[bytes, bytes] = {}
        self.stored: list[bytes] = []
        self.loaded = 0

    def load(self, node_id: bytes) -> bytes:
        self.loaded += 1
        return self.kept[node_id]

    def store(self, content: bytes) -> bytes:
        node_id = blake3(content).digest()
        assert content != node.EMPTY, "an empty node has no place in a map"
        self.pending[node_id] = content
        self.stored.append(node_id)
        return node_id

    def write(self, size: int, parent: Map, changes: list[Change]) -> Map:
        writer = MapWriter(size, CHUNK, parent, self.load, self.store)
        for change in changes:
            if change.last is None:
                writer.set(change.first, change.chunk)
            else:
                writer.clear(change.first, change.last)
        written = writer.finish()
        self.kept |= self.pending
        self.pending.clear()
        return written

    def below(self, root: bytes | None, level: int) -> set[bytes]:
        """Ids of all nodes of a map."""
        if root is None:
            return set()
        found = {root}
        if level:
            for child in node.children(self.kept[root]):
                found |= self.below(child, level - 1)
        return found

    def content(self, written: Map) -> Content:
        top = node.levels(written.size, CHUNK) - 1
        return dict(chunks(self.load, written.root, top, 0, node.chunk_count(written.size, CHUNK)))


class Change(NamedTuple):
    """`first` becomes `chunk`, or [first, last) zeros."""

    first: int
    chunk: bytes | None = None
    last: int | None = None


def apply(content: Content, size: int, changes: list[Change]) -> Content:
    limit = node.chunk_count(size, CHUNK)
    after = {index: chunk for index, chunk in content.items() if index < limit}
    for change in changes:
        if change.last is not None:
            after = {i: chunk for i, chunk in after.items() if not change.first <= i < change.last}
        elif change.chunk is None:
            after.pop(change.first, None)
        else:
            after[change.first] = change.chunk
    return after


def touched(changes: list[Change]) -> set[int]:
    """Numbers of the leaves that changes lie in, as far as they are single chunks."""
    return {change.first // node.FANOUT for change in changes}


def chunk_id(number: int) -> bytes:
    return blake3(number.to_bytes(4, "big")).digest()


@st.composite
def sizes(draw: st.DrawFn) -> int:
    """Bytes; 1 to 4 levels, often just beside the border of a level, often no multiple of the chunk."""
    border = draw(st.sampled_from((0, *LEVEL_CHUNKS[:3], LEVEL_CHUNKS[3] // 64)))
    count = draw(st.one_of(st.integers(-3, 3), st.integers(-300, 300), st.integers(0, 70_000)))
    over = draw(st.sampled_from((0, 512, CHUNK - 512)))
    return max(512, (border + count) * CHUNK + over)


@st.composite
def change_lists(draw: st.DrawFn, size: int) -> list[Change]:
    """Ascending changes of a disk of that size, crowded near a few places so that leaves are shared."""
    limit = node.chunk_count(size, CHUNK)
    places = draw(st.lists(st.integers(0, limit - 1), min_size=1, max_size=4))
    near = st.builds(lambda place, shift: min(limit - 1, max(0, place + shift)), st.sampled_from(places),
                     st.one_of(st.integers(-2, 2), st.integers(-600, 600)))  # fmt: skip
    wanted = draw(st.lists(st.tuples(near, st.integers(0, 5), st.integers(1, 100_000)), max_size=12))
    changes: list[Change] = []
    free = 0
    for first, kind, length in sorted(wanted):
        if first < free:
            continue
        if kind < 4:
            changes.append(Change(first, chunk_id(length % 7) if kind else None))
            free = first + 1
        else:
            length = min(length if kind == 4 else length % 600 + 1, limit - first)
            changes.append(Change(first, last=first + length))
            free = first + length
    return changes


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_histories_of_a_map(data: st.DataObject) -> None:
    """Sets, clears, growth and shrinking one after another, against a dict."""
    nodes = Nodes()
    current, content = EMPTY, dict[int, bytes]()
    size = 0
    for _ in range(data.draw(st.integers(1, 5), label="writes")):
        if not size or data.draw(st.booleans(), label="resize"):
            size = data.draw(sizes(), label="size")
        changes = data.draw(change_lists(size), label="changes")
        current = nodes.write(size, current, changes)
        content = apply(content, size, changes)
        assert current.size == size
        assert current.allocated == len(content) * CHUNK
        assert nodes.content(current) == content
        top = node.levels(size, CHUNK) - 1
        assert count_chunks(nodes.load, current.root, top) == len(content)
        # The same content written at once has the same root.
        anew = Nodes()
        ascending = [Change(index, chunk) for index, chunk in sorted(content.items())]
        assert anew.write(size, EMPTY, ascending) == current
        # Nothing is stored but the nodes of such a map.
        assert set(anew.stored) == anew.below(current.root, top)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_only_nodes_on_the_way_to_changes_are_stored(data: st.DataObject) -> None:
    size = data.draw(sizes(), label="size")
    nodes = Nodes()
    parent = nodes.write(size, EMPTY, data.draw(change_lists(size), label="parent"))
    top = node.levels(size, CHUNK) - 1
    before = nodes.below(parent.root, top)
    nodes.stored.clear()
    nodes.loaded = 0
    changes = [c for c in data.draw(change_lists(size), label="changes") if c.last is None]
    child = nodes.write(size, parent, changes)
    after = nodes.below(child.root, top)
    assert set(nodes.stored) <= after, "a node is stored that the map does not need"
    ways = {(level, leaf >> (node.BITS * level)) for leaf in touched(changes) for level in range(top + 1)}
    assert len(nodes.stored) <= len(ways)
    assert nodes.loaded <= len(ways)
    # A node that both maps have was stored again only where it was reached by another way.
    assert len(after - before) <= len(nodes.stored)
    if apply(nodes.content(parent), size, changes) == nodes.content(parent):
        assert (child, nodes.stored) == (parent, [])


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_parts_of_a_map(data: st.DataObject) -> None:
    """`chunks` of any range, of a map of any height."""
    size = data.draw(sizes(), label="size")
    nodes = Nodes()
    changes = data.draw(change_lists(size), label="changes")
    written = nodes.write(size, EMPTY, changes)
    content = apply({}, size, changes)
    limit = node.chunk_count(size, CHUNK)
    borders = st.one_of(st.integers(0, limit), st.sampled_from([*content, 0]))
    first, last = data.draw(borders, label="first"), data.draw(borders, label="last")
    found = list(chunks(nodes.load, written.root, node.levels(size, CHUNK) - 1, first, last))
    assert found == sorted(item for item in content.items() if first <= item[0] < last)


@pytest.mark.parametrize("levels", [1, 2, 3, 4])
def test_growing_and_shrinking_over_a_level(levels: int) -> None:
    """A level more and back: the same root again, and one more node on the way."""
    nodes = Nodes()
    small = LEVEL_CHUNKS[levels - 1] * CHUNK
    assert node.levels(small, CHUNK) == levels
    start = nodes.write(small, EMPTY, [Change(0, chunk_id(1)), Change(small // CHUNK - 1, chunk_id(2))])
    nodes.stored.clear()
    grown = nodes.write(small + 1, start, [])
    assert node.levels(grown.size, CHUNK) == levels + 1
    assert (grown.allocated, len(nodes.stored)) == (2 * CHUNK, 1)
    assert nodes.content(grown) == nodes.content(start)
    assert nodes.write(small, grown, []) == start
    # What was beyond the end is gone, and does not come back.
    more = nodes.write(small + 1, start, [Change(small // CHUNK, chunk_id(3))])
    assert more.allocated == 3 * CHUNK
    cut = nodes.write(small, more, [])
    assert cut == start
    assert nodes.write(small + 1, cut, []) == grown


def test_shrinking_inside_a_leaf_cuts_and_growing_again_shows_zeros() -> None:
    nodes = Nodes()
    full = [Change(index, chunk_id(index)) for index in range(300)]
    parent = nodes.write(300 * CHUNK, EMPTY, full)
    cut = nodes.write(100 * CHUNK - 512, parent, [])
    assert nodes.content(cut) == {index: chunk_id(index) for index in range(100)}
    assert cut.allocated == 100 * CHUNK
    assert nodes.content(nodes.write(300 * CHUNK, cut, [])) == nodes.content(cut)


def test_clearing_much_is_fast() -> None:
    """64 TiB at 64 KiB: clearing all but the ends looks at few nodes, however many chunks that is."""
    size = 64 << 40
    count = size // CHUNK
    nodes = Nodes()
    places = [1, 300, 70_000, count // 2, count - 70_000, count - 2]
    parent = nodes.write(size, EMPTY, [Change(place, chunk_id(place)) for place in places])
    assert parent.allocated == len(places) * CHUNK
    nodes.stored.clear()
    nodes.loaded = 0
    begin = time.process_time()
    cleared = nodes.write(size, parent, [Change(2, last=count - 2)])
    assert time.process_time() - begin < 0.5
    assert nodes.loaded < 40
    assert nodes.content(cleared) == {1: chunk_id(1), count - 2: chunk_id(count - 2)}
    assert cleared.allocated == 2 * CHUNK
    assert nodes.write(size, cleared, [Change(0, last=count)]) == Map(None, size, 0)
    assert nodes.write(size, EMPTY, [Change(0, last=count)]) == Map(None, size, 0)


def test_changes_out_of_order_are_refused() -> None:
    nodes = Nodes()
    writer = MapWriter(70_000 * CHUNK, CHUNK, EMPTY, nodes.load, nodes.store)
    writer.set(66_000, chunk_id(1))
    with pytest.raises(ValueError, match="ascending"):
        writer.set(1, chunk_id(1))


@pytest.mark.parametrize(
    ("size", "levels"),
    [(0, 1), (1, 1), (256 * CHUNK, 1), (256 * CHUNK + 1, 2), (1 << 32, 2), (1 << 40, 3), (1 << 60, 6)],
)
def test_levels(size: int, levels: int) -> None:
    assert node.levels(size, CHUNK) == levels
