"""A disk of a restore point as a file, or as a stream."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Literal, get_args

from vmfs.errors import IntegrityError, VmfsError
from vmfs.format import qcow2
from vmfs.format.qcow2 import Range
from vmfs.repo.newfile import NewFile
from vmfs.repo.reader import DiskReader

Format = Literal["raw", "qcow2"]
FORMATS: tuple[Format, ...] = get_args(Format)
Progress = Callable[[int], None]
"""Called with the bytes of data read so far."""
Part = bytes | Range
"""What comes next in a stream: these bytes, or those of the disk."""

_PIECE = 256 << 10
"""What one thread reads at a time: usually one chunk, which is then handed on without a copy."""
_THREADS = min(8, os.cpu_count() or 1)
_AHEAD = 8 * _THREADS
"""Pieces that are being read or wait to be written: bounds the memory."""
_ZEROS = bytes(1 << 20)


def export_file(
    reader: DiskReader,
    path: Path,
    form: Format = "raw",
    *,
    replace: bool = False,
    progress: Progress | None = None,
) -> int:
    """Write the disk to a new file, which on return is whole and durable; the bytes of data written.

    A raw file has holes where the disk's map holds nothing. Raises UsageError if `path` is there already
    and `replace` is not set, VmfsError if it cannot be written, IntegrityError or StoreError if the disk
    cannot be read; then there is no file, or the one that was.
    """
    with NewFile(path, replace=replace) as file:
        done = at = 0
        if form == "raw":
            file.resize(reader.size)
            parts: Iterable[Part] = (
                piece for found in data_ranges(reader) for piece in _pieces(reader, found)
            )
        else:
            parts = _parts(reader, form)
        for part, content in _in_order(reader, parts):
            if isinstance(part, Range):
                done += len(content)
                if progress:
                    progress(done)
                if form == "raw":
                    at = part.start
            file.write_at(at, content)
            at += len(content)
        file.commit()
    return done


def export_stream(
    reader: DiskReader, fd: int, form: Format = "raw", *, progress: Progress | None = None
) -> int:
    """Write the disk to an open file, front to back, holes as zeros; the bytes of data written. Raises as
    `export_file` does, and BrokenPipeError."""
    done = 0
    for part, content in _in_order(reader, _parts(reader, form)):
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(fd, rest) :]
        except BrokenPipeError:
            raise
        except OSError as error:
            raise VmfsError(
                f"cannot write to standard output: {error.strerror}; it is not complete"
            ) from error
        if isinstance(part, Range):
            done += len(content)
            if progress:
                progress(done)
    return done


def data_ranges(reader: DiskReader) -> Iterator[Range]:
    """What of the disk the map holds chunks for, ascending."""
    for start, length, zero in reader.extents():
        if not zero:
            yield Range(start, length)


def _parts(reader: DiskReader, form: Format) -> Iterator[Part]:
    """The whole stream, in small parts."""
    parts = qcow2.stream(reader.size, lambda: data_ranges(reader)) if form == "qcow2" else _raw(reader)
    for part in parts:
        if isinstance(part, Range):
            yield from _pieces(reader, part)
        else:
            yield part


def _raw(reader: DiskReader) -> Iterator[Part]:
    for start, length, zero in reader.extents():
        if not zero:
            yield Range(start, length)
            continue
        for _ in range(length // len(_ZEROS)):
            yield _ZEROS
        yield _ZEROS[: length % len(_ZEROS)]


def _pieces(reader: DiskReader, found: Range) -> Iterator[Range]:
    """The range, cut at multiples of a piece: no chunk is read twice."""
    size = max(_PIECE, reader.chunk_size)
    start, end = found.start, found.start + found.length
    while start < end:
        cut = min(end, (start // size + 1) * size)
        yield Range(start, cut - start)
        start = cut


def _in_order(reader: DiskReader, parts: Iterable[Part]) -> Iterator[tuple[Part, bytes]]:
    """Each part with its bytes, read by several threads and given out in order."""
    waiting: deque[tuple[Part, bytes | Future[bytes]]] = deque()

    def first() -> tuple[Part, bytes]:
        part, content = waiting.popleft()
        if isinstance(content, Future):
            content = content.result()
            if isinstance(part, Range) and len(content) != part.length:
                raise IntegrityError(f"disk bytes from {part.start} came short")
        return part, content

    with ThreadPoolExecutor(_THREADS, "vmfs-export") as executor:
        try:
            for part in parts:
                if len(waiting) >= _AHEAD:
                    yield first()
                content = executor.submit(reader.read, *part) if isinstance(part, Range) else part
                waiting.append((part, content))
            while waiting:
                yield first()
        finally:
            executor.shutdown(wait=True, cancel_futures=True)
