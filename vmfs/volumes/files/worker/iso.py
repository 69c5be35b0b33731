# SPDX-License-Identifier: MIT
"""ISO 9660 with Rock Ridge or Joliet, by pycdlib. As Linux shows it: Rock Ridge goes before Joliet, and
without either, names are in lower case and everything is root's with mode 0555."""

from __future__ import annotations

import errno
import os
import stat
import time
from calendar import timegm
from collections.abc import Iterator
from typing import Any, NamedTuple

import pycdlib
from pycdlib.pycdlibexception import PyCdlibException
from pycdlib.rockridge import RRTFRecord

from .fileobject import DeviceFile
from .model import Device, Found, ReaderError, Stat

# pycdlib uses it, and its first use imports a module, at a time when nothing can be imported any more.
time.strptime("2000", "%Y")

_BLOCK = 2048
_ROOT = 1
_SECOND = 1_000_000_000
_MOST = 2_000_000
"""Files and directories, of which all are kept in memory."""


def _swaps_times() -> bool:
    """Whether this pycdlib takes the times of Rock Ridge in the wrong order: of modification and access, in
    this order (RRIP 1.12, 4.1.6), the second for the first."""
    record = RRTFRecord()
    record.parse(b"TF\x13\x01\x06" + bytes((101, 1, 1, 0, 0, 1, 0)) + bytes((101, 1, 1, 0, 0, 2, 0)))
    return record.modification_time is not None and record.modification_time.second == 2


_SWAPPED = _swaps_times()


class _File(NamedTuple):
    """`parts`: (offset in the volume, length) of the data, bytes. `children` are nodes."""

    name: bytes
    stat: Stat
    parts: tuple[tuple[int, int], ...]
    target: bytes | None
    children: list[int]


class IsoReader:
    def __init__(self, device: Device) -> None:
        iso = pycdlib.PyCdlib()
        try:
            iso.open_fp(DeviceFile(device))  # type: ignore[arg-type]
        except PyCdlibException as error:
            raise ReaderError(errno.EIO, f"it is damaged ({error})") from error
        self._device = device
        self.type = "iso9660"
        self.label = iso.pvd.volume_identifier.decode("ascii", "replace").rstrip()
        date = iso.pvd.volume_modification_date or iso.pvd.volume_creation_date
        self.uuid = (
            f"{date.year:04}-{date.month:02}-{date.dayofmonth:02}-{date.hour:02}-{date.minute:02}"
            f"-{date.second:02}-{date.hundredthsofsecond:02}"
        )
        self.warnings: tuple[str, ...] = ()
        self._files: dict[int, _File] = {}
        joliet = not iso.rock_ridge and iso.has_joliet()
        descriptor = iso.joliet_vd if joliet else iso.pvd
        assert descriptor is not None  # noqa: S101
        self._collect(descriptor.root_directory_record(), joliet)

    def root(self) -> Stat:
        return self.stat(_ROOT)

    def stat(self, node: int) -> Stat:
        return self._file(node).stat

    def scan(self, directory: int) -> Iterator[Found]:
        for child in self._directory(directory).children:
            file = self._files[child]
            yield Found(file.name, file.stat)

    def lookup(self, directory: int, name: bytes) -> Stat:
        for found in self.scan(directory):
            if found.name == name and found.stat is not None:
                return found.stat
        raise ReaderError(errno.ENOENT, "no such file")

    def readlink(self, node: int) -> bytes:
        target = self._file(node).target
        if target is None:
            raise ReaderError(errno.EINVAL, "not a symbolic link")
        return target

    def read(self, node: int, offset: int, length: int) -> bytes:
        file = self._file(node)
        if not stat.S_ISREG(file.stat.mode):
            raise ReaderError(errno.EINVAL, "not a regular file")
        end = min(offset + length, file.stat.size)
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

    def extents(self, node: int) -> Iterator[tuple[int, int]]:
        size = self._file(node).stat.size
        if size:
            yield 0, size

    def xattrs(self, node: int) -> dict[bytes, bytes]:
        return {}

    def _file(self, node: int) -> _File:
        file = self._files.get(node)
        if file is None:
            raise ReaderError(errno.EIO, f"there is no file {node}")
        return file

    def _directory(self, node: int) -> _File:
        file = self._file(node)
        if not stat.S_ISDIR(file.stat.mode):
            raise ReaderError(errno.ENOTDIR, "not a directory")
        return file

    def _collect(self, root: Any, joliet: bool) -> None:
        """All files, numbered in the order of the directories: the same in each process."""
        # What Rock Ridge says of the root is in its entry for itself.
        itself = next((record for record in root.children if record.is_dot()), root)
        self._files[_ROOT] = _parse(_ROOT, b"", itself)
        pending = [(_ROOT, root)]
        # Directories that are within themselves.
        seen = {root.extent_location()}
        while pending:
            parent, directory = pending.pop()
            continued = 0
            for record in directory.children:
                if record.is_dot() or record.is_dotdot():
                    continue
                if continued:
                    # Further parts of a file, which its first record knows.
                    continued -= 1
                    continue
                continued = sum(1 for _ in _continuations(record))
                rock_ridge = record.rock_ridge
                if rock_ridge is not None and rock_ridge.relocated_record():
                    continue
                node = len(self._files) + 1
                if node > _MOST:
                    raise ReaderError(errno.EIO, f"it has more than {_MOST} files")
                name = _name(record, joliet)
                if rock_ridge is not None and rock_ridge.child_link_record_exists():
                    record = rock_ridge.cl_to_moved_dr or record
                self._files[node] = _parse(node, name, record)
                self._files[parent].children.append(node)
                if record.is_dir() and record.extent_location() not in seen:
                    seen.add(record.extent_location())
                    pending.append((node, record))


def _parse(node: int, name: bytes, record: Any) -> _File:
    parts = [(record.extent_location() * _BLOCK, record.get_data_length())]
    parts.extend((each.extent_location() * _BLOCK, each.get_data_length()) for each in _continuations(record))
    mode = stat.S_IFDIR | 0o555 if record.is_dir() else stat.S_IFREG | 0o555
    uid = gid = device = 0
    links = 1
    mtime = atime = ctime = _time(record.date)
    target = None
    if record.rock_ridge is not None:
        attributes, times = _entry(record, "px_record"), _entry(record, "tf_record")
        if attributes is not None:
            mode = attributes.posix_file_mode
            uid, gid = attributes.posix_user_id, attributes.posix_group_id
            links = attributes.posix_file_links
        if times is not None:
            first, second = times.modification_time, times.access_time
            if _SWAPPED:
                first, second = second, first
            mtime = _time(first) or mtime
            atime = _time(second) or mtime
            ctime = _time(times.attribute_change_time) or mtime
        if record.rock_ridge.is_symlink():
            target = bytes(record.rock_ridge.symlink_path())
        numbers = _entry(record, "pn_record")
        if numbers is not None:
            device = _device(numbers.dev_t_high, numbers.dev_t_low)
    size = sum(length for _, length in parts)
    if target is not None:
        size = len(target)
    elif not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        size = 0
    return _File(
        name, Stat(node, mode, uid, gid, links, size, mtime, atime, ctime, device), tuple(parts), target, []
    )


def _device(high: int, low: int) -> int:
    """By the rules of Linux: both halves, or all in the lower one."""
    if low & ~0xFF and not high:
        return os.makedev(low >> 8, low & 0xFF)
    return os.makedev(high & 0xFFF, low & 0xFFFFF)


def _continuations(record: Any) -> Iterator[Any]:
    seen = set()
    following = record.data_continuation
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        following = following.data_continuation


def _entry(record: Any, kind: str) -> Any:
    """Of Rock Ridge, which has them in the record or where there was more room."""
    for entries in (record.rock_ridge.dr_entries, record.rock_ridge.ce_entries):
        found = getattr(entries, kind, None)
        if found is not None:
            return found
    return None


def _name(record: Any, joliet: bool) -> bytes:
    if record.rock_ridge is not None and record.rock_ridge.name():
        return bytes(record.rock_ridge.name())
    raw = bytes(record.file_identifier())
    if joliet:
        return raw.decode("utf-16-be", "surrogatepass").partition(";")[0].encode("utf-8", "surrogatepass")
    return raw.partition(b";")[0].rstrip(b".").lower()


def _time(date: Any) -> int:
    """Of both forms, 7 and 17 bytes long; 0 for none."""
    if date is None:
        return 0
    if hasattr(date, "years_since_1900"):
        year, day, hundredths = date.years_since_1900 + 1900, date.day_of_month, 0
    else:
        year, day, hundredths = date.year, date.dayofmonth, date.hundredthsofsecond
    if not 1 <= date.month <= 12 or not day:
        return 0
    # The offset is in quarters of an hour.
    seconds = timegm((year, date.month, day, date.hour, date.minute - date.gmtoffset * 15, date.second))
    return seconds * _SECOND + hundredths * 10_000_000
