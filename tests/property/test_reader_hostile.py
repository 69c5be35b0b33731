"""Thousands of images of XFS and Btrfs with forged metadata: no hang, no exception but the reader's own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hostile_helpers import fill_small, forge_btrfs, forge_xfs, metadata_of, mutants, survive
from kernel_tree_helpers import format_image, kernel_mount, make_file_system, need_mkfs

from vmfs.volumes.files.worker.btrfs import BtrfsReader
from vmfs.volumes.files.worker.xfs import XfsReader

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.usefixtures("untraced"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root (loop mounts)"),
]
IMAGES = 2000


def test_xfs(tmp_path: Path) -> None:
    need_mkfs("xfs")
    make_file_system("xfs", tmp_path / "image", fill_small)
    base = (tmp_path / "image").read_bytes()
    places = metadata_of(XfsReader, base)
    opened, refused = survive(XfsReader, mutants(base, places, IMAGES, forge_xfs, seed=1))
    assert opened > refused > 0


def test_xfs_of_version_4(tmp_path: Path) -> None:
    """Without checksums all that is forged is believed."""
    need_mkfs("xfs")
    image = tmp_path / "image"
    (tmp_path / "data").write_bytes(os.urandom(9000))
    listing = ["/dev/null", "0 0", "d--755 0 0", f"file ---644 0 0 {tmp_path / 'data'}"]
    listing.append(f"symlink l--777 0 0 {'t' * 900}")
    for count in (3, 40, 300):
        listing += [f"directory{count} d--755 0 0", *(f"{'n' * 40}{n} p--600 0 0" for n in range(count)), "$"]
    (tmp_path / "list").write_text("\n".join([*listing, "$", ""]))
    format_image("xfs", image, None, "-m", "crc=0", "-p", tmp_path / "list")
    base = image.read_bytes()
    places = metadata_of(XfsReader, base)
    opened, refused = survive(XfsReader, mutants(base, places, IMAGES // 4, lambda piece: None, seed=2))
    assert opened > refused


def test_btrfs(tmp_path: Path) -> None:
    need_mkfs("btrfs")
    image = tmp_path / "image"
    # Small nodes make deep trees.
    make_file_system("btrfs", image, lambda top: fill_small(top, 120), None, "-n", "4096")
    with kernel_mount(image, "compress-force=lzo") as top:
        (top / "lzo").write_bytes(bytes(range(256)) * 200)
        subprocess.run(["btrfs", "subvolume", "snapshot", top, top / "snapshot"], check=True)
    with kernel_mount(image, "compress-force=zstd") as top:
        (top / "zstd").write_bytes(bytes(range(256)) * 200)
        subprocess.run(["btrfs", "property", "set", top / "size 0", "compression", "zlib"], check=True)
        (top / "zlib").write_bytes(bytes(range(256)) * 200)
    base = image.read_bytes()
    places = metadata_of(BtrfsReader, base)
    opened, refused = survive(BtrfsReader, mutants(base, places, IMAGES, forge_btrfs, seed=3))
    assert opened > 0
    assert refused > 0
