"""Where the packs themselves say that their blobs lie, to hold the indexes against."""

from __future__ import annotations

from array import array
from bisect import bisect_left

from vmfs.repo.segment import Location

_BUCKETS = 1 << 8


class Places:
    """A set of (blob id, location) in 8 bytes each. Everything is added before anything is asked."""

    def __init__(self) -> None:
        self._buckets = [array("q") for _ in range(_BUCKETS)]
        self._sorted = False

    def add(self, blob_id: bytes, location: Location) -> None:
        value = hash((blob_id, location))
        self._buckets[value % _BUCKETS].append(value)

    def has(self, blob_id: bytes, location: Location) -> bool:
        if not self._sorted:
            self._buckets = [array("q", sorted(bucket)) for bucket in self._buckets]
            self._sorted = True
        value = hash((blob_id, location))
        bucket = self._buckets[value % _BUCKETS]
        at = bisect_left(bucket, value)
        return at < len(bucket) and bucket[at] == value
