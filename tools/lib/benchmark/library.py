"""The plain imageio client library on one image transfer, for `benchmark.engine`: a program of its own, which
prints as JSON what it did: {"seconds": …, "bytes": …}, without the start of the interpreter.

    python -m benchmark.library ACTION URL CA_FILE FILE

ACTION is `download` or `upload`: what ovirt-img does, to a raw file, or from it to a new disk, with the
library's own defaults (four connections, buffers of 4 MiB). Or `read` or `write`, the floors: four clients
that read all data and drop it, or write as much as FILE has, to where it has it, from memory.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty, SimpleQueue

from lab.sparse import data_ranges
from ovirt_imageio.client import ImageioClient, download, upload

MIB = 1 << 20
CONNECTIONS = 4
PIECE = 8 * MIB
"""Bytes of one request of the floors."""

Piece = tuple[int, int]
"""Offset and length, bytes."""


def main(action: str, url: str, ca_file: str, file: Path) -> None:
    actions: dict[str, Callable[[str, str, Path], tuple[float, int]]] = {
        "download": _download,
        "upload": _upload,
        "read": _read,
        "write": _write,
    }
    seconds, moved = actions[action](url, ca_file, file)
    json.dump({"seconds": seconds, "bytes": moved}, sys.stdout)


def _download(url: str, ca_file: str, file: Path) -> tuple[float, int]:
    begin = time.monotonic()
    download(url, str(file), ca_file, fmt="raw", max_workers=CONNECTIONS)
    return time.monotonic() - begin, _allocated(file)


def _upload(url: str, ca_file: str, file: Path) -> tuple[float, int]:
    begin = time.monotonic()
    upload(str(file), url, ca_file, max_workers=CONNECTIONS, disk_is_zero=True)
    return time.monotonic() - begin, _allocated(file)


def _read(url: str, ca_file: str, _: Path) -> tuple[float, int]:
    begin = time.monotonic()
    with ImageioClient(url, ca_file) as client:
        ranges = [(extent.start, extent.length) for extent in client.extents() if extent.data]
    pieces = list(_pieces(ranges))
    sink = _Sink()
    _each(url, ca_file, pieces, lambda client, piece: client.write_to(sink, *piece))
    return time.monotonic() - begin, sum(length for _, length in pieces)


def _write(url: str, ca_file: str, file: Path) -> tuple[float, int]:
    with file.open("rb") as content:
        ranges = list(data_ranges(content.fileno(), file.stat().st_size))
    pieces = list(_pieces(ranges))
    memory = os.urandom(PIECE)
    begin = time.monotonic()
    _each(url, ca_file, pieces, lambda client, piece: client.read_from(_Memory(memory), *piece))
    return time.monotonic() - begin, sum(length for _, length in pieces)


def _pieces(ranges: list[Piece]) -> Iterator[Piece]:
    for start, length in ranges:
        for at in range(start, start + length, PIECE):
            yield at, min(PIECE, start + length - at)


def _each(url: str, ca_file: str, pieces: list[Piece], use: Callable[[ImageioClient, Piece], object]) -> None:
    """Each piece with one of the clients; what was written is flushed. Raises the first error."""
    todo: SimpleQueue[Piece] = SimpleQueue()
    for piece in pieces:
        todo.put(piece)
    errors: list[BaseException] = []

    def work() -> None:
        try:
            with ImageioClient(url, ca_file) as client:
                while not errors:
                    try:
                        piece = todo.get_nowait()
                    except Empty:
                        break
                    use(client, piece)
                client.flush()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


class _Sink:
    """Takes all, keeps nothing."""

    def write(self, data: memoryview) -> None:
        """What `ImageioClient.write_to` calls."""


class _Memory:
    """Gives the same bytes again and again."""

    def __init__(self, content: bytes) -> None:
        self._content = memoryview(content)
        self._at = 0

    def readinto(self, buffer: memoryview) -> int:
        part = self._content[self._at : self._at + len(buffer)]
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)


def _allocated(file: Path) -> int:
    with file.open("rb") as content:
        return sum(length for _, length in data_ranges(content.fileno(), file.stat().st_size))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4]))
