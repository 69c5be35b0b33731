"""A file that is there whole and durable, or not at all."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from vmfs.errors import UsageError, VmfsError

_MODE = 0o600
_NO_UNNAMED = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL)
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS)
_REMEDIES = {
    errno.ENOSPC: "no space left; free some, or choose another place",
    errno.EDQUOT: "the quota is used up; free some space, or choose another place",
    errno.EFBIG: "its file system cannot hold a file that large; choose another place, or --format qcow2",
    errno.EROFS: "the file system is read-only; choose another place",
    errno.EACCES: "permission denied; choose a directory that you may write to",
    errno.ENOENT: "there is no such directory; make it first",
}


class NewFile:
    """A context manager for writing one. Until `commit` nothing has its name: an unnamed file where the file
    system has such, which even a kill leaves nothing of, else a temporary name beside it.

    Readable by the owner only. Raises UsageError if something is there already and `replace` is not set, or
    it is no regular file; VmfsError when the file system refuses.
    """

    def __init__(self, path: Path, *, replace: bool = False) -> None:
        # Through a link, so that what it points to is replaced and not the link.
        self.path = Path(os.path.realpath(path))
        self._shown = path
        self._replace = replace
        self._temporary: Path | None = None
        with self.errors():
            if self.path.is_dir():
                raise UsageError(f"{path} is a directory; name a file in it")
            if self.path.exists() and not self.path.is_file():
                raise UsageError(f"{path} is no regular file; write into it with: -o - > {path}")
            if self.path.exists() and not replace:
                raise UsageError(f"{path} is there already; choose another name, or --force to replace it")
            self.fd = self._open()

    def __enter__(self) -> NewFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.fd)
        if self._temporary:
            with suppress(OSError):
                self._temporary.unlink()

    def resize(self, size: int) -> None:
        """`size` in bytes; what was not written is a hole."""
        with self.errors():
            os.ftruncate(self.fd, size)

    def write_at(self, offset: int, data: bytes) -> None:
        with self.errors():
            rest = memoryview(data)
            while rest:
                written = os.pwrite(self.fd, rest, offset)
                offset, rest = offset + written, rest[written:]

    def commit(self) -> None:
        """Durable and under its name on return."""
        with self.errors():
            os.fsync(self.fd)
            if self._replace:
                if self._temporary is None:
                    self._temporary = self._temporary_path()
                    self._link(self._temporary)
                self._temporary.replace(self.path)
                self._temporary = None
            else:
                self._link_new()
            directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)

    def _link_new(self) -> None:
        try:
            self._link(self.path)
        except FileExistsError:
            raise UsageError(f"{self._shown} has appeared meanwhile; choose another name") from None
        except OSError as error:
            if self._temporary is None or error.errno not in _NO_LINKS:
                raise
            # No hard links here: the one remaining chance that another file is replaced is very short.
            if self.path.exists():
                raise UsageError(f"{self._shown} has appeared meanwhile; choose another name") from None
            self._temporary.rename(self.path)
            self._temporary = None

    def _open(self) -> int:
        try:
            return os.open(self.path.parent, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, _MODE)
        except OSError as error:
            if error.errno not in _NO_UNNAMED or not self.path.parent.is_dir():
                raise
        self._temporary = self._temporary_path()
        return os.open(self._temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, _MODE)

    def _link(self, path: Path) -> None:
        """A name for what is open. Giving a directory makes Python follow the link (linkat(2))."""
        if self._temporary is not None and self._temporary.exists():
            os.link(self._temporary, path)
            return
        root = os.open("/", os.O_PATH | os.O_CLOEXEC)
        try:
            os.link(f"/proc/self/fd/{self.fd}", path, src_dir_fd=root, follow_symlinks=True)
        finally:
            os.close(root)

    def _temporary_path(self) -> Path:
        return self.path.parent / f".vmfs-{secrets.token_hex(8)}.tmp"

    @contextmanager
    def errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = _REMEDIES.get(error.errno or 0, f"{error.strerror}; choose another place")
            raise VmfsError(f"cannot write {self._shown}: {reason}") from error
