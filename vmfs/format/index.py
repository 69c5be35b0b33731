"""An index: where blobs lie, as one immutable sorted table that is searched without loading it.

    offset        size
         0           4  magic "VMFI"
         4           1  version
         5           1  f, fan-out bits, 0 to 24
         6           2  zero
         8           4  p, number of packs
        12           4  zero
        16           8  n, number of entries
        24        40·p  packs: name (32 bytes, BLAKE3 of the pack), size (8)
         …       4·2^f  fan-out: entry k is how many blob ids have their first f bits <= k
         …        44·n  entries, ascending by blob id: id (32), pack number (4), offset (4), length (4)
         …          32  MAC: keyed BLAKE3 of all of the above and the repository id

Ids are uniform, so the fan-out leaves about 64 entries to look through: one small read a look-up. The same
structure serves as the object in the store and, merged, as the local cache.
"""

from __future__ import annotations

import hmac
import struct
import sys
from array import array
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from blake3 import blake3

from vmfs.format import VERSION
from vmfs.format.blob import MAX_PLAIN, OVERHEAD
from vmfs.format.errors import AuthenticationError, ContentError, LengthError, MagicError, VersionError
from vmfs.format.keys import Keys

MAGIC = b"VMFI"
HEADER = struct.Struct("<4sBBHIIQ")
PACK = struct.Struct("<32sQ")
ENTRY = struct.Struct("<32sIII")
PLACE = struct.Struct("<III")
ID_SIZE = 32
MAC_SIZE = 32
MAX_FANOUT_BITS = 24


class PackRef(NamedTuple):
    name: bytes
    size: int


class Header(NamedTuple):
    fanout_bits: int
    packs: int
    entries: int

    @property
    def fanout_offset(self) -> int:
        return HEADER.size + self.packs * PACK.size

    @property
    def entries_offset(self) -> int:
        return self.fanout_offset + (4 << self.fanout_bits)

    @property
    def size(self) -> int:
        """Of the whole index, bytes."""
        return self.entries_offset + self.entries * ENTRY.size + MAC_SIZE


def fanout_bits(entries: int) -> int:
    """About 64 entries to a bucket."""
    return min(MAX_FANOUT_BITS, max(0, (entries // 64).bit_length()))


def bucket(blob_id: bytes, bits: int) -> int:
    return int.from_bytes(blob_id[:4], "big") >> (32 - bits)


def encode_head(packs: Sequence[PackRef], counts: array[int]) -> bytes:
    """Header, pack table and fan-out for entries whose buckets hold `counts` each (a power of two)."""
    bits = (len(counts) - 1).bit_length()
    total = 0
    fanout = array("I")
    for count in counts:
        total += count
        fanout.append(total)
    if sys.byteorder == "big":
        fanout.byteswap()
    head = HEADER.pack(MAGIC, VERSION, bits, 0, len(packs), 0, total)
    return head + b"".join(PACK.pack(*pack) for pack in packs) + fanout.tobytes()


def mac(keys: Keys) -> blake3:
    """The running MAC: update with the bytes, finish with `finish_mac`."""
    return blake3(key=keys.index)


def finish_mac(running: blake3, keys: Keys) -> bytes:
    return running.update(keys.repository_id).digest()


def encode(packs: Sequence[PackRef], rows: Sequence[bytes], keys: Keys) -> bytes:
    """The index over `rows`, each a packed ENTRY, sorted by blob id and without repeated ids."""
    bits = fanout_bits(len(rows))
    counts = array("I", bytes(4 << bits))
    for row in rows:
        counts[bucket(row, bits)] += 1
    body = encode_head(packs, counts) + b"".join(rows)
    return body + finish_mac(mac(keys).update(body), keys)


def parse_header(data: bytes, size: int) -> Header:
    """The header at the start of an index of `size` bytes in all. Neither authenticated nor checked for
    content: `check` does that."""
    if len(data) < HEADER.size or size < HEADER.size + MAC_SIZE:
        raise LengthError("index is cut short")
    magic, version, bits, _, packs, _, entries = HEADER.unpack_from(data)
    if magic != MAGIC:
        raise MagicError("this is no index")
    if version != VERSION:
        raise VersionError(f"index has format version {version}; this program knows {VERSION}")
    header = Header(bits, packs, entries)
    if bits > MAX_FANOUT_BITS or header.size != size:
        raise LengthError("index is not as long as its header says")
    return header


def check(data: bytes, keys: Keys) -> Header:
    """The header of the whole index `data`, authenticated and checked to be in order."""
    header = parse_header(data, len(data))
    if not hmac.compare_digest(
        finish_mac(mac(keys).update(memoryview(data)[:-MAC_SIZE]), keys), data[-MAC_SIZE:]
    ):
        raise AuthenticationError("index was changed")
    _, _, _, reserved1, _, reserved2, _ = HEADER.unpack_from(data)
    if reserved1 or reserved2 or not _in_order(data, header):
        raise ContentError("index makes no sense")
    return header


def _in_order(data: bytes, header: Header) -> bool:
    """Whether ids ascend, the fan-out is theirs, and every entry names a pack of the table and a length that
    a blob can have."""
    start, end = header.entries_offset, len(data) - MAC_SIZE
    rows = range(start, end, ENTRY.size)
    if any(a >= b for a, b in pairwise(data[at : at + ID_SIZE] for at in rows)):
        return False
    numbers = u32s(data[start:end])
    if max(numbers[8 :: ENTRY.size // 4], default=-1) >= header.packs:
        return False
    if max(numbers[10 :: ENTRY.size // 4], default=0) > OVERHEAD + MAX_PLAIN:
        return False
    before = 0
    for number, after in enumerate(u32s(data[header.fanout_offset : start])):
        if not before <= after <= header.entries:
            return False
        for at, inside in ((after - 1, True), (after, False)):
            if 0 <= at < header.entries:
                first = rows[at]
                if (bucket(data[first : first + ID_SIZE], header.fanout_bits) <= number) is not inside:
                    return False
        before = after
    return before == header.entries


def packs(data: bytes, header: Header) -> list[PackRef]:
    """From the first bytes of an index, at least up to its fan-out."""
    return [PackRef(*item) for item in PACK.iter_unpack(data[HEADER.size : header.fanout_offset])]


def u32s(data: bytes) -> array[int]:
    """From the bytes of a table of 32-bit numbers, such as the fan-out."""
    table = array("I", data)
    if sys.byteorder == "big":
        table.byteswap()
    return table
