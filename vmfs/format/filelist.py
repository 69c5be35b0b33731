"""A file list: the names in a guest's file system with what stat says of them, cut into pieces.

A piece is the plaintext of an artifact blob. Pieces are cut where the entries say so and not at fixed
lengths, so that a file which comes or goes changes one piece, and lists of two restore points share the
others.

    piece   offset size
                 0    4  magic "VMFL"
                 4    1  version
                 5    3  zero
                 8    …  groups, at least one, each of one directory

    group        0    2  length of the directory's path, at most 32,768
                 2    4  number of entries, at least one
                 6    …  path: from the root of the file system, no slash first or last; empty for the root
                      …  entries, ascending by name, compared as bytes

    entry        0    2  length of the name, 1 to 4,096
                 2    4  mode: kind and permissions as in st_mode; 0 when nothing could be learnt
                 6    4  uid
                10    4  gid
                14    8  size, bytes, at most 2^63 − 1
                22    8  time of the last change of the data, nanoseconds since 1970, signed
                30    8  time of the last change of the inode, likewise; 0 where the file system has none
                38    …  name: no slash, no zero byte, not "." or ".."
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from vmfs.format import VERSION
from vmfs.format.errors import ContentError, LengthError, MagicError, UsageError, VersionError

MAGIC = b"VMFL"
HEADER = struct.Struct("<4sB3s")
GROUP = struct.Struct("<HI")
ENTRY = struct.Struct("<HIIIQqq")
MAX_NAME = 4096
MAX_PATH = 32768
MAX_SIZE = (1 << 63) - 1
MAX_ID = (1 << 32) - 1

_RESERVED = bytes(3)
_MIN_PIECE = 8 << 10
_MAX_PIECE = 1 << 20
_CUT = 0xFF
"""Above the least length, a piece ends after one entry in 256: 20 KiB on average."""


class Entry(NamedTuple):
    """One name. `directory` is the path of what it lies in, without a slash first or last. Sizes in bytes,
    times in nanoseconds since 1970."""

    directory: bytes
    name: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    ctime: int

    @property
    def path(self) -> bytes:
        return self.directory + b"/" + self.name if self.directory else self.name


def valid_name(name: bytes) -> bool:
    """Whether that can be the name of a directory's entry: a hostile file system may say anything."""
    usual = 1 <= len(name) <= MAX_NAME and b"/" not in name and b"\0" not in name
    return usual and name not in (b".", b"..")


def encode(entries: Sequence[Entry]) -> bytes:
    """One piece; the entries of a directory must be together and in order. Raises UsageError for what cannot
    be said."""
    pieces = [HEADER.pack(MAGIC, VERSION, _RESERVED)]
    start = 0
    while start < len(entries):
        directory = entries[start].directory
        end = start + 1
        while end < len(entries) and entries[end].directory == directory:
            end += 1
        pieces += (GROUP.pack(len(directory), end - start), directory)
        for _, name, mode, uid, gid, size, mtime, ctime in entries[start:end]:
            pieces += (ENTRY.pack(len(name), mode, uid, gid, size, mtime, ctime), name)
        start = end
    return b"".join(pieces)


def decode(data: bytes) -> list[Entry]:
    """Raises LengthError, MagicError, VersionError, ContentError."""
    if len(data) < HEADER.size:
        raise LengthError("a piece of a file list is cut short")
    magic, version, reserved = HEADER.unpack_from(data)
    if magic != MAGIC:
        raise MagicError("that is no piece of a file list")
    if version != VERSION:
        raise VersionError(f"a file list has format version {version}; this program knows {VERSION}")
    if reserved != _RESERVED:
        raise ContentError("a piece of a file list makes no sense")
    found: list[Entry] = []
    at, end = HEADER.size, len(data)
    unpack, size_of_entry, new = ENTRY.unpack_from, ENTRY.size, tuple.__new__
    try:
        while True:
            length, count = GROUP.unpack_from(data, at)
            at += GROUP.size
            directory = data[at : at + length]
            at += length
            if not count or not _valid_directory(directory):
                raise ContentError("a file list has a directory that cannot be")
            last = b""
            for _ in range(count):
                length, mode, uid, gid, size, mtime, ctime = unpack(data, at)
                at += size_of_entry
                name = data[at : at + length]
                at += length
                if name <= last or b"/" in name or b"\0" in name or size > MAX_SIZE or length > MAX_NAME:
                    raise ContentError("a file list has an entry that cannot be")
                if mtime < -MAX_SIZE or ctime < -MAX_SIZE:
                    raise ContentError("a file list has an entry that cannot be")
                last = name
                # Half of the time of making it by its name; lists have a million.
                found.append(new(Entry, (directory, name, mode, uid, gid, size, mtime, ctime)))
            if at == end:
                break
            # Also when a name reaches past the end.
            if at > end:
                raise LengthError("a piece of a file list is cut short")
    except struct.error:
        raise LengthError("a piece of a file list is cut short") from None
    if any(entry.name in (b".", b"..") for entry in found):
        raise ContentError("a file list has an entry that cannot be")
    return found


def cut(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """The entries in runs, each for one piece. Where a run ends depends on its entries alone."""
    run: list[Entry] = []
    size = 0
    for entry in entries:
        if not run or run[-1].directory != entry.directory:
            size += GROUP.size + len(entry.directory)
        run.append(entry)
        size += ENTRY.size + len(entry.name)
        if size < _MIN_PIECE:
            continue
        # By the path: what happens to a file leaves the cuts where they were.
        if size >= _MAX_PIECE or zlib.crc32(entry.name, zlib.crc32(entry.directory)) & _CUT == 0:
            yield run
            run, size = [], 0
    if run:
        yield run


def check(entry: Entry) -> Entry:
    """The entry, if it can be encoded. Raises UsageError."""
    numbers = all(0 <= value <= MAX_ID for value in (entry.mode, entry.uid, entry.gid))
    times = all(-MAX_SIZE <= value <= MAX_SIZE for value in (entry.mtime, entry.ctime))
    if not (numbers and times and 0 <= entry.size <= MAX_SIZE and valid_name(entry.name)):
        raise UsageError(f"{entry.name[:40]!r} cannot be in a file list")
    if not _valid_directory(entry.directory):
        raise UsageError(f"{entry.directory[:40]!r} cannot be a directory of a file list")
    return entry


def _valid_directory(path: bytes) -> bool:
    if not path:
        return True
    return len(path) <= MAX_PATH and all(map(valid_name, path.split(b"/")))


def to_text(name: bytes) -> str:
    """A name as text that any database and JSON takes, from which `to_bytes` gives the same bytes again:
    UTF-8 as it is, each byte that is none as a private character, U+10FF00 and its value."""
    try:
        text = name.decode()
        if text.isascii() or max(text) < _PRIVATE:
            return text
    except UnicodeDecodeError:
        pass
    pieces = []
    for char in name.decode("utf-8", "surrogateescape"):
        if "\udc80" <= char <= "\udcff":
            pieces.append(chr(ord(char) - 0xDC00 + ord(_PRIVATE)))
        elif char >= _PRIVATE:
            pieces += (chr(byte + ord(_PRIVATE)) for byte in char.encode())
        else:
            pieces.append(char)
    return "".join(pieces)


def to_bytes(text: str) -> bytes:
    """The bytes that `to_text` made a text of, or those of any text."""
    if text.isascii() or max(text, default="") < _PRIVATE:
        return text.encode("utf-8", "surrogateescape")
    return b"".join(
        bytes([ord(char) - ord(_PRIVATE)])
        if _PRIVATE <= char <= _LAST_PRIVATE
        else char.encode("utf-8", "surrogateescape")
        for char in text
    )


_PRIVATE = "\U0010ff00"
_LAST_PRIVATE = "\U0010ffff"
