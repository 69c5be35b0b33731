# SPDX-License-Identifier: MIT
"""What a worker does from its start to its end."""

from __future__ import annotations

import codecs
import mmap
import os
import socket
from collections.abc import Sequence
from contextlib import suppress

from . import readers, sandbox
from .device import RemoteDevice
from .model import ReaderError
from .serve import answer, facts, failure, serve

_ENCODINGS = ("utf-16-le", "utf-16-be", "cp437", "latin-1", "ascii")
"""Of names. Python imports each when it is first used, when nothing can be imported any more."""


def main(arguments: Sequence[str]) -> None:
    """See `__main__`."""
    socket_number, memory_number, type_, size, memory_limit, cpu_limit = arguments
    connection = socket.socket(fileno=int(socket_number))
    memory = mmap.mmap(int(memory_number), 0)
    os.close(int(memory_number))
    try:
        open_reader = readers.load(type_)
    except ReaderError as error:
        connection.send(failure(error))
        return
    prepare()
    confinement = sandbox.confine(
        keep=connection.fileno(), memory=int(memory_limit), cpu_seconds=int(cpu_limit)
    )
    # The client may have gone while an answer is on its way.
    with suppress(BrokenPipeError, ConnectionResetError):
        try:
            reader = open_reader(RemoteDevice(connection, memory, int(size)))
            parts = facts(reader, confinement)
        except Exception as error:
            connection.send(failure(error))
            return
        answer(connection, parts)
        serve(connection, memory, reader)


def prepare() -> None:
    """Has Python import what it would import later."""
    for encoding in _ENCODINGS:
        codecs.lookup(encoding)
