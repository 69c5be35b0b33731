"""The guest: its writes go through qemu, and beside into a file that qemu knows nothing of."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lab import sparse
from lab.errors import MachineError
from lab.nbd import NbdDisk

SETTLE_PART = 4 << 20


class Gate:
    """Lets guest writes pass, many at once, but none while it is closed. Who closes it comes before those who
    wait to pass: a writer that never stops would else keep it open for ever."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._passing = 0
        self._closing = 0
        self._owner: int | None = None
        self._depth = 0

    @contextmanager
    def passing(self) -> Iterator[None]:
        """For one write. The thread that closed the gate passes."""
        me = threading.get_ident()
        with self._changed:
            self._changed.wait_for(lambda: self._owner == me or (self._owner is None and not self._closing))
            self._passing += 1
        try:
            yield
        finally:
            with self._changed:
                self._passing -= 1
                self._changed.notify_all()

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Nothing passes inside it. May be nested in one thread."""
        me = threading.get_ident()
        with self._changed:
            if self._owner != me:
                self._closing += 1
                self._changed.wait_for(lambda: self._owner is None and not self._passing)
                self._closing -= 1
                self._owner = me
            self._depth += 1
        try:
            yield
        finally:
            with self._changed:
                self._depth -= 1
                if not self._depth:
                    self._owner = None
                    self._changed.notify_all()


class GuestDisk:
    """One disk as the guest has it, and its shadow: a sparse raw file with the same content, kept by us.

    Of a write that failed nobody knows how much of it came to the disk; so the shadow takes that range from
    the disk as soon as the disk can be read again. Of a discard, too: what is read after it, qemu decides.
    """

    def __init__(self, gate: Gate, shadow: Path) -> None:
        """`shadow` has the disk's content and size."""
        self.shadow = shadow
        self._gate = gate
        self._lock = threading.Lock()
        self._nbd: NbdDisk | None = None
        self._torn: list[tuple[int, int]] = []

    @property
    def size(self) -> int:
        """Bytes."""
        return self.shadow.stat().st_size

    def connect(self, path: Path, export: str) -> None:
        """To the disk's writable export. Raises MachineError."""
        nbd = NbdDisk(path, export)
        with self._lock:
            if self._nbd is not None:
                self._nbd.close()
            self._nbd = nbd
            self._settle(nbd)

    def disconnect(self) -> None:
        with self._lock:
            if self._nbd is not None:
                self._nbd.close()
                self._nbd = None

    def resize(self, size: int) -> None:
        """The shadow alone. `size` in bytes."""
        os.truncate(self.shadow, size)

    def write(self, offset: int, data: bytes) -> None:
        with self._change(offset, len(data)) as (nbd, fd):
            nbd.write(offset, data)
            view = memoryview(data)
            done = 0
            while done < len(data):
                done += os.pwrite(fd, view[done:], offset + done)

    def zero(self, offset: int, length: int) -> None:
        with self._change(offset, length) as (nbd, fd):
            nbd.zero(offset, length)
            sparse.punch(fd, offset, length)

    def discard(self, offset: int, length: int) -> None:
        with self._change(offset, length) as (nbd, _):
            nbd.discard(offset, length)
            self._torn.append((offset, length))
            self._settle(nbd)

    def read(self, offset: int, length: int) -> bytes:
        with self._lock:
            return self._connected().read(offset, length)

    def record(self, target: Path) -> None:
        with self._lock:
            sparse.copy(self.shadow, target)

    def replace_shadow(self, fill: Callable[[Path], None]) -> None:
        """The disk's content changed by other means than the guest's: `fill` writes it to the shadow."""
        with self._lock:
            self._torn.clear()
            fill(self.shadow)

    def _connected(self) -> NbdDisk:
        if self._nbd is None:
            raise MachineError("the machine is down: a guest that does not run cannot read or write")
        return self._nbd

    @contextmanager
    def _change(self, offset: int, length: int) -> Iterator[tuple[NbdDisk, int]]:
        """For one write of the range: the disk, and the shadow's descriptor."""
        with self._gate.passing(), self._lock:
            nbd = self._connected()
            if offset < 0 or length < 0 or offset + length > nbd.size:
                raise MachineError(f"{length} bytes at {offset}: outside the disk of {nbd.size} bytes")
            fd = os.open(self.shadow, os.O_RDWR)
            try:
                yield nbd, fd
            except MachineError:
                self._torn.append((offset, length))
                if not nbd.lost:
                    self._settle(nbd)
                raise
            finally:
                os.close(fd)

    def _settle(self, nbd: NbdDisk) -> None:
        """Takes the torn ranges from the disk."""
        if not self._torn:
            return
        fd = os.open(self.shadow, os.O_RDWR)
        try:
            while self._torn:
                offset, length = self._torn[-1]
                for start in range(offset, offset + length, SETTLE_PART):
                    data = nbd.read(start, min(SETTLE_PART, offset + length - start))
                    if data.count(0) == len(data):
                        sparse.punch(fd, start, len(data))
                    else:
                        os.pwrite(fd, data, start)
                self._torn.pop()
        finally:
            os.close(fd)
