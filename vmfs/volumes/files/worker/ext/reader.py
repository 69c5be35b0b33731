# SPDX-License-Identifier: MIT
"""ext2, ext3 and ext4 as `model.Reader`."""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator
from functools import lru_cache

from ..model import Device, Found, ReaderError, Run, Stat
from . import directory, journal, xattr
from .blocks import BlockMap, block_map
from .inode import FLAG_ENCRYPT, FLAG_INLINE_DATA, Inode, Inodes
from .superblock import INCOMPAT_RECOVER, read_superblock

_ROOT = 2
_IN_INODE = 60
"""Bytes of i_block: shorter symlinks are there, and the beginning of inline data."""
_LONGEST_SYMLINK = 4096
_CACHED_DIRECTORY = 4 << 20
"""Bytes of a directory that is kept for further look-ups; larger ones are read for each."""
_STEP = 256 << 10
"""Bytes of a directory that are read at a time."""


class ExtReader:
    """A dirty journal is replayed in memory, as the kernel would when it mounts the volume."""

    def __init__(self, device: Device) -> None:
        warnings: list[str] = []
        superblock = read_superblock(device)
        if superblock.incompat & INCOMPAT_RECOVER:
            device = self._replayed(device, warnings)
            superblock = read_superblock(device)
        if superblock.has_errors:
            warnings.append("the file system is marked as having errors: its host should have run e2fsck")
        self.type = superblock.type
        self.label = superblock.label
        self.uuid = superblock.uuid
        self.warnings = tuple(warnings)
        self._device = device
        self._superblock = superblock
        self._block_size = superblock.block_size
        self._inodes = Inodes(device, superblock)
        self._names = lru_cache(8)(self._read_names)
        self._map = lru_cache(64)(self._read_map)

    def root(self) -> Stat:
        return self.stat(_ROOT)

    def stat(self, node: int) -> Stat:
        return self._inodes.read(node).stat

    def scan(self, directory: int) -> Iterator[Found]:
        for name, number in self._entries(self._directory(directory)):
            try:
                yield Found(name, self.stat(number))
            except (ReaderError, OSError) as error:
                yield Found(name, None, str(error))

    def lookup(self, directory: int, name: bytes) -> Stat:
        inode = self._directory(directory)
        if inode.size <= _CACHED_DIRECTORY:
            number = self._names(inode).get(name)
        else:
            number = next((number for found, number in self._entries(inode) if found == name), None)
        if number is None:
            raise ReaderError(errno.ENOENT, "no such file")
        return self.stat(number)

    def readlink(self, node: int) -> bytes:
        inode = self._inodes.read(node)
        if not stat.S_ISLNK(inode.mode):
            raise ReaderError(errno.EINVAL, "not a symbolic link")
        self._check_plain(inode)
        if inode.size > _LONGEST_SYMLINK:
            raise ReaderError(errno.EIO, f"the symbolic link of inode {node} is damaged")
        if inode.size < _IN_INODE and not inode.flags & FLAG_INLINE_DATA:
            return inode.block[: inode.size]
        return self._data(inode, 0, inode.size)

    def read(self, node: int, offset: int, length: int) -> bytes:
        inode = self._inodes.read(node)
        if not stat.S_ISREG(inode.mode):
            raise ReaderError(errno.EINVAL, "not a regular file")
        self._check_plain(inode)
        return self._data(inode, offset, length)

    def extents(self, node: int) -> Iterator[tuple[int, int]]:
        inode = self._inodes.read(node)
        if inode.flags & FLAG_INLINE_DATA:
            if inode.size:
                yield 0, inode.size
            return
        size = self._block_size
        start = end = 0
        for run in self._map(inode).runs:
            at = run.logical * size
            if at >= inode.size:
                break
            if at != end and end > start:
                yield start, end - start
            start = at if at != end else start
            end = min(at + run.blocks * size, inode.size)
        if end > start:
            yield start, end - start

    def runs(self, node: int) -> Iterator[Run]:
        inode = self._inodes.read(node)
        if not stat.S_ISREG(inode.mode):
            raise ReaderError(errno.EINVAL, "not a regular file")
        self._check_plain(inode)
        if inode.flags & FLAG_INLINE_DATA:
            raise ReaderError(errno.EOPNOTSUPP, "its data is in its inode")
        size = self._block_size
        for run in self._map(inode).runs:
            start, place = run.logical * size, run.physical * size
            length = min(run.blocks * size, inode.size - start)
            if length <= 0:
                break
            if isinstance(self._device, journal.Overlay) and self._device.replaces(place, length):
                raise ReaderError(errno.EOPNOTSUPP, "some of its data is in the journal")
            yield Run(start, length, place)

    def xattrs(self, node: int) -> dict[bytes, bytes]:
        inode = self._inodes.read(node)
        return {
            name: xattr.as_given(name, value)
            for name, value in self._attributes(inode)
            if name != xattr.INLINE_DATA
        }

    def _directory(self, number: int) -> Inode:
        inode = self._inodes.read(number)
        if not inode.is_directory:
            raise ReaderError(errno.ENOTDIR, "not a directory")
        self._check_plain(inode)
        return inode

    def _entries(self, inode: Inode) -> Iterator[tuple[bytes, int]]:
        if inode.flags & FLAG_INLINE_DATA:
            # The first four bytes are the parent's number.
            yield from directory.entries(inode.block[4:], self._block_size)
            yield from directory.entries(self._inline_rest(inode), self._block_size)
            return
        size = self._block_size
        end = -(-inode.size // size)
        problem: ReaderError | None = None
        for run in self._map(inode).within(0, end):
            for first in range(0, run.blocks, max(_STEP // size, 1)):
                count = min(max(_STEP // size, 1), run.blocks - first)
                data = self._device.read((run.physical + first) * size, count * size)
                for at in range(0, len(data), size):
                    try:
                        yield from directory.entries(data[at : at + size], size)
                    except ReaderError as error:
                        problem = error
        # What can be read has been given.
        if problem is not None:
            raise problem

    def _read_names(self, inode: Inode) -> dict[bytes, int]:
        return dict(self._entries(inode))

    def _data(self, inode: Inode, offset: int, length: int) -> bytes:
        end = min(offset + length, inode.size)
        if offset >= end:
            return b""
        if inode.flags & FLAG_INLINE_DATA:
            data = inode.block + self._inline_rest(inode)
            return data[offset:end].ljust(end - offset, b"\0")
        size = self._block_size
        pieces = []
        at = offset
        for run in self._map(inode).within(offset // size, -(-end // size)):
            start = max(run.logical * size, offset)
            stop = min((run.logical + run.blocks) * size, end)
            if start > at:
                pieces.append(bytes(start - at))
            place = run.physical * size + start - run.logical * size
            piece = self._device.read(place, stop - start)
            if len(piece) < stop - start:
                raise ReaderError(errno.EIO, "data lies outside of the volume")
            pieces.append(piece)
            at = stop
        if at < end:
            pieces.append(bytes(end - at))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _inline_rest(self, inode: Inode) -> bytes:
        for name, value in xattr.inline_attributes(inode, self._large):
            if name == xattr.INLINE_DATA:
                return value
        return b""

    def _attributes(self, inode: Inode) -> Iterator[tuple[bytes, bytes]]:
        yield from xattr.inline_attributes(inode, self._large)
        if inode.attributes:
            size = self._block_size
            block = self._device.read(inode.attributes * size, size)
            yield from xattr.block_attributes(block, self._large)

    def _large(self, number: int, size: int) -> bytes:
        return self._data(self._inodes.read(number), 0, size)

    def _read_map(self, inode: Inode) -> BlockMap:
        return block_map(self._device, self._superblock, inode)

    def _check_plain(self, inode: Inode) -> None:
        if inode.flags & FLAG_ENCRYPT:
            raise ReaderError(errno.EOPNOTSUPP, "it is encrypted (fscrypt): its key is not known here")

    @staticmethod
    def _replayed(device: Device, warnings: list[str]) -> Device:
        superblock = read_superblock(device)
        number = superblock.journal_inode
        if not number:
            warnings.append("its journal is dirty and lies on another device: the content is of before it")
            return device
        try:
            inode = Inodes(device, superblock).read(number)
            overlay = journal.replay(device, superblock, block_map(device, superblock, inode))
        except ReaderError as error:
            warnings.append(
                f"its journal is dirty and cannot be replayed: {error}; the content is of before it"
            )
            return device
        warnings.extend(overlay.notes)
        return overlay
