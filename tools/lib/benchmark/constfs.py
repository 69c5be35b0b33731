"""The floor of every FUSE mount in Python: one file, whose every read is answered with constant bytes."""

from __future__ import annotations

import errno
import stat
import sys
from pathlib import Path

import pyfuse3
import trio

FILE_NAME = b"disk.raw"
FILE_INODE = pyfuse3.InodeT(pyfuse3.ROOT_INODE + 1)
# Not zeros: memory of zeros could be cheaper to copy than memory of data.
PATTERN = bytes(range(256)) * (4 * 1024 * 1024 // 256)


class ConstantFiles(pyfuse3.Operations):
    """A directory with one file of `size` bytes."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size

    async def getattr(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext | None = None
    ) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        entry.attr_timeout = entry.entry_timeout = 300
        if inode == pyfuse3.ROOT_INODE:
            entry.st_mode = pyfuse3.ModeT(stat.S_IFDIR | 0o755)
        elif inode == FILE_INODE:
            entry.st_mode = pyfuse3.ModeT(stat.S_IFREG | 0o444)
            entry.st_size = self._size
        else:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return entry

    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        if parent_inode != pyfuse3.ROOT_INODE or name != FILE_NAME:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self.getattr(FILE_INODE, ctx)

    async def open(
        self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(inode))

    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        size = max(0, min(size, self._size - off))
        return PATTERN if size == len(PATTERN) else PATTERN[:size]


def main(mountpoint: Path, size: int) -> None:
    """Serve until unmounted."""
    options = {*pyfuse3.default_options, "fsname=constant", "ro"}
    pyfuse3.init(ConstantFiles(size), str(mountpoint), options)
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
