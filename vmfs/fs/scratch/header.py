"""The first 4096 bytes of each file that a writable view keeps: what it is, and what it belongs to.

8 bytes magic, u32 version, u32 length of the text, u32 CRC-32 of the text, little-endian; the text, a
JSON object of strings and integers; zeros.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping

from vmfs.errors import IntegrityError, VersionError

SIZE = 4096
VERSION = 1
_FIXED = struct.Struct("<8sIII")

Fields = Mapping[str, str | int]


def encode(magic: bytes, fields: Fields) -> bytes:
    """SIZE bytes. `magic` has eight."""
    text = json.dumps(dict(fields), sort_keys=True).encode()
    return (_FIXED.pack(magic, VERSION, len(text), zlib.crc32(text)) + text).ljust(SIZE, b"\0")


def decode(magic: bytes, data: bytes, name: str) -> Fields:
    """What was encoded. `name` is of the file, for messages. Raises VersionError, IntegrityError."""
    if len(data) < _FIXED.size:
        raise IntegrityError(f"{name} is too short for a file of a writable view")
    found, version, length, checksum = _FIXED.unpack_from(data)
    if found != magic:
        raise IntegrityError(f"{name} is no file of a writable view")
    if version != VERSION:
        raise VersionError(f"{name} has version {version}, and this vmfs knows {VERSION}; use a later vmfs")
    text = data[_FIXED.size : _FIXED.size + length]
    if zlib.crc32(text) != checksum:
        raise IntegrityError(f"{name} is damaged")
    fields = json.loads(text)
    if not isinstance(fields, dict):
        raise IntegrityError(f"{name} is damaged")
    return fields
