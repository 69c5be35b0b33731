"""A pack: blobs one after another, an authenticated directory of them, and a fixed trailer.

    directory, one entry a blob           trailer, the last 56 bytes
    offset size                           offset size
         0   32  blob id                       0    4  magic "VMFP"
        32    4  offset in the pack            4    1  version
        36    4  length of the blob            5    3  zero
        40    1  kind                          8    8  offset of the directory
        41    3  zero                         16    8  number of entries
                                              24   32  MAC: keyed BLAKE3 of directory, trailer
                                                       up to here, repository id

A pack's name is the plain BLAKE3 of its bytes, so bit-rot is found on the storage server without any key.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from blake3 import blake3

from vmfs.format import VERSION
from vmfs.format.blob import MAX_PLAIN, OVERHEAD
from vmfs.format.errors import AuthenticationError, ContentError, LengthError, MagicError, VersionError
from vmfs.format.keys import Keys, Kind

MAGIC = b"VMFP"
ENTRY = struct.Struct("<32sIIB3s")
TRAILER = struct.Struct("<4sB3sQQ")
MAC_SIZE = 32
TRAILER_SIZE = TRAILER.size + MAC_SIZE
TARGET_SIZE = 64 << 20
"""Bytes of blobs after which a pack is closed."""
MAX_ENTRIES = 1 << 16
"""Blobs after which a pack is closed, however small they are: bounds what a reader allocates for a directory
before it can be authenticated."""


class Entry(NamedTuple):
    id: bytes
    offset: int
    length: int
    kind: Kind


def encode_directory(entries: Iterable[Entry], offset: int, keys: Keys) -> bytes:
    """The directory and the trailer of a pack whose blobs end at `offset`."""
    table = b"".join(ENTRY.pack(e.id, e.offset, e.length, e.kind, b"\0\0\0") for e in entries)
    head = TRAILER.pack(MAGIC, VERSION, b"\0\0\0", offset, len(table) // ENTRY.size)
    return table + head + _mac(table + head, keys)


def tail_size(trailer: bytes, pack_size: int) -> int:
    """How many bytes at the end of the pack hold directory and trailer, from its last TRAILER_SIZE bytes.
    Not authenticated yet: `parse_tail` does that."""
    if len(trailer) != TRAILER_SIZE or pack_size < TRAILER_SIZE:
        raise LengthError("pack is cut short")
    magic, version, _, offset, count = TRAILER.unpack_from(trailer)
    if magic != MAGIC:
        raise MagicError("pack does not end in a trailer")
    if version != VERSION:
        raise VersionError(f"pack has format version {version}; this program knows {VERSION}")
    size: int = count * ENTRY.size + TRAILER_SIZE
    if count > MAX_ENTRIES or offset + size != pack_size:
        raise LengthError("pack is not as long as its trailer says")
    return size


def parse_tail(tail: bytes, pack_size: int, keys: Keys) -> list[Entry]:
    """The directory, from the last `tail_size` bytes of the pack."""
    if len(tail) != tail_size(tail[-TRAILER_SIZE:], pack_size):
        raise LengthError("pack directory is cut short")
    if not hmac.compare_digest(_mac(tail[:-MAC_SIZE], keys), tail[-MAC_SIZE:]):
        raise AuthenticationError("pack directory was changed")
    if TRAILER.unpack_from(tail, len(tail) - TRAILER_SIZE)[2] != b"\0\0\0":
        raise ContentError("pack trailer makes no sense")
    return list(_entries(tail[:-TRAILER_SIZE], pack_size - len(tail)))


def _entries(table: bytes, blobs_end: int) -> Iterator[Entry]:
    expected = 0
    for blob_id, offset, length, kind, reserved in ENTRY.iter_unpack(table):
        known = kind in (Kind.DATA, Kind.NODE, Kind.ARTIFACT)
        possible = OVERHEAD < length <= OVERHEAD + MAX_PLAIN
        if offset != expected or not possible or not known or reserved != b"\0\0\0":
            raise ContentError("pack directory makes no sense")
        expected += length
        yield Entry(blob_id, offset, length, Kind(kind))
    if expected != blobs_end:
        raise ContentError("pack directory does not cover the pack")


def _mac(data: bytes, keys: Keys) -> bytes:
    return blake3(data + keys.repository_id, key=keys.directory).digest()
