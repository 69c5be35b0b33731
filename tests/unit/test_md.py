"""md arrays from superblocks written by hand: which members count, and what is said of those that do not."""

from __future__ import annotations

import random
import struct

import pytest
from volume_helpers import SECTOR, MemoryDisk, md_superblock, md_superblock_0, mend_md

from vmfs.volumes.layout import FoundVolume, Layout, PointDisk, find_volumes

CHUNK = 4096
START = 64
SIZE = 256 << 10
NOISE = random.Random(3).randbytes(SIZE)  # noqa: S311


def member(
    role: int, *, sectors: int = 400, at: int = 4096, fill: int | None = None, **facts: int
) -> bytearray:
    """A disk that is one: noise of its own, with a superblock."""
    disk = bytearray(random.Random(role if fill is None else fill).randbytes(SIZE))  # noqa: S311
    disk[: START * SECTOR] = bytes(START * SECTOR)
    block = md_superblock(role=role, data_start=START, data_sectors=sectors, at=at, **facts)  # type: ignore[arg-type]
    disk[at : at + len(block)] = block
    return disk


def find(*disks: bytearray) -> Layout:
    return find_volumes([PointDisk(f"disk{n}", MemoryDisk(bytes(disk)), 512) for n, disk in enumerate(disks)])


def array_of(layout: Layout) -> FoundVolume:
    (array,) = [volume for volume in layout.volumes if volume.kind == "md"]
    return array


def content(disk: bytearray, start: int, length: int) -> bytes:
    return bytes(disk[START * SECTOR + start : START * SECTOR + start + length])


def mirror(role: int, **facts: int) -> bytearray:
    return member(role, level=1, members=2, size_sectors=300, **facts)


def test_mirror() -> None:
    disks = [mirror(0), mirror(1)]
    layout = find(*disks)
    array = array_of(layout)
    assert (array.name, array.members) == ("md-data", ("0", "1"))
    assert array.key == "md/6d6d6d6d-6d6d-6d6d-6d6d-6d6d6d6d6d6d"
    assert array.space.read(0, SIZE) == content(disks[0], 0, 300 * SECTOR)
    assert array.space.copies() == tuple(((0, 300 * SECTOR, disk, START * SECTOR),) for disk in (0, 1))
    assert {ground.disk for ground in array.space.footprint()} == {0, 1}
    assert layout.warnings == ()


@pytest.mark.parametrize("stale", [{"events": 18}, {"features": 2}])
def test_member_that_is_behind_is_not_read(stale: dict[str, int]) -> None:
    disks = [mirror(0, **stale), mirror(1)]
    layout = find(*disks)
    assert array_of(layout).space.read(0, 100) == content(disks[1], 0, 100)
    assert layout.warnings == ("array md-data: disk0 is out of date or not in sync; it is not used",)


def test_member_one_event_behind_is_read() -> None:
    disks = [mirror(0, events=19), mirror(1)]
    assert array_of(find(*disks)).space.read(0, 100) == content(disks[0], 0, 100)


def test_member_that_the_others_found_faulty_is_not_read() -> None:
    """It is one event behind only, as the array was busy and never idle since, and knows nothing of it."""
    newest = mirror(1)
    struct.pack_into("<H", newest, 4096 + 256, 0xFFFE)
    newest[4096 : 4096 + 1024] = mend_md(newest[4096 : 4096 + 1024])
    layout = find(mirror(0, events=19), newest)
    assert array_of(layout).space.read(0, 100) == content(newest, 0, 100)
    assert layout.warnings == ("array md-data: disk0 is out of date or not in sync; it is not used",)


def test_member_with_bad_blocks_comes_last() -> None:
    disks = [mirror(0, features=8), mirror(1)]
    layout = find(*disks)
    assert array_of(layout).space.read(0, 100) == content(disks[1], 0, 100)
    assert layout.warnings == (
        "array md-data: disk0 has blocks that could not be written; what is read there may be old",
    )


def test_copied_member() -> None:
    disks = [mirror(0, fill=7, events=19), mirror(0, fill=8)]
    layout = find(*disks)
    assert array_of(layout).space.read(0, 100) == content(disks[1], 0, 100)
    assert any("same member (a disk was copied); disk1 is used" in warning for warning in layout.warnings)


@pytest.mark.parametrize("at", [0, 4096, (SIZE // SECTOR - 16 & ~7) * SECTOR])
def test_each_place_of_a_superblock(at: int) -> None:
    assert array_of(find(mirror(0, at=at))).space.size == 300 * SECTOR


def test_superblock_at_a_place_that_is_not_its_own() -> None:
    disk = mirror(0, at=4096)
    disk[:1024] = disk[4096 : 4096 + 1024]
    disk[4096 : 4096 + 1024] = bytes(1024)
    layout = find(disk)
    assert [volume.kind for volume in layout.volumes] == ["disk"]
    assert layout.warnings == ("volume disk0: its md superblock is damaged; it is left out",)


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"level": 0, "members": 2}, "1 of its 2 members are missing"),
        ({"level": -1, "members": 3}, "2 of its 3 members are missing"),
        ({"level": 5, "members": 3}, "2 of its 3 members are missing"),
        ({"level": -4, "members": 1}, "level -4"),
        ({"level": 1, "members": 1, "features": 4}, "reshaped"),
        ({"level": 5, "members": 3, "features": 512}, "write journal"),
        ({"level": 10, "members": 2, "layout": 0x20102}, "not known"),
        ({"level": 10, "members": 2, "layout": 0x201}, "others do not stand in"),
        ({"level": 10, "members": 2, "layout": 0x105}, "5 copies on 2"),
        ({"level": 1, "members": 5000}, "5000 members"),
        ({"level": 1, "members": 0}, "0 members"),
        ({"level": 0, "members": 1, "chunk_sectors": 0}, "chunks of 0 bytes"),
        ({"level": 0, "members": 1, "chunk_sectors": 4000}, "smaller than a chunk"),
        ({"level": 1, "members": 1, "sectors": 1 << 50}, "smaller than its data"),
    ],
)
def test_what_is_left_out_is_said(facts: dict[str, int], reason: str) -> None:
    layout = find(member(0, **facts))
    assert [volume.kind for volume in layout.volumes] == ["disk"]
    assert len(layout.warnings) == 1
    assert layout.warnings[0].startswith("array md-data is left out: ")
    assert reason in layout.warnings[0]


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("lost", [0, 1, 2])
def test_lost_member_is_computed(lost: int, clean: bool) -> None:
    disks = [member(role, level=4, members=3, sectors=96, clean=clean) for role in range(3)]
    start, size = START * SECTOR, 96 * SECTOR
    both = [content(disk, 0, size) for disk in disks[:2]]
    disks[2][start : start + size] = bytes(one ^ other for one, other in zip(*both, strict=True))
    expected = b"".join(data[at : at + CHUNK] for at in range(0, size, CHUNK) for data in both)
    layout = find(*(disk for number, disk in enumerate(disks) if number != lost))
    assert array_of(layout).space.read(0, SIZE) == expected
    assert layout.warnings == (
        "array md-data: 1 of its 3 members are missing or out of date; what they held is computed from the "
        "parity",
        *(
            []
            if clean
            else ["array md-data: it was in use: what was being written just then may be computed wrong"]
        ),
    )


def test_linear() -> None:
    disks = [member(role, level=-1, members=2, sectors=100 + 8 * role) for role in range(2)]
    array = array_of(find(disks[1], disks[0]))
    size = [96 * SECTOR, 104 * SECTOR]
    assert array.space.read(0, SIZE) == content(disks[0], 0, size[0]) + content(disks[1], 0, size[1])
    assert array.members == ("1", "0")


LAYOUT_FLAG = 4096


@pytest.mark.parametrize("layout", [1, 2])
def test_stripes_over_members_of_three_sizes(layout: int) -> None:
    """As the driver does: chunk by chunk, over the members that reach so far."""
    chunks = [5, 12, 8]
    disks = [
        member(role, level=0, members=3, sectors=count * CHUNK // SECTOR, layout=layout, features=LAYOUT_FLAG)
        for role, count in enumerate(chunks)
    ]
    expected = b""
    number = 0
    for low, high in ((0, 5), (5, 8), (8, 12)):
        members = [disk for disk, count in zip(disks, chunks, strict=True) if count >= high]
        total = (high - low) * len(members)
        for inner in range(total):
            column = (number if layout == 1 else inner) % len(members)
            expected += content(members[column], (low + inner // len(members)) * CHUNK, CHUNK)
            number += 1
    assert array_of(find(*disks)).space.read(0, SIZE) == expected


def test_members_of_several_sizes_by_an_unknown_layout() -> None:
    disks = [member(role, level=0, members=2, sectors=100 * (role + 1)) for role in range(2)]
    layout = find(*disks)
    assert any("which of the two layouts" in warning for warning in layout.warnings)


def test_partitions_on_an_array() -> None:
    disk = mirror(0)
    record = bytearray(SECTOR)
    struct.pack_into("<B3sB3sII", record, 446, 0, b"", 0x83, b"", 8, 80)
    record[510:] = b"\x55\xaa"
    disk[START * SECTOR : (START + 1) * SECTOR] = record
    layout = find(disk)
    part = layout.volumes[-1]
    assert (part.name, part.kind, part.members) == ("md-data-p1", "partition", (array_of(layout).key,))
    assert part.space.read(0, 80 * SECTOR) == content(disk, 8 * SECTOR, 80 * SECTOR)


def old_member(level: int, number: int, **facts: int) -> bytearray:
    disk = bytearray(random.Random(number).randbytes(SIZE))  # noqa: S311
    at = (SIZE & ~0xFFFF) - 0x10000
    disk[at : at + 4096] = md_superblock_0(level=level, members=2, number=number, **facts)
    return disk


def test_old_superblock() -> None:
    disks = [old_member(1, 0, size_kib=100), old_member(1, 1, size_kib=100)]
    layout = find(*disks)
    assert array_of(layout).space.read(0, SIZE) == bytes(disks[0][: 100 << 10])
    assert layout.warnings == ()


def test_old_superblock_of_a_member_found_faulty() -> None:
    disks = [old_member(1, 0, size_kib=100, events=19), old_member(1, 1, size_kib=100, faulty=0)]
    assert array_of(find(*disks)).space.read(0, 100) == bytes(disks[1][:100])


def test_old_superblock_while_reshaped() -> None:
    layout = find(old_member(1, 0, size_kib=100, minor=91), old_member(1, 1, size_kib=100, minor=91))
    assert layout.warnings == ("array md-6d6d6d6d is left out: it is being reshaped, which is not read",)


END = (SIZE // SECTOR - 16 & ~7) * SECTOR


def with_table(disk: bytearray, *partitions: tuple[int, int]) -> bytearray:
    """A boot record with partitions of (first sector, sectors)."""
    for number, (first, count) in enumerate(partitions):
        struct.pack_into("<B3sB3sII", disk, 446 + 16 * number, 0, b"", 0x83, b"", first, count)
    for number in range(len(partitions), 4):
        disk[446 + 16 * number : 462 + 16 * number] = bytes(16)
    disk[510:512] = b"\x55\xaa"
    return disk


def whole(level: int, role: int, **facts: int) -> bytearray:
    """A whole disk as a member, with its superblock at the end."""
    disk = bytearray(random.Random(role).randbytes(SIZE))  # noqa: S311
    facts = {"data_start": 0, "data_sectors": 400, "members": 2, **facts}
    disk[END : END + 1024] = md_superblock(level=level, role=role, at=END, **facts)  # type: ignore[arg-type]
    return disk


def test_table_of_an_array_of_whole_disks_is_not_the_disks_own() -> None:
    """The first chunk of stripes is on the first disk, and its table would lead to wrong places there."""
    disks = [with_table(whole(0, 0), (8, 100), (108, 600)), whole(0, 1)]
    layout = find(*disks)
    array = array_of(layout)
    expected = b"".join(
        bytes(disk[at : at + CHUNK]) for at in range(0, 400 * SECTOR, CHUNK) for disk in disks
    )
    assert array.space.read(0, 2 * SIZE) == expected
    names = {volume.name: volume for volume in layout.volumes}
    assert set(names) == {"disk0", "disk1", "md-data", "md-data-p1", "md-data-p2"}
    part = names["md-data-p2"].space
    assert part.read(0, part.size) == expected[108 * SECTOR : 708 * SECTOR]
    assert layout.warnings == ()


def test_table_of_an_array_that_cannot_be_put_together() -> None:
    layout = find(with_table(whole(0, 0), (8, 100)))
    assert [volume.name for volume in layout.volumes] == ["disk0"]
    assert [warning.partition(": ")[0] for warning in layout.warnings] == [
        "array md-data is left out",
        "disk disk0",
    ]


def test_table_within_a_mirror_of_whole_disks() -> None:
    layout = find(*(with_table(whole(1, role, size_sectors=400), (8, 392)) for role in range(2)))
    assert [volume.name for volume in layout.volumes] == ["disk0", "disk1", "md-data", "md-data-p1"]


def test_superblock_in_the_last_partition_says_nothing_of_the_disk() -> None:
    """It is the partition's, or was left behind by an earlier use of the disk."""
    disk = with_table(whole(1, 0, size_sectors=400), (8, SIZE // SECTOR - 8))
    assert [volume.name for volume in find(disk).volumes][:1] == ["disk0-p1"]
