"""MBR partition tables, with the chain of extended boot records that holds logical partitions."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from vmfs.errors import VmfsError
from vmfs.volumes.model import Disk, Volume
from vmfs.volumes.types import MBR_TYPES

SIGNATURE = b"\x55\xaa"
SIGNATURE_AT = 510
DISK_ID_AT = 440
TABLE_AT = 446
SLOTS = 4
# status, CHS of the first block, type, CHS of the last, first block, number of blocks
ENTRY = struct.Struct("<B3sB3sII")
RECORD_SIZE = 512
ACTIVE = 0x80
EXTENDED = frozenset((0x05, 0x0F, 0x85))
PROTECTIVE = 0xEE
FIRST_LOGICAL = 5
# As many as Linux makes devices for. It also bounds a chain that never ends.
MAX_CHAIN = 256


@dataclass(frozen=True, slots=True)
class Entry:
    """A used slot of a boot record; `first` and `count` are blocks."""

    slot: int
    type: int
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class BootRecord:
    """The first block of a disk that has a partition table."""

    disk_id: int
    entries: tuple[Entry, ...]

    @property
    def protective(self) -> bool:
        return any(entry.type == PROTECTIVE for entry in self.entries)


def read_boot_record(disk: Disk) -> BootRecord | None:
    """None when the first block is not a partition table: no signature, or the boot sector of a file system
    that fills the whole disk, which ends in the same signature."""
    block = disk.at(0, RECORD_SIZE)
    entries = _table(block)
    if entries is None:
        return None
    if _is_file_system(block) and not (entries and _is_consistent(disk, entries)):
        return None
    return BootRecord(struct.unpack_from("<I", block, DISK_ID_AT)[0], entries)


def volumes(disk: Disk, boot: BootRecord) -> list[Volume]:
    """Primary partitions with the numbers of their slots, then logical ones from 5."""
    found = []
    for entry in boot.entries:
        if entry.type != PROTECTIVE and entry.type not in EXTENDED:
            found += _volume(disk, boot, entry.slot, entry.type, entry.first, entry.count)
    number = FIRST_LOGICAL
    for entry in boot.entries:
        if entry.type in EXTENDED:
            for logical, base in _chain(disk, entry):
                first = base + logical.first
                if first + logical.count > entry.first + entry.count:
                    disk.warn(f"partition {number} reaches beyond its extended partition")
                found += _volume(disk, boot, number, logical.type, first, logical.count)
                number += 1
    return found


def _table(block: bytes, *, strict: bool = True) -> tuple[Entry, ...] | None:
    """The used slots of a boot record, or None when it is not one."""
    if len(block) < RECORD_SIZE or block[SIGNATURE_AT : SIGNATURE_AT + 2] != SIGNATURE:
        return None
    entries = []
    for slot in range(SLOTS):
        status, _, kind, _, first, count = ENTRY.unpack_from(block, TABLE_AT + slot * ENTRY.size)
        # Boot code and messages end in the same signature; they do not have these bytes here.
        if strict and status not in (0, ACTIVE):
            return None
        if kind != 0 and (count != 0 or kind == PROTECTIVE):
            entries.append(Entry(slot + 1, kind, first, count))
    return tuple(entries)


def _is_file_system(block: bytes) -> bool:
    if block[3:11] in (b"NTFS    ", b"EXFAT   ", b"-FVE-FS-", b"ReFS\0\0\0\0"):
        return True
    sector, cluster, reserved, fats = struct.unpack_from("<HBHB", block, 11)
    return (
        block[0] in (0xEB, 0xE9)
        and sector in (512, 1024, 2048, 4096)
        and cluster != 0
        and cluster & (cluster - 1) == 0
        and reserved != 0
        and fats in (1, 2)
        and (block[21] == 0xF0 or block[21] >= 0xF8)
    )


def _is_consistent(disk: Disk, entries: tuple[Entry, ...]) -> bool:
    """Whether a table beside a file system's parameter block can be meant: boot loaders keep such a block
    in a real MBR, and boot code can look like a table."""
    end = 0
    for entry in sorted(entries, key=lambda item: item.first):
        if entry.first <= 0 or entry.first < end or entry.type == 0:
            return False
        end = entry.first + entry.count
    return end * disk.block_size <= disk.size


def _chain(disk: Disk, extended: Entry) -> Iterator[tuple[Entry, int]]:
    """The logical partitions of an extended one, each with the block that its own start counts from."""
    seen: set[int] = set()
    where = extended.first
    while True:
        if where in seen:
            disk.warn("the chain of logical partitions runs in a circle; it is cut there")
            return
        if len(seen) >= MAX_CHAIN:
            disk.warn(f"the chain of logical partitions has more than {len(seen)} links; it is cut there")
            return
        seen.add(where)
        if where <= 0 or where * disk.block_size + RECORD_SIZE > disk.size:
            disk.warn("the chain of logical partitions leads beyond the end of the disk; it is cut there")
            return
        try:
            # Of what a boot record in the chain must be, Linux asks for the signature only.
            entries = _table(disk.at(where * disk.block_size, RECORD_SIZE), strict=False)
        except (VmfsError, OSError) as error:
            disk.warn(f"the chain of logical partitions cannot be read on: {error}")
            return
        if entries is None:
            disk.warn("the chain of logical partitions is damaged; those after the damage are left out")
            return
        following = None
        end = extended.first + extended.count
        for entry in entries:
            if entry.type not in EXTENDED:
                # Two slots are used; in the others some programs have left garbage (msdos.c of Linux).
                if entry.slot <= 2 or where + entry.first + entry.count <= end:
                    yield entry, where
            elif following is None:
                following = extended.first + entry.first
        if following is None:
            return
        where = following


def _volume(disk: Disk, boot: BootRecord, number: int, kind: int, first: int, count: int) -> list[Volume]:
    start = first * disk.block_size
    if start == 0:
        disk.warn(f"partition {number} starts on the partition table itself")
    length = disk.clip(f"partition {number}", start, count * disk.block_size)
    if length is None:
        return []
    return [
        Volume(
            name=f"p{number}",
            number=number,
            start=start,
            length=length,
            type=f"0x{kind:02x}",
            type_name=MBR_TYPES.get(kind),
            uuid=f"{boot.disk_id:08x}-{number:02x}",
            is_cut=length < count * disk.block_size,
        )
    ]
