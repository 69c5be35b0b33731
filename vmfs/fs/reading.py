"""The way of a read request: from what was fetched ahead, from the cache, on the spot, or by a thread."""

from __future__ import annotations

import os
import time
from functools import partial
from types import TracebackType

from vmfs.errors import IntegrityError, StoreError
from vmfs.fs.content import Content, DiskContent, PiecesContent, SpaceContent
from vmfs.fs.readahead import ReadAhead
from vmfs.fs.slots import Slots
from vmfs.fs.workers import Workers

# Handing a read to a thread and back costs about this much, seconds; what is faster is done on the spot.
_WORTH_A_THREAD = 0.0006
_SMOOTHING = 0.2


class OpenFile:
    """One open handle."""

    def __init__(self, content: Content) -> None:
        self.content = content
        self.ahead = ReadAhead(content.start + content.size) if isinstance(content, DiskContent) else None
        # Each piece is read as the part of a disk that it is.
        self.pieces = (
            [OpenFile(piece) for piece in content.pieces] if isinstance(content, PiecesContent) else []
        )


class Reader:
    """Serves reads of open files. A context manager: its threads live while it is entered."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._threads = Workers("vmfs-read", 2 * max(4, os.cpu_count() or 4))
        self._active = 0
        self._seconds = 0.0

    def __enter__(self) -> Reader:
        self._threads.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.__exit__(kind, error, trace)

    async def read(self, file: OpenFile, offset: int, length: int) -> bytes | memoryview:
        """Raises IntegrityError and StoreError. A view holds until the caller lets other tasks run."""
        content = file.content
        if isinstance(content, PiecesContent):
            try:
                return await self._read_pieces(file, content.within(offset, length))
            except IntegrityError:
                content = content.whole
        if isinstance(content, SpaceContent):
            return await self._threads.run(partial(_read_space, content, offset, length))
        if not isinstance(content, DiskContent) or file.ahead is None:
            return content.read(offset, length)
        length = min(length, content.size - offset)
        if length <= 0:
            return b""
        at = content.start + offset
        ahead = file.ahead.note(at, length)
        if ahead is not None:
            self._slots.fetch(content.disk, content.reader, *ahead)
        fetched = await self._slots.get(content.disk, at, length)
        if fetched is not None:
            return fetched
        if length <= content.reader.chunk_size and self._active == 0 and self._seconds < _WORTH_A_THREAD:
            return self._timed(content, offset, length)
        data = content.cached(offset, length)
        if data is not None:
            return data
        self._active += 1
        try:
            return await self._threads.run(partial(self._timed, content, offset, length))
        finally:
            self._active -= 1

    async def _read_pieces(self, file: OpenFile, parts: list[tuple[int, int, int]]) -> bytes | memoryview:
        if len(parts) == 1:
            number, start, count = parts[0]
            return await self.read(file.pieces[number], start, count)
        # Copies: a view would not outlast the next part.
        return b"".join(
            [bytes(await self.read(file.pieces[number], start, count)) for number, start, count in parts]
        )

    def _timed(self, content: DiskContent, offset: int, length: int) -> bytes:
        began = time.perf_counter()
        try:
            return content.read(offset, length)
        except (IntegrityError, StoreError) as error:
            raise type(error)(f"{content.disk}: {error}") from error
        finally:
            if length <= content.reader.chunk_size:
                self._seconds += _SMOOTHING * (time.perf_counter() - began - self._seconds)


def _read_space(content: SpaceContent, offset: int, length: int) -> bytes:
    try:
        return content.read(offset, length)
    except (IntegrityError, StoreError) as error:
        raise type(error)(f"{content.name}: {error}") from error
