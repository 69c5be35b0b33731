"""An overlay of a disk against the same bytes in memory: random writes, zeros, reads, syncs and reopenings,
at all the places where something begins or ends."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from vmfs.fs.scratch import bitmap, overlay
from vmfs.fs.scratch.bitmap import PAGE, PAGE_BLOCKS, Bitmap
from vmfs.fs.scratch.io import Io
from vmfs.fs.scratch.overlay import BLOCK, SEGMENT, Identity, Overlay

SIZE = 2 * SEGMENT + 3 * BLOCK + 512
WINDOW = 16 * BLOCK
# Where things begin and end: the disk, pages of the bitmap, data files (the last not far before the disk).
PLACES = (0, PAGE_BLOCKS * BLOCK, 7 * PAGE_BLOCKS * BLOCK, SEGMENT, SIZE)
STARTS = tuple(min(max(0, place - WINDOW // 2), SIZE - WINDOW) for place in PLACES)


def original(offset: int, length: int) -> bytes:
    """The point's disk: every sector is of another byte."""
    end = min(offset + length, SIZE)
    first = offset // 512
    sectors = b"".join(bytes([number % 251 + 1]) * 512 for number in range(first, -(-end // 512)))
    return sectors[offset - first * 512 : end - first * 512]


def identity(size: int = SIZE) -> Identity:
    return Identity(repository="00", point="P", disk="d", root="11", size=size)


def read(disk: Overlay, offset: int, length: int) -> bytes:
    """As a mount reads: what was written from the overlay, all else from the point."""
    found = b""
    for start, count, written in disk.runs(offset, length):
        assert start == offset + len(found)
        data = disk.read(start, count) if written else original(start, count)
        assert data is not None
        found += data
    return found


class OverlayMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.top = tempfile.mkdtemp()
        self.directory = os.open(self.top, os.O_RDONLY)
        self.disk = Overlay.create(Io(), self.directory, "P-0", identity())
        self.model = [bytearray(original(start, WINDOW)) for start in STARTS]
        self.written: set[int] = set()

    def teardown(self) -> None:
        self.disk.close()
        os.close(self.directory)
        shutil.rmtree(self.top)

    @rule(
        place=st.integers(0, len(STARTS) - 1),
        offset=st.integers(0, WINDOW - 1),
        length=st.one_of(st.integers(1, 2000), st.sampled_from((512, BLOCK, 2 * BLOCK, WINDOW))),
        fill=st.integers(0, 3),
        aligned=st.booleans(),
    )
    def write(self, place: int, offset: int, length: int, fill: int, aligned: bool) -> None:
        if aligned:
            offset -= (STARTS[place] + offset) % BLOCK
        offset = max(0, offset)
        length = min(length, WINDOW - offset)
        data = bytes(length) if fill == 0 else bytes([fill]) * length
        start = STARTS[place] + offset
        assert self.disk.write(start, memoryview(data), original) == length
        self.model[place][offset : offset + length] = data
        self.written.update(range(start // BLOCK, -(-(start + length) // BLOCK)))

    @rule(
        place=st.integers(0, len(STARTS) - 1),
        offset=st.integers(0, WINDOW - 1),
        length=st.integers(1, WINDOW),
    )
    def read(self, place: int, offset: int, length: int) -> None:
        length = min(length, WINDOW - offset)
        found = read(self.disk, STARTS[place] + offset, length)
        assert found == self.model[place][offset : offset + length]

    @rule()
    def sync(self) -> None:
        self.disk.sync()

    @rule()
    def reopen(self) -> None:
        self.disk.sync()
        self.disk.close()
        self.disk = Overlay.reopen(Io(), self.directory, "P-0")
        assert self.disk.identity == identity()

    @invariant()
    def memory_is_bounded(self) -> None:
        assert self.disk.written == len(self.written) * BLOCK
        assert len(self.disk._bitmap._pages) <= 2 + 2
        for start, model in zip(STARTS, self.model, strict=True):
            assert read(self.disk, start, WINDOW) == model


@contextmanager
def small_memory() -> Iterator[None]:
    """Two pages of the bitmap in memory, and one that must be written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bitmap, "KEPT", 2)
        patch.setattr(overlay, "_MANY_DIRTY", 1)
        yield


class TestOverlay(OverlayMachine.TestCase):
    settings = settings(max_examples=60, stateful_step_count=30, deadline=None)

    @pytest.fixture(autouse=True)
    def _small_memory(self) -> Iterator[None]:
        with small_memory():
            yield


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(st.integers(0, 3 * PAGE_BLOCKS - 1), st.integers(1, 3000)), max_size=20),
    st.tuples(st.integers(0, 3 * PAGE_BLOCKS - 1), st.integers(1, 40_000)),
)
def test_bitmap(sets: list[tuple[int, int]], asked: tuple[int, int]) -> None:
    blocks = 3 * PAGE_BLOCKS
    bits = Bitmap(blocks, lambda _: bytes(PAGE), range(3))
    model = bytearray(blocks)
    for first, count in sets:
        end = min(first + count, blocks)
        assert bits.set(first, end) == model[first:end].count(0)
        model[first:end] = b"\1" * (end - first)
    first, end = asked[0], min(sum(asked), blocks)
    runs = bits.runs(first, end)
    assert b"".join(bytes([run.written]) * (run.end - run.first) for run in runs) == model[first:end]
    assert all(run.end > run.first for run in runs)
    assert all(left.written is not right.written for left, right in pairwise(runs))
    stored = bits.take_dirty()
    assert bits.dirty == 0
    again = Bitmap(blocks, lambda number: stored.get(number, bytes(PAGE)), stored)
    assert again.runs(0, blocks) == bits.runs(0, blocks)


def test_a_bitmap_of_64_tib_is_small() -> None:
    """A block in each of 8,192 pages of the 524,288 that there are."""
    stored: dict[int, bytes] = {}
    bits = Bitmap((64 << 40) // BLOCK, lambda number: stored.get(number, bytes(PAGE)))
    places = range(5, bits.blocks, PAGE_BLOCKS * 64)
    for first in places:
        for page in bits.missing(first, first + 1):
            bits.add(page)
        assert bits.set(first, first + 1) == 1
        stored |= bits.take_dirty()
        bits.shrink()
    assert len(bits._pages) == bitmap.KEPT
    for first in places[:: len(places) // 100]:
        assert bits.runs(first - 1, first + 1) == [(first - 1, first, False), (first, first + 1, True)]
    assert bits.runs(PAGE_BLOCKS, bits.blocks // 8)[0] == (PAGE_BLOCKS, places[1], False)
