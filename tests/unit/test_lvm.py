"""LVM2, written by hand: what each kind of segment comes to, and what is said of those that are left out."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence

import pytest
from volume_helpers import (
    SECTOR,
    MemoryDisk,
    dashed,
    group_text,
    linear,
    lvm_crc,
    physical_volume,
    snapshot_store,
    thin_metadata,
    uuid_of,
    volume_text,
)

from vmfs.errors import IntegrityError
from vmfs.volumes.layout import FoundVolume, Layout, PointDisk, find_volumes
from vmfs.volumes.lvm.text import TextError, parse

EXTENT = 4096
START = 128
"""First sector of the extents."""
EXTENTS = 200
SIZE = (START * SECTOR) + EXTENTS * EXTENT
PV0, PV1, PV2 = (uuid_of(letter) for letter in "abc")
BOTH = {"pv0": (PV0, START, EXTENTS), "pv1": (PV1, START, EXTENTS)}


class Group:
    """Two disks that are one group, the extents filled with noise."""

    def __init__(self, logical: str, **options: object) -> None:
        self.text = group_text(BOTH, logical, **options)  # type: ignore[arg-type]
        noise = random.Random(5)  # noqa: S311
        self.content = [noise.randbytes(EXTENTS * EXTENT) for _ in BOTH]
        self.disks = [physical_volume(uuid, SIZE, self.text) for uuid in (PV0, PV1)]
        for disk, content in zip(self.disks, self.content, strict=True):
            disk[START * SECTOR :] = content

    def put(self, disk: int, extent: int, data: bytes) -> None:
        at = START * SECTOR + extent * EXTENT
        self.disks[disk][at : at + len(data)] = data
        self.content[disk] = bytes(self.disks[disk][START * SECTOR :])

    def extents(self, disk: int, first: int, count: int) -> bytes:
        return self.content[disk][first * EXTENT : (first + count) * EXTENT]

    def layout(self) -> Layout:
        return find([bytes(disk) for disk in self.disks])

    def volume(self, name: str) -> FoundVolume:
        return by_name(self.layout())[f"vg-{name}"]

    def bytes_of(self, name: str) -> bytes:
        volume = self.volume(name)
        return volume.space.read(0, volume.space.size)


def find(disks: Sequence[bytes]) -> Layout:
    names = "xyzuvw"
    return find_volumes([PointDisk(names[n], MemoryDisk(data), 512) for n, data in enumerate(disks)])


def by_name(layout: Layout) -> dict[str, FoundVolume]:
    found = {volume.name: volume for volume in layout.volumes}
    assert len(found) == len(layout.volumes)
    assert len({volume.key for volume in layout.volumes}) == len(layout.volumes)
    return found


def test_segments_over_two_disks() -> None:
    group = Group(volume_text("data", [(5, 3, linear("pv1", 100)), (0, 5, linear("pv0", 7))]))
    volume = group.volume("data")
    assert volume.space.read(0, 1 << 20) == group.extents(0, 7, 5) + group.extents(1, 100, 3)
    assert (volume.kind, volume.group, volume.logical) == ("lvm", "vg", "data")
    assert volume.key == f"lvm/{dashed(uuid_of('g'))}/{volume.key.rsplit('/')[-1]}"
    assert volume.members == ("0", "1")
    at = START * SECTOR
    assert volume.space.copies() == (
        ((0, 5 * EXTENT, 0, at + 7 * EXTENT), (5 * EXTENT, 3 * EXTENT, 1, at + 100 * EXTENT)),
    )
    assert [tuple(ground) for ground in volume.space.footprint()] == [
        (0, at + 7 * EXTENT, 5 * EXTENT),
        (1, at + 100 * EXTENT, 3 * EXTENT),
    ]
    assert group.layout().warnings == ()


def test_physical_volumes_are_shown_themselves() -> None:
    volumes = by_name(Group("").layout())
    assert [(volume.key, volume.kind) for volume in volumes.values()] == [("0", "disk"), ("1", "disk")]
    content = volumes["x"].content
    assert content is not None
    assert (content.type, content.uuid) == ("LVM2_member", dashed(PV0))


def test_stripes() -> None:
    places = 'stripes = [ "pv0", 3, "pv1", 9 ]'
    group = Group(volume_text("s", [(0, 4, f'type = "striped" stripe_count = 2 stripe_size = 4 {places}')]))
    first, second = group.extents(0, 3, 2), group.extents(1, 9, 2)
    chunks = [
        part for at in range(0, len(first), 2048) for part in (first[at : at + 2048], second[at : at + 2048])
    ]
    assert group.bytes_of("s") == b"".join(chunks)
    assert group.volume("s").space.copies() == ()


RAID = 'device_count = 2 region_size = 1024 raids = [ "r_rmeta_0", "r_rimage_0", "r_rmeta_1", "r_rimage_1" ]'


def raid_parts() -> str:
    return "\n".join(
        volume_text(f"r_{kind}_{leg}", [(0, count, linear(f"pv{leg}", at))], visible=False, number=number)
        for number, (kind, leg, count, at) in enumerate(
            [("rmeta", 0, 1, 50), ("rmeta", 1, 1, 50), ("rimage", 0, 3, 51), ("rimage", 1, 3, 51)], 10
        )
    )


def state(events: int, failed: int = 0, recovered: int = (1 << 64) - 1) -> bytes:
    return struct.pack("<4sIIIQQQ", b"DmRd", 1, 2, 0, events, failed, recovered)


@pytest.mark.parametrize(
    ("states", "leg"),
    [
        ((b"\0" * 40, b"\0" * 40), 0),
        ((state(9), state(9)), 0),
        ((state(4), state(9)), 1),
        ((state(9, failed=1), state(9, failed=1)), 1),
        ((state(9, recovered=700), state(9)), 1),
        ((state(9), state(9, failed=2)), 0),
    ],
)
def test_mirror_by_a_leg_in_sync(states: tuple[bytes, bytes], leg: int) -> None:
    group = Group(volume_text("r", [(0, 3, f'type = "raid1" {RAID}')]) + raid_parts())
    for disk, raw in enumerate(states):
        group.put(disk, 50, raw)
    assert group.bytes_of("r") == group.extents(leg, 51, 3)


def test_mirror_with_one_disk_missing() -> None:
    group = Group(volume_text("r", [(0, 3, f'type = "raid1" {RAID}')]) + raid_parts())
    volumes = by_name(find([bytes(group.disks[1])]))
    assert volumes["vg-r"].space.read(0, 1 << 20) == group.extents(1, 51, 3)


def test_raid_with_one_disk_missing() -> None:
    """Two members are as much as one and its parity. That the parity is in sync cannot be told."""
    group = Group(volume_text("r", [(0, 3, f'type = "raid5_n" stripe_size = 8 {RAID}')]) + raid_parts())
    group.put(1, 51, group.extents(0, 51, 3))
    layout = find([bytes(group.disks[1])])
    assert by_name(layout)["vg-r"].space.read(0, 1 << 20) == group.extents(0, 51, 3)
    assert any(
        "volume r: 1 of its 2 members are missing or out of date; what" in text for text in layout.warnings
    )
    stripes = Group(volume_text("r", [(0, 6, f'type = "raid0_meta" stripe_size = 8 {RAID}')]) + raid_parts())
    said = "\n".join(find([bytes(stripes.disks[1])]).warnings)
    assert "volume r is left out: its physical volume pv0" in said


@pytest.mark.parametrize("mode", ["writethrough", "passthrough", "writeback", None])
@pytest.mark.parametrize("pool", [True, False])
def test_what_is_cached_is_read_where_the_cache_holds_nothing_of_its_own(
    mode: str | None, pool: bool
) -> None:
    said = f'cache_mode = "{mode}"' if mode else ""
    kind = 'type = "cache" ' if pool else f'type = "cache+CACHE_USES_CACHEVOL" {said} '
    fast = f'type = "cache-pool" data = "d" metadata = "m" {said}' if pool else linear("pv1", 9)
    group = Group(
        volume_text("data", [(0, 4, kind + 'cache_pool = "fast" origin = "data_corig"')])
        + volume_text("data_corig", [(0, 4, linear("pv0", 30))], visible=False, number=1)
        + volume_text("fast", [(0, 4, fast)], visible=False, number=2)
    )
    if mode in ("writethrough", "passthrough"):
        assert group.bytes_of("data") == group.extents(0, 30, 4)
        assert group.layout().warnings == ()
    else:
        assert set(by_name(group.layout())) == {"x", "y"}
        assert "the newest data may be there" in group.layout().warnings[0]


def test_missing_disk_takes_only_its_volumes() -> None:
    group = Group(
        volume_text("here", [(0, 2, linear("pv0", 0))])
        + volume_text("there", [(0, 2, linear("pv1", 0))])
        + volume_text("both", [(0, 2, linear("pv0", 2)), (2, 2, linear("pv1", 2))])
    )
    layout = find([bytes(group.disks[0])])
    assert set(by_name(layout)) == {"x", "vg-here"}
    said = "\n".join(layout.warnings)
    assert "volume group vg: its physical volume pv1" in said
    assert dashed(PV1) in said
    for name in ("there", "both"):
        assert f"volume {name} is left out: its physical volume pv1" in said


def test_missing_by_the_mark_of_lvm() -> None:
    group = Group(volume_text("here", [(0, 2, linear("pv0", 0))]))
    text = group.text.replace('status = ["ALLOCATABLE"] flags = []', 'status = [] flags = ["MISSING"]', 1)
    group.disks[0][: START * SECTOR] = physical_volume(PV0, SIZE, text)[: START * SECTOR]
    group.disks[1][: START * SECTOR] = physical_volume(PV1, SIZE, None)[: START * SECTOR]
    assert any("out of date" in warning for warning in group.layout().warnings)


@pytest.mark.parametrize(
    ("segment", "reason"),
    [
        ('type = "cache" cache_pool = "p" origin = "o"', "cache"),
        ('type = "writecache" origin = "o"', "cache"),
        ('type = "vdo" vdo_pool = "p" vdo_offset = 0', "VDO"),
        ('type = "integrity" origin = "o"', "integrity"),
        ('type = "of-tomorrow"', "of-tomorrow"),
        ('type = "striped" stripe_count = 1 stripes = [ "self", 0 ]', "upon itself"),
        ('type = "striped" stripe_count = 1 stripes = [ "nobody", 0 ]', "nobody"),
        ('type = "striped" stripe_count = 1 stripes = [ "pv0", 199 ]', "beyond the end"),
        ('type = "striped" stripe_count = 1 stripes = [ "pv0" ]', "damaged"),
        ('type = "striped" stripe_count = 900 stripes = [ "pv0", 1 ]', "damaged"),
        ('type = "thin" thin_pool = "nobody" device_id = 1', "nobody"),
        (f'type = "raid5_ls" stripe_size = 8 {RAID} reshape_len = 9', "reshaped"),
    ],
)
def test_what_is_left_out_is_said(segment: str, reason: str) -> None:
    group = Group(
        volume_text("self", [(0, 2, segment)])
        + volume_text("good", [(0, 2, linear("pv0", 0))])
        + raid_parts()
    )
    layout = group.layout()
    assert set(by_name(layout)) == {"x", "y", "vg-good"}
    assert len(layout.warnings) == 1
    assert layout.warnings[0].startswith("volume group vg: volume self is left out: ")
    assert reason in layout.warnings[0]


@pytest.mark.parametrize("segments", [[(1, 2)], [(0, 2), (3, 1)], [(0, 3), (2, 2)]])
def test_segments_with_gaps(segments: list[tuple[int, int]]) -> None:
    group = Group(volume_text("bad", [(start, count, linear("pv0", 0)) for start, count in segments]))
    assert any("gap or overlap" in warning for warning in group.layout().warnings)


CHUNK = 64 << 10


def thin_group(devices: dict[int, dict[int, int]], **more: str) -> Group:
    """A pool of 8 chunks on pv0 from extent 8, its metadata on pv1 from 0."""
    pool = (
        'type = "thin-pool" metadata = "pool_tmeta" pool = "pool_tdata" transaction_id = 3 chunk_size = 128'
    )
    extra = more.get("extra", "")
    group = Group(
        "\n".join(
            [
                volume_text("pool", [(0, 128, pool)], number=1),
                volume_text("pool_tmeta", [(0, 40, linear("pv1", 0))], visible=False, number=2),
                volume_text("pool_tdata", [(0, 128, linear("pv0", 8))], visible=False, number=3),
                volume_text("origin", [(0, 40, linear("pv1", 60))], number=4),
                *(
                    volume_text(
                        f"thin{device}",
                        [(0, 150, f'type = "thin" thin_pool = "pool" device_id = {device} {extra}')],
                    )
                    for device in devices
                ),
            ]
        )
    )
    group.put(1, 0, thin_metadata(devices))
    return group


def test_thin_volumes_share_blocks() -> None:
    devices = {1: {0: 3, 1: 4, 2: 0, 5: 7, 8: 1}, 2: {0: 3, 1: 6, 9: 2}, 3: dict[int, int]()}
    group = thin_group(devices)
    data = group.extents(0, 8, 128)
    for device, mapping in devices.items():
        expected = bytearray(150 * EXTENT)
        for block, stored in mapping.items():
            expected[block * CHUNK : (block + 1) * CHUNK] = data[stored * CHUNK : (stored + 1) * CHUNK]
        del expected[150 * EXTENT :]
        assert group.bytes_of(f"thin{device}") == expected
    holes = [extent for extent in group.volume("thin1").space.extents() if extent[2]]
    assert [(start // CHUNK, length // CHUNK) for start, length, _ in holes] == [(3, 2), (6, 2), (9, 0)]
    assert set(by_name(group.layout())) == {"x", "y", "vg-origin", "vg-thin1", "vg-thin2", "vg-thin3"}
    assert group.volume("thin1").members == ("0", "1")


def test_thin_volume_of_an_outside_origin() -> None:
    group = thin_group({1: {1: 5}}, extra='external_origin = "origin"')
    expected = bytearray(group.extents(1, 60, 40).ljust(150 * EXTENT, b"\0"))
    expected[CHUNK : 2 * CHUNK] = group.extents(0, 8, 128)[5 * CHUNK : 6 * CHUNK]
    assert group.bytes_of("thin1") == expected


def test_thin_block_beyond_the_pool_is_an_error_there_and_nowhere_else() -> None:
    group = thin_group({1: {1: 5, 2: 8}})
    volume = group.volume("thin1")
    assert len(volume.space.read(0, 2 * CHUNK)) == 2 * CHUNK
    with pytest.raises(IntegrityError, match="beyond the end"):
        volume.space.read(2 * CHUNK, 1)


def test_damaged_thin_metadata_is_an_error_there_and_nowhere_else() -> None:
    group = thin_group({1: {block: block for block in range(8)}})
    # Nodes 2, 3 and 4 are leaves of three blocks each.
    raw = bytearray(thin_metadata({1: {block: block for block in range(8)}}))
    raw[3 * 4096 + 900] ^= 1
    group.put(1, 0, bytes(raw))
    volume = group.volume("thin1")
    assert volume.space.read(0, 3 * CHUNK) == group.extents(0, 8, 48)
    with pytest.raises(IntegrityError, match="block 3"):
        volume.space.read(3 * CHUNK, 1)
    with pytest.raises(IntegrityError, match="block 3"):
        list(volume.space.extents())


@pytest.mark.parametrize("place", [0, 330, 4096 + 20])
def test_damaged_pool(place: int) -> None:
    group = thin_group({1: {1: 5}})
    raw = bytearray(thin_metadata({1: {1: 5}}))
    raw[place] ^= 1
    group.put(1, 0, bytes(raw))
    layout = group.layout()
    assert "vg-thin1" not in by_name(layout)
    assert any("thin1 is left out" in warning and "thin pool" in warning for warning in layout.warnings)


def snapshot_group(store: bytes, key: str = "cow_store") -> Group:
    group = Group(
        volume_text("origin", [(0, 40, linear("pv0", 0))], number=1)
        + volume_text("kept", [(0, 20, linear("pv1", 0))], number=2)
        + volume_text(
            "snapshot0",
            [(0, 40, f'type = "snapshot" chunk_size = 8 origin = "origin" {key} = "kept"')],
            visible=False,
            number=3,
        )
    )
    group.put(1, 0, store)
    return group


def test_snapshot_is_the_state_it_keeps() -> None:
    old = {3: b"3" * EXTENT, 4: b"4" * EXTENT, 39: b"9" * EXTENT}
    group = snapshot_group(snapshot_store(20 * EXTENT, EXTENT, old))
    origin = group.extents(0, 0, 40)
    assert group.bytes_of("origin") == origin
    expected = bytearray(origin)
    for chunk, content in old.items():
        expected[chunk * EXTENT : (chunk + 1) * EXTENT] = content
    assert group.bytes_of("kept") == expected
    assert set(by_name(group.layout())) == {"x", "y", "vg-origin", "vg-kept"}


def test_snapshot_being_merged() -> None:
    """What is not merged yet is read from the store, as the kernel does."""
    group = snapshot_group(snapshot_store(20 * EXTENT, EXTENT, {3: b"3" * EXTENT}), "merging_store")
    assert group.bytes_of("origin")[3 * EXTENT : 4 * EXTENT] == b"3" * EXTENT
    assert "vg-kept" not in by_name(group.layout())
    (warning,) = group.layout().warnings
    assert warning.startswith("volume group vg: volume origin: kept is being merged into it")


def test_snapshot_that_ran_full() -> None:
    group = snapshot_group(snapshot_store(20 * EXTENT, EXTENT, {3: b"3" * EXTENT}, valid=0))
    layout = group.layout()
    assert set(by_name(layout)) == {"x", "y", "vg-origin"}
    assert any("kept is left out: the snapshot is no longer valid" in warning for warning in layout.warnings)


def test_text_that_wraps_around_the_end_of_its_area() -> None:
    text = group_text(BOTH, volume_text("data", [(0, 5, linear("pv0", 7))]))
    for at in (60 * 1024 - 1, 60 * 1024 - len(text) // 2, 60 * 1024 - len(text)):
        disk = physical_volume(PV0, SIZE, text, at=at)
        assert "vg-data" in by_name(find([bytes(disk)]))


@pytest.mark.parametrize("sector", [0, 1, 2, 3])
def test_label_in_each_of_the_first_sectors(sector: int) -> None:
    text = group_text(BOTH, volume_text("data", [(0, 5, linear("pv0", 7))]))
    assert "vg-data" in by_name(find([bytes(physical_volume(PV0, SIZE, text, sector=sector))]))


def test_damaged_copy_of_the_metadata() -> None:
    """The other disk has it too."""
    group = Group(volume_text("data", [(0, 5, linear("pv0", 7))]))
    group.disks[0][4096 + SECTOR + 30] ^= 1
    layout = group.layout()
    assert "vg-data" in by_name(layout)
    assert layout.warnings == ("physical volume x: its copy of the metadata is damaged",)


def test_newest_metadata_win() -> None:
    group = Group(volume_text("old", [(0, 5, linear("pv0", 7))]))
    text = group_text(BOTH, volume_text("new", [(0, 5, linear("pv0", 7))]), seqno=8)
    group.disks[1] = physical_volume(PV1, SIZE, text)
    assert set(by_name(group.layout())) == {"x", "y", "vg-new"}


def test_cloned_disk() -> None:
    """The one with the newest metadata is used, wherever it comes."""
    group = Group(volume_text("data", [(0, 5, linear("pv0", 7))]))
    clone = bytearray(group.disks[0])
    newer = group_text(BOTH, volume_text("data", [(0, 5, linear("pv0", 7))]), seqno=8)
    group.disks[0][: START * SECTOR] = physical_volume(PV0, SIZE, newer)[: START * SECTOR]
    clone[START * SECTOR :] = bytes(EXTENTS * EXTENT)
    layout = find([bytes(clone), bytes(group.disks[1]), bytes(group.disks[0])])
    volume = by_name(layout)["vg-data"]
    assert volume.space.read(0, 5 * EXTENT) == group.extents(0, 7, 5)
    assert volume.members == ("2",)
    assert any(
        "pv0 is there 2 times (x, z: a disk was copied); z is used" in text for text in layout.warnings
    )


def test_two_groups_of_one_name() -> None:
    lv = volume_text("data", [(0, 5, linear("pv0", 7))])
    texts = [
        group_text({"pv0": (uuid_of(letter), START, EXTENTS)}, lv, uuid=uuid_of(letter.upper()))
        for letter in "ab"
    ]
    disks = [physical_volume(uuid_of(letter), SIZE, text) for letter, text in zip("ab", texts, strict=True)]
    layout = find([bytes(disk) for disk in disks])
    names = [volume.name for volume in layout.volumes if volume.kind == "lvm"]
    assert len(names) == len(set(names)) == 2
    assert all(name.startswith("vg-data") for name in names)
    assert any("there are two of that name" in warning for warning in layout.warnings)


def test_table_in_a_logical_volume_and_group_on_a_logical_volume() -> None:
    inner = group_text(
        {"pv0": (uuid_of("i"), START, 20)},
        volume_text("deep", [(0, 3, linear("pv0", 2))], number=9),
        name="inner",
        uuid=uuid_of("I"),
    )
    group = Group(
        volume_text("disk", [(0, 60, linear("pv0", 0))], number=1)
        + volume_text("nested", [(0, 40, linear("pv1", 0))], number=2)
    )
    record = bytearray(512)
    struct.pack_into("<B3sB3sII", record, 446, 0, b"", 0x83, b"", 8, 80)
    record[510:] = b"\x55\xaa"
    group.put(0, 0, bytes(record))
    group.put(1, 0, bytes(physical_volume(uuid_of("i"), START * SECTOR + 20 * EXTENT, inner)))
    volumes = by_name(group.layout())
    part = volumes["vg-disk-p1"]
    assert (part.kind, part.key, part.members) == (
        "partition",
        f"{volumes['vg-disk'].key}/p1",
        (volumes["vg-disk"].key,),
    )
    assert part.space.read(0, 80 * SECTOR) == group.content[0][8 * SECTOR : 88 * SECTOR]
    deep = volumes["inner-deep"]
    assert deep.members == (volumes["vg-nested"].key,)
    assert deep.space.copies() == (((0, 3 * EXTENT, 1, 2 * START * SECTOR + 2 * EXTENT),),)


def test_few_reads_for_many_volumes() -> None:
    many = "\n".join(
        volume_text(f"v{number:03d}", [(0, 1, linear("pv0", number)), (1, 1, linear("pv1", number))])
        for number in range(100)
    )
    disks = [physical_volume(uuid, SIZE, group_text(BOTH, many)) for uuid in (PV0, PV1)]
    spaces = [MemoryDisk(bytes(disk)) for disk in disks]
    for space in spaces:
        space.data = space.data[: START * SECTOR] + b"\x01" * (space.size - START * SECTOR)
    layout = find_volumes([PointDisk(name, space, 512) for name, space in zip("xy", spaces, strict=True)])
    assert len(layout.volumes) == 102
    assert sum(space.reads for space in spaces) < 102 * 2 + 20


@pytest.mark.parametrize("crc", [True, False])
def test_damaged_label(crc: bool) -> None:
    disk = physical_volume(PV0, SIZE, group_text(BOTH, ""))
    disk[SECTOR + 32] = 0
    if crc:
        struct.pack_into("<I", disk, SECTOR + 16, lvm_crc(bytes(disk[SECTOR + 20 : 2 * SECTOR])))
    assert find([bytes(disk)]).volumes == ()


def test_text() -> None:
    tree = parse('a = 1 # one\nb { c = [ "x\\"y", -2, 3.5, word ] d = [] e { f = "}" } }\na = 9\ng="a#b"')
    assert tree == {"a": 1, "b": {"c": ['x"y', -2, 3.5, "word"], "d": [], "e": {"f": "}"}}, "g": "a#b"}


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "a =",
        "a {",
        "}",
        "a = [ 1",
        'a = "x',
        "= 1",
        "a = {",
        "a ! b",
        "[",
        "a = ]",
        "x { " * 40,
        "a = " + "9" * 400,
    ],
)
def test_text_that_is_none(text: str) -> None:
    with pytest.raises(TextError):
        parse(text)
