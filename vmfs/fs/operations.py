"""The pyfuse3 adapter: from the kernel's requests to the tree and back. No logic of its own."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import pyfuse3
import trio

from vmfs.fs.attributes import CHANGING_TIMEOUT, IMMUTABLE_TIMEOUT, Attributes, absent
from vmfs.fs.entries import CHANGING, Children, Entry, Role
from vmfs.fs.errors import errno_of, guarded
from vmfs.fs.names import MAX_BYTES
from vmfs.fs.reading import OpenFile, Reader
from vmfs.fs.refresh import Refresher
from vmfs.fs.tree import Tree

_BLOCK = 4096
H = TypeVar("H")


@dataclass(slots=True)
class _OpenDirectory:
    """A directory as it was when it was opened: a listing that is read in pieces must not change under it."""

    entries: list[tuple[bytes, Entry]]


class Operations(pyfuse3.Operations):
    """One mounted tree. `started` is called once the kernel has begun to talk to us."""

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(
        self,
        tree: Tree,
        reader: Reader,
        refresher: Refresher,
        attributes: Attributes,
        started: Callable[[], None],
    ) -> None:
        super().__init__()
        self._tree = tree
        self._reader = reader
        self._refresher = refresher
        self._attributes = attributes
        self._started = started
        self._files: dict[int, OpenFile] = {}
        self._directories: dict[int, _OpenDirectory] = {}
        self._last_handle = 0

    def init(self) -> None:
        self._started()

    @guarded
    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        if len(name) > MAX_BYTES:
            raise pyfuse3.FUSEError(errno.ENAMETOOLONG)
        parent = self._entry(parent_inode)
        found = (await self._children(parent)).get(name)
        if found is None and parent.role in CHANGING:
            await self._refresher.fresh()
            found = (await self._children(parent)).get(name)
        if found is None:
            return absent(CHANGING_TIMEOUT if parent.role in CHANGING else IMMUTABLE_TIMEOUT)
        return self._attributes.of(self._tree.inodes.hold(found), found)

    async def forget(self, inode_list: Sequence[tuple[pyfuse3.InodeT, int]]) -> None:
        for number, count in inode_list:
            try:
                self._tree.inodes.forget(number, count)
            except Exception as error:
                errno_of(error, "forget")

    @guarded
    async def getattr(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        entry = self._entry(inode)
        if entry.role in CHANGING:
            self._refresher.poke()
        return self._attributes.of(inode, entry)

    @guarded
    async def readlink(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileNameT:
        await self._refresher.fresh()
        entry = self._entry(inode)
        if entry.role is not Role.LATEST:
            raise pyfuse3.FUSEError(errno.EINVAL)
        return pyfuse3.FileNameT(entry.target)

    @guarded
    async def opendir(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileHandleT:
        entry = self._entry(inode)
        if entry.role in CHANGING:
            await self._refresher.fresh()
        children = await self._children(entry)
        return self._keep(self._directories, _OpenDirectory(list(children.items())))

    @guarded
    async def readdir(self, fh: pyfuse3.FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        entries = self._directories[fh].entries
        inodes = self._tree.inodes
        for place in range(start_id, len(entries)):
            name, entry = entries[place]
            attributes = self._attributes.of(inodes.number(entry), entry)
            if not pyfuse3.readdir_reply(token, pyfuse3.FileNameT(name), attributes, place + 1):
                return
            inodes.hold(entry)

    @guarded
    async def releasedir(self, fh: pyfuse3.FileHandleT) -> None:
        self._directories.pop(fh, None)

    @guarded
    async def open(
        self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.FileInfo:
        entry = self._entry(inode)
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            raise pyfuse3.FUSEError(errno.EROFS)
        content = await trio.to_thread.run_sync(self._tree.open, entry, abandon_on_cancel=True)
        # What a file holds never changes, so what the kernel has cached of it stays right.
        return pyfuse3.FileInfo(fh=self._keep(self._files, OpenFile(content)), keep_cache=True)

    @guarded
    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        # pyfuse3 takes any buffer, and sends it before another task runs.
        return cast(bytes, await self._reader.read(self._files[fh], off, size))

    @guarded
    async def release(self, fh: pyfuse3.FileHandleT) -> None:
        self._files.pop(fh, None)

    @guarded
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        listing = self._tree.listing
        found = pyfuse3.StatvfsData()
        found.f_bsize = found.f_frsize = _BLOCK
        found.f_blocks = listing.allocated // _BLOCK
        found.f_files = listing.files
        found.f_namemax = MAX_BYTES
        return found

    def _entry(self, inode: int) -> Entry:
        try:
            return self._tree.inodes.entry(inode)
        except KeyError:
            raise pyfuse3.FUSEError(errno.ESTALE) from None

    async def _children(self, entry: Entry) -> Children:
        children = self._tree.children(entry)
        if children is None:
            children = await trio.to_thread.run_sync(self._tree.load, entry, abandon_on_cancel=True)
        return children

    def _keep(self, handles: dict[int, H], handle: H) -> pyfuse3.FileHandleT:
        self._last_handle += 1
        handles[self._last_handle] = handle
        return pyfuse3.FileHandleT(self._last_handle)
