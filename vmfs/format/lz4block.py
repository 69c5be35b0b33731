"""LZ4 blocks decompressed into memory of the caller, and no further than is wanted.

The lz4 package gives whole blocks, as new bytes. The C library inside it can do more, and is called here with
ctypes, which also lets go of the interpreter's lock. Where its functions are not to be found, the package's
own way is taken. See lz4.h: LZ4_decompress_safe, LZ4_decompress_safe_partial (1.8.3 or later).
"""

from __future__ import annotations

import ctypes
from typing import Any

import lz4.block
from lz4.block import _block

from vmfs.format.errors import ContentError

_NOT_AS_LONG = "blob does not decompress to the length it states"


def _functions() -> tuple[Any, Any] | None:
    try:
        library = ctypes.CDLL(_block.__file__)
        whole, partial = library.LZ4_decompress_safe, library.LZ4_decompress_safe_partial
    except (OSError, AttributeError):
        return None
    whole.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
    partial.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_int]
    return whole, partial


_FUNCTIONS = _functions()


def decompress(block: memoryview, plain_length: int, out: memoryview) -> None:
    """Fill `out` with the start of the block's plaintext, which is `plain_length` bytes long and no shorter
    than `out`. Both are writable memory. Raises ContentError; `out` then holds anything."""
    if _FUNCTIONS is None:
        _by_package(block, plain_length, out)
        return
    if not block:
        raise ContentError(_NOT_AS_LONG)
    whole, partial = _FUNCTIONS
    source, target = _address(block), _address(out)
    if len(out) == plain_length:
        made = whole(source, target, len(block), plain_length)
    else:
        made = partial(source, target, len(block), len(out), len(out))
    if made != len(out):
        raise ContentError(_NOT_AS_LONG)


def _by_package(block: memoryview, plain_length: int, out: memoryview) -> None:
    try:
        plain = lz4.block.decompress(block, uncompressed_size=plain_length)
    except lz4.block.LZ4BlockError:
        raise ContentError(_NOT_AS_LONG) from None
    if len(plain) != plain_length:
        raise ContentError(_NOT_AS_LONG)
    out[:] = plain[: len(out)]


def _address(memory: memoryview) -> Any:
    return ctypes.byref(ctypes.c_char.from_buffer(memory))
