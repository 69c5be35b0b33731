# SPDX-License-Identifier: MIT
"""NTFS by libfsntfs. What NTFS does not have is as ntfs-3g shows it: everything is root's, with mode 0777.

Alternate data streams are extended attributes, `user.ads.NAME`, as far as they fit into one.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import pyfsntfs

from .fileobject import DeviceFile
from .model import Device, Found, ReaderError, Stat

_ROOT = 5
_FIRST_OF_USER = 16
"""Records below are the file system's own; ntfs-3g does not show them either."""
_INDEX = (1 << 48) - 1
"""Of a file reference: the number of its record. Above are 16 bits that count how often that was reused."""
_EPOCH = 116_444_736_000_000_000
"""1970 in FILETIME: units of 100 ns since 1601."""
_SYSTEM, _REPARSE_POINT, _COMPRESSED, _ENCRYPTED = 0x4, 0x400, 0x800, 0x4000
_FILE_NAME, _NAMESPACE_DOS = 0x30, 2
_EXTENT_SPARSE = 1
_INTERIX_LINK = b"IntxLNK\x01"
"""Begins the data of a symbolic link as ntfs-3g and Interix make them; the target follows in UTF-16."""
_INTERIX_LONGEST = len(_INTERIX_LINK) + 2 * 4096
_LARGEST_ATTRIBUTE = 64 << 10
_DEEPEST = 256


class NtfsReader:
    def __init__(self, device: Device) -> None:
        self._volume = pyfsntfs.volume()
        self._volume.open_file_object(DeviceFile(device))
        self.type = "ntfs"
        self.label = self._volume.name or ""
        self.uuid = f"{self._volume.serial_number:016X}"
        self.warnings: tuple[str, ...] = ()
        self._entry = lru_cache(64)(self._open)

    def root(self) -> Stat:
        return self.stat(_ROOT)

    def stat(self, node: int) -> Stat:
        return self._stat(self._entry(node))

    def scan(self, directory: int) -> Iterator[Found]:
        parent = self._directory(directory)
        for index in range(parent.number_of_sub_file_entries):
            name = b"#%d" % index
            try:
                entry = parent.get_sub_file_entry(index)
                if _number(entry) < _FIRST_OF_USER:
                    continue
                name = entry.name.encode("utf-8", "surrogatepass")
                yield Found(name, self._stat(entry))
            except (OSError, RuntimeError, ReaderError) as error:
                yield Found(name, None, f"it is damaged ({str(error)[:200]})")

    def lookup(self, directory: int, name: bytes) -> Stat:
        for found in self.scan(directory):
            if found.name == name:
                if found.stat is None:
                    raise ReaderError(errno.EIO, found.problem or "it is damaged")
                return found.stat
        raise ReaderError(errno.ENOENT, "no such file")

    def readlink(self, node: int) -> bytes:
        entry = self._entry(node)
        target = self._link(entry)
        if target is None:
            raise ReaderError(errno.EINVAL, "not a symbolic link")
        return target

    def read(self, node: int, offset: int, length: int) -> bytes:
        entry = self._file(node)
        if not entry.has_default_data_stream() or offset >= entry.size:
            return b""
        data = entry.read_buffer_at_offset(min(length, entry.size - offset), offset)
        return bytes(data)

    def extents(self, node: int) -> Iterator[tuple[int, int]]:
        entry = self._file(node)
        size = entry.size if entry.has_default_data_stream() else 0
        count = entry.number_of_extents if size else 0
        if not count or entry.file_attribute_flags & _COMPRESSED:
            if size:
                yield 0, size
            return
        at = start = end = 0
        for index in range(count):
            _, length, flags = entry.get_extent(index)
            if not flags & _EXTENT_SPARSE:
                if at != end and end > start:
                    yield start, min(end, size) - start
                start = at if at != end else start
                end = at + length
            at += length
            if at >= size:
                break
        if min(end, size) > start:
            yield start, min(end, size) - start

    def xattrs(self, node: int) -> dict[bytes, bytes]:
        entry = self._entry(node)
        streams = {}
        for index in range(entry.number_of_alternate_data_streams):
            stream = entry.get_alternate_data_stream(index)
            if stream.size <= _LARGEST_ATTRIBUTE:
                name = b"user.ads." + stream.name.encode("utf-8", "surrogatepass")
                streams[name] = bytes(stream.read_buffer_at_offset(stream.size, 0)) if stream.size else b""
        return streams

    def _open(self, node: int) -> Any:
        if not 0 <= node < self._volume.number_of_file_entries:
            raise ReaderError(errno.EIO, f"there is no record {node}")
        entry = self._volume.get_file_entry(node)
        if entry.is_empty() or not entry.is_allocated():
            raise ReaderError(errno.EIO, f"record {node} is not in use")
        return entry

    def _directory(self, node: int) -> Any:
        entry = self._entry(node)
        if not entry.has_directory_entries_index():
            raise ReaderError(errno.ENOTDIR, "not a directory")
        return entry

    def _file(self, node: int) -> Any:
        entry = self._entry(node)
        if entry.has_directory_entries_index() or self._link(entry) is not None:
            raise ReaderError(errno.EINVAL, "not a regular file")
        if entry.file_attribute_flags & _ENCRYPTED:
            raise ReaderError(errno.EOPNOTSUPP, "it is encrypted (EFS): its key is not known here")
        return entry

    def _stat(self, entry: Any) -> Stat:
        target = self._link(entry)
        size = 0
        if target is not None:
            mode, size = stat.S_IFLNK, len(target)
        elif entry.has_directory_entries_index():
            mode = stat.S_IFDIR
        else:
            mode = stat.S_IFREG
            size = entry.size if entry.has_default_data_stream() else 0
        return Stat(
            *(_number(entry), mode | 0o777, 0, 0, 1 if stat.S_ISDIR(mode) else _links(entry), size),
            _time(entry.get_modification_time_as_integer()),
            _time(entry.get_access_time_as_integer()),
            _time(entry.get_entry_modification_time_as_integer()),
        )

    def _link(self, entry: Any) -> bytes | None:
        """The target of a symbolic link or junction, or None."""
        flags = entry.file_attribute_flags
        if flags & _REPARSE_POINT:
            target = entry.symbolic_link_target
            # Other reparse points (deduplication, cloud files) have none.
            return None if target is None else self._target(entry, target)
        if (
            not flags & _SYSTEM
            or not entry.has_default_data_stream()
            or not len(_INTERIX_LINK) < entry.size <= _INTERIX_LONGEST
        ):
            return None
        data = bytes(entry.read_buffer_at_offset(entry.size, 0))
        if not data.startswith(_INTERIX_LINK):
            return None
        return _utf8(data[len(_INTERIX_LINK) :].decode("utf-16-le", "surrogatepass"))

    def _target(self, entry: Any, target: str) -> bytes:
        """Of Windows. A drive is taken for this volume: what else it may be is not written here."""
        target = target.removeprefix("\\??\\")
        absolute = target.startswith("\\")
        if target[1:2] == ":":
            target, absolute = target[2:], True
        path = target.replace("\\", "/")
        if absolute:
            path = "../" * self._depth(entry) + path.lstrip("/")
        return _utf8(path or ".")

    def _depth(self, entry: Any) -> int:
        """Directories between the entry and the root."""
        depth = 0
        parent = entry.parent_file_reference & _INDEX
        while parent != _ROOT and depth < _DEEPEST:
            parent = self._entry(parent).parent_file_reference & _INDEX
            depth += 1
        return depth


def _number(entry: Any) -> int:
    return int(entry.file_reference) & _INDEX


def _links(entry: Any) -> int:
    """Names that are not the short forms of others."""
    count = 0
    for index in range(entry.number_of_attributes):
        attribute = entry.get_attribute(index)
        if attribute.attribute_type == _FILE_NAME and attribute.name_space != _NAMESPACE_DOS:
            count += 1
    return max(count, 1)


def _time(filetime: int) -> int:
    return (filetime - _EPOCH) * 100


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
