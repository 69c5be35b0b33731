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
from .ntfs_index import Directories
from .ntfs_records import LX_SYMLINK, WOF, ReparsePoint, log_is_open, reparse_point

_TABLE, _LOG = 0, 2
_LOG_HEAD = 16 << 10
"""Bytes: the log's two pages that say how it was left."""
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
_WOF_STREAM = "WofCompressedData"
"""Holds the data of a file compressed by the Windows Overlay Filter, which libfsntfs reads as the file's."""
_LARGEST_ATTRIBUTE = 64 << 10
_DEEPEST = 256


class NtfsReader:
    def __init__(self, device: Device) -> None:
        self._volume = pyfsntfs.volume()
        self._volume.open_file_object(DeviceFile(device))
        self.type = "ntfs"
        self.label = self._volume.name or ""
        self.uuid = f"{self._volume.serial_number:016X}"
        self._records = self._volume.get_file_entry(_TABLE)
        self._record_size = self._volume.mft_entry_size
        self._directories = Directories(device, self._record, self._volume.cluster_block_size)
        self._entry = lru_cache(64)(self._open)
        self._names = lru_cache(4)(self._read_names)
        self.warnings = tuple(self._say_log())

    def root(self) -> Stat:
        return self.stat(_ROOT)

    def stat(self, node: int) -> Stat:
        return self._stat(self._entry(node))

    def scan(self, directory: int) -> Iterator[Found]:
        for name, number in self._entries(directory):
            try:
                yield Found(name, self._stat(self._open(number)))
            except Exception as error:
                yield Found(name, None, f"it is damaged ({str(error)[:200]})")

    def lookup(self, directory: int, name: bytes) -> Stat:
        number = self._names(directory).get(name)
        if number is None:
            raise ReaderError(errno.ENOENT, "no such file")
        return self.stat(number)

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
        try:
            return bytes(entry.read_buffer_at_offset(min(length, entry.size - offset), offset))
        except OSError as error:
            if entry.file_attribute_flags & _REPARSE_POINT:
                # libfsntfs has XPRESS right, and not all of LZX.
                raise ReaderError(errno.EOPNOTSUPP, "its compression (WOF) cannot be read here") from error
            raise

    def extents(self, node: int) -> Iterator[tuple[int, int]]:
        entry = self._file(node)
        size = entry.size if entry.has_default_data_stream() else 0
        count = entry.number_of_extents if size else 0
        if not count or entry.file_attribute_flags & (_COMPRESSED | _REPARSE_POINT):
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
            if stream.name == _WOF_STREAM and (point := self._reparse(entry)) and point.tag == WOF:
                continue
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

    def _entries(self, directory: int) -> Iterator[tuple[bytes, int]]:
        if not self._entry(directory).has_directory_entries_index():
            raise ReaderError(errno.ENOTDIR, "not a directory")
        for name, number in self._directories.entries(directory):
            if number >= _FIRST_OF_USER:
                yield name, number

    def _read_names(self, directory: int) -> dict[bytes, int]:
        return dict(self._entries(directory))

    def _file(self, node: int) -> Any:
        entry = self._entry(node)
        if entry.has_directory_entries_index() or self._link(entry) is not None:
            raise ReaderError(errno.EINVAL, "not a regular file")
        if entry.file_attribute_flags & _ENCRYPTED:
            raise ReaderError(errno.EOPNOTSUPP, "it is encrypted (EFS): its key is not known here")
        if entry.file_attribute_flags & _REPARSE_POINT and _is_sparse(entry):
            point = self._reparse(entry)
            if point is None or point.tag != WOF:
                # Windows would show what a filter fetches; on the disk there are zeros.
                kind = "reparse point" if point is None else point.kind
                raise ReaderError(errno.EOPNOTSUPP, f"its data is not in this volume's file ({kind})")
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
            point = self._reparse(entry)
            target = None if point is None else point.target
            if point is None or not target:
                return None
            return _utf8(target) if point.tag == LX_SYMLINK else self._target(entry, target)
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

    def _reparse(self, entry: Any) -> ReparsePoint | None:
        return reparse_point(self._record(_number(entry)))

    def _record(self, number: int) -> bytes:
        size = self._record_size
        return bytes(self._records.read_buffer_at_offset(size, number * size))

    def _say_log(self) -> Iterator[str]:
        try:
            log = self._volume.get_file_entry(_LOG).read_buffer_at_offset(_LOG_HEAD, 0)
        except OSError:
            yield "its log ($LogFile) cannot be read: whether it was in use is not known"
            return
        if log_is_open(bytes(log)):
            yield "its log ($LogFile) was not closed: changes of the last seconds may be missing or in part"

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
        parent = _parent(entry)
        while parent != _ROOT:
            if depth == _DEEPEST:
                raise ReaderError(errno.EIO, "it lies in no directory")
            parent = _parent(self._entry(parent))
            depth += 1
        return depth


def _number(entry: Any) -> int:
    return int(entry.file_reference) & _INDEX


def _is_sparse(entry: Any) -> bool:
    """Whether data of the file is not on the disk."""
    if not entry.has_default_data_stream() or not entry.size:
        return False
    return any(entry.get_extent(index)[2] & _EXTENT_SPARSE for index in range(entry.number_of_extents))


def _parent(entry: Any) -> int:
    """The directory of its first name. An entry that was opened by its number, and not out of a directory,
    has no `parent_file_reference`."""
    for index in range(entry.number_of_attributes):
        if entry.get_attribute(index).attribute_type == _FILE_NAME:
            return int(entry.get_parent_file_reference_by_attribute_index(index)) & _INDEX
    raise ReaderError(errno.EIO, "it has no name")


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
