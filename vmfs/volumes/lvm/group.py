"""A volume group, as its metadata text says it is. Numbers are checked here to be numbers and not absurd;
whether they fit the physical volumes is for the mapping to see."""

from __future__ import annotations

import re
from typing import NamedTuple

from vmfs.volumes.lvm.text import Section, TextError, Value, parse

SECTOR = 512
MAX_EXTENTS = 1 << 48
MAX_EXTENT_SECTORS = 1 << 32
MAX_BYTES = 1 << 62
MAX_SEGMENTS = 1 << 18
MAX_PHYSICAL = 2048
_NAME = re.compile(r"[A-Za-z0-9_.+-]{1,128}")


class Segment(NamedTuple):
    """Extents [start, start + extents) of a logical volume. `facts` are the rest of what is said of it."""

    start: int
    extents: int
    type: str
    facts: Section


class LogicalVolume(NamedTuple):
    """`problem` says why `segments` cannot be used; they are in order and without gaps when it is None."""

    name: str
    uuid: str
    visible: bool
    segments: tuple[Segment, ...]
    extents: int
    problem: str | None = None


class PhysicalVolumeRef(NamedTuple):
    """`start` is where its first extent begins, bytes. `missing` is LVM2's own mark for one that was away
    while the group was changed: its content is out of date."""

    name: str
    uuid: str
    start: int
    extents: int
    device_size: int
    missing: bool


class Group(NamedTuple):
    """`extent` is the size of an extent, bytes; `uuid` is without dashes."""

    name: str
    uuid: str
    seqno: int
    extent: int
    physical: dict[str, PhysicalVolumeRef]
    logical: dict[str, LogicalVolume]


def read_group(text: str) -> Group:
    """Raises TextError when the text does not describe a volume group."""
    tree = parse(text)
    for name, section in tree.items():
        if isinstance(section, dict):
            return _group(name, section)
    raise TextError("it names no volume group")


def number(section: Section, key: str, high: int, low: int = 0) -> int:
    """Raises TextError when it is not there, not an integer, or not in [low, high]."""
    value = section.get(key)
    if not isinstance(value, int) or not low <= value <= high:
        raise TextError(f"{key} is {_shown(value)}")
    return value


def words(section: Section, key: str) -> frozenset[str]:
    """A list of strings; empty when it is not there."""
    value = section.get(key)
    return (
        frozenset(word for word in value if isinstance(word, str)) if isinstance(value, list) else frozenset()
    )


def _shown(value: Value | None) -> str:
    return "missing" if value is None else repr(value)[:40]


def _group(name: str, section: Section) -> Group:
    if not _NAME.fullmatch(name):
        raise TextError("the name of its volume group is no name")
    extent = number(section, "extent_size", MAX_EXTENT_SECTORS, 1) * SECTOR
    return Group(
        name=name,
        uuid=_uuid(section),
        seqno=number(section, "seqno", 1 << 62),
        extent=extent,
        physical={ref.name: ref for ref in _physical(section)},
        logical={volume.name: volume for volume in _logical(section)},
    )


def _uuid(section: Section) -> str:
    value = section.get("id")
    plain = value.replace("-", "") if isinstance(value, str) else ""
    if not (len(plain) == 32 and plain.isascii() and plain.isalnum()):
        raise TextError(f"a UUID is {_shown(value)}")
    return plain


def _sections(section: Section, key: str) -> list[tuple[str, Section]]:
    value = section.get(key, {})
    if not isinstance(value, dict):
        raise TextError(f"{key} is no section")
    return [(name, inner) for name, inner in value.items() if isinstance(inner, dict)]


def _physical(section: Section) -> list[PhysicalVolumeRef]:
    members = _sections(section, "physical_volumes")
    if len(members) > MAX_PHYSICAL:
        raise TextError(f"it has {len(members)} physical volumes")
    return [
        PhysicalVolumeRef(
            name=name,
            uuid=_uuid(inner),
            start=number(inner, "pe_start", MAX_BYTES // SECTOR) * SECTOR,
            extents=number(inner, "pe_count", MAX_EXTENTS),
            device_size=number(inner, "dev_size", MAX_BYTES // SECTOR) * SECTOR if "dev_size" in inner else 0,
            missing="MISSING" in words(inner, "flags") | words(inner, "status"),
        )
        for name, inner in members
    ]


def _logical(section: Section) -> list[LogicalVolume]:
    found = []
    for name, inner in _sections(section, "logical_volumes"):
        visible = "VISIBLE" in words(inner, "status")
        uuid = _uuid(inner)
        try:
            if not _NAME.fullmatch(name):
                raise TextError("its name is no name")
            segments = _segments(inner)
            extents = segments[-1].start + segments[-1].extents if segments else 0
            found.append(LogicalVolume(name, uuid, visible, segments, extents))
        except TextError as error:
            # One volume that makes no sense does not take the others with it.
            found.append(LogicalVolume(name, uuid, visible, (), 0, f"its metadata is damaged: {error}"))
    return found


def _segments(section: Section) -> tuple[Segment, ...]:
    found = []
    for name, inner in section.items():
        if not (isinstance(inner, dict) and name.startswith("segment")):
            continue
        kind = inner.get("type")
        if not isinstance(kind, str):
            raise TextError("the type of a segment is missing")
        found.append(
            Segment(
                start=number(inner, "start_extent", MAX_EXTENTS),
                extents=number(inner, "extent_count", MAX_EXTENTS, 1),
                # Flags that newer versions append: striped+KEEP.
                type=kind.split("+", 1)[0],
                facts=inner,
            )
        )
    found.sort(key=lambda segment: segment.start)
    if len(found) > MAX_SEGMENTS:
        raise TextError(f"it has {len(found)} segments")
    end = 0
    for segment in found:
        if segment.start != end:
            raise TextError("its segments leave a gap or overlap")
        end += segment.extents
    return tuple(found)
