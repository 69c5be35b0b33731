# SPDX-License-Identifier: MIT
"""Rock Ridge: names, owners and links in the system use areas of ISO 9660, after the SUSP and RRIP documents
(IEEE P1281 and P1282). Fields that are not known are passed over, as these ask for. Numbers are in both
orders of bytes, of which the little-endian ones come first."""

from __future__ import annotations

import errno
import os
import struct
from calendar import timegm
from collections.abc import Callable, Iterator
from typing import NamedTuple

from .model import ReaderError

_MAGIC = b"\xbe\xef"
_CD_XA = 14
"""Bytes that come before the first field on discs of CD-ROM XA."""
_MOST_AREAS = 64
"""Of one record, continued from one to the next. A name and a link of the longest kind take three."""
_CONTINUE, _CURRENT, _PARENT, _ROOT = 1, 2, 4, 8
_MODIFIED, _ACCESSED, _CHANGED = 1, 2, 3
_LONG_FORM = 0x80
_SECOND = 1_000_000_000
_LONGEST = 4096

ReadArea = Callable[[int, int, int], bytes]
"""Reads (block, offset, length) of the volume."""


class RockRidge(NamedTuple):
    """What one record says; None where it does not. `times`: number of the time in TF -> nanoseconds since
    1970. `compressed`: algorithm, header size and block size (both as stored) and size of zisofs."""

    name: bytes = b""
    mode: int | None = None
    uid: int = 0
    gid: int = 0
    links: int = 1
    device: int = 0
    times: dict[int, int] = {}  # noqa: RUF012
    target: bytes | None = None
    moved_to: int | None = None
    is_moved: bool = False
    compressed: tuple[bytes, int, int, int] | None = None

    @property
    def mtime(self) -> int | None:
        return self.times.get(_MODIFIED)

    @property
    def atime(self) -> int | None:
        return self.times.get(_ACCESSED)

    @property
    def ctime(self) -> int | None:
        return self.times.get(_CHANGED)


def skipped_bytes(area: bytes, read: ReadArea) -> int | None:
    """How many bytes to pass over in each area, said by that of the root's own record. None without Rock
    Ridge."""
    for start in (0, _CD_XA):
        if area[start : start + 2] == b"SP" and area[start + 4 : start + 6] == _MAGIC:
            kinds = {kind for kind, _ in _fields(area[start:], read)}
            return area[start + 6] if b"PX" in kinds else None
    return None


def parse(area: bytes, read: ReadArea) -> RockRidge:
    """Of one record, its area without the bytes to be passed over. Raises ReaderError for what is damaged."""
    name = b""
    link: _Link | None = None
    found = RockRidge()
    try:
        for kind, data in _fields(area, read):
            match kind:
                case b"NM" if not data[0] & (_CURRENT | _PARENT):
                    name += data[1:]
                case b"SL":
                    link = link or _Link()
                    link.add(data[1:])
                case b"PX":
                    mode, links, uid, gid = struct.unpack_from("<I4xI4xI4xI", data)
                    found = found._replace(mode=mode, links=links, uid=uid, gid=gid)
                case b"PN":
                    found = found._replace(device=_device(*struct.unpack_from("<I4xI", data)))
                case b"TF":
                    found = found._replace(times=dict(_times(data)))
                case b"CL":
                    found = found._replace(moved_to=struct.unpack_from("<I", data)[0])
                case b"RE":
                    found = found._replace(is_moved=True)
                case b"ZF":
                    found = found._replace(compressed=struct.unpack_from("<2sBBI", data))
    except (struct.error, IndexError) as error:
        raise ReaderError(errno.EIO, "its Rock Ridge fields are damaged") from error
    return found._replace(name=name, target=None if link is None else bytes(link.text))


def recorded_time(date: bytes) -> int | None:
    """Nanoseconds since 1970 of a date of 7 or 17 bytes (ECMA-119, 9.1.5 and 8.4.26.1); None for none."""
    hundredths = 0
    if len(date) == 7:
        years, month, day, hour, minute, second, zone = struct.unpack("<6Bb", date)
        year = years + 1900
    else:
        text, zone = date[:16], struct.unpack_from("<b", date, 16)[0]
        if not text.isdigit():
            return None
        year = int(text[:4])
        month, day, hour, minute, second, hundredths = (int(text[at : at + 2]) for at in range(4, 16, 2))
    if not 1 <= month <= 12 or not day or not year:
        return None
    # The offset is in quarters of an hour.
    seconds = timegm((year, month, day, hour, minute - zone * 15, second))
    return seconds * _SECOND + hundredths * 10_000_000


class _Link:
    """The target of a symbolic link, out of components that are flags, length and text."""

    def __init__(self) -> None:
        self.text = bytearray()
        self._separate = False

    def add(self, components: bytes) -> None:
        at = 0
        while at + 2 <= len(components):
            flags, length = components[at], components[at + 1]
            if self._separate:
                self.text += b"/"
            if flags & _ROOT:
                self.text += b"/"
            elif flags & _CURRENT:
                self.text += b"."
            elif flags & _PARENT:
                self.text += b".."
            else:
                self.text += components[at + 2 : at + 2 + length]
            self._separate = not flags & (_CONTINUE | _ROOT)
            at += 2 + length
            if len(self.text) > _LONGEST:
                raise ReaderError(errno.EIO, "its symbolic link is damaged")


def _fields(area: bytes, read: ReadArea) -> Iterator[tuple[bytes, bytes]]:
    """(kind, content) of an area and all that continue it."""
    for _ in range(_MOST_AREAS):
        following = b""
        at = 0
        while at + 4 <= len(area):
            kind, length = area[at : at + 2], area[at + 2]
            if length < 4 or kind == b"ST":
                break
            data = area[at + 4 : at + length]
            if kind == b"CE" and len(data) >= 20:
                following = read(*struct.unpack_from("<I4xI4xI", data))
            yield kind, data
            at += length
        if not following:
            return
        area = following
    raise ReaderError(errno.EIO, "its Rock Ridge fields go on without end")


def _times(data: bytes) -> Iterator[tuple[int, int]]:
    size = 17 if data[0] & _LONG_FORM else 7
    at = 1
    for number in range(7):
        if data[0] >> number & 1:
            time = recorded_time(data[at : at + size]) if at + size <= len(data) else None
            if time is not None:
                yield number, time
            at += size


def _device(high: int, low: int) -> int:
    """Linux's programs write dev_t in two halves; others major and minor numbers."""
    return os.makedev(high & 0xFFF, low & 0xFFFFF) if high else low
