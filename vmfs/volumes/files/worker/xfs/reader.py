# SPDX-License-Identifier: MIT
"""An XFS as a Reader. The number of a node is that of its inode."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from errno import EINVAL, EIO, ENOENT, ENOTDIR, EOPNOTSUPP

from ..model import Device, Found, ReaderError, Run, Stat
from .attributes import Attributes
from .directory import Directories
from .hashes import HashIndex
from .inode import LOCAL, Inode, Inodes
from .log import is_dirty
from .mapping import Extent, Mapping
from .superblock import Superblock, checksum_holds, read_superblock

MAX_SYMLINK = 1024
"""Bytes; as the kernel has it."""
SYMLINK_MAGIC = b"XSLM"
SYMLINK_HEADER = 56
"""Bytes at the start of each extent of a symlink with checksums."""

DIRTY = (
    "the log of this XFS is dirty: files changed just before the backup may be missing or old; "
    "mount the volume with --scratch to replay it"
)
LOG_ELSEWHERE = (
    "the log of this XFS is on another device: files changed just before the backup may be missing or old"
)
NEEDS_REPAIR = "this XFS is marked as damaged (xfs_repair has not finished): what it holds may be wrong"
LOG_UNREADABLE = (
    "the log of this XFS cannot be read: files changed just before the backup may be missing or old"
)


class XfsReader:
    """See Reader."""

    type = "xfs"

    def __init__(self, device: Device) -> None:
        self._device = device
        self._superblock = read_superblock(device)
        self.label = self._superblock.label
        self.uuid = str(self._superblock.uuid)
        self.warnings = tuple(_warnings(device, self._superblock))
        self._inodes = Inodes(device, self._superblock)
        self._mapping = Mapping(device, self._superblock)
        index = HashIndex(device, self._superblock, self._mapping)
        self._directories = Directories(self._mapping, self._superblock, index)
        self._attributes = Attributes(index, self._superblock)
        self.root()

    def root(self) -> Stat:
        return self._directory(self._superblock.root).stat

    def stat(self, node: int) -> Stat:
        return self._inodes.get(node).stat

    def scan(self, directory: int) -> Iterator[Found]:
        for name, number in self._directories.entries(self._directory(directory)):
            try:
                yield Found(name, self._inodes.get(number).stat)
            except (ReaderError, OSError) as error:
                yield Found(name, None, str(error))

    def lookup(self, directory: int, name: bytes) -> Stat:
        number = self._directories.find(self._directory(directory), name)
        if number is None:
            raise ReaderError(ENOENT, f"directory {directory} has no entry {name!r}")
        return self._inodes.get(number).stat

    def readlink(self, node: int) -> bytes:
        inode = self._inodes.get(node)
        size = inode.stat.size
        if not stat.S_ISLNK(inode.stat.mode):
            raise ReaderError(EINVAL, f"inode {node} is no symbolic link")
        if not 0 < size <= MAX_SYMLINK:
            raise ReaderError(EIO, f"inode {node} is damaged: a symbolic link of {size} bytes")
        if inode.data.format == LOCAL:
            target = inode.data.area[:size]
        else:
            target = b"".join(self._pieces_of_link(inode))[:size]
        if len(target) < size:
            raise ReaderError(EIO, f"inode {node} is damaged: its target is cut off")
        return target

    def _pieces_of_link(self, inode: Inode) -> Iterator[bytes]:
        superblock = self._superblock
        left = inode.stat.size
        for extent in self._mapping.extents(inode, inode.data):
            if left <= 0:
                return
            count = min(extent.blocks, MAX_SYMLINK // superblock.block_size + 2)
            raw = self._device.read(superblock.block_offset(extent.block), count * superblock.block_size)
            if superblock.has_checksums:
                owner = int.from_bytes(raw[32:40], "big")
                if raw[:4] != SYMLINK_MAGIC or not checksum_holds(raw, 12) or owner != inode.number:
                    raise ReaderError(EIO, f"inode {inode.number} is damaged: its target is not sound")
                raw = raw[SYMLINK_HEADER : SYMLINK_HEADER + int.from_bytes(raw[8:12], "big")]
            left -= len(raw)
            yield raw

    def read(self, node: int, offset: int, length: int) -> bytes:
        inode = self._file(node)
        length = min(length, inode.stat.size - offset)
        if length <= 0:
            return b""
        size = self._superblock.block_size
        end = offset + length
        pieces: list[bytes] = []
        at = offset
        for extent in self._extents(inode, offset // size):
            start = extent.start * size
            if start >= end:
                break
            if extent.is_unwritten:
                continue
            if start > at:
                pieces.append(bytes(start - at))
                at = start
            skip = at - start
            count = min(end - at, extent.blocks * size - skip)
            place = self._superblock.block_offset(extent.block, extent.blocks) + skip
            data = self._device.read(place, count)
            if len(data) < count:
                raise ReaderError(EIO, f"inode {node}: the volume ends before its data")
            pieces.append(data)
            at += count
        if at < end:
            pieces.append(bytes(end - at))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def extents(self, node: int) -> Iterator[tuple[int, int]]:
        inode = self._file(node)
        size = self._superblock.block_size
        start = end = 0
        for extent in self._extents(inode, 0):
            first = extent.start * size
            if first >= inode.stat.size:
                break
            if extent.is_unwritten:
                continue
            if first > end:
                if end > start:
                    yield start, end - start
                start = first
            end = min(first + extent.blocks * size, inode.stat.size)
        if end > start:
            yield start, end - start

    def runs(self, node: int) -> Iterator[Run]:
        inode = self._file(node)
        size = self._superblock.block_size
        for extent in self._extents(inode, 0):
            start = extent.start * size
            length = min(extent.blocks * size, inode.stat.size - start)
            if length <= 0:
                break
            if not extent.is_unwritten:
                yield Run(start, length, self._superblock.block_offset(extent.block, extent.blocks))

    def xattrs(self, node: int) -> dict[bytes, bytes]:
        return self._attributes.all(self._inodes.get(node))

    def _extents(self, inode: Inode, start: int) -> Iterator[Extent]:
        if inode.is_realtime:
            raise ReaderError(EOPNOTSUPP, f"inode {inode.number}: its data is on the realtime device")
        return self._mapping.extents(inode, inode.data, start)

    def _directory(self, node: int) -> Inode:
        inode = self._inodes.get(node)
        if not stat.S_ISDIR(inode.stat.mode):
            raise ReaderError(ENOTDIR, f"inode {node} is no directory")
        return inode

    def _file(self, node: int) -> Inode:
        inode = self._inodes.get(node)
        if not stat.S_ISREG(inode.stat.mode):
            raise ReaderError(EINVAL, f"inode {node} is no regular file")
        return inode


def _warnings(device: Device, superblock: Superblock) -> Iterator[str]:
    if superblock.needs_repair:
        yield NEEDS_REPAIR
    if not superblock.log_start:
        yield LOG_ELSEWHERE
        return
    try:
        if is_dirty(device, superblock):
            yield DIRTY
    except ReaderError:
        yield LOG_UNREADABLE
