"""Directories for what a process makes for itself alone: sockets, overlays of disks. They go with it; what
one that was killed could not remove, the next removes."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

log = logging.getLogger(__name__)

_LOCK = ".lock"


@contextmanager
def private_folder(prefix: str, parent: Path | None = None) -> Iterator[Path]:
    """A new directory in `parent`, or where temporary files go, that only this user can look into."""
    parent = Path(tempfile.gettempdir()) if parent is None else parent
    _clear_dead(parent, prefix)
    # Another may remove it in the moment after its lock was let go of: no matter.
    with tempfile.TemporaryDirectory(prefix=prefix, dir=parent, ignore_cleanup_errors=True) as name:
        new = Path(name) / f"{_LOCK}-new"
        with new.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Under this name it has been locked from the first moment on, unless its process is dead.
            new.rename(Path(name) / _LOCK)
            yield Path(name)


def _clear_dead(parent: Path, prefix: str) -> None:
    """Remove this user's directories of that prefix in which nobody holds the lock."""
    for folder in parent.glob(f"{prefix}*"):
        with suppress(OSError):
            status = folder.lstat()
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
                continue
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
                log.info("removed %s, which a process that was killed has left", folder)
            finally:
                os.close(lock)
