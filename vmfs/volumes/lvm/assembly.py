"""Volume groups put together from the physical volumes that were found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from vmfs.errors import VmfsError
from vmfs.volumes.damage import Unmappable
from vmfs.volumes.lvm.group import Group, PhysicalVolumeRef, read_group
from vmfs.volumes.lvm.label import Label, Place, read_label, read_place, read_text
from vmfs.volumes.lvm.mapping import Mapper
from vmfs.volumes.lvm.text import TextError
from vmfs.volumes.pieces import LaidSpace
from vmfs.volumes.probe import lvm_uuid

Warn = Callable[[str], None]


class PhysicalVolume(NamedTuple):
    """`key` and `name` are those of the volume that it is."""

    key: str
    name: str
    space: LaidSpace
    label: Label
    places: tuple[Place, ...]


class Logical(NamedTuple):
    """A logical volume. `members` are the keys of the physical volumes it lies on."""

    key: str
    group: str
    name: str
    space: LaidSpace
    members: tuple[str, ...]


MAX_TEXTS = 32 << 20
"""Bytes of metadata that are read for a point: a guest could fill its disks with them."""


class _Member(NamedTuple):
    """A physical volume that may be the one that a group means, and how new its own metadata are."""

    volume: PhysicalVolume
    seqno: int


class Groups:
    """All physical volumes found so far. More may come, when they lie on volumes of the first."""

    def __init__(self) -> None:
        self._volumes: list[PhysicalVolume] = []
        # By CRC and size: every physical volume of a group has the same text.
        self._texts: dict[tuple[int, int], Group | None] = {}
        self._texts_left = MAX_TEXTS
        self._problems: list[str] = []

    def add(self, key: str, name: str, space: LaidSpace) -> None:
        """Takes the volume in when it is a physical volume. Raises what reading raises."""
        label = read_label(space)
        if label is None:
            self._warn(f"volume {name}: the label of this physical volume is damaged; it is left out")
            return
        places = []
        for area in label.areas:
            place = read_place(space, area, lambda text: self._warn(f"physical volume {name}: {text}"))
            if place is not None:
                places.append(place)
        volume = PhysicalVolume(key, name, space, label, tuple(places))
        for place in places:
            self._read(volume, place)
        self._volumes.append(volume)

    def _warn(self, text: str) -> None:
        if text not in self._problems:
            self._problems.append(text)

    def _read(self, volume: PhysicalVolume, place: Place) -> None:
        known = (place.checksum, place.size)
        if self._texts.get(known) is not None:
            return
        if place.size > self._texts_left:
            self._warn(f"physical volume {volume.name}: its metadata are left out: there is too much of them")
            return
        self._texts_left -= place.size
        raw = read_text(volume.space, place)
        if raw is None:
            self._warn(f"physical volume {volume.name}: its copy of the metadata is damaged")
            return
        try:
            self._texts[known] = read_group(raw.decode("utf-8", "replace"))
        except TextError as error:
            self._texts[known] = None
            self._warn(f"physical volume {volume.name}: its metadata cannot be understood: {error}")

    def volumes(self, warn: Warn) -> Iterator[Logical]:
        """The logical volumes of all groups, as far as they can be put together."""
        for text in self._problems:
            warn(text)
        groups = self._newest()
        names: dict[str, str] = {}
        for group in groups:
            if group.name in names:
                warn(
                    f"volume group {group.name}: there are two of that name, "
                    f"{lvm_uuid(names[group.name])} and {lvm_uuid(group.uuid)}; both are shown"
                )
            names.setdefault(group.name, group.uuid)
            yield from self._of_group(group, warn)

    def _newest(self) -> list[Group]:
        """Each group by its newest metadata, in the order of the physical volumes."""
        found: dict[str, Group] = {}
        for volume in self._volumes:
            for group in self._groups_of(volume):
                known = found.get(group.uuid)
                if known is None or group.seqno > known.seqno:
                    found[group.uuid] = group
        return list(found.values())

    def _groups_of(self, volume: PhysicalVolume) -> list[Group]:
        texts = (self._texts.get((place.checksum, place.size)) for place in volume.places)
        return [group for group in texts if group is not None]

    def _of_group(self, group: Group, warn: Warn) -> Iterator[Logical]:
        def say(text: str) -> None:
            warn(f"volume group {group.name}: {text}")

        by_uuid: dict[str, list[_Member]] = {}
        for volume in self._volumes:
            own = [known.seqno for known in self._groups_of(volume) if known.uuid == group.uuid]
            by_uuid.setdefault(volume.label.uuid, []).append(_Member(volume, max(own, default=-1)))
        members: dict[str, PhysicalVolume] = {}
        for ref in group.physical.values():
            member = _chosen(ref, by_uuid.get(ref.uuid, []), say)
            if member is not None:
                members[ref.name] = member
        mapper = Mapper(group, {name: volume.space for name, volume in members.items()}, say)
        uuids: set[str] = set()
        for logical in mapper.visible():
            if logical.uuid in uuids:
                say(f"volume {logical.name} is left out: another one has its UUID")
                continue
            uuids.add(logical.uuid)
            try:
                space = mapper.volume(logical.name)
            except Unmappable as error:
                say(f"volume {logical.name} is left out: {error}")
                continue
            except VmfsError as error:
                say(f"volume {logical.name} is left out: it cannot be read: {error}")
                continue
            on = mapper.lies_on(logical.name)
            yield Logical(
                key=f"lvm/{lvm_uuid(group.uuid)}/{lvm_uuid(logical.uuid)}",
                group=group.name,
                name=logical.name,
                space=space,
                members=tuple(member.key for name, member in members.items() if name in on),
            )


def _chosen(ref: PhysicalVolumeRef, found: Sequence[_Member], say: Warn) -> PhysicalVolume | None:
    """The physical volume of a group, of those with its UUID. Of copies (a disk that was cloned), the one
    with the newest metadata of the group."""
    if not found:
        say(f"its physical volume {ref.name} ({lvm_uuid(ref.uuid)}) is not on the disks of this point")
        return None
    best = max(found, key=lambda member: member.seqno)
    if len(found) > 1:
        names = ", ".join(member.volume.name for member in found[:9])
        say(
            f"its physical volume {ref.name} is there {len(found)} times ({names}: a disk was copied); "
            f"{best.volume.name} is used"
        )
    return best.volume
