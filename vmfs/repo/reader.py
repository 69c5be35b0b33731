"""Reading a disk of a restore point as if it were a raw file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from vmfs.errors import IntegrityError, StoreError
from vmfs.format import node
from vmfs.format.manifest import Disk
from vmfs.repo.blobs import BlobReader
from vmfs.repo.diskmap import chunks


class DiskExtent(NamedTuple):
    """Bytes [start, start + length) of a disk; `zero` when the map holds nothing there."""

    start: int
    length: int
    zero: bool


class DiskReader:
    """One disk of one point. Thread-safe: several threads may read at once, and most of a read is done
    without the interpreter's lock."""

    def __init__(self, disk: Disk, blobs: BlobReader) -> None:
        self.size = disk.size
        self.chunk_size = blobs.chunk_size
        self._root = disk.root
        self._blobs = blobs
        self._top = node.levels(disk.size, blobs.chunk_size) - 1
        self._zeros = bytes(self.chunk_size)
        # One tuple, replaced whole: sequential readers stay in one leaf for 256 chunks.
        self._leaf: tuple[int, bytes | None] = (-1, None)

    def chunk_ids(self, first: int, count: int) -> list[bytes | None]:
        """The ids of chunks [first, first + count); None reads as zeros, or is past the end."""
        ids: list[bytes | None] = []
        last = min(first + count, node.chunk_count(self.size, self.chunk_size))
        for index in range(first, last):
            leaf = self._leaf_of(index >> node.BITS)
            ids.append(None if leaf is None else node.child(leaf, index % node.FANOUT))
        return ids + [None] * (count - len(ids))

    def read(self, offset: int, length: int) -> bytes:
        """Bytes [offset, offset + length), clipped to the disk. Raises IntegrityError or StoreError if any
        chunk of the range cannot be had."""
        pieces = []
        for index, blob_id, start, stop in self._pieces(offset, length):
            try:
                pieces.append(self._piece(blob_id, start, stop))
            except IntegrityError as error:
                raise type(error)(f"disk bytes from {index * self.chunk_size}: {error}") from error
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def cached(self, offset: int, length: int) -> bytes | None:
        """What `read` would give, if that takes no reading of chunks; else None."""
        pieces = []
        for _, blob_id, start, stop in self._pieces(offset, length):
            plain = self._zeros if blob_id is None else self._blobs.cached_chunk(blob_id)
            if plain is None:
                return None
            pieces.append(_cut(plain, start, stop))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def prefetch(self, first: int, count: int) -> None:
        """Bring chunks [first, first + count) into the cache. Errors are left to whoever reads them."""
        last = min(first + count, node.chunk_count(self.size, self.chunk_size))
        try:
            for blob_id in self.chunk_ids(first, last - first):
                if blob_id is not None:
                    self._blobs.chunk(blob_id)
        except (IntegrityError, StoreError):
            return

    def extents(self, start: int = 0, end: int | None = None) -> Iterator[DiskExtent]:
        """[start, end) as ascending, adjacent extents, merged, with the map's null subtrees skipped."""
        end = self.size if end is None else min(end, self.size)
        size = self.chunk_size
        run_start = run_end = start
        for index, _ in chunks(self._blobs.node, self._root, self._top, start // size, -(-end // size)):
            at = max(index * size, start)
            if at > run_end:
                if run_end > run_start:
                    yield DiskExtent(run_start, run_end - run_start, False)
                yield DiskExtent(run_end, at - run_end, True)
                run_start = at
            run_end = min((index + 1) * size, end)
        if run_end > run_start:
            yield DiskExtent(run_start, run_end - run_start, False)
        if run_end < end:
            yield DiskExtent(run_end, end - run_end, True)

    def _piece(self, blob_id: bytes | None, start: int, stop: int) -> bytes:
        if blob_id is None:
            return _cut(self._zeros, start, stop)
        # A reader that goes on from chunk to chunk will want the rest; one that begins inside may not.
        if start and stop - start <= self.chunk_size // 4:
            return self._blobs.piece(blob_id, start, stop)
        return _cut(self._blobs.chunk(blob_id), start, stop)

    def _pieces(self, offset: int, length: int) -> Iterator[tuple[int, bytes | None, int, int]]:
        """(chunk number, id, first, end) of the parts of chunks that the range is made of."""
        end = min(offset + length, self.size)
        while offset < end:
            index, start = divmod(offset, self.chunk_size)
            stop = min(self.chunk_size, start + end - offset)
            leaf = self._leaf_of(index >> node.BITS)
            yield index, leaf and node.child(leaf, index % node.FANOUT), start, stop
            offset += stop - start

    def _leaf_of(self, index: int) -> bytes | None:
        """The map's leaf number `index`, None if all zeros."""
        number, leaf = self._leaf
        if number == index:
            return leaf
        found = self._root
        for level in range(self._top, 0, -1):
            if found is None:
                break
            slot = (index >> (node.BITS * (level - 1))) % node.FANOUT
            found = node.child(self._blobs.node(found), slot)
        leaf = None if found is None else self._blobs.node(found)
        self._leaf = (index, leaf)
        return leaf


def _cut(plain: bytes, start: int, stop: int) -> bytes:
    return plain if stop - start == len(plain) else plain[start:stop]
