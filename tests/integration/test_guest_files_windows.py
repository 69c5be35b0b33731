"""NTFS, FAT and exFAT as a worker reads them, held to the programs that wrote them (ntfs-3g, mtools,
exfat-fuse), and to what is written."""

from __future__ import annotations

import errno
import os
import stat
import struct
from pathlib import Path

import pytest
from guest_tree_helpers import (
    SECOND,
    FileSpace,
    Seen,
    by_kernel,
    by_worker,
    differences,
    mounted_exfat,
    mounted_ntfs,
    plain_tree,
    run,
)

from vmfs.volumes.files.client import FileSystem, GuestError, open_filesystem

pytestmark = pytest.mark.root
TIMES = {"of 1999": 915_148_800, "of 2024": 1_709_210_096}


def test_ntfs(tmp_path: Path) -> None:
    image = _empty(tmp_path / "image", 64 << 20)
    run("mkntfs", "-q", "-F", "-L", "Übung", image)
    with mounted_ntfs(image, tmp_path / "mount", "compression") as mount:
        plain_tree(mount / "tree")
        _times(mount / "tree")
        (mount / "tree" / "link").symlink_to("deep/l00")
        os.link(mount / "tree" / "4097 bytes", mount / "tree" / "hard link")
        os.setxattr(mount / "tree" / "1 bytes", "user.stream", b"alternate" * 1000)
        with (mount / "tree" / "sparse").open("wb") as file:
            for at in (0, 5 << 20, 9 << 20):
                file.seek(at)
                file.write(b"data" * 1000)
            file.truncate(10 << 20)
        compressed = mount / "compressed"
        compressed.mkdir()
        # FILE_ATTRIBUTE_COMPRESSED, for what is made in it.
        os.setxattr(compressed, "system.ntfs_attrib_be", (0x800).to_bytes(4, "big"))
        (compressed / "text").write_bytes(b"much the same, over and over\n" * 100_000)
        (compressed / "random").write_bytes(os.urandom(300_000))
    with mounted_ntfs(image, tmp_path / "mount", "ro") as mount:
        wanted = by_kernel(mount)
    with open_filesystem(FileSpace(image), "ntfs", name="ntfs") as filesystem:
        assert (filesystem.type, filesystem.label) == ("ntfs", "Übung")
        assert filesystem.uuid == _uuid(image)
        assert differences(by_worker(filesystem), wanted, "xattrs") == []
        status = _find(filesystem, b"tree", b"1 bytes")
        assert filesystem.xattrs(status) == {b"user.ads.stream": b"alternate" * 1000}
        sparse = filesystem.extents(_find(filesystem, b"tree", b"sparse"))
        assert len(sparse) == 3
        assert sum(length for _, length in sparse) < 200_000


def test_ntfs_with_clusters_larger_than_the_records_of_indexes(tmp_path: Path) -> None:
    image = _empty(tmp_path / "image", 64 << 20)
    run("mkntfs", "-q", "-F", "-c", "65536", image)
    with mounted_ntfs(image, tmp_path / "mount") as mount:
        plain_tree(mount / "tree")
    with mounted_ntfs(image, tmp_path / "mount", "ro") as mount:
        wanted = by_kernel(mount)
    with open_filesystem(FileSpace(image), "ntfs", name="ntfs") as filesystem:
        assert differences(by_worker(filesystem), wanted, "xattrs") == []


def test_ntfs_reparse_points(tmp_path: Path) -> None:
    image = _empty(tmp_path / "image", 32 << 20)
    run("mkntfs", "-q", "-F", image)
    data = os.urandom(10_000)
    with mounted_ntfs(image, tmp_path / "mount") as mount:
        (mount / "dir" / "junction").mkdir(parents=True)
        # IO_REPARSE_TAG_MOUNT_POINT, _SYMLINK, _DEDUP, _LX_SYMLINK and _WOF of [MS-FSCC] 2.1.2.1.
        _reparse(mount / "dir" / "junction", 0xA0000003, _names("\\??\\C:\\dir", b""))
        (mount / "dir" / "link").touch()
        _reparse(mount / "dir" / "link", 0xA000000C, _names("..\\file", struct.pack("<I", 1)))
        (mount / "of WSL").touch()
        _reparse(mount / "of WSL", 0xA000001D, struct.pack("<I", 2) + b"dir/link")
        (mount / "compressed").touch()
        # Where blocks 1 and 2 begin; blocks that are as long as what they hold are not compressed.
        stream = struct.pack("<2I", 4096, 8192) + data
        os.setxattr(mount / "compressed", "user.WofCompressedData", stream)
        for name, tag in (("deduplicated", 0x80000013), ("compressed", 0x80000017)):
            (mount / name).touch()
            os.truncate(mount / name, len(data))
            # Version 1, provider FILE, version 1, XPRESS in blocks of 4 KiB.
            _reparse(mount / name, tag, struct.pack("<4I", 1, 2, 1, 0))
    with open_filesystem(FileSpace(image), "ntfs", name="ntfs") as filesystem:
        assert filesystem.warnings == ()
        assert filesystem.readlink(_find(filesystem, b"dir", b"junction")) == b"../dir"
        assert filesystem.readlink(_find(filesystem, b"dir", b"link")) == b"../file"
        assert filesystem.readlink(_find(filesystem, b"of WSL")) == b"dir/link"
        compressed = _find(filesystem, b"compressed")
        assert filesystem.read(compressed, 0, 1 << 20) == data
        assert filesystem.xattrs(compressed) == {}
        with pytest.raises(GuestError, match=r"not in this volume's file \(deduplicated") as caught:
            filesystem.read(_find(filesystem, b"deduplicated"), 0, 1 << 20)
        assert caught.value.errno == errno.EOPNOTSUPP


@pytest.mark.parametrize(("client", "flags", "is_open"), [(0, 0, True), (0, 2, False), (0xFFFF, 0, False)])
def test_ntfs_that_was_in_use_is_said(tmp_path: Path, client: int, flags: int, is_open: bool) -> None:
    image = _empty(tmp_path / "image", 32 << 20)
    run("mkntfs", "-q", "-F", image)
    data = bytearray(image.read_bytes())
    # A new $LogFile is empty, which is all ones; Windows begins it with two pages like this one.
    page = bytearray(4096)
    struct.pack_into("<4sHHqIIH", page, 0, b"RSTR", 30, 9, 0, 4096, 4096, 48)
    struct.pack_into("<qHHHH", page, 48, 1000, 1, 0xFFFF, client, flags)
    for end in (30, *range(510, 4096, 512)):
        page[end : end + 2] = b"\x01\x00"
    place = data.index(b"\xff" * (64 << 10)) + 4095 & ~4095
    data[place : place + 4096] = page
    image.write_bytes(data)
    with open_filesystem(FileSpace(image), "ntfs", name="ntfs") as filesystem:
        assert any("was not closed" in warning for warning in filesystem.warnings) == is_open


@pytest.mark.parametrize(("bits", "mebibytes"), [(12, 8), (16, 32), (32, 64)])
def test_fat(tmp_path: Path, bits: int, mebibytes: int) -> None:
    image = _empty(tmp_path / "image", mebibytes << 20)
    source = tmp_path / "tree"
    plain_tree(source, emoji=False)
    _times(source)
    run("mkfs.vfat", "-F", str(bits), "-n", "A LABEL", image)
    utc = {"TZ": "UTC", "LC_ALL": "C.UTF-8"}
    run("mcopy", "-s", "-m", "-i", image, source, "::/", **utc)
    run("mattrib", "+r", "-i", image, "::/tree/1 bytes", "::/tree/names", **utc)
    with open_filesystem(FileSpace(image), "vfat", name="fat") as filesystem:
        assert (filesystem.type, filesystem.label) == ("vfat", "A LABEL")
        assert filesystem.uuid == _uuid(image)
        seen = _without(by_worker(filesystem), b"tree")
        assert seen[b"1 bytes"].mode == oct(stat.S_IFREG | 0o555)
        assert seen[b"names"].mode == oct(stat.S_IFDIR | 0o755)
        assert differences(seen, by_kernel(source), "mode", "links", "mtime") == []
        for name, seconds in TIMES.items():
            assert seen[name.encode()].mtime == seconds * SECOND


def test_exfat(tmp_path: Path) -> None:
    image = _empty(tmp_path / "image", 64 << 20)
    run("mkfs.exfat", "-L", "Übung", image)
    with mounted_exfat(image, tmp_path / "mount") as mount:
        plain_tree(mount / "tree")
        _times(mount / "tree")
        # In pieces, between those of another: there has to be a chain of clusters.
        with (mount / "tree" / "one").open("wb") as one, (mount / "tree" / "other").open("wb") as other:
            for number in range(200):
                for file in (one, other):
                    file.write(bytes([number]) * 32768)
                    file.flush()
    with mounted_exfat(image, tmp_path / "mount") as mount:
        wanted = by_kernel(mount)
    with open_filesystem(FileSpace(image), "exfat", name="exfat") as filesystem:
        assert (filesystem.type, filesystem.label) == ("exfat", "Übung")
        assert filesystem.uuid == _uuid(image)
        seen = by_worker(filesystem)
        assert differences(seen, wanted, "mode", "links", "mtime") == []
        for name, seconds in TIMES.items():
            assert seen[b"tree/" + name.encode()].mtime == seconds * SECOND


def _reparse(path: Path, tag: int, data: bytes) -> None:
    """By ntfs-3g's name for it."""
    os.setxattr(path, "system.ntfs_reparse_data", struct.pack("<IHH", tag, len(data), 0) + data)


def _names(target: str, flags: bytes) -> bytes:
    """Of a junction or a symbolic link: the name to be used and the name to be shown are the same."""
    name = target.encode("utf-16-le")
    size = len(name)
    end = b"" if flags else b"\0\0"
    return struct.pack("<4H", 0, size, size + len(end), size) + flags + (name + end) * 2


def _times(root: Path) -> None:
    for name, seconds in TIMES.items():
        (root / name).write_bytes(b"t")
        os.utime(root / name, (seconds, seconds))


def _find(filesystem: FileSystem, *names: bytes) -> int:
    node = filesystem.root().node
    for name in names:
        node = filesystem.lookup(node, name).node
    return node


def _without(seen: dict[bytes, Seen], top: bytes) -> dict[bytes, Seen]:
    """As seen from a directory."""
    return {
        name.removeprefix(top).removeprefix(b"/"): each for name, each in seen.items() if name.startswith(top)
    }


def _uuid(image: Path) -> str:
    return run("blkid", "-p", "-s", "UUID", "-o", "value", image).strip()


def _empty(path: Path, size: int) -> Path:
    path.touch()
    os.truncate(path, size)
    return path
