"""One worker process: its start, one request at a time, its end."""

from __future__ import annotations

import mmap
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from select import POLLIN, poll
from typing import NamedTuple

from vmfs.errors import IntegrityError, StoreError
from vmfs.volumes.files.worker import wire
from vmfs.volumes.files.worker.wire import Op, Reply
from vmfs.volumes.space import Space

_PROGRAM = Path(__file__).parent / "worker" / "__main__.py"
_GRACE = 0.5
"""Seconds that a worker has to end by itself."""
_REFRESH = 5.0
"""Seconds of a worker's time after which its limit of processor time is moved on."""


class Limits(NamedTuple):
    """What one worker may use. `seconds` is for one request, without the time that the volume takes to be
    read; `memory` is address space, `answer` one answer, in bytes."""

    seconds: float = 30.0
    memory: int = 768 << 20
    answer: int = 128 << 20


class WorkerDied(Exception):
    """The worker has ended, was ended for its limits, or talks nonsense. The message says which."""


class RequestFailed(Exception):
    """The worker's answer is an error. `cause` is why the volume could not be read, if that was it."""

    def __init__(self, errno: int, message: str, cause: IntegrityError | StoreError | None) -> None:
        super().__init__(message)
        self.errno = errno
        self.cause = cause


class WorkerProcess:
    """For one thread at a time. After WorkerDied, `close` is all that is left to do."""

    def __init__(self, space: Space, type_: str, limits: Limits) -> None:
        self._space = space
        self._limits = limits
        self._used = 0.0
        self._refreshed = 0.0
        self._buffer = bytearray(wire.LONGEST_MESSAGE)
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        descriptor = os.memfd_create("vmfs-worker")
        with theirs:
            try:
                os.ftruncate(descriptor, 2 * wire.PIECE)
                self._memory = mmap.mmap(descriptor, 0)
                self._process = subprocess.Popen(
                    [
                        # By its path and isolated, as no part of this program.
                        *(sys.executable, "-I", "-B", str(_PROGRAM)),
                        *(str(theirs.fileno()), str(descriptor), type_, str(space.size)),
                        *(str(limits.memory), str(int(limits.seconds) + 30)),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env={},
                    cwd="/",
                    pass_fds=(theirs.fileno(), descriptor),
                    # An interruption from the terminal is ours to deal with.
                    start_new_session=True,
                )
            except BaseException:
                self._ours.close()
                raise
            finally:
                os.close(descriptor)
        self._poll = poll()
        self._poll.register(self._ours, POLLIN)

    @property
    def pid(self) -> int:
        return self._process.pid

    def facts(self) -> list[str]:
        """To be called once, first of all: the type, label, UUID, what confines the worker, the default
        subvolume's number (or nothing), and warnings. Raises as `request`."""
        return [
            wire.one_line(part.decode("utf-8", "replace"))
            for part in wire.unpack_strings(b"".join(self._answer()))
        ]

    def request(self, op: Op, node: int, offset: int = 0, length: int = 0, name: bytes = b"") -> list[bytes]:
        """The answer's parts. Raises RequestFailed and WorkerDied."""
        self._send(wire.REQUEST.pack(op, node, offset, length) + name)
        return list(self._answer())

    def read(self, node: int, offset: int, length: int) -> bytes:
        """At most PIECE bytes of a file. Raises as `request`."""
        answer = b"".join(self.request(Op.READ, node, offset, length))
        if len(answer) != wire.LENGTH.size or (got := wire.LENGTH.unpack(answer)[0]) > length:
            raise WorkerDied("its worker gave an answer that makes no sense")
        return self._memory[wire.PIECE : wire.PIECE + got]

    def close(self) -> None:
        """Ends the worker."""
        self._ours.close()
        try:
            self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._memory.close()

    def kill(self) -> None:
        self._process.kill()
        self.close()

    def _answer(self) -> Iterator[bytes]:
        """Parts of the answer; serves the reads of the volume meanwhile."""
        left = self._limits.seconds
        room = self._limits.answer
        cause: IntegrityError | StoreError | None = None
        while True:
            started = time.monotonic()
            message = self._receive(left)
            waited = time.monotonic() - started
            left -= waited
            self._count(waited)
            kind = message[0]
            room -= len(message)
            if room < 0:
                raise WorkerDied("its worker's answer is larger than is allowed")
            if kind == Reply.WANT and len(message) == wire.WANT.size:
                cause = self._serve(message) or cause
            elif kind == Reply.MORE:
                yield message[1:]
            elif kind == Reply.DONE:
                yield message[1:]
                return
            elif kind == Reply.FAILED and len(message) >= wire.FAILED.size:
                raise RequestFailed(*wire.unpack_failed(message), cause)
            else:
                raise WorkerDied("its worker gave an answer that makes no sense")

    def _serve(self, message: bytes) -> IntegrityError | StoreError | None:
        """One read of the volume, which the worker waits for. Returns why it failed."""
        _, offset, length = wire.WANT.unpack(message)
        if length > wire.PIECE:
            raise WorkerDied("its worker asked for what makes no sense")
        op, cause = Op.BLOCK, None
        try:
            data = self._space.read(offset, length) if offset < self._space.size else b""
            self._memory[: len(data)] = data
        except (IntegrityError, StoreError) as error:
            op, cause = Op.BLOCK_FAILED, error
            data = b""
        self._send(wire.REQUEST.pack(op, 0, offset, len(data)))
        return cause

    def _send(self, message: bytes) -> None:
        try:
            self._ours.send(message)
        except OSError:
            raise WorkerDied(self._how_it_ended()) from None

    def _receive(self, seconds: float) -> bytes:
        if seconds <= 0 or not self._poll.poll(seconds * 1000):
            self._process.kill()
            raise WorkerDied(f"its worker was ended after {self._limits.seconds:g} s over one request")
        try:
            length = self._ours.recv_into(self._buffer)
        except OSError:
            length = 0
        if not length:
            raise WorkerDied(self._how_it_ended())
        return bytes(memoryview(self._buffer)[:length])

    def _count(self, waited: float) -> None:
        """Moves the limit of processor time on: it must end a worker that nobody watches any more, and no
        other."""
        self._used += waited
        if self._used - self._refreshed > _REFRESH:
            self._refreshed = self._used
            soft = int(self._used + self._limits.seconds) + 30
            with suppress(OSError, ValueError):
                resource.prlimit(self.pid, resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))

    def _how_it_ended(self) -> str:
        try:
            status = self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        return f"its worker ended by signal {-status}" if status < 0 else f"its worker ended ({status})"
