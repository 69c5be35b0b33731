"""Opening the file systems of volumes, each in a worker process."""

from __future__ import annotations

import errno
from collections import OrderedDict
from collections.abc import Callable
from threading import Lock, Thread
from typing import TypeVar

from vmfs.fs.content import Content
from vmfs.fs.guests.data import file_content
from vmfs.fs.points import Points
from vmfs.volumes.files.client import FileSystem, GuestError
from vmfs.volumes.files.pool import FileSystems

# As many points' file systems are known at once; of these a few have workers, which is the pool's business.
_KEPT_POINTS = 64
# Seconds for what workers are at when the mount ends. They end with it in any case.
_GRACE = 5.0
R = TypeVar("R")


class GuestSource:
    """The file systems of a mount's volumes. Thread-safe."""

    def __init__(self, points: Points) -> None:
        self._points = points
        self._pool = FileSystems()
        self._lock = Lock()
        self._used: OrderedDict[str, None] = OrderedDict()

    def ask(self, point: str, index: int, question: Callable[[FileSystem], R]) -> R:
        """Put a question to the file system of a point's volume number `index`. Raises GuestError,
        IntegrityError and StoreError."""
        try:
            return question(self._open(point, index))
        except GuestError as error:
            if error.errno != errno.EBADF:
                raise
        # It was let go of between the two, as other points were looked at.
        return question(self._open(point, index))

    def content(self, point: str, index: int, node: int) -> Content | None:
        """A regular file as pieces of disks, if it is that. Raises as `ask`."""
        runs = self.ask(point, index, lambda filesystem: filesystem.runs(node))
        if runs is None:
            return None
        found = self._points.layout(point)

        def read(offset: int, length: int) -> bytes:
            return self.ask(point, index, lambda filesystem: filesystem.read(node, offset, length))

        return file_content(found.name_of(index), runs, found.content(index), self._points.chunk_size, read)

    def close(self) -> None:
        """End all workers."""
        # A worker may hang, and nobody is to wait for that.
        closing = Thread(target=self._pool.close, name="vmfs-files-close", daemon=True)
        closing.start()
        closing.join(_GRACE)

    def _open(self, point: str, index: int) -> FileSystem:
        found = self._points.layout(point)
        volume = found.volumes[index]
        type_ = volume.content.type if volume.content else ""
        filesystem = self._pool.open(point, volume.key, volume.space, type_, name=found.label_of(index))
        self._note(point)
        if found.warnings_of(index) is None:
            found.say(index, filesystem.warnings)
        return filesystem

    def _note(self, point: str) -> None:
        """The point is in use: forget the one that was not for longest."""
        with self._lock:
            self._used[point] = None
            self._used.move_to_end(point)
            oldest = self._used.popitem(last=False)[0] if len(self._used) > _KEPT_POINTS else None
        if oldest is not None:
            self._pool.forget(oldest)
