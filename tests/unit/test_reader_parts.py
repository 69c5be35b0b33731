"""Parts of the readers of XFS and Btrfs by themselves: what no kernel writes, and the ends of ranges."""

from __future__ import annotations

import zlib
from contextlib import suppress

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from vmfs.volumes.files.worker.btrfs import compression
from vmfs.volumes.files.worker.btrfs.lzo import LzoError, decompress
from vmfs.volumes.files.worker.btrfs.reader import _name_hash
from vmfs.volumes.files.worker.cache import Cache
from vmfs.volumes.files.worker.model import ReaderError
from vmfs.volumes.files.worker.xfs.hashes import name_hash

END = b"\x11\0\0"
"""Of a stream of LZO1X."""
LIMIT = 4096


def literals(data: bytes) -> bytes:
    """A run of 4 to 238 literals at the start of a stream."""
    return bytes([17 + len(data)]) + data


@pytest.mark.parametrize(
    ("stream", "expanded"),
    [
        (literals(b"abcd") + END, b"abcd"),
        # Three bytes from two back: they overlap what they become.
        (literals(b"abcd") + bytes([0b0010_0001, 0b0000_0100, 0]) + END, b"abcdcdc"),
        # 1 LL DDD SS, H: length 5 + 3 from 1 back, then two literals, then 3 bytes from 2049 and less back.
        (literals(b"abcd") + bytes([0b1110_0010, 0]) + b"xy" + END, b"abcd" + b"d" * 8 + b"xy"),
        # 01 L DDD SS, H: length 3 + 1 from 4 back.
        (literals(b"abcd") + bytes([0b0110_1100, 0]) + END, b"abcdabcd"),
        # A long match: 2 + 31 + 255 + 12 bytes from 1 back.
        (literals(b"abcd") + bytes([0b0010_0000, 0, 12, 0, 0]) + END, b"abcd" + b"d" * 300),
        # A long run of literals: 3 + 15 + 7.
        (bytes([0, 7]) + b"z" * 25 + END, b"z" * 25),
        # After a few literals, code 0000 DD SS: two bytes from 1 + DD + 4 H back.
        (bytes([18]) + b"a" + bytes([0, 0]) + END, b"aaa"),
    ],
)
def test_lzo_codes(stream: bytes, expanded: bytes) -> None:
    assert decompress(stream, LIMIT) == expanded
    assert decompress(stream, 3) == expanded[:3]


def test_a_distant_match() -> None:
    """0001 H LLL, D: from 16 KiB and more back."""
    stream = bytes([0]) + b"\0" * 70 + bytes([200]) + bytes(range(250)) * 80
    length = 3 + 15 + 70 * 255 + 200
    stream = stream[: 1 + 71 + length]
    distance = 16384 + 5
    stream += bytes([0b0001_0011, 5 << 2, 0]) + END
    expanded = decompress(stream, 1 << 17)
    assert len(expanded) == length + 5
    assert expanded[length:] == expanded[length - distance :][:5]


@given(st.binary(max_size=300), st.integers(0, LIMIT))
def test_any_bytes_are_expanded_within_limits_or_refused(data: bytes, limit: int) -> None:
    with suppress(LzoError):
        assert len(decompress(data, limit)) <= limit


@given(st.sampled_from([0, 1, 2, 3, 4, 255]), st.binary(max_size=500), st.integers(0, 200_000))
def test_any_compressed_extent_has_the_size_asked_for(kind: int, data: bytes, size: int) -> None:
    with suppress(ReaderError):
        assert len(compression.expand(kind, data, size, 4096)) == size


def test_no_more_is_expanded_than_is_asked_for() -> None:
    bomb = bytes(64 << 20)
    small_window = zstandard.ZstdCompressionParameters(window_log=17)
    for kind, data in (
        (compression.ZLIB, zlib.compress(bomb)),
        (compression.ZSTD, zstandard.ZstdCompressor(compression_params=small_window).compress(bomb)),
    ):
        assert compression.expand(kind, data, 1000, 4096) == bytes(1000)
    with pytest.raises(ReaderError):
        compression.expand(compression.ZLIB, zlib.compress(bomb), 64 << 20, 4096)
    with pytest.raises(ReaderError):
        # Its window would take as much memory as it likes.
        compression.expand(compression.ZSTD, zstandard.compress(bomb), 1000, 4096)


def test_hashes_of_names() -> None:
    """As xfs_db (`hash NAME`) and btrfs inspect-internal dump-tree have them."""
    assert _name_hash(b"default") == 2378154706
    assert name_hash(b"", False) == 0
    assert name_hash(b"..", False) == 0x172E
    assert name_hash(b"ABC", True) == name_hash(b"abc", False) != name_hash(b"ABC", False)


def test_a_cache_keeps_what_was_used_last() -> None:
    cache: Cache[int, str] = Cache(3)
    cache.put(1, "a")
    cache.put(2, "b", 2)
    assert cache.get(1) == "a"
    cache.put(3, "c")
    assert [cache.get(key) for key in (1, 2, 3)] == ["a", None, "c"]
    cache.put(4, "too heavy", 4)
    assert [cache.get(key) for key in (1, 3, 4)] == ["a", "c", None]
    cache.put(1, "heavier", 3)
    assert [cache.get(key) for key in (1, 3)] == ["heavier", None]
