"""What to read of a guest's files, and reading it."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from vmfs.volumes.files.client import GuestError
from vmfs.volumes.tree import File, Tree

PIECE = 1 << 20
"""Bytes read at a time."""
SMALL = 64 << 10
"""Bytes of a file of which the holes are not asked for: that would take as long as to read it."""


def data_runs(file: File) -> list[tuple[int, int]]:
    """(offset, length) of what there is to read of a regular file. Raises GuestError."""
    size = file.stat.size
    if size <= SMALL:
        return [(0, size)] if size else []
    runs = []
    at = 0
    for start, length in sorted(file.system.extents(file.stat.node)):
        start, end = max(start, at), min(start + length, size)
        if start < end:
            runs.append((start, end - start))
            at = end
    return runs


def pieces(file: File, runs: Sequence[tuple[int, int]]) -> Iterator[tuple[int, bytes]]:
    """(offset, data) of those runs, in pieces; the next is read while the caller is busy with one. Raises
    GuestError, also where there is less than the runs say."""
    if sum(length for _, length in runs) <= PIECE:
        yield from (_read(file, *run) for run in runs)
        return
    # Not as a list: a damaged file can be as long as a number can say.
    wanted = (
        (offset, min(PIECE, start + length - offset))
        for start, length in runs
        for offset in range(start, start + length, PIECE)
    )
    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(_read, file, *next(wanted))
        for piece in wanted:
            now, ahead = ahead, reader.submit(_read, file, *piece)
            yield now.result()
        yield ahead.result()


def _read(file: File, offset: int, length: int) -> tuple[int, bytes]:
    data = file.system.read(file.stat.node, offset, length)
    if len(data) < length:
        raise GuestError(errno.EIO, f"it ends after {offset + len(data)} of {file.stat.size} bytes")
    return offset, data


def total_size(chosen: Iterable[tuple[Tree, File, bytes]]) -> int:
    """Bytes of the regular files in trees, as they say themselves; for those who watch."""
    return sum(
        step.file.stat.size
        for tree, start, _ in chosen
        for step in tree.walk(start)
        if step.file and step.file.is_regular and not step.problem
    )
