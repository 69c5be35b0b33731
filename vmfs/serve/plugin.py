"""The plugin that nbdkit loads: passes each request to the process that can read the repository.

It runs in nbdkit's own Python, which need not be ours: the standard library only, and nothing of ours. The
other end, `vmfs.serve.relay`, takes the messages from here. Parameter of the plugin: `relay=PATH`, a Unix
socket.

A connection serves one request after the other. A request is REQUEST, then `length` bytes of a name if its
operation is SELECT. An answer is one or more parts, each PART and then as many bytes; the last has LAST set.
"""

from __future__ import annotations

import errno
import json
import socket
import struct
from collections.abc import Iterator
from typing import Any

API_VERSION = 2

REQUEST = struct.Struct(">BxxxIQ")
"""Operation; length and offset in bytes."""
PART = struct.Struct(">iII")
"""errno (0: what follows is good), bytes that follow, LAST or 0."""
LAST = 1
EXTENT = struct.Struct(">QQQ")
"""Offset and length in bytes, 1 for zeros."""
LIST, SELECT, READ, EXTENTS, CACHE = range(5)
"""What is there (JSON); from now on, that disk (JSON); bytes; EXTENT structures; reading ahead (nothing)."""

_path = ""


class Disk:
    """One NBD connection to one export. Requests come from several threads at once, each of which borrows a
    connection of its own to the relay."""

    def __init__(self, name: str) -> None:
        self._name = name.encode()
        self._idle: list[socket.socket] = []
        link = self._connect()
        self._idle.append(link)

    def _connect(self) -> socket.socket:
        link = _connect()
        self.facts = json.loads(b"".join(_ask(link, SELECT, 0, len(self._name), self._name)))
        return link

    def ask(self, operation: int, offset: int, length: int) -> bytes:
        link = self._idle.pop() if self._idle else self._connect()
        answer = b"".join(_ask(link, operation, offset, length))
        # After an error of the connection it is not used again.
        self._idle.append(link)
        return answer

    def read_into(self, buffer: memoryview, offset: int) -> None:
        link = self._idle.pop() if self._idle else self._connect()
        link.sendall(REQUEST.pack(READ, len(buffer), offset))
        at = 0
        for length in _parts(link):
            _fill(link, buffer[at : at + length])
            at += length
        self._idle.append(link)
        if at != len(buffer):
            raise _failed(errno.EIO, "the relay sent too few bytes")

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()


def _connect() -> socket.socket:
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    link.connect(_path)
    return link


def _ask(
    link: socket.socket, operation: int, offset: int, length: int, rest: bytes = b""
) -> Iterator[bytearray]:
    link.sendall(REQUEST.pack(operation, length, offset) + rest)
    for size in _parts(link):
        part = bytearray(size)
        _fill(link, memoryview(part))
        yield part


def _parts(link: socket.socket) -> Iterator[int]:
    """The length of each part, which is to be taken before the next is asked for."""
    head = bytearray(PART.size)
    failed = last = 0
    while not last:
        _fill(link, memoryview(head))
        failed, length, last = PART.unpack(head)
        if failed:
            break
        if length:
            yield length
    if failed:
        link.close()
        raise _failed(failed, "the disk cannot be read there; vmfs says why")


def _fill(link: socket.socket, buffer: memoryview) -> None:
    at = 0
    while at < len(buffer):
        # MSG_WAITALL: the kernel's business while other threads run.
        got = link.recv_into(buffer[at:], 0, socket.MSG_WAITALL)
        if got == 0:
            raise _failed(errno.ESHUTDOWN, "vmfs is gone")
        at += got


def _failed(number: int, message: str) -> Exception:
    import nbdkit

    nbdkit.set_error(number)
    return OSError(number, message)


# What nbdkit calls, by name: nbdkit-python-plugin(3).


def config(key: str, value: str) -> None:
    global _path
    if key != "relay":
        raise ValueError(f"unknown parameter {key}")
    _path = value


def config_complete() -> None:
    if not _path:
        raise ValueError("relay=PATH is missing; this plugin is started by vmfs serve")


def thread_model() -> int:
    import nbdkit

    return int(nbdkit.THREAD_MODEL_PARALLEL)


def list_exports(readonly: bool, is_tls: bool) -> list[tuple[str, str]]:
    link = _connect()
    try:
        return [(name, text) for name, text in json.loads(b"".join(_ask(link, LIST, 0, 0)))]
    finally:
        link.close()


def default_export(readonly: bool, is_tls: bool) -> str:
    return list_exports(readonly, is_tls)[0][0]


def open(readonly: bool) -> Disk:
    import nbdkit

    return Disk(nbdkit.export_name())


def close(h: Disk) -> None:
    h.close()


def export_description(h: Disk) -> str:
    return str(h.facts["description"])


def get_size(h: Disk) -> int:
    return int(h.facts["size"])


def block_size(h: Disk) -> tuple[int, int, int]:
    return (1, h.facts["preferred"], 32 << 20)


def is_rotational(h: Disk) -> bool:
    return False


def can_write(h: Disk) -> bool:
    return False


def can_multi_conn(h: Disk) -> bool:
    return True


def can_extents(h: Disk) -> bool:
    return True


def can_cache(h: Disk) -> int:
    import nbdkit

    return int(nbdkit.CACHE_NATIVE)


def pread(h: Disk, buf: Any, offset: int, flags: int) -> None:
    h.read_into(memoryview(buf).cast("B"), offset)


def extents(h: Disk, count: int, offset: int, flags: int) -> list[tuple[int, int, int]]:
    import nbdkit

    hole = nbdkit.EXTENT_HOLE | nbdkit.EXTENT_ZERO
    found = EXTENT.iter_unpack(h.ask(EXTENTS, offset, count))
    return [(start, length, hole if zero else 0) for start, length, zero in found]


def cache(h: Disk, count: int, offset: int, flags: int) -> None:
    h.ask(CACHE, offset, count)
