"""Answers the plugin in nbdkit: reads of disks, over a Unix socket, one thread a connection."""

from __future__ import annotations

import errno
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from vmfs.errors import IntegrityError, StoreError
from vmfs.serve import plugin

log = logging.getLogger(__name__)

_PIECE = 1 << 20
"""A read is answered in parts of this many bytes: bounds the memory, and one is read while one is sent."""
_MOST_EXTENTS = 4096
"""Of one request for extents; the client asks again for the rest."""
# What accept(2) says of a socket that was shut down or closed.
_OURS_TO_END = frozenset((errno.EINVAL, errno.EBADF))
_PAUSE = 0.1
"""Seconds."""
_AHEAD = 4
"""Threads that read what clients ask to have ready soon."""


class DiskSource(Protocol):
    """What a disk must be able to do: `vmfs.repo.reader.DiskReader`. Thread-safe."""

    @property
    def size(self) -> int: ...
    @property
    def chunk_size(self) -> int: ...
    def read(self, offset: int, length: int) -> bytes: ...
    def extents(self, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int, bool]]: ...
    def prefetch(self, first: int, count: int) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """A disk under a name."""

    name: str
    description: str
    disk: DiskSource


class Relay:
    """Serves at the Unix socket `path` while it is entered. The first export is the one that clients get who
    name none."""

    def __init__(self, exports: Sequence[Export], path: Path) -> None:
        self.path = path
        self._exports: Mapping[str, Export] = {export.name: export for export in exports}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._links: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._ahead = ThreadPoolExecutor(_AHEAD, "vmfs-ahead")

    def __enter__(self) -> Self:
        self._socket.bind(str(self.path))
        self._socket.listen(128)
        threading.Thread(target=self._accept, name="vmfs-relay", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # shutdown, unlike close, wakes the threads that wait in accept and recv.
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        with self._lock:
            for link in self._links:
                with suppress(OSError):
                    link.shutdown(socket.SHUT_RDWR)
        self._ahead.shutdown(wait=False, cancel_futures=True)
        self.path.unlink(missing_ok=True)

    def _accept(self) -> None:
        while True:
            try:
                link, _ = self._socket.accept()
            except OSError as error:
                if error.errno in _OURS_TO_END:
                    return
                # As many files are open as there may be; that passes, and who waits is served then.
                log.warning("a connection waits: %s", error.strerror)
                time.sleep(_PAUSE)
                continue
            with self._lock:
                self._links.add(link)
            threading.Thread(target=self._serve, args=(link,), name="vmfs-relay-link", daemon=True).start()

    def _serve(self, link: socket.socket) -> None:
        try:
            with suppress(OSError, EOFError):
                self._answer_all(link)
        finally:
            with self._lock:
                self._links.discard(link)
            link.close()

    def _answer_all(self, link: socket.socket) -> None:
        export: Export | None = None
        while True:
            operation, length, offset = plugin.REQUEST.unpack(_take(link, plugin.REQUEST.size))
            if operation == plugin.SELECT:
                export = self._exports.get(_take(link, length).decode(errors="replace"))
                if export is None:
                    _send(link, b"", failed=errno.ENOENT)
                else:
                    _send(link, json.dumps(_facts(export)).encode())
            elif operation == plugin.LIST:
                listed = [(export.name, export.description) for export in self._exports.values()]
                _send(link, json.dumps(listed).encode())
            elif export is None:
                _send(link, b"", failed=errno.EINVAL)
            else:
                try:
                    self._answer(link, export, operation, offset, length)
                except (IntegrityError, StoreError) as error:
                    log.warning("%s: %s", export.name, error)
                    _send(link, b"", failed=errno.EIO)

    def _answer(self, link: socket.socket, export: Export, operation: int, offset: int, length: int) -> None:
        """Raises IntegrityError and StoreError."""
        disk = export.disk
        if operation == plugin.READ:
            end = offset + length
            while offset < end:
                # Cut at multiples, so that no chunk is looked up for two parts.
                cut = min(end, (offset // _PIECE + 1) * _PIECE)
                data = disk.read(offset, cut - offset)
                if len(data) != cut - offset:
                    raise IntegrityError(f"disk bytes from {offset} came short")
                _send(link, data, last=cut == end)
                offset = cut
        elif operation == plugin.EXTENTS:
            found = islice(disk.extents(offset, offset + length), _MOST_EXTENTS)
            _send(link, b"".join(plugin.EXTENT.pack(start, size, zero) for start, size, zero in found))
        else:
            first = offset // disk.chunk_size
            count = -(-(offset + length) // disk.chunk_size) - first
            with suppress(RuntimeError):  # we are ending
                for chunk in range(first, first + count):
                    self._ahead.submit(disk.prefetch, chunk, 1)
            _send(link, b"")


def _facts(export: Export) -> dict[str, int | str]:
    # A power of two from 512 to 2 MiB, as nbdkit wants it.
    preferred = min(max(export.disk.chunk_size, 4096), 2 << 20)
    return {"size": export.disk.size, "description": export.description, "preferred": preferred}


def _send(link: socket.socket, data: bytes, *, failed: int = 0, last: bool = True) -> None:
    head = plugin.PART.pack(failed, len(data), plugin.LAST if last else 0)
    if len(data) < 4096:
        link.sendall(head + data)
        return
    sent = link.sendmsg([head, data])
    if sent < len(head) + len(data):
        link.sendall(memoryview(data)[sent - len(head) :])


def _take(link: socket.socket, length: int) -> bytes:
    taken = bytearray()
    while len(taken) < length:
        got = link.recv(length - len(taken))
        if not got:
            raise EOFError
        taken += got
    return bytes(taken)
