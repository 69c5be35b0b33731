"""The file systems of many volumes, with no more workers than a machine bears."""

from __future__ import annotations

import threading
from collections import OrderedDict
from types import TracebackType

from vmfs.volumes.files.client import FileSystem, Limits, open_filesystem
from vmfs.volumes.space import Space

WORKERS = 8


class FewWorkers:
    """Of the file systems that are given to it, those not used for longest have no worker; they may be used
    all the same, and get a new one then. Thread-safe."""

    def __init__(self, workers: int = WORKERS) -> None:
        self._workers = workers
        self._lock = threading.Lock()
        self._used: OrderedDict[int, FileSystem] = OrderedDict()

    def add(self, filesystem: FileSystem) -> None:
        filesystem.on_use = self.use
        self.use(filesystem)

    def use(self, filesystem: FileSystem) -> None:
        """It is about to be used: let go of workers until there is room for its."""
        with self._lock:
            self._used[id(filesystem)] = filesystem
            self._used.move_to_end(id(filesystem))
            if len(self._used) <= self._workers:
                return
            oldest = list(self._used.values())[: -self._workers]
        for each in oldest:
            # One that is at work stays until it can be let go of.
            if each.rest(wait=False):
                with self._lock:
                    if self._used.get(id(each)) is each and each.worker_pid is None:
                        del self._used[id(each)]

    def remove(self, filesystem: FileSystem) -> None:
        """It will not be used any more."""
        with self._lock:
            self._used.pop(id(filesystem), None)


class FileSystems:
    """File systems by restore point and volume, with few workers. Thread-safe."""

    def __init__(self, workers: int = WORKERS, limits: Limits | None = None) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._opening: dict[tuple[str, str], threading.Lock] = {}
        self._open: dict[tuple[str, str], FileSystem] = {}
        self._few = FewWorkers(workers)

    def open(self, point: str, key: str, space: Space, type: str, *, name: str) -> FileSystem:
        """That of the volume `key` of the point; not for the caller to close. Raises as `open_filesystem`."""
        with self._lock:
            opening = self._opening.setdefault((point, key), threading.Lock())
        with opening:
            with self._lock:
                filesystem = self._open.get((point, key))
            if filesystem is None:
                filesystem = open_filesystem(space, type, name=name, limits=self._limits)
                with self._lock:
                    self._open[point, key] = filesystem
            self._few.add(filesystem)
            return filesystem

    def forget(self, point: str) -> None:
        """Close all of a point."""
        with self._lock:
            gone = [self._open.pop(pair) for pair in list(self._open) if pair[0] == point]
            for pair in [pair for pair in self._opening if pair[0] == point]:
                del self._opening[pair]
        for filesystem in gone:
            self._few.remove(filesystem)
            filesystem.close()

    def close(self) -> None:
        with self._lock:
            gone = list(self._open.values())
            self._open.clear()
        for filesystem in gone:
            self._few.remove(filesystem)
            filesystem.close()

    def __enter__(self) -> FileSystems:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
