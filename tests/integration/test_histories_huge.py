"""Sparse disks of 64 TiB: the cost follows what is written to them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from command_helpers import Site
from history_helpers import CHUNK, MEMORY
from mount_helpers import can_mount, mounted
from qemu_helpers import NbdServer, StorageDaemon, create_image, needs_qemu, qemu_io, run

from vmfs.repo.reader import DiskExtent, DiskReader
from vmfs.repo.repository import Point, Repository

SIZE = 64 << 40
PLACES = {0: 100, (5 << 40) + 12345 * 512: CHUNK, (37 << 40) - 512: 1024, SIZE - 512: 512}
"""Where something is written, and how many bytes."""
LIMIT = 120.0
"""Seconds for a backup on a machine that is busy; to read the disk would take hours."""


@pytest.fixture
def site() -> Iterator[Site]:
    with TemporaryDirectory(dir=MEMORY) as folder:
        made = Site(Path(folder))
        made.init()
        yield made


def raw_image(path: Path) -> Path:
    with path.open("wb") as file:
        try:
            file.truncate(SIZE)
        except OSError:
            pytest.skip("the file system has no files of 64 TiB")
        for place, length in PLACES.items():
            os.pwrite(file.fileno(), b"\x5a" * length, place)
    return path


def expected(start: int, length: int, *, also: int | None = None) -> bytes:
    content = bytearray(length)
    for place, size in [*PLACES.items(), *([(also, 512)] if also is not None else [])]:
        first, last = max(place, start), min(place + size, start + length)
        if first < last:
            content[first - start : last - start] = b"\x5a" * (last - first)
    return bytes(content)


def back_up(site: Site, *argv: object) -> Point:
    begin = time.monotonic()
    facts = site.ingest("huge", "--json", *argv).json()
    assert time.monotonic() - begin < LIMIT
    with site.open() as repository:
        return repository.load_point(facts["id"])


def check(site: Site, point: Point, *, also: int | None = None) -> None:
    (disk,) = point.manifest.disks
    assert disk.size == SIZE
    chunks = {at // CHUNK for place, size in PLACES.items() for at in (place, place + size - 1)}
    if also is not None:
        chunks.add(also // CHUNK)
    assert disk.allocated == len(chunks) * CHUNK
    with site.open() as repository:
        reader = repository.open_disk(disk)
        check_reads(reader, also)
        extents = list(reader.extents())
        assert [at // CHUNK for at, _, zero in extents if not zero] == sorted(
            chunk for chunk in chunks if chunk - 1 not in chunks
        )
        assert extents[-1] == DiskExtent(SIZE - CHUNK, CHUNK, False)
        assert sum(extent.length for extent in extents) == SIZE
        if can_mount:
            check_mount(repository, site.root / f"mount-{point.id}", also)
    assert site.vmfs("verify", "--data", "--json").json()["sound"]


def check_reads(reader: DiskReader, also: int | None) -> None:
    for place in [*PLACES, 40 << 40, *([also] if also is not None else [])]:
        start = max(0, place - 1000)
        assert reader.read(start, 3 * CHUNK) == expected(start, min(3 * CHUNK, SIZE - start), also=also)


def check_mount(repository: Repository, path: Path, also: int | None) -> None:
    with mounted(repository, path) as mount, (mount.path / "huge/latest/disks/d.raw").open("rb") as file:
        assert os.fstat(file.fileno()).st_size == SIZE
        for place in PLACES:
            start = max(0, place - 1000)
            found = os.pread(file.fileno(), 2 * CHUNK, start)
            assert found == expected(start, min(2 * CHUNK, SIZE - start), also=also)
        start = (5 << 40) + 12345 * 512 - 1000
        file.seek(start)
        assert file.read(1000) + file.read(CHUNK) == expected(start, CHUNK + 1000, also=also)


def test_raw(site: Site) -> None:
    image = raw_image(site.root / "huge.raw")
    point = back_up(site, f"d={image}")
    check(site, point)
    again = back_up(site, f"d={image}")
    (first,), (second,) = point.manifest.disks, again.manifest.disks
    assert (second.root, second.bytes_new) == (first.root, 0)


@needs_qemu
def test_nbd(site: Site) -> None:
    image = raw_image(site.root / "huge.raw")
    with NbdServer("-r", "-f", "raw", "-e", "0", image) as server:
        check(site, back_up(site, f"d={server.uri()}"))


@needs_qemu
def test_qcow2_with_a_bitmap(site: Site) -> None:
    image = create_image(site.root / "huge.qcow2", "qcow2", SIZE)
    qemu_io(image, "qcow2", *(f"write -P 0x5a {place} {size}" for place, size in PLACES.items()))
    run("qemu-img", "bitmap", "--add", "-g", "1M", image, "chk0")
    first = back_up(site, "--checkpoint", "chk0", f"d={image}")
    check(site, first)
    also = 50 << 40
    qemu_io(image, "qcow2", f"write -P 0x5a {also} 512")
    second = back_up(site, "--bitmap", "chk0", f"d={image}")
    check(site, second, also=also)
    (disk,) = second.manifest.disks
    # Of the one megabyte that is dirty, all but a cluster is known to be zeros.
    assert (disk.mode, disk.bytes_read) == ("incremental", CHUNK)


@needs_qemu
def test_a_running_vm(site: Site) -> None:
    image = create_image(site.root / "huge.qcow2", "qcow2", SIZE)
    with StorageDaemon(site.root, image, "qcow2") as daemon:
        daemon.io(*(f"write -P 0x5a {place} {size}" for place, size in PLACES.items()))
        daemon.add_bitmap("inc", granularity=1 << 20, persistent=False)
        check(site, back_up(site, f"d={daemon.begin_backup()}"))
        daemon.end_backup()
        also = 50 << 40
        daemon.io(f"write -P 0x5a {also} 512")
        second = back_up(site, "--bitmap", "changed", f"d={daemon.begin_backup(since='inc')}")
        daemon.end_backup()
    check(site, second, also=also)
    (disk,) = second.manifest.disks
    assert (disk.mode, disk.bytes_read) == ("incremental", CHUNK)
