"""An open raw file of a writable view: from reads and writes of the file to the point and the overlays."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Iterator, Sequence
from functools import partial

from vmfs.fs.content import Content
from vmfs.fs.reading import OpenFile, Reader
from vmfs.fs.scratch.overlay import Overlay
from vmfs.fs.scratch.view import NO_REGIONS, Region, Regions
from vmfs.fs.workers import Workers

log = logging.getLogger(__name__)

# Seconds. Handing a write to a thread and back costs less; when writes take longer than that, the kernel
# holds them up and the event loop must not wait.
_WORTH_A_THREAD = 0.002
_SMOOTHING = 0.2


class Pace:
    """How long writes took lately."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def note(self, seconds: float) -> None:
        self.seconds += _SMOOTHING * (seconds - self.seconds)

    @property
    def fast(self) -> bool:
        return self.seconds < _WORTH_A_THREAD


class ScratchFile(OpenFile):
    """One open handle. `copies` are where its bytes lie; of several, as of a mirror, all are written and the
    first is read. A file that has none cannot be written to. Each write is made durable at once if it is
    `synchronous`."""

    def __init__(self, content: Content, copies: Sequence[Regions], *, synchronous: bool = False) -> None:
        super().__init__(content)
        self.copies = copies
        self.synchronous = synchronous
        # Written through this handle since its last flush.
        self.changed = False

    @property
    def writable(self) -> bool:
        return bool(self.copies)

    @property
    def regions(self) -> Regions:
        """What is read."""
        return self.copies[0] if self.copies else NO_REGIONS

    @property
    def untouched(self) -> bool:
        return all(region.disk.overlay is None for region in self.regions)

    def overlays(self) -> list[Overlay]:
        found = dict.fromkeys(region.disk.overlay for regions in self.copies for region in regions)
        return [overlay for overlay in found if overlay is not None]


class ScratchFiles:
    """Reads and writes open files. `threads` do what blocks."""

    def __init__(self, reader: Reader, threads: Workers) -> None:
        self._reader = reader
        self._threads = threads
        self._pace = Pace()

    async def read(self, file: ScratchFile, offset: int, length: int) -> bytes | bytearray | memoryview:
        """Raises IntegrityError, StoreError, OSError."""
        if file.untouched:
            return await self._reader.read(file, offset, length)
        parts = list(_runs(file, offset, length))
        if not any(overlay for _, _, _, overlay in parts):
            return await self._reader.read(file, offset, length)
        if len(parts) == 1:
            return await self._read_overlay(*parts[0])
        result = bytearray(parts[-1][0] + parts[-1][1] - offset)
        for part in parts:
            start, count, _, overlay = part
            # What was written is read later than what was not: it may be written meanwhile.
            if overlay is None:
                data = await self._reader.read(file, start, count)
            else:
                data = await self._read_overlay(*part)
            result[start - offset : start - offset + count] = data
        return result

    async def _read_overlay(self, _: int, count: int, at: int, overlay: Overlay | None) -> bytes:
        assert overlay is not None  # noqa: S101 - by the caller
        data = overlay.read(at, count, cached=True)
        if data is None:
            data = await self._threads.run(partial(overlay.read, at, count))
        assert data is not None  # noqa: S101 - without `cached`
        return data

    async def write(self, file: ScratchFile, offset: int, data: bytes) -> int:
        """The number of bytes written. Raises IntegrityError, StoreError, OSError; ENOSPC at the end of the
        file, as a block device does."""
        if offset >= file.content.size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        file.changed = True
        view = memoryview(data)
        for regions in file.copies:
            # What did not fit into one copy is not written to the next.
            view = view[: await self._write_copy(regions, offset, view)]
        if file.synchronous:
            await self.sync(file)
        return len(view)

    async def _write_copy(self, regions: Regions, offset: int, view: memoryview) -> int:
        done = 0
        for region, at, count, start in regions.within(offset, len(view)):
            part = view[start - offset : start - offset + count]
            try:
                written = await self._write(region, at, part)
            except OSError:
                if done:
                    break
                raise
            done += written
            if written < count:
                break
        return done

    async def _write(self, region: Region, offset: int, data: memoryview) -> int:
        overlay = region.disk.overlay
        if overlay is not None and self._pace.fast:
            began = time.perf_counter()
            written = overlay.write(offset, data, region.reader.read, at_once=True)
            if written is not None:
                self._pace.note(time.perf_counter() - began)
                return written
        return await self._threads.run(partial(self._write_blocking, region, offset, data))

    def _write_blocking(self, region: Region, offset: int, data: memoryview) -> int:
        overlay = region.disk.for_writing()
        began = time.perf_counter()
        written = overlay.write(offset, data, region.reader.read)
        self._pace.note(time.perf_counter() - began)
        return written or 0

    async def sync(self, file: ScratchFile) -> None:
        """Raises OSError."""
        file.changed = False
        for overlay in file.overlays():
            await self._threads.run(overlay.sync)


def _runs(file: ScratchFile, offset: int, length: int) -> Iterator[tuple[int, int, int, Overlay | None]]:
    """The range as (offset in the file, length, offset on the disk, the overlay it was written to if it
    was)."""
    for region, at, count, start in file.regions.within(offset, length):
        overlay = region.disk.overlay
        if overlay is None:
            yield start, count, at, None
            continue
        for first, size, written in overlay.runs(at, count):
            yield start + first - at, size, first, overlay if written else None
