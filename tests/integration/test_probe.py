"""What volumes hold, beside blkid's answer."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from volume_helpers import FileDisk, MemoryDisk

from vmfs.volumes.glimpse import Glimpse
from vmfs.volumes.layout import PointDisk, find_volumes
from vmfs.volumes.probe import FileSystemFacts, probe

MIB = 1 << 20
COMMANDS: dict[str, list[str]] = {
    "ext2": ["mkfs.ext2", "-q", "-F", "-L", "Grüße"],
    "ext3": ["mkfs.ext3", "-q", "-F"],
    "ext4": ["mkfs.ext4", "-q", "-F", "-L", "sixteen-letters!"],
    "jbd": ["mke2fs", "-q", "-F", "-O", "journal_dev"],
    "xfs": ["mkfs.xfs", "-q", "-f", "-L", "xfs label 12"],
    "btrfs": ["mkfs.btrfs", "-q", "-f", "-L", "a label that is longer than others"],
    "ntfs": ["mkfs.ntfs", "-F", "-Q", "-q", "-L", "Windows ß"],
    "ntfs-no-label": ["mkfs.ntfs", "-F", "-Q", "-q"],
    "fat12": ["mkfs.fat", "-F", "12", "-n", "FLOPPY"],
    "fat16": ["mkfs.fat", "-F", "16", "-n", "SIXTEEN"],
    "fat32": ["mkfs.fat", "-F", "32", "-s", "1", "-n", "EFI SYSTEM"],
    "fat32-no-label": ["mkfs.fat", "-F", "32", "-s", "1"],
    "exfat": ["mkfs.exfat", "-L", "exfat-ß"],
    "exfat-no-label": ["mkfs.exfat"],
    "swap": ["mkswap", "-q", "-L", "paging"],
}


def blkid(path: Path) -> FileSystemFacts | None:
    done = subprocess.run(["blkid", "-p", "-o", "udev", path], capture_output=True, text=True, check=False)
    facts = dict(line.split("=", 1) for line in done.stdout.splitlines())
    if "ID_FS_TYPE" not in facts:
        return None

    def plain(key: str) -> str | None:
        said = facts.get(f"ID_FS_{key}_ENC")
        return said and re.sub(r"\\x(..)", lambda match: chr(int(match[1], 16)), said)

    return FileSystemFacts(facts["ID_FS_TYPE"], plain("LABEL"), plain("UUID"))


def cases() -> list[Any]:
    return [
        pytest.param(
            command, id=name, marks=pytest.mark.skipif(not shutil.which(command[0]), reason=command[0])
        )
        for name, command in COMMANDS.items()
    ]


@pytest.mark.parametrize("command", cases())
def test_file_systems(tmp_path: Path, command: list[str]) -> None:
    path = tmp_path / "volume.raw"
    size = 4 if "12" in command else 320
    with path.open("wb") as file:
        file.truncate(size * MIB)
    subprocess.run([*command, path], check=True, capture_output=True)
    expected = blkid(path)
    assert expected is not None
    with closing(FileDisk(path)) as disk:
        assert probe(Glimpse(disk)) == expected
        assert disk.reads <= 3
        layout = find_volumes([PointDisk("volume", disk, 512)])
    (volume,) = layout.volumes
    assert (volume.key, volume.name, volume.kind, volume.content) == ("0", "volume", "disk", expected)
    assert layout.warnings == ()


def luks(version: int) -> bytearray:
    head = bytearray(MIB)
    head[:8] = b"LUKS\xba\xbe" + struct.pack(">H", version)
    head[168:204] = b"4f68bce3-e8cd-4db1-96e7-fbcaf984b709"
    if version == 2:
        struct.pack_into(">QQ48s32s", head, 8, 16384, 1, b"secrets", b"sha256")
    else:
        head[8:40] = b"aes".ljust(32, b"\0")
    return head


def iso(*, modified: bool) -> bytearray:
    image = bytearray(MIB)
    image[32768:32775] = b"\1CD001\1"
    image[32808:32840] = b"INSTALL MEDIUM".ljust(32)
    image[32768 + 813 : 32768 + 829] = b"2026112021363000"
    image[32768 + 830 : 32768 + 846] = b"2026112121363055" if modified else b"0" * 16
    image[34816:34823] = b"\xffCD001\1"
    return image


@pytest.mark.parametrize(
    "image",
    [luks(1), luks(2), iso(modified=True), iso(modified=False), bytearray(MIB)],
    ids=["luks1", "luks2", "iso", "iso-as-made", "nothing"],
)
def test_written_by_hand(tmp_path: Path, image: bytearray) -> None:
    path = tmp_path / "volume.raw"
    path.write_bytes(image)
    assert probe(Glimpse(MemoryDisk(bytes(image)))) == blkid(path)


def test_bitlocker() -> None:
    """By the start of the boot sector alone: blkid wants to see more, that no tool here can make."""
    head = bytearray(MIB)
    head[:11] = b"\xeb\x58\x90-FVE-FS-"
    head[510:512] = b"\x55\xaa"
    assert probe(Glimpse(MemoryDisk(bytes(head)))) == ("BitLocker", None, None)


def test_zfs() -> None:
    """The list that a pool's label begins with, as XDR has it."""

    def pair(name: bytes, kind: int, value: bytes) -> bytes:
        padded = name + bytes(-len(name) % 4)
        body = struct.pack(">I", len(name)) + padded + struct.pack(">II", kind, 1) + value
        return struct.pack(">II", len(body) + 8, len(body) + 16) + body

    label = b"\1\1\0\0" + struct.pack(">II", 0, 1)
    label += pair(b"version", 8, struct.pack(">Q", 5000))
    label += pair(b"name", 9, struct.pack(">I", 4) + b"tank")
    label += pair(b"pool_guid", 8, struct.pack(">Q", 1234567890123456789)) + bytes(8)
    image = bytearray(MIB)
    image[16384 : 16384 + len(label)] = label
    assert probe(Glimpse(MemoryDisk(bytes(image)))) == ("zfs_member", "tank", "1234567890123456789")


def test_iso_that_boots_from_a_stick() -> None:
    """It has a partition table, and is a file system all the same."""
    image = iso(modified=True)
    struct.pack_into("<B3sB3sII", image, 446, 0x80, b"", 0x17, b"", 64, 1000)
    image[510:512] = b"\x55\xaa"
    layout = find_volumes([PointDisk("cd", MemoryDisk(bytes(image)), 512)])
    assert [(volume.key, volume.kind) for volume in layout.volumes] == [("0/p1", "partition"), ("0", "disk")]
