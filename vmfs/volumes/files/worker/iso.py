# SPDX-License-Identifier: MIT
"""ISO 9660 (ECMA-119) with Rock Ridge or Joliet. As Linux shows it: Rock Ridge goes before Joliet, and
without either, names are in lower case and everything is root's with mode 0555.

Own, because pycdlib refuses a disc for one field that it does not know, keeps all of it in memory, and reads
some links and times wrong.
"""

from __future__ import annotations

import errno
import stat
import struct
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from .iso_rockridge import RockRidge, parse, recorded_time, skipped_bytes
from .iso_zisofs import Compressed
from .model import Device, Found, ReaderError, Run, Stat

_SECTOR = 2048
_FIRST_DESCRIPTOR = 16
_MOST_DESCRIPTORS = 64
_PRIMARY, _SUPPLEMENTARY, _TERMINATOR = 1, 2, 255
_JOLIET = (b"%/@", b"%/C", b"%/E")
_UDF = b"NSR0"
_ROOT = 1
"""As node. All others are where their (first) record lies, in bytes of the volume, which is never there."""
_HEAD = struct.Struct("<BBI4xI4x7sBBB4xB")
"""Length of the record, blocks of extended attributes, extent, length of the data, date, flags, two sizes of
interleaved files, length of the name."""
_DIRECTORY, _ASSOCIATED, _MORE = 0x02, 0x04, 0x80
_ITSELF, _PARENT = b"\0", b"\1"
_PLAIN = RockRidge()
_STEP = 64 << 10
"""Bytes of a directory that are read at a time."""
_CACHED_DIRECTORY = 4 << 20
"""Bytes of a directory whose names are kept for further look-ups."""


class _Record(NamedTuple):
    """Of a directory. `place` is in bytes of the volume; the data are `length` bytes from block `extent`."""

    place: int
    size: int
    extent: int
    length: int
    date: bytes
    flags: int
    interleaved: bool
    name: bytes
    area: bytes


class _File(NamedTuple):
    """`parts`: (offset in the volume, length) of the data, bytes."""

    stat: Stat
    parts: list[tuple[int, int]]
    record: _Record
    rock_ridge: RockRidge


class IsoReader:
    type = "iso9660"

    def __init__(self, device: Device) -> None:
        self._device = device
        primary, joliet, is_udf = self._descriptors()
        self._block = struct.unpack_from("<H", primary, 128)[0]
        if self._block not in (512, 1024, 2048):
            raise ReaderError(errno.EIO, "its volume descriptor makes no sense")
        self.label = primary[40:72].decode("ascii", "replace").rstrip(" \0")
        self.uuid = _uuid(primary[830:846]) or _uuid(primary[813:829])
        self._root = self._parse_record(0, primary[156:190])
        itself = self._record(self._root.extent * self._block)
        self._skipped = skipped_bytes(itself.area, self._area)
        self._is_joliet = self._skipped is None and joliet is not None
        if self._is_joliet and joliet is not None:
            self._root = self._parse_record(0, joliet[156:190])
        self.warnings = ("it has UDF as well, whose files are not shown",) if is_udf else ()
        self._file = lru_cache(64)(self._find)
        self._names = lru_cache(8)(self._read_names)

    def root(self) -> Stat:
        return self.stat(_ROOT)

    def stat(self, node: int) -> Stat:
        return self._file(node).stat

    def scan(self, directory: int) -> Iterator[Found]:
        for name, record, found in self._entries(self._directory(directory)):
            try:
                yield Found(name, self._describe(record.place, record, found).stat)
            except ReaderError as error:
                yield Found(name, None, str(error))

    def lookup(self, directory: int, name: bytes) -> Stat:
        file = self._directory(directory)
        if file.stat.size <= _CACHED_DIRECTORY:
            place = self._names(directory).get(name)
        else:
            place = next((record.place for found, record, _ in self._entries(file) if found == name), None)
        if place is None:
            raise ReaderError(errno.ENOENT, "no such file")
        return self.stat(place)

    def readlink(self, node: int) -> bytes:
        target = self._file(node).rock_ridge.target
        if target is None:
            raise ReaderError(errno.EINVAL, "not a symbolic link")
        return target

    def read(self, node: int, offset: int, length: int) -> bytes:
        file = self._regular(node)
        if file.rock_ridge.compressed is not None:
            return Compressed(
                lambda at, count: self._stored(file, at, count), *file.rock_ridge.compressed
            ).read(offset, length)
        return self._stored(file, offset, length)

    def extents(self, node: int) -> Iterator[tuple[int, int]]:
        size = self.stat(node).size
        if size:
            yield 0, size

    def runs(self, node: int) -> Iterator[Run]:
        file = self._regular(node)
        if file.rock_ridge.compressed is not None:
            raise ReaderError(errno.EOPNOTSUPP, "its data is compressed")
        start = 0
        for place, length in file.parts:
            yield Run(start, length, place)
            start += length

    def xattrs(self, node: int) -> dict[bytes, bytes]:
        return {}

    def _descriptors(self) -> tuple[bytes, bytes | None, bool]:
        """The primary and the Joliet volume descriptor, and whether there is UDF."""
        primary = joliet = None
        for number in range(_FIRST_DESCRIPTOR, _FIRST_DESCRIPTOR + _MOST_DESCRIPTORS):
            data = self._device.read(number * _SECTOR, _SECTOR)
            if len(data) < _SECTOR:
                break
            if data[1:6] != b"CD001":
                if data[1:5] == _UDF and primary is not None:
                    return primary, joliet, True
                # Those of UDF begin and end with others.
                if data[1:6] not in (b"BEA01", b"TEA01"):
                    break
            elif data[0] == _PRIMARY and primary is None:
                primary = data
            elif data[0] == _SUPPLEMENTARY and data[88:91] in _JOLIET and joliet is None:
                joliet = data
        if primary is None:
            raise ReaderError(errno.EIO, "there is no ISO 9660 file system")
        return primary, joliet, False

    def _find(self, node: int) -> _File:
        if node != _ROOT:
            record = self._record(node)
            return self._describe(node, record, self._parse(record))
        itself = self._record(self._root.extent * self._block)
        # What Rock Ridge says of the root is in its entry for itself.
        return self._describe(_ROOT, self._root, self._parse(itself))

    def _parse(self, record: _Record) -> RockRidge:
        return _PLAIN if self._skipped is None else parse(record.area[self._skipped :], self._area)

    def _describe(self, node: int, record: _Record, found: RockRidge) -> _File:
        if found.moved_to is not None:
            # A directory that was too deep: the entry for itself, where it is now, knows it.
            moved = self._record(found.moved_to * self._block)
            name, record = found.name, moved
            found = self._parse(moved)._replace(name=name)
        parts = [(record.extent * self._block, record.length)]
        parts += [(each.extent * self._block, each.length) for each in self._continuations(record)]
        size = sum(length for _, length in parts)
        is_directory = bool(record.flags & _DIRECTORY)
        mode = (stat.S_IFDIR if is_directory else stat.S_IFREG) | 0o555
        if found.mode is not None and stat.S_ISDIR(found.mode) == is_directory:
            mode = found.mode
        if stat.S_ISLNK(mode):
            if found.target is None:
                raise ReaderError(errno.EIO, "its symbolic link is damaged")
            size = len(found.target)
        elif found.compressed is not None:
            size = found.compressed[3]
        elif not stat.S_ISREG(mode) and not is_directory:
            size = 0
        mtime = found.mtime if found.mtime is not None else recorded_time(record.date) or 0
        return _File(
            Stat(
                *(node, mode, found.uid, found.gid, found.links, size, mtime),
                mtime if found.atime is None else found.atime,
                mtime if found.ctime is None else found.ctime,
                found.device if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else 0,
            ),
            parts,
            record,
            found,
        )

    def _regular(self, node: int) -> _File:
        file = self._file(node)
        if not stat.S_ISREG(file.stat.mode):
            raise ReaderError(errno.EINVAL, "not a regular file")
        if file.record.interleaved:
            raise ReaderError(errno.EOPNOTSUPP, "its data is interleaved, which is not known here")
        return file

    def _directory(self, node: int) -> _File:
        file = self._file(node)
        if not stat.S_ISDIR(file.stat.mode):
            raise ReaderError(errno.ENOTDIR, "not a directory")
        return file

    def _read_names(self, directory: int) -> dict[bytes, int]:
        return {name: record.place for name, record, _ in self._entries(self._directory(directory))}

    def _entries(self, directory: _File) -> Iterator[tuple[bytes, _Record, RockRidge]]:
        is_continued = False
        for record in self._records(*directory.parts[0]):
            is_first, is_continued = not is_continued, bool(record.flags & _MORE)
            # Further parts of a file are its first record's.
            if not is_first or record.name in (_ITSELF, _PARENT) or record.flags & _ASSOCIATED:
                continue
            if self._skipped is not None:
                found = self._parse(record)
                if not found.is_moved:
                    yield found.name or _plain_name(record.name), record, found
            elif self._is_joliet:
                text = record.name.decode("utf-16-be", "surrogatepass").partition(";")[0]
                yield text.encode("utf-8", "surrogatepass"), record, _PLAIN
            else:
                yield _plain_name(record.name), record, _PLAIN

    def _records(self, start: int, length: int) -> Iterator[_Record]:
        """Of a directory: none goes across the end of a sector."""
        for step in range(0, length, _STEP):
            data = self._device.read(start + step, min(_STEP, length - step))
            at = 0
            while at < len(data):
                if not data[at]:
                    at = (at // _SECTOR + 1) * _SECTOR
                    continue
                record = self._parse_record(start + step + at, data[at : at + data[at]])
                yield record
                at += record.size

    def _record(self, place: int) -> _Record:
        return self._parse_record(place, self._device.read(place, 255))

    def _parse_record(self, place: int, data: bytes) -> _Record:
        if len(data) <= _HEAD.size or not _HEAD.size < data[0] <= len(data):
            raise ReaderError(errno.EIO, "a record of a directory is damaged")
        size, attributes, extent, length, date, flags, unit, gap, name_length = _HEAD.unpack_from(data)
        name = data[_HEAD.size : _HEAD.size + name_length]
        # Padded so that what follows begins at an even byte.
        area = data[_HEAD.size + name_length + (name_length + 1) % 2 : size]
        return _Record(place, size, extent + attributes, length, date, flags, bool(unit or gap), name, area)

    def _continuations(self, record: _Record) -> Iterator[_Record]:
        """The records of the further parts of a file, which come after its first."""
        first = record
        while record.flags & _MORE:
            place = record.place + record.size
            if self._device.read(place, 1) in (b"\0", b""):
                place = (place // _SECTOR + 1) * _SECTOR
            record = self._record(place)
            if record.name != first.name:
                raise ReaderError(errno.EIO, "a part of the file is missing")
            yield record

    def _area(self, block: int, offset: int, length: int) -> bytes:
        return self._device.read(block * self._block + offset, min(length, _SECTOR))

    def _stored(self, file: _File, offset: int, length: int) -> bytes:
        end = offset + length
        pieces = []
        at = 0
        for place, size in file.parts:
            start, stop = max(offset, at), min(end, at + size)
            if start < stop:
                piece = self._device.read(place + start - at, stop - start)
                if len(piece) < stop - start:
                    raise ReaderError(errno.EIO, "data lies outside of the volume")
                pieces.append(piece)
            at += size
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _plain_name(raw: bytes) -> bytes:
    return raw.partition(b";")[0].rstrip(b".").lower()


def _uuid(date: bytes) -> str:
    """As blkid makes it: 16 digits of a date. Nothing for none."""
    text = date.decode("ascii", "replace")
    if not text.isdigit() or not int(text):
        return ""
    return "-".join((text[:4], *(text[at : at + 2] for at in range(4, 16, 2))))
