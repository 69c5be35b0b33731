"""Memory that an ingest shares with the processes that read."""

from __future__ import annotations

import mmap
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.memory import Memory, is_zero


def test_another_mapping_is_the_same_memory() -> None:
    with closing(Memory(8192)) as memory:
        with mmap.mmap(memory.descriptor, 0) as other:
            other[5000:5003] = b"abc"
        assert bytes(memory.view[4999:5004]) == b"\0abc\0"


def test_the_views_outlive_the_descriptor() -> None:
    memory = Memory(4096)
    part = memory.view[100:200]
    memory.close()
    part[:] = b"x" * 100
    assert bytes(part) == b"x" * 100


def test_positions() -> None:
    with closing(Memory(8192)) as memory:
        assert memory.position(memory.view) == 0
        assert memory.position(memory.view[4000:][96:200]) == 4096
        with pytest.raises(ValueError, match="not of this memory"):
            memory.position(memoryview(bytearray(16)))


@given(st.integers(1, 70), st.sets(st.integers(0, 69), max_size=3))
def test_zeros(length: int, others: set[int]) -> None:
    content = bytearray(length)
    for place in others:
        if place < length:
            content[place] = 1
    assert is_zero(memoryview(content)) == (not any(content))
