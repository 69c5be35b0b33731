"""Reading ahead gives what reading gives."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmfs.errors import StoreError
from vmfs.volumes.files.ahead import ReadAhead

PIECE = 64
FILES = [bytes((number * 7 + at) % 251 for at in range(number * 37)) for number in range(12)]


@given(
    st.lists(st.tuples(st.integers(0, 11), st.none() | st.integers(0, 500), st.integers(1, 200)), max_size=60)
)
def test_any_reads_of_any_files(reads: list[tuple[int, int | None, int]]) -> None:
    """No offset: where the last read of that file ended."""
    ahead = ReadAhead(lambda node, offset, length: FILES[node][offset : offset + length], PIECE)
    ends: dict[int, int] = {}
    for node, offset, length in reads:
        at = ends.get(node, 0) if offset is None else offset
        data = ahead.read(node, at, length)
        assert data == FILES[node][at : at + length]
        ends[node] = at + len(data)


def test_small_reads_in_a_row_are_few_large_ones() -> None:
    asked = []

    def fetch(node: int, offset: int, length: int) -> bytes:
        asked.append((offset, length))
        return FILES[11][offset : offset + length]

    ahead = ReadAhead(fetch, PIECE)
    assert b"".join(ahead.read(11, at, 8) for at in range(0, len(FILES[11]), 8)) == FILES[11]
    assert len(asked) == 2 + len(FILES[11]) // PIECE
    asked.clear()
    for at in (300, 100, 200):
        ahead.read(11, at, 8)
    assert asked == [(300, 8), (100, 8), (200, 8)]


def test_damage_further_on_spoils_no_read() -> None:
    def fetch(node: int, offset: int, length: int) -> bytes:
        if offset <= 100 < offset + length:
            raise StoreError("damaged")
        return FILES[11][offset : offset + length]

    ahead = ReadAhead(fetch, PIECE)
    for at in range(0, 96, 8):
        assert ahead.read(11, at, 8) == FILES[11][at : at + 8]
    with pytest.raises(StoreError):
        ahead.read(11, 96, 8)
    assert ahead.read(11, 104, 8) == FILES[11][104:112]
