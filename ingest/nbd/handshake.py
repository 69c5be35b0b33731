"""The talk before the bytes: what the server exports, how, and with which meta contexts."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ingest.nbd import wire
from ingest.nbd.errors import ProtocolError, ServerRefused
from ingest.nbd.stream import Stream

SHOWN_EXPORTS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """What the server granted. `size` and the block sizes are bytes; a request must be aligned to
    `min_block` and no larger than `max_block`. `whole_reads` tells that the answer to a read can be had in
    one chunk. `contexts` maps the ids in BLOCK_STATUS replies to names; `offered` are the dirty bitmaps of
    the export, asked for when one that was wanted is not there."""

    size: int
    min_block: int
    max_block: int
    structured: bool
    whole_reads: bool
    contexts: dict[int, str]
    offered: tuple[str, ...]


def negotiate(stream: Stream, export: str, contexts: Sequence[str]) -> Export:
    """Asks for the export and for those of the meta contexts that it has. Raises ServerRefused, ProtocolError
    or Disconnected."""
    greeting = stream.receive(18)
    if greeting[:8] != wire.INIT_MAGIC:
        raise ProtocolError("whatever listens there is not an NBD server")
    flags = int.from_bytes(greeting[16:], "big")
    if greeting[8:16] != wire.OPTION_MAGIC or not flags & wire.FLAG_FIXED_NEWSTYLE:
        raise ServerRefused("the server speaks the old NBD handshake; use a newer server")
    no_zeroes = flags & wire.FLAG_NO_ZEROES
    stream.send(struct.pack(">I", wire.FLAG_FIXED_NEWSTYLE | no_zeroes))
    try:
        return _Options(stream, export).run(contexts)
    except ServerRefused:
        stream.send(wire.OPTION.pack(wire.OPTION_MAGIC, wire.OPT_ABORT, 0))
        raise


class _OptionError(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class _Options:
    def __init__(self, stream: Stream, export: str) -> None:
        self._stream = stream
        self._export = export
        self._name = export.encode(errors="surrogateescape")

    def run(self, contexts: Sequence[str]) -> Export:
        try:
            structured = self._try_structured()
            granted: dict[int, str] = {}
            offered: tuple[str, ...] = ()
            if structured and contexts:
                granted = dict(self._contexts(wire.OPT_SET_META_CONTEXT, contexts))
                if any(context not in granted.values() for context in contexts):
                    offered = self._bitmaps()
            size, flags, min_block, max_block = self._go()
        except _OptionError as error:
            raise self._refusal(error) from None
        return Export(
            size=size,
            min_block=min_block,
            max_block=max_block,
            structured=structured,
            whole_reads=structured and bool(flags & wire.SEND_DF),
            contexts=granted,
            offered=offered,
        )

    def _try_structured(self) -> bool:
        try:
            for _ in self._option(wire.OPT_STRUCTURED_REPLY, b""):
                raise ProtocolError("the server answered what it was not asked")
        except _OptionError as error:
            if error.code in (wire.REP_ERR_TLS_REQD, wire.REP_ERR_SHUTDOWN):
                raise
            return False
        return True

    def _contexts(self, option: int, queries: Sequence[str]) -> Iterator[tuple[int, str]]:
        data = struct.pack(">I", len(self._name)) + self._name + struct.pack(">I", len(queries))
        for query in queries:
            encoded = query.encode(errors="surrogateescape")
            data += struct.pack(">I", len(encoded)) + encoded
        try:
            for kind, reply in self._option(option, data):
                if kind != wire.REP_META_CONTEXT or not 5 <= len(reply) <= 4 + wire.MAX_STRING:
                    raise ProtocolError("the server sent a malformed meta context")
                yield int.from_bytes(reply[:4], "big"), reply[4:].decode(errors="surrogateescape")
        except _OptionError as error:
            if error.code != wire.REP_ERR_UNSUP:
                raise

    def _bitmaps(self) -> tuple[str, ...]:
        try:
            names = [name for _, name in self._contexts(wire.OPT_LIST_META_CONTEXT, [wire.DIRTY_BITMAP])]
        except _OptionError:
            return ()
        return tuple(
            name.removeprefix(wire.DIRTY_BITMAP) for name in names if name.startswith(wire.DIRTY_BITMAP)
        )

    def _go(self) -> tuple[int, int, int, int]:
        """Size, flags, smallest and largest block."""
        size: int | None = None
        flags = 0
        smallest, largest = wire.DEFAULT_BLOCK, wire.DEFAULT_MAX_BLOCK
        data = struct.pack(">I", len(self._name)) + self._name + struct.pack(">HH", 1, wire.INFO_BLOCK_SIZE)
        for kind, reply in self._option(wire.OPT_GO, data):
            if kind != wire.REP_INFO or len(reply) < 2:
                raise ProtocolError("the server answered NBD_OPT_GO with something else")
            info = int.from_bytes(reply[:2], "big")
            if info == wire.INFO_EXPORT:
                if len(reply) != 12:
                    raise ProtocolError("the server sent a malformed export description")
                size, flags = struct.unpack(">QH", reply[2:])
            elif info == wire.INFO_BLOCK_SIZE:
                smallest, largest = _block_sizes(reply)
        if size is None:
            raise ProtocolError("the server did not say how large the export is")
        return size, flags, smallest, largest

    def _refusal(self, error: _OptionError) -> ServerRefused:
        if error.code == wire.REP_ERR_TLS_REQD:
            return ServerRefused("the server wants TLS, which is not supported; use its Unix socket, or ssh")
        if error.code == wire.REP_ERR_UNSUP:
            return ServerRefused("the server is too old (it does not know NBD_OPT_GO); use a newer server")
        if error.code == wire.REP_ERR_SHUTDOWN:
            return ServerRefused("the server is shutting down")
        if error.code == wire.REP_ERR_UNKNOWN:
            return ServerRefused(f"the server has no export {self._export!a}{self._exports()}")
        text = ascii(error.text) if error.text else "no reason given"
        return ServerRefused(f"the server refused (error {error.code - wire.REP_ERROR}): {text}")

    def _exports(self) -> str:
        names: list[str] = []
        try:
            for kind, reply in self._option(wire.OPT_LIST, b""):
                length = int.from_bytes(reply[:4], "big")
                if kind != wire.REP_SERVER or len(reply) < 4 or length > len(reply) - 4:
                    raise ProtocolError("the server sent a malformed list of exports")
                if len(names) <= SHOWN_EXPORTS:
                    names.append(ascii(reply[4 : 4 + length].decode(errors="replace")))
        except _OptionError:
            return ""
        more = ", …" if len(names) > SHOWN_EXPORTS else ""
        return f"; it has {', '.join(names[:SHOWN_EXPORTS])}{more}" if names else "; it has none"

    def _option(self, option: int, data: bytes) -> Iterator[tuple[int, bytes]]:
        """The replies (type, payload) to an option up to its acknowledgement. Raises _OptionError. Run it to
        the end, or the replies left over are taken for those of the next option."""
        self._stream.send(wire.OPTION.pack(wire.OPTION_MAGIC, option, len(data)) + data)
        for _ in range(wire.MAX_OPTION_REPLIES):
            magic, echoed, kind, length = wire.OPTION_REPLY.unpack(
                self._stream.receive(wire.OPTION_REPLY.size)
            )
            if magic != wire.OPTION_REPLY_MAGIC or echoed != option or length > wire.MAX_OPTION_REPLY:
                raise ProtocolError("the server sent a malformed option reply")
            payload = self._stream.receive(length)
            if kind & wire.REP_ERROR:
                raise _OptionError(kind, payload[: wire.MAX_STRING].decode(errors="replace"))
            if kind == wire.REP_ACK:
                return
            yield kind, payload
        raise ProtocolError("the server sends option replies without end")


def _block_sizes(reply: bytes) -> tuple[int, int]:
    if len(reply) != 14:
        raise ProtocolError("the server sent malformed block sizes")
    smallest, _, largest = struct.unpack(">III", reply[2:])
    if not 1 <= smallest <= 1 << 16 or smallest & (smallest - 1) or largest < smallest:
        raise ProtocolError(f"the server wants impossible block sizes ({smallest} to {largest})")
    return smallest, max(smallest, largest // smallest * smallest)
