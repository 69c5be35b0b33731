"""Processes that read, decrypt and decompress chunks ahead of sequential readers.

Threads do not serve here: a chunk takes a dozen short steps that need the interpreter's lock, so two threads
get little more done than one, and take the lock from the thread that answers the kernel. A helper is a fork
of the mount's process, from before it has threads or talks to FUSE. It takes a list of chunk ids from a
socket, puts their plaintext into a slot of memory shared with the mount, and says so. When the mount's
process ends, however it does, the helpers see the end of the socket and end too.
"""

from __future__ import annotations

import gc
import logging
import mmap
import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import NoReturn

import trio

from vmfs.errors import IntegrityError, StoreError

log = logging.getLogger(__name__)

LoadChunk = Callable[[bytes, memoryview], None]
"""Puts the plaintext of a chunk, by id, into the memory. Raises IntegrityError and StoreError."""

ID_SIZE = 32
_NULL = bytes(ID_SIZE)
_REQUEST = struct.Struct("<I")
_REPLY = struct.Struct("<IB")
_MAX_MESSAGE = 64 << 10
_MAX_HELPERS = 4
_FILES = 1 << 16
_REFRESH_INTERVAL = 2.0
# Seconds that helpers have for ending by themselves.
_GRACE = 2.0


class Helpers:
    """A pool of helper processes over `slots` pieces of shared memory, `slot_size` bytes each. A context
    manager; entering it forks, so the process must not have threads yet."""

    def __init__(
        self, load: LoadChunk, refresh: Callable[[], None], *, chunk_size: int, slot_size: int, slots: int
    ) -> None:
        self.slot_size = slot_size
        self.slots = slots
        self._load = _refreshing(load, refresh)
        self._chunk_size = chunk_size
        self._zeros = bytes(chunk_size)
        self._memory = mmap.mmap(-1, slots * slot_size)
        self._view = memoryview(self._memory)
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._children: list[int] = []

    def __enter__(self) -> Helpers:
        # Keeps the collector from writing to, and so copying, the pages that are shared with the children. It
        # stays so: none of what is there by now will be garbage while the mount lasts.
        gc.freeze()
        # One processor is left to the event loop, which cannot answer faster than one does, and one to who
        # reads: a helper more than that takes a quarter from both on four processors.
        processors = len(os.sched_getaffinity(0))
        for _ in range(min(_MAX_HELPERS, max(1, processors - 2))):
            child = os.fork()
            if child == 0:
                self._be_helper()
            self._children.append(child)
        self._theirs.close()
        self._ours.setblocking(False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ours.close()
        deadline = time.monotonic() + _GRACE
        for child in self._children:
            while os.waitpid(child, os.WNOHANG)[0] == 0:
                if time.monotonic() > deadline:
                    # It hangs in a read; not even this ends it before the store answers.
                    os.kill(child, signal.SIGKILL)
                    break
                time.sleep(0.002)
        self._children.clear()

    def request(self, slot: int, ids: Sequence[bytes | None]) -> bool:
        """Have the chunks of those ids put into the slot, one after the other; None means zeros. False when
        that is not possible now."""
        try:
            self._ours.send(_REQUEST.pack(slot) + b"".join(blob_id or _NULL for blob_id in ids))
        except OSError:
            return False
        return True

    def view(self, slot: int, start: int, stop: int) -> memoryview:
        """Bytes [start, stop) of the slot. Right until the slot is used for something else."""
        base = slot * self.slot_size
        return self._view[base + start : base + stop]

    def replies(self) -> Iterator[tuple[int, bool]]:
        """The slots that are done by now: (slot, whether it was filled). Raises EOFError when no helper is
        left."""
        while True:
            try:
                message = self._ours.recv(_REPLY.size)
            except BlockingIOError:
                return
            if not message:
                raise EOFError
            slot, failed = _REPLY.unpack(message)
            yield slot, not failed

    async def wait_for_replies(self) -> None:
        """Wait until there are replies, or no helper is left."""
        await trio.lowlevel.wait_readable(self._ours)

    async def wait_for_death(self) -> None:
        """Wait until any helper ends, which none should."""
        async with trio.open_nursery() as nursery:

            async def watch(child: int) -> None:
                try:
                    descriptor = os.pidfd_open(child)
                except OSError:
                    # Kernels before 5.3. The death of all of them is seen at the socket.
                    await trio.sleep_forever()
                try:
                    await trio.lowlevel.wait_readable(descriptor)
                finally:
                    os.close(descriptor)
                nursery.cancel_scope.cancel()

            for child in self._children:
                nursery.start_soon(watch, child)

    def _be_helper(self) -> NoReturn:
        try:
            # A signal to the whole group is the mount's business; we end when it does.
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            self._ours.close()
            # It fetches ahead: whoever waits for the processor goes before it. See sched(7).
            with suppress(OSError):
                os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
            null = os.open(os.devnull, os.O_RDWR)
            for descriptor in (0, 1, 2):
                os.dup2(null, descriptor)
            os.chdir("/")
            while message := self._theirs.recv(_MAX_MESSAGE):
                (slot,) = _REQUEST.unpack_from(message)
                filled = self._fill(slot, _ids(message))
                self._theirs.send(_REPLY.pack(slot, not filled))
        except BrokenPipeError:
            pass
        except Exception:
            log.exception("a helper process ends")
        finally:
            os._exit(0)

    def _fill(self, slot: int, ids: Iterable[bytes]) -> bool:
        at = slot * self.slot_size
        try:
            for blob_id in ids:
                out = self._view[at : at + self._chunk_size]
                if blob_id == _NULL:
                    out[:] = self._zeros
                else:
                    self._load(blob_id, out)
                at += self._chunk_size
        except (IntegrityError, StoreError):
            # The mount reads the range again by itself, and says what is wrong with it.
            return False
        return True


def _ids(message: bytes) -> list[bytes]:
    return [message[at : at + ID_SIZE] for at in range(_REQUEST.size, len(message), ID_SIZE)]


def _refreshing(load: LoadChunk, refresh: Callable[[], None]) -> LoadChunk:
    """A chunk that is not found may have been written since the fork."""
    last = time.monotonic()

    def load_or_refresh(blob_id: bytes, out: memoryview) -> None:
        nonlocal last
        try:
            load(blob_id, out)
        except IntegrityError:
            if time.monotonic() - last < _REFRESH_INTERVAL:
                raise
            last = time.monotonic()
            refresh()
            load(blob_id, out)

    return load_or_refresh
