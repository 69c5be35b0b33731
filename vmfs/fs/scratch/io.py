"""The system calls that a writable view makes on its files, in one place, so that tests can cut the power
between any two of them."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Sequence

Buffer = bytes | bytearray | memoryview

# linux/falloc.h
_KEEP_SIZE = 0x01
_PUNCH_HOLE = 0x02
_LIBC = ctypes.CDLL(None, use_errno=True)
_fallocate = getattr(_LIBC, "fallocate64", None) or _LIBC.fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class Io:
    """All methods raise OSError. Thread-safe."""

    def open(self, directory: int, name: str, flags: int) -> int:
        """A descriptor of the file in the directory of that descriptor; links are not followed."""
        return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory)

    def write(self, descriptor: int, buffers: Sequence[Buffer], offset: int) -> int:
        """As pwritev(2): the number of bytes written may be less than there are."""
        return os.pwritev(descriptor, buffers, offset)

    def punch(self, descriptor: int, offset: int, length: int) -> bool:
        """Make zeros of bytes [offset, offset + length) and give their room back. False where the file system
        cannot."""
        if _fallocate(descriptor, _PUNCH_HOLE | _KEEP_SIZE, offset, length) == 0:
            return True
        number = ctypes.get_errno()
        if number in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            return False
        raise OSError(number, os.strerror(number))

    def sync(self, descriptor: int) -> None:
        """As fdatasync(2)."""
        os.fdatasync(descriptor)

    def sync_directory(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def rename(self, directory: int, old: str, new: str) -> None:
        os.rename(old, new, src_dir_fd=directory, dst_dir_fd=directory)
