"""ISO 9660 as a worker reads it, held to the tree that xorriso made it of."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from guest_tree_helpers import SECOND, FileSpace, by_kernel, by_worker, differences, plain_tree, run

from vmfs.volumes.files.client import open_filesystem


def make(tmp_path: Path, *options: str) -> Path:
    tree = tmp_path / "tree"
    image = tmp_path / "image.iso"
    run("xorriso", "-as", "mkisofs", "-quiet", "-V", "A_LABEL", *options, "-o", image, tree)
    return image


@pytest.mark.root
@pytest.mark.parametrize("options", [("-R",), ("-R", "-J")])
def test_rock_ridge(tmp_path: Path, options: tuple[str, ...]) -> None:
    tree = tmp_path / "tree"
    plain_tree(tree)
    (tree / "link").symlink_to("deep/l00")
    (tree / "long link").symlink_to("/".join(["z" * 50] * 18))
    (tree / "raw").mkdir()
    (tree / "raw" / os.fsdecode(b"caf\xe9")).write_bytes(b"latin-1")
    (tree / "setuid").write_bytes(b"#!")
    os.chown(tree / "setuid", 1_000_000, 2_000_000)
    (tree / "setuid").chmod(0o6711)
    os.mkfifo(tree / "fifo")
    os.mknod(tree / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.utime(tree / "setuid", (1_000_000_001, 1_000_000_099))
    wanted = {
        name: each._replace(mtime=each.mtime // SECOND * SECOND, links=0)
        for name, each in by_kernel(tree).items()
    }
    with open_filesystem(FileSpace(make(tmp_path, *options)), "iso9660", name="iso") as filesystem:
        assert (filesystem.type, filesystem.label) == ("iso9660", "A_LABEL")
        assert (
            filesystem.uuid == run("blkid", "-p", "-s", "UUID", "-o", "value", tmp_path / "image.iso").strip()
        )
        seen = {name: each._replace(links=0) for name, each in by_worker(filesystem).items()}
        assert differences(seen, wanted) == []
        assert filesystem.stat(filesystem.lookup(filesystem.root().node, b"setuid").node).links == 1


def test_joliet_alone(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "Ünïcödé and Case.text").write_bytes(b"joliet" * 1000)
    with open_filesystem(FileSpace(make(tmp_path, "--norock", "-J")), "iso9660", name="iso") as filesystem:
        (entry,) = filesystem.scan(filesystem.root().node)
        assert entry.name.decode() == "Ünïcödé and Case.text"
        assert entry.stat is not None
        assert filesystem.read(entry.stat.node, 0, 1 << 20) == b"joliet" * 1000


def test_neither(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "README.TXT").write_bytes(b"plain")
    with open_filesystem(FileSpace(make(tmp_path, "--norock")), "iso9660", name="iso") as filesystem:
        (entry,) = filesystem.scan(filesystem.root().node)
        assert entry.name == b"readme.txt"
        assert entry.stat is not None
        assert entry.stat.mode == stat.S_IFREG | 0o555
        assert filesystem.read(entry.stat.node, 2, 100) == b"ain"
