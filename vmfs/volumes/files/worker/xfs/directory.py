# SPDX-License-Identifier: MIT
"""Directories of XFS: names to numbers of inodes. Source: "XFS Algorithms & Data Structures", chapter
"Directories".

A small directory lies in its inode. A larger one is a file of directory blocks: one that ends with an index
of hashes, or blocks of entries from 0 on and blocks of the index from 32 GiB on."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from errno import EIO

from ..cache import Cache
from ..model import ReaderError
from .hashes import HashIndex, name_hash
from .inode import LOCAL, Inode
from .mapping import Mapping
from .superblock import Superblock, checksum_holds

INDEX_AT = 1 << 35
"""Bytes from the start of the directory to the index; also the most that entries may take."""
FREE = 0xFFFF
"""The tag of room that no entry uses."""
CACHED = 20_000
"""Entries of directory blocks that are kept: about 6 MB."""
ALIGN = 8
"""Entries begin at, and the index counts, multiples of so many bytes."""


class Directories:
    """Reads directories."""

    def __init__(self, mapping: Mapping, superblock: Superblock, index: HashIndex) -> None:
        self._mapping = mapping
        self._superblock = superblock
        self._index = index
        self._header = 64 if superblock.has_checksums else 16
        self._type_size = 1 if superblock.has_file_type else 0
        self._blocks: Cache[tuple[int, int], dict[int, tuple[bytes, int]]] = Cache(CACHED)

    def entries(self, inode: Inode) -> Iterator[tuple[bytes, int]]:
        """The names, and the numbers of their inodes, without `.` and `..`. Raises ReaderError."""
        if inode.data.format == LOCAL:
            yield from self._short(inode)
            return
        for number in self._blocks_of_entries(inode):
            for name, child in self._block(inode, number).values():
                if name not in (b".", b".."):
                    yield name, child

    def find(self, inode: Inode, name: bytes) -> int | None:
        """The number of the inode of this name. Raises ReaderError."""
        if name in (b"", b".", b".."):
            return None
        # Where case is ignored, hashes are those of lower-case names: kernels and mkfs.xfs have not always
        # agreed on which bytes those are.
        if inode.data.format == LOCAL or self._is_single(inode) or self._superblock.ignores_case:
            return next((child for found, child in self.entries(inode) if found == name), None)
        size = self._superblock.directory_block_size
        wanted = name_hash(name)
        for address in self._index.addresses(inode, INDEX_AT, size, wanted):
            offset = address * ALIGN
            if address and offset < INDEX_AT:
                entry = self._block(inode, offset // size).get(offset % size)
                if entry is not None and entry[0] == name:
                    return entry[1]
        return None

    def _is_single(self, inode: Inode) -> bool:
        return inode.stat.size <= self._superblock.directory_block_size

    def _short(self, inode: Inode) -> Iterator[tuple[bytes, int]]:
        area = inode.data.area[: inode.stat.size]
        if len(area) < 6:
            raise self._damaged(inode, "it ends in its header")
        count, wide = area[0], area[1]
        width = 8 if wide else 4
        at = 2 + width
        # With any number of 64 bits all have them; `count` is that of all entries.
        for _ in range(count):
            if at + 3 > len(area):
                raise self._damaged(inode, "it ends in an entry")
            length = area[at]
            name = area[at + 3 : at + 3 + length]
            at += 3 + length + self._type_size
            raw = area[at : at + width]
            at += width
            if not length or len(raw) < width:
                raise self._damaged(inode, "it ends in an entry")
            yield self._checked(inode, name), int.from_bytes(raw, "big")

    def _blocks_of_entries(self, inode: Inode) -> Iterator[int]:
        """The numbers of directory blocks with entries: those that are mapped, each place on the volume
        once, so that a map of one block to all of a directory ends."""
        superblock = self._superblock
        size = superblock.directory_block_size
        per_block = size // superblock.block_size
        seen: set[int] = set()
        last = -1
        for extent in self._mapping.extents(inode, inode.data):
            for step in range(extent.blocks):
                start = extent.start + step
                if start * superblock.block_size >= min(inode.stat.size, INDEX_AT):
                    return
                if start // per_block == last:
                    continue
                last = start // per_block
                if extent.block + step in seen:
                    raise self._damaged(inode, "its blocks overlap")
                seen.add(extent.block + step)
                yield last

    def _block(self, inode: Inode, number: int) -> dict[int, tuple[bytes, int]]:
        """The entries of a directory block by their offsets in it, in bytes."""
        known = self._blocks.get((inode.number, number))
        if known is not None:
            return known
        superblock = self._superblock
        size = superblock.directory_block_size
        raw, place = self._index.directory_block(inode, number)
        magic = raw[:4]
        single, many = (b"XDB3", b"XDD3") if superblock.has_checksums else (b"XD2B", b"XD2D")
        if magic not in (single, many):
            raise self._damaged(inode, f"its block {number} is none of a directory")
        if superblock.has_checksums:
            own, owner = struct.unpack_from(">Q24xQ", raw, 8)
            if not checksum_holds(raw, 4) or own != place // 512 or owner != inode.number:
                raise self._damaged(inode, f"its block {number} is not sound")
        end = size
        if magic == single:
            leaves = int.from_bytes(raw[size - 8 : size - 4], "big")
            end = size - 8 - 8 * leaves
        entries: dict[int, tuple[bytes, int]] = {}
        at = self._header
        while at < end:
            if int.from_bytes(raw[at : at + 2], "big") == FREE:
                length = int.from_bytes(raw[at + 2 : at + 4], "big")
                if not length or length % ALIGN:
                    raise self._damaged(inode, f"its block {number} has a gap of {length} bytes")
                at += length
                continue
            length = raw[at + 8] if at + 9 <= end else 0
            needed = (8 + 1 + length + self._type_size + 2 + ALIGN - 1) // ALIGN * ALIGN
            if not length or at + needed > end:
                raise self._damaged(inode, f"its block {number} has an entry that does not fit")
            name = raw[at + 9 : at + 9 + length]
            entries[at] = self._checked(inode, name), int.from_bytes(raw[at : at + 8], "big")
            at += needed
        self._blocks.put((inode.number, number), entries, len(entries))
        return entries

    def _checked(self, inode: Inode, name: bytes) -> bytes:
        if b"/" in name or b"\0" in name:
            raise self._damaged(inode, f"it has an entry with the impossible name {name!r}")
        return name

    @staticmethod
    def _damaged(inode: Inode, why: str) -> ReaderError:
        return ReaderError(EIO, f"directory {inode.number} is damaged: {why}")
