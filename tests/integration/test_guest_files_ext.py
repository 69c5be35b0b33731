"""ext2, ext3 and ext4 as a worker reads them, held to the kernel that wrote them."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
from guest_tree_helpers import FileSpace, by_kernel, by_worker, differences, mounted, run, unix_tree

from vmfs.volumes.files.client import open_filesystem

pytestmark = pytest.mark.root

KINDS = {
    "ext2-1k": ("ext2", 1024, ["-t", "ext2", "-b", "1024", "-I", "256"]),
    "ext3-128": ("ext3", 4096, ["-t", "ext3", "-b", "4096", "-I", "128"]),
    "ext4": ("ext4", 4096, ["-t", "ext4", "-b", "4096"]),
    "ext4-inline": (
        "ext4",
        1024,
        ["-t", "ext4", "-b", "1024", "-I", "512", "-O", "inline_data,ea_inode,large_dir,metadata_csum_seed"],
    ),
    "ext4-bigalloc": ("ext4", 4096, ["-t", "ext4", "-b", "4096", "-O", "bigalloc", "-C", "16384"]),
    "ext4-bigalloc-1k": ("ext4", 1024, ["-t", "ext4", "-b", "1024", "-O", "bigalloc", "-C", "4096"]),
    "ext4-sparse_super2": (
        "ext4",
        1024,
        [*("-t", "ext4", "-b", "1024", "-g", "1024"), *("-O", "meta_bg,^resize_inode,sparse_super2")],
    ),
    "ext4-meta_bg": ("ext4", 1024, ["-t", "ext4", "-b", "1024", "-O", "meta_bg,^resize_inode,^64bit"]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_is_as_the_kernel_wrote_it(tmp_path: Path, kind: str) -> None:
    type_, block, options = KINDS[kind]
    image = make(tmp_path / "image", 160 << 20, options)
    with mounted(image, tmp_path / "mount", "user_xattr") as mount:
        tree = mount / "tree"
        unix_tree(tree, block=block, wide_times=kind != "ext3-128", preallocate=type_ == "ext4")
        if kind == "ext4-inline":
            os.setxattr(mount / "tree" / "attributes", "user.huge", b"h" * 20_000)
        run("sync", "-f", mount)
    with mounted(image, tmp_path / "mount", "ro") as mount:
        wanted = by_kernel(mount)
        small = (mount / "tree" / "1 bytes").stat().st_blocks * 512
    with open_filesystem(FileSpace(image), type_, name=kind) as filesystem:
        assert (filesystem.type, filesystem.label, filesystem.warnings) == (type_, "a label", ())
        assert filesystem.uuid == run("blkid", "-p", "-s", "UUID", "-o", "value", image).strip()
        assert differences(by_worker(filesystem), wanted) == []
        sizes = {
            entry.name: entry.stat
            for entry in filesystem.scan(filesystem.lookup(filesystem.root().node, b"tree").node)
        }
        inline = sizes[b"1 bytes"]
        assert inline is not None
        assert inline.allocated == small > 0
        sparse = sizes[b"sparse"]
        assert sparse is not None
        assert sum(length for _, length in filesystem.extents(sparse.node)) < 200_000
        assert sparse.allocated is not None
        assert sparse.allocated < 300_000


@pytest.mark.parametrize(
    ("options", "mount_option"),
    [
        (["-O", "metadata_csum,64bit"], "data=ordered"),
        (["-O", "^metadata_csum,^64bit"], "data=ordered"),
        (["-O", "metadata_csum,64bit", "-b", "1024"], "data=journal"),
        (["-O", "^metadata_csum,64bit"], "data=journal"),
    ],
)
def test_a_dirty_journal_is_replayed_as_the_kernel_does(
    tmp_path: Path, options: list[str], mount_option: str
) -> None:
    image = make(tmp_path / "image", 64 << 20, ["-t", "ext4", *options])
    dirty = tmp_path / "dirty"
    with mounted(image, tmp_path / "mount", mount_option, "commit=300") as mount:
        for number in range(200):
            (mount / f"old {number}").write_bytes(b"old" * number)
        run("sync", "-f", mount)
        churn(mount)
        shutil.copyfile(image, dirty)
    before = dirty.read_bytes()
    with open_filesystem(FileSpace(dirty), "ext4", name="dirty") as filesystem:
        assert "replayed" in filesystem.warnings[0]
        seen = by_worker(filesystem)
    assert dirty.read_bytes() == before
    assert any(name.startswith(b"third") for name in seen)
    with mounted(dirty, tmp_path / "mount", mount_option) as mount:
        assert differences(seen, by_kernel(mount)) == []


def test_a_transaction_without_its_end_is_left_out_as_the_kernel_does(tmp_path: Path) -> None:
    image = make(tmp_path / "image", 64 << 20, ["-t", "ext4", "-O", "metadata_csum"])
    dirty = tmp_path / "dirty"
    with mounted(image, tmp_path / "mount", "commit=300") as mount:
        churn(mount)
        shutil.copyfile(image, dirty)
    data = bytearray(dirty.read_bytes())
    # The last commit: JBD2_MAGIC_NUMBER and JBD2_COMMIT_BLOCK. Without it that transaction never happened.
    commits = []
    at = data.find(b"\xc0\x3b\x39\x98\0\0\0\x02")
    while at >= 0:
        commits.append(at)
        at = data.find(b"\xc0\x3b\x39\x98\0\0\0\x02", at + 8)
    last = max(commits, key=lambda place: int.from_bytes(data[place + 8 : place + 12], "big"))
    data[last : last + 1024] = bytes(1024)
    dirty.write_bytes(data)
    with open_filesystem(FileSpace(dirty), "ext4", name="dirty") as filesystem:
        seen = by_worker(filesystem)
    assert not any(name.startswith(b"third") for name in seen)
    with mounted(dirty, tmp_path / "mount") as mount:
        assert differences(seen, by_kernel(mount)) == []


def test_an_asynchronous_commit_of_what_was_not_written_is_left_out(tmp_path: Path) -> None:
    image = make(tmp_path / "image", 64 << 20, ["-t", "ext4", "-b", "1024", "-O", "^metadata_csum"])
    dirty = tmp_path / "dirty"
    with mounted(image, tmp_path / "mount", "journal_async_commit", "data=writeback", "commit=300") as mount:
        commit(mount / "first")
        commit(mount / "second")
        commit(mount / "third")
        shutil.copyfile(image, dirty)
    data = bytearray(dirty.read_bytes())
    # The first block that the last descriptor (JBD2_MAGIC_NUMBER, JBD2_DESCRIPTOR_BLOCK) is for.
    places = [at for at in range(0, len(data), 1024) if data.startswith(b"\xc0\x3b\x39\x98\0\0\0\x01", at)]
    last = max(places, key=lambda place: int.from_bytes(data[place + 8 : place + 12], "big"))
    data[last + 1024 : last + 2048] = bytes(1024)
    dirty.write_bytes(data)
    with open_filesystem(FileSpace(dirty), "ext4", name="dirty") as filesystem:
        assert any("transaction in the journal is damaged" in warning for warning in filesystem.warnings)
        seen = by_worker(filesystem)
    assert set(seen) == {b"", b"first", b"second"}
    with mounted(dirty, tmp_path / "mount") as mount:
        assert differences(seen, by_kernel(mount)) == []


def test_blocks_that_the_journal_revokes_are_not_replayed(tmp_path: Path) -> None:
    options = ["-t", "ext4", "-b", "1024", "-J", "size=4", "-O", "metadata_csum", "-m", "0"]
    image = make(tmp_path / "image", 16 << 20, options)
    dirty = tmp_path / "dirty"
    with mounted(image, tmp_path / "mount", "commit=300") as mount:
        (mount / "kept").write_bytes(b"kept")
        for number in range(300):
            (mount / f"dir {number}").mkdir()
        commit(mount / "kept", b".")
        with suppress(OSError):
            (mount / "filler").write_bytes(bytes(16 << 20))
        commit(mount / "filler", b"")
        for number in range(300):
            (mount / f"dir {number}").rmdir()
        commit(mount / "kept", b".")
        # All that is free were directories, whose blocks the journal holds.
        with suppress(OSError):
            (mount / "data").write_bytes(b"data" * (64 << 10))
        commit(mount / "data", b"")
        shutil.copyfile(image, dirty)
    with open_filesystem(FileSpace(dirty), "ext4", name="dirty") as filesystem:
        seen = by_worker(filesystem)
    content = seen[b"data"].content
    assert isinstance(content, tuple)
    assert content[0] > 100 << 10
    with mounted(dirty, tmp_path / "mount") as mount:
        assert differences(seen, by_kernel(mount)) == []


def test_fast_commits_that_are_not_replayed_are_said(tmp_path: Path) -> None:
    image = make(tmp_path / "image", 64 << 20, ["-t", "ext4", "-O", "fast_commit"])
    dirty = tmp_path / "dirty"
    with mounted(image, tmp_path / "mount", "commit=300") as mount:
        commit(mount / "first")
        commit(mount / "first")
        run("sync", "-f", mount)
        for _ in range(3):
            commit(mount / "first")
        shutil.copyfile(image, dirty)
    with open_filesystem(FileSpace(dirty), "ext4", name="dirty") as filesystem:
        assert any("fast commits" in warning for warning in filesystem.warnings)


def churn(mount: Path) -> None:
    """Transactions that are in the journal and nowhere else: each fsync commits one. Data begins with the
    journal's magic number, which has to be escaped where data is journaled."""
    for number in range(60):
        (mount / f"dir {number}").mkdir()
        (mount / f"dir {number}" / ("long name " * 20)).write_bytes(b"1")
    commit(mount / "first")
    for number in range(50):
        shutil.rmtree(mount / f"dir {number}")
    for number in range(0, 200, 2):
        (mount / f"old {number}").unlink(missing_ok=True)
    commit(mount / "second")
    for number in range(100):
        (mount / f"data {number}").write_bytes((b"\xc0\x3b\x39\x98" + bytes([number]) * 508) * 20)
        commit(mount / f"data {number}", b"")
    (mount / "data 1").rename(mount / "third, renamed")
    os.setxattr(mount / "third, renamed", "user.late", b"late" * 100)
    commit(mount / "third")


def commit(path: Path, data: bytes = b"x" * 10_000) -> None:
    with path.open("ab") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def make(image: Path, size: int, options: list[str]) -> Path:
    image.touch()
    os.truncate(image, size)
    run("mke2fs", "-q", "-F", "-L", "a label", *options, image)
    return image
