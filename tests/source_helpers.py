"""What tests of disk sources share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import NamedTuple

from ingest.memory import Memory
from ingest.sources import DiskSource, SourceReader, open_source, parse_spec


def opened(
    location: str | os.PathLike[str], bitmap: str | None = None, fmt: str | None = None
) -> closing[DiskSource]:
    """The source that a command line's `disk=LOCATION` stands for, until the end of the `with`."""
    spec = parse_spec(f"disk={os.fspath(location)}", format=fmt)
    return closing(open_source(spec, bitmap=bitmap))


class Reading(NamedTuple):
    reader: SourceReader
    buffer: memoryview

    def read(self, offset: int) -> bytes:
        # Zeros would hide what a reader leaves out.
        self.buffer[:] = b"\xff" * len(self.buffer)
        self.reader.readinto(offset, self.buffer)
        return bytes(self.buffer)


@contextmanager
def reading(source: DiskSource, length: int) -> Iterator[Reading]:
    """A reader, and a buffer of so many bytes that it can fill."""
    with closing(Memory(length)) as memory, closing(source.reader(memory)) as reader:
        yield Reading(reader, memory.view)


def read(source: DiskSource, offset: int, length: int) -> bytes:
    with reading(source, length) as opened:
        return opened.read(offset)
