"""Writable views: real mounts, written to through the kernel."""

from __future__ import annotations

import errno
import mmap
import os
import random
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import COST, SECRET
from mount_helpers import (
    MIB,
    VMFS,
    Mount,
    add_point,
    command,
    mounted,
    needs_fuse,
    needs_sfdisk,
    partitioned,
    run,
    wait_until,
)
from scratch_helpers import (
    GUESTS,
    START,
    Guest,
    check_dirty,
    check_guest,
    fingerprint,
    loop_mounted,
    power_cut,
)
from volume_helpers import group_text, linear, physical_volume, uuid_of, volume_text

from vmfs.repo import names
from vmfs.repo.repository import Repository
from vmfs.store import LocalStore

pytestmark = [needs_fuse, pytest.mark.root, pytest.mark.usefixtures("measured")]

BLOCK = 4096


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    path = tmp_path / "scratch"
    path.mkdir()
    return path


def errno_of(action: Callable[[], object]) -> int | None:
    try:
        action()
    except OSError as error:
        return error.errno
    return None


def disk_of(mount: Mount, alias: str = "sda") -> Path:
    return mount.path / "web" / "latest" / "disks" / f"{alias}.raw"


def volume_of(mount: Mount, name: str) -> Path:
    return mount.path / "web" / "latest" / "volumes" / f"{name}.raw"


def put(path: Path, offset: int, data: bytes, *, sync: bool = False) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        assert os.pwrite(descriptor, data, offset) == len(data)
        if sync:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def get(path: Path, offset: int, length: int) -> bytes:
    with path.open("rb", buffering=0) as file:
        return os.pread(file.fileno(), length, offset)


@needs_sfdisk
@pytest.mark.slow
@pytest.mark.parametrize("guest", GUESTS, ids=lambda guest: guest.name)
def test_file_systems_that_lost_power(
    repository: Repository, tmp_path: Path, scratch: Path, guest: Guest
) -> None:
    """They replay, are written to, and are clean afterwards: the volume and the disk with an offset. Two
    views of one point do not see each other, and the repository is as it was."""
    guest.skip_without_tools()
    image, synced = power_cut(guest, tmp_path)
    add_point(repository, {"sda": image})
    store = Path(repository.store.url)
    before = fingerprint(store)
    options = ("--scratch", str(scratch))
    with (
        mounted(repository, tmp_path / "mnt1", *options) as one,
        mounted(repository, tmp_path / "mnt2", *options) as two,
    ):
        plain = get(disk_of(one), 0, 8 * MIB)
        volume = volume_of(one, "sda-p1")
        check_dirty(guest, volume)
        if guest.name == "ext4":
            # Guests' files are shown beside, of the point.
            found = volume.parents[1] / "files" / "sda-p1" / "old" / "7"
            assert found.read_bytes() == b"\7" * 5000
            assert errno_of(lambda: os.open(found, os.O_RDWR)) == errno.EROFS
            assert errno_of(lambda: os.truncate(found, 5)) == errno.EROFS
        with loop_mounted(volume, tmp_path / "guest") as inside:
            assert {name: (inside / name).read_bytes() for name in synced} == synced
            assert (inside / "old" / "7").read_bytes() == b"\7" * 5000
            noise = os.urandom(5 * MIB)
            (inside / "new").write_bytes(noise)
            (inside / "old" / "8").unlink()
        check_guest(guest, volume)
        assert get(disk_of(two), 0, 8 * MIB) == plain
        assert image.read_bytes() == disk_of(two).read_bytes()
        # The other way in, in the other view.
        where = (f"offset={START}", f"sizelimit={guest.size}")
        with loop_mounted(disk_of(two), tmp_path / "guest", *where) as inside:
            assert not (inside / "new").exists()
            assert (inside / "old" / "8").exists()
            assert {name: (inside / name).read_bytes() for name in synced} == synced
            (inside / "second").mkdir()
        check_guest(guest, volume_of(two, "sda-p1"))
        with loop_mounted(volume, tmp_path / "guest") as inside:
            assert (inside / "new").read_bytes() == noise
            assert not (inside / "second").exists()
    assert fingerprint(store) == before
    assert list(scratch.iterdir()) == []


@needs_sfdisk
def test_a_disk_and_its_volumes_are_one(repository: Repository, tmp_path: Path, scratch: Path) -> None:
    """Buffered or not, through descriptors that were open before and have read what was there."""
    image = partitioned(tmp_path / "disk", script="label: dos\nstart=63, size=8001\nstart=10000, size=8000\n")
    model = bytearray(image.read_bytes())
    add_point(repository, {"sda": image})
    places = {"sda-p1": 63 * 512, "sda-p2": 10000 * 512}
    with mounted(repository, tmp_path / "mnt", "--scratch", str(scratch)) as mount:
        paths = [(disk_of(mount), 0)] + [(volume_of(mount, name), at) for name, at in places.items()]
        files = [(os.open(path, os.O_RDWR), at) for path, at in paths]
        sizes = [os.fstat(descriptor).st_size for descriptor, _ in files]

        def check() -> None:
            for (descriptor, at), size in zip(files, sizes, strict=True):
                assert os.pread(descriptor, size, 0) == model[at : at + size]

        check()
        for number in range(24):
            descriptor, at = files[number % 3]
            offset = 1000 * number * number % (sizes[number % 3] - 9000)
            data = os.urandom(1 + 311 * number)
            assert os.pwrite(descriptor, data, offset) == len(data)
            model[at + offset : at + offset + len(data)] = data
            check()
        for descriptor, _ in files:
            os.close(descriptor)
        assert disk_of(mount).read_bytes() == model
        # By tools, that read through the page cache where there is one.
        assert run("cmp", disk_of(mount), "-", input="").returncode == 1
        run("dd", "if=/dev/zero", f"of={volume_of(mount, 'sda-p2')}", "bs=512", "count=3", "conv=notrunc")
        model[places["sda-p2"] : places["sda-p2"] + 3 * 512] = bytes(3 * 512)
        assert disk_of(mount).read_bytes() == model


def test_logical_volumes(repository: Repository, tmp_path: Path, scratch: Path) -> None:
    """One in pieces of two disks is written to through them, and a mirror to all of its legs: a guest may
    read any. One in stripes is read-only."""
    extent, start, count = 4096, 128, 400
    uuids = [uuid_of(letter) for letter in "ab"]
    text = group_text(
        {"pv0": (uuids[0], start, count), "pv1": (uuids[1], start, count)},
        volume_text("data", [(0, 50, linear("pv0", 7)), (50, 30, linear("pv1", 100))])
        + volume_text("twice", [(0, 8, 'type = "mirror" mirrors = [ "pv0", 200, "pv1", 300 ]')])
        + volume_text(
            "fast",
            [(0, 4, 'type = "striped" stripe_count = 2 stripe_size = 4 stripes = [ "pv0", 90, "pv1", 9 ]')],
        ),
    )
    disks = [physical_volume(uuid, start * 512 + count * extent, text) for uuid in uuids]
    for disk in disks:
        disk[start * 512 :] = os.urandom(count * extent)
    add_point(repository, {"sda": bytes(disks[0]), "sdb": bytes(disks[1])})
    with mounted(repository, tmp_path / "mnt", "--scratch", str(scratch)) as mount:
        volume = volume_of(mount, "vg-data")
        places = [start * 512 + 7 * extent, start * 512 + 100 * extent]
        expected = [disks[0][places[0] :][: 50 * extent], disks[1][places[1] :][: 30 * extent]]
        assert volume.read_bytes() == b"".join(expected)
        put(volume, 50 * extent - 1000, b"x" * 3000)
        disks[0][places[0] + 50 * extent - 1000 : places[0] + 50 * extent] = b"x" * 1000
        disks[1][places[1] : places[1] + 2000] = b"x" * 2000
        put(disk_of(mount, "sdb"), places[1] + 5, b"through the disk")
        disks[1][places[1] + 5 : places[1] + 21] = b"through the disk"
        assert disk_of(mount).read_bytes() == disks[0]
        assert disk_of(mount, "sdb").read_bytes() == disks[1]
        assert get(volume, 50 * extent + 5, 16) == b"through the disk"
        legs = [start * 512 + 200 * extent, start * 512 + 300 * extent]
        put(volume_of(mount, "vg-twice"), extent - 3, b"in both", sync=True)
        for disk, alias, leg in zip(disks, ("sda", "sdb"), legs, strict=True):
            disk[leg + extent - 3 : leg + extent + 4] = b"in both"
            assert disk_of(mount, alias).read_bytes() == disk
        assert get(volume_of(mount, "vg-twice"), extent - 4, 9)[1:-1] == b"in both"
        fast = volume_of(mount, "vg-fast")
        assert errno_of(lambda: os.open(fast, os.O_RDWR)) == errno.EROFS
        assert len(fast.read_bytes()) == 4 * extent


def test_what_a_raw_file_lets_do(repository: Repository, tmp_path: Path, scratch: Path) -> None:
    """Like a block device: its size stays, and truncation is nothing or an error."""
    data = os.urandom(2 * MIB + 512)
    add_point(repository, {"sda": data}, artifacts={"vm.ovf": b"<Envelope/>"})
    with mounted(repository, tmp_path / "mnt", "--scratch", str(scratch)) as mount:
        disk = disk_of(mount)
        status = disk.stat()
        assert status.st_mode & 0o777 == 0o600
        assert status.st_blocks * 512 < len(data) + MIB
        assert errno_of(lambda: os.truncate(disk, 5)) == errno.EINVAL
        assert errno_of(lambda: os.truncate(disk, len(data) + 1)) == errno.EINVAL
        assert errno_of(lambda: os.truncate(disk, len(data))) is None
        assert errno_of(lambda: os.chmod(disk, 0o777)) == errno.EPERM
        descriptor = os.open(disk, os.O_RDWR | os.O_TRUNC)
        assert os.fstat(descriptor).st_size == len(data)
        assert os.pread(descriptor, 10, 0) == data[:10]
        assert os.pwrite(descriptor, b"xyz", len(data) - 3) == 3
        assert os.pwrite(descriptor, b"12345678", len(data) - 5) == 5
        assert errno_of(lambda: os.pwrite(descriptor, b"x", len(data))) == errno.ENOSPC
        assert errno_of(lambda: os.posix_fallocate(descriptor, 0, 4096)) is None
        assert run("fallocate", "--punch-hole", "-o", "0", "-l", "4096", disk).returncode != 0
        assert os.fstat(descriptor).st_size == len(data)
        os.fsync(descriptor)
        os.fdatasync(descriptor)
        os.close(descriptor)
        append = os.open(disk, os.O_WRONLY | os.O_APPEND)
        assert errno_of(lambda: os.write(append, b"x")) == errno.ENOSPC
        os.close(append)
        assert disk.read_bytes() == data[:-5] + b"12345"
        # What is no raw file is as it always is.
        json = disk.parents[1] / "point.json"
        for action in (
            lambda: os.open(json, os.O_RDWR),
            lambda: os.open(disk.parents[1] / "vm.ovf", os.O_WRONLY | os.O_TRUNC),
            lambda: os.truncate(json, 5),
            lambda: os.chmod(json, 0o777),
            lambda: os.unlink(disk),
            lambda: os.open(disk.with_name("new"), os.O_CREAT | os.O_WRONLY),
            lambda: os.mkdir(mount.path / "new"),
            lambda: os.rename(disk, disk.with_name("x")),
            lambda: os.link(disk, disk.with_name("x")),
            lambda: os.symlink("x", mount.path / "x"),
            lambda: os.setxattr(disk, "user.x", b"y"),
        ):
            assert errno_of(action) == errno.EROFS
        usage, real = os.statvfs(mount.path), os.statvfs(scratch)
        assert abs(usage.f_bavail * usage.f_frsize - real.f_bavail * real.f_frsize) < 1 << 30
        assert usage.f_bavail <= usage.f_blocks
        assert "unexpected" not in mount.log


def test_attributes_tell_of_writes(repository: Repository, tmp_path: Path, scratch: Path) -> None:
    hole = tmp_path / "hole"
    with hole.open("wb") as file:
        file.truncate(64 * MIB)
    add_point(repository, {"sda": hole, "sdb": b"\1" * MIB})
    with mounted(repository, tmp_path / "mnt", "--scratch", str(scratch)) as mount:
        before, other = disk_of(mount).stat(), disk_of(mount, "sdb").stat()
        assert before.st_blocks == 0
        put(disk_of(mount), 40 * MIB, b"\1" * MIB)
        after = disk_of(mount).stat()
        assert after.st_blocks * 512 == MIB
        assert after.st_mtime_ns > before.st_mtime_ns
        assert after.st_size == before.st_size
        assert disk_of(mount, "sdb").stat() == other
        # Zeros take no room.
        used = sum(path.stat().st_blocks for path in scratch.rglob("*"))
        put(disk_of(mount), 0, bytes(32 * MIB))
        put(disk_of(mount), 40 * MIB, bytes(MIB))
        assert sum(path.stat().st_blocks for path in scratch.rglob("*")) * 512 < used * 512
        assert disk_of(mount).read_bytes() == bytes(64 * MIB)


def test_a_kept_view(repository: Repository, tmp_path: Path, scratch: Path) -> None:
    data = os.urandom(3 * MIB)
    point = add_point(repository, {"sda": data})
    options = ("--scratch", str(scratch), "--keep-scratch", "try1")
    with mounted(repository, tmp_path / "mnt", *options) as mount:
        put(disk_of(mount), 12345, b"hello")
        # In use: by its name it is one mount's only, others may come.
        words = command(repository, "mount", *options, repository.store.url, tmp_path / "other")
        (tmp_path / "other").mkdir()
        done = run(*words)
        assert (done.returncode, "try1" in done.stderr, "in use" in done.stderr) == (2, True, True), (
            done.stderr
        )
        with mounted(
            repository, tmp_path / "mnt2", "--scratch", str(scratch), "--keep-scratch", "try2"
        ) as two:
            assert disk_of(two).read_bytes() == data
    assert sorted(path.name for path in scratch.iterdir()) == ["kept-try1", "kept-try2"]
    with mounted(repository, tmp_path / "mnt3", *options) as mount:
        # It shows at once, before anybody writes.
        assert disk_of(mount).stat().st_mtime_ns > 1.7e18
        assert disk_of(mount).read_bytes() == data[:12345] + b"hello" + data[12350:]
    # Another repository, and one that no longer has the point.
    repository.store.delete(names.point(point.id))
    gone = run(*command(repository, "mount", *options, repository.store.url, tmp_path / "other"))
    assert gone.returncode == 1
    assert len(gone.stderr.splitlines()) == 1
    assert f"changes to restore point {point.id}, which the repository no longer has" in gone.stderr
    store = LocalStore(tmp_path / "second")
    with Repository.create(store, SECRET, cost=COST, cache_root=tmp_path / "cache") as second:
        done = run(*command(second, "mount", *options, store.url, tmp_path / "other"))
    assert done.returncode == 2
    assert "belongs to another repository" in done.stderr


def kill(mount: Mount) -> None:
    """As kill -9 does, with nobody left to clean up."""
    mount.process.send_signal(signal.SIGKILL)
    mount.process.wait()
    subprocess.run(["umount", "-l", mount.path], check=False, capture_output=True)


def test_killed(repository: Repository, tmp_path: Path, scratch: Path) -> None:
    """What was synced, or closed, is there in a kept view; an unnamed one is cleared away by the next
    mount."""
    data = os.urandom(8 * MIB)
    add_point(repository, {"sda": data})
    kept = ("--scratch", str(scratch), "--keep-scratch", "x")
    with mounted(repository, tmp_path / "mnt", *kept, status=-signal.SIGKILL) as mount:
        descriptor = os.open(disk_of(mount), os.O_RDWR)
        os.pwrite(descriptor, b"synced", 5000)
        os.fsync(descriptor)
        put(disk_of(mount), 5 * MIB, b"closed")
        synchronous = os.open(disk_of(mount), os.O_WRONLY | os.O_DSYNC)
        os.pwrite(synchronous, b"at once", 6 * MIB)
        os.pwrite(descriptor, b"not synced", 3 * MIB)
        with mounted(
            repository, tmp_path / "mnt2", "--scratch", str(scratch), status=-signal.SIGKILL
        ) as unnamed:
            put(disk_of(unnamed), 0, b"x" * MIB)
            kill(unnamed)
        kill(mount)
        for opened in (descriptor, synchronous):
            assert errno_of(lambda opened=opened: os.close(opened)) == errno.ENOTCONN
    assert len(list(scratch.iterdir())) == 2
    # None of these is provably ours and dead.
    (scratch / "view-0123456789abcdef").mkdir()
    (scratch / "view-0123456789abcdef" / "mine").write_text("")
    (scratch / "view-mine").write_text("")
    with mounted(repository, tmp_path / "mnt3", *kept) as mount:
        assert sorted(path.name for path in scratch.iterdir()) == [
            "kept-x",
            "view-0123456789abcdef",
            "view-mine",
        ]
        found = disk_of(mount).read_bytes()
        expected = bytearray(data)
        expected[5000:5006] = b"synced"
        expected[5 * MIB : 5 * MIB + 6] = b"closed"
        expected[6 * MIB : 6 * MIB + 7] = b"at once"
        lost = slice(3 * MIB, 3 * MIB + 10)
        assert found[lost] in (data[lost], b"not synced")
        expected[lost] = found[lost]
        assert found == expected


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_no_room(repository: Repository, tmp_path: Path, kind: str) -> None:
    """ENOSPC to the writer, and nothing else: all else is read and written on."""
    data = os.urandom(16 * MIB)
    add_point(repository, {"sda": data})
    small = tmp_path / "small"
    small.mkdir()
    if kind == "tmpfs":
        run("mount", "-t", "tmpfs", "-o", "size=6M", "none", small)
    else:
        image = tmp_path / "small.img"
        with image.open("wb") as file:
            file.truncate(8 * MIB)
        assert run("mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", image).returncode == 0
        assert run("mount", "-o", "loop", image, small).returncode == 0
    try:
        options = ("--scratch", str(small), "--keep-scratch", "x")
        with mounted(repository, tmp_path / "mnt", *options) as mount:
            model = bytearray(data)
            descriptor = os.open(disk_of(mount), os.O_RDWR)
            noise = os.urandom(MIB)

            def fill() -> None:
                for start in range(0, 16 * MIB, MIB):
                    count = os.pwrite(descriptor, noise, start)
                    model[start : start + count] = noise[:count]

            assert errno_of(fill) == errno.ENOSPC
            assert os.pread(descriptor, 16 * MIB, 0) == model
            # What was written can be made durable, and written again.
            os.fsync(descriptor)
            os.pwrite(descriptor, b"again", MIB + 5)
            model[MIB + 5 : MIB + 10] = b"again"
            assert errno_of(lambda: os.pwrite(descriptor, noise, 12 * MIB)) == errno.ENOSPC
            assert os.pread(descriptor, 16 * MIB, 0) == model
            assert os.statvfs(mount.path).f_bavail * BLOCK < MIB
            # Room that was made is used.
            os.pwrite(descriptor, bytes(2 * MIB), 0)
            model[: 2 * MIB] = bytes(2 * MIB)
            os.pwrite(descriptor, noise, 12 * MIB)
            model[12 * MIB : 13 * MIB] = noise
            assert os.pread(descriptor, 16 * MIB, 0) == model
            os.close(descriptor)
            assert "unexpected" not in mount.log
        with mounted(repository, tmp_path / "mnt2", *options) as mount:
            assert disk_of(mount).read_bytes() == model
        run("dd", "if=/dev/zero", f"of={small}/fill", "bs=64k")
        with mounted(repository, tmp_path / "mnt3", *options) as mount:
            assert disk_of(mount).read_bytes() == model
        options = ("--scratch", str(small))
        full = run(*command(repository, "mount", *options, repository.store.url, tmp_path / "mnt2"))
        assert (full.returncode, "has no room left" in full.stderr) == (1, True)
    finally:
        run("umount", "-l", small)


def test_bad_calls(repository: Repository, tmp_path: Path, scratch: Path) -> None:
    add_point(repository, {"sda": b"\1" * MIB})
    place = tmp_path / "mnt"
    place.mkdir()
    inside = Path(repository.store.url) / "packs" / "inside"
    inside.mkdir()
    (tmp_path / "file").write_text("")
    (scratch / "mnt").mkdir()
    for options, where, message in (
        (["--scratch", tmp_path / "absent"], place, "does not exist"),
        (["--scratch", tmp_path / "file"], place, "is not a directory"),
        (["--scratch", inside], place, "is inside"),
        (["--scratch", repository.store.url], place, "is inside"),
        (["--scratch", place], place, "itself"),
        (["--scratch", scratch], scratch / "mnt", "is inside"),
        (["--scratch", scratch, "--keep-scratch", "../x"], place, "scratch name"),
        (["--keep-scratch", "x"], place, "needs --scratch"),
    ):
        done = run(*command(repository, "mount", *options, repository.store.url, where))
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
        assert message in done.stderr


def test_random_writes(repository: Repository, tmp_path: Path, scratch: Path) -> None:
    """Any way of writing, at any place, against the same bytes in memory; then once more after a new
    mount."""
    image = partitioned(
        tmp_path / "disk", script="label: dos\nstart=63, size=12001\nstart=12288, size=16000\n"
    )
    model = bytearray(image.read_bytes())
    add_point(repository, {"sda": image})
    choice = random.Random(7)  # noqa: S311
    options = ("--scratch", str(scratch), "--keep-scratch", "x")
    for mountpoint in ("mnt1", "mnt2"):
        with mounted(repository, tmp_path / mountpoint, *options) as mount:
            paths = [disk_of(mount), volume_of(mount, "sda-p1"), volume_of(mount, "sda-p2")]
            starts = [0, 63 * 512, 12288 * 512]
            plain = [os.open(path, os.O_RDWR) for path in paths]
            direct = [os.open(path, os.O_RDWR | os.O_DIRECT) for path in paths]
            with mmap.mmap(-1, MIB) as space, memoryview(space) as view:
                for step in range(500):
                    which = choice.randrange(3)
                    size, base = os.fstat(plain[which]).st_size, starts[which]
                    length = choice.choice((1, 511, 512, 4096, 5000, 65536, 300_000))
                    offset = choice.randrange(size - length)
                    kind = choice.choice(("write", "write", "zeros", "direct", "read", "read", "sync"))
                    if kind == "direct":
                        offset, length = offset // 512 * 512, -(-length // 512) * 512
                    if kind in ("write", "zeros", "direct"):
                        data = bytes(length) if kind == "zeros" else choice.randbytes(length)
                        if kind == "direct":
                            view[:length] = data
                            assert os.pwritev(direct[which], [view[:length]], offset) == length
                        else:
                            assert os.pwrite(plain[which], data, offset) == length
                        model[base + offset : base + offset + length] = data
                    elif kind == "sync":
                        os.fsync(plain[which])
                    else:
                        found = os.pread(plain[which], length, offset)
                        assert found == model[base + offset : base + offset + length], step
            for descriptor in plain + direct:
                os.close(descriptor)
            with (
                paths[0].open("rb") as file,
                mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ) as seen,
            ):
                assert seen[:] == model


def test_writers_side_by_side(repository: Repository, tmp_path: Path, scratch: Path) -> None:
    """Each writes other sectors of the same blocks, through the disk or its volume; none undoes what another
    does."""
    image = partitioned(tmp_path / "disk", script="label: dos\nstart=63, size=8001\n")
    before = image.read_bytes()
    add_point(repository, {"sda": image})
    with mounted(repository, tmp_path / "mnt", "--scratch", str(scratch)) as mount:
        count, start = 1600, 63

        def write(number: int) -> None:
            path, base = (disk_of(mount), start) if number % 2 else (volume_of(mount, "sda-p1"), 0)
            descriptor = os.open(path, os.O_WRONLY)
            for sector in range(number, count, 8):
                os.pwrite(descriptor, bytes([number + 1]) * 512, (base + sector) * 512)
            os.close(descriptor)

        threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        expected = b"".join(bytes([sector % 8 + 1]) * 512 for sector in range(count))
        assert get(volume_of(mount, "sda-p1"), 0, count * 512) == expected
        end = (start + count) * 512
        assert disk_of(mount).read_bytes() == before[: start * 512] + expected + before[end:]


def test_by_mount_options(repository: Repository, tmp_path: Path, scratch: Path) -> None:
    data = os.urandom(MIB)
    add_point(repository, {"sda": data})
    place, secret = tmp_path / "mnt", tmp_path / "pass"
    place.mkdir()
    secret.write_bytes(SECRET.secret)
    options = (
        f"passphrase_file={secret},cache_dir={tmp_path / 'cache'},scratch={scratch},keep_scratch=x,_netdev"
    )
    done = run(VMFS.with_name("mount.fuse.vmfs"), repository.store.url, place, "-o", options)
    assert done.returncode == 0, done.stderr
    try:
        disk = place / "web" / "latest" / "disks" / "sda.raw"
        put(disk, 5, b"hello")
        assert disk.read_bytes() == data[:5] + b"hello" + data[10:]
        assert os.listdir(scratch) == ["kept-x"]
    finally:
        assert run(VMFS, "umount", place).returncode == 0


def test_damage_below_a_view(repository: Repository, tmp_path: Path, scratch: Path) -> None:
    """What is written over damaged data can be read, and only what needs the damaged data cannot be
    written."""
    data = os.urandom(4 * MIB)
    add_point(repository, {"sda": data})
    packs = [name for name, _ in repository.store.list(names.PACKS)]
    with mounted(repository, tmp_path / "mnt", "--scratch", str(scratch)) as mount:
        disk = disk_of(mount)
        os.listdir(mount.path / "web" / "latest" / "volumes")
        descriptor = os.open(disk, os.O_RDWR)
        for name in packs:
            path = Path(repository.store.url) / name
            path.write_bytes(bytes(path.stat().st_size))
        broken = next(
            block
            for block in range(0, 4 * MIB, 64 << 10)
            if errno_of(lambda block=block: os.pread(descriptor, BLOCK, block)) == errno.EIO
        )
        assert errno_of(lambda: os.pwrite(descriptor, b"x", broken)) == errno.EIO
        assert os.pwrite(descriptor, b"x" * BLOCK, broken) == BLOCK
        assert os.pwrite(descriptor, b"y", broken + 5) == 1
        assert os.pread(descriptor, BLOCK, broken) == b"xxxxxy" + b"x" * (BLOCK - 6)
        assert errno_of(lambda: os.pread(descriptor, 2 * BLOCK, broken)) == errno.EIO
        os.close(descriptor)


@pytest.mark.parametrize("keep", [False, True])
def test_ended_by_a_signal_while_written_to(
    repository: Repository, tmp_path: Path, scratch: Path, keep: bool
) -> None:
    data = os.urandom(4 * MIB)
    add_point(repository, {"sda": data})
    options = ["--scratch", str(scratch), *(["--keep-scratch", "x"] if keep else [])]
    with mounted(repository, tmp_path / "mnt", *options) as mount:
        descriptor = os.open(disk_of(mount), os.O_RDWR)
        os.pwrite(descriptor, b"x" * MIB, 5)
        assert len(list(scratch.iterdir())) == 1
        mount.process.send_signal(signal.SIGTERM)
        wait_until(lambda: mount.process.poll() is not None)
        errno_of(lambda: os.close(descriptor))
    if not keep:
        assert list(scratch.iterdir()) == []
        return
    with mounted(repository, tmp_path / "mnt2", *options) as mount:
        assert disk_of(mount).read_bytes() == data[:5] + b"x" * MIB + data[MIB + 5 :]
