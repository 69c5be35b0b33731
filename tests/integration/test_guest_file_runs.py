"""Which files are read from the volume without the worker: those whose data lies there as it is, and what is
damaged or unreadable there is said as it is otherwise."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from guest_tree_helpers import FileSpace, mounted, mounted_exfat, mounted_ntfs, run
from kernel_tree_helpers import make_file_system, need_mkfs

from vmfs.errors import IntegrityError
from vmfs.volumes.files.client import FileSystem, GuestError, open_filesystem

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root (loop mounts)"),
]
MIB = 1 << 20
DATA = os.urandom(MIB)


def fill(top: Path) -> None:
    """Files in pieces, with holes, a preallocated one, and one in its inode where there is room for it."""
    with (top / "one").open("wb") as one, (top / "other").open("wb") as other:
        for number in range(40):
            for file in (one, other):
                file.seek(number * 40_000)
                file.write(DATA[number : number + 20_000])
                file.flush()
                os.fsync(file.fileno())
    with (top / "preallocated").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, MIB)
        os.pwrite(file.fileno(), b"middle", 500_000)
    (top / "little").write_bytes(b"in its inode")
    (top / "empty").touch()


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_of_a_file_system_of_the_kernel(tmp_path: Path, kind: str) -> None:
    need_mkfs(kind)
    image = tmp_path / "image"
    options = ["-O", "inline_data", "-I", "256"] if kind == "ext4" else []
    make_file_system(kind, image, fill, None, *options)
    with mounted(image, tmp_path / "mount", "ro") as top:
        wanted = {path.name: path.read_bytes() for path in top.iterdir() if path.is_file()}
    has_runs = {"one", "other", "preallocated", "empty"} if kind != "btrfs" else set()
    if kind == "xfs":
        has_runs.add("little")
    space = BreakableSpace(image)
    with open_filesystem(space, kind, name="of the test") as filesystem:
        for name, content in wanted.items():
            node = filesystem.lookup(filesystem.root().node, name.encode()).node
            runs = filesystem.runs(node)
            assert (runs is not None) is (name in has_runs), name
            assert filesystem.read(node, 0, 2 * MIB) == content
            assert filesystem.read(node, 12_345, MIB) == content[12_345:][:MIB]
            if runs is not None and name != "empty":
                # Where the worker is dead, which nobody notices.
                filesystem.rest()
                assert filesystem.read(node, 1, MIB) == content[1:][:MIB]
                assert filesystem.worker_pid is None


def test_what_the_volume_cannot_give_is_said(tmp_path: Path) -> None:
    image = tmp_path / "image"
    make_file_system("ext4", image, fill)
    space = BreakableSpace(image)
    with open_filesystem(space, "ext4", name="of the test") as filesystem:
        node = filesystem.lookup(filesystem.root().node, b"one").node
        assert len(filesystem.read(node, 0, MIB)) == MIB
        space.broken = True
        with pytest.raises(GuestError, match="volume of the test: a chunk is damaged") as caught:
            filesystem.read(node, 0, MIB)
        assert isinstance(caught.value.__cause__, IntegrityError)
        assert caught.value.exit_status == IntegrityError.exit_status
        space.broken = False
        assert len(filesystem.read(node, 0, MIB)) == MIB


def test_data_in_the_journal_is_read_from_there(tmp_path: Path) -> None:
    image, dirty = tmp_path / "image", tmp_path / "dirty"
    make_file_system("ext4", image, lambda top: None)
    with mounted(image, tmp_path / "mount", "data=journal", "commit=300") as top:
        (top / "settled").write_bytes(DATA)
        run("sync", "-f", top)
        # Twice: what the second writes lies in the journal only.
        for content in (DATA, DATA[::-1]):
            descriptor = os.open(top / "journaled", os.O_WRONLY | os.O_CREAT)
            os.write(descriptor, content)
            os.fsync(descriptor)
            os.close(descriptor)
        shutil.copyfile(image, dirty)
    with open_filesystem(FileSpace(dirty), "ext4", name="dirty") as filesystem:
        assert "replayed" in filesystem.warnings[0]
        assert read(filesystem, "settled") == (DATA, True)
        assert read(filesystem, "journaled") == (DATA[::-1], False)


@pytest.mark.parametrize("kind", ["vfat", "exfat"])
def test_of_clusters(tmp_path: Path, kind: str) -> None:
    image, source = tmp_path / "image", tmp_path / "source"
    image.touch()
    os.truncate(image, 64 * MIB)
    source.write_bytes(DATA)
    if kind == "vfat":
        run("mkfs.vfat", "-F", "32", image)
        run("mcopy", "-i", image, source, "::/file")
    else:
        run("mkfs.exfat", image)
        with mounted_exfat(image, tmp_path / "mount") as top:
            shutil.copyfile(source, top / "file")
    with open_filesystem(FileSpace(image), kind, name="of the test") as filesystem:
        assert read(filesystem, "file") == (DATA, True)


def test_ntfs_is_left_to_its_library(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.touch()
    os.truncate(image, 32 * MIB)
    run("mkntfs", "-q", "-F", image)
    with mounted_ntfs(image, tmp_path / "mount") as top:
        (top / "file").write_bytes(DATA)
    with open_filesystem(FileSpace(image), "ntfs", name="of the test") as filesystem:
        assert read(filesystem, "file") == (DATA, False)


def read(filesystem: FileSystem, name: str) -> tuple[bytes, bool]:
    """Its content, and whether the worker has no part in reading it."""
    node = filesystem.lookup(filesystem.root().node, name.encode()).node
    return filesystem.read(node, 0, 2 * MIB), filesystem.runs(node) is not None


class BreakableSpace(FileSpace):
    """Of which nothing can be read while it is broken."""

    broken = False

    def read(self, offset: int, length: int) -> bytes:
        if self.broken:
            raise IntegrityError("a chunk is damaged")
        return super().read(offset, length)
