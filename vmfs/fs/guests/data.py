"""Files of guests as pieces of disks: what lies on a disk as it is gets read as the disk is, with all that is
fetched ahead of sequential readers, and without the worker that knows the file system."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from vmfs.fs.content import Content, DiskContent, PiecesContent, SpaceContent
from vmfs.volumes.files.plain import FileRuns

WORTH_ASKING = 256 << 10
"""Bytes of a read that makes it worth to ask where the file lies."""
_SHORTEST = 256 << 10
"""Bytes of a piece, on average. A file in smaller ones is not read any faster this way."""


def file_content(
    name: str, runs: FileRuns, volume: Content, chunk_size: int, read: Callable[[int, int], bytes]
) -> Content | None:
    """The file that lies so on that volume, if it is made of pieces of disks of that chunk size; `read` reads
    any part of it in another way, for when one of these cannot be read. `name` is the file's, to people."""
    most = runs.size // _SHORTEST + 1
    zeros = _Zeros(chunk_size)
    if isinstance(volume, SpaceContent) or len(runs) > most:
        return None
    pieces: list[DiskContent] = []
    for count, place in runs.within(0, runs.size):
        if place is None:
            pieces.append(DiskContent("zeros", zeros, 0, count))
        else:
            pieces += _within(volume, place, count)
        if len(pieces) > 2 * most:
            return None
    return PiecesContent(pieces, SpaceContent(name, _Otherwise(runs.size, read)))


def _within(volume: Content, place: int, count: int) -> Iterator[DiskContent]:
    if isinstance(volume, DiskContent):
        yield _part(volume, place, count)
    elif isinstance(volume, PiecesContent):
        for number, start, length in volume.within(place, count):
            yield _part(volume.pieces[number], start, length)


def _part(content: DiskContent, start: int, length: int) -> DiskContent:
    return DiskContent(content.disk, content.reader, content.start + start, length)


class _Zeros:
    """A disk without end and without data."""

    size = 1 << 63

    def __init__(self, chunk_size: int) -> None:
        self.chunk_size = chunk_size

    def read(self, offset: int, length: int) -> bytes:
        return bytes(length)

    cached = read

    def extents(self, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int, bool]]:
        yield start, (self.size if end is None else end) - start, True

    def chunk_ids(self, first: int, count: int) -> list[bytes | None]:
        return [None] * count


class _Otherwise:
    """The file as a Space, read as the file system's own reader does."""

    def __init__(self, size: int, read: Callable[[int, int], bytes]) -> None:
        self.size = size
        self.read = read

    def extents(self, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int, bool]]:
        yield start, (self.size if end is None else end) - start, False
