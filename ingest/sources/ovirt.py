"""Disks that an oVirt engine has opened to us by an image transfer, read from the hypervisor's imageio."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ingest.memory import Memory
from ingest.sources.base import Extent, SourceError
from ingest.sources.fetcher import Fetcher
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
        self.max_readers = image.max_readers()
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

    def reader(self, memory: Memory) -> OvirtReader:
        return OvirtReader(self._image, self.size, memory)

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

    def __init__(self, image: Image, size: int, memory: Memory) -> None:
        self._image = image
        self._size = size
        self._memory = memory
        self._fetcher: Fetcher | None = None
        self._connected = False

    def readinto(self, offset: int, buffer: memoryview) -> None:
        if offset + len(buffer) > self._size:
            raise SourceError(
                f"disk {self._image.name} ends at byte {self._size}, before {offset + len(buffer)}"
            )
        if buffer:
            self._image.persist(f"read at byte {offset}", lambda: self._read(offset, buffer))

    def close(self) -> None:
        fetcher, self._fetcher = self._fetcher, None
        if fetcher is not None:
            fetcher.close()

    def _read(self, offset: int, buffer: memoryview) -> None:
        try:
            if self._fetcher is None:
                self._fetcher = Fetcher(self._memory)
                self._connected = False
            fetcher = self._fetcher
            if not self._connected:
                self._image.connect(fetcher)
                self._connected = True
            with self._image.interruptible(fetcher.abort):
                fetcher.fetch(offset, buffer)
        except ConnectionAbortedError:
            self.close()
            raise
        except BaseException:
            # Whatever it was, the next answer on that connection may not be ours; and a connection that the
            # client makes again by itself has a tenth of its time limit.
            self._connected = False
            raise


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
