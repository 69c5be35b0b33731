"""Linux software RAID: the arrays on the members that were found, without the md driver.

Superblocks of version 0.90 and 1.0 to 1.2, from include/uapi/linux/raid/md_p.h of Linux; those of 0.90 are in
the byte order of the machine that made them, little-endian here. RAID 1, linear, RAID 0 with zones of several
sizes, and RAID 4, 5, 6 and 10 are read, with as many members lost as their redundancy makes up for.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple
from uuid import UUID

from vmfs.volumes import raid
from vmfs.volumes.damage import Unmappable
from vmfs.volumes.glimpse import Glimpse
from vmfs.volumes.pieces import Joined, LaidSpace, Mirror, Part
from vmfs.volumes.space import Space

SECTOR = 512
MAGIC = 0xA92B4EFC
BLOCK = 4096
MAX_SECTORS = 1 << 54
MAX_ROLES = (BLOCK - 256) // 2
# magic, major, features, UUID, name, time, level, layout, size, chunk, members
HEAD_1 = struct.Struct("<III4x16s32sQiIQII")
# start and size of the data, place of this superblock, how far recovered, own number
DATA_1 = struct.Struct("<QQQQI")
DATA_AT = 128
EVENTS_AT = 200
RESYNC_AT = 208
NOTHING_TO_SYNC = (1 << 64) - 1
SUM_AT = 216
MAX_DEV_AT = 220
ROLES_AT = 256
RECOVERY = 2
RESHAPE = 4
BAD_BLOCKS = 8
JOURNAL = 512
RAID0_LAYOUT = 4096
SPARE = 0xFFFD
"""This number and those above it are no place in the array: a journal, a faulty member, a spare."""
LEVELS = {-1: "linear", 0: "RAID 0", 1: "RAID 1", 4: "RAID 4", 5: "RAID 5", 6: "RAID 6", 10: "RAID 10"}
KIB = 1024
# Words of a 0.90 superblock: level, size, members, chunk, place of member n, own place.
OLD_UUID = (5, 13, 14, 15)
OLD_SUM = 38
OLD_MEMBERS = 27
OLD_STATE_SYNC = 1 << 2
OLD_STATE_FAULTY = 1
OLD_CLEAN = 1
# Minor version of one that is being reshaped.
OLD_RESHAPE = 91

Warn = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Superblock:
    """Sizes and places are bytes. `size` is what of each member is used, 0 when it differs. `number` is the
    member's own, and `roles` has for each number the position in the array, None for a spare or a faulty
    member. `clean` says whether parity and data agreed for sure. `at` is where this superblock lies."""

    at: int
    uuid: str
    name: str
    level: int
    layout: int
    size: int
    chunk: int
    members: int
    start: int
    length: int
    number: int
    roles: tuple[int | None, ...]
    events: int
    in_sync: bool
    reshaping: bool
    clean: bool = True
    has_journal: bool = False
    has_bad_blocks: bool = False
    layout_known: bool = True

    def place_of(self, number: int) -> int | None:
        """Where this superblock says that a member is."""
        return self.roles[number] if number < len(self.roles) else None

    @property
    def place(self) -> int | None:
        return self.place_of(self.number)


class Member(NamedTuple):
    key: str
    name: str
    space: LaidSpace
    block: Superblock


class Array(NamedTuple):
    key: str
    name: str
    space: LaidSpace
    members: tuple[str, ...]


class Arrays:
    """All members found so far."""

    def __init__(self) -> None:
        self._members: list[Member] = []
        self._problems: list[str] = []

    def add(self, key: str, name: str, space: LaidSpace) -> None:
        """Takes the volume in when it is a member of an array. Raises what reading raises."""
        block = read_superblock(space)
        if block is None:
            self._problems.append(f"volume {name}: its md superblock is damaged; it is left out")
            return
        self._members.append(Member(key, name, space, block))

    def volumes(self, warn: Warn) -> Iterator[Array]:
        for text in self._problems:
            warn(text)
        by_array: dict[str, list[Member]] = {}
        for member in self._members:
            by_array.setdefault(member.block.uuid, []).append(member)
        for uuid, members in by_array.items():
            newest = max(members, key=lambda member: member.block.events).block
            name = f"md-{newest.name or uuid[:8]}"
            try:
                say = partial(_say, warn, name)
                used = _in_force(newest, members, say)
                space = _assemble(newest, used, say)
                if not space.size:
                    raise Unmappable("its members are smaller than a chunk")
            except Unmappable as error:
                warn(f"array {name} is left out: {error}")
                continue
            keys = tuple(member.key for member in used if member is not None)
            yield Array(f"md/{uuid}", name, space, keys)


def _say(warn: Warn, array: str, text: str) -> None:
    warn(f"array {array}: {text}")


def _in_force(newest: Superblock, members: Sequence[Member], warn: Warn) -> list[Member | None]:
    """The members by their places in the array; None where one is missing or out of date."""
    if not 1 <= newest.members <= raid.MAX_MEMBERS:
        raise Unmappable(f"it is said to have {newest.members} members")
    found: list[Member | None] = [None] * newest.members
    for member in members:
        block = member.block
        if block.place is None:
            continue
        if block.place >= newest.members:
            warn(f"{member.name} is member {block.place} of {newest.members}, says it; it is not used")
            continue
        # The driver takes one that is one event behind, as it was cut off while the others were written; but
        # not one that was found faulty then, of which only the others know.
        agreed = newest.place_of(block.number) == block.place
        if block.events + 1 < newest.events or not block.in_sync or not agreed:
            warn(f"{member.name} is out of date or not in sync; it is not used")
            continue
        if block.has_bad_blocks:
            warn(f"{member.name} has blocks that could not be written; what is read there may be old")
        known = found[block.place]
        if known is not None:
            kept = known if known.block.events >= block.events else member
            warn(
                f"{known.name} and {member.name} are the same member (a disk was copied); {kept.name} is used"
            )
            found[block.place] = kept
        else:
            found[block.place] = member
    return found


def _assemble(array: Superblock, members: Sequence[Member | None], warn: Warn) -> LaidSpace:
    if array.level not in LEVELS:
        raise Unmappable(f"arrays of level {array.level} are not read")
    if array.reshaping:
        raise Unmappable("it is being reshaped, which is not read")
    if array.has_journal:
        raise Unmappable("it has a write journal, and the newest data may be there; journals are not read")
    columns: list[LaidSpace | None] = [None if member is None else _data(array, member) for member in members]
    present = [column for column in columns if column is not None]
    if array.level == 1:
        if not present:
            raise Unmappable("none of its members is usable")
        # The sort keeps the order of those that are alike.
        whole = [member for member in members if member is not None]
        legs = sorted(zip(whole, present, strict=True), key=lambda pair: pair[0].block.has_bad_blocks)
        return Mirror([leg for _, leg in legs])
    if array.level == 10:
        if array.layout >> 17:
            raise Unmappable(f"its layout {array.layout} of RAID 10 is not known")
        if not present:
            raise Unmappable("none of its members is usable")
        near, far, offset = array.layout & 0xFF, array.layout >> 8 & 0xFF, array.layout >> 16 & 1
        return raid.copied(columns, array.chunk, near, far, offset=bool(offset))
    missing = f"{len(columns) - len(present)} of its {len(columns)} members are missing or out of date"
    if array.level in (-1, 0):
        if len(present) < len(columns):
            raise Unmappable(missing)
        if array.level == -1:
            return Joined([_whole_chunks(column, array.chunk) for column in present])
        return _zones(array, present)
    space = raid.parity(columns, array.chunk, array.level, array.layout)
    if len(present) < len(columns):
        warn(f"{missing}; what they held is computed from the parity")
        if not array.clean:
            warn("it was in use: what was being written just then may be computed wrong")
    return space


def _data(array: Superblock, member: Member) -> LaidSpace:
    """The part of a member that holds the array's data."""
    block = member.block
    length = block.length if array.level in (-1, 0) or not array.size else min(array.size, block.length)
    if not (0 <= block.start < member.space.size and 0 < length <= member.space.size - block.start):
        raise Unmappable(f"its member {member.name} is smaller than its data are said to be")
    return Part(member.space, block.start, length)


def _whole_chunks(column: LaidSpace, chunk: int) -> LaidSpace:
    return Part(column, 0, column.size // chunk * chunk) if 0 < chunk < column.size else column


def _zones(array: Superblock, columns: Sequence[LaidSpace]) -> LaidSpace:
    """RAID 0 over members of several sizes: when the smallest is full, stripes go on over the others
    (create_strip_zones of drivers/md/raid0.c)."""
    chunk = array.chunk
    if not SECTOR <= chunk <= raid.MAX_CHUNK:
        raise Unmappable(f"it is said to have chunks of {chunk} bytes")
    sizes = [column.size // chunk * chunk for column in columns]
    if not min(sizes):
        raise Unmappable("a member is smaller than a chunk")
    levels = sorted(set(sizes))
    if len(levels) > 1 and not array.layout_known:
        raise Unmappable("its members differ in size, and which of the two layouts it has is not said")
    zones: list[LaidSpace] = []
    begin = first = 0
    for end in levels:
        parts = [
            Part(column, begin, end - begin)
            for column, size in zip(columns, sizes, strict=True)
            if size >= end
        ]
        # By the first layout, chunks are counted from the start of the array and not of the zone.
        zones.append(raid.striped(parts, chunk, first % len(parts) if array.layout == 1 else 0))
        first += len(parts) * (end - begin) // chunk
        begin = end
    return zones[0] if len(zones) == 1 else Joined(zones)


def read_superblock(space: Space | Glimpse) -> Superblock | None:
    """The superblock of a member, of whatever version; None when there is none, or it is damaged."""
    sectors = space.size // SECTOR
    for at in (4096, 0, (sectors - 16 & ~7) * SECTOR):
        if 0 <= at <= space.size - 256:
            block = _superblock_1(space.read(at, BLOCK), at, space.size)
            if block is not None:
                return block
    old = (space.size & ~0xFFFF) - 0x10000
    return _superblock_0(space.read(old, BLOCK), old) if old >= 0 else None


def _superblock_1(block: bytes, at: int, size: int) -> Superblock | None:
    if len(block) < ROLES_AT:
        return None
    magic, major, features, uuid, name, _, level, layout, used, chunk, members = HEAD_1.unpack_from(block)
    most = struct.unpack_from("<I", block, MAX_DEV_AT)[0]
    if (magic, major) != (MAGIC, 1) or most > MAX_ROLES or ROLES_AT + 2 * most > len(block):
        return None
    if _sum_1(block, most) != struct.unpack_from("<I", block, SUM_AT)[0]:
        return None
    start, length, own, recovered, number = DATA_1.unpack_from(block, DATA_AT)
    if own * SECTOR != at or max(start, length, used) > MAX_SECTORS:
        # One that belongs to the device around or within this one, of another size.
        return None
    roles = struct.unpack_from(f"<{most}H", block, ROLES_AT)
    return Superblock(
        at=at,
        uuid=str(UUID(bytes=uuid)),
        name=name.split(b"\0", 1)[0].decode("utf-8", "replace").rsplit(":", 1)[-1],
        level=level,
        layout=layout,
        size=used * SECTOR,
        chunk=chunk * SECTOR,
        members=members,
        start=start * SECTOR,
        length=length * SECTOR,
        number=number,
        roles=tuple(role if role < SPARE else None for role in roles),
        events=struct.unpack_from("<Q", block, EVENTS_AT)[0],
        in_sync=not features & RECOVERY or recovered >= used,
        reshaping=bool(features & RESHAPE),
        clean=struct.unpack_from("<Q", block, RESYNC_AT)[0] == NOTHING_TO_SYNC,
        has_journal=bool(features & JOURNAL),
        has_bad_blocks=bool(features & BAD_BLOCKS),
        layout_known=bool(features & RAID0_LAYOUT) and layout in (1, 2),
    )


def _sum_1(block: bytes, most: int) -> int:
    """calc_sb_1_csum of drivers/md/md.c: the words, the checksum taken for 0, folded once."""
    raw = block[:SUM_AT] + bytes(4) + block[SUM_AT + 4 : ROLES_AT + 2 * most]
    total: int = sum(struct.unpack_from(f"<{len(raw) // 4}I", raw))
    if len(raw) % 4:
        total += struct.unpack_from("<H", raw, len(raw) - 2)[0]
    return (total & 0xFFFFFFFF) + (total >> 32) & 0xFFFFFFFF


def _superblock_0(block: bytes, at: int) -> Superblock | None:
    if len(block) < BLOCK:
        return None
    words = struct.unpack("<1024I", block)
    if words[0] != MAGIC or words[1] != 0:
        return None
    total = sum(words) - words[OLD_SUM]
    if (total & 0xFFFFFFFF) + (total >> 32) & 0xFFFFFFFF != words[OLD_SUM]:
        return None
    level = words[7] - (1 << 32) if words[7] >> 31 else words[7]
    used = words[8] * KIB
    chunk = words[65]
    # Levels without redundancy use all of a member before its superblock, in whole chunks.
    length = at if level in (-1, 0) else used
    return Superblock(
        at=at,
        uuid=str(UUID(bytes=struct.pack(">4I", *(words[index] for index in OLD_UUID)))),
        name="",
        level=level,
        layout=words[64],
        size=used,
        chunk=chunk,
        members=words[10],
        start=0,
        length=length,
        number=words[992],
        roles=tuple(_old_role(words, number) for number in range(OLD_MEMBERS)),
        events=words[40] << 32 | words[39],
        in_sync=True,
        reshaping=words[2] >= OLD_RESHAPE,
        clean=bool(words[33] & OLD_CLEAN),
        layout_known=False,
    )


def _old_role(words: Sequence[int], number: int) -> int | None:
    place, state = words[128 + 32 * number + 3 : 128 + 32 * number + 5]
    return place if state & OLD_STATE_SYNC and not state & OLD_STATE_FAULTY else None
