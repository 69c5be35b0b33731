"""GUID partition tables (UEFI 2.10, chapter 5). Primary and backup, both CRCs checked."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from uuid import UUID

from vmfs.errors import VmfsError
from vmfs.volumes.model import Disk, Volume
from vmfs.volumes.types import GPT_TYPES

SIGNATURE = b"EFI PART"
# signature, revision, header size, header CRC, reserved, own LBA, other LBA, first and last usable LBA,
# disk GUID, LBA of the entries, their number, size of one, their CRC
HEADER = struct.Struct("<8s4sIIIQQQQ16sQIII")
# type GUID, own GUID, first LBA, last LBA (inclusive), attributes, name (UTF-16LE)
ENTRY = struct.Struct("<16s16sQQQ72s")
MAX_ENTRY_SIZE = 4096
# Linux takes no more; a header that asks for more is hostile or damaged.
MAX_ARRAY = 4 << 20
PRIMARY_LBA = 1


class _Unusable(Exception):
    """Why one copy of the table cannot be used."""


@dataclass(frozen=True, slots=True)
class _Header:
    other_lba: int
    entries_lba: int
    count: int
    entry_size: int
    entries_crc: int


def volumes(disk: Disk) -> list[Volume] | None:
    """The partitions of the disk's GPT by its primary copy, else by its backup; None when it has neither.
    Why the primary is not used goes to the warnings when anything was there at all."""
    last = disk.size // disk.block_size - 1
    if last <= PRIMARY_LBA:
        return None
    candidates = [last]
    try:
        header = _header(disk, PRIMARY_LBA)
        candidates.append(header.other_lba)
        return _entries(disk, header)
    except _Unusable as error:
        problem = f"the primary GPT {error}"
    except (VmfsError, OSError) as error:
        problem = f"the primary GPT cannot be read: {error}"
    for lba in dict.fromkeys(candidates):
        if not PRIMARY_LBA < lba <= last:
            continue
        try:
            found = _entries(disk, _header(disk, lba))
        except (_Unusable, VmfsError, OSError):
            continue
        disk.warn(f"{problem}; its backup is used")
        return found
    if _signed(disk):
        disk.warn(f"{problem}, and no backup of it is usable")
    return None


def _signed(disk: Disk) -> bool:
    try:
        return disk.blocks(PRIMARY_LBA, 1).startswith(SIGNATURE)
    except (VmfsError, OSError):
        return False


def _header(disk: Disk, lba: int) -> _Header:
    block = disk.blocks(lba, 1)
    if len(block) < disk.block_size or not block.startswith(SIGNATURE):
        raise _Unusable("is missing")
    (_, _, header_size, crc, _, own, other, _, _, _, entries_lba, count, entry_size, entries_crc) = (
        HEADER.unpack_from(block)
    )
    if not HEADER.size <= header_size <= disk.block_size:
        raise _Unusable("has a header of an impossible size")
    if zlib.crc32(block[:16] + bytes(4) + block[20:header_size]) != crc:
        raise _Unusable("has a header with a wrong checksum")
    if own != lba:
        raise _Unusable("lies at another place than it says")
    return _Header(other, entries_lba, count, entry_size, entries_crc)


def _entries(disk: Disk, header: _Header) -> list[Volume]:
    size = header.entry_size
    # The specification allows 128 times a power of two.
    if not ENTRY.size <= size <= MAX_ENTRY_SIZE or size & (size - 1) or header.count * size > MAX_ARRAY:
        raise _Unusable(f"asks for {header.count} entries of {size} bytes")
    array = disk.at(header.entries_lba * disk.block_size, header.count * size)
    if len(array) < header.count * size:
        raise _Unusable("has entries beyond the end of the disk")
    if zlib.crc32(array) != header.entries_crc:
        raise _Unusable("has entries with a wrong checksum")
    found = []
    for index in range(header.count):
        volume = _volume(disk, index + 1, array[index * size : index * size + ENTRY.size])
        if volume is not None:
            found.append(volume)
    return found


def _volume(disk: Disk, number: int, entry: bytes) -> Volume | None:
    kind, own, first, last, _, name = ENTRY.unpack(entry)
    if not any(kind):
        return None
    start = first * disk.block_size
    wanted = (last - first + 1) * disk.block_size
    length = disk.clip(f"partition {number}", start, wanted)
    if length is None:
        return None
    guid = str(UUID(bytes_le=kind))
    return Volume(
        name=f"p{number}",
        number=number,
        start=start,
        length=length,
        type=guid,
        type_name=GPT_TYPES.get(guid),
        label=name.decode("utf-16-le", "replace").split("\0", 1)[0] or None,
        uuid=str(UUID(bytes_le=own)),
        is_cut=length < wanted,
    )
