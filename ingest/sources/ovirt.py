"""Disks that an oVirt engine has opened to us by an image transfer, read from the hypervisor's imageio."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress

from ovirt_imageio.client import ImageioClient

from ingest.sources.base import Extent, SourceError
from ingest.sources.imageio import Extents, Image, ImageExtent
from vmfs.format.manifest import MAX_DISK_SIZE, SECTOR


class OvirtSource:
    """With `dirty`, for a disk of an incremental backup, it tells what changed.

    Raises BitmapError when the host cannot tell what changed, SourceError for all else; what renewing the
    access raises passes through.
    """

    def __init__(self, image: Image, *, dirty: bool = False) -> None:
        self.name = name = image.name
        self.block_size = SECTOR
        self._image = image
        self._whole: Extents | None = None
        self._dirty: Extents | None = None
        first = image.persist("connection", image.client)
        try:
            self.max_readers = max(1, int(first.max_readers))
        finally:
            _close(first)
        if dirty:
            self._dirty = self._image.extents("dirty")
        known = self._dirty or self._zero_extents()
        self.size = known.size
        if not self.size or self.size % SECTOR or self.size > MAX_DISK_SIZE:
            raise SourceError(
                f"disk {name} has {self.size} bytes; a disk has a multiple of {SECTOR}, no more than "
                f"{MAX_DISK_SIZE}"
            )

    def extents(self) -> Iterator[Extent]:
        """Raises SourceError."""
        for start, length, _, zero in self._zero_extents():
            yield Extent(start, length, bool(zero))

    def dirty_extents(self) -> Iterator[Extent] | None:
        """Raises SourceError."""
        if self._dirty is None:
            return None
        changed = (extent for extent in self._dirty if extent.dirty)
        if self._dirty.zeros_told:
            return (Extent(extent.start, extent.length, bool(extent.zero)) for extent in changed)
        # Servers before 2.1 do not say which of the changed extents read as zeros.
        return crossed(changed, self._zero_extents())

    def reader(self) -> OvirtReader:
        return OvirtReader(self._image, self.size)

    def interrupt(self) -> None:
        """Whoever waits for the host gives up now, and nothing can be read any more."""
        self._image.stop()

    def close(self) -> None:
        """Readers close themselves."""

    def _zero_extents(self) -> Extents:
        if self._whole is None:
            self._whole = self._image.extents("zero")
            if self._dirty is not None and self._whole.size != self._dirty.size:
                raise SourceError(f"disk {self.name} was resized while it was read; run the backup again")
        return self._whole


class OvirtReader:
    """A connection of its own, made when it is first needed and again when it has ended."""

    def __init__(self, image: Image, size: int) -> None:
        self._image = image
        self._size = size
        self._client: ImageioClient | None = None

    def readinto(self, offset: int, buffer: memoryview) -> None:
        if offset + len(buffer) > self._size:
            raise SourceError(
                f"disk {self._image.name} ends at byte {self._size}, before {offset + len(buffer)}"
            )
        if buffer:
            self._image.persist(f"read at byte {offset}", lambda: self._read(offset, buffer))

    def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            _close(client)

    def _read(self, offset: int, buffer: memoryview) -> None:
        try:
            client = self._client = self._client or self._image.client()
            into = _Into(buffer)
            with self._image.interruptible(client):
                # Not `read`, which asks for the extents of the whole disk to know its size.
                client.write_to(into, offset, len(buffer))
            into.check()
        except BaseException:
            # Whatever it was, the next answer on that connection may not be ours; and a connection that the
            # client makes again by itself has a tenth of its time limit.
            self.close()
            raise


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


def crossed(changed: Iterable[ImageExtent], whole: Iterable[ImageExtent]) -> Iterator[Extent]:
    """The changed extents, each cut where `whole`, which covers the disk, changes between zeros and data."""
    rest = iter(whole)
    here = next(rest, None)
    for extent in changed:
        start, end = extent.start, extent.start + extent.length
        while start < end:
            while here and here.start + here.length <= start:
                here = next(rest, None)
            if here is None:
                raise SourceError(f"the server lists no extent at byte {start}")
            stop = min(end, here.start + here.length)
            yield Extent(start, stop - start, bool(here.zero))
            start = stop


def _close(client: ImageioClient) -> None:
    # It says goodbye to a server that may be gone.
    with suppress(Exception):
        client.close()
