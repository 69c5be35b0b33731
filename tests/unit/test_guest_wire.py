"""What goes between a worker and its client, and what the client makes of nonsense."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmfs.volumes.files.worker import wire
from vmfs.volumes.files.worker.model import Found, Stat

_U32 = st.integers(0, (1 << 32) - 1)
_U64 = st.integers(0, (1 << 64) - 2)
# The years that NTFS and ext4 know are beyond 64 bits of nanoseconds.
_TIMES = st.integers(-(1 << 70), 1 << 70)
_STATS = st.builds(Stat, _U64, _U32, _U32, _U32, _U32, _U64, _TIMES, _TIMES, _TIMES, _U64, st.none() | _U64)
_NAMES = st.binary(min_size=1, max_size=255).filter(wire.is_name)
_FOUND = st.builds(Found, _NAMES, _STATS, st.none()) | st.builds(Found, _NAMES, st.none(), st.just("damaged"))


@given(_STATS)
def test_a_stat_arrives_as_it_was(stat: Stat) -> None:
    assert wire.unpack_stat(wire.pack_stat(stat)) == stat


@given(st.lists(_FOUND, max_size=20))
def test_entries_arrive_as_they_were(entries: list[Found]) -> None:
    assert wire.unpack_found(b"".join(map(wire.pack_found, entries))) == entries


@given(st.lists(st.binary(max_size=300)))
def test_strings_arrive_as_they_were(strings: list[bytes]) -> None:
    assert wire.unpack_strings(wire.pack_strings(strings)) == strings


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"/", b"a\0b", b"n" * 1025])
def test_a_name_that_is_none_is_shown_and_cannot_be_used(name: bytes) -> None:
    (found,) = wire.unpack_found(wire.pack_found(Found(name, Stat(1, 0, 0, 0, 0, 0, 0, 0, 0))))
    assert found.stat is None
    assert found.problem is not None
    assert "makes no sense" in found.problem
    assert wire.is_name(found.name)


def test_a_worker_cannot_give_a_path_for_a_name() -> None:
    good = wire.pack_found(Found(b"..x", Stat(1, 0, 0, 0, 0, 0, 0, 0, 0)))
    for bad in (b"../", b"a/b", b"a\0b"):
        with pytest.raises(ValueError, match="name"):
            wire.unpack_found(good.replace(b"..x", bad))


@pytest.mark.parametrize(
    "decode",
    [wire.unpack_stat, wire.unpack_found, wire.unpack_strings, wire.unpack_extents, wire.unpack_failed],
)
@given(data=st.binary(max_size=400))
def test_nonsense_is_a_value_error(decode: Callable[[bytes], object], data: bytes) -> None:
    try:
        decode(data)
    except ValueError:
        return


def test_the_text_of_an_error_is_one_line_that_a_terminal_can_bear() -> None:
    assert wire.unpack_failed(wire.pack_failed(5, "a\nb\x1b[31m")) == (5, "a�b�[31m")
