"""md arrays from superblocks written by hand: which members count, and what is said of those that do not."""

from __future__ import annotations

import random
import struct

import pytest
from volume_helpers import SECTOR, MemoryDisk, md_superblock

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
    assert array.space.pieces() == ((0, 300 * SECTOR, 0, START * SECTOR),)
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
