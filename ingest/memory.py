"""Memory that other processes can share: they fill it, and the threads of an ingest work on it in place."""

from __future__ import annotations

import ctypes
import mmap
import os

# With the interpreter's lock held: most of these comparisons end at once, and to give it away costs more.
_memcmp = ctypes.PyDLL(None).memcmp
_memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


class Memory:
    """`size` bytes of zeros. Another process that is given `descriptor` maps the same."""

    def __init__(self, size: int) -> None:
        self.descriptor = os.memfd_create("vmfs-ingest")
        try:
            os.ftruncate(self.descriptor, size)
            self.view = memoryview(mmap.mmap(self.descriptor, size))
        except BaseException:
            os.close(self.descriptor)
            raise
        self._address = _address(self.view)

    def position(self, part: memoryview) -> int:
        """Where in the memory `part`, a piece of `view`, begins, bytes. Raises ValueError for any other."""
        at = _address(part) - self._address
        if not 0 <= at <= at + len(part) <= len(self.view):
            raise ValueError("a buffer that is not of this memory")
        return at

    def close(self) -> None:
        """The memory itself is there as long as there are views of it."""
        os.close(self.descriptor)


def is_zero(part: memoryview) -> bool:
    """Whether all bytes are zero. `part` is writable, contiguous and not empty."""
    if part[0]:
        return False
    address = _address(part)
    # All are like their neighbours.
    return not _memcmp(address, address + 1, len(part) - 1)


def _address(part: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(part))
