"""Partition tables made by sfdisk and sgdisk, and tables broken on purpose."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from vmfs.errors import IntegrityError
from vmfs.volumes import Table, parse

MIB = 1 << 20
needs_tools = pytest.mark.skipif(
    not (shutil.which("sfdisk") and shutil.which("sgdisk")), reason="needs sfdisk and sgdisk"
)


def make(path: Path, script: str, size: int = 64 * MIB) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    run("sfdisk", "--no-reread", "--no-tell-kernel", path, input=script)
    return path


def run(*command: str | Path, input: str | None = None) -> str:
    done = subprocess.run(
        [str(part) for part in command], input=input, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def table_of(path: Path, block_size: int = 512) -> Table:
    return parse_bytes(path.read_bytes(), block_size)


def parse_bytes(data: bytes, block_size: int = 512) -> Table:
    return parse(lambda offset, length: data[offset : offset + length], len(data), block_size)


def sfdisk_says(path: Path) -> list[tuple[int, int, int, str]]:
    """(number, start, length, type) of what sfdisk shows as volumes: extended partitions are containers."""
    tree: dict[str, Any] = json.loads(run("sfdisk", "--json", path))["partitiontable"]
    found = []
    for part in tree["partitions"]:
        kind = part["type"].lower()
        if tree["label"] == "dos":
            if int(kind, 16) in (0x05, 0x0F, 0x85):
                continue
            kind = f"0x{int(kind, 16):02x}"
        number = int(part["node"].removeprefix(str(path)).lstrip("p"))
        found.append((number, part["start"] * 512, part["size"] * 512, kind))
    return sorted(found)


def seen(table: Table) -> list[tuple[int, int, int, str]]:
    return [(item.number, item.start, item.length, item.type) for item in table.volumes]


GPT = """label: gpt
first-lba: 34
start=2048, size=8192, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, name="EFI system"
start=10240, size=40960, type=L, name="wurzel-ß-根"
start=61440, size=1, type=S
"""
LOGICAL = """label: dos
label-id: 0x1234abcd
start=2048, size=4096, type=83, bootable
start=8192, size=100000, type=f
start=120000, size=4000, type=7
start=10240, size=8192, type=83
start=20480, size=8192, type=82
start=30720, size=8192, type=8e
"""


@needs_tools
def test_gpt(tmp_path: Path) -> None:
    path = make(tmp_path / "disk", GPT)
    table = table_of(path)
    assert table.scheme == "gpt"
    assert table.warnings == ()
    assert seen(table) == sfdisk_says(path)
    assert [item.name for item in table.volumes] == ["p1", "p2", "p3"]
    assert [item.label for item in table.volumes] == ["EFI system", "wurzel-ß-根", None]
    assert [item.type_name for item in table.volumes] == ["EFI system", "Linux file system", "Linux swap"]
    uuids = [
        part["uuid"].lower()
        for part in json.loads(run("sfdisk", "--json", path))["partitiontable"]["partitions"]
    ]
    assert [item.uuid for item in table.volumes] == uuids


@needs_tools
def test_gpt_with_holes_in_the_numbers(tmp_path: Path) -> None:
    path = make(tmp_path / "disk", GPT)
    run("sgdisk", "--delete=1", "--new=128:100000:+1M", path)
    table = table_of(path)
    assert [item.number for item in table.volumes] == [2, 3, 128]
    assert seen(table) == sfdisk_says(path)


@needs_tools
def test_gpt_with_a_larger_table(tmp_path: Path) -> None:
    lines = [f"start={2048 + 64 * number}, size=64" for number in range(300)]
    path = make(tmp_path / "disk", "\n".join(["label: gpt", "table-length: 512", *lines]))
    table = table_of(path)
    assert len(table.volumes) == 300
    assert seen(table) == sfdisk_says(path)


@needs_tools
@pytest.mark.parametrize("damage", ["primary header", "primary entries", "first MiB"])
def test_backup_gpt(tmp_path: Path, damage: str) -> None:
    path = make(tmp_path / "disk", GPT)
    expected = seen(table_of(path))
    data = bytearray(path.read_bytes())
    if damage == "primary header":
        data[512 + 40] ^= 1
    elif damage == "primary entries":
        data[1024 + 3] ^= 1
    else:
        data[:MIB] = bytes(MIB)
    table = parse_bytes(bytes(data))
    assert table.scheme == "gpt"
    assert seen(table) == expected
    assert any("its backup is used" in warning for warning in table.warnings)


@needs_tools
def test_backup_gpt_of_a_disk_that_was_grown(tmp_path: Path) -> None:
    """The backup is no longer at the end; the primary header still says where it is."""
    path = make(tmp_path / "disk", GPT)
    data = bytearray(path.read_bytes()) + bytes(8 * MIB)
    expected = seen(parse_bytes(bytes(data)))
    assert len(expected) == 3
    data[1024 + 3] ^= 1
    assert seen(parse_bytes(bytes(data))) == expected


@needs_tools
def test_no_usable_gpt(tmp_path: Path) -> None:
    path = make(tmp_path / "disk", GPT)
    data = bytearray(path.read_bytes())
    data[512 + 40] ^= 1
    data[-512 + 40] ^= 1
    table = parse_bytes(bytes(data))
    assert (table.scheme, table.volumes) == ("none", ())
    assert any("neither copy" in warning for warning in table.warnings)


@needs_tools
def test_gpt_without_its_protective_mbr(tmp_path: Path) -> None:
    data = bytearray(make(tmp_path / "disk", GPT).read_bytes())
    data[:512] = bytes(512)
    table = parse_bytes(bytes(data))
    assert table.scheme == "gpt"
    assert len(table.volumes) == 3
    assert table.warnings == ("the protective MBR is missing",)


@needs_tools
def test_hybrid_mbr(tmp_path: Path) -> None:
    path = make(tmp_path / "disk", GPT)
    run("sgdisk", "--hybrid=2", path)
    table = table_of(path)
    assert table.scheme == "gpt"
    assert len(table.volumes) == 3
    assert any("hybrid" in warning for warning in table.warnings)


@needs_tools
def test_ordinary_mbr_wins_over_an_old_gpt(tmp_path: Path) -> None:
    old = make(tmp_path / "gpt", GPT).read_bytes()
    new = make(tmp_path / "mbr", LOGICAL).read_bytes()
    table = parse_bytes(new[:512] + old[512 : 34 * 512] + new[34 * 512 :])
    assert table.scheme == "mbr"
    assert len(table.volumes) == 5


@needs_tools
def test_mbr_with_logical_partitions(tmp_path: Path) -> None:
    path = make(tmp_path / "disk", LOGICAL)
    table = table_of(path)
    assert table.scheme == "mbr"
    assert table.warnings == ()
    assert seen(table) == sfdisk_says(path)
    assert [item.number for item in table.volumes] == [1, 3, 5, 6, 7]
    assert table.volumes[0].uuid == "1234abcd-01"
    assert table.volumes[0].type_name == "Linux"


@needs_tools
def test_garbage_in_a_chain_of_logical_partitions(tmp_path: Path) -> None:
    """As Linux takes it: what some programs left in the two slots that are not used, and in the status."""
    path = make(tmp_path / "disk", LOGICAL)
    plain = table_of(path)
    data = bytearray(path.read_bytes())
    record = (plain.volumes[2].start // 512 - 2048) * 512
    struct.pack_into("<B3sB3sII", data, record + 446 + 32, 0x20, b"RAN", 0x44, b"DOM", 0x20202020, 0x30303030)
    data[record + 446] = 0x11
    assert parse_bytes(bytes(data)) == plain


@needs_tools
def test_4096_byte_blocks(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(64 * MIB))
    run("fdisk", "-b", "4096", path, input="g\nn\n1\n\n+8M\nn\n2\n\n\nw\n")
    table = table_of(path, 4096)
    assert table.scheme == "gpt"
    assert table.warnings == ()
    assert table.block_size == 4096
    assert [item.start % 4096 for item in table.volumes] == [0, 0]
    assert table.volumes[0].length == 8 * MIB
    # A source that could not tell the block size of the disk says 512.
    unaware = table_of(path, 512)
    assert unaware.volumes == table.volumes
    assert any("4096-byte blocks" in warning for warning in unaware.warnings)


@needs_tools
def test_4096_byte_blocks_mbr(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(64 * MIB))
    run("fdisk", "-b", "4096", path, input="o\nn\np\n1\n\n+8M\nn\ne\n2\n\n\nn\n\n+4M\nw\n")
    table = table_of(path, 4096)
    assert [(item.number, item.length) for item in table.volumes] == [(1, 8 * MIB), (5, 4 * MIB)]


@pytest.mark.parametrize("size", [0, 1, 511, 512, 1024, 1536, 4096])
def test_tiny_disks_have_no_table(size: int) -> None:
    assert parse_bytes(bytes(size)).scheme == "none"


def formatters() -> list[Any]:
    commands: dict[str, Sequence[str]] = {
        "fat12": ("mkfs.fat", "-F", "12"),
        "fat16": ("mkfs.fat", "-F", "16"),
        "fat32": ("mkfs.fat", "-F", "32"),
        "ntfs": ("mkfs.ntfs", "-F", "-Q", "-q"),
        "exfat": ("mkfs.exfat",),
        "ext4": ("mkfs.ext4", "-q", "-F"),
    }
    return [
        pytest.param(
            command, id=name, marks=pytest.mark.skipif(not shutil.which(command[0]), reason=command[0])
        )
        for name, command in commands.items()
    ]


@pytest.mark.parametrize("command", formatters())
def test_file_system_without_a_table(tmp_path: Path, command: Sequence[str]) -> None:
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.truncate((4 if "12" in command else 64) * MIB)
    run(*command, path)
    table = table_of(path)
    assert (table.scheme, table.volumes) == ("none", ())


def boot_sector(*entries: tuple[int, int, int, int], at: int = 0, size: int = 512) -> bytes:
    """`entries` are (status, type, first block, blocks)."""
    block = bytearray(size)
    for slot, (status, kind, first, count) in enumerate(entries):
        struct.pack_into("<B3sB3sII", block, 446 + 16 * slot, status, b"", kind, b"", first, count)
    block[510:512] = b"\x55\xaa"
    return bytes(block)


@pytest.mark.parametrize("start", [b"\xeb\x52\x90NTFS    ", b"\xeb\x76\x90EXFAT   ", b"\xeb\x58\x90-FVE-FS-"])
def test_boot_code_that_looks_like_a_table(start: bytes) -> None:
    """A boot sector whose message area happens to have plausible status bytes gives no junk."""
    block = bytearray(boot_sector((0, 0x61, 0x20726420, 0x65720A0D), (0x80, 0x74, 0x6C6F7463, 0x2B746C41)))
    block[: len(start)] = start
    table = parse_bytes(bytes(block) + bytes(MIB))
    assert (table.scheme, table.volumes) == ("none", ())


@pytest.mark.parametrize(
    "entries", [(), ((0, 0x83, 64, 512), (0x80, 0x83, 100, 512)), ((0, 0x83, 64, 1 << 30),)]
)
def test_boot_sector_of_fat(entries: tuple[tuple[int, int, int, int], ...]) -> None:
    block = bytearray(boot_sector(*entries))
    block[:3] = b"\xeb\x3c\x90"
    struct.pack_into("<HBHB", block, 11, 512, 4, 1, 2)
    block[21] = 0xF8
    table = parse_bytes(bytes(block) + bytes(MIB))
    assert (table.scheme, table.volumes) == ("none", ())


def test_table_beside_a_left_over_parameter_block() -> None:
    """GRUB keeps the parameter block of what was there before; the table is still meant."""
    block = bytearray(boot_sector((0x80, 0x83, 64, 512)))
    block[:3] = b"\xeb\x3c\x90"
    struct.pack_into("<HBHB", block, 11, 512, 4, 1, 2)
    block[21] = 0xF8
    assert seen(parse_bytes(bytes(block) + bytes(MIB))) == [(1, 64 * 512, 512 * 512, "0x83")]


def test_status_byte_of_no_table() -> None:
    table = parse_bytes(boot_sector((0, 0x83, 64, 512), (0x41, 0x83, 700, 5)) + bytes(MIB))
    assert (table.scheme, table.volumes) == ("none", ())


def test_partitions_beyond_the_end() -> None:
    table = parse_bytes(boot_sector((0, 0x83, 1, 1 << 31), (0, 0x83, 1 << 30, 5)) + bytes(MIB))
    assert seen(table) == [(1, 512, MIB, "0x83")]
    assert len(table.warnings) == 2


def test_overlapping_partitions_are_both_shown() -> None:
    table = parse_bytes(boot_sector((0, 0x83, 1, 100), (0, 0x83, 50, 100), (0, 0x83, 160, 1)) + bytes(MIB))
    assert len(table.volumes) == 3
    assert table.warnings == ("partitions 1 and 2 overlap",)


def counting(data: bytes) -> tuple[Callable[[int, int], bytes], list[int]]:
    lengths: list[int] = []

    def read(offset: int, length: int) -> bytes:
        lengths.append(length)
        return data[offset : offset + length]

    return read, lengths


def test_chain_that_runs_in_a_circle() -> None:
    data = bytearray(boot_sector((0, 0x05, 10, 1000)) + bytes(MIB))
    data[10 * 512 : 11 * 512] = boot_sector((0, 0x83, 1, 1), (0, 0x05, 20, 10))
    data[30 * 512 : 31 * 512] = boot_sector((0, 0x83, 1, 1), (0, 0x05, 0, 10))
    table = parse_bytes(bytes(data))
    assert [item.number for item in table.volumes] == [5, 6]
    assert any("circle" in warning for warning in table.warnings)


def test_chain_without_end() -> None:
    links = 5000
    data = bytearray(boot_sector((0, 0x05, 1, links)))
    for link in range(links):
        data += boot_sector((0, 0x83, 0, 1), (0, 0x05, link + 1, 1))
    read, lengths = counting(bytes(data))
    table = parse(read, len(data))
    assert len(table.volumes) == 256
    assert len(lengths) < 300
    assert any("256 links" in warning for warning in table.warnings)


@pytest.mark.parametrize(
    ("record", "warning"),
    [
        (bytes(512), "damaged"),
        (boot_sector((0, 0x83, 1, 0), (0, 0x05, 0xFFFFFFF0, 1)), "beyond the end"),
    ],
)
def test_broken_chains(record: bytes, warning: str) -> None:
    table = parse_bytes(boot_sector((0, 0x05, 1, 1000)) + record + bytes(MIB))
    assert table.volumes == ()
    assert table.scheme == "mbr"
    assert any(warning in line for line in table.warnings)


def gpt_disk(entries: bytes, *, count: int, entry_size: int, stored: int | None = None) -> bytes:
    """A disk with a GPT whose checksums are right, whatever it says."""
    size = 4 * MIB
    disk = bytearray(size)
    disk[:512] = boot_sector((0, 0xEE, 1, size // 512 - 1))
    disk[1024 : 1024 + len(entries)] = entries
    header = bytearray(
        struct.pack(
            "<8s4sIIIQQQQ16sQIII",
            b"EFI PART", b"\0\0\1\0", 92, 0, 0, 1, size // 512 - 1, 34, size // 512 - 34, bytes(16), 2,
            count, entry_size, zlib.crc32(entries[: stored if stored is not None else count * entry_size]),
        )
    )  # fmt: skip
    struct.pack_into("<I", header, 16, zlib.crc32(header))
    disk[512 : 512 + len(header)] = header
    return bytes(disk)


def gpt_entry(first: int, last: int, name: bytes = b"") -> bytes:
    return struct.pack("<16s16sQQQ72s", b"\xaf" * 16, b"\x01" * 16, first, last, 0, name)


@pytest.mark.parametrize(
    ("count", "entry_size"),
    [(0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 128), (1, 0xFFFFFFFF), (1, 0), (1, 64), (1, 192), (65536, 128)],
)
def test_gpt_of_a_monstrous_size(count: int, entry_size: int) -> None:
    data = gpt_disk(gpt_entry(40, 50), count=count, entry_size=entry_size, stored=128)
    read, lengths = counting(data)
    table = parse(read, len(data))
    assert table.scheme == "none"
    assert sum(lengths) < 64 * 1024


def test_gpt_entries_that_lie() -> None:
    entries = b"".join(
        (
            gpt_entry(40, 50, "ok".encode("utf-16-le")),
            gpt_entry(50, 40),
            gpt_entry(45, (1 << 64) - 1),
            gpt_entry((1 << 64) - 1, (1 << 64) - 1),
            gpt_entry(60, 60, b"\x00\xd8" * 36),
        )
    )
    table = parse_bytes(gpt_disk(entries, count=5, entry_size=128))
    assert [(item.number, item.start, item.length) for item in table.volumes] == [
        (1, 40 * 512, 11 * 512),
        (3, 45 * 512, 4 * MIB - 45 * 512),
        (5, 60 * 512, 512),
    ]
    assert len(table.warnings) == 5


def test_too_many_partitions_are_cut() -> None:
    entries = b"".join(gpt_entry(2000 + number, 2000 + number) for number in range(2000))
    table = parse_bytes(gpt_disk(entries, count=2000, entry_size=128))
    assert len(table.volumes) == 1024
    assert any("2000 partitions" in warning for warning in table.warnings)


def test_many_warnings_are_cut() -> None:
    entries = gpt_entry(50, 40) * 5000
    assert len(parse_bytes(gpt_disk(entries, count=5000, entry_size=128)).warnings) <= 100


def broken(data: bytes, bad: range) -> Callable[[int, int], bytes]:
    def read(offset: int, length: int) -> bytes:
        if offset < bad.stop and offset + length > bad.start:
            raise IntegrityError(f"chunk at {offset} is damaged")
        return data[offset : offset + length]

    return read


@needs_tools
def test_unreadable_start_of_a_gpt_disk(tmp_path: Path) -> None:
    """The chunk with the primary table is damaged in the repository: the backup serves."""
    data = make(tmp_path / "disk", GPT).read_bytes()
    table = parse(broken(data, range(256 * 1024)), len(data))
    assert seen(table) == seen(parse_bytes(data))
    assert any("cannot be read" in warning for warning in table.warnings)


@needs_tools
def test_unreadable_end_of_a_gpt_disk(tmp_path: Path) -> None:
    data = make(tmp_path / "disk", GPT).read_bytes()
    table = parse(broken(data, range(len(data) - 4096, len(data))), len(data))
    assert len(table.volumes) == 3
    assert table.warnings == ()


@needs_tools
def test_unreadable_start_of_an_mbr_disk(tmp_path: Path) -> None:
    """Nothing can be said about the table: that is an error and not an empty disk."""
    data = make(tmp_path / "disk", LOGICAL).read_bytes()
    with pytest.raises(IntegrityError, match="damaged"):
        parse(broken(data, range(512)), len(data))


@needs_tools
def test_unreadable_logical_partition(tmp_path: Path) -> None:
    data = make(tmp_path / "disk", LOGICAL).read_bytes()
    record = (20480 - 2048) * 512
    found = [item.number for item in parse_bytes(data).volumes]
    table = parse(broken(data, range(record, 20480 * 512)), len(data))
    assert [item.number for item in table.volumes] == found[:3]
    assert any("cannot be read on" in warning for warning in table.warnings)
