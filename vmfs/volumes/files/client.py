"""A guest's file system, read by a worker process that may die of it without doing us any harm."""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

from vmfs.errors import IntegrityError, StoreError, VmfsError
from vmfs.volumes.files.ahead import ReadAhead
from vmfs.volumes.files.plain import FileRuns, RunsOfFiles, few
from vmfs.volumes.files.process import Limits, RequestFailed, WorkerDied, WorkerProcess
from vmfs.volumes.files.worker import wire
from vmfs.volumes.files.worker.model import Found, Stat
from vmfs.volumes.files.worker.readers import READERS
from vmfs.volumes.files.worker.wire import Op
from vmfs.volumes.space import Space

__all__ = ["FileSystem", "Found", "GuestError", "Limits", "Stat", "open_filesystem", "readable"]

log = logging.getLogger(__name__)
_T = TypeVar("_T")

STARTS = 12
_PERIOD = 60.0
"""Of a file system that kills its workers, no more than that many are started in so many seconds."""
_LARGE = 256 << 10
"""Bytes: for reads as long as that it is worth to ask where the data lies."""
_LONGEST_PATH = 4096
"""Bytes with the zero at the end: PATH_MAX of Linux."""
_LONGEST_XATTR = 255
"""Bytes of a name: XATTR_NAME_MAX of Linux."""


class GuestError(VmfsError):
    """A guest's file, directory or file system cannot be read. `errno` is the system's number: EIO for what
    is damaged or ended its worker, ENOENT, ENOTDIR, EOPNOTSUPP and so on. Where the repository could not be
    read, that error is the `__cause__`, and its exit status is this one's."""

    def __init__(self, number: int, message: str, exit_status: int = VmfsError.exit_status) -> None:
        super().__init__(message)
        self.errno = number
        self.exit_status = exit_status


class FileSystem:
    """One volume's file system. Thread-safe; calls block, one at a time. Any call may raise GuestError.

    `node` names a file in it for as long as this object is used. A worker that has died, or was let go of by
    `rest`, is replaced by the next call."""

    def __init__(self, space: Space, type_: str, *, name: str, limits: Limits) -> None:
        self.name = name
        self._space = space
        self._asked_type = type_
        self._limits = limits
        self._lock = threading.RLock()
        self._ahead = ReadAhead(self._read, wire.PIECE)
        self._runs = RunsOfFiles(self._find_runs)
        self._worker: WorkerProcess | None = None
        self._closed = False
        self._starts: deque[float] = deque(maxlen=STARTS)
        self.type, self.label, self.uuid = type_, "", ""
        self.default_subvolume: int | None = None
        """Of Btrfs: the id of the subvolume that is mounted when none is named."""
        self.warnings: tuple[str, ...] = ()
        self.confinement: tuple[str, ...] = ()
        """What confines the worker, for `vmfs doctor` and the tests."""
        self.on_use: Callable[[FileSystem], None] | None = None
        """Called before each request, without the lock."""

    def open(self) -> None:
        """Start a worker if there is none."""
        self._call(lambda worker: None)

    def root(self) -> Stat:
        return self._decode(self._call(lambda worker: worker.request(Op.ROOT, 0)), wire.unpack_stat)

    def stat(self, node: int) -> Stat:
        return self._decode(self._call(lambda worker: worker.request(Op.STAT, node)), wire.unpack_stat)

    def lookup(self, directory: int, name: bytes) -> Stat:
        if len(name) > _LONGEST_PATH:
            raise self._error(errno.ENAMETOOLONG, f"no name has {len(name)} bytes")
        parts = self._call(lambda worker: worker.request(Op.LOOKUP, directory, name=name))
        return self._decode(parts, wire.unpack_stat)

    def scan(self, directory: int) -> list[Found]:
        """All entries of a directory, in the file system's order."""
        parts = self._call(lambda worker: worker.request(Op.SCAN, directory))
        return [entry for part in parts for entry in self._decode([part], wire.unpack_found)]

    def readlink(self, node: int) -> bytes:
        target = b"".join(self._call(lambda worker: worker.request(Op.READLINK, node)))
        if not 0 < len(target) < _LONGEST_PATH or b"\0" in target:
            raise self._error(errno.EIO, "the target of a symbolic link makes no sense")
        return target

    def read(self, node: int, offset: int, length: int) -> bytes:
        """Bytes [offset, offset + length) of a file, clipped at its end."""
        runs = self._runs.of(node) if length >= _LARGE else None
        return self._ahead.read(node, offset, length) if runs is None else self._gather(runs, offset, length)

    def runs(self, node: int) -> FileRuns | None:
        """Where the data of a regular file lies in the volume, if it lies there as it is."""
        return self._runs.of(node)

    def xattrs(self, node: int) -> dict[bytes, bytes]:
        strings = self._decode(
            self._call(lambda worker: worker.request(Op.XATTRS, node)), wire.unpack_strings
        )
        pairs = zip(strings[::2], strings[1::2], strict=False)
        return {name: value for name, value in pairs if 0 < len(name) <= _LONGEST_XATTR and b"\0" not in name}

    def extents(self, node: int) -> list[tuple[int, int]]:
        """The runs of a file that hold data, (offset, length) in bytes, ascending. All else is a hole."""
        return self._decode(self._call(lambda worker: worker.request(Op.EXTENTS, node)), wire.unpack_extents)

    def rest(self, *, wait: bool = True) -> bool:
        """End the worker, until the next call needs one. Without `wait` only if no call is under way; returns
        whether it was done."""
        if not self._lock.acquire(blocking=wait):
            return False
        try:
            if self._worker is not None:
                self._worker.close()
                self._worker = None
            return True
        finally:
            self._lock.release()

    def close(self) -> None:
        """For good. Waits for a call that is under way."""
        with self._lock:
            self._closed = True
            self.rest()

    def __enter__(self) -> FileSystem:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def worker_pid(self) -> int | None:
        """Of the worker that there is now."""
        worker = self._worker
        return None if worker is None else worker.pid

    def _read(self, node: int, offset: int, length: int) -> bytes:
        pieces: list[bytes] = []
        while length > 0:
            piece = self._piece(node, offset, min(length, wire.PIECE))
            pieces.append(piece)
            if not piece:
                break
            offset += len(piece)
            length -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _piece(self, node: int, offset: int, length: int) -> bytes:
        return self._call(lambda worker: worker.read(node, offset, length))

    def _gather(self, runs: FileRuns, offset: int, length: int) -> bytes:
        try:
            pieces = [
                bytes(count) if place is None else self._space.read(place, count)
                for count, place in runs.within(offset, length)
            ]
        except (IntegrityError, StoreError) as error:
            raise self._error(errno.EIO, str(error), error.exit_status) from error
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _find_runs(self, node: int) -> FileRuns | None:
        def ask(worker: WorkerProcess) -> list[bytes] | None:
            try:
                return worker.request(Op.RUNS, node)
            except RequestFailed:
                return None

        parts = self._call(ask)
        if parts is None:
            return None
        try:
            runs = wire.unpack_runs(b"".join(parts))
            return FileRuns(self.stat(node).size, runs, self._space.size) if few(runs) else None
        except ValueError:
            # What is wrong with it is said to who reads it.
            return None

    def _decode(self, parts: list[bytes], decode: Callable[[bytes], _T]) -> _T:
        try:
            return decode(b"".join(parts))
        except ValueError:
            # Counted with those that have died: it would be started for every call else.
            with self._lock:
                self._drop()
            raise self._error(errno.EIO, "its worker gave an answer that makes no sense") from None

    def _call(self, request: Callable[[WorkerProcess], _T]) -> _T:
        if self.on_use is not None:
            self.on_use(self)
        with self._lock:
            worker = None
            try:
                worker = self._worker or self._start()
                return request(worker)
            except WorkerDied as error:
                self._drop()
                raise self._error(errno.EIO, f"{error}; the file system may be damaged") from None
            except RequestFailed as error:
                if error.cause is None:
                    raise self._error(error.errno, str(error)) from None
                raise self._error(errno.EIO, str(error.cause), error.cause.exit_status) from error.cause
            except BaseException:
                # Interrupted in the middle of an answer: the next one would be taken for it.
                self._drop()
                raise

    def _start(self) -> WorkerProcess:
        if self._closed:
            raise self._error(errno.EBADF, "it has been closed")
        now = time.monotonic()
        if len(self._starts) == STARTS and now - self._starts[0] < _PERIOD:
            raise self._error(
                errno.EIO,
                f"its workers have died {STARTS} times within {_PERIOD:g} s; the file system is damaged, "
                "use its raw file",
            )
        try:
            self._worker = worker = WorkerProcess(self._space, self._asked_type, self._limits)
        except OSError as error:
            raise self._error(errno.EIO, f"no worker can be started: {error}") from None
        try:
            facts = worker.facts()
            self.type, self.label, self.uuid, confinement, subvolume, *warnings = facts
            self.default_subvolume = int(subvolume) if subvolume else None
        except ValueError:
            raise WorkerDied("its worker gave an answer that makes no sense") from None
        except RequestFailed:
            # It ends by itself: there is nothing to read.
            self._drop()
            raise
        self.confinement = tuple(confinement.split())
        if "calls" not in self.confinement:
            log.warning("no filter of system calls can be had here; readers of guests' files run without")
        self.warnings = tuple(warnings)
        return worker

    def _drop(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            self._starts.append(time.monotonic())
            worker.kill()

    def _error(self, number: int, text: str, exit_status: int = VmfsError.exit_status) -> GuestError:
        return GuestError(number, f"volume {self.name}: {text}", exit_status)


def readable(type: str) -> bool:
    """Whether file systems of that type (as blkid says) have a reader."""
    return type in READERS


def open_filesystem(space: Space, type: str, *, name: str, limits: Limits | None = None) -> FileSystem:
    """`type` as blkid says; `name` is for messages. Raises GuestError: EOPNOTSUPP where no reader is for
    the type, EIO for what is damaged."""
    filesystem = FileSystem(space, type, name=name, limits=limits or Limits())
    try:
        filesystem.open()
    except BaseException:
        filesystem.close()
        raise
    return filesystem
