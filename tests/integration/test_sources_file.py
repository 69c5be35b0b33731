"""Raw files and block devices: what is right, and each way in which they can be wrong."""

from __future__ import annotations

import os
import socket
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
from qemu_helpers import QmpError, StorageDaemon, needs_qemu
from source_helpers import read

from ingest.sources.base import Extent, SourceError
from ingest.sources.file import FileSource

MIB = 1 << 20


def opened(path: Path) -> closing[FileSource]:
    return closing(FileSource(path))


def make(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    return path


def test_reads(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(os.urandom(MIB + 512))
    with opened(path) as source:
        assert (source.size, source.block_size, source.name) == (MIB + 512, 512, str(path))
        assert list(source.extents()) == [Extent(0, MIB + 512, False)]
        assert source.dirty_extents() is None
        assert read(source, 1000, MIB - 488) == path.read_bytes()[1000:]


def test_the_file_that_was_opened_is_read(tmp_path: Path) -> None:
    path = make(tmp_path / "disk.raw", 4096)
    with opened(path) as source:
        (tmp_path / "other").write_bytes(b"x" * 4096)
        (tmp_path / "other").rename(path)
        assert read(source, 0, 4096) == bytes(4096)


@pytest.mark.parametrize(
    ("size", "message"),
    [(0, "is empty"), (511, "511 bytes, which is not a multiple of 512"), (1025, "1025 bytes, which is not")],
)
def test_bad_sizes(tmp_path: Path, size: int, message: str) -> None:
    with pytest.raises(SourceError, match=f"disk.raw.*{message}"):
        FileSource(make(tmp_path / "disk.raw", size))


def test_not_a_disk(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{tmp_path}/socket")
    listener.close()
    (tmp_path / "loop").symlink_to("loop")
    for name, message in (
        ("missing", "does not exist"),
        (".", "is a directory"),
        ("pipe", "neither a file nor a block device"),
        ("socket", "cannot be opened: No such device or address"),
        ("loop", "Too many levels"),
        ("n" * 300, "File name too long"),
        ("nul\0", "null byte"),
    ):
        with pytest.raises(SourceError, match=message) as caught:
            FileSource(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(SourceError, match="neither a file nor a block device"):
        FileSource("/dev/null")


def test_not_readable(tmp_path: Path) -> None:
    path = make(tmp_path / "disk.raw", 512)
    path.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        with pytest.raises(SourceError, match="is not readable by this user"):
            FileSource(path)
    finally:
        os.seteuid(user)


def test_shrinks_while_read(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"x" * MIB)
    with opened(path) as source:
        os.truncate(path, MIB // 2)
        assert read(source, 0, MIB // 2) == b"x" * (MIB // 2)
        with pytest.raises(SourceError, match=f"ends at byte {MIB // 2} and was longer before"):
            read(source, 0, MIB)
        with pytest.raises(SourceError, match="became shorter"):
            list(source.extents())


def test_hole_at_the_end_is_not_taken_for_a_shrunken_file(tmp_path: Path) -> None:
    path = make(tmp_path / "disk.raw", MIB)
    with opened(path) as source:
        assert list(source.extents()) == [Extent(0, MIB, True)]
        os.truncate(path, 2 * MIB)
        with path.open("r+b") as file:
            file.seek(MIB)
            file.write(b"x")
        assert list(source.extents()) == [Extent(0, MIB, True)]


@needs_qemu
def test_read_error_in_the_middle(tmp_path: Path) -> None:
    image = tmp_path / "image.raw"
    image.write_bytes(os.urandom(8 * MIB))
    with StorageDaemon(tmp_path, image, "raw", fail_at=5 * MIB) as daemon:
        try:
            daemon.export_fuse(tmp_path / "disk.raw")
        except QmpError as error:  # its text depends on why there is no FUSE
            pytest.skip(f"no FUSE export: {error}")
        with opened(tmp_path / "disk.raw") as source:
            assert read(source, 0, 4 * MIB) == image.read_bytes()[: 4 * MIB]
            with pytest.raises(SourceError, match=r"disk.raw: read error at byte \d+: Input/output error"):
                read(source, 4 * MIB, 4 * MIB)


@needs_qemu
def test_in_use(tmp_path: Path) -> None:
    path = make(tmp_path / "disk.raw", MIB)
    with StorageDaemon(tmp_path, path, "raw") as daemon:
        daemon.export_nbd(writable=True)
        with pytest.raises(SourceError, match="is in use by a running VM"):
            FileSource(path)
    with opened(path) as source:
        assert source.size == MIB


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="loop devices need root")
def test_block_device(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(os.urandom(MIB))
    os.truncate(path, 4 * MIB)
    command = ["losetup", "--find", "--show", "--read-only", "--sector-size", "4096", path]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        pytest.skip(f"no loop device: {result.stderr}")
    device = Path(result.stdout.strip())
    try:
        with opened(device) as source:
            assert (source.size, source.block_size) == (4 * MIB, 4096)
            assert list(source.extents()) == [Extent(0, 4 * MIB, False)]
            assert read(source, 0, 4 * MIB) == path.read_bytes()
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def test_64_tib_sparse_file(tmp_path: Path) -> None:
    """Where the file system has no such files (ext4 ends at 16 TiB), in memory."""
    size = 64 << 40
    for folder in (tmp_path, Path("/dev/shm")):
        path = folder / f"vmfs-{os.getpid()}-{tmp_path.name}.raw"
        try:
            make(path, size)
            break
        except OSError:
            path.unlink(missing_ok=True)
    else:
        pytest.skip("no file system here has files of 64 TiB")
    try:
        with path.open("r+b") as file:
            for offset in (0, 32 << 40, size - 4096):
                file.seek(offset)
                file.write(b"y" * 4096)
        with opened(path) as source:
            middle = 32 << 40
            assert list(source.extents()) == [
                Extent(0, 4096, False),
                Extent(4096, middle - 4096, True),
                Extent(middle, 4096, False),
                Extent(middle + 4096, middle - 8192, True),
                Extent(size - 4096, 4096, False),
            ]
            assert read(source, size - 8192, 8192) == bytes(4096) + b"y" * 4096
    finally:
        path.unlink()
