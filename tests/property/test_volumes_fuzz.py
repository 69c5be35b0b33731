"""Whatever is in an image, the parser returns: no exception, bounded reads, volumes within the disk."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmfs.volumes import Table, parse

MIB = 1 << 20
SIZE = 4 * MIB
MAX_READ = 16 * MIB
MAX_READS = 1100


def parse_bounded(data: bytes, block_size: int = 512) -> Table:
    lengths: list[int] = []

    def read(offset: int, length: int) -> bytes:
        assert 0 <= offset < len(data)
        assert 0 < length <= len(data) - offset
        lengths.append(length)
        return data[offset : offset + length]

    table = parse(read, len(data), block_size)
    assert sum(lengths) <= MAX_READ
    assert len(lengths) <= MAX_READS
    assert len(table.warnings) <= 101
    names = [volume.name for volume in table.volumes]
    assert len(names) == len(set(names)) <= 1024
    for volume in table.volumes:
        assert 0 <= volume.start < volume.start + volume.length <= len(data)
    return table


def mbr_template() -> bytes:
    data = bytearray(SIZE)

    def record(at: int, *entries: tuple[int, int, int]) -> None:
        for slot, (kind, first, count) in enumerate(entries):
            struct.pack_into("<B3sB3sII", data, at * 512 + 446 + 16 * slot, 0, b"", kind, b"", first, count)
        data[at * 512 + 510 : at * 512 + 512] = b"\x55\xaa"

    record(0, (0x83, 64, 64), (0x05, 200, 800), (0x0F, 1200, 500))
    record(200, (0x83, 1, 50), (0x05, 100, 100))
    record(300, (0x82, 1, 50), (0x05, 200, 100))
    record(400, (0x83, 1, 50))
    record(1200, (0x83, 1, 50))
    return bytes(data)


def gpt_header(own: int, other: int, entries_at: int, entries: bytes) -> bytes:
    fields = [
        b"EFI PART",
        b"\0\0\1\0",
        92,
        0,
        0,
        own,
        other,
        34,
        SIZE // 512 - 34,
        b"g" * 16,
        entries_at,
        128,
        128,
    ]
    header = bytearray(struct.pack("<8s4sIIIQQQQ16sQIII", *fields, zlib.crc32(entries)))
    struct.pack_into("<I", header, 16, zlib.crc32(header))
    return bytes(header)


def gpt_template() -> bytes:
    data = bytearray(SIZE)
    last = SIZE // 512 - 1
    struct.pack_into("<B3sB3sII", data, 446, 0, b"", 0xEE, b"", 1, last)
    data[510:512] = b"\x55\xaa"
    entries = b"".join(
        struct.pack("<16s16sQQQ72s", b"t" * 16, b"u" * 16, first, first + 99, 0, "n".encode("utf-16-le"))
        for first in (100, 300, 500)
    ).ljust(128 * 128, b"\0")
    data[1024 : 1024 + len(entries)] = entries
    data[512:604] = gpt_header(1, last, 2, entries)
    data[(last - 32) * 512 : last * 512] = entries
    data[last * 512 : last * 512 + 92] = gpt_header(last, 1, last - 32, entries)
    return bytes(data)


TEMPLATES = (mbr_template(), gpt_template())
# Where tables are; a mutation of a partition's content would test nothing.
PLACES = (
    [*range(440, 604), *range(1024, 1500)]
    + [at * 512 + byte for at in (200, 300, 400, 1200) for byte in range(446, 512)]
    + [*range(SIZE - 512, SIZE - 420), *range(SIZE - 33 * 512, SIZE - 33 * 512 + 400)]
)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(TEMPLATES),
    st.lists(st.tuples(st.sampled_from(PLACES), st.binary(min_size=1, max_size=8)), max_size=12),
    st.booleans(),
    st.sampled_from((512, 4096)),
    st.integers(0, SIZE) | st.just(SIZE),
)
def test_mutated_tables(
    template: bytes, changes: list[tuple[int, bytes]], mend: bool, block_size: int, size: int
) -> None:
    data = bytearray(template)
    for at, replacement in changes:
        data[at : at + len(replacement)] = replacement
    if mend:
        # Random changes seldom get past the checksums of a GPT; a hostile guest computes them.
        for at in (512, len(data) - 512):
            entries = struct.unpack_from("<Q", data, at + 72)[0] * 512
            count, entry_size = struct.unpack_from("<II", data, at + 80)
            if count * entry_size <= 4 * MIB:
                array = data[entries : entries + count * entry_size]
                struct.pack_into("<I", data, at + 88, zlib.crc32(array))
            struct.pack_into("<I", data, at + 16, 0)
            header_size = min(struct.unpack_from("<I", data, at + 12)[0], 512)
            struct.pack_into("<I", data, at + 16, zlib.crc32(data[at : at + header_size]))
    parse_bounded(bytes(data[:size]), block_size)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(min_size=512, max_size=512), min_size=1, max_size=40))
def test_noise(blocks: list[bytes]) -> None:
    parse_bounded(b"".join(block[:510] + b"\x55\xaa" for block in blocks))


def test_templates_parse_as_meant() -> None:
    mbr, gpt = (parse_bounded(template) for template in TEMPLATES)
    assert [volume.number for volume in mbr.volumes] == [1, 5, 6, 7, 8]
    assert [volume.number for volume in gpt.volumes] == [1, 2, 3]
    assert mbr.warnings == gpt.warnings == ()


# sfdisk keeps an alignment of its own; give it sizes and let it choose the places.
SIZES = st.lists(st.integers(1, 40).map(lambda n: n * 128), min_size=1, max_size=9)


@pytest.mark.skipif(not shutil.which("sfdisk"), reason="needs sfdisk")
@settings(max_examples=25, deadline=None)
@given(st.sampled_from(("gpt", "dos")), SIZES)
def test_agrees_with_sfdisk(label: str, sizes: list[int]) -> None:
    lines = [f"label: {label}"]
    for number, size in enumerate(sizes, 1):
        if label == "dos" and number == 4 and len(sizes) > 4:
            lines.append("type=5")
        lines.append(f"size={size}")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "disk"
        with path.open("wb") as file:
            file.truncate(64 * MIB)
        command = ["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", str(path)]
        done = subprocess.run(command, input="\n".join(lines), text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        shown = subprocess.run(["sfdisk", "--json", str(path)], capture_output=True, check=True).stdout
        with path.open("rb") as file:

            def read(offset: int, length: int) -> bytes:
                file.seek(offset)
                return file.read(length)

            table = parse(read, 64 * MIB)
    expected = [
        (int(part["node"].removeprefix(str(path)).lstrip("p")), part["start"] * 512, part["size"] * 512)
        for part in json.loads(shown)["partitiontable"]["partitions"]
        if part["type"] not in ("5", "f")
    ]
    assert [(volume.number, volume.start, volume.length) for volume in table.volumes] == sorted(expected)
    assert table.scheme == {"gpt": "gpt", "dos": "mbr"}[label]
    assert table.warnings == ()
