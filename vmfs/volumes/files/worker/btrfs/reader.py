# SPDX-License-Identifier: MIT
"""A Btrfs as a Reader. Its root is the top of the file system, with subvolumes and snapshots as directories
wherever they are; see `node_of` for the numbers of nodes."""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator
from errno import EINVAL, EIO, ENOENT, ENOTDIR

import google_crc32c

from ..cache import Cache
from ..model import Device, Found, ReaderError, Stat
from .chunks import CHUNK_ITEM, ChunkMap
from .data import Data
from .inode import (
    DIR_INDEX,
    DIR_ITEM,
    EXTENT_DATA,
    INODE_ITEM,
    NODE_BITS,
    PLACEHOLDER,
    ROOT_ITEM,
    ROOT_REF,
    XATTR_ITEM,
    Entry,
    Extent,
    node_of,
    parse_entries,
    parse_extent,
    parse_inode,
)
from .superblock import MAX_LEVEL, read_superblock
from .tree import LAST, Root, Trees

TOP = 5
"""The tree that holds the root directory of all."""
FIRST_INODE = 256
"""The number of a tree's root directory; also of the first subvolume."""
SUMS_TREE = 7
"""The tree that holds the checksums of data."""
LAST_TREE = LAST - 255
CHUNKS = 256
"""The object of all items of chunks."""

# Of the item of a tree: after the inode, generation, root directory, address of its root
ROOT_HEAD = struct.Struct("<QQQ")
ROOT_HEAD_AT = 160
ROOT_REFERENCES_AT = 216
ROOT_LEVEL_AT = 238
ROOT_SIZE = 239
# Of a reference to a tree: directory, sequence, length of the name
REFERENCE = struct.Struct("<QQH")

MAX_SYMLINK = 4096
MAX_XATTRS = 16 << 20
"""Bytes of all attributes of one file that are given at most."""

LOG = (
    "the log of this Btrfs is not replayed: files that were synced just before the backup are as of the last "
    "commit; mount the volume with --scratch to replay it"
)
SEVERAL = "this Btrfs has {} devices; what is read here is the copy on this one"


class BtrfsReader:
    """See Reader. `default_subvolume` is the tree that a plain mount shows; TOP when none was chosen."""

    type = "btrfs"

    def __init__(self, device: Device) -> None:
        self._device = device
        superblock = self._superblock = read_superblock(device)
        self.label = superblock.label
        self.uuid = str(superblock.uuid)
        warnings = []
        if superblock.log_root:
            warnings.append(LOG)
        if superblock.devices > 1:
            warnings.append(SEVERAL.format(superblock.devices))
        self._chunks = ChunkMap(superblock.device_id, device.size)
        self._chunks.add_system(superblock.system_chunks)
        self._trees = Trees(device, superblock, self._chunks)
        chunk_root = Root(
            superblock.chunk_root, superblock.chunk_root_level, superblock.chunk_root_generation
        )
        # Collected first: the map must not grow while the tree is read through it.
        for (_, _, start), item in list(
            self._trees.items(chunk_root, (CHUNKS, CHUNK_ITEM, 0), (CHUNKS, CHUNK_ITEM, LAST))
        ):
            self._chunks.add(start, item)
        self._roots = Root(superblock.root, superblock.root_level, superblock.generation)
        self._known_roots: Cache[int, Root] = Cache(4096)
        self._stats: Cache[int, Stat] = Cache(4096)
        self._data = Data(device, superblock, self._chunks, self._trees, self._parse_root(SUMS_TREE))
        self.default_subvolume = self._default()
        self.warnings = tuple(warnings)
        self.root()

    def root(self) -> Stat:
        return self._directory(node_of(TOP, FIRST_INODE))

    def stat(self, node: int) -> Stat:
        known = self._stats.get(node)
        if known is not None:
            return known
        tree, inode = node >> NODE_BITS, node & (1 << NODE_BITS) - 1
        if inode & PLACEHOLDER:
            top = self.stat(tree << NODE_BITS | FIRST_INODE)
            return top._replace(node=node, mode=stat.S_IFDIR | 0o755, links=1, size=0, allocated=0)
        raw = self._trees.get(self._root_of(tree), (inode, INODE_ITEM, 0))
        if raw is None:
            raise ReaderError(ENOENT, f"there is no inode {inode} in tree {tree}")
        known = parse_inode(node, raw, self._superblock.sector_size)
        self._stats.put(node, known)
        return known

    def scan(self, directory: int) -> Iterator[Found]:
        self._directory(directory)
        tree, inode = directory >> NODE_BITS, directory & (1 << NODE_BITS) - 1
        for _, raw in self._trees.items(self._root_of(tree), (inode, DIR_INDEX, 0), (inode, DIR_INDEX, LAST)):
            for entry in parse_entries(raw):
                name = _checked(entry.name)
                try:
                    yield Found(name, self._target(tree, inode, entry))
                except (ReaderError, OSError) as error:
                    yield Found(name, None, str(error))

    def lookup(self, directory: int, name: bytes) -> Stat:
        self._directory(directory)
        tree, inode = directory >> NODE_BITS, directory & (1 << NODE_BITS) - 1
        raw = self._trees.get(self._root_of(tree), (inode, DIR_ITEM, _name_hash(name)))
        for entry in parse_entries(raw or b""):
            if entry.name == name:
                return self._target(tree, inode, entry)
        raise ReaderError(ENOENT, f"directory {inode} of tree {tree} has no entry {name!r}")

    def readlink(self, node: int) -> bytes:
        found = self.stat(node)
        if not stat.S_ISLNK(found.mode):
            raise ReaderError(EINVAL, f"inode {node} is no symbolic link")
        if not 0 < found.size <= MAX_SYMLINK:
            raise ReaderError(EIO, f"inode {node} is damaged: a symbolic link of {found.size} bytes")
        return self._content(found, 0, found.size)

    def read(self, node: int, offset: int, length: int) -> bytes:
        found = self._file(node)
        length = min(length, found.size - offset)
        return self._content(found, offset, length) if length > 0 else b""

    def extents(self, node: int) -> Iterator[tuple[int, int]]:
        found = self._file(node)
        start = end = 0
        for extent in self._extents(found, 0):
            if extent.start >= found.size:
                break
            if extent.is_hole:
                continue
            if extent.start > end:
                if end > start:
                    yield start, end - start
                start = extent.start
            end = min(extent.start + extent.length, found.size)
        if end > start:
            yield start, end - start

    def xattrs(self, node: int) -> dict[bytes, bytes]:
        self.stat(node)
        tree, inode = node >> NODE_BITS, node & (1 << NODE_BITS) - 1
        result: dict[bytes, bytes] = {}
        total = 0
        for _, raw in self._trees.items(
            self._root_of(tree), (inode, XATTR_ITEM, 0), (inode, XATTR_ITEM, LAST)
        ):
            total += len(raw)
            if total > MAX_XATTRS:
                raise ReaderError(EIO, f"inode {node} is damaged: its attributes are too large")
            result.update((entry.name, entry.data) for entry in parse_entries(raw))
        return result

    def _content(self, found: Stat, offset: int, length: int) -> bytes:
        """Bytes of a file or symbolic link that are within its size."""
        pieces: list[bytes] = []
        at, end = offset, offset + length
        for extent in self._extents(found, offset):
            if extent.start >= end:
                break
            if extent.is_hole:
                continue
            if extent.start > at:
                pieces.append(bytes(extent.start - at))
                at = extent.start
            count = min(end, extent.start + extent.length) - at
            pieces.append(self._data.of(extent, at - extent.start, count))
            at += count
        if at < end:
            pieces.append(bytes(end - at))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _extents(self, found: Stat, offset: int) -> Iterator[Extent]:
        """Those of a file that end after `offset`, ascending, each after the end of the one before."""
        tree, inode = found.node >> NODE_BITS, found.node & (1 << NODE_BITS) - 1
        root = self._root_of(tree)
        before = self._trees.last(root, (inode, EXTENT_DATA, 0), (inode, EXTENT_DATA, offset))
        first = before[0][2] if before else offset
        end = 0
        for (_, _, start), raw in self._trees.items(
            root, (inode, EXTENT_DATA, first), (inode, EXTENT_DATA, LAST)
        ):
            extent = parse_extent(start, raw)
            if start < end:
                raise ReaderError(EIO, f"inode {inode} of tree {tree} is damaged: its extents overlap")
            end = start + extent.length
            if end > offset:
                yield extent

    def _target(self, tree: int, directory: int, entry: Entry) -> Stat:
        """What an entry of a directory leads to."""
        number, kind, _ = entry.target
        if kind == INODE_ITEM:
            return self.stat(node_of(tree, number))
        if kind != ROOT_ITEM:
            raise ReaderError(EIO, f"the entry {entry.name!r} leads to what is no file")
        # A snapshot of a directory with a subvolume in it has the entry, but not the subvolume.
        raw = self._trees.get(self._roots, (tree, ROOT_REF, number)) or b""
        if len(raw) > REFERENCE.size and raw[REFERENCE.size :] == entry.name:
            owner, _, _ = REFERENCE.unpack_from(raw)
            if owner == directory:
                return self.stat(node_of(number, FIRST_INODE))
        return self.stat(node_of(tree, number) | PLACEHOLDER)

    def _root_of(self, tree: int) -> Root:
        root = self._known_roots.get(tree)
        if root is not None:
            return root
        if tree != TOP and not FIRST_INODE <= tree <= LAST_TREE:
            raise ReaderError(ENOENT, f"tree {tree} holds no files")
        root = self._parse_root(tree)
        if root is None:
            raise ReaderError(ENOENT, f"there is no subvolume {tree}")
        self._known_roots.put(tree, root)
        return root

    def _parse_root(self, tree: int) -> Root | None:
        # The offset of a snapshot's key is the transaction that made it.
        found = self._trees.last(self._roots, (tree, ROOT_ITEM, 0), (tree, ROOT_ITEM, LAST))
        if found is None:
            return None
        raw = found[1]
        if len(raw) < ROOT_SIZE:
            raise ReaderError(EIO, f"tree {tree} is damaged: its item is cut off")
        generation, _, address = ROOT_HEAD.unpack_from(raw, ROOT_HEAD_AT)
        level = raw[ROOT_LEVEL_AT]
        if level > MAX_LEVEL:
            raise ReaderError(EIO, f"tree {tree} is damaged: it has {level} levels")
        if not int.from_bytes(raw[ROOT_REFERENCES_AT : ROOT_REFERENCES_AT + 4], "little"):
            raise ReaderError(ENOENT, f"tree {tree} is being deleted")
        return Root(address, level, generation)

    def _default(self) -> int:
        """What the entry `default` of the tree of roots leads to."""
        key = (self._superblock.root_directory, DIR_ITEM, _name_hash(b"default"))
        try:
            for entry in parse_entries(self._trees.get(self._roots, key) or b""):
                if entry.name == b"default" and entry.target[1] == ROOT_ITEM:
                    return entry.target[0]
        except ReaderError:
            pass
        return TOP

    def _directory(self, node: int) -> Stat:
        found = self.stat(node)
        if not stat.S_ISDIR(found.mode):
            raise ReaderError(ENOTDIR, f"inode {node} is no directory")
        return found

    def _file(self, node: int) -> Stat:
        found = self.stat(node)
        if not stat.S_ISREG(found.mode):
            raise ReaderError(EINVAL, f"inode {node} is no regular file")
        return found


def _name_hash(name: bytes) -> int:
    """CRC-32C from 0xFFFFFFFE on, without the inversion at the end."""
    return ~int(google_crc32c.extend(1, name)) & 0xFFFFFFFF


def _checked(name: bytes) -> bytes:
    if b"/" in name or b"\0" in name or name in (b".", b".."):
        raise ReaderError(EIO, f"a directory has an entry with the impossible name {name!r}")
    return name
