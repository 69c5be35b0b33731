"""A store in a local directory.

An object is written to a temporary file beside its place, synced, linked to its name (which fails if the name
is taken), and the directory is synced: at any instant a name is either absent or whole and durable.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock

from vmfs.errors import ObjectExistsError, ObjectMissingError, StoreError
from vmfs.store.base import Buffer
from vmfs.store.posix import Posix

_NAME = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*")
_TEMPORARY = re.compile(r"\.tmp-[0-9a-f]{16}")
_OPEN_FILES = 256

_REMEDIES = {
    errno.ENOSPC: "no space left; free some and run again: what was stored already is kept",
    errno.EDQUOT: "the quota is used up; free some space and run again: what was stored already is kept",
    errno.EROFS: "the file system is read-only; mount it writable or use another repository",
    errno.EACCES: "permission denied; run as the repository's owner",
    errno.EPERM: "not permitted; the file system must allow hard links and the files must not be immutable",
    errno.EIO: "I/O error; check the disk and the kernel log",
    errno.EMFILE: "too many open files; raise the limit (ulimit -n)",
}


class LocalStore:
    def __init__(self, root: Path, posix: Posix | None = None) -> None:
        self.root = root
        self.url = str(root)
        self._posix = posix or Posix()
        self._files = _OpenFiles(self._path)
        self._durable: set[Path] = set()

    @property
    def writable(self) -> bool:
        return os.access(self.root, os.W_OK | os.X_OK)

    def prepare(self) -> None:
        """Make the directory for a new repository. Raises StoreError unless it is absent or empty."""
        with self._errors("cannot make", str(self.root)):
            if self.root.exists() or self.root.is_symlink():
                if not self.root.is_dir():
                    raise StoreError(f"{self.root} is not a directory; choose another place")
                if any(self.root.iterdir()):
                    raise StoreError(f"{self.root} is not empty; a repository starts in an empty directory")
                # An init that died may have made it; if others did, it may be in a place that we cannot read.
                with suppress(OSError):
                    self._posix.fsync_directory(self.root.parent)
            elif not self.root.parent.is_dir():
                raise StoreError(f"{self.root.parent} does not exist; make it, or mount what should be there")
            else:
                self._posix.mkdir(self.root)
                self._posix.fsync_directory(self.root.parent)

    def put(self, name: str, parts: Iterable[Buffer]) -> None:
        path = self._path(name)
        with self._errors("cannot write", name):
            self._make_parents(path.parent)
            temporary = path.parent / f".tmp-{secrets.token_hex(8)}"
            fd = self._posix.create(temporary)
            try:
                self._posix.write(fd, list(parts))
                self._posix.fsync(fd)
                try:
                    self._posix.link(temporary, path)
                except FileExistsError:
                    raise ObjectExistsError(f"{name} is there already") from None
            finally:
                os.close(fd)
                with suppress(OSError):
                    self._posix.unlink(temporary)
            try:
                self._posix.fsync_directory(path.parent)
            except OSError:
                # A put that failed leaves no object.
                with suppress(OSError):
                    self._posix.unlink(path)
                raise

    def get(self, name: str) -> bytes:
        path = self._path(name)
        with self._errors("cannot read", name):
            return path.read_bytes()

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        with self._errors("cannot read", name):
            # Held until the read is done: the descriptor is closed with the last reference to it.
            file = self._files.open(name)
            return os.pread(file.fd, length, offset)

    def read_into(self, name: str, offset: int, out: memoryview) -> int:
        with self._errors("cannot read", name):
            file = self._files.open(name)
            return os.preadv(file.fd, [out], offset)

    def size(self, name: str) -> int:
        path = self._path(name)
        with self._errors("cannot read", name):
            return path.stat().st_size

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        top = self._path(prefix)
        with self._errors("cannot list", prefix):
            yield from self._walk(top, prefix)

    def delete(self, name: str) -> None:
        path = self._path(name)
        with self._errors("cannot delete", name):
            try:
                self._posix.unlink(path)
            except FileNotFoundError:
                return
            self._posix.fsync_directory(path.parent)

    def now(self) -> datetime:
        return datetime.now(UTC)

    def sweep(self, prefix: str = "") -> int:
        swept = 0
        with self._errors("cannot clean", self.url):
            for directory, _, files in os.walk(self._path(prefix) if prefix else self.root):
                removed = [
                    file
                    for file in filter(_TEMPORARY.fullmatch, files)
                    if self._remove_if_abandoned(Path(directory, file))
                ]
                if removed:
                    self._posix.fsync_directory(Path(directory))
                swept += len(removed)
        return swept

    def settle(self, prefix: str) -> None:
        directory = self._path(prefix)
        with self._errors("cannot sync", prefix):
            if directory.is_dir():
                self._make_parents(directory)
                self._posix.fsync_directory(directory)

    def _remove_if_abandoned(self, path: Path) -> bool:
        """A living writer holds its temporary file locked, whatever the clock says."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._posix.unlink(path)
        except (BlockingIOError, FileNotFoundError):
            return False
        finally:
            os.close(fd)
        return True

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no object name")
        return self.root / name

    def _make_parents(self, directory: Path) -> None:
        """Each is synced into its parent once, even if it is there: whoever made it may have died before."""
        if directory in self._durable and directory.is_dir():
            return
        if directory == self.root:
            if not directory.is_dir():
                raise StoreError(f"{self.root} is gone; is its file system mounted?")
            return
        self._make_parents(directory.parent)
        self._posix.mkdir(directory)
        self._posix.fsync_directory(directory.parent)
        self._durable.add(directory)

    def _walk(self, directory: Path, prefix: str) -> Iterator[tuple[str, int]]:
        try:
            entries = os.scandir(directory)
        except (FileNotFoundError, NotADirectoryError):
            return
        with entries:
            for entry in entries:
                if not _NAME.fullmatch(entry.name):
                    continue
                name = f"{prefix}/{entry.name}"
                if entry.is_dir():
                    yield from self._walk(Path(entry.path), name)
                # Anything else is no object, and reading a pipe would wait for ever.
                elif entry.is_file():
                    # Whoever lists may be overtaken by a delete.
                    with suppress(FileNotFoundError):
                        yield name, entry.stat().st_size

    @contextmanager
    def _errors(self, doing: str, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise ObjectMissingError(f"{name} is missing from {self.url}") from error
        except OSError as error:
            reason = _REMEDIES.get(error.errno or 0, error.strerror or str(error))
            place = name if name == self.url else f"{name} in {self.url}"
            raise StoreError(f"{doing} {place}: {reason}") from error


class _OpenFile:
    """Closed when the last thread that reads from it lets go."""

    def __init__(self, path: Path) -> None:
        self.fd = -1
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        if self.fd >= 0:
            close(self.fd)


class _OpenFiles:
    """The files of the last few objects read from; opening anew for every range costs more than the read."""

    def __init__(self, path_of: Callable[[str], Path]) -> None:
        self._path_of = path_of
        self._lock = Lock()
        self._open: OrderedDict[str, _OpenFile] = OrderedDict()

    def open(self, name: str) -> _OpenFile:
        with self._lock:
            if file := self._open.get(name):
                self._open.move_to_end(name)
                return file
        file = _OpenFile(self._path_of(name))
        with self._lock:
            self._open[name] = file
            while len(self._open) > _OPEN_FILES:
                self._open.popitem(last=False)
        return file
