"""What a version of a file holds."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Lock
from typing import NamedTuple

from vmfs.catalog.filesearch import FileRow
from vmfs.errors import VmfsError
from vmfs.format.filelist import to_bytes
from vmfs.repo.repository import Repository
from vmfs.search.places import layout_of, open_volume
from vmfs.volumes.files.client import FileSystem, Stat

_PART = 1 << 20
_THREADS = min(4, os.cpu_count() or 1)
"""Each with a worker, which takes longer to start than a small file to read."""


class Content(NamedTuple):
    """Of a regular file its SHA-256 in hex, of a symbolic link its target; of others nothing."""

    sha256: str | None = None
    target: bytes | None = None


def read_contents(
    repository: Repository, rows: Sequence[FileRow], progress: Callable[[int], None]
) -> Iterator[Content | VmfsError]:
    """Of each version, from the newest point that has it, or why that cannot be read. `progress` is told the
    bytes read so far, by any thread."""
    stop = Event()
    lock = Lock()
    done = 0

    def count(length: int) -> None:
        nonlocal done
        if stop.is_set():
            raise VmfsError("nobody wants it any more")
        with lock:
            done += length
            progress(done)

    def read(row: FileRow) -> Content | VmfsError:
        try:
            return _read(repository, row, count)
        except VmfsError as error:
            return error

    with ThreadPoolExecutor(_THREADS, "vmfs-content") as executor:
        try:
            yield from executor.map(read, rows)
        finally:
            # Else a signal would wait for the end of what may be a large file.
            stop.set()


def _read(repository: Repository, row: FileRow, progress: Callable[[int], None]) -> Content:
    if not (stat.S_ISREG(row.mode) or stat.S_ISLNK(row.mode)):
        return Content()
    point = repository.load_point(row.points[-1].id)
    layout = layout_of(repository, point)
    volume = next((volume for volume in layout.volumes if volume.key == row.volume_key), None)
    if volume is None:
        raise VmfsError(f"restore point {point.id} has no volume {row.volume} any more")
    with open_volume(volume) as filesystem:
        found = filesystem.root()
        for name in to_bytes(row.path).strip(b"/").split(b"/"):
            found = filesystem.lookup(found.node, name)
        if stat.S_IFMT(found.mode) != stat.S_IFMT(row.mode):
            raise VmfsError("it is another kind of file than its file list says")
        if stat.S_ISLNK(found.mode):
            return Content(target=filesystem.readlink(found.node))
        return Content(sha256=_hash(filesystem, found, progress))


def _hash(filesystem: FileSystem, found: Stat, progress: Callable[[int], None]) -> str:
    """`progress` is told the bytes of each part."""
    digest = hashlib.sha256()
    for offset in range(0, found.size, _PART):
        wanted = min(_PART, found.size - offset)
        part = filesystem.read(found.node, offset, wanted)
        if len(part) != wanted:
            raise VmfsError(f"it ends after {offset + len(part)} of {found.size} bytes")
        digest.update(part)
        progress(len(part))
    return digest.hexdigest()
