"""Parts of the readers of XFS and Btrfs by themselves: what no kernel writes, and the ends of ranges."""

from __future__ import annotations

import zlib
from contextlib import suppress

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from lzallright import LZOCompressor

from vmfs.volumes.files.worker.btrfs import compression
from vmfs.volumes.files.worker.btrfs.reader import _name_hash
from vmfs.volumes.files.worker.cache import Cache
from vmfs.volumes.files.worker.model import ReaderError
from vmfs.volumes.files.worker.xfs.hashes import name_hash


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
    # A sector of zeros, and what is more than a sector, in a segment of LZO.
    segments = [bytes(LZOCompressor().compress(bytes(size))) for size in (4096, 4097, 1 << 20)]
    extents = [
        (len(each) + 8).to_bytes(4, "little") + len(each).to_bytes(4, "little") + each for each in segments
    ]
    assert compression.expand(compression.LZO, extents[0], 1000, 4096) == bytes(1000)
    for extent in extents[1:]:
        with pytest.raises(ReaderError, match="segment"):
            compression.expand(compression.LZO, extent, 128 << 10, 4096)
    with pytest.raises(ReaderError):
        compression.expand(compression.ZLIB, zlib.compress(bomb), 64 << 20, 4096)
    with pytest.raises(ReaderError):
        # Its window would take as much memory as it likes.
        compression.expand(compression.ZSTD, zstandard.compress(bomb), 1000, 4096)


def test_hashes_of_names() -> None:
    """As xfs_db (`hash NAME`) and btrfs inspect-internal dump-tree have them."""
    assert _name_hash(b"default") == 2378154706
    assert name_hash(b"") == 0
    assert name_hash(b"..") == 0x172E


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
