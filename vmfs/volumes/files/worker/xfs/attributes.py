# SPDX-License-Identifier: MIT
"""Extended attributes of XFS. Source: "XFS Algorithms & Data Structures", chapter "Extended Attributes"."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from errno import EIO

from ..model import ReaderError
from .hashes import HashIndex
from .inode import LOCAL, Fork, Inode
from .superblock import Superblock, checksum_holds

# Flags of an attribute
IS_LOCAL = 0x01
IS_ROOT = 0x02
IS_SECURE = 0x04
IS_PARENT = 0x08
IS_INCOMPLETE = 0x80

# In a leaf, before the name: length of the value, of the name; or block of the value, both lengths
LOCAL_HEAD = struct.Struct(">HB")
REMOTE_HEAD = struct.Struct(">IIB")

MAX_VALUE = 64 << 10
"""Bytes; as the kernel has it."""
MAX_TOTAL = 16 << 20
"""Bytes of all values of one file that are given at most."""
REMOTE_MAGIC = b"XARM"
REMOTE_HEADER = 56
"""Bytes at the start of each block of a value with checksums."""

ACLS = {b"SGI_ACL_FILE": b"system.posix_acl_access", b"SGI_ACL_DEFAULT": b"system.posix_acl_default"}
# An ACL as XFS has it, and as Linux gives it (linux/posix_acl_xattr.h)
ACL_ENTRY = struct.Struct(">IIHxx")
ACL_XATTR_VERSION = struct.pack("<I", 2)
ACL_XATTR_ENTRY = struct.Struct("<HHI")
ACL_NO_ID = 0xFFFFFFFF
ACL_WITH_ID = (0x02, 0x08)
"""Tags of a named user and a named group."""


class Attributes:
    """Reads attributes."""

    def __init__(self, index: HashIndex, superblock: Superblock) -> None:
        self._index = index
        self._superblock = superblock

    def all(self, inode: Inode) -> dict[bytes, bytes]:
        """By full name, ACLs as Linux gives them. Raises ReaderError."""
        fork = inode.attributes
        if fork is None or (fork.format != LOCAL and not fork.extents):
            return {}
        raw = self._short(inode, fork.area) if fork.format == LOCAL else self._leaves(inode, fork)
        result: dict[bytes, bytes] = {}
        total = 0
        for flags, name, value in raw:
            total += len(value)
            if total > MAX_TOTAL:
                raise self._damaged(inode, "its attributes are too large")
            if flags & IS_ROOT and name in ACLS:
                result[ACLS[name]] = self._acl(inode, value)
            else:
                space = b"trusted." if flags & IS_ROOT else b"security." if flags & IS_SECURE else b"user."
                result[space + name] = value
        return result

    def _short(self, inode: Inode, area: bytes) -> Iterator[tuple[int, bytes, bytes]]:
        if len(area) < 4:
            raise self._damaged(inode, "its attributes end in their header")
        at = 4
        for _ in range(area[2]):
            head = area[at : at + 3]
            if len(head) < 3:
                raise self._damaged(inode, "its attributes end in an entry")
            name_length, value_length, flags = head
            at += 3
            name = area[at : at + name_length]
            value = area[at + name_length : at + name_length + value_length]
            at += name_length + value_length
            if at > len(area) or not name_length:
                raise self._damaged(inode, "its attributes end in an entry")
            if not flags & (IS_PARENT | IS_INCOMPLETE):
                yield flags, name, value

    def _leaves(self, inode: Inode, fork: Fork) -> Iterator[tuple[int, bytes, bytes]]:
        info, header = (56, 80) if self._superblock.has_checksums else (12, 32)
        for raw in self._index.attribute_leaves(inode, fork):
            count = int.from_bytes(raw[info : info + 2], "big")
            if header + 8 * count > len(raw):
                raise self._damaged(inode, "a leaf of its attributes has impossible sizes")
            for index in range(count):
                _, at, flags = struct.unpack_from(">IHB", raw, header + 8 * index)
                if flags & (IS_PARENT | IS_INCOMPLETE):
                    continue
                is_local = bool(flags & IS_LOCAL)
                head = LOCAL_HEAD if is_local else REMOTE_HEAD
                if at + head.size > len(raw):
                    raise self._damaged(inode, "an attribute lies outside of its leaf")
                start, length, name_length = (0,) * is_local + head.unpack_from(raw, at)
                at += head.size
                if is_local:
                    value = raw[at + name_length : at + name_length + length]
                    is_whole = len(value) == length
                else:
                    is_whole = length <= MAX_VALUE and at + name_length <= len(raw)
                    value = self._remote(inode, fork, start, length) if is_whole else b""
                if not is_whole or not name_length:
                    raise self._damaged(inode, "an attribute does not fit in its leaf")
                yield flags, raw[at : at + name_length], value

    def _remote(self, inode: Inode, fork: Fork, start: int, length: int) -> bytes:
        """A value in blocks of its own, of the attribute fork from `start` on."""
        size = self._superblock.block_size
        pieces: list[bytes] = []
        done = 0
        while done < length:
            raw, place = self._index.block(inode, fork, start, size)
            if self._superblock.has_checksums:
                # magic, offset, bytes, CRC, UUID, owner, own place
                magic, offset, count, owner, own = struct.unpack_from(">4sII20xQQ", raw)
                if (
                    magic != REMOTE_MAGIC
                    or not checksum_holds(raw, 12)
                    or owner != inode.number
                    or own != place // 512
                    or offset != done
                    or not 0 < count <= size - REMOTE_HEADER
                ):
                    raise self._damaged(inode, "a block of an attribute's value is not sound")
                piece = raw[REMOTE_HEADER : REMOTE_HEADER + count]
            else:
                piece = raw
            pieces.append(piece)
            done += len(piece)
            start += 1
        return b"".join(pieces)[:length]

    def _acl(self, inode: Inode, raw: bytes) -> bytes:
        count = int.from_bytes(raw[:4], "big")
        if len(raw) < 4 + count * ACL_ENTRY.size:
            raise self._damaged(inode, "its ACL is cut off")
        entries = ACL_ENTRY.iter_unpack(raw[4 : 4 + count * ACL_ENTRY.size])
        return ACL_XATTR_VERSION + b"".join(
            ACL_XATTR_ENTRY.pack(tag & 0xFFFF, permissions, id if tag in ACL_WITH_ID else ACL_NO_ID)
            for tag, id, permissions in entries
        )

    @staticmethod
    def _damaged(inode: Inode, why: str) -> ReaderError:
        return ReaderError(EIO, f"inode {inode.number} is damaged: {why}")
