"""An imageio connection in a process of its own, which puts what it reads into shared memory.

A thread would lose the interpreter's lock for each TLS record of 16 KiB, to threads that hash and compress,
and wait to get it back.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from multiprocessing import Pipe
from pathlib import Path

from ingest.memory import Memory
from ingest.sources import fetching

_GRACE = 1.0
"""Seconds that the process has to take leave of the server."""


class Fetcher:
    """For one thread at a time. Raises from each call what the imageio client has raised in the process, and
    ConnectionAbortedError when the process has ended."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._orders, theirs = Pipe()
        with theirs:
            numbers = (theirs.fileno(), memory.descriptor)
            self._process = subprocess.Popen(
                # By its path and without that in the search path: what the packages import takes long.
                [sys.executable, "-P", str(Path(fetching.__file__)), *map(str, numbers)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=numbers,
                # An interruption from the terminal is ours to deal with.
                start_new_session=True,
            )

    def connect(self, url: str, *, ca_file: str | None, secure: bool) -> None:
        self._order("connect", url, ca_file, secure)

    def fetch(self, offset: int, buffer: memoryview) -> None:
        """Fill the buffer, a part of the memory, from byte `offset` of the image."""
        self._order("fetch", offset, self._memory.position(buffer), len(buffer))

    def abort(self) -> None:
        """From any thread: whoever waits for it gets ConnectionAbortedError."""
        self._process.kill()

    def close(self) -> None:
        self._orders.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE)
            return
        # It waits for a server.
        self._process.kill()
        self._process.wait()

    def _order(self, *order: object) -> None:
        try:
            self._orders.send(order)
            answer = self._orders.recv()
        except (EOFError, ConnectionError):
            raise ConnectionAbortedError("the process that reads has ended") from None
        if answer is not None:
            raise answer
