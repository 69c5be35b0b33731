"""What a volume holds: type, label and UUID, as blkid says them."""

from __future__ import annotations

import struct
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple
from uuid import UUID

from vmfs.volumes.glimpse import HEAD, Glimpse

MD_MAGIC = 0xA92B4EFC
SECTOR = 512


class FileSystemFacts(NamedTuple):
    """`type` is blkid's word: ext4, xfs, btrfs, ntfs, vfat, exfat, iso9660, swap, LVM2_member,
    linux_raid_member, crypto_LUKS, BitLocker, zfs_member… `label` and `uuid` are what blkid prints."""

    type: str
    label: str | None
    uuid: str | None


def probe(space: Glimpse) -> FileSystemFacts | None:
    """What is in `space`, or None when nothing known is. Raises what reading it raises, and nothing for
    whatever is read."""
    head = space.read(0, min(HEAD, space.size)).ljust(HEAD, b"\0")
    for recognize in _RECOGNIZERS:
        facts = recognize(head, space)
        if facts is not None:
            return facts
    return None


def text(raw: bytes, encoding: str = "utf-8") -> str | None:
    """A label out of a fixed field: to its first NUL, for a person to see."""
    shown = raw.decode(encoding, "replace").split("\0", 1)[0].rstrip()
    return "".join(char if char.isprintable() else "�" for char in shown) or None


def _uuid(raw: bytes) -> str | None:
    return str(UUID(bytes=raw)) if any(raw) else None


def _lvm(head: bytes, space: Glimpse) -> FileSystemFacts | None:
    for at in range(0, 4 * SECTOR, SECTOR):
        if head[at : at + 8] == b"LABELONE" and head[at + 24 : at + 32] == b"LVM2 001":
            start = at + struct.unpack_from("<I", head, at + 20)[0]
            raw = head[start : start + 32]
            if len(raw) == 32 and raw.isalnum():
                return FileSystemFacts("LVM2_member", None, lvm_uuid(raw.decode("ascii")))
    return None


def lvm_uuid(plain: str) -> str:
    """LVM prints the 32 characters of its UUIDs in groups of 6-4-4-4-4-4-6."""
    ends = (6, 10, 14, 18, 22, 26, 32)
    return "-".join(plain[start:end] for start, end in zip((0, *ends), ends, strict=False))


def _raid(head: bytes, space: Glimpse) -> FileSystemFacts | None:
    found = _raid_1(head[:SECTOR]) or _raid_1(head[4096 : 4096 + SECTOR])
    if found is not None or space.size < 128 << 10:
        return found
    # 1.0 lies 8 to 12 KiB before the end, 0.90 64 to 128 KiB.
    old = (space.size & ~0xFFFF) - 0x10000
    tail = space.read(old, space.size - old)
    new = (space.size // SECTOR - 16 & ~7) * SECTOR - old
    return _raid_1(tail[new : new + SECTOR]) or _raid_0(tail[:SECTOR])


def _raid_1(block: bytes) -> FileSystemFacts | None:
    if len(block) < 256 or struct.unpack_from("<II", block) != (MD_MAGIC, 1):
        return None
    return FileSystemFacts("linux_raid_member", text(block[32:64]), _uuid(block[16:32]))


def _raid_0(block: bytes) -> FileSystemFacts | None:
    if len(block) < 64 or struct.unpack_from("<II", block) != (MD_MAGIC, 0):
        return None
    words = struct.unpack_from("<16I", block)
    raw = struct.pack(">4I", words[5], words[13], words[14], words[15])
    return FileSystemFacts("linux_raid_member", None, _uuid(raw))


def _luks(head: bytes, space: Glimpse) -> FileSystemFacts | None:
    if head[:6] != b"LUKS\xba\xbe":
        return None
    version = struct.unpack_from(">H", head, 6)[0]
    label = text(head[24:72]) if version == 2 else None
    return FileSystemFacts("crypto_LUKS", label, text(head[168:208]))


def _bitlocker(head: bytes, space: Glimpse) -> FileSystemFacts | None:
    return FileSystemFacts("BitLocker", None, None) if head[3:11] == b"-FVE-FS-" else None


def _zfs(head: bytes, space: Glimpse) -> FileSystemFacts | None:
    """The list of names and values in the first label: XDR, little-endian host, unique names."""
    nvlist = head[16 << 10 :]
    if nvlist[:4] != b"\1\1\0\0" or nvlist[4:12] != b"\0\0\0\0\0\0\0\1" or b"pool_guid" not in nvlist:
        return None
    name = nvlist.find(b"\0\0\0\4name\0\0\0\x09")
    label = None
    if name >= 0 and name + 20 <= len(nvlist):
        length = struct.unpack_from(">I", nvlist, name + 16)[0]
        label = text(nvlist[name + 20 : name + 20 + min(length, 256)])
    guid = nvlist.find(b"pool_guid\0\0\0\0\0\0\x08\0\0\0\1")
    uuid = None
    if guid >= 0 and guid + 28 <= len(nvlist):
        uuid = str(struct.unpack_from(">Q", nvlist, guid + 20)[0])
    return FileSystemFacts("zfs_member", label, uuid)


def _xfs(head: bytes, space: Glimpse) -> FileSystemFacts | None:
    if head[:4] != b"XFSB":
        return None
    return FileSystemFacts("xfs", text(head[108:120]), _uuid(head[32:48]))


# Features that a file system may have and still be ext2 or ext3, as libblkid sorts them.
_EXT_JOURNAL = 0x4
_EXT_JOURNAL_DEVICE = 0x8
_EXT3_RO_COMPAT = 0x1 | 0x2 | 0x4
_EXT3_INCOMPAT = 0x2 | 0x4 | 0x10


def _ext(head: bytes, space: Glimpse) -> FileSystemFacts | None:
    block = head[1024:2048]
    if block[56:58] != b"\x53\xef":
        return None
    compat, incompat, ro_compat = struct.unpack_from("<III", block, 92)
    if incompat & _EXT_JOURNAL_DEVICE:
        kind = "jbd"
    elif ro_compat & ~_EXT3_RO_COMPAT or incompat & ~_EXT3_INCOMPAT:
        kind = "ext4"
    else:
        kind = "ext3" if compat & _EXT_JOURNAL else "ext2"
    return FileSystemFacts(kind, text(block[120:136]), _uuid(block[104:120]))


def _btrfs(head: bytes, space: Glimpse) -> FileSystemFacts | None:
    block = head[64 << 10 :]
    if block[64:72] != b"_BHRfS_M":
        return None
    return FileSystemFacts("btrfs", text(block[299:555]), _uuid(block[32:48]))


def _swap(head: bytes, space: Glimpse) -> FileSystemFacts | None:
    for page in (4096, 8192, 16384, 32768, 65536):
        if head[page - 10 : page] in (b"SWAPSPACE2", b"SWAP-SPACE"):
            return FileSystemFacts("swap", text(head[1052:1068]), _uuid(head[1036:1052]))
    return None


def _iso(head: bytes, space: Glimpse) -> FileSystemFacts | None:
    volume = head[32 << 10 : 34 << 10]
    if volume[1:6] != b"CD001" or volume[0] != 1:
        return None
    # blkid's UUID of an ISO is the time it was modified, else made.
    for at in (830, 813):
        digits = volume[at : at + 16]
        if digits.isdigit() and digits.strip(b"0"):
            stamp = digits.decode("ascii")
            cuts = (0, 4, 6, 8, 10, 12, 14, 16)
            uuid = "-".join(stamp[start:end] for start, end in pairwise(cuts))
            return FileSystemFacts("iso9660", text(volume[40:72]), uuid)
    return FileSystemFacts("iso9660", text(volume[40:72]), None)


def _ntfs(head: bytes, space: Glimpse) -> FileSystemFacts | None:
    if head[3:11] != b"NTFS    ":
        return None
    serial = struct.unpack_from("<Q", head, 72)[0]
    return FileSystemFacts("ntfs", _ntfs_label(head, space), f"{serial:016X}")


def _ntfs_label(head: bytes, space: Glimpse) -> str | None:
    """The name in the record of $Volume, number 3 of the master file table."""
    sector, per_cluster = struct.unpack_from("<HB", head, 11)
    # Over 0x80 it is the negative of a power of two.
    cluster = sector * (per_cluster if per_cluster <= 0x80 else 1 << min(256 - per_cluster, 20))
    table, size = struct.unpack_from("<Q8xb", head, 48)
    record = 1 << -size if -16 <= size < 0 else size * cluster
    if not 512 <= record <= 1 << 16 or not cluster:
        return None
    at = table * cluster + 3 * record
    if at >= space.size:
        return None
    data = space.read(at, record)
    if data[:4] != b"FILE" or len(data) < 64:
        return None
    where = struct.unpack_from("<H", data, 20)[0]
    while where + 24 <= len(data):
        kind, length = struct.unpack_from("<II", data, where)
        if kind == 0x60 and not data[where + 8]:
            count, start = struct.unpack_from("<IH", data, where + 16)
            raw = data[where + start : where + start + min(count, 512) // 2 * 2]
            return text(raw, "utf-16-le")
        if kind >= 0x60 or length < 16:
            break
        where += length
    return None


def _exfat(head: bytes, space: Glimpse) -> FileSystemFacts | None:
    if head[3:11] != b"EXFAT   ":
        return None
    return FileSystemFacts("exfat", _exfat_label(head, space), _serial(head[100:104]))


def _exfat_label(head: bytes, space: Glimpse) -> str | None:
    heap, _, root = struct.unpack_from("<III", head, 88)
    sector, cluster = 1 << min(head[108], 12), 1 << min(head[109], 16)
    at = (heap + (root - 2) * cluster) * sector
    if root < 2 or at >= space.size:
        return None
    # The label is among the first entries of the root directory.
    data = space.read(at, min(4096, sector * cluster))
    for where in range(0, len(data) - 31, 32):
        if data[where] == 0x83:
            return text(data[where + 2 : where + 2 + 2 * min(data[where + 1], 11)], "utf-16-le")
        if data[where] == 0:
            break
    return None


def _fat(head: bytes, space: Glimpse) -> FileSystemFacts | None:
    sector, cluster, reserved, fats, entries, _, media, length = struct.unpack_from("<HBHBHHBH", head, 11)
    if (
        head[0] not in (0xEB, 0xE9)
        or head[510:512] != b"\x55\xaa"
        or sector not in (512, 1024, 2048, 4096)
        or cluster == 0
        or cluster & (cluster - 1)
        or not reserved
        or fats not in (1, 2)
        or not (media == 0xF0 or media >= 0xF8)
    ):
        return None
    if length:
        root, size, at = (reserved + fats * length) * sector, entries * 32, 39
    else:
        length, first = struct.unpack_from("<I4xI", head, 36)
        root = (reserved + fats * length + (first - 2) * cluster) * sector
        size, at = cluster * sector, 67
    if head[at - 1] not in (0x28, 0x29):
        return FileSystemFacts("vfat", None, None)
    label = _fat_label(space, root, min(size, 1 << 16)) or text(head[at + 4 : at + 15], "cp437")
    return FileSystemFacts("vfat", None if label == "NO NAME" else label, _serial(head[at : at + 4]))


def _fat_label(space: Glimpse, root: int, size: int) -> str | None:
    """The label as an entry of the root directory, of which its first cluster is looked at."""
    if not 0 < root < space.size:
        return None
    data = space.read(root, size)
    for where in range(0, len(data) - 31, 32):
        if data[where] == 0:
            break
        # Attribute 0x08 is the label's, and 0x0f part of a long name.
        if data[where] != 0xE5 and data[where + 11] & 0x3F != 0x0F and data[where + 11] & 0x18 == 0x08:
            return text(data[where : where + 11], "cp437")
    return None


def _serial(raw: bytes) -> str | None:
    shown = raw[::-1].hex().upper()
    return f"{shown[:4]}-{shown[4:]}" if any(raw) else None


# What is under something else comes before it: a member of a mirror starts with the file system in it.
_RECOGNIZERS: tuple[Callable[[bytes, Glimpse], FileSystemFacts | None], ...] = (
    _raid,
    _lvm,
    _luks,
    _bitlocker,
    _swap,
    _xfs,
    _ext,
    _iso,
    _btrfs,
    _ntfs,
    _exfat,
    _zfs,
    _fat,
)
