# SPDX-License-Identifier: MIT
"""The messages between a worker and its client: one each per packet of a SOCK_SEQPACKET socket.

A message is one byte that says what it is, and its arguments. Data of files and of the volume goes through
shared memory: the client fills [0, PIECE), the worker [PIECE, 2 * PIECE). There is one request at a time;
while the worker is at it, it asks for the parts of the volume that it needs. The client trusts nothing in
what it gets: each function that decodes raises ValueError for what makes no sense.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from enum import IntEnum

from .model import Found, Run, Stat

PIECE = 1 << 20
"""Most bytes that one message moves through the shared memory."""
MESSAGE = 64 << 10
"""Bytes of a message, at most, unless one entry alone is longer."""
LONGEST_MESSAGE = 160 << 10
"""Bytes; below what the kernel takes for one packet. The longest entry is an attribute of 64 KiB."""


class Op(IntEnum):
    """From the client. After the request's arguments of struct format."""

    ROOT = 1
    STAT = 2
    LOOKUP = 3
    SCAN = 4
    READLINK = 5
    READ = 6
    XATTRS = 7
    EXTENTS = 8
    RUNS = 9
    BLOCK = 16
    """What was asked for by WANT lies in the memory."""
    BLOCK_FAILED = 17


class Reply(IntEnum):
    """From the worker."""

    WANT = 1
    """(offset, length) of the volume, length at most PIECE."""
    MORE = 2
    """A part of the answer; there will be more."""
    DONE = 3
    """The (last) part of the answer."""
    FAILED = 4
    """Error number and text."""


REQUEST = struct.Struct("<BQQQ")
"""Op, node, offset, length; after it the name of a LOOKUP."""
WANT = struct.Struct("<BQI")
FAILED = struct.Struct("<BI")
LENGTH = struct.Struct("<I")
EXTENT = struct.Struct("<QQ")
RUN = struct.Struct("<QQQ")
_STAT = struct.Struct("<QIIIIQQqIqIqIQ")
_FOUND = struct.Struct("<BHQIIIIQQqIqIqIQ")
_PROBLEM = struct.Struct("<BHH")
_SECOND = 1_000_000_000
_UNKNOWN = (1 << 64) - 1
_LONGEST_NAME = 1024
"""Bytes: what FUSE takes; 255 characters of UTF-16 are 765 of UTF-8."""


def pack_stat(stat: Stat) -> bytes:
    return _STAT.pack(*_flat(stat))


def unpack_stat(data: bytes) -> Stat:
    try:
        return _stat(_STAT.unpack(data))
    except struct.error as error:
        raise ValueError(str(error)) from None


def is_name(name: bytes) -> bool:
    """Whether a directory can have an entry of that name: not if it is a path."""
    return (
        0 < len(name) <= _LONGEST_NAME
        and b"/" not in name
        and b"\0" not in name
        and name not in (b".", b"..")
    )


def pack_found(found: Found) -> bytes:
    if not is_name(found.name):
        found = _renamed(found)
    if found.stat is not None:
        return _FOUND.pack(1, len(found.name), *_flat(found.stat)) + found.name
    problem = (found.problem or "").encode("utf-8", "replace")[:1000]
    return _PROBLEM.pack(0, len(found.name), len(problem)) + found.name + problem


def unpack_found(data: bytes) -> list[Found]:
    """All entries of a part of a SCAN's answer."""
    entries: list[Found] = []
    at = 0
    end = len(data)
    try:
        while at < end:
            if data[at]:
                fields = _FOUND.unpack_from(data, at)
                at += _FOUND.size
                stop = at + fields[1]
                name = data[at:stop]
                entries.append(Found(name, _stat(fields[2:])))
            else:
                _, name_length, problem_length = _PROBLEM.unpack_from(data, at)
                middle = at + _PROBLEM.size + name_length
                stop = middle + problem_length
                problem = data[middle:stop].decode("utf-8", "replace")
                name = data[middle - name_length : middle]
                entries.append(Found(name, None, one_line(problem)))
            if not is_name(name):
                raise ValueError("an entry of a directory has a name that none can have")
            at = stop
    except struct.error as error:
        raise ValueError(str(error)) from None
    if at != end:
        raise ValueError("an entry of a directory is cut short")
    return entries


def pack_strings(strings: Iterable[bytes]) -> bytes:
    return b"".join(LENGTH.pack(len(string)) + string for string in strings)


def unpack_strings(data: bytes) -> Sequence[bytes]:
    strings = []
    at = 0
    try:
        while at < len(data):
            (length,) = LENGTH.unpack_from(data, at)
            at += LENGTH.size + length
            strings.append(data[at - length : at])
    except struct.error as error:
        raise ValueError(str(error)) from None
    if at != len(data):
        raise ValueError("a string is cut short")
    return strings


def unpack_extents(data: bytes) -> list[tuple[int, int]]:
    try:
        return [(start, length) for start, length in EXTENT.iter_unpack(data)]
    except struct.error as error:
        raise ValueError(str(error)) from None


def unpack_runs(data: bytes) -> list[Run]:
    try:
        return list(map(Run._make, RUN.iter_unpack(data)))
    except struct.error as error:
        raise ValueError(str(error)) from None


def pack_failed(errno: int, text: str) -> bytes:
    return FAILED.pack(Reply.FAILED, errno) + text.encode("utf-8", "replace")[:2000]


def unpack_failed(message: bytes) -> tuple[int, str]:
    try:
        _, errno = FAILED.unpack_from(message)
    except struct.error as error:
        raise ValueError(str(error)) from None
    text = message[FAILED.size :].decode("utf-8", "replace")
    return errno, one_line(text)


def one_line(text: str) -> str:
    """As it may go to terminals and logs."""
    return "".join(character if character.isprintable() else "�" for character in text)


def _renamed(found: Found) -> Found:
    """It is shown that there is something, and cannot be used."""
    name = b"?" + found.name.replace(b"/", b"?").replace(b"\0", b"?")[:200]
    return Found(name, None, f"its name makes no sense: {found.name[:200]!r}")


def _flat(stat: Stat) -> tuple[int, ...]:
    node, mode, uid, gid, links, size, mtime, atime, ctime, device, allocated = stat
    # As seconds and nanoseconds: file systems know years that 64 bits of nanoseconds do not.
    return (
        *(node, mode, uid, gid, links, size, device),
        *divmod(mtime, _SECOND),
        *divmod(atime, _SECOND),
        *divmod(ctime, _SECOND),
        _UNKNOWN if allocated is None else allocated,
    )


def _stat(fields: tuple[int, ...]) -> Stat:
    node, mode, uid, gid, links, size, device, m, m_ns, a, a_ns, c, c_ns, allocated = fields
    return Stat(
        *(node, mode, uid, gid, links, size),
        *(m * _SECOND + m_ns, a * _SECOND + a_ns, c * _SECOND + c_ns),
        device,
        None if allocated == _UNKNOWN else allocated,
    )
