"""The volumes of restore points: found when somebody wants to know of them, as that costs reads, and kept
for the last few points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Lock

from vmfs.format.manifest import Disk
from vmfs.fs.content import Content, DiskContent, DiskReader, PiecesContent, SpaceContent
from vmfs.fs.log import warn_once
from vmfs.fs.names import Wanted, unique
from vmfs.volumes.layout import FoundVolume, Layout, PointDisk, find_volumes
from vmfs.volumes.pieces import Pieces

# A volume of more pieces is read as a whole: to be ahead in each of many would be to be ahead in none.
_MAX_PIECES = 256


@dataclass(frozen=True, slots=True)
class PointLayout:
    """What was found on the disks of a point. `names` are file names for the volumes, without an ending.
    `said` collects what their file systems, once opened, have to say: (number of the volume, lines for a
    person)."""

    point: str
    layout: Layout
    names: tuple[bytes, ...]
    disks: tuple[DiskReader, ...]
    aliases: tuple[str, ...]
    allocated: int
    said: dict[int, tuple[str, ...]] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    @property
    def volumes(self) -> tuple[FoundVolume, ...]:
        return self.layout.volumes

    def name_of(self, index: int) -> str:
        """The volume, to people."""
        return f"volume {self.label_of(index)}"

    def label_of(self, index: int) -> str:
        """The same, to go behind the word volume."""
        return f"{self.volumes[index].name} of point {self.point}"

    def say(self, index: int, warnings: tuple[str, ...]) -> None:
        """The file system of a volume was opened, and warns of these."""
        for warning in warnings:
            warn_once(f"{self.name_of(index)}: {warning}")
        with self._lock:
            self.said[index] = warnings

    def warnings_of(self, index: int) -> tuple[str, ...] | None:
        """What its file system has to say; None when it was not opened yet."""
        with self._lock:
            return self.said.get(index)

    def content(self, index: int) -> Content:
        """The volume as a file. What is a piece of a disk, or a row of such, is read as the disk is."""
        volume = self.volumes[index]
        copies = [self._contents(pieces) for pieces in volume.space.copies()]
        whole = SpaceContent(self.name_of(index), volume.space)
        if not copies or not all(0 < len(pieces) <= _MAX_PIECES for pieces in copies):
            return whole
        first, *others = copies
        if len(first) == 1 and not others and volume.kind in ("disk", "partition"):
            return first[0]
        return PiecesContent(first, whole, others)

    def _contents(self, pieces: Pieces) -> list[DiskContent]:
        return [
            DiskContent(
                disk_name(self.point, self.aliases[piece.disk]),
                self.disks[piece.disk],
                piece.offset,
                piece.length,
            )
            for piece in pieces
        ]


def disk_name(point: str, alias: str) -> str:
    """A disk, to people."""
    return f"point {point}, disk {alias}"


def find_layout(point: str, disks: Sequence[Disk], readers: Sequence[DiskReader]) -> PointLayout:
    """Find the volumes of the disks, and log what is wrong with them. Raises IntegrityError and StoreError
    when nothing of it can be read."""
    layout = find_volumes(
        [PointDisk(disk.alias, reader, disk.block_size) for disk, reader in zip(disks, readers, strict=True)]
    )
    for warning in layout.warnings:
        warn_once(f"point {point}, {warning}")
    return PointLayout(
        point=point,
        layout=layout,
        names=tuple(volume_names(layout.volumes)),
        disks=tuple(readers),
        aliases=tuple(disk.alias for disk in disks),
        allocated=sum(disk.allocated for disk in disks),
    )


def volume_names(volumes: Sequence[FoundVolume]) -> list[bytes]:
    """A file name, without an ending, for each."""
    return [name.removesuffix(b".raw") for name in unique([_wanted(volume) for volume in volumes])]


def _wanted(volume: FoundVolume) -> Wanted:
    tail = f"-{volume.partition.name}" if volume.partition else ""
    if not volume.name.endswith(tail):
        tail = ""
    stem = volume.name.removesuffix(tail) if tail else volume.name
    return Wanted(stem, f"{tail}.raw", volume.key.rpartition("/")[2][:8])
