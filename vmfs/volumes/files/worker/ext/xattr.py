# SPDX-License-Identifier: MIT
"""Extended attributes: after the inode's fields, in a block of their own, and large ones in inodes."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterator

from ..model import ReaderError
from .inode import Inode

INLINE_DATA = b"system.data"
"""What of a small file or directory does not go into i_block."""
_MAGIC = 0xEA020000
_BLOCK_HEAD = 32
_ENTRY = struct.Struct("<BBHIII")
_PREFIXES = {
    1: b"user.",
    2: b"system.posix_acl_access",
    3: b"system.posix_acl_default",
    4: b"trusted.",
    6: b"security.",
    7: b"system.",
    8: b"system.richacl",
}
_LARGEST = 64 << 10
_ACL_NAMES = {_PREFIXES[2], _PREFIXES[3]}
_ACL_WITH_ID = {0x02, 0x08}
_ACL_NO_ID = 0xFFFFFFFF


def inline_attributes(inode: Inode, large: Callable[[int, int], bytes]) -> Iterator[tuple[bytes, bytes]]:
    """(name, value) as they are stored; `large` reads so many bytes of the inode of that number."""
    if len(inode.body) >= 4 and struct.unpack_from("<I", inode.body)[0] == _MAGIC:
        yield from _entries(inode.body, 4, 4, large)


def block_attributes(block: bytes, large: Callable[[int, int], bytes]) -> Iterator[tuple[bytes, bytes]]:
    if len(block) < _BLOCK_HEAD or struct.unpack_from("<I", block)[0] != _MAGIC:
        raise ReaderError(errno.EIO, "its extended attributes are damaged")
    yield from _entries(block, _BLOCK_HEAD, 0, large)


def as_given(name: bytes, value: bytes) -> bytes:
    """The value as getxattr(2) gives it: ACLs are stored in another form."""
    if name not in _ACL_NAMES or len(value) < 4:
        return value
    given = [struct.pack("<I", 2)]
    at = 4
    while at + 4 <= len(value):
        tag, permissions = struct.unpack_from("<HH", value, at)
        at += 4
        id_ = _ACL_NO_ID
        if tag in _ACL_WITH_ID:
            if at + 4 > len(value):
                raise ReaderError(errno.EIO, "its ACL is damaged")
            (id_,) = struct.unpack_from("<I", value, at)
            at += 4
        given.append(struct.pack("<HHI", tag, permissions, id_))
    return b"".join(given)


def _entries(
    data: bytes, at: int, values: int, large: Callable[[int, int], bytes]
) -> Iterator[tuple[bytes, bytes]]:
    """From byte `at`; the offsets of values count from byte `values`."""
    while at + 4 <= len(data) and data[at : at + 4] != b"\0\0\0\0":
        if at + _ENTRY.size > len(data):
            raise ReaderError(errno.EIO, "its extended attributes are damaged")
        name_length, prefix, offset, inode, size, _ = _ENTRY.unpack_from(data, at)
        at += _ENTRY.size
        name = data[at : at + name_length]
        at += (name_length + 3) & ~3
        start = values + offset
        if at > len(data) or size > _LARGEST or (not inode and start + size > len(data)):
            raise ReaderError(errno.EIO, "its extended attributes are damaged")
        value = large(inode, size) if inode else data[start : start + size]
        if prefix in _PREFIXES:
            yield _PREFIXES[prefix] + name, value
