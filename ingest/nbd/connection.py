"""A connection to an NBD export: reads and block status, several requests in flight."""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import threading
from collections.abc import Iterator, Sequence

from ingest.nbd import wire
from ingest.nbd.address import Address
from ingest.nbd.errors import CommandError, Disconnected, NbdError, ProtocolError
from ingest.nbd.handshake import Export, negotiate
from ingest.nbd.stream import Stream

PIECE = 1 << 20
"""A read is cut into requests of this many bytes, so that the server reads one while it sends another."""
IN_FLIGHT = 8
"""Requests sent before the first is answered. qemu serves 16 of a client at a time."""

_ZEROS = bytes(64 * 1024)


class _Request:
    """One request and what has come back for it."""

    __slots__ = ("buffer", "covered", "error", "flags", "length", "offset", "status", "type")

    def __init__(
        self, kind: int, offset: int, length: int, buffer: memoryview | None = None, flags: int = 0
    ) -> None:
        self.type = kind
        self.flags = flags
        self.offset = offset
        self.length = length
        self.buffer = buffer
        self.covered: list[tuple[int, int]] = []
        self.status: dict[str, bytes] = {}
        self.error: CommandError | None = None


class Connection:
    """Requests of several threads take turns. After ProtocolError or Disconnected every further request
    raises Disconnected."""

    def __init__(self, stream: Stream, export: Export) -> None:
        self._stream = stream
        self._export = export
        self._lock = threading.Lock()
        self._cookie = 0
        self._broken = False
        # Whole, qemu answers a read error with an error; in fragments, it drops the connection.
        self._read_flags = wire.CMD_FLAG_DF if export.whole_reads else 0
        self.size = export.size
        self.min_block = export.min_block
        self.contexts = frozenset(export.contexts.values())
        self.offered_bitmaps = export.offered

    @classmethod
    def open(
        cls, address: Address, *, contexts: Sequence[str] = (), timeout: float, handshake_timeout: float
    ) -> Connection:
        """Connects and asks for those of the meta contexts that the export has (`contexts` tells which).
        Timeouts in seconds. Raises ServerRefused, ProtocolError or Disconnected."""
        stream = Stream.connect(address, handshake_timeout)
        try:
            connection = cls(stream, negotiate(stream, address.export, contexts))
            stream.set_timeout(timeout)
        except BaseException:
            stream.close()
            raise
        return connection

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fills the buffer from byte `offset`; both ends lie within the export. Raises CommandError,
        ProtocolError or Disconnected."""
        block = self.min_block
        end = offset + len(buffer)
        if offset % block or end % block:
            start = offset // block * block
            whole = memoryview(bytearray(-(-end // block) * block - start))
            self.readinto(start, whole)
            buffer[:] = whole[offset - start : end - start]
            return
        flags = self._read_flags
        try:
            self._read(offset, buffer, flags)
        except CommandError as error:
            # What a server may say to a large read that is not to be fragmented.
            if error.code != errno.EOVERFLOW or not flags:
                raise
            self._read_flags = 0
            self._read(offset, buffer, 0)

    def _read(self, offset: int, buffer: memoryview, flags: int) -> None:
        piece = min(PIECE, self._export.max_block)
        requests = []
        for start in range(0, len(buffer), piece):
            part = buffer[start : start + piece]
            requests.append(_Request(wire.CMD_READ, offset + start, len(part), part, flags))
        self._exchange(requests)

    def block_status(self, context: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """For each (offset, length) the extents from its start on, as packed (length, flags) pairs
        (wire.STATUS). They may end before the range does, or after it. Raises CommandError, ProtocolError or
        Disconnected."""
        requests = [_Request(wire.CMD_BLOCK_STATUS, offset, length) for offset, length in ranges]
        self._exchange(requests)
        try:
            return [request.status[context] for request in requests]
        except KeyError:
            raise ProtocolError(f"the server left {context} out of a reply") from None

    def close(self) -> None:
        """Says goodbye where there is someone to hear it."""
        with self._lock:
            if not self._broken:
                with contextlib.suppress(NbdError):
                    self._send(_Request(wire.CMD_DISC, 0, 0), {})
                self._broken = True
            self._stream.close()

    def _exchange(self, requests: Sequence[_Request]) -> None:
        """Runs all the requests, and then raises the first error that the server reported."""
        with self._lock:
            if self._broken:
                raise Disconnected("the connection to the server was lost before")
            # Whatever interrupts an exchange (Ctrl-C too) leaves replies unread, so nothing after it can be
            # matched with its request.
            self._broken = True
            waiting = iter(requests)
            pending: dict[int, _Request] = {}
            for request in _take(waiting, IN_FLIGHT):
                self._send(request, pending)
            while pending:
                if self._receive(pending):
                    for request in _take(waiting, 1):
                        self._send(request, pending)
            self._broken = False
        for request in requests:
            if request.error is not None:
                raise request.error

    def _send(self, request: _Request, pending: dict[int, _Request]) -> None:
        self._cookie = (self._cookie + 1) & (1 << 64) - 1
        self._stream.send(
            wire.REQUEST.pack(
                wire.REQUEST_MAGIC, request.flags, request.type, self._cookie, request.offset, request.length
            )
        )
        pending[self._cookie] = request

    def _receive(self, pending: dict[int, _Request]) -> bool:
        """One reply, or one chunk of one. Whether it finished a request."""
        magic = int.from_bytes(self._stream.receive(4), "big")
        if magic == wire.SIMPLE_REPLY_MAGIC:
            return self._receive_simple(pending)
        if magic != wire.STRUCTURED_REPLY_MAGIC or not self._export.structured:
            raise ProtocolError("the server sent something that is not a reply")
        flags, kind, cookie, length = wire.STRUCTURED_REPLY.unpack(
            self._stream.receive(wire.STRUCTURED_REPLY.size)
        )
        request = _pending(pending, cookie)
        if kind == wire.REPLY_OFFSET_DATA and request.type == wire.CMD_READ:
            self._receive_data(request, length)
        elif kind == wire.REPLY_OFFSET_HOLE and request.type == wire.CMD_READ:
            self._receive_hole(request, length)
        elif kind == wire.REPLY_BLOCK_STATUS and request.type == wire.CMD_BLOCK_STATUS:
            self._receive_status(request, length)
        elif kind in (wire.REPLY_ERROR, wire.REPLY_ERROR_OFFSET):
            self._receive_error(request, kind, length)
        elif kind != wire.REPLY_NONE or length or not flags & wire.REPLY_FLAG_DONE:
            raise ProtocolError(f"the server sent a reply of the wrong type ({kind})")
        if not flags & wire.REPLY_FLAG_DONE:
            return False
        del pending[cookie]
        if request.type == wire.CMD_READ and request.error is None:
            _check_covered(request)
        return True

    def _receive_simple(self, pending: dict[int, _Request]) -> bool:
        code, cookie = wire.SIMPLE_REPLY.unpack(self._stream.receive(wire.SIMPLE_REPLY.size))
        request = _pending(pending, cookie)
        if code:
            request.error = CommandError(request.offset, code, _describe(code))
        elif request.buffer is None or self._export.structured:
            raise ProtocolError("the server sent a simple reply where a structured one is due")
        else:
            self._stream.receive_into(request.buffer)
        del pending[cookie]
        return True

    def _receive_data(self, request: _Request, length: int) -> None:
        if length <= 8:
            raise ProtocolError("the server sent a data chunk without data")
        offset = int.from_bytes(self._stream.receive(8), "big")
        self._stream.receive_into(_part(request, offset, length - 8))

    def _receive_hole(self, request: _Request, length: int) -> None:
        if length != 12:
            raise ProtocolError("the server sent a malformed hole")
        offset, size = struct.unpack(">QI", self._stream.receive(12))
        part = _part(request, offset, size)
        for start in range(0, size, len(_ZEROS)):
            rest = part[start : start + len(_ZEROS)]
            rest[:] = _ZEROS[: len(rest)]

    def _receive_status(self, request: _Request, length: int) -> None:
        count, odd = divmod(length - 4, wire.STATUS.size)
        if odd or count < 1 or length > wire.MAX_STATUS_PAYLOAD:
            raise ProtocolError("the server sent a block status of an impossible length")
        context = self._export.contexts.get(int.from_bytes(self._stream.receive(4), "big"))
        if context is None or context in request.status:
            raise ProtocolError("the server sent a block status that was not asked for")
        request.status[context] = self._stream.receive(length - 4)

    def _receive_error(self, request: _Request, kind: int, length: int) -> None:
        least = 6 if kind == wire.REPLY_ERROR else 14
        if not least <= length <= least + wire.MAX_STRING:
            raise ProtocolError("the server sent a malformed error")
        payload = self._stream.receive(length)
        code, size = struct.unpack(">IH", payload[:6])
        if size != length - least:
            raise ProtocolError("the server sent a malformed error")
        text = payload[6 : 6 + size].decode(errors="replace")
        offset = request.offset
        if kind == wire.REPLY_ERROR_OFFSET:
            offset = int.from_bytes(payload[6 + size :], "big")
            if not request.offset <= offset < request.offset + request.length:
                raise ProtocolError("the server sent an error outside of what was asked for")
        message = _describe(code) + (f" ({text!a})" if text else "")
        request.error = request.error or CommandError(offset, code, message)


def _take(requests: Iterator[_Request], count: int) -> Iterator[_Request]:
    for _ in range(count):
        request = next(requests, None)
        if request is None:
            return
        yield request


def _pending(pending: dict[int, _Request], cookie: int) -> _Request:
    try:
        return pending[cookie]
    except KeyError:
        raise ProtocolError("the server answered a request that was not made") from None


def _part(request: _Request, offset: int, size: int) -> memoryview:
    start = offset - request.offset
    if request.buffer is None or start < 0 or not size or start + size > request.length:
        raise ProtocolError("the server sent bytes outside of what was asked for")
    request.covered.append((start, start + size))
    return request.buffer[start : start + size]


def _check_covered(request: _Request) -> None:
    """The chunks of a reply may come in any order, and must fill the request with no gap and no overlap."""
    position = 0
    for start, end in sorted(request.covered):
        if start != position:
            raise ProtocolError("the server sent a part of the bytes twice or not at all")
        position = end
    if position != request.length:
        raise ProtocolError("the server sent fewer bytes than were asked for")


def _describe(code: int) -> str:
    """NBD's error numbers are those of Linux."""
    return os.strerror(code) if code in errno.errorcode else f"error {code}"
