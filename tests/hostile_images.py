"""Small images of file systems, to be damaged; the data of their files is told from metadata by MARKER."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from guest_tree_helpers import mounted, mounted_exfat, mounted_ntfs, run


def small_tree(root: Path, *, links: bool) -> None:
    (root / "dir" / "below").mkdir(parents=True)
    for number in range(40):
        (root / "dir" / f"a longer name of a file {number}").write_bytes(b"MARKER" * number)
    (root / "file").write_bytes(b"MARKER--" * 5000)
    with (root / "sparse").open("wb") as file:
        for at in range(0, 300_000, 16384):
            file.seek(at)
            file.write(b"MARKER")
    if links:
        (root / "link").symlink_to("dir/below")
        (root / "long link").symlink_to("x" * 200)


def ext_image(tmp_path: Path) -> Path:
    image = _empty(tmp_path / "image", 4 << 20)
    run("mke2fs", "-q", "-F", "-t", "ext4", "-b", "1024", "-N", "128", image)
    with mounted(image, tmp_path / "mount") as mount:
        small_tree(mount, links=True)
        os.setxattr(mount / "file", "user.x", b"MARKER" * 20)
        run("sync", "-f", mount)
        with (mount / "late").open("wb") as file:
            file.write(b"MARKER" * 500)
            os.fsync(file.fileno())
        # Its journal is dirty.
        shutil.copyfile(image, tmp_path / "dirty")
    return tmp_path / "dirty"


def ext2_image(tmp_path: Path) -> Path:
    image = _empty(tmp_path / "image", 2 << 20)
    small_tree(tmp_path / "tree", links=True)
    run("mke2fs", "-q", "-F", "-t", "ext2", "-b", "1024", "-d", tmp_path / "tree", image)
    return image


def ntfs_image(tmp_path: Path) -> Path:
    image = _empty(tmp_path / "image", 4 << 20)
    run("mkntfs", "-q", "-F", image)
    with mounted_ntfs(image, tmp_path / "mount") as mount:
        small_tree(mount, links=True)
        os.setxattr(mount / "file", "user.stream", b"MARKER" * 20)
    return image


def fat_image(tmp_path: Path, mebibytes: int = 2, *options: str) -> Path:
    image = _empty(tmp_path / "image", mebibytes << 20)
    small_tree(tmp_path / "tree", links=False)
    run("mkfs.vfat", *options, image)
    run("mcopy", "-s", "-i", image, *sorted((tmp_path / "tree").iterdir()), "::/")
    return image


def exfat_image(tmp_path: Path) -> Path:
    image = _empty(tmp_path / "image", 2 << 20)
    run("mkfs.exfat", "-b", "64K", image)
    with mounted_exfat(image, tmp_path / "mount") as mount:
        small_tree(mount, links=False)
    return image


def iso_image(tmp_path: Path) -> Path:
    small_tree(tmp_path / "tree", links=True)
    run("xorriso", "-as", "mkisofs", "-quiet", "-R", "-J", "-o", tmp_path / "image", tmp_path / "tree")
    return tmp_path / "image"


IMAGES = {
    "ext4": ext_image,
    "ext2": ext2_image,
    "ntfs": ntfs_image,
    "vfat": fat_image,
    "exfat": exfat_image,
    "iso9660": iso_image,
}


def _empty(path: Path, size: int) -> Path:
    path.touch()
    os.truncate(path, size)
    return path
