"""fstab(5): which volume of a guest is mounted where. A guest's file is hostile input: what makes no sense is
left out, and everything is bounded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from vmfs.volumes.layout import FoundVolume

MAX_BYTES = 1 << 20
MAX_ENTRIES = 256
_MAX_FIELD = 4096

_NOT_FILES = frozenset(("swap", "ignore", "none"))
_ESCAPE = re.compile(rb"\\([0-7]{3})")
_UDEV_ESCAPE = re.compile(r"\\x([0-9a-f]{2})")
_TAGS = {
    "by-uuid": "UUID",
    "by-label": "LABEL",
    "by-partuuid": "PARTUUID",
    "by-partlabel": "PARTLABEL",
}
_LETTERS = re.compile(r"(?:sd|vd|xvd|hd)([a-z]{1,2})(\d{0,3})")
_NUMBERS = re.compile(r"(?:nvme(\d{1,3})n1|mmcblk(\d{1,3}))(?:p(\d{1,3}))?")


class Entry(NamedTuple):
    """A line: `device` as it is written, `target` an absolute path of the guest, `options` without those of
    no value as they are, the others by name."""

    device: str
    target: bytes
    type: str
    options: dict[str, str]


def parse(content: bytes) -> list[Entry]:
    """The file systems of volumes, in the order in which they are mounted: outer ones first."""
    found = []
    for line in content[:MAX_BYTES].split(b"\n"):
        words = line.split()
        if len(words) < 3 or words[0].startswith(b"#") or max(map(len, words)) > _MAX_FIELD:
            continue
        device, target, kind = (_unescape(word) for word in words[:3])
        options = _options(words[3] if len(words) > 3 else b"")
        entry = Entry(device.decode(errors="surrogateescape"), target, kind.decode(errors="replace"), options)
        if entry.type not in _NOT_FILES and target.startswith(b"/") and "bind" not in options:
            found.append(entry)
        if len(found) == MAX_ENTRIES:
            break
    return sorted(found, key=lambda entry: len(_parts(entry.target)))


def _parts(path: bytes) -> list[bytes]:
    return [part for part in path.split(b"/") if part]


def _options(word: bytes) -> dict[str, str]:
    pairs = (text.partition("=") for text in _unescape(word).decode(errors="surrogateescape").split(","))
    return {name: value for name, _, value in pairs}


def _unescape(word: bytes) -> bytes:
    return _ESCAPE.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), word)


def is_volume(device: str) -> bool:
    """Whether the first field of a line means a volume at all, not a share or what a kernel makes up."""
    return device.startswith("/dev/") or device.partition("=")[0].upper() in _TAGS.values()


def find_device(device: str, volumes: Sequence[FoundVolume]) -> FoundVolume | None:
    """The volume that the first field of a line means, if it can be told."""
    tag, equals, value = device.partition("=")
    if equals and not device.startswith("/"):
        return _by_tag(tag.upper(), value.strip('"'), volumes)
    if not device.startswith("/dev/"):
        return None
    return next(_by_path(device.removeprefix("/dev/"), volumes), None)


def _by_tag(tag: str, value: str, volumes: Sequence[FoundVolume]) -> FoundVolume | None:
    for volume in volumes:
        content, partition = volume.content, volume.partition
        known = {
            "UUID": content and content.uuid,
            "LABEL": content and content.label,
            "PARTUUID": partition and partition.uuid,
            "PARTLABEL": partition and partition.label,
        }.get(tag)
        same = known == value or (tag.endswith("UUID") and (known or "").lower() == value.lower())
        if known and same and not _is_member(volume):
            return volume
    return None


def _is_member(volume: FoundVolume) -> bool:
    """Whether it is part of another volume, whose UUID it may have (md RAID 1 of metadata 1.0)."""
    return volume.content is not None and volume.content.type.endswith("_member")


def _by_path(path: str, volumes: Sequence[FoundVolume]) -> Iterator[FoundVolume]:
    folder, _, name = path.rpartition("/")
    kind = folder.rpartition("/")[2]
    if tag := _TAGS.get(kind):
        plain = _UDEV_ESCAPE.sub(lambda match: chr(int(match[1], 16)), name)
        found = _by_tag(tag, plain, volumes)
        yield from [found] if found else []
    elif kind == "by-id" and name.startswith("dm-name-"):
        yield from _mapped(name.removeprefix("dm-name-"), volumes)
    elif folder == "mapper":
        yield from _mapped(name, volumes)
    elif folder == "md" or (not folder and re.fullmatch(r"md\d+", name)):
        arrays = [volume for volume in volumes if volume.kind == "md"]
        named = [volume for volume in arrays if volume.name == f"md-{name.removeprefix('md')}"]
        yield from named or (arrays if len(arrays) == 1 else [])
    elif folder:
        yield from (volume for volume in volumes if (volume.group, volume.logical) == (folder, name))
    elif key := _key_of_disk(name):
        yield from (volume for volume in volumes if volume.key == key)


def _mapped(name: str, volumes: Sequence[FoundVolume]) -> Iterator[FoundVolume]:
    """Device-mapper names have the dashes of both names doubled."""
    for volume in volumes:
        if volume.group and volume.logical:
            words = (word.replace("-", "--") for word in (volume.group, volume.logical))
            if "-".join(words) == name:
                yield volume


def _key_of_disk(name: str) -> str | None:
    """Linux names disks in the order in which it finds them; that of the point is the best guess."""
    if match := _LETTERS.fullmatch(name):
        number = 0
        for letter in match[1]:
            number = number * 26 + ord(letter) - ord("a") + 1
        disk, partition = number - 1, match[2]
    elif match := _NUMBERS.fullmatch(name):
        disk, partition = int(match[1] or match[2]), match[3]
    else:
        return None
    return f"{disk}/p{int(partition)}" if partition else str(disk)
