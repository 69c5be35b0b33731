"""The process behind `ingest.sources.fetcher`: reads where it is told to, until its socket is closed.

    fetching.py SOCKET MEMORY        descriptors

It is started as a file, and imports nothing of vmfs: its start is part of every backup.
"""

from __future__ import annotations

import mmap
import sys
from contextlib import suppress
from http.client import HTTPException
from multiprocessing.connection import Connection

from ovirt_imageio.client import ImageioClient

BUFFER = 256 << 10
"""Of a client, bytes: small enough to stay in the processor's cache until it is copied to its place."""


def main(orders: Connection, memory: memoryview) -> None:
    """Orders are ("connect", url, ca_file, secure), and ("fetch", offset, position, length) for `length`
    bytes from byte `offset` of the image to byte `position` of the memory. The answer is None, or the error.
    """
    client: ImageioClient | None = None
    while True:
        try:
            order = orders.recv()
        except EOFError:
            break
        answer: Exception | None = None
        try:
            match order:
                case "connect", url, ca_file, secure:
                    if client is not None:
                        _close(client)
                        client = None
                    client = ImageioClient(url, cafile=ca_file, secure=secure, buffer_size=BUFFER)
                case "fetch", offset, position, length if client is not None:
                    into = _Into(memory[position : position + length])
                    # Not `read`, which asks for the extents of the whole disk to know its size.
                    client.write_to(into, offset, length)
                    into.check()
                case _:
                    raise ValueError(f"an order that makes no sense: {order}")
        except Exception as error:
            answer = error
        try:
            orders.send(answer)
        except BrokenPipeError:
            break
    if client is not None:
        _close(client)


class _Into:
    """A writer that fills a buffer."""

    def __init__(self, buffer: memoryview) -> None:
        self._buffer = buffer
        self._done = 0

    def write(self, data: memoryview) -> None:
        end = self._done + len(data)
        self._buffer[self._done : end] = data
        self._done = end

    def check(self) -> None:
        if self._done != len(self._buffer):
            raise ConnectionError(f"{self._done} bytes came of {len(self._buffer)}")


def _close(client: ImageioClient) -> None:
    # It says goodbye to a server that may be gone.
    with suppress(OSError, HTTPException):
        client.close()


if __name__ == "__main__":
    main(Connection(int(sys.argv[1])), memoryview(mmap.mmap(int(sys.argv[2]), 0)))
