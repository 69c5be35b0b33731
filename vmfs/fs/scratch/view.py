"""One writable view of a repository: an overlay for each disk that is written to."""

from __future__ import annotations

import logging
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import NamedTuple

from vmfs.errors import IntegrityError, ObjectMissingError, VmfsError
from vmfs.format.manifest import Manifest
from vmfs.fs.content import Content, DiskContent, DiskReader, PiecesContent
from vmfs.fs.entries import Entry, Role
from vmfs.fs.layouts import disk_name
from vmfs.fs.points import PointSource
from vmfs.fs.scratch import directory
from vmfs.fs.scratch.io import Io
from vmfs.fs.scratch.overlay import Identity, Overlay, overlay_stems

log = logging.getLogger(__name__)


class ScratchDisk:
    """A disk of a point, and what was written over it: nothing until `overlay` is there."""

    def __init__(self, view: View, stem: str, identity: Identity) -> None:
        self.overlay: Overlay | None = None
        self._view = view
        self._stem = stem
        self._identity = identity
        self._lock = Lock()

    def for_writing(self) -> Overlay:
        """The overlay, made now if need be. May block; raises OSError."""
        with self._lock:
            if self.overlay is None:
                self.overlay = Overlay.create(
                    self._view.io, self._view.place.descriptor, self._stem, self._identity
                )
            return self.overlay


@dataclass(frozen=True, slots=True)
class Region:
    """Bytes [start, start + size) of a disk, which are the next `size` bytes of a file. `reader` reads the
    disk as the point has it."""

    disk: ScratchDisk
    reader: DiskReader
    start: int
    size: int


class Regions:
    """Those of a whole file, in order."""

    def __init__(self, regions: Iterable[Region]) -> None:
        self._regions = tuple(regions)
        self._ends = list(accumulate(region.size for region in self._regions))

    def __iter__(self) -> Iterator[Region]:
        return iter(self._regions)

    def within(self, offset: int, length: int) -> Iterator[tuple[Region, int, int, int]]:
        """The parts of a range of the file, in order: (region, offset on its disk, length, offset in the
        file)."""
        end = min(offset + length, self._ends[-1] if self._ends else 0)
        number = bisect_right(self._ends, offset)
        while offset < end:
            region = self._regions[number]
            start = offset - self._ends[number] + region.size
            count = min(end - offset, region.size - start)
            if count > 0:
                yield region, region.start + start, count, offset
            offset += count
            number += 1


NO_REGIONS = Regions(())


class Facts(NamedTuple):
    """What stat(2) tells of a file that was written to: bytes written, and when that was last."""

    written: int
    mtime_ns: int


class View:
    """`place` is where it keeps its files. Thread-safe."""

    def __init__(self, source: PointSource, repository_id: bytes, place: directory.ViewDirectory) -> None:
        self.io = Io()
        self.place = place
        self._source = source
        self._repository = repository_id.hex()
        self._disks: dict[tuple[str, int], ScratchDisk] = {}
        self._opened: dict[str, tuple[ScratchDisk, ...]] = {}
        self._lock = Lock()

    def regions(self, entry: Entry, content: Content) -> Sequence[Regions]:
        """Where the bytes of a raw file lie on the disks of its point, as often as they are there: each leg
        of a mirror has them. Empty when they are no concatenation of parts of disks, and it cannot be
        written to. May block; raises IntegrityError, StoreError."""
        copies: Sequence[Sequence[DiskContent]]
        if isinstance(content, PiecesContent):
            copies = [content.pieces, *content.others]
        elif isinstance(content, DiskContent):
            copies = [[content]]
        else:
            return ()
        manifest = self._source.load_point(entry.point).manifest
        numbers = {disk_name(entry.point, disk.alias): number for number, disk in enumerate(manifest.disks)}
        found = [
            Regions(
                Region(
                    self._disk(entry.point, manifest, numbers[part.disk]), part.reader, part.start, part.size
                )
                for part in parts
            )
            for parts in copies
        ]
        self._opened[entry.key] = tuple(dict.fromkeys(region.disk for region in found[0]))
        return found

    def facts(self, entry: Entry) -> Facts | None:
        """Of a raw file; None as long as nothing was written to its disks, and for a volume that nobody has
        opened."""
        if entry.role is Role.DISK:
            disk = self._disks.get((entry.point, entry.index))
            disks: tuple[ScratchDisk, ...] = () if disk is None else (disk,)
        else:
            disks = self._opened.get(entry.key, ())
        overlays = [disk.overlay for disk in disks if disk.overlay is not None]
        if not overlays:
            return None
        return Facts(
            sum(overlay.written for overlay in overlays), max(overlay.mtime_ns for overlay in overlays)
        )

    def free(self) -> int:
        """Bytes. Raises OSError."""
        return directory.free_bytes(self.place.descriptor)

    def take_up(self) -> None:
        """Open the overlays that are there already, after seeing that their points are as they were. Raises
        IntegrityError and VmfsError, naming the remedy."""
        path = self.place.path
        for stem in overlay_stems(os.listdir(self.place.descriptor)):
            try:
                overlay = Overlay.reopen(self.io, self.place.descriptor, stem)
            except OSError as error:
                raise VmfsError(f"{path}/{stem}: {os.strerror(error.errno or 0)}") from None
            except IntegrityError as error:
                raise IntegrityError(f"{path}: {error}") from None
            point_id, _, number = stem.partition("-")
            try:
                manifest = self._source.load_point(point_id).manifest
            except ObjectMissingError:
                overlay.close()
                raise VmfsError(
                    f"{path} has changes to restore point {point_id}, which the repository no longer has; "
                    "remove it, or choose another name"
                ) from None
            index = int(number)
            if index >= len(manifest.disks) or overlay.identity != self._identity(point_id, manifest, index):
                overlay.close()
                raise VmfsError(
                    f"{path} has changes to another state of restore point {point_id}; remove it, or choose "
                    "another name"
                )
            self._disk(point_id, manifest, index).overlay = overlay

    def close(self) -> None:
        """What is kept is synced first, as far as that can be."""
        for disk in self._disks.values():
            overlay, disk.overlay = disk.overlay, None
            if overlay is None:
                continue
            try:
                if self.place.kept:
                    overlay.sync()
            except OSError as error:
                log.error("%s: not all that was written could be kept: %s", self.place.path, error.strerror)
            finally:
                overlay.close()

    def _disk(self, point_id: str, manifest: Manifest, index: int) -> ScratchDisk:
        with self._lock:
            found = self._disks.get((point_id, index))
            if found is None:
                found = self._disks[point_id, index] = ScratchDisk(
                    self, f"{point_id}-{index}", self._identity(point_id, manifest, index)
                )
            return found

    def _identity(self, point_id: str, manifest: Manifest, index: int) -> Identity:
        disk = manifest.disks[index]
        return Identity(
            repository=self._repository,
            point=point_id,
            disk=disk.id,
            root=disk.root.hex() if disk.root else "",
            size=disk.size,
        )


@contextmanager
def open_view(source: PointSource, repository_id: bytes, path: Path, keep: str | None) -> Iterator[View]:
    """A writable view with its files in `path`: a new one that is removed at the end, or the one of that
    name. Raises UsageError, IntegrityError and VmfsError."""
    with directory.opened(path, repository_id, keep) as place:
        view = View(source, repository_id, place)
        try:
            view.take_up()
            yield view
        finally:
            view.close()
