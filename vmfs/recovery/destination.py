"""Directories of this machine that a guest's files are written into, without ever leaving them: each step is
made relative to an open directory, and follows no symbolic link."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from contextlib import suppress

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)


def open_directory(path: str) -> int:
    """One that the user named; he may have reached it over links."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def enter_directory(parent: int, name: bytes) -> tuple[int, bool]:
    """The directory of that name, made if it is not there (for its owner only); and whether it was made.
    Raises OSError, of a link as of anything else that is no directory."""
    made = False
    with suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=parent)
        made = True
    return os.open(name, _DIRECTORY, dir_fd=parent), made


def open_below(top: int, parts: tuple[bytes, ...]) -> int:
    """A directory below an open one."""
    here = os.dup(top)
    for part in parts:
        try:
            below = os.open(part, _DIRECTORY, dir_fd=here)
        finally:
            os.close(here)
        here = below
    return here


def exists(parent: int, name: bytes) -> bool:
    try:
        os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def is_directory(parent: int, name: bytes) -> bool:
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


class Placing:
    """A context manager for something new under a temporary name, which `publish` gives its own; without that
    nothing is left of it."""

    def __init__(self, parent: int, name: bytes, *, replace: bool) -> None:
        """Raises FileExistsError if there is something of that name, and `replace` is not set."""
        self.parent = parent
        self.name = name
        self.temporary = b".vmfs-" + secrets.token_hex(8).encode()
        self._replace = replace
        if not replace and exists(parent, name):
            raise FileExistsError(errno.EEXIST, "it is there already; --force replaces it")

    def __enter__(self) -> Placing:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self.temporary, dir_fd=self.parent)

    def open(self) -> int:
        """A new file, which only its owner can read."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(self.temporary, flags, 0o600, dir_fd=self.parent)

    def publish(self) -> None:
        if self._replace:
            os.rename(self.temporary, self.name, src_dir_fd=self.parent, dst_dir_fd=self.parent)
            return
        try:
            os.link(
                self.temporary,
                self.name,
                src_dir_fd=self.parent,
                dst_dir_fd=self.parent,
                follow_symlinks=False,
            )
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            # No hard links here: the one remaining chance that another file is replaced is very short.
            if exists(self.parent, self.name):
                raise FileExistsError(errno.EEXIST, "it is there already") from None
            os.rename(self.temporary, self.name, src_dir_fd=self.parent, dst_dir_fd=self.parent)
