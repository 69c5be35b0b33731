"""Whatever LVM2 and md metadata say, the volumes are found or left out: no exception, no endless walk, no
absurd read; and text that is well formed is understood whatever its shape."""

from __future__ import annotations

import random
import re
import struct
from contextlib import suppress
from itertools import chain, islice

import google_crc32c
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from volume_helpers import (
    SECTOR,
    MemoryDisk,
    group_text,
    linear,
    lvm_crc,
    md_superblock,
    mend_md,
    physical_volume,
    snapshot_store,
    thin_metadata,
    uuid_of,
    volume_text,
)

from vmfs.errors import IntegrityError
from vmfs.volumes.layout import Layout, PointDisk, find_volumes
from vmfs.volumes.lvm.group import read_group
from vmfs.volumes.lvm.text import TextError, parse

EXTENT = 4096
START = 128
EXTENTS = 160
AT = START * SECTOR
SIZE = AT + EXTENTS * EXTENT
TEXT_AT = 4096 + SECTOR
LABEL_AT = SECTOR
UUIDS = [uuid_of(letter) for letter in "abc"]
THIN = {1: {0: 1, 1: 0, 4: 2}, 2: {0: 1, 3: 3, 5: 4, 6: 2}}
THIN_AT = AT + 1 * EXTENT
STORE_AT = AT + 40 * EXTENT
RMETA_AT = AT + 56 * EXTENT
LOGICAL = "\n".join(
    [
        volume_text("lin", [(0, 4, linear("pv0", 100)), (4, 3, linear("pv1", 90))], number=1),
        volume_text(
            "str", [(0, 4, 'type="striped" stripe_count=2 stripe_size=4 stripes=["pv0",110,"pv1",110]')]
        ),
        volume_text(
            "pool", [(0, 80, 'type="thin-pool" metadata="meta" pool="data" chunk_size=128')], number=2
        ),
        volume_text("meta", [(0, 20, linear("pv0", 1))], visible=False, number=3),
        volume_text("data", [(0, 80, linear("pv1", 0))], visible=False, number=4),
        volume_text("thin1", [(0, 100, 'type="thin" thin_pool="pool" device_id=1')], number=5),
        volume_text("thin2", [(0, 120, 'type="thin" thin_pool="pool" device_id=2')], number=6),
        volume_text("kept", [(0, 12, linear("pv0", 40))], number=7),
        volume_text(
            "snapshot0", [(0, 7, 'type="snapshot" chunk_size=8 origin="lin" cow_store="kept"')], visible=False
        ),
        volume_text(
            "mir",
            [(0, 2, 'type="raid1" device_count=2 raids=["m_rmeta_0","m_rimage_0","m_rmeta_1","m_rimage_1"]')],
            number=8,
        ),
        volume_text(
            "five",
            [
                (
                    0,
                    4,
                    'type="raid5_ls" stripe_size=8 '
                    'raids=["m_rmeta_0","m_rimage_0","m_rmeta_1","m_rimage_1","q","r"]',
                )
            ],
            number=9,
        ),
        volume_text("m_rmeta_0", [(0, 1, linear("pv0", 56))], visible=False, number=10),
        volume_text("m_rmeta_1", [(0, 1, linear("pv1", 99))], visible=False, number=11),
        volume_text("m_rimage_0", [(0, 2, linear("pv0", 58))], visible=False, number=12),
        volume_text("m_rimage_1", [(0, 2, linear("pv1", 100))], visible=False, number=13),
        volume_text("q", [(0, 1, linear("pv0", 60))], visible=False, number=14),
        volume_text("r", [(0, 2, linear("pv0", 62))], visible=False, number=15),
        volume_text("old", [(0, 2, 'type="mirror" mirrors=["m_rimage_0", 0, "m_rimage_1", 0]')], number=16),
    ]
)
TEXT = group_text({f"pv{n}": (uuid, START, EXTENTS) for n, uuid in enumerate(UUIDS[:2])}, LOGICAL)
MEMBER_SIZE = 256 << 10


def members() -> list[bytearray]:
    """Two of a RAID 0, of unlike sizes, one of a mirror that is alone, two of a RAID 10."""
    found = []
    arrays = [(b"z", 0, 2, 1, 4096), (b"m", 1, 2, 0, 0), (b"t", 10, 2, 258, 0)]
    for letter, level, count, layout, features in arrays:
        for role in range(1 if level == 1 else count):
            disk = bytearray(MEMBER_SIZE)
            sectors = 300 + 40 * role if level == 0 else 300
            block = md_superblock(
                level=level,
                members=count,
                role=role,
                data_start=64,
                data_sectors=sectors,
                at=4096,
                uuid=letter * 16,
                layout=layout,
                features=features,
                size_sectors=0 if level == 0 else 300,
            )
            disk[4096 : 4096 + len(block)] = block
            found.append(disk)
    return found


def template() -> list[bytearray]:
    disks = [physical_volume(uuid, SIZE, TEXT) for uuid in UUIDS[:2]]
    metadata = thin_metadata(THIN, per_leaf=2)
    disks[0][THIN_AT : THIN_AT + len(metadata)] = metadata
    store = snapshot_store(12 * EXTENT, EXTENT, {1: b"1" * EXTENT, 5: b"5" * EXTENT})
    disks[0][STORE_AT : STORE_AT + len(store)] = store
    disks[0][RMETA_AT : RMETA_AT + 40] = struct.pack("<4sIIIQQQ", b"DmRd", 1, 2, 0, 9, 0, (1 << 64) - 1)
    return [*disks, *members()]


TEMPLATE = template()


def look(disks: list[bytearray]) -> Layout:
    """Finds the volumes and reads in all of them as a reader might."""
    spaces = [MemoryDisk(bytes(disk)) for disk in disks]
    layout = find_volumes([PointDisk(f"disk{n}", space, 512) for n, space in enumerate(spaces)])
    assert sum(space.reads for space in spaces) < 20_000
    assert len({volume.key for volume in layout.volumes}) == len(layout.volumes)
    assert len({volume.name for volume in layout.volumes}) == len(layout.volumes)
    assert len(layout.warnings) <= 100
    for volume in layout.volumes:
        space = volume.space
        assert 0 < space.size < 1 << 63
        assert volume.name.isprintable()
        assert "/" not in volume.name
        for offset in (0, min(5000, space.size), space.size // 2, max(0, space.size - 70_000)):
            try:
                assert len(space.read(offset, 70_000)) == max(0, min(70_000, space.size - offset))
            except IntegrityError:
                continue
        try:
            end = 0
            for start, length, _ in islice(space.extents(), 5000):
                assert (start, length > 0) == (end, True)
                end += length
            assert end <= space.size
        except IntegrityError:
            pass
        for piece in chain.from_iterable(space.copies()):
            assert 0 <= piece.offset < piece.offset + piece.length <= spaces[piece.disk].size
        for ground in space.footprint():
            assert 0 <= ground.offset < ground.offset + ground.length <= spaces[ground.disk].size
    return layout


def test_template_is_found_as_meant() -> None:
    layout = look(TEMPLATE)
    assert {volume.name for volume in layout.volumes if volume.kind in ("lvm", "md")} == {
        *("vg-lin", "vg-str", "vg-thin1", "vg-thin2", "vg-kept", "vg-mir", "vg-five", "vg-old"),
        *("md-data", "md-data-6d6d6d6d", "md-data-74747474"),
    }
    assert layout.warnings == ()


NUMBERS = [
    "0",
    "1",
    "-1",
    "2",
    "7",
    "511",
    "4096",
    "65536",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "1" * 20,
]
NAMES = [
    "pv0",
    "pv1",
    "pv9",
    "lin",
    "pool",
    "meta",
    "data",
    "thin1",
    "kept",
    "m_rimage_0",
    "mir",
    "old",
    "snapshot0",
]
TYPES = [
    "striped",
    "mirror",
    "raid1",
    "raid0",
    "raid10",
    "raid5_ls",
    "raid6_zr",
    "raid4",
    "thin",
    "thin-pool",
    "snapshot",
]
_WORD = re.compile(r'"[^"]*"|-?\b\d+\b')
SIGNS = '{}[]=,#"\\\n a9'


def mutated_text(chance: random.Random) -> str:
    """Metadata as a hostile guest would write them: other numbers, other names, cut and doubled."""
    text = TEXT
    for _ in range(chance.randint(1, 6)):
        way = chance.randrange(8)
        words = list(_WORD.finditer(text))
        if way < 3 and words:
            match = chance.choice(words)
            new = chance.choice(NUMBERS)
            if match[0].startswith('"'):
                new = f'"{chance.choice(NAMES + TYPES)}"'
            text = text[: match.start()] + new + text[match.end() :]
        elif way == 3:
            at = chance.randrange(len(text) or 1)
            text = text[:at] + chance.choice(SIGNS) + text[at + chance.randint(0, 1) :]
        elif way == 4:
            at, size = chance.randrange(len(text) or 1), chance.randint(1, 400)
            text = text[:at] + text[at : at + size] * 2 + text[at + size :]
        elif way == 5:
            at = chance.randrange(len(text) or 1)
            text = text[:at] + text[at + chance.randint(1, 200) :]
        elif way == 6:
            old, new = chance.choice(NAMES), chance.choice(NAMES)
            text = re.sub(rf'"{old}"', f'"{new}"', text, count=chance.randint(1, 3))
        else:
            old, new = chance.choice(TYPES), chance.choice(TYPES)
            text = text.replace(f'"{old}"', f'"{new}"', chance.randint(1, 3))
    return text


def flip(data: bytearray, chance: random.Random, start: int, end: int) -> None:
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(start, end)
        way = chance.randrange(4)
        if way == 0:
            data[at] ^= 1 << chance.randrange(8)
        elif way == 1:
            data[at] = chance.randrange(256)
        elif way == 2 and at + 8 <= end:
            data[at : at + 8] = struct.pack(
                "<Q", chance.choice([0, 1, 2**32, 2**63, 2**64 - 1, chance.randrange(64)])
            )
        else:
            data[at] = 255


def mend_thin(disk: bytearray, number: int) -> None:
    at = THIN_AT + number * 4096
    salt = 121107 if number else 160774
    crc = google_crc32c.value(bytes(disk[at + 4 : at + 4096])) ^ 0xFFFFFFFF ^ salt
    struct.pack_into("<I", disk, at, crc)


def mutate(chance: random.Random) -> list[bytearray]:
    """One place of the template changed, three times in four with checksums as a hostile guest makes them."""
    disks = [bytearray(disk) for disk in TEMPLATE]
    mend = chance.randrange(4) > 0
    what = chance.choice(
        ["text", "text", "text", "label", "area", "thin", "thin", "store", "state", "md", "md"]
    )
    disk = disks[0]
    if what == "text":
        uuid, text = UUIDS[0], mutated_text(chance)
        disks[0][:AT] = physical_volume(uuid, SIZE, text[:50_000])[:AT]
        if mend:
            disks[1][:AT] = physical_volume(UUIDS[1], SIZE, text[:50_000])[:AT]
    elif what == "label":
        flip(disk, chance, LABEL_AT, LABEL_AT + 140)
        if mend:
            struct.pack_into(
                "<I", disk, LABEL_AT + 16, lvm_crc(bytes(disk[LABEL_AT + 20 : LABEL_AT + SECTOR]))
            )
    elif what == "area":
        flip(disk, chance, 4096, 4096 + 70)
        if mend:
            place, size = struct.unpack_from("<QQ", disk, 4096 + 40)
            if 0 < place < SIZE and 0 < size < SIZE:
                raw = bytes(disk[4096 + place : 4096 + place + size])
                struct.pack_into("<I", disk, 4096 + 56, lvm_crc(raw))
            struct.pack_into("<I", disk, 4096, lvm_crc(bytes(disk[4100 : 4096 + SECTOR])))
    elif what == "thin":
        number = chance.randrange(8)
        at = THIN_AT + number * 4096
        flip(disk, chance, at + 4, at + (360 if number == 0 else chance.choice([40, 100, 4096])))
        if chance.randrange(3) == 0:
            # Leads back up, or across.
            struct.pack_into("<Q", disk, at + 32 + 252 * 8 + 8 * chance.randrange(3), chance.randrange(9))
        if mend:
            mend_thin(disk, number)
    elif what == "store":
        flip(disk, chance, STORE_AT, STORE_AT + chance.choice([16, EXTENT + 64]))
    elif what == "state":
        flip(disk, chance, RMETA_AT, RMETA_AT + 48)
    else:
        disk = chance.choice(disks[2:])
        flip(disk, chance, 4096, 4096 + chance.choice([256, 290]))
        if mend:
            disk[4096 : 4096 + 1024] = mend_md(bytearray(disk[4096 : 4096 + 1024]))
    return disks


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("part", range(4))
def test_mutated_metadata(part: int) -> None:
    """500 at a time."""
    for number in range(part * 500, part * 500 + 500):
        look(mutate(random.Random(number)))  # noqa: S311


def test_volumes_within_each_other_without_end() -> None:
    """Each of ten volumes is thirty times the one before: sizes and parts must not be multiplied out."""
    parts = [volume_text("v0", [(0, 1, linear("pv0", 0))])]
    size = 1
    for level in range(1, 10):
        segments = [(index * size, size, linear(f"v{level - 1}", 0)) for index in range(30)]
        parts.append(volume_text(f"v{level}", segments, number=level))
        size *= 30
    text = group_text({"pv0": (UUIDS[0], START, EXTENTS)}, "\n".join(parts))
    disk = physical_volume(UUIDS[0], 1 << 20, text, area_size=50_000)
    disk[AT + 10] = 1
    layout = look([disk])
    assert any("parts" in warning for warning in layout.warnings)


def test_thin_trees_that_run_in_circles() -> None:
    for target in range(9):
        for number in range(2, 9):
            disks = [bytearray(disk) for disk in TEMPLATE]
            at = THIN_AT + number * 4096
            struct.pack_into("<I", disks[0], at + 4, 1)
            struct.pack_into("<4Q", disks[0], at + 32 + 252 * 8, *([target] * 4))
            mend_thin(disks[0], number)
            look(disks)


SCALARS = st.integers(-(2**60), 2**60) | st.text('abcXYZ_09 -/"\\{}[]=#,\n', max_size=12)
TREES = st.recursive(
    st.dictionaries(
        st.from_regex(r"[A-Za-z_][A-Za-z0-9_.+-]{0,8}", fullmatch=True),
        SCALARS | st.lists(SCALARS, max_size=4),
        max_size=4,
    ),
    lambda inner: st.dictionaries(st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True), inner, max_size=3),
    max_leaves=12,
)


def rendered(tree: dict[str, object], chance: random.Random) -> str:
    def scalar(value: object) -> str:
        if isinstance(value, int):
            return str(value)
        return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'

    lines = []
    for key, value in tree.items():
        space = chance.choice(["", " ", "\t", "\n", ' # a remark } " [\n'])
        if isinstance(value, dict):
            lines.append(f"{key}{space}{{{space}{rendered(value, chance)}}}")
        elif isinstance(value, list):
            lines.append(f"{key}{space}={space}[{space}{', '.join(map(scalar, value))}{space}]")
        else:
            lines.append(f"{key}{space}={space}{scalar(value)}")
    return "\n".join(lines) + "\n"


@given(TREES, st.randoms(use_true_random=False))
def test_text_of_any_shape(tree: dict[str, object], chance: random.Random) -> None:
    assert parse(rendered(tree, chance)) == tree


@given(st.text('ab1 {}[]=,"\\#\n', max_size=80))
def test_text_that_is_noise(text: str) -> None:
    with suppress(TextError):
        parse(text)


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 150), st.integers(1, 9)), min_size=1, max_size=12)
)
def test_any_segments(wanted: list[tuple[int, int, int]]) -> None:
    segments, end = [], 0
    for disk, extent, count in wanted:
        segments.append((end, count, linear(f"pv{disk}", extent)))
        end += count
    text = group_text(
        {f"pv{n}": (uuid, START, EXTENTS) for n, uuid in enumerate(UUIDS[:2])}, volume_text("v", segments)
    )
    assert read_group(text).logical["v"].extents == end
    chance = random.Random(end)  # noqa: S311
    disks = [physical_volume(uuid, SIZE, text) for uuid in UUIDS[:2]]
    for disk in disks:
        disk[AT:] = chance.randbytes(SIZE - AT)
    layout = find_volumes(
        [PointDisk(name, MemoryDisk(bytes(disk)), 512) for name, disk in zip("xy", disks, strict=True)]
    )
    space = next(volume.space for volume in layout.volumes if volume.name == "vg-v")
    expected = b"".join(
        disks[disk][AT + extent * EXTENT : AT + (extent + count) * EXTENT] for disk, extent, count in wanted
    )
    assert space.read(0, space.size) == expected


MAGIC = [
    *[(0, b"XFSB"), (0, b"LUKS\xba\xbe\0\2"), (1080, b"\x53\xef"), (3, b"NTFS    "), (3, b"EXFAT   ")],
    *[
        (3, b"-FVE-FS-"),
        (32768, b"\1CD001"),
        (65600, b"_BHRfS_M"),
        (4086, b"SWAPSPACE2"),
        (16384, b"\1\1\0\0"),
    ],
    *[(512, b"LABELONE"), (536, b"LVM2 001"), (4096, struct.pack("<II", 0xA92B4EFC, 1))],
    *[(0, b"\xeb\x3c\x90mkfs.fat\0\2\1\1\0\2"), (21, b"\xf8"), (510, b"\x55\xaa")],
]


@settings(max_examples=300)
@given(
    st.sets(st.sampled_from(range(len(MAGIC))), max_size=4),
    st.lists(st.tuples(st.integers(0, 700), st.binary(min_size=1, max_size=9)), max_size=12),
    st.sampled_from((0, 1, 511, 4096, 65_536, 66_000, 200_000)),
    st.none() | st.integers(0, 1000),
)
def test_whatever_a_volume_begins_with(
    chosen: set[int], changes: list[tuple[int, bytes]], size: int, noise: int | None
) -> None:
    data = bytearray(200_000 if noise is None else random.Random(noise).randbytes(200_000))  # noqa: S311
    bases = (0, 1024, 4096, 16384, 32768, 65536, max(0, size - 700))
    for at, raw in changes:
        base = bases[raw[0] % len(bases)]
        data[base + at : base + at + len(raw)] = raw
    for index in chosen:
        at, raw = MAGIC[index]
        data[at : at + len(raw)] = raw
    look([data[:size]])
