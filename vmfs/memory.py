"""Keeping freed memory, for speed.

Every chunk that is read or stored passes through buffers of a few hundred KiB. glibc gives those back to the
kernel when they are freed, and has them mapped and zeroed anew for the next chunk. That costs as much as to
decrypt and decompress it.
"""

from __future__ import annotations

import ctypes
import logging

log = logging.getLogger(__name__)

# From malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

# Bytes. Larger than the largest chunk (4 MiB) with all that is around it.
_MMAP_THRESHOLD = 16 << 20
_TRIM_THRESHOLD = 64 << 20
_ARENAS = 4


def keep_freed_memory() -> None:
    """For the whole process, from now on. Does nothing where the C library is not glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    for option, value in (
        (_M_MMAP_THRESHOLD, _MMAP_THRESHOLD),
        (_M_TRIM_THRESHOLD, _TRIM_THRESHOLD),
        (_M_ARENA_MAX, _ARENAS),
    ):
        if not mallopt(option, value):
            log.debug("mallopt(%d, %d) was refused", option, value)
