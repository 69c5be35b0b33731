"""What tests of disk sources share."""

from __future__ import annotations

import os
from contextlib import closing

from ingest.sources import DiskSource, open_source, parse_spec


def opened(
    location: str | os.PathLike[str], bitmap: str | None = None, fmt: str | None = None
) -> closing[DiskSource]:
    """The source that a command line's `disk=LOCATION` stands for, until the end of the `with`."""
    spec = parse_spec(f"disk={os.fspath(location)}", format=fmt)
    return closing(open_source(spec, bitmap=bitmap))


def read(source: DiskSource, offset: int, length: int) -> bytes:
    # Zeros would hide what a reader leaves out.
    buffer = bytearray(b"\xff" * length)
    with closing(source.reader()) as reader:
        reader.readinto(offset, memoryview(buffer))
    return bytes(buffer)
