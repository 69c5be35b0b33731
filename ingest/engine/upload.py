"""A disk of the repository into a disk of the engine, through imageio, straight from the store.

Threads each take the next few megabytes: read them from the repository, then send them over one of several
connections. Nothing is kept but what they hold. What fails on the way is tried again, over a new connection,
and through a transfer that the engine has resumed where it had to be.

A server that was lost may have taken with it what it had not flushed. So the disk goes in segments with a
flush after each, and a segment during which a server was lost is sent again: writing the same bytes twice
does no harm.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from threading import Lock
from typing import Protocol

from ovirt_imageio.client import ImageioClient

from ingest.engine.connections import Connections, TransferLostError, UploadError
from ingest.engine.sparse import BATCH, Run, batches, split, zero_runs
from vmfs.errors import IntegrityError
from vmfs.repo.reader import DiskReader

log = logging.getLogger(__name__)

__all__ = ["CONNECTIONS", "Target", "TransferLostError", "UploadError", "Uploaded", "upload_disk"]

CONNECTIONS = 4
SEGMENT = 4 << 30
"""Bytes of data between two flushes."""
_AGAIN = 8
"""How often a segment is sent, at most."""
_READ_AHEAD = 2
"""Threads that read while all connections are busy."""


class Target(Protocol):
    """Where a disk is uploaded to; `ingest.engine.transfers.Transfer` is one."""

    disk_id: str

    @property
    def url(self) -> str: ...

    @property
    def proxy_url(self) -> str | None: ...

    def revive(self) -> None:
        """To call when imageio refuses or does not answer: makes a transfer that was paused take data again,
        perhaps through another `url`. Raises VmfsError if the transfer has ended."""


@dataclass(slots=True)
class Uploaded:
    """How far an upload has come. All before byte `flushed` is there for good. `data` are the bytes of data
    in it, of which `sent` were sent; `zeroed` bytes were zeroed without sending. `losses` tells how often a
    server was lost on the way."""

    flushed: int = 0
    data: int = 0
    sent: int = 0
    zeroed: int = 0
    losses: int = 0


def upload_disk(
    reader: DiskReader,
    target: Target,
    *,
    blank: bool,
    granule: int,
    ca_file: str | None = None,
    insecure: bool = False,
    connections: int = CONNECTIONS,
    zeros_after: int = 0,
    patience: float = 300.0,
    progress: Callable[[int], None] = lambda _: None,
    segment: int = SEGMENT,
    done: Uploaded | None = None,
) -> Uploaded:
    """Write all of the disk and flush it. `blank` when the target reads as zeros already: then only data is
    sent. `granule` (bytes, a power of two) is the smallest run of zeros that is worth keeping a hole.
    `zeros_after` bytes of the target, behind the disk, are zeroed as well. `progress` is called with the
    bytes of data that are done, from several threads.

    Raises UploadError when imageio refuses, or does not answer for `patience` seconds; TransferLostError when
    another transfer to the same disk may go on with `done`; VmfsError of the target when the transfer has
    ended; IntegrityError or StoreError when the disk cannot be read.
    """
    done = done or Uploaded()
    with Connections(target, connections, ca_file=ca_file, insecure=insecure, patience=patience) as clients:
        rest = batches(reader, zeros=not blank, start=done.flushed)
        behind = zero_runs(max(reader.size, done.flushed), reader.size + zeros_after)
        for part in _segments(chain(rest, behind), segment):
            for _ in range(_AGAIN):
                losses = clients.losses
                work = _Segment(reader, clients, blank, granule, partial(_later, progress, done.data))
                work.run(part)
                clients.flush()
                if clients.losses == losses:
                    break
                done.losses += clients.losses - losses
                log.info("%s: sending again what was sent since the last flush", target.disk_id)
            else:
                raise UploadError(
                    f"upload to disk {target.disk_id}: the server was lost {done.losses} times; see the "
                    "log of ovirt-imageio on the host"
                )
            done.flushed = part[-1].start + part[-1].length
            done.data += sum(run.length for run in part if not run.zero)
            done.sent += work.sent
            done.zeroed += work.zeroed
        return done


def _later(progress: Callable[[int], None], before: int, done: int) -> None:
    progress(before + done)


def _segments(runs: Iterator[Run], size: int) -> Iterator[list[Run]]:
    """Runs of at most about `size` bytes of data together, and of no more than that many batches."""
    part: list[Run] = []
    data = 0
    for run in runs:
        part.append(run)
        data += 0 if run.zero else run.length
        if data >= size or len(part) >= max(1, size // BATCH):
            yield part
            part, data = [], 0
    if part:
        yield part


class _Segment:
    """One round of sending a list of runs."""

    def __init__(
        self,
        reader: DiskReader,
        clients: Connections,
        blank: bool,
        granule: int,
        progress: Callable[[int], None],
    ) -> None:
        self.sent = 0
        self.zeroed = 0
        self._reader = reader
        self._clients = clients
        self._blank = blank
        self._granule = granule
        self._progress = progress
        self._done = 0
        self._lock = Lock()

    def run(self, runs: list[Run]) -> None:
        """Sends them all. The first error ends it, and is raised when all threads have stopped."""
        threads = self._clients.count + _READ_AHEAD
        waiting: deque[Future[None]] = deque()
        with ThreadPoolExecutor(threads, "vmfs-upload") as executor:
            try:
                for run in runs:
                    if len(waiting) >= 2 * threads:
                        waiting.popleft().result()
                    waiting.append(executor.submit(self._take, run))
                while waiting:
                    waiting.popleft().result()
            except BaseException:
                self._clients.abort()
                raise
            finally:
                executor.shutdown(wait=True, cancel_futures=True)

    def _take(self, run: Run) -> None:
        if run.zero:
            self._zero(run)
            return
        data = self._reader.read(run.start, run.length)
        if len(data) != run.length:
            raise IntegrityError(f"disk bytes from {run.start} came short")
        parts = split(data, run.start, self._granule)
        view = memoryview(data)
        for part in parts:
            if not part.zero:
                at = part.start - run.start
                self._send(part, view[at : at + part.length])
            elif not self._blank:
                self._zero(part)
        with self._lock:
            self._done += run.length
            done = self._done
        self._progress(done)

    def _send(self, part: Run, content: memoryview) -> None:
        def send(client: ImageioClient) -> None:
            client.read_from(_Bytes(content), part.start, part.length)

        self._clients.run(send)
        with self._lock:
            self.sent += part.length

    def _zero(self, part: Run) -> None:
        self._clients.run(lambda client: client.zero(part.start, part.length))
        with self._lock:
            self.zeroed += part.length


class _Bytes:
    """What ImageioClient.read_from reads from. (Its `write` would ask for all extents of the disk first, to
    know its size: minutes, on a large one.)"""

    def __init__(self, content: memoryview) -> None:
        self._content = content

    def readinto(self, buffer: memoryview) -> int:
        part, self._content = self._content[: len(buffer)], self._content[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)
