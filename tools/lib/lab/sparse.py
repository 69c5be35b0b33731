"""Files with holes."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from pathlib import Path

_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # linux/falloc.h
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def data_ranges(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of what is not a hole, in bytes."""
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end - start


def copy(source: Path, target: Path) -> None:
    """Holes stay holes; `target` is replaced."""
    with source.open("rb") as reader, target.open("wb") as writer:
        size = os.fstat(reader.fileno()).st_size
        os.truncate(writer.fileno(), size)
        for start, length in data_ranges(reader.fileno(), size):
            done = 0
            while done < length:
                at = start + done
                count = os.copy_file_range(reader.fileno(), writer.fileno(), length - done, at, at)
                if not count:
                    raise OSError(errno.EIO, f"{source}: shorter than it was")
                done += count


def punch(fd: int, offset: int, length: int) -> None:
    """Makes the range a hole: it reads as zeros. Raises OSError."""
    if length and _libc.fallocate(fd, _KEEP_SIZE | _PUNCH_HOLE, offset, length):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
