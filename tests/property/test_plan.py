"""Plans against brute force: every chunk looked at by itself."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.plan import Plan, Run
from ingest.sources.base import Extent, SourceError

SECTOR = 512
CHUNK = 8 * SECTOR
"""Small, so that a byte map of a disk is quickly made; the plan does not know."""


def brute_force(extents: list[Extent], size: int) -> dict[int, bool]:
    """Which chunks are taken; whether as zeros."""
    known = bytearray(size)
    for extent in extents:
        known[extent.start : extent.start + extent.length] = (b"\2" if extent.zero else b"\1") * extent.length
    taken = {}
    for index in range(-(-size // CHUNK)):
        part = known[index * CHUNK : (index + 1) * CHUNK]
        if any(part):
            taken[index] = set(part) == {2}
    return taken


def planned(plan: Plan) -> dict[int, bool]:
    """The same of a plan; checks that its runs ascend and do not touch needlessly."""
    taken: dict[int, bool] = {}
    last: Run | None = None
    for run in plan:
        assert run.chunks > 0
        if last:
            end = last.first + last.chunks
            assert run.first > end or (run.first == end and run.zero != last.zero)
        taken.update(dict.fromkeys(range(run.first, run.first + run.chunks), run.zero))
        last = run
    return taken


@st.composite
def disks(draw: st.DrawFn, whole: bool) -> tuple[int, list[Extent]]:
    """A size that may be no multiple of the chunk, and extents: all of the disk, or some of it."""
    unit = draw(st.sampled_from((1, SECTOR, CHUNK)))
    lengths = st.integers(1, 4 * CHUNK // unit).map(lambda count: count * unit)
    gaps = st.just(0) if whole else st.one_of(st.just(0), lengths)
    extents: list[Extent] = []
    end = 0
    for gap, length, zero in draw(st.lists(st.tuples(gaps, lengths, st.booleans()), min_size=1, max_size=20)):
        extents.append(Extent(end + gap, length, zero))
        end += gap + length
    return end + (0 if whole else draw(gaps)), extents


@settings(max_examples=300, deadline=None)
@given(disks(whole=False))
def test_dirty_extents(disk: tuple[int, list[Extent]]) -> None:
    size, extents = disk
    plan = Plan(extents, size, CHUNK)
    expected = brute_force(extents, size)
    assert planned(plan) == expected
    assert plan.chunks_to_read == sum(not zero for zero in expected.values())
    assert planned(plan) == expected, "a plan can be gone through twice"


@settings(max_examples=300, deadline=None)
@given(disks(whole=True))
def test_whole_disks(disk: tuple[int, list[Extent]]) -> None:
    size, extents = disk
    plan = Plan(extents, size, CHUNK, whole=True)
    expected = brute_force(extents, size)
    assert expected.keys() == set(range(-(-size // CHUNK)))
    assert planned(plan) == expected


@settings(max_examples=200, deadline=None)
@given(disks(whole=False), st.data())
def test_extents_that_cannot_be_are_refused(disk: tuple[int, list[Extent]], data: st.DataObject) -> None:
    size, extents = disk
    number = data.draw(st.integers(0, len(extents) - 1))
    start, length, zero = extents[number]
    wrong = [
        Extent(start, 0, zero),
        Extent(start, -length, zero),
        Extent(start, size - start + 1, zero),
        Extent(size, 1, zero),
        Extent(-1, length, zero),
    ]
    if number:
        wrong.append(Extent(start - 1 - (start - extents[number - 1].start - extents[number - 1].length),
                            length + 1, zero))  # fmt: skip
    extents[number] = data.draw(st.sampled_from(wrong))
    with pytest.raises(SourceError, match="impossible extents"):
        Plan(extents, size, CHUNK)


@settings(max_examples=200, deadline=None)
@given(disks(whole=True), st.data())
def test_a_whole_disk_with_a_gap_is_refused(disk: tuple[int, list[Extent]], data: st.DataObject) -> None:
    """What no extent covers would be read back as zeros."""
    size, extents = disk
    del extents[data.draw(st.integers(0, len(extents) - 1))]
    with pytest.raises(SourceError, match="impossible extents"):
        Plan(extents, size, CHUNK, whole=True)
    assert planned(Plan(extents, size, CHUNK)) == brute_force(extents, size)


def test_nothing_changed() -> None:
    plan = Plan([], 10 * CHUNK, CHUNK)
    assert (list(plan), plan.chunks_to_read) == ([], 0)


def test_a_zero_chunk_of_several_pieces_need_not_be_read() -> None:
    pieces = [Extent(at, SECTOR, True) for at in range(0, 2 * CHUNK, SECTOR)]
    assert list(Plan(pieces, 2 * CHUNK, CHUNK)) == [Run(0, 2, True)]
    # One piece is not known to be zeros; nor is a piece that did not change, whatever it holds.
    pieces[3] = Extent(3 * SECTOR, SECTOR, False)
    assert list(Plan(pieces, 2 * CHUNK, CHUNK)) == [Run(0, 1, False), Run(1, 1, True)]
    del pieces[3]
    assert list(Plan(pieces, 2 * CHUNK, CHUNK)) == [Run(0, 1, False), Run(1, 1, True)]


def test_the_end_of_a_disk_that_is_no_multiple() -> None:
    size = 2 * CHUNK + SECTOR
    assert list(Plan([Extent(2 * CHUNK, SECTOR, True)], size, CHUNK)) == [Run(2, 1, True)]
    assert list(Plan([Extent(0, size, True)], size, CHUNK, whole=True)) == [Run(0, 3, True)]
    assert list(Plan([Extent(0, 2 * CHUNK, True), Extent(2 * CHUNK, SECTOR, False)], size, CHUNK)) == [
        Run(0, 2, True),
        Run(2, 1, False),
    ]


def test_many_extents_take_little_memory() -> None:
    chunk = 256 << 10
    count = 100_000
    extents = (Extent(index * 2 * chunk, 4096, False) for index in range(count))
    tracemalloc.start()
    try:
        plan = Plan(extents, 2 * count * chunk, chunk)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert plan.chunks_to_read == count
    assert peak < 5 << 20


def test_huge_extents_cost_nothing() -> None:
    size = 1 << 60
    runs = list(Plan([Extent(0, size, True)], size, 64 << 10, whole=True))
    assert runs == [Run(0, size >> 16, True)]
