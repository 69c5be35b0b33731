"""The pyfuse3 adapter: from the kernel's requests to the tree and back. No logic of its own."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import pyfuse3
import trio

from vmfs.fs.attributes import CHANGING_TIMEOUT, IMMUTABLE_TIMEOUT, Attributes, absent
from vmfs.fs.entries import CHANGING, SETTLING, Children, Entry, Role
from vmfs.fs.errors import errno_of, guarded
from vmfs.fs.guests.handlers import GuestDirectory, GuestFiles, OpenGuest, Place
from vmfs.fs.guests.numbers import is_guest
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
        guests: GuestFiles,
        started: Callable[[], None],
    ) -> None:
        super().__init__()
        self._tree = tree
        self._reader = reader
        self._refresher = refresher
        self._attributes = attributes
        self._guests = guests
        self._started = started
        self._files: dict[int, OpenFile] = {}
        self._guest_files: dict[int, OpenGuest] = {}
        self._directories: dict[int, _OpenDirectory | GuestDirectory] = {}
        self._last_handle = 0

    def init(self) -> None:
        self._started()

    @guarded
    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        if (directory := await self._guest(parent_inode)) is not None:
            return await self._guests.lookup(directory, name)
        if len(name) > MAX_BYTES:
            raise pyfuse3.FUSEError(errno.ENAMETOOLONG)
        parent = self._entry(parent_inode)
        found = (await self._children(parent)).get(name)
        if found is None and parent.role in CHANGING:
            await self._refresher.fresh()
            found = (await self._children(parent)).get(name)
        if found is None:
            return absent(CHANGING_TIMEOUT if parent.role in CHANGING else IMMUTABLE_TIMEOUT)
        present = self._tree.present(found)
        return self._attributes.of(self._tree.inodes.hold(found), present)

    async def forget(self, inode_list: Sequence[tuple[pyfuse3.InodeT, int]]) -> None:
        for number, count in inode_list:
            try:
                if is_guest(number):
                    self._guests.forget(number, count)
                else:
                    self._tree.inodes.forget(number, count)
            except Exception as error:
                errno_of(error, "forget")

    @guarded
    async def getattr(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        if is_guest(inode):
            return await self._guests.getattr(inode)
        entry = self._entry(inode)
        if entry.role in CHANGING:
            self._refresher.poke()
        if entry.role is Role.FILESYSTEM:
            return await self._guests.root_attributes(inode, entry)
        return self._attributes.of(inode, self._tree.present(entry))

    @guarded
    async def readlink(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileNameT:
        if is_guest(inode):
            return pyfuse3.FileNameT(await self._guests.readlink(self._guests.place(inode)))
        await self._refresher.fresh()
        entry = self._entry(inode)
        if entry.role is not Role.LATEST:
            raise pyfuse3.FUSEError(errno.EINVAL)
        return pyfuse3.FileNameT(entry.target)

    @guarded
    async def opendir(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileHandleT:
        if (directory := await self._guest(inode)) is not None:
            return self._keep(self._directories, await self._guests.opendir(directory))
        entry = self._entry(inode)
        if entry.role in CHANGING:
            await self._refresher.fresh()
        children = await self._children(entry)
        return self._keep(self._directories, _OpenDirectory(list(children.items())))

    @guarded
    async def readdir(self, fh: pyfuse3.FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        directory = self._directories[fh]
        if isinstance(directory, GuestDirectory):
            self._guests.readdir(directory, start_id, token)
            return
        entries = directory.entries
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
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            raise pyfuse3.FUSEError(errno.EROFS)
        if is_guest(inode):
            place = self._guests.place(inode)
            return pyfuse3.FileInfo(fh=self._keep(self._guest_files, OpenGuest(place)), keep_cache=True)
        entry = self._entry(inode)
        content = await trio.to_thread.run_sync(self._tree.open, entry, abandon_on_cancel=True)
        # What a file holds never changes, so what the kernel has cached of it stays right.
        keep = entry.role not in SETTLING
        return pyfuse3.FileInfo(fh=self._keep(self._files, OpenFile(content)), keep_cache=keep)

    @guarded
    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        if (guest := self._guest_files.get(fh)) is not None:
            found = await self._guests.read(guest, off, size)
        else:
            found = await self._reader.read(self._files[fh], off, size)
        # pyfuse3 takes any buffer, and sends it before another task runs.
        return cast(bytes, found)

    @guarded
    async def release(self, fh: pyfuse3.FileHandleT) -> None:
        self._files.pop(fh, None)
        self._guest_files.pop(fh, None)

    @guarded
    async def getxattr(
        self, inode: pyfuse3.InodeT, name: pyfuse3.XAttrNameT, ctx: pyfuse3.RequestContext
    ) -> bytes:
        value = (await self._xattrs(inode)).get(name)
        if value is None:
            raise pyfuse3.FUSEError(pyfuse3.ENOATTR)
        return value

    @guarded
    async def listxattr(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext
    ) -> Sequence[pyfuse3.XAttrNameT]:
        return [pyfuse3.XAttrNameT(name) for name in await self._xattrs(inode)]

    @guarded
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        listing = self._tree.listing
        found = pyfuse3.StatvfsData()
        found.f_bsize = found.f_frsize = _BLOCK
        found.f_blocks = listing.allocated // _BLOCK
        found.f_files = listing.files
        found.f_namemax = MAX_BYTES
        return found

    async def _xattrs(self, inode: int) -> Mapping[bytes, bytes]:
        place = await self._guest(inode)
        if place is None:
            # Not ENOSYS: the kernel would never ask again, whatever the file.
            raise pyfuse3.FUSEError(errno.EOPNOTSUPP)
        return await self._guests.xattrs(place)

    async def _guest(self, inode: int) -> Place | None:
        """The guest's file of that number; None for all that is not in a guest's file system."""
        if is_guest(inode):
            return self._guests.place(inode)
        entry = self._entry(inode)
        return await self._guests.root(entry) if entry.role is Role.FILESYSTEM else None

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
