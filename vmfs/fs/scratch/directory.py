"""The directory that writable views are kept in: who has which, and what the dead left.

A view is a directory in it, `view-<16 hex digits>`, or `kept-NAME` for one that is to be mounted again. In it
the file `view` says of which repository it is; the process that uses the view holds a lock (flock) on that
file, so a view without one is of no living mount. While views are made or cleared away the directory itself
is locked.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vmfs.errors import IntegrityError, UsageError, VmfsError
from vmfs.fs.scratch import header
from vmfs.fs.scratch.overlay import MAP_ENDING, NEW_ENDING

log = logging.getLogger(__name__)

VIEW = "view"
VIEW_MAGIC = b"VMFSVIEW"
LEAST_FREE = 1 << 20
"""Bytes that must be free in the directory for a mount to begin."""
FEW_FREE = 1 << 30
_UNNAMED = re.compile(r"view-[0-9a-f]{16}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_OURS = re.compile(
    rf"{VIEW}|[0-9A-Z]{{26}}-[0-9]+({re.escape(MAP_ENDING)}|{re.escape(NEW_ENDING)}|\.data-[0-9]{{4,}})"
)
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Seconds for a mount that is just ending to let go of its view.
_PATIENCE = 3.0


@dataclass(frozen=True, slots=True)
class ViewDirectory:
    """`descriptor` is of the view's own directory; `kept` whether it outlives the mount."""

    path: Path
    descriptor: int
    kept: bool


def check(directory: Path, ours: Iterable[Path], keep: str | None) -> Path:
    """The resolved directory, if views can be kept there under that name. `ours` are directories that nobody
    but vmfs writes to. Raises UsageError and VmfsError."""
    if keep is not None and not _NAME.fullmatch(keep):
        raise UsageError(
            f"scratch name {keep!r} cannot be; use up to 100 letters, digits, dots, dashes and underscores"
        )
    path = Path(os.path.realpath(directory))
    try:
        status = path.stat()
    except FileNotFoundError:
        raise UsageError(f"scratch directory {path} does not exist; make it with mkdir") from None
    except OSError as error:
        raise VmfsError(f"scratch directory {path}: {os.strerror(error.errno or 0)}") from None
    if not stat.S_ISDIR(status.st_mode):
        raise UsageError(f"scratch directory {path} is not a directory; choose one that is")
    for other in ours:
        # By device and inode number, as it may be reached by a bind mount.
        with contextlib.suppress(OSError):
            there = other.stat()
            if any(os.path.samestat(place.stat(), there) for place in (path, *path.parents)):
                raise UsageError(f"scratch directory {path} is inside {other}; choose one outside")
    if not os.access(path, os.W_OK | os.X_OK | os.R_OK):
        raise UsageError(f"scratch directory {path} is not writable for you; choose one of your own")
    free = free_bytes(path)
    # What was kept can be looked at, room or not.
    if free < LEAST_FREE and not (keep is not None and (path / f"kept-{keep}").exists()):
        raise VmfsError(f"scratch directory {path} has no room left; make some, or choose another place")
    if free < FEW_FREE:
        log.warning("scratch directory %s has room for %d MiB of changes only", path, free >> 20)
    return path


def free_bytes(path: Path | int) -> int:
    """What may be written there by this user."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


@contextmanager
def opened(path: Path, repository_id: bytes, keep: str | None) -> Iterator[ViewDirectory]:
    """A view of that repository in the directory, ours alone until the context ends: a new one, which is
    removed then, or the one of the name `keep`, made if need be. Removes views that mounts left that are
    dead. Raises UsageError, IntegrityError, VmfsError."""
    try:
        parent = os.open(path, _DIRECTORY)
    except OSError as error:
        raise VmfsError(f"scratch directory {path}: {error.strerror}") from None
    try:
        name = f"kept-{keep}" if keep is not None else f"view-{secrets.token_hex(8)}"
        try:
            descriptor, lock = _take(parent, name, path)
        except OSError as error:
            raise VmfsError(f"scratch directory {path}: {error.strerror}: {name}") from None
        try:
            _belong(lock, descriptor, repository_id, path / name)
            yield ViewDirectory(path / name, descriptor, keep is not None)
        finally:
            if keep is None:
                with contextlib.suppress(OSError):
                    _remove(parent, name, descriptor)
            os.close(lock)
            os.close(descriptor)
    finally:
        os.close(parent)


def _take(parent: int, name: str, path: Path) -> tuple[int, int]:
    """The view's directory and its locked file, after clearing away what is dead."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        fcntl.flock(parent, fcntl.LOCK_EX)
        try:
            _clear_dead(parent)
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=parent)
                os.fsync(parent)
            descriptor = os.open(name, _DIRECTORY, dir_fd=parent)
            try:
                lock = _lock(descriptor, os.O_CREAT)
            except BaseException:
                os.close(descriptor)
                raise
        finally:
            fcntl.flock(parent, fcntl.LOCK_UN)
        if lock is not None:
            return descriptor, lock
        os.close(descriptor)
        if time.monotonic() > deadline:
            raise UsageError(
                f"scratch {name.removeprefix('kept-')} in {path} is in use by another mount; unmount it, or "
                "choose another name"
            )
        time.sleep(0.05)


def _lock(descriptor: int, flags: int = 0) -> int | None:
    """The file `view` in that directory, locked; None if another process has it so. Raises OSError."""
    lock = os.open(VIEW, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | flags, 0o600, dir_fd=descriptor)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    except BaseException:
        os.close(lock)
        raise
    return lock


def _belong(lock: int, descriptor: int, repository_id: bytes, path: Path) -> None:
    """Say of a new view of which repository it is, or see what it says."""
    mine = repository_id.hex()
    data = os.pread(lock, header.SIZE, 0)
    if not data.strip(b"\0"):
        if set(os.listdir(descriptor)) - {VIEW}:
            raise IntegrityError(f"{path}/{VIEW} is empty, but the view is not; remove {path}")
        try:
            os.pwrite(lock, header.encode(VIEW_MAGIC, {"repository": mine}), 0)
            os.fsync(lock)
            os.fsync(descriptor)
        except OSError as error:
            raise VmfsError(f"scratch directory {path}: {error.strerror}") from None
        return
    if header.decode(VIEW_MAGIC, data, f"{path}/{VIEW}").get("repository") != mine:
        raise UsageError(f"scratch {path} belongs to another repository; choose another name")


def _clear_dead(parent: int) -> None:
    """Remove the unnamed views of this user that no process holds a lock of. With the parent locked, so that
    none of them is just being made."""
    for name in os.listdir(parent):
        if not _UNNAMED.fullmatch(name):
            continue
        with contextlib.suppress(OSError):
            descriptor = os.open(name, _DIRECTORY, dir_fd=parent)
            try:
                if os.fstat(descriptor).st_uid == os.geteuid() and _clear_if_dead(parent, name, descriptor):
                    log.info("removed %s, which a mount that died has left", name)
            finally:
                os.close(descriptor)


def _clear_if_dead(parent: int, name: str, descriptor: int) -> bool:
    if not os.listdir(descriptor):
        os.rmdir(name, dir_fd=parent)
        return True
    lock = _lock(descriptor)
    if lock is None:
        return False
    try:
        data = os.pread(lock, header.SIZE, 0)
        # The file is empty if its maker died at once.
        if data and not data.startswith(VIEW_MAGIC):
            return False
        _remove(parent, name, descriptor)
        return True
    finally:
        os.close(lock)


def _remove(parent: int, name: str, descriptor: int) -> None:
    """All that is ours in the view, and the view if nothing else is in it. The lock's file comes last: what
    is there without it would be nobody's."""
    for file in sorted(os.listdir(descriptor), key=lambda file: file == VIEW):
        if file == VIEW and len(os.listdir(descriptor)) > 1:
            return
        if _OURS.fullmatch(file):
            os.unlink(file, dir_fd=descriptor)
    os.rmdir(name, dir_fd=parent)
