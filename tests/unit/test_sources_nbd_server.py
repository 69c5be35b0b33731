"""An NBD server that lies: every length and every id that it sends is checked against what was asked."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from source_helpers import read

from ingest.nbd import wire
from ingest.sources.base import BitmapError, Extent, SourceError
from ingest.sources.nbd import NbdSource

SIZE = 1 << 20
GREETING = b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3)
EXPORT = struct.pack(">HQH", wire.INFO_EXPORT, SIZE, 3)
BLOCKS = struct.pack(">HIII", wire.INFO_BLOCK_SIZE, 1, 4096, 1 << 25)

Peer = socket.socket
Answer = Callable[[Peer, int, int, int, int], None]
"""Answers a request: (peer, type, cookie, offset, length)."""


def receive(peer: Peer, count: int) -> bytes:
    data = peer.recv(count, socket.MSG_WAITALL) if count else b""
    if len(data) < count:
        raise ConnectionError
    return data


def reply(option: int, kind: int, payload: bytes = b"") -> bytes:
    return wire.OPTION_REPLY.pack(wire.OPTION_REPLY_MAGIC, option, kind, len(payload)) + payload


def chunk(cookie: int, kind: int, payload: bytes = b"", *, done: bool = True) -> bytes:
    return (
        struct.pack(">I", wire.STRUCTURED_REPLY_MAGIC)
        + wire.STRUCTURED_REPLY.pack(int(done), kind, cookie, len(payload))
        + payload
    )


def data(cookie: int, offset: int, content: bytes, *, done: bool = True) -> bytes:
    return chunk(cookie, wire.REPLY_OFFSET_DATA, struct.pack(">Q", offset) + content, done=done)


def status(cookie: int, *extents: tuple[int, int], context: int = 7) -> bytes:
    payload = struct.pack(">I", context) + b"".join(wire.STATUS.pack(*extent) for extent in extents)
    return chunk(cookie, wire.REPLY_BLOCK_STATUS, payload)


class Server:
    """Speaks the protocol as a good server does, but for what a test puts in its place."""

    def __init__(self) -> None:
        self.greeting = GREETING
        self.flags = 0
        self.structured = reply(wire.OPT_STRUCTURED_REPLY, wire.REP_ACK)
        context = struct.pack(">I", 7) + wire.BASE_ALLOCATION.encode()
        self.contexts = reply(wire.OPT_SET_META_CONTEXT, wire.REP_META_CONTEXT, context) + reply(
            wire.OPT_SET_META_CONTEXT, wire.REP_ACK
        )
        self.infos = [EXPORT, BLOCKS]
        self.go: bytes | None = None
        self.list = reply(wire.OPT_LIST, wire.REP_ACK)
        self.answer: Answer = lambda peer, kind, cookie, offset, length: peer.sendall(
            data(cookie, offset, bytes(length)) if kind == wire.CMD_READ else status(cookie, (length, 0))
        )

    def serve(self, peer: Peer) -> None:
        peer.sendall(self.greeting)
        receive(peer, 4)
        while True:
            _, option, length = wire.OPTION.unpack(receive(peer, wire.OPTION.size))
            receive(peer, length)
            if option == wire.OPT_GO:
                infos = b"".join(reply(wire.OPT_GO, wire.REP_INFO, info) for info in self.infos)
                peer.sendall(self.go or infos + reply(wire.OPT_GO, wire.REP_ACK))
                if self.go is None:
                    break
            elif option == wire.OPT_LIST_META_CONTEXT:
                peer.sendall(reply(option, wire.REP_ERR_UNSUP))
            elif option == wire.OPT_ABORT:
                return
            else:
                peer.sendall(
                    {
                        wire.OPT_STRUCTURED_REPLY: self.structured,
                        wire.OPT_SET_META_CONTEXT: self.contexts,
                        wire.OPT_LIST: self.list,
                    }[option]
                )
        while True:
            _, self.flags, kind, cookie, offset, length = wire.REQUEST.unpack(
                receive(peer, wire.REQUEST.size)
            )
            if kind == wire.CMD_DISC:
                return
            self.answer(peer, kind, cookie, offset, length)


@contextmanager
def serving(server: Server, folder: Path) -> Iterator[str]:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{folder}/s")
    listener.listen(8)
    peers: list[threading.Thread] = []

    def serve(peer: Peer) -> None:
        with peer, contextlib.suppress(OSError):
            server.serve(peer)

    def accept() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            peers.append(threading.Thread(target=serve, args=[peer]))
            peers[-1].start()

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield f"nbd+unix:///x?socket={folder}/s"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        (folder / "s").unlink()
        thread.join()
        for peer in peers:
            peer.join()


@contextmanager
def opened(server: Server, folder: Path, bitmap: str | None = None) -> Iterator[NbdSource]:
    with serving(server, folder) as uri:
        source = NbdSource(uri, name="sda", bitmap=bitmap, timeout=0.5, handshake_timeout=0.5)
        try:
            yield source
        finally:
            source.close()


def test_good_server(tmp_path: Path) -> None:
    with opened(Server(), tmp_path) as source:
        assert (source.size, source.block_size) == (SIZE, 512)
        assert list(source.extents()) == [Extent(0, SIZE, False)]
        assert source.dirty_extents() is None
        assert read(source, 0, SIZE) == bytes(SIZE)


def test_server_of_simple_replies_only(tmp_path: Path) -> None:
    server = Server()
    server.structured = reply(wire.OPT_STRUCTURED_REPLY, wire.REP_ERR_UNSUP)
    server.infos = [EXPORT]
    server.answer = lambda peer, kind, cookie, offset, length: peer.sendall(
        struct.pack(">IIQ", wire.SIMPLE_REPLY_MAGIC, 0, cookie) + bytes(length)
    )
    with opened(server, tmp_path) as source:
        assert list(source.extents()) == [Extent(0, SIZE, False)]
        assert read(source, 0, SIZE) == bytes(SIZE)
    with (
        pytest.raises(BitmapError, match="no dirty bitmap 'b0'; it has none"),
        opened(server, tmp_path, "b0"),
    ):
        pass


def test_replies_in_any_order(tmp_path: Path) -> None:
    """Two requests are held back and answered in the wrong order, each in chunks in the wrong order."""
    held: list[tuple[int, int, int]] = []

    def answer(peer: Peer, kind: int, cookie: int, offset: int, length: int) -> None:
        held.append((cookie, offset, length))
        if len(held) < 2:
            return
        for cookie, offset, length in reversed(held):
            hole = chunk(
                cookie, wire.REPLY_OFFSET_HOLE, struct.pack(">QI", offset + 512, length - 512), done=False
            )
            peer.sendall(hole + data(cookie, offset, bytes([offset >> 20] * 512), done=False))
            peer.sendall(chunk(cookie, wire.REPLY_NONE))

    server = Server()
    server.infos = [struct.pack(">HQH", wire.INFO_EXPORT, 2 * SIZE, 3), BLOCKS]
    server.answer = answer
    with opened(server, tmp_path) as source:
        rest = bytes(SIZE - 512)
        assert read(source, 0, 2 * SIZE) == bytes(512) + rest + b"\1" * 512 + rest


def test_server_that_will_not_send_large_reads_whole(tmp_path: Path) -> None:
    flags: list[int] = []

    def answer(peer: Peer, kind: int, cookie: int, offset: int, length: int) -> None:
        flags.append(server.flags)
        if server.flags:
            peer.sendall(chunk(cookie, wire.REPLY_ERROR, struct.pack(">IH", errno.EOVERFLOW, 0)))
        else:
            peer.sendall(data(cookie, offset, b"z" * length))

    server = Server()
    server.infos = [struct.pack(">HQH", wire.INFO_EXPORT, SIZE, 3 | wire.SEND_DF), BLOCKS]
    server.answer = answer
    with opened(server, tmp_path) as source:
        assert read(source, 0, SIZE) == b"z" * SIZE
    assert flags == [wire.CMD_FLAG_DF, 0]


def test_blocks_of_4096(tmp_path: Path) -> None:
    """Requests are aligned to the server's blocks whatever the caller asks for."""
    asked: list[tuple[int, int]] = []

    def answer(peer: Peer, kind: int, cookie: int, offset: int, length: int) -> None:
        asked.append((offset, length))
        peer.sendall(data(cookie, offset, bytes(range(256)) * (length // 256)))

    server = Server()
    server.infos = [EXPORT, struct.pack(">HIII", wire.INFO_BLOCK_SIZE, 4096, 4096, 8192)]
    server.answer = answer
    with opened(server, tmp_path) as source:
        assert source.block_size == 4096
        assert read(source, 4100, 10_000) == (bytes(range(256)) * 40)[4:10_004]
    assert asked == [(4096, 8192), (12288, 4096)]


def test_extents_longer_and_shorter_than_asked(tmp_path: Path) -> None:
    def answer(peer: Peer, kind: int, cookie: int, offset: int, length: int) -> None:
        extents = [(4096, offset // 4096 % 2 * wire.STATE_ZERO)] if offset < SIZE // 2 else [(2 * SIZE, 3)]
        peer.sendall(status(cookie, *extents))

    server = Server()
    server.answer = answer
    with opened(server, tmp_path) as source:
        extents = list(source.extents())
    half = [Extent(start, 4096, bool(start // 4096 % 2)) for start in range(0, SIZE // 2 - 4096, 4096)]
    assert extents == [*half, Extent(SIZE // 2 - 4096, SIZE // 2 + 4096, True)]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("greeting", b"HTTP/1.1 400 Bad Request\r\n", "not an NBD server"),
        ("greeting", b"NBDMAGIC" + bytes(10), "old NBD handshake"),
        ("greeting", b"NBD", "did not answer within 0.5 seconds"),
        ("structured", b"\0" * 20, "malformed option reply"),
        ("structured", reply(wire.OPT_GO, wire.REP_ACK), "malformed option reply"),
        ("structured", reply(wire.OPT_STRUCTURED_REPLY, wire.REP_INFO), "what it was not asked"),
        ("structured", reply(wire.OPT_STRUCTURED_REPLY, wire.REP_ERR_TLS_REQD), "wants TLS"),
        ("structured", wire.OPTION_REPLY.pack(wire.OPTION_REPLY_MAGIC, 8, 1, 1 << 31), "malformed option"),
        (
            "contexts",
            reply(wire.OPT_SET_META_CONTEXT, wire.REP_META_CONTEXT, b"\0"),
            "malformed meta context",
        ),
        ("contexts", reply(wire.OPT_SET_META_CONTEXT, wire.REP_INFO, bytes(9)), "malformed meta context"),
        ("infos", [BLOCKS], "did not say how large"),
        ("infos", [EXPORT[:5]], "malformed export"),
        ("infos", [b""], "something else"),
        ("infos", [EXPORT, BLOCKS[:9]], "malformed block sizes"),
        ("infos", [EXPORT, struct.pack(">HIII", 3, 0, 1, 1)], "impossible block sizes"),
        ("infos", [EXPORT, struct.pack(">HIII", 3, 24, 24, 48)], "impossible block sizes"),
        ("infos", [EXPORT, struct.pack(">HIII", 3, 1 << 17, 1 << 17, 1 << 20)], "impossible block sizes"),
        ("infos", [EXPORT, struct.pack(">HIII", 3, 512, 512, 1)], "impossible block sizes"),
        ("infos", [struct.pack(">HQH", 0, 0, 3)], "has 0 bytes"),
        ("infos", [struct.pack(">HQH", 0, 1000, 3)], "has 1000 bytes; a disk has a multiple of 512"),
        ("infos", [struct.pack(">HQH", 0, 1 << 63, 3)], "no more than"),
        (
            "infos",
            [struct.pack(">HQH", 0, 1536, 3), struct.pack(">HIII", 3, 1024, 1024, 1024)],
            "cannot read the end",
        ),
        ("infos", [EXPORT] * 20_000, "without end"),
        ("go", reply(wire.OPT_GO, wire.REP_ERR_UNSUP), "too old"),
        ("go", reply(wire.OPT_GO, wire.REP_ERR_SHUTDOWN), "shutting down"),
        ("go", reply(wire.OPT_GO, wire.REP_ERR_UNKNOWN), "no export 'x'; it has none"),
        ("go", reply(wire.OPT_GO, wire.REP_ERR_POLICY, b"go\naway"), r"refused \(error 2\): 'go\\naway'"),
    ],
)
def test_bad_handshake(tmp_path: Path, field: str, value: object, message: str) -> None:
    server = Server()
    setattr(server, field, value)
    with pytest.raises(SourceError, match=f"^disk sda.*{message}") as caught, opened(server, tmp_path):
        pass
    assert "\n" not in str(caught.value)


def test_lists_exports(tmp_path: Path) -> None:
    server = Server()
    server.go = reply(wire.OPT_GO, wire.REP_ERR_UNKNOWN)
    names = [struct.pack(">I", 2) + b"n%d" % number for number in range(9)]
    server.list = b"".join(
        reply(wire.OPT_LIST, wire.REP_SERVER, name) for name in [*names, b"\0\0\0\3\n%s\x1b"]
    )
    server.list += reply(wire.OPT_LIST, wire.REP_ACK)
    with pytest.raises(SourceError, match=r"it has 'n0', .*'n8', '\\n%s'"), opened(server, tmp_path):
        pass
    server.list = reply(wire.OPT_LIST, wire.REP_SERVER, struct.pack(">I", 99) + b"x")
    with pytest.raises(SourceError, match="malformed list of exports"), opened(server, tmp_path):
        pass


ERROR = struct.pack(">IH", 5, 3) + b"a\nb"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda c, o, n: b"\0" * 20, "at byte 512: .*not a reply"),
        (lambda c, o, n: data(c + 9, o, bytes(n)), "a request that was not made"),
        (lambda c, o, n: data(c, o, bytes(n - 1)), "fewer bytes"),
        (lambda c, o, n: data(c, o, bytes(n + 1)), "outside of what was asked"),
        (lambda c, o, n: data(c, o - 1, bytes(n)), "outside of what was asked"),
        (lambda c, o, n: data(c, o + 1, bytes(n)), "outside of what was asked"),
        (lambda c, o, n: data(c, o, b""), "without data"),
        (lambda c, o, n: data(c, o, bytes(n), done=False) + data(c, o, b"x"), "twice or not at all"),
        (lambda c, o, n: data(c, o + 1, bytes(n - 1)), "twice or not at all"),
        (lambda c, o, n: chunk(c, wire.REPLY_NONE), "fewer bytes"),
        (lambda c, o, n: chunk(c, wire.REPLY_NONE, done=False), "wrong type"),
        (lambda c, o, n: chunk(c, wire.REPLY_OFFSET_HOLE, struct.pack(">QI", o, n + 1)), "outside of what"),
        (lambda c, o, n: chunk(c, wire.REPLY_OFFSET_HOLE, struct.pack(">QI", o, 0)), "outside of what"),
        (lambda c, o, n: chunk(c, wire.REPLY_OFFSET_HOLE, b"\0"), "malformed hole"),
        (lambda c, o, n: status(c, (n, 0)), "wrong type"),
        (lambda c, o, n: chunk(c, 77), "wrong type"),
        (
            lambda c, o, n: struct.pack(">IIQ", wire.SIMPLE_REPLY_MAGIC, 0, c) + bytes(n),
            "structured one is due",
        ),
        (
            lambda c, o, n: struct.pack(">IIQ", wire.SIMPLE_REPLY_MAGIC, 5, c),
            "read error at byte 512: Input/outp",
        ),
        (lambda c, o, n: chunk(c, wire.REPLY_ERROR, ERROR), r"read error at byte 512: .*\('a\\nb'\)"),
        (lambda c, o, n: chunk(c, wire.REPLY_ERROR, struct.pack(">IH", 9999, 0)), "byte 512: error 9999"),
        (
            lambda c, o, n: chunk(c, wire.REPLY_ERROR_OFFSET, ERROR + struct.pack(">Q", o + 8)),
            "at byte 520: Input",
        ),
        (lambda c, o, n: chunk(c, wire.REPLY_ERROR_OFFSET, ERROR + struct.pack(">Q", 9)), "an error outside"),
        (lambda c, o, n: chunk(c, wire.REPLY_ERROR, ERROR[:4]), "malformed error"),
        (lambda c, o, n: chunk(c, wire.REPLY_ERROR, ERROR[:-1]), "malformed error"),
        (lambda c, o, n: chunk(c, wire.REPLY_ERROR, bytes(9000)), "malformed error"),
        (
            lambda c, o, n: data(c, o, bytes(n))[:-1],
            "at byte 512: the server did not answer within 0.5 seconds",
        ),
    ],
)
def test_bad_answer_to_a_read(tmp_path: Path, answer: Callable[[int, int, int], bytes], message: str) -> None:
    server = Server()
    server.answer = lambda peer, kind, cookie, offset, length: peer.sendall(answer(cookie, offset, length))
    with opened(server, tmp_path) as source:
        with pytest.raises(SourceError, match=f"^disk sda.*{message}") as caught:
            read(source, 512, 1024)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda c, n: status(c, (0, 0)), "byte 0: the server sent an empty extent"),
        (lambda c, n: status(c, (512, 0), (0, 0)), "byte 512: the server sent an empty extent"),
        (lambda c, n: status(c), "impossible length"),
        (lambda c, n: status(c, (n, 0), context=8), "not asked for"),
        (lambda c, n: chunk(c, wire.REPLY_BLOCK_STATUS, bytes(13)), "impossible length"),
        (lambda c, n: chunk(c, wire.REPLY_NONE), "left base:allocation out"),
        (lambda c, n: data(c, 0, b"x"), "wrong type"),
        (lambda c, n: struct.pack(">IIQ", wire.SIMPLE_REPLY_MAGIC, 0, c), "structured one is due"),
        (lambda c, n: chunk(c, wire.REPLY_ERROR, ERROR), "no block status at byte 0: Input/output error"),
        (
            lambda c, n: struct.pack(">IHHQI", wire.STRUCTURED_REPLY_MAGIC, 1, 5, c, (1 << 31) + 4),
            "impossible length",
        ),
    ],
)
def test_bad_block_status(tmp_path: Path, answer: Callable[[int, int], bytes], message: str) -> None:
    server = Server()
    server.answer = lambda peer, kind, cookie, offset, length: peer.sendall(answer(cookie, length))
    with opened(server, tmp_path) as source, pytest.raises(SourceError, match=f"^disk sda.*{message}"):
        list(source.extents())


def test_one_failed_request_leaves_the_connection_good(tmp_path: Path) -> None:
    failed = False

    def answer(peer: Peer, kind: int, cookie: int, offset: int, length: int) -> None:
        nonlocal failed
        bad = offset == 2 * SIZE and not failed
        failed = failed or bad
        peer.sendall(chunk(cookie, wire.REPLY_ERROR, ERROR) if bad else data(cookie, offset, b"y" * length))

    server = Server()
    server.infos = [struct.pack(">HQH", wire.INFO_EXPORT, 32 * SIZE, 3), BLOCKS]
    server.answer = answer
    with opened(server, tmp_path) as source:
        reader = source.reader()
        buffer = bytearray(32 * SIZE)
        with pytest.raises(SourceError, match=f"read error at byte {2 * SIZE}"):
            reader.readinto(0, memoryview(buffer))
        reader.readinto(0, memoryview(buffer))
        assert buffer == b"y" * len(buffer)
        with pytest.raises(SourceError, match="ends at byte"):
            reader.readinto(32 * SIZE - 1, memoryview(bytearray(2)))
        reader.close()


def test_after_a_lie_the_connection_is_not_used(tmp_path: Path) -> None:
    server = Server()
    server.answer = lambda peer, kind, cookie, offset, length: peer.sendall(b"\0" * 100)
    with opened(server, tmp_path) as source:
        reader = source.reader()
        with pytest.raises(SourceError, match="not a reply"):
            reader.readinto(0, memoryview(bytearray(512)))
        with pytest.raises(SourceError, match="lost before"):
            reader.readinto(0, memoryview(bytearray(512)))
        reader.close()
