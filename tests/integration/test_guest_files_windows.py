"""NTFS, FAT and exFAT as a worker reads them, held to the programs that wrote them (ntfs-3g, mtools,
exfat-fuse), and to what is written."""

from __future__ import annotations

import os
import stat
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

from vmfs.volumes.files.client import FileSystem, open_filesystem

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


@pytest.mark.parametrize(("bits", "mebibytes"), [(12, 8), (16, 32), (32, 64)])
def test_fat(tmp_path: Path, bits: int, mebibytes: int) -> None:
    image = _empty(tmp_path / "image", mebibytes << 20)
    source = tmp_path / "tree"
    plain_tree(source, emoji=False)
    _times(source)
    run("mkfs.vfat", "-F", str(bits), "-n", "A LABEL", image)
    utc = {"TZ": "UTC", "LC_ALL": "C.UTF-8"}
    run("mcopy", "-s", "-m", "-i", image, source, "::/", **utc)
    run("mattrib", "+r", "-i", image, "::/tree/1 bytes", **utc)
    with open_filesystem(FileSpace(image), "vfat", name="fat") as filesystem:
        assert (filesystem.type, filesystem.label) == ("vfat", "A LABEL")
        assert filesystem.uuid == _uuid(image)
        seen = _without(by_worker(filesystem), b"tree")
        assert seen[b"1 bytes"].mode == oct(stat.S_IFREG | 0o555)
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
