"""Image files through a qemu-nbd child."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from mount_helpers import wait_until
from qemu_helpers import StorageDaemon, create_image, needs_qemu, qemu_io, run
from source_helpers import opened, read

from ingest.sources import BitmapError, Extent, SourceError

pytestmark = needs_qemu

MIB = 1 << 20


def servers(path: Path) -> list[int]:
    """Processes that have the path on their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.fsencode(path) in (entry / "cmdline").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def wait_until_gone(path: Path) -> None:
    wait_until(lambda: not servers(path), seconds=10)


def error(path: Path, bitmap: str | None = None, fmt: str | None = None) -> str:
    with pytest.raises(SourceError) as caught, opened(path, bitmap, fmt):
        pass
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    assert isinstance(caught.value, BitmapError) == ("bitmap" in text)
    wait_until_gone(path)
    return text


@pytest.mark.parametrize("fmt", ["qcow2", "vmdk", "vdi", "vhdx", "vpc"])
def test_formats(tmp_path: Path, fmt: str) -> None:
    raw = tmp_path / "disk.raw"
    raw.write_bytes(os.urandom(MIB) + bytes(2 * MIB) + os.urandom(MIB))
    path = tmp_path / "a name, with: odd=characters"
    run("qemu-img", "convert", "-f", "raw", "-O", fmt, raw, path)
    with opened(path) as source:
        assert source.size >= 4 * MIB
        assert source.size == 4 * MIB or fmt == "vpc"
        assert read(source, 0, 4 * MIB) == raw.read_bytes()
        extents = list(source.extents())
        assert sum(extent.length for extent in extents) == source.size
        assert source.dirty_extents() is None
        assert servers(path)
    assert not servers(path)


def test_size_is_rounded_up_to_sectors(tmp_path: Path) -> None:
    path = create_image(tmp_path / "disk.qcow2", "qcow2", 1000)
    with opened(path) as source:
        assert source.size == 1024
        assert read(source, 0, 1024) == bytes(1024)


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "t" / ("long" * 40)
    folder.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    path = create_image(tmp_path / "disk.qcow2", "qcow2", MIB)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with opened(path) as source:
            assert list(folder.iterdir()) == []
            list(source.extents())
    assert "'b0' does not exist" in error(path, "b0")
    path.write_bytes(path.read_bytes()[:1000])
    assert "is cut short" in error(path)
    assert list(folder.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == before


def test_server_ends_with_a_killed_process(tmp_path: Path) -> None:
    path = create_image(tmp_path / "disk.qcow2", "qcow2", MIB)
    program = (
        "import sys, time; from ingest.sources import *\n"
        "source = open_source(parse_spec(sys.argv[1])); reader = source.reader()\n"
        "print('ready', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program, f"sda={path}"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert servers(path)
        process.send_signal(signal.SIGKILL)
    wait_until_gone(path)


def test_server_is_killed(tmp_path: Path) -> None:
    path = create_image(tmp_path / "disk.qcow2", "qcow2", MIB)
    with opened(path) as source:
        reader = source.reader()
        for pid in servers(path):
            if (Path("/proc") / str(pid) / "comm").read_text() == "qemu-nbd\n":
                os.kill(pid, signal.SIGKILL)
        with pytest.raises(
            SourceError, match=r"disk.qcow2: read at byte 512: the (server closed|connection)"
        ):
            reader.readinto(512, memoryview(bytearray(512)))
        reader.close()


def test_bitmap(tmp_path: Path) -> None:
    path = create_image(tmp_path / "disk.qcow2", "qcow2", 8 * MIB)
    qemu_io(path, "qcow2", "write -P 1 0 4M")
    run("qemu-img", "bitmap", "--add", path, "b0")
    with opened(path, "b0") as source:
        assert list(source.dirty_extents() or [Extent(0, 0, False)]) == []
    qemu_io(path, "qcow2", "write -P 2 1M 64k", "write -z 2M 64k", "discard 3M 64k")
    with opened(path, "b0") as source:
        assert list(source.dirty_extents() or []) == [
            Extent(1 * MIB, 65536, False),
            Extent(2 * MIB, 65536, True),
            Extent(3 * MIB, 65536, True),
        ]
    assert "dirty bitmap 'b1' does not exist; the image has 'b0'" in error(path, "b1")
    run("qemu-img", "bitmap", "--disable", path, "b0")
    assert "'b0' is disabled and may have missed changes; take a full backup" in error(path, "b0")


def test_no_bitmaps(tmp_path: Path) -> None:
    path = create_image(tmp_path / "disk.qcow2", "qcow2", MIB)
    assert "'b0' does not exist; the image has none, so take a full backup" in error(path, "b0")
    assert "is a vmdk image, which has no dirty bitmaps" in error(
        create_image(tmp_path / "disk.vmdk", "vmdk", MIB), "b0"
    )
    raw = tmp_path / "disk.raw"
    raw.write_bytes(bytes(MIB))
    assert "is raw and has no dirty bitmap 'b0'; leave out --bitmap" in error(raw, "b0")


def test_bitmap_after_a_crash(tmp_path: Path) -> None:
    path = create_image(tmp_path / "disk.qcow2", "qcow2", MIB)
    run("qemu-img", "bitmap", "--add", path, "b0")
    daemon = StorageDaemon(tmp_path, path, "qcow2")
    daemon.io("write 0 64k")
    daemon.kill()
    text = error(path, "b0")
    assert (
        "'b0' is inconsistent, since qemu did not end cleanly; add a new one and take a full backup" in text
    )
    with opened(path) as source:
        assert source.size == MIB


def test_bitmap_that_goes_on_in_a_backing_file(tmp_path: Path) -> None:
    """After a snapshot, libvirt has a bitmap of one name in both layers: neither alone has all changes."""
    base = create_image(tmp_path / "base.qcow2", "qcow2", MIB)
    run("qemu-img", "bitmap", "--add", base, "b0")
    path = create_image(tmp_path / "top.qcow2", "qcow2", MIB, "-b", "base.qcow2", "-F", "qcow2")
    # qemu-nbd would find this one and serve it, although it knows nothing of the top.
    assert "'b0' does not exist" in error(path, "b0", "qcow2")
    run("qemu-img", "bitmap", "--add", path, "b0")
    run("qemu-img", "bitmap", "--add", path, "b1")
    assert "'b0' goes on in a backing file" in error(path, "b0", "qcow2")
    with opened(path, "b1", "qcow2") as source:
        assert source.dirty_extents() is not None


def test_in_use(tmp_path: Path) -> None:
    path = create_image(tmp_path / "disk.qcow2", "qcow2", MIB)
    with StorageDaemon(tmp_path, path, "qcow2"):
        assert "is in use by a running VM; stop the VM, or back up an NBD export" in error(path)


def test_backing_file(tmp_path: Path) -> None:
    base = tmp_path / "base.raw"
    base.write_bytes(b"b" * MIB)
    path = create_image(tmp_path / "top.qcow2", "qcow2", MIB, "-b", "base.raw", "-F", "raw")
    qemu_io(path, "qcow2", "write -P 0x74 0 64k", "write -z 64k 64k")
    assert "refers to other files; if it is one and you trust it, say so with --format qcow2" in error(path)
    with opened(path, fmt="qcow2") as source:
        assert read(source, 0, MIB) == b"t" * 65536 + bytes(65536) + b"b" * (MIB - 131072)
    base.unlink()
    assert "base.raw" in error(path, fmt="qcow2")


@pytest.mark.parametrize(
    ("backing", "fmt", "message"),
    [
        ("nbd://127.0.0.1:9/", "raw", "is not a local file"),
        ('json:{"driver": "null-co"}', "raw", "is not a local file"),
        ("base.raw", "", "does not say which format its backing file"),
    ],
)
def test_backing_files_refused(tmp_path: Path, backing: str, fmt: str, message: str) -> None:
    (tmp_path / "base.raw").write_bytes(bytes(MIB))
    path = create_image(tmp_path / "top.qcow2", "qcow2", MIB)
    run("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", backing, path)
    if not fmt:
        # As images of old are: the header extension that names the format becomes an unknown one.
        content = path.read_bytes()
        assert content.count(b"\xe2\x79\x2a\xca") == 1
        path.write_bytes(content.replace(b"\xe2\x79\x2a\xca", b"none"))
    assert message in error(path, fmt="qcow2")


def test_backing_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.sources.qemu._MAX_CHAIN", 9)
    path = create_image(tmp_path / "top.qcow2", "qcow2", MIB)
    run("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "top.qcow2", path)
    assert "more than 9 backing files" in error(path, fmt="qcow2")


def test_guest_writes_an_image_header_to_a_raw_disk(tmp_path: Path) -> None:
    """The trap: what a guest wrote must not make a backup read a file of the host."""
    (tmp_path / "secret").write_bytes(b"s" * MIB)
    bait = create_image(tmp_path / "bait", "qcow2", MIB, "-b", str(tmp_path / "secret"), "-F", "raw")
    assert "say so with --format qcow2" in error(bait)
    path = tmp_path / "disk.raw"
    path.write_bytes(bait.read_bytes() + bytes(-bait.stat().st_size % 512))
    assert "should be raw and begins like a qcow2 image" in error(path)
    with opened(path, fmt="raw") as source:
        assert read(source, 0, source.size) == path.read_bytes()
        assert not servers(path)
    data = create_image(tmp_path / "data.qcow2", "qcow2", MIB, "-o", f"data_file={tmp_path}/outside")
    assert "say so with --format qcow2" in error(data)
    flat = create_image(tmp_path / "flat.vmdk", "vmdk", MIB, "-o", "subformat=monolithicFlat")
    assert "say so with --format vmdk" in error(flat)
    with opened(flat, fmt="vmdk") as source:
        assert source.size == MIB


def test_no_qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = create_image(tmp_path / "disk.qcow2", "qcow2", MIB)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "is a qcow2 image and qemu-img is missing; install qemu-utils" in error(path)


def test_broken_images(tmp_path: Path) -> None:
    path = create_image(tmp_path / "disk.qcow2", "qcow2", MIB)
    whole = path.read_bytes()
    path.write_bytes(whole[:50])
    assert "qemu-img: Could not open" in error(path)
    path.write_bytes(whole[:8] + b"\xff" * 92 + whole[100:])
    assert "qemu-img: Could not open" in error(path)
    raw = tmp_path / "disk.img"
    raw.write_bytes(bytes(MIB))
    assert "qemu-img: Could not open" in error(raw, fmt="qcow2")
    assert "does not exist" in error(tmp_path / "missing", fmt="qcow2")
    assert "is a directory" in error(tmp_path, fmt="qcow2")


@pytest.mark.parametrize(
    "options", ["cluster_size=65536", "cluster_size=4096,refcount_bits=1", "compat=0.10"]
)
def test_truncated_image(tmp_path: Path, options: str) -> None:
    """qemu itself would read zeros behind the end of the file."""
    raw = tmp_path / "disk.raw"
    raw.write_bytes(os.urandom(2 * MIB))
    path = tmp_path / "disk.qcow2"
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-o", options, raw, path)
    with opened(path) as source:
        assert read(source, 0, 2 * MIB) == raw.read_bytes()
    size = path.stat().st_size
    for length in (size - 65536, size // 2, 65536, 512):
        os.truncate(path, length)
        assert f"is cut short: clusters in use are missing from the end of '{path}'" in error(path)


def test_counted_clusters_beyond_the_end_of_a_good_image(tmp_path: Path) -> None:
    """What a crash may leave behind is no reason to refuse the image."""
    path = create_image(tmp_path / "disk.qcow2", "qcow2", MIB)
    qemu_io(path, "qcow2", "write -P 9 0 64k")
    table = int.from_bytes(path.read_bytes()[48:56], "big")
    with path.open("r+b") as file:
        file.seek(table)
        block = int.from_bytes(file.read(8), "big")
        file.seek(block + 2 * 1000)
        file.write(b"\0\1")
    with opened(path) as source:
        assert read(source, 0, 1024) == b"\t" * 1024


def test_image_shrinks_while_read(tmp_path: Path) -> None:
    path = create_image(tmp_path / "disk.qcow2", "qcow2", MIB)
    qemu_io(path, "qcow2", "write 0 1M")
    with opened(path) as source:
        reader = source.reader()
        reader.readinto(0, memoryview(bytearray(512)))
        os.truncate(path, path.stat().st_size - 65536)
        with pytest.raises(SourceError, match=r"disk.qcow2 became shorter while it was read"):
            reader.readinto(MIB - 512, memoryview(bytearray(512)))
        reader.close()
