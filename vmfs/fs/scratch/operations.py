"""The handlers of a mount with a writable view."""

from __future__ import annotations

import errno
import os
from typing import Any, NoReturn, cast

import pyfuse3
import trio

from vmfs.fs.attributes import SECTOR, Attributes, Ownership
from vmfs.fs.entries import Entry, Role
from vmfs.fs.errors import guarded
from vmfs.fs.guests.numbers import is_guest
from vmfs.fs.operations import Operations
from vmfs.fs.scratch.files import ScratchFile, ScratchFiles
from vmfs.fs.scratch.view import View

RAW = frozenset((Role.DISK, Role.VOLUME))
# Seconds: another name of the same disk may have been written to.
_TIMEOUT = 1.0
_BLOCK = 4096


class ScratchAttributes(Attributes):
    """Raw files can be written to, and show that they were."""

    def __init__(self, ownership: Ownership, chunk_size: int, view: View) -> None:
        super().__init__(ownership, chunk_size)
        self._view = view

    def of(self, number: int, entry: Entry) -> pyfuse3.EntryAttributes:
        found = super().of(number, entry)
        if entry.role not in RAW:
            return found
        found.st_mode = pyfuse3.ModeT(found.st_mode | 0o200)
        found.attr_timeout = _TIMEOUT
        facts = self._view.facts(entry)
        if facts is not None:
            # Of a volume's disk, some may have been written elsewhere; and some lay where data was.
            most = -(-entry.size // _BLOCK) * _BLOCK
            found.st_blocks = min(max(found.st_blocks * SECTOR, facts.written), most) // SECTOR
            found.st_mtime_ns = found.st_ctime_ns = facts.mtime_ns
        return found


class ScratchOperations(Operations):
    """As its base, but raw files can be written to. All else is as read-only as without.

    Raw files bypass the kernel's page cache: a disk and its volumes are files of their own to the kernel, and
    what is written to one must be seen in the other.
    """

    def __init__(self, *base: Any, view: View, files: ScratchFiles) -> None:
        super().__init__(*base)
        self._view = view
        self._scratch = files

    @guarded
    async def open(
        self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.FileInfo:
        if is_guest(inode) or (entry := self._entry(inode)).role not in RAW:
            return await super().open(inode, flags, ctx)
        content = await trio.to_thread.run_sync(self._tree.open, entry, abandon_on_cancel=True)
        copies = await trio.to_thread.run_sync(self._view.regions, entry, content, abandon_on_cancel=True)
        # The kernel leaves O_DSYNC and O_SYNC to us.
        file = ScratchFile(content, copies, synchronous=bool(flags & os.O_DSYNC))
        if flags & os.O_ACCMODE != os.O_RDONLY and not file.writable:
            raise pyfuse3.FUSEError(errno.EROFS)
        # O_TRUNC does to it what it does to a block device: nothing.
        return pyfuse3.FileInfo(fh=self._keep(self._files, file), direct_io=True)

    @guarded
    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        file = self._files.get(fh)
        if not isinstance(file, ScratchFile):
            return await super().read(fh, off, size)
        try:
            return cast(bytes, await self._scratch.read(file, off, size))
        except OSError as error:
            raise pyfuse3.FUSEError(error.errno or errno.EIO) from None

    @guarded
    async def write(self, fh: pyfuse3.FileHandleT, off: int, buf: bytes) -> int:
        file = self._files[fh]
        if not isinstance(file, ScratchFile) or not file.writable:
            raise pyfuse3.FUSEError(errno.EROFS)
        try:
            return await self._scratch.write(file, off, buf)
        except OSError as error:
            raise pyfuse3.FUSEError(error.errno or errno.EIO) from None

    @guarded
    async def fsync(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:
        file = self._files.get(fh)
        if isinstance(file, ScratchFile):
            try:
                await self._scratch.sync(file)
            except OSError as error:
                raise pyfuse3.FUSEError(error.errno or errno.EIO) from None

    @guarded
    async def flush(self, fh: pyfuse3.FileHandleT) -> None:
        """At each close: what is to outlive the mount is made durable then."""
        file = self._files.get(fh)
        if isinstance(file, ScratchFile) and file.changed and self._view.place.kept:
            await self.fsync(fh, True)

    @guarded
    async def setattr(
        self,
        inode: pyfuse3.InodeT,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: pyfuse3.FileHandleT | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        if is_guest(inode) or (entry := self._entry(inode)).role not in RAW:
            raise pyfuse3.FUSEError(errno.EROFS)
        if fields.update_size and attr.st_size != entry.size:
            raise pyfuse3.FUSEError(errno.EINVAL)
        if fields.update_mode or fields.update_uid or fields.update_gid:
            raise pyfuse3.FUSEError(errno.EPERM)
        # Times are what they are, but touch(1) is no error.
        return await self.getattr(inode, ctx)

    @guarded
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        """As without, and as much is free as can be written."""
        found = await super().statfs(ctx)
        try:
            free = self._view.free() // found.f_frsize
        except OSError as error:
            raise pyfuse3.FUSEError(error.errno or errno.EIO) from None
        found.f_blocks += free
        found.f_bfree = found.f_bavail = free
        return found

    async def _refuse(self, *_: object) -> NoReturn:
        raise pyfuse3.FUSEError(errno.EROFS)

    # The kernel no longer says so by itself.
    create = mkdir = mknod = unlink = rmdir = symlink = link = rename = _refuse  # type: ignore[assignment]
    setxattr = removexattr = _refuse  # type: ignore[assignment]
