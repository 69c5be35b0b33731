"""What was written over one disk of a restore point.

Two kinds of files in a directory: `STEM.data-0000`, `STEM.data-0001`, … hold the blocks that were written,
each at its offset on the disk modulo SEGMENT, and holes elsewhere; `STEM.map` is a header and then the bitmap
of written blocks, bit n % 8 of byte n / 8 for block n, with holes for its parts that are all zeros.

A bit reaches the map only after its block is on the medium: `sync` first syncs the data, then writes the
pages of the map that were changed before it began, then syncs the map. Between two syncs nothing is written
to the map but pages of zeros where nothing was, to have room for it later. So whatever a crash leaves, a
block whose bit is set holds what was written, and others are the point's. Bits are never taken back.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from threading import Lock

from vmfs.errors import IntegrityError
from vmfs.fs.scratch import header
from vmfs.fs.scratch.bitmap import KEPT, PAGE, Bitmap, Run
from vmfs.fs.scratch.io import Buffer, Io

BLOCK = 4096
SEGMENT = 1 << 40
"""Bytes of a data file: ext4 has no files of more than 16 TiB."""
MAP_MAGIC = b"VMFSOVER"
MAP_ENDING = ".map"
NEW_ENDING = ".map-new"
_MAP_NAME = re.compile(r"([0-9A-Z]{26}-[0-9]+)" + re.escape(MAP_ENDING))
_CREATE = os.O_RDWR | os.O_CREAT
# More changed pages of the map than this are written before the next write, to bound memory.
_MANY_DIRTY = KEPT // 2
_ZEROS = bytes(64 << 10)
# Seconds.
_GRACE = 1.0

Original = Callable[[int, int], bytes]
"""Bytes [offset, offset + length) of the disk as the point has it. Raises IntegrityError and StoreError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The disk that an overlay is for. `root` is what the point's manifest says of its content, hex; `size`
    is bytes."""

    repository: str
    point: str
    disk: str
    root: str
    size: int


class Overlay:
    """Thread-safe. Offsets and lengths are bytes of the disk; all methods may raise OSError."""

    def __init__(self, io: Io, directory: int, stem: str, identity: Identity, map_file: int) -> None:
        """Use `create` and `reopen`."""
        self.identity = identity
        self.size = identity.size
        self.mtime_ns = time.time_ns()
        self._io = io
        self._directory = directory
        self._stem = stem
        self._map_file = map_file
        self._data: dict[int, int] = {}
        self._bitmap = Bitmap(-(-self.size // BLOCK), self._load_page)
        self._written = 0
        # One writer at a time, so that what two write into one block is both in it.
        self._writing = Lock()
        self._syncing = Lock()
        # Over all that follows, the bitmap, and the table of data files; never held while waiting for a
        # medium, but for a page of the map.
        self._state = Lock()
        # Data files, the directory, and the map, as far as they must be synced.
        self._unsynced: set[int] = set()
        self._new_names = False
        self._map_unsynced = False
        self._in_flight: dict[int, bytes] = {}
        self._failed = False
        self._closed = False

    @classmethod
    def create(cls, io: Io, directory: int, stem: str, identity: Identity) -> Overlay:
        """A new one in the directory of that descriptor. It has a name there only when its header is
        durable."""
        name = stem + NEW_ENDING
        map_file = io.open(directory, name, _CREATE | os.O_TRUNC)
        try:
            _write_all(io, map_file, header.encode(MAP_MAGIC, asdict(identity)), 0)
            io.sync(map_file)
            io.rename(directory, name, stem + MAP_ENDING)
            io.sync_directory(directory)
        except BaseException:
            os.close(map_file)
            raise
        return cls(io, directory, stem, identity, map_file)

    @classmethod
    def reopen(cls, io: Io, directory: int, stem: str) -> Overlay:
        """Raises IntegrityError and VersionError as well."""
        name = stem + MAP_ENDING
        map_file = io.open(directory, name, os.O_RDWR)
        try:
            fields = header.decode(MAP_MAGIC, os.pread(map_file, header.SIZE, 0), name)
            try:
                identity = Identity(**fields)  # type: ignore[arg-type]
            except TypeError:
                raise IntegrityError(f"{name} is damaged") from None
            overlay = cls(io, directory, stem, identity, map_file)
            overlay._find_data()
            overlay._find_pages()
            # A mount that was killed may have left in the kernel's memory only what we are going to show.
            overlay._unsynced.update(overlay._data)
            overlay._new_names = overlay._map_unsynced = True
        except BaseException:
            os.close(map_file)
            raise
        return overlay

    @property
    def written(self) -> int:
        """Bytes of the blocks that were written."""
        return self._written * BLOCK

    @property
    def crowded(self) -> bool:
        """Whether the next write is going to sync first."""
        return self._bitmap.dirty > _MANY_DIRTY

    def runs(self, offset: int, length: int) -> list[tuple[int, int, bool]]:
        """The range as (offset, length, whether it was written), in order and without gaps."""
        end = min(offset + length, self.size)
        if offset >= end:
            return []
        with self._state:
            found = self._bitmap.runs(offset // BLOCK, -(-end // BLOCK))
            self._bitmap.shrink(self._in_flight)
        return [_clipped(run, offset, end) for run in found]

    def read(self, offset: int, length: int, *, cached: bool = False) -> bytes | None:
        """Bytes of a range that was written. With `cached`, None unless they can be had without waiting."""
        result = bytearray(length)
        view = memoryview(result)
        for segment, start, stop, at in _segments(offset, length):
            part = view[at : at + stop - start]
            with self._state:
                descriptor = self._data.get(segment)
            if descriptor is None:
                # Written as zeros only.
                continue
            if cached:
                try:
                    count = os.preadv(descriptor, [part], start, os.RWF_NOWAIT)
                except OSError as error:
                    if error.errno in (errno.EAGAIN, errno.EOPNOTSUPP):
                        return None
                    raise
                if count < len(part) and start + count < os.fstat(descriptor).st_size:
                    return None
                continue
            while part and (count := os.preadv(descriptor, [part], start)):
                part = part[count:]
                start += count
        return bytes(result)

    def write(self, offset: int, data: Buffer, original: Original, *, at_once: bool = False) -> int | None:
        """Write, and return how much of it was written: less than all of it where room ends in the middle.
        What the first and the last block hold beside comes from `original`. With `at_once`, None when that
        would mean to wait for it, for another writer, or for a sync. Raises what `original` does."""
        if not 0 <= offset <= offset + len(data) <= self.size:
            raise ValueError(f"[{offset}, {offset + len(data)}) is not within {self.size} bytes")
        if not len(data):
            return 0
        if not self._writing.acquire(blocking=not at_once):
            return None
        try:
            if self._closed:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            if self.crowded:
                if at_once:
                    return None
                self.sync()
            return self._write(offset, data, original, at_once)
        finally:
            self._writing.release()

    def _write(self, offset: int, data: Buffer, original: Original, at_once: bool) -> int | None:
        end = offset + len(data)
        first, last = offset // BLOCK, -(-end // BLOCK)
        before, after = first * BLOCK, min(last * BLOCK, self.size)
        with self._state:
            head = before < offset and not self._bitmap.runs(first, first + 1)[0].written
            tail = end < after and not self._bitmap.runs(last - 1, last)[0].written
            missing = self._bitmap.missing(first, last)
        if at_once and (head or tail):
            return None
        for page in missing:
            _write_all(self._io, self._map_file, bytes(PAGE), header.SIZE + page * PAGE)
            with self._state:
                self._bitmap.add(page)
        start = before if head else offset
        stop = after if tail else end
        parts: list[Buffer] = [data]
        if head:
            parts.insert(0, original(before, offset - before))
        if tail:
            parts.append(original(end, after - end))
        if all(is_zeros(part) for part in parts):
            done = self._write_zeros(start, stop - start)
        else:
            done = self._write_data(start, parts)
        if done < stop - start:
            # Of a block that was not there before only the whole counts.
            reached = (start + done) // BLOCK * BLOCK
            if reached <= offset:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            end, last = reached, reached // BLOCK
        with self._state:
            self._written += self._bitmap.set(first, last)
            self._unsynced.update(range(start // SEGMENT, -(-end // SEGMENT)))
            self._bitmap.shrink(self._in_flight)
            self.mtime_ns = time.time_ns()
        return end - offset

    def sync(self) -> None:
        """Make what was written before this call durable. Where the data could not be synced nobody knows
        what of it is there: this and all later calls raise."""
        with self._syncing:
            if self._failed:
                raise OSError(errno.EIO, "an earlier sync failed")
            with self._state:
                pages = self._in_flight = self._bitmap.take_dirty()
                segments = sorted(self._unsynced)
                self._unsynced.clear()
                new_names, self._new_names = self._new_names, False
                descriptors = [self._data[number] for number in segments if number in self._data]
            try:
                try:
                    for descriptor in descriptors:
                        self._io.sync(descriptor)
                    if new_names:
                        self._io.sync_directory(self._directory)
                except OSError:
                    self._failed = True
                    raise
                for number, page in pages.items():
                    _write_all(self._io, self._map_file, page, header.SIZE + number * PAGE)
                if pages or self._map_unsynced:
                    self._map_unsynced = True
                    self._io.sync(self._map_file)
                    self._map_unsynced = False
            except OSError:
                with self._state:
                    self._bitmap.put_back(pages)
                raise
            finally:
                with self._state:
                    self._in_flight = {}

    def close(self) -> None:
        """Syncs nothing. No read may be under way. A writer that waits for the point keeps the files open, to
        the end of the process."""
        if not self._writing.acquire(timeout=_GRACE):
            return
        try:
            self._closed = True
            with self._syncing:
                for descriptor in (self._map_file, *self._data.values()):
                    os.close(descriptor)
                self._data.clear()
        finally:
            self._writing.release()

    def _write_data(self, offset: int, buffers: list[Buffer]) -> int:
        """How much of it was written; less than all only where room ended, and something was."""
        whole = b"".join(buffers) if len(buffers) > 1 else buffers[0]
        view = memoryview(whole)
        done = 0
        for segment, start, stop, at in _segments(offset, len(view)):
            while start < stop:
                try:
                    count = self._io.write(self._data_file(segment), [view[at : at + stop - start]], start)
                except OSError as error:
                    if error.errno in (errno.ENOSPC, errno.EDQUOT) and done:
                        return done
                    raise
                start += count
                at += count
                done += count
        return done

    def _write_zeros(self, offset: int, length: int) -> int:
        for segment, start, stop, _ in _segments(offset, length):
            with self._state:
                known = segment in self._data
            if known and not self._io.punch(self._data[segment], start, stop - start):
                for at in range(start, stop, len(_ZEROS)):
                    self._write_data(segment * SEGMENT + at, [_ZEROS[: min(len(_ZEROS), stop - at)]])
        return length

    def _data_file(self, segment: int) -> int:
        with self._state:
            descriptor = self._data.get(segment)
        if descriptor is None:
            # Only a writer comes here, and there is one.
            name = f"{self._stem}.data-{segment:04d}"
            descriptor = self._io.open(self._directory, name, _CREATE)
            with self._state:
                self._data[segment] = descriptor
                self._new_names = True
        return descriptor

    def _find_data(self) -> None:
        newest = 0
        for segment in range(-(-self.size // SEGMENT)):
            try:
                descriptor = self._io.open(self._directory, f"{self._stem}.data-{segment:04d}", os.O_RDWR)
            except FileNotFoundError:
                continue
            self._data[segment] = descriptor
            newest = max(newest, os.fstat(descriptor).st_mtime_ns)
        self.mtime_ns = newest or os.fstat(self._map_file).st_mtime_ns

    def _find_pages(self) -> None:
        """Go through what is not a hole in the map."""
        pages = -(-self._bitmap.blocks // (PAGE * 8))
        at, end = header.SIZE, min(os.fstat(self._map_file).st_size, header.SIZE + pages * PAGE)
        while at < end:
            try:
                at = os.lseek(self._map_file, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return
                raise
            stop = min(os.lseek(self._map_file, at, os.SEEK_HOLE), end)
            for number in range((at - header.SIZE) // PAGE, -(-(stop - header.SIZE) // PAGE)):
                self._bitmap.add(number)
                self._written += int.from_bytes(self._load_page(number), "little").bit_count()
            at = stop

    def _load_page(self, number: int) -> bytes:
        """With the state locked. A page that is being stored is not dropped, so this is never it."""
        data = os.pread(self._map_file, PAGE, header.SIZE + number * PAGE)
        return data.ljust(PAGE, b"\0")


def is_zeros(data: Buffer) -> bool:
    size = len(data)
    # Most data is seen not to be by one of these.
    if data[0] or data[-1] or data[size // 2]:
        return False
    return bytes(data) == bytes(size)


def overlay_stems(names: Iterable[str]) -> list[str]:
    """Of the overlays that a directory with files of those names has: the id of a point and the number of a
    disk."""
    found = (_MAP_NAME.fullmatch(name) for name in names)
    return sorted(match[1] for match in found if match)


def _write_all(io: Io, descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = io.write(descriptor, [view], offset)
        view = view[count:]
        offset += count


def _segments(offset: int, length: int) -> Iterable[tuple[int, int, int, int]]:
    """The range as (segment, start in it, end in it, where in the range that is)."""
    at = 0
    while at < length:
        segment, start = divmod(offset + at, SEGMENT)
        stop = min(SEGMENT, start + length - at)
        yield segment, start, stop, at
        at += stop - start


def _clipped(run: Run, offset: int, end: int) -> tuple[int, int, bool]:
    start = max(run.first * BLOCK, offset)
    return start, min(run.end * BLOCK, end) - start, run.written
