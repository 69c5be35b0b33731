"""Volumes of several disks together: names, keys, and disks that cannot be read."""

from __future__ import annotations

import struct

import pytest
from volume_helpers import MemoryDisk, group_text, linear, physical_volume, uuid_of, volume_text

from vmfs.errors import IntegrityError, StoreError, VmfsError
from vmfs.volumes.layout import PointDisk, find_volumes

MIB = 1 << 20


class Unreadable(MemoryDisk):
    """From byte `good` on."""

    def __init__(self, data: bytes, error: VmfsError, good: int = 0) -> None:
        super().__init__(data)
        self._error = error
        self._good = good

    def read(self, offset: int, length: int) -> bytes:
        if offset + length > self._good:
            raise self._error
        return super().read(offset, length)


def swap() -> bytearray:
    data = bytearray(MIB)
    data[4086:4096] = b"SWAPSPACE2"
    return data


def partitioned(*starts: int) -> bytearray:
    data = bytearray(MIB)
    for slot, start in enumerate(starts):
        struct.pack_into("<B3sB3sII", data, 446 + 16 * slot, 0, b"", 0x83, b"", start, 200)
    data[510:512] = b"\x55\xaa"
    return data


def disk(alias: str, data: bytes | MemoryDisk) -> PointDisk:
    return PointDisk(alias, data if isinstance(data, MemoryDisk) else MemoryDisk(bytes(data)), 512)


def test_disks_with_and_without_tables() -> None:
    layout = find_volumes(
        [
            disk("root", partitioned(64, 300)),
            disk("empty", bytes(MIB)),
            disk("paging", swap()),
            disk("none", b""),
        ]
    )
    assert [(volume.key, volume.name, volume.kind) for volume in layout.volumes] == [
        ("0/p1", "root-p1", "partition"),
        ("0/p2", "root-p2", "partition"),
        ("2", "paging", "disk"),
    ]
    assert [table.scheme for table in layout.tables] == ["mbr", "none", "none", "none"]
    first = layout.volumes[0]
    assert first.partition == layout.tables[0].volumes[0]
    assert first.space.copies() == (((0, 200 * 512, 0, 64 * 512),),)


@pytest.mark.parametrize("error", [IntegrityError("damaged"), StoreError("away")])
def test_disk_that_cannot_be_read(error: VmfsError) -> None:
    broken = disk("bad", Unreadable(bytes(MIB), error))
    layout = find_volumes([broken, disk("paging", swap())])
    assert [volume.key for volume in layout.volumes] == ["1"]
    assert len(layout.tables) == 2
    assert layout.warnings == (f"disk bad: no volumes, its table cannot be read: {error}",)
    with pytest.raises(type(error), match=str(error)):
        find_volumes([broken])


def test_partition_that_cannot_be_read_is_there_all_the_same() -> None:
    layout = find_volumes(
        [disk("bad", Unreadable(bytes(partitioned(512)), IntegrityError("damaged"), 80_000))]
    )
    assert [(volume.key, volume.content) for volume in layout.volumes] == [("0/p1", None)]
    assert layout.warnings == ("volume bad-p1: what it holds cannot be read: damaged",)
    assert [str(volume.problem) for volume in layout.volumes] == ["damaged"]
    assert list(map(str, layout.problems)) == ["damaged"]


def test_metadata_that_cannot_be_read() -> None:
    """The label can be, the metadata behind it cannot."""
    text = group_text({"pv0": (uuid_of("a"), 256, 10)}, volume_text("v", [(0, 1, linear("pv0", 0))]))
    data = physical_volume(uuid_of("a"), MIB, text, area=80 << 10, area_size=40 << 10)

    class Gap(MemoryDisk):
        def read(self, offset: int, length: int) -> bytes:
            if offset < 90 << 10 and offset + length > 80 << 10:
                raise IntegrityError("damaged")
            return super().read(offset, length)

    layout = find_volumes([disk("bad", Gap(bytes(data)))])
    assert [volume.key for volume in layout.volumes] == ["0"]
    assert layout.warnings == ("volume bad: its metadata cannot be read: damaged",)
    assert [str(volume.problem) for volume in layout.volumes] == ["damaged"]


def test_names_are_file_names_and_unlike_each_other() -> None:
    layout = find_volumes(
        [
            disk(alias, swap())
            for alias in (
                "a",
                "a",
                "../../etc",
                "",
                ".",
                "x" * 900,
                "tab\tnewline\n",
                "nul\0",
                "-",
                "a-1",
                "\udcff",
            )
        ]
    )
    names = [volume.name for volume in layout.volumes]
    assert len(names) == len(set(names)) == 11
    for name in names:
        assert name
        assert name not in (".", "..")
        assert len(name) <= 255
        assert name.isprintable()
        assert "/" not in name


def test_no_disks() -> None:
    assert find_volumes([]).volumes == ()
