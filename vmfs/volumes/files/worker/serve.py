# SPDX-License-Identifier: MIT
"""The worker's answers to its client's requests, one after the other, until the client is gone."""

from __future__ import annotations

import errno
import mmap
import socket
from collections.abc import Iterable, Iterator

from . import wire
from .model import PlainReader, Reader, ReaderError
from .wire import Op, Reply


def serve(connection: socket.socket, memory: mmap.mmap, reader: Reader) -> None:
    """Returns when the client is gone."""
    while True:
        request = connection.recv(wire.LONGEST_MESSAGE)
        if not request:
            return
        op, node, offset, length = wire.REQUEST.unpack_from(request)
        try:
            if op == Op.READ:
                data = reader.read(node, offset, min(length, wire.PIECE))
                memory[wire.PIECE : wire.PIECE + len(data)] = data
                parts: Iterable[bytes] = [wire.LENGTH.pack(len(data))]
            else:
                parts = _answer(reader, op, node, request[wire.REQUEST.size :])
            answer(connection, parts)
        except Exception as error:
            connection.send(failure(error))


def answer(connection: socket.socket, parts: Iterable[bytes]) -> None:
    """Send parts, as many at a time as go into a message."""
    pending: list[bytes] = []
    size = 0
    for part in parts:
        if size + len(part) > wire.MESSAGE and pending:
            connection.send(bytes([Reply.MORE]) + b"".join(pending))
            pending.clear()
            size = 0
        pending.append(part)
        size += len(part)
    connection.send(bytes([Reply.DONE]) + b"".join(pending))


def failure(error: BaseException) -> bytes:
    """The message that says so. What the libraries raise is damage until proven otherwise."""
    if isinstance(error, ReaderError):
        return wire.pack_failed(error.errno, str(error))
    if isinstance(error, MemoryError):
        return wire.pack_failed(errno.EIO, "to read it takes more memory than is allowed")
    if isinstance(error, OSError) and error.strerror and error.errno == errno.EIO:
        return wire.pack_failed(errno.EIO, error.strerror)
    if isinstance(error, RecursionError):
        return wire.pack_failed(errno.EIO, "it is nested too deeply")
    return wire.pack_failed(errno.EIO, f"it is damaged ({_first_line(error)})")


def facts(reader: Reader, confinement: Iterable[str]) -> list[bytes]:
    """What the client is told first: type, label, UUID, what confines the worker, the default subvolume's
    number (or nothing), warnings."""
    subvolume = getattr(reader, "default_subvolume", None)
    first = (
        *(reader.type, reader.label, reader.uuid, " ".join(confinement)),
        "" if subvolume is None else str(subvolume),
    )
    return [wire.pack_strings([text.encode("utf-8", "replace")]) for text in (*first, *reader.warnings)]


def _answer(reader: Reader, op: int, node: int, name: bytes) -> Iterator[bytes]:
    match op:
        case Op.ROOT:
            yield wire.pack_stat(reader.root())
        case Op.STAT:
            yield wire.pack_stat(reader.stat(node))
        case Op.LOOKUP:
            yield wire.pack_stat(reader.lookup(node, name))
        case Op.SCAN:
            yield from map(wire.pack_found, reader.scan(node))
        case Op.READLINK:
            yield reader.readlink(node)
        case Op.XATTRS:
            for key, value in reader.xattrs(node).items():
                yield wire.pack_strings([key, value])
        case Op.EXTENTS:
            for extent in reader.extents(node):
                yield wire.EXTENT.pack(*extent)
        case Op.RUNS if isinstance(reader, PlainReader):
            for run in reader.runs(node):
                yield wire.RUN.pack(*run)
        case Op.RUNS:
            raise ReaderError(errno.EOPNOTSUPP, "where its data lies is not known")
        case _:
            raise ReaderError(errno.EINVAL, f"no request has the number {op}")


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0][:300] if lines and lines[0] else type(error).__name__
