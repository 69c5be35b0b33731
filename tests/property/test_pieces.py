"""Concatenations, slices, mirrors, stripes, remapped chunks: each read equals that of the bytes laid out."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmfs.errors import IntegrityError
from vmfs.volumes import raid
from vmfs.volumes.damage import Unmappable
from vmfs.volumes.pieces import Joined, LaidSpace, Mirror, Part, WholeDisk, Zeros
from vmfs.volumes.remapped import Remapped, Run

CHUNK = 512
HOLE = 128
"""Bytes that a disk of these tests keeps track of: a block of zeros is a hole."""


class Disk:
    """Bytes in memory, whose zero blocks are holes."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)

    def read(self, offset: int, length: int) -> bytes:
        assert 0 <= offset <= self.size
        return self.data[offset : offset + length]

    def extents(self, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int, bool]]:
        end = self.size if end is None else min(end, self.size)
        while start < end:
            until = min(end, (start // HOLE + 1) * HOLE)
            block = self.data[start // HOLE * HOLE : (start // HOLE + 1) * HOLE]
            yield start, until - start, not any(block)
            start = until


@st.composite
def disks(draw: st.DrawFn, size: int, number: int = 0) -> WholeDisk:
    """Blocks of zeros and of numbers that are unlike each other."""
    blocks = []
    for index, full in enumerate(draw(st.lists(st.booleans(), min_size=size // HOLE, max_size=size // HOLE))):
        blocks.append((bytes([number + 1, index % 251 + 1]) * (HOLE // 2)) if full else bytes(HOLE))
    return WholeDisk(Disk(b"".join(blocks)), number)


def check(
    space: LaidSpace, expected: bytes, ranges: Sequence[tuple[int, int]], disks: Sequence[WholeDisk]
) -> None:
    assert space.size == len(expected)
    assert space.read(0, space.size + 7) == expected
    for offset, length in ranges:
        assert space.read(offset, length) == expected[offset : offset + length]
        found = list(space.extents(offset, offset + length))
        where = min(offset, space.size)
        for start, size, zero in found:
            assert start == where
            assert size > 0
            assert not (zero and any(expected[start : start + size]))
            where = start + size
        assert where == max(min(offset, space.size), min(offset + length, space.size))
    for pieces in space.copies():
        assert b"".join(disks[p.disk].read(p.offset, p.length) for p in pieces) == expected
        assert [p.start for p in pieces] == [0, *itertools.accumulate(p.length for p in pieces)][:-1]


RANGES = st.lists(st.tuples(st.integers(0, 6000), st.integers(0, 6000)), max_size=4)


@given(st.data(), RANGES)
def test_parts_and_concatenations(data: st.DataObject, ranges: list[tuple[int, int]]) -> None:
    both = [data.draw(disks(size, number)) for number, size in enumerate((2048, 1024))]
    parts: list[LaidSpace] = []
    expected = b""
    for disk, start, length in data.draw(
        st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1024), st.integers(0, 1500)), max_size=6)
    ):
        start = min(start, both[disk].size)
        length = min(length, both[disk].size - start)
        parts.append(Part(both[disk], start, length))
        expected += both[disk].read(start, length)
    joined = Joined(parts)
    check(joined, expected, ranges, both)
    start = data.draw(st.integers(0, len(expected)))
    length = data.draw(st.integers(0, len(expected) - start))
    check(Part(joined, start, length), expected[start : start + length], ranges, both)


@given(st.data(), st.integers(2, 5), st.integers(1, 9), st.integers(0, 4), RANGES)
def test_stripes(
    data: st.DataObject, count: int, rows: int, rotation: int, ranges: list[tuple[int, int]]
) -> None:
    columns = [data.draw(disks(rows * CHUNK, number)) for number in range(count)]
    expected = b"".join(
        columns[(index + rotation) % count].read(row * CHUNK, CHUNK)
        for row in range(rows)
        for index in range(count)
    )
    check(raid.striped(columns, CHUNK, rotation % count), expected, ranges, columns)


def md_writes(level: int, layout: int, count: int, rows: int) -> dict[int, tuple[int, int]]:
    """Chunk of data -> (column, row), by Linux's own formulas as the table of mdadm(8) and md(4) shows them:
    for each row the places of P and Q, and whether data begins behind them or at the first column."""
    found: dict[int, tuple[int, int]] = {}
    number = 0
    for row in range(rows):
        width = count - 1 if level == 6 and layout >= 16 else count
        parity = {
            0: width - 1 - row % width,
            1: row % width,
            2: width - 1 - row % width,
            3: row % width,
            4: 0,
            5: count - 2 if level == 6 else count - 1,
            8: row % width,
            9: width - 1 - (row + 1) % width,
            10: width - 1 - row % width,
            16: width - 1 - row % width,
            17: row % width,
            18: width - 1 - row % width,
            19: row % width,
            20: 0,
        }[layout]
        taken = {parity}
        if level == 6:
            if layout >= 16:
                taken.add(count - 1)
            elif layout == 10:
                taken.add((parity - 1) % count)
            else:
                taken.add((parity + 1) % count)
        order = list(range(count))
        if layout in (2, 3, 10, 18, 19):
            # Symmetric: data goes on behind the parity, around the end.
            order = [(parity + 1 + step) % width for step in range(width)]
        for column in order:
            if column not in taken:
                found[number] = (column, row)
                number += 1
    return found


LEVELS = [(5, layout) for layout in raid.LAYOUTS_5] + [(6, layout) for layout in raid.LAYOUTS_6]


@pytest.mark.parametrize(("level", "layout"), LEVELS)
@settings(max_examples=25)
@given(data=st.data(), count=st.integers(4, 7), rows=st.integers(1, 12), ranges=RANGES)
def test_parity(
    data: st.DataObject, count: int, rows: int, ranges: list[tuple[int, int]], level: int, layout: int
) -> None:
    columns = [data.draw(disks(rows * CHUNK, number)) for number in range(count)]
    places = md_writes(level, layout, count, rows)
    expected = b"".join(columns[places[n][0]].read(places[n][1] * CHUNK, CHUNK) for n in range(len(places)))
    check(raid.parity(columns, CHUNK, level, layout), expected, ranges, columns)


DOUBLED = bytes(value << 1 & 0xFF ^ (0x1D if value >> 7 else 0) for value in range(256))
"""Of each byte, in the field of Linux's RAID 6."""


def added(one: bytes, other: bytes) -> bytes:
    return (int.from_bytes(one) ^ int.from_bytes(other)).to_bytes(len(one))


def with_parity(level: int, layout: int, columns: Sequence[bytearray]) -> None:
    """Write P and Q, as lib/raid6/int.uc of Linux makes them: from the last disk of data to the first,
    doubled each time. The disks are counted from behind Q on, or, in the layouts of DDF, with P and Q among
    them."""
    count = len(columns)
    rows = len(columns[0]) // CHUNK
    of_row: dict[int, set[int]] = {}
    for column, row in md_writes(level, layout, count, rows).values():
        of_row.setdefault(row, set()).add(column)
    for row, data in of_row.items():
        p, q = parity_places(level, layout, count, row)
        part = slice(row * CHUNK, (row + 1) * CHUNK)
        p_sum, q_sum = bytes(CHUNK), bytes(CHUNK)
        begin = 0 if layout in (8, 9, 10) or q == count - 1 else (q or 0) + 1
        for column in reversed([(begin + step) % count for step in range(count)]):
            content = columns[column][part] if column in data else bytes(CHUNK)
            p_sum = added(p_sum, content)
            if column in data or layout in (8, 9, 10):
                q_sum = added(q_sum.translate(DOUBLED), content)
        columns[p][part] = p_sum
        if q is not None:
            columns[q][part] = q_sum


def parity_places(level: int, layout: int, count: int, row: int) -> tuple[int, int | None]:
    data = {column for column, at in md_writes(level, layout, count, row + 1).values() if at == row}
    rest = set(range(count)) - data
    if level != 6:
        return rest.pop(), None
    if layout >= 16:
        return min(rest), count - 1
    step = -1 if layout == 10 else 1
    (p,) = [column for column in rest if (column + step) % count in rest]
    return p, (p + step) % count


@pytest.mark.parametrize(("level", "layout"), [(4, 0), *LEVELS])
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), count=st.integers(4, 6), rows=st.integers(1, 7), ranges=RANGES)
def test_lost_columns_are_computed(
    data: st.DataObject, count: int, rows: int, ranges: list[tuple[int, int]], level: int, layout: int
) -> None:
    written = 5 if level == 4 else layout
    raw = [bytearray(data.draw(disks(rows * CHUNK, number)).read(0, rows * CHUNK)) for number in range(count)]
    with_parity(level, written, raw)
    columns = [WholeDisk(Disk(bytes(one)), number) for number, one in enumerate(raw)]
    places = md_writes(level, written, count, rows)
    expected = b"".join(columns[places[n][0]].read(places[n][1] * CHUNK, CHUNK) for n in range(len(places)))
    most = 2 if level == 6 else 1
    lost = data.draw(st.sets(st.integers(0, count - 1), min_size=1, max_size=most))
    left = [None if number in lost else column for number, column in enumerate(columns)]
    space = raid.parity(left, CHUNK, level, layout)
    check(space, expected, ranges, columns)
    assert {ground.disk for ground in space.footprint()} == set(range(count)) - lost
    with pytest.raises(Unmappable, match=f"{most + 1} of its {count} members"):
        raid.parity([None] * (most + 1) + columns[most + 1 :], CHUNK, level, layout)


@given(st.data(), st.integers(1, 6), st.integers(1, 3), st.integers(1, 8), RANGES)
def test_near_copies(
    data: st.DataObject, count: int, copies: int, rows: int, ranges: list[tuple[int, int]]
) -> None:
    copies = min(copies, count)
    total = rows * count // copies
    source = data.draw(disks(total * CHUNK)).read(0, total * CHUNK)
    raw = [bytearray(rows * CHUNK) for _ in range(count)]
    slot = 0
    for number in range(total):
        for _ in range(copies):
            row, column = divmod(slot, count)
            raw[column][row * CHUNK : (row + 1) * CHUNK] = source[number * CHUNK : (number + 1) * CHUNK]
            slot += 1
    columns: list[LaidSpace | None] = [WholeDisk(Disk(bytes(one)), n) for n, one in enumerate(raw)]
    everything = [column for column in columns if isinstance(column, WholeDisk)]
    check(raid.copied(columns, CHUNK, copies), source, ranges, everything)
    if copies > 1 and count % copies == 0:
        columns[data.draw(st.integers(0, count - 1))] = None
        space = raid.copied(columns, CHUNK, copies)
        assert space.read(0, space.size) == source


@given(
    st.data(),
    st.dictionaries(st.integers(0, 11), st.integers(0, 7), max_size=12),
    st.integers(1, 12 * CHUNK),
    RANGES,
)
def test_remapped_chunks(
    data: st.DataObject, placed: dict[int, int], size: int, ranges: list[tuple[int, int]]
) -> None:
    base = data.draw(disks(12 * CHUNK, 0))
    store = data.draw(disks(8 * CHUNK, 1))
    expected = bytearray(base.read(0, base.size))
    for chunk, stored in placed.items():
        expected[chunk * CHUNK : (chunk + 1) * CHUNK] = store.read(stored * CHUNK, CHUNK)
    known = sorted(placed)

    def runs(first: int, end: int) -> Iterator[Run]:
        for chunk in known[bisect_left(known, first) : bisect_left(known, end)]:
            yield Run(chunk, placed[chunk], 1)

    space = Remapped(Part(base, 0, size), store, CHUNK, runs)
    check(space, bytes(expected[:size]), ranges, [base, store])


@given(st.data(), st.integers(2, 5), st.integers(1, 6), st.booleans(), RANGES)
def test_far_copies(
    data: st.DataObject, count: int, rows: int, offset: bool, ranges: list[tuple[int, int]]
) -> None:
    """Two copies: the second in the other half of the columns, or in the row that follows."""
    columns = [data.draw(disks(2 * rows * CHUNK, number)) for number in range(count)]
    expected = b"".join(
        column.read((2 * row if offset else row) * CHUNK, CHUNK) for row in range(rows) for column in columns
    )
    check(raid.copied(columns, CHUNK, 1, 2, offset=offset), expected, ranges, columns)


class Broken(Disk):
    def read(self, offset: int, length: int) -> bytes:
        raise IntegrityError("damaged")


def test_mirror_reads_on_from_another_leg() -> None:
    good = WholeDisk(Disk(bytes(range(256)) * 4), 1)
    space = Mirror([WholeDisk(Broken(bytes(1024)), 0), good])
    assert space.read(100, 50) == good.read(100, 50)
    assert {ground.disk for ground in space.footprint()} == {0, 1}
    with pytest.raises(IntegrityError):
        Mirror([WholeDisk(Broken(bytes(1024)), 0)] * 2).read(0, 1)


@given(st.data(), RANGES)
def test_mirrors_of_parts_beside_what_is_there_once(
    data: st.DataObject, ranges: list[tuple[int, int]]
) -> None:
    """Legs may be cut in other places than each other; what is no mirror is in all copies."""
    single = data.draw(disks(1024))
    content = data.draw(disks(2048, 1)).read(0, 2048)
    cuts = [sorted(data.draw(st.sets(st.integers(1, 2047), max_size=3))) for _ in range(2)]
    # Each leg's parts lie on its disk in the order from its end.
    both = [single]
    legs = []
    for number, places in enumerate(cuts, 1):
        bounds = list(itertools.pairwise((0, *places, 2048)))
        disk = WholeDisk(Disk(b"".join(content[low:high] for low, high in reversed(bounds))), number)
        both.append(disk)
        legs.append(Joined([Part(disk, 2048 - high, high - low) for low, high in bounds]))
    start = data.draw(st.integers(0, 2000))
    whole = Joined([single, Part(Mirror(legs), start, 2048 - start)])
    expected = single.read(0, 1024) + content[start:]
    check(whole, expected, ranges, both)
    assert len(whole.copies()) == 2
    assert {ground.disk for ground in Part(whole, 1024, 48).footprint()} == {1, 2}


def test_mirror_with_a_leg_in_stripes_has_no_pieces() -> None:
    disks = [WholeDisk(Disk(bytes(2 * CHUNK)), number) for number in range(3)]
    assert Mirror([Joined(disks[:1]), raid.striped(disks[1:], CHUNK)]).copies() == ()


def test_holes_of_huge_stripes_are_found_without_walking_the_chunks() -> None:
    size = 1 << 60
    space = raid.striped([Zeros(size), Zeros(size), Zeros(size)], 4096)
    assert list(space.extents()) == [(0, 3 * size, True)]
    assert list(space.extents(5000, 6000)) == [(5000, 1000, True)]
