"""ISO 9660 as a worker reads it, held to the tree that xorriso made it of."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from guest_tree_helpers import (
    SECOND,
    BytesSpace,
    FileSpace,
    by_kernel,
    by_worker,
    differences,
    plain_tree,
    run,
)

from vmfs.volumes.files.client import open_filesystem


def make(tmp_path: Path, *options: str) -> Path:
    tree = tmp_path / "tree"
    image = tmp_path / "image.iso"
    run("xorriso", "-as", "mkisofs", "-quiet", "-V", "A_LABEL", *options, "-o", image, tree)
    return image


@pytest.mark.root
@pytest.mark.parametrize("options", [("-R",), ("-R", "-J"), ("-R", "--xattr")])
def test_rock_ridge(tmp_path: Path, options: tuple[str, ...]) -> None:
    tree = tmp_path / "tree"
    plain_tree(tree)
    (tree / "link").symlink_to("deep/l00")
    (tree / "long link").symlink_to("/".join(["z" * 50] * 18))
    (tree / "link to the root").symlink_to("/")
    (tree / "link with all").symlink_to("/a//../b/./c")
    (tree / "raw").mkdir()
    (tree / "raw" / os.fsdecode(b"caf\xe9")).write_bytes(b"latin-1")
    (tree / "setuid").write_bytes(b"#!")
    os.chown(tree / "setuid", 1_000_000, 2_000_000)
    (tree / "setuid").chmod(0o6711)
    os.mkfifo(tree / "fifo")
    os.mknod(tree / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(tree / "block", stat.S_IFBLK | 0o600, os.makedev(259, 300))
    # In fields (AL) that are not of Rock Ridge.
    os.setxattr(tree / "raw", "user.attribute", b"value" * 100)
    os.utime(tree / "setuid", (1_000_000_001, 1_000_000_099))
    wanted = {
        name: each._replace(mtime=each.mtime // SECOND * SECOND, links=0, xattrs={})
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


def test_files_that_are_compressed_are_shown_as_they_were(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    data = b"line after line\n" * 20_000 + bytes(200_000) + os.urandom(50_000)
    (tree / "text").write_bytes(data)
    image = tmp_path / "image.iso"
    words = ("-map", tree, "/", "-set_filter_r", "--zisofs", "/", "--", "-commit")
    run("xorriso", "-outdev", image, *words)
    assert image.stat().st_size < len(data)
    with open_filesystem(FileSpace(image), "iso9660", name="iso") as filesystem:
        status = filesystem.lookup(filesystem.root().node, b"text")
        assert status.size == len(data)
        assert filesystem.read(status.node, 0, len(data)) == data
        assert filesystem.read(status.node, 300_000, 100_000) == data[300_000:400_000]


def test_a_file_in_several_parts(tmp_path: Path) -> None:
    # One of more than 4 GiB is; so that a small one is, its record is made two.
    tree = tmp_path / "tree"
    tree.mkdir()
    data = os.urandom(6000)
    for name in ("a.1", "a.2"):
        (tree / name).write_bytes(data)
    image = bytearray(make(tmp_path, "--norock").read_bytes())
    first, second = image.index(b"\x05A.1;1"), image.index(b"\x05A.2;1")
    image[second : second + 6] = image[first : first + 6]
    # ECMA-119, 9.1.6: not the final record of the file.
    image[first - 7] |= 0x80
    with open_filesystem(BytesSpace(bytes(image)), "iso9660", name="iso") as filesystem:
        (entry,) = filesystem.scan(filesystem.root().node)
        assert entry.stat is not None
        assert entry.stat.size == 12_000
        assert filesystem.read(entry.stat.node, 0, 1 << 20) == data * 2


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
