"""All volumes of a restore point: partitions, logical volumes, arrays, over all of its disks and nested.

The disks come from a guest and may hold anything: nothing in them is believed, what is wrong becomes a
warning, and nothing is activated on the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from vmfs.errors import VmfsError
from vmfs.volumes.glimpse import Glimpse
from vmfs.volumes.lvm import Groups
from vmfs.volumes.md import Arrays, read_superblock
from vmfs.volumes.model import MAX_WARNINGS, Table, Volume
from vmfs.volumes.pieces import LaidSpace, Part, WholeDisk
from vmfs.volumes.probe import FileSystemFacts, probe
from vmfs.volumes.space import Space
from vmfs.volumes.table import parse

__all__ = ["FileSystemFacts", "FoundVolume", "Layout", "PointDisk", "find_volumes"]

Kind = Literal["disk", "partition", "lvm", "md"]

MAX_FOUND = 4096
"""Volumes of a point. A guest of more is hostile."""
MAX_DEPTH = 6
"""Levels of volumes within volumes: a partition, an array on it, a logical volume on that, a table in it…"""
MAX_NAME = 200
# Where, and what: the first volume descriptor of ISO 9660.
ISO_MARK = (((32 << 10) + 1, 5), b"CD001")


class PointDisk(NamedTuple):
    """A disk of the point. `block_size` is its logical block size, bytes."""

    alias: str
    space: Space
    block_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundVolume:
    """A volume. `key` is the same in every reading of the point: `0` for a bare disk, `0/p1` for a partition,
    `lvm/<VG UUID>/<LV UUID>`, `md/<UUID>`; a partition within another volume has that one's key before its
    own. `name` is what to call its file, without an ending, and unlike every other's. `members` are the keys
    of the volumes it lies on. `group` and `logical` are the names of an LVM volume and of its group.
    `problem` is why nothing is known of its content, or of the volumes in it."""

    key: str
    name: str
    kind: Kind
    space: LaidSpace
    content: FileSystemFacts | None = None
    partition: Volume | None = None
    members: tuple[str, ...] = ()
    group: str | None = None
    logical: str | None = None
    problem: VmfsError | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """`tables` are the partition tables of the disks, in their order. `warnings` are lines for a person.
    `problems` are why volumes may be missing, or what they hold not be known."""

    volumes: tuple[FoundVolume, ...]
    warnings: tuple[str, ...]
    tables: tuple[Table, ...]
    problems: tuple[VmfsError, ...] = ()


def find_volumes(disks: Sequence[PointDisk]) -> Layout:
    """The volumes of a point's disks. What the disks hold is no reason to raise. Where a disk cannot be read,
    that is a warning too, unless nothing at all could be found: then raises what reading raised
    (IntegrityError, StoreError)."""
    search = _Search()
    for number, disk in enumerate(disks):
        search.disk(number, disk)
    search.assemble()
    if search.errors and not search.found:
        raise search.errors[0]
    return Layout(
        volumes=search.named(),
        warnings=search.warnings(),
        tables=tuple(search.tables),
        problems=tuple(search.errors),
    )


class _Search:
    """What was found so far."""

    def __init__(self) -> None:
        self.found: dict[str, FoundVolume] = {}
        self.tables: list[Table] = []
        self.errors: list[VmfsError] = []
        self._warnings: list[str] = []
        self._groups = Groups()
        self._arrays = Arrays()
        # Members of groups and arrays that were found since these were last put together.
        self._new_members: set[str] = set()
        # Disks whose partition table is an array's.
        self._of_arrays: list[FoundVolume] = []

    def disk(self, number: int, disk: PointDisk) -> None:
        """The partitions of a disk, or what fills all of it."""
        space = WholeDisk(disk.space, number)
        bare = FoundVolume(key=str(number), name=disk.alias, kind="disk", space=space)
        view = Glimpse(space)
        try:
            table = parse(view.read, space.size, disk.block_size)
        except VmfsError as error:
            self.errors.append(error)
            self._warn(f"disk {disk.alias}: no volumes, its table cannot be read: {error}")
            self.tables.append(Table(scheme="none", volumes=(), block_size=disk.block_size))
            return
        self.tables.append(table)
        of_array = _is_of_array(view, table)
        if of_array:
            self._of_arrays.append(bare)
        else:
            for warning in table.warnings:
                self._warn(f"disk {disk.alias}: {warning}")
            self._partitions(bare, table)
        if of_array or not table.volumes or _is_iso(view):
            volume = self._probe(bare, view)
            if volume.content is not None:
                self._add(volume)

    def assemble(self) -> None:
        """Arrays and volume groups, and what lies in their volumes, until nothing more comes to light."""
        notes: dict[str, list[str]] = {}
        for _ in range(MAX_DEPTH):
            if not self._new_members:
                break
            members, self._new_members = self._new_members, set()
            if "linux_raid_member" in members:
                said = notes["linux_raid_member"] = []
                for array in self._arrays.volumes(said.append):
                    self._volume(
                        FoundVolume(
                            key=array.key,
                            name=array.name,
                            kind="md",
                            space=array.space,
                            members=array.members,
                        )
                    )
            # A group may lie on arrays: these come first.
            if "LVM2_member" in members or "LVM2_member" in self._new_members:
                said = notes["LVM2_member"] = []
                self._new_members.discard("LVM2_member")
                for logical in self._groups.volumes(said.append):
                    self._volume(
                        FoundVolume(
                            key=logical.key,
                            name=f"{logical.group}-{logical.name}",
                            kind="lvm",
                            space=logical.space,
                            members=logical.members,
                            group=logical.group,
                            logical=logical.name,
                        )
                    )
        for texts in notes.values():
            for text in texts:
                self._warn(text)
        used = {key for volume in self.found.values() for key in volume.members}
        for disk in self._of_arrays:
            if disk.key not in used:
                self._warn(
                    f"disk {disk.name}: its partitions are left out: they are those of an array that cannot "
                    "be put together, or that it was a member of once; use disks/ or vmfs export"
                )

    def named(self) -> tuple[FoundVolume, ...]:
        """All volumes, with names that can be file names and are unlike each other."""
        taken: set[str] = set()
        result = []
        for volume in self.found.values():
            stem = name = _file_name(volume.name)
            # The key tells volumes apart, and stays the same.
            if name in taken:
                name = f"{stem}-{_short(volume.key)}"
            number = 2
            while name in taken:
                name = f"{stem}-{_short(volume.key)}-{number}"
                number += 1
            taken.add(name)
            result.append(replace(volume, name=name))
        return tuple(result)

    def warnings(self) -> tuple[str, ...]:
        return tuple(self._warnings)

    def _warn(self, text: str) -> None:
        shown = "".join(char if char.isprintable() else "�" for char in text)
        if len(self._warnings) < MAX_WARNINGS and shown not in self._warnings:
            self._warnings.append(shown)

    def _volume(self, volume: FoundVolume) -> None:
        """A volume that is no partition: it may have partitions itself."""
        if volume.key in self.found:
            return
        view = Glimpse(volume.space)
        volume = self._probe(volume, view)
        self._add(volume)
        if volume.content is None:
            try:
                table = parse(view.read, volume.space.size)
            except VmfsError as error:
                self._warn(f"volume {volume.name}: its partition table cannot be read: {error}")
                return
            self._partitions(volume, table)

    def _partitions(self, volume: FoundVolume, table: Table) -> None:
        for partition in table.volumes:
            found = FoundVolume(
                key=f"{volume.key}/{partition.name}",
                name=f"{volume.name}-{partition.name}",
                kind="partition",
                space=Part(volume.space, partition.start, partition.length),
                partition=partition,
                members=() if volume.kind == "disk" else (volume.key,),
            )
            self._add(self._probe(found, Glimpse(found.space)))

    def _probe(self, volume: FoundVolume, view: Glimpse) -> FoundVolume:
        """The volume with what it holds."""
        try:
            return replace(volume, content=probe(view))
        except VmfsError as error:
            self.errors.append(error)
            self._warn(f"volume {volume.name}: what it holds cannot be read: {error}")
            return replace(volume, problem=error)

    def _add(self, volume: FoundVolume) -> None:
        if volume.key in self.found:
            return
        if len(self.found) >= MAX_FOUND:
            self._warn(f"there are more than {MAX_FOUND} volumes; the rest is left out")
            return
        self.found[volume.key] = volume
        kind = volume.content.type if volume.content else ""
        members: Groups | Arrays
        if kind == "LVM2_member":
            members = self._groups
        elif kind == "linux_raid_member":
            members = self._arrays
        else:
            return
        try:
            members.add(volume.key, volume.name, volume.space)
            self._new_members.add(kind)
        except VmfsError as error:
            self.errors.append(error)
            self._warn(f"volume {volume.name}: its metadata cannot be read: {error}")
            self.found[volume.key] = replace(volume, problem=error)


def _is_of_array(view: Glimpse, table: Table) -> bool:
    """Whether a partition table is that of an array which the disk is a member of, and not the disk's own:
    the superblock then lies behind all partitions, as far as these are on one disk. One within a partition
    may be of that, or left behind."""
    if not table.volumes:
        return False
    try:
        block = read_superblock(view)
    except VmfsError:
        return False
    end = max((volume.start + volume.length for volume in table.volumes if not volume.is_cut), default=0)
    return block is not None and block.start == 0 and block.at >= end


def _is_iso(view: Glimpse) -> bool:
    """Whether a disk with a partition table is one file system all the same: an image that boots from CD and
    from a stick."""
    try:
        return view.read(*ISO_MARK[0]) == ISO_MARK[1]
    except VmfsError:
        return False


def _file_name(name: str) -> str:
    plain = "".join(char if char.isprintable() and char != "/" else "_" for char in name)
    return plain[:MAX_NAME] if plain.strip(".") else f"volume{plain}"


def _short(key: str) -> str:
    """The start of the last UUID of a key."""
    return key.rsplit("/", 1)[-1].replace("-", "")[:8]
