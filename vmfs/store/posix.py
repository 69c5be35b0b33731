"""The few system calls that LocalStore changes a directory with.

They are one class so that the fault tests can fail, tear and forget any one of them.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Sequence
from pathlib import Path

from vmfs.store.base import Buffer

_IOV_MAX = 1024
_BLOCK = 4096
_DIRECT_FROM = 1 << 20


class Posix:
    def mkdir(self, path: Path) -> None:
        path.mkdir(mode=0o700, exist_ok=True)

    def create(self, path: Path) -> int:
        """A new file, open and locked for writing; the lock shows that its writer lives."""
        while True:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                if os.fstat(fd).st_nlink:
                    return fd
            except OSError:
                os.close(fd)
                raise
            # Somebody who clears away what dead writers left took it for such before it was locked.
            os.close(fd)

    def write(self, fd: int, parts: Sequence[Buffer]) -> None:
        """All of the parts. A large one goes to the disk directly where the file system allows it and its
        memory is aligned: copying what nobody will read soon into the page cache takes several times longer
        than the disk does."""
        first, *rest = parts
        if len(first) >= _DIRECT_FROM:
            done = self._write_direct(fd, first)
            parts = [memoryview(first)[done:], *rest]
        pending = [memoryview(part).cast("B") for part in parts if len(part)]
        start = 0
        while start < len(pending):
            written = os.writev(fd, pending[start : start + _IOV_MAX])
            while start < len(pending) and written >= len(pending[start]):
                written -= len(pending[start])
                start += 1
            if written:
                pending[start] = pending[start][written:]

    def _write_direct(self, fd: int, part: Buffer) -> int:
        """Bytes written; what is left is to be written the usual way."""
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        done, end = 0, len(part) // _BLOCK * _BLOCK
        try:
            fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT)
            with memoryview(part) as view:
                while done < end:
                    done += os.write(fd, view[done:end])
        except OSError as error:
            # open(2): EINVAL is the file system's no, or that of a misaligned buffer.
            if error.errno != errno.EINVAL:
                raise
        finally:
            fcntl.fcntl(fd, fcntl.F_SETFL, flags)
        return done

    def fsync(self, fd: int) -> None:
        os.fsync(fd)

    def link(self, source: Path, target: Path) -> None:
        """Give the file a second name. Raises FileExistsError if it is taken."""
        os.link(source, target)

    def unlink(self, path: Path) -> None:
        path.unlink()

    def fsync_directory(self, path: Path) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
