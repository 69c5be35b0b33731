"""Real mounts, read through the kernel."""

from __future__ import annotations

import errno
import json
import mmap
import os
import random
import shutil
import signal
import stat
import subprocess
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from mount_helpers import (
    MIB,
    WHEN,
    add_point,
    damage,
    forget_content,
    mounted,
    needs_fuse,
    needs_sfdisk,
    partitioned,
    run,
    wait_until,
)

from vmfs.errors import UsageError
from vmfs.fs.mountpoint import check, unmount
from vmfs.repo import names
from vmfs.repo.repository import Repository

pytestmark = [needs_fuse, pytest.mark.root, pytest.mark.usefixtures("measured")]

TIME = "2026-11-20T100000Z"
HOUR = timedelta(hours=1)


def tree_of(top: Path) -> set[str]:
    return {str(path.relative_to(top)) for path in top.rglob("*")}


def errno_of(action: Callable[[], object]) -> int | None:
    try:
        action()
    except OSError as error:
        return error.errno
    return None


@needs_sfdisk
def test_what_is_to_be_seen(repository: Repository, tmp_path: Path) -> None:
    image = partitioned(tmp_path / "disk")
    hole = tmp_path / "hole"
    with hole.open("wb") as file:
        file.truncate(5 * MIB + 512)
        file.seek(MIB)
        file.write(os.urandom(MIB))
    point = add_point(repository, {"sda": image, "sdb": hole}, artifacts={"vm.ovf": b"<Envelope/>"})
    with mounted(repository, tmp_path / "mnt") as mount:
        top = mount.path / "web" / TIME
        assert tree_of(mount.path) == {
            "web",
            "web/latest",
            f"web/{TIME}",
            *(
                f"web/{TIME}/{name}"
                for name in (
                    "disks",
                    "disks/sda.raw",
                    "disks/sdb.raw",
                    "volumes",
                    "volumes/sda-p1.raw",
                    "volumes/sda-p2.raw",
                    "files",
                    "point.json",
                    "vm.ovf",
                )
            ),
        }
        assert os.readlink(mount.path / "web" / "latest") == TIME
        whole = image.read_bytes()
        latest = mount.path / "web" / "latest"
        assert (latest / "disks" / "sda.raw").read_bytes() == whole
        assert (latest / "disks" / "sdb.raw").read_bytes() == hole.read_bytes()
        assert (latest / "volumes" / "sda-p1.raw").read_bytes() == whole[MIB : 5 * MIB]
        assert (latest / "volumes" / "sda-p2.raw").read_bytes() == whole[5 * MIB : 13 * MIB]
        assert (latest / "vm.ovf").read_bytes() == b"<Envelope/>"
        assert json.loads((latest / "point.json").read_bytes())["id"] == point.id

        status = (top / "disks" / "sdb.raw").stat()
        assert stat.S_IMODE(status.st_mode) == 0o400
        assert stat.S_ISREG(status.st_mode)
        assert (status.st_uid, status.st_gid) == (os.getuid(), os.getgid())
        assert status.st_size == 5 * MIB + 512
        assert status.st_blocks == MIB // 512
        assert status.st_blksize == 128 << 10
        assert status.st_mtime_ns == int(WHEN.timestamp()) * 10**9 + 250_000_000
        assert stat.S_IMODE(top.stat().st_mode) == 0o500
        usage = os.statvfs(mount.path)
        assert usage.f_blocks * usage.f_frsize == (len(whole) + MIB) // 4096 * 4096
        assert usage.f_flag & os.ST_RDONLY
        table = Path("/proc/mounts").read_text().splitlines()
        info = next(line for line in table if str(mount.path) in line)
        assert info.startswith(f"vmfs:{repository.store.url} ")
        assert " fuse.vmfs ro,nosuid,nodev," in info
        assert "default_permissions" in info
        if os.path.exists("/sys/class/bdi"):
            device = os.stat(mount.path).st_dev
            bdi = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
            assert bdi.read_text() == "4096\n"
        inodes = {path: path.lstat().st_ino for path in mount.path.rglob("*")}
        assert len(set(inodes.values())) == len(inodes)
    (tmp_path / "mnt").rmdir()
    with mounted(repository, tmp_path / "mnt"):
        assert {path: path.lstat().st_ino for path in (tmp_path / "mnt").rglob("*")} == inodes


def test_nothing_can_be_changed(repository: Repository, tmp_path: Path) -> None:
    add_point(repository, {"sda": b"\1" * MIB})
    with mounted(repository, tmp_path / "mnt") as mount:
        disk = mount.path / "web" / TIME / "disks" / "sda.raw"
        for action in (
            lambda: os.open(disk, os.O_RDWR),
            lambda: os.open(disk, os.O_WRONLY | os.O_TRUNC),
            lambda: os.unlink(disk),
            lambda: os.mkdir(mount.path / "new"),
            lambda: os.rename(disk, disk.with_name("x")),
            lambda: os.chmod(disk, 0o777),
            lambda: os.utime(disk),
            lambda: os.truncate(disk, 5),
            lambda: os.symlink("x", mount.path / "x"),
            lambda: os.setxattr(disk, "user.x", b"y"),
        ):
            assert errno_of(action) == errno.EROFS
        # Nor when the kernel no longer stands in front of us.
        subprocess.run(["mount", "-i", "-o", "remount,rw", mount.path], check=False, capture_output=True)
        for action in (
            lambda: os.open(disk, os.O_RDWR),
            lambda: os.truncate(disk, 5),
            lambda: os.unlink(disk),
        ):
            assert errno_of(action) in (errno.EROFS, errno.ENOSYS)
        assert errno_of(lambda: os.getxattr(disk, "user.x")) == errno.EOPNOTSUPP
        assert errno_of(lambda: os.listxattr(disk)) == errno.EOPNOTSUPP
        assert disk.read_bytes() == b"\1" * MIB


def test_every_way_of_reading(repository: Repository, tmp_path: Path) -> None:
    """Buffered and direct, mapped, at random, from several threads: always the same bytes."""
    data = os.urandom(24 * MIB + 1536)
    data = data[: 4 * MIB] + bytes(4 * MIB) + data[8 * MIB :]
    add_point(repository, {"sda": data})
    with mounted(repository, tmp_path / "mnt") as mount:
        path = mount.path / "web" / "latest" / "disks" / "sda.raw"
        direct = os.open(path, os.O_RDONLY | os.O_DIRECT)
        buffer = mmap.mmap(-1, 2 * MIB)
        got = bytearray()
        while count := os.readv(direct, [buffer]):
            got += buffer[:count]
        assert got == data
        choice = random.Random(5)  # noqa: S311
        for _ in range(300):
            offset, length = choice.randrange(len(data) // 512) * 512, choice.choice((512, 4096, 65536, MIB))
            with memoryview(buffer) as view:
                count = os.preadv(direct, [view[:length]], offset)
            assert buffer[:count] == data[offset : offset + length]
        os.close(direct)
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            assert mapped[5_000_000:5_000_100] == data[5_000_000:5_000_100]
            assert mapped[-100:] == data[-100:]
            assert mapped[:] == data
        failures: list[object] = []

        def reader(seed: int) -> None:
            mine = random.Random(seed)  # noqa: S311
            descriptor = os.open(path, os.O_RDONLY | (os.O_DIRECT if seed % 2 else 0))
            with mmap.mmap(-1, MIB) as space, memoryview(space) as view:
                for _ in range(40):
                    at = mine.randrange(len(data) // 4096) * 4096
                    size = mine.choice((4096, 128 << 10, MIB))
                    found = os.preadv(descriptor, [view[:size]], at)
                    if space[:found] != data[at : at + size]:
                        failures.append((seed, at, size))
            os.close(descriptor)

        threads = [threading.Thread(target=reader, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []


def test_new_points_appear_by_themselves(repository: Repository, tmp_path: Path) -> None:
    add_point(repository, {"sda": b"\1" * MIB})
    with mounted(repository, tmp_path / "mnt") as mount:
        top = mount.path / "web"
        later = "2026-11-20T110000Z"
        assert not (top / later).exists()
        assert not (mount.path / "db").exists()
        assert os.listdir(mount.path) == ["web"]
        point = add_point(repository, {"sda": b"\2" * MIB}, time=WHEN + HOUR)
        add_point(repository, {"sda": b"\3" * MIB}, vm="db")
        wait_until((top / later).exists, seconds=30)
        assert os.readlink(top / "latest") == later
        assert (top / "latest" / "disks" / "sda.raw").read_bytes() == b"\2" * MIB
        assert (mount.path / "db" / TIME / "disks" / "sda.raw").read_bytes() == b"\3" * MIB
        assert sorted(os.listdir(mount.path)) == ["db", "web"]
        # And go: what prune will do.
        repository.store.delete(names.point(point.id))
        wait_until(lambda: os.listdir(top) == [TIME, "latest"], seconds=10)
        wait_until(lambda: not (top / later).exists(), seconds=10)
        assert os.readlink(top / "latest") == TIME


def test_damaged_manifests(repository: Repository, tmp_path: Path) -> None:
    bad = add_point(repository, {"sda": b"\1" * MIB})
    worse = add_point(repository, {"sda": b"\3" * MIB}, vm="db")
    add_point(repository, {"sda": b"\2" * MIB}, time=WHEN + HOUR)
    damage(repository, names.point(worse.id))
    with mounted(repository, tmp_path / "mnt") as mount:
        damage(repository, names.point(bad.id))
        assert sorted(os.listdir(mount.path)) == ["damaged", "web"]
        for place in (mount.path / "web" / TIME, mount.path / "damaged" / worse.id):
            assert place.is_dir()
            for _ in range(3):
                assert errno_of(lambda place=place: os.listdir(place)) == errno.EIO
                assert errno_of((place / "disks").stat) == errno.EIO
        assert (mount.path / "web" / "latest" / "disks" / "sda.raw").read_bytes() == b"\2" * MIB
        for point in (bad, worse):
            assert (
                len([line for line in mount.log.splitlines() if point.id in line and "authent" in line]) <= 2
            )
            assert names.point(point.id) in mount.log


def test_a_bad_chunk_is_an_error_of_its_range_only(repository: Repository, tmp_path: Path) -> None:
    data = os.urandom(8 * MIB)
    size = repository.chunk_size
    point = add_point(repository, {"sda": data, "sdb": os.urandom(MIB)})
    bad = 50
    blob_id = repository.open_disk(point.manifest.disks[0]).chunk_ids(bad, 1)[0]
    assert blob_id is not None
    location = repository.index.find(blob_id)
    assert location is not None
    damage(repository, names.pack(location.pack), location.offset + 300)
    with mounted(repository, tmp_path / "mnt") as mount:
        disk = mount.path / "web" / "latest" / "disks" / "sda.raw"
        for flags in (os.O_DIRECT, 0):
            for sequential in (True, False):
                descriptor = os.open(disk, os.O_RDONLY | flags)
                chunks = list(range(len(data) // size))
                if not sequential:
                    random.Random(1).shuffle(chunks)  # noqa: S311
                with mmap.mmap(-1, size) as space:
                    for number in chunks:
                        at = number * size
                        if number == bad:
                            for part in range(0, size, 16 << 10):
                                with memoryview(space) as view:
                                    action = lambda: os.preadv(descriptor, [view[: 16 << 10]], at + part)  # noqa: B023, E731
                                    assert errno_of(action) == errno.EIO
                        else:
                            assert os.preadv(descriptor, [space], at) == size
                            assert space[:] == data[at : at + size]
                os.close(descriptor)
                forget_content(disk)
        assert len((mount.path / "web" / "latest" / "disks" / "sdb.raw").read_bytes()) == MIB
        lines = [line for line in mount.log.splitlines() if "disk sda" in line]
        assert len(lines) == 1
        assert f"point {point.id}, disk sda: disk bytes from {bad * size}: " in lines[0]
        assert names.pack(location.pack) in lines[0]
    assert mount.process.returncode == 0


def test_owner_and_others(repository: Repository, tmp_path: Path) -> None:
    add_point(repository, {"sda": b"\1" * MIB})
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if parent != Path("/") and parent.owner() == "root" and parent.stat().st_mode & 0o005 != 0o005:
            parent.chmod(0o755)
    for number, (options, mode, nobody_reads) in enumerate(
        (
            ((), 0o400, False),
            (("--uid", "65534", "--gid", "65534"), 0o400, True),
            (("--allow-other",), 0o444, True),
        )
    ):
        with mounted(repository, tmp_path / f"mnt{number}", *options) as mount:
            disk = mount.path / "web" / TIME / "disks" / "sda.raw"
            assert stat.S_IMODE(disk.stat().st_mode) == mode
            assert (disk.stat().st_uid == 65534) == (options[:1] == ("--uid",))
            as_nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
            assert (run(*as_nobody, "head", "-c1", disk).returncode == 0) == nobody_reads


def test_mount_is_small_and_cleans_up(repository: Repository, tmp_path: Path) -> None:
    add_point(repository, {"sda": os.urandom(8 * MIB)})
    with mounted(repository, tmp_path / "mnt") as mount:
        (mount.path / "web" / "latest" / "disks" / "sda.raw").read_bytes()
        assert len(list(repository.store.list(names.LEASES))) == 1
        status = Path(f"/proc/{mount.process.pid}/status").read_text()
        resident = int(status.split("VmRSS:")[1].split()[0])
        assert resident < 200 << 10
        children = run("ps", "-o", "pid=", "--ppid", str(mount.process.pid)).stdout.split()
        assert children
    assert list(repository.store.list(names.LEASES)) == []
    assert not any(Path(f"/proc/{child}").exists() for child in children)


def test_read_only_repository(repository: Repository, tmp_path: Path) -> None:
    add_point(repository, {"sda": b"\1" * MIB})
    store = Path(repository.store.url)
    subprocess.run(["mount", "--bind", store, store], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", store], check=True)
    try:
        with mounted(repository, tmp_path / "mnt") as mount:
            assert (mount.path / "web" / "latest" / "disks" / "sda.raw").read_bytes() == b"\1" * MIB
            assert "without a lease" in mount.log
    finally:
        subprocess.run(["umount", store], check=True)


def test_signals_end_the_mount(repository: Repository, tmp_path: Path) -> None:
    add_point(repository, {"sda": os.urandom(4 * MIB)})
    for number, name in enumerate(("TERM", "INT", "HUP")):
        with mounted(repository, tmp_path / f"mnt{number}") as mount:
            # Even while a file is open.
            with (mount.path / "web" / "latest" / "disks" / "sda.raw").open("rb") as file:
                file.read(100)
                run("kill", f"-{name}", str(mount.process.pid))
                assert mount.process.wait(20) == 0
            assert not os.path.ismount(mount.path)
            assert f"SIG{name}: ending the mount" in mount.log
        assert list(repository.store.list(names.LEASES)) == []


def test_readers_are_let_go_when_the_mount_dies(repository: Repository, tmp_path: Path) -> None:
    """The process is killed: what it leaves behind can be unmounted, and says so."""
    add_point(repository, {"sda": os.urandom(4 * MIB)})
    with mounted(repository, tmp_path / "mnt", status=-signal.SIGKILL) as mount:
        mount.process.kill()
        mount.process.wait()
        assert errno_of(lambda: os.listdir(mount.path)) == errno.ENOTCONN
        with pytest.raises(UsageError, match="already mounted"):
            check(mount.path, [])
        unmount(mount.path)
        assert os.listdir(mount.path) == []


def make_file_system(image: Path, command: list[str], offset: int, size: int) -> dict[str, bytes]:
    """A file system with files, put at `offset` of the image; the files."""
    files = {f"file{number}": os.urandom(number * 7777) for number in range(20)}
    source = image.with_suffix(".files")
    source.mkdir()
    for name, content in files.items():
        (source / name).write_bytes(content)
    part = image.with_suffix(".part")
    with part.open("wb") as file:
        file.truncate(size)
    environment = {**os.environ, "TEST_DIR": "1", "TEST_DEV": "1", "QA_CHECK_FS": "1"}
    subprocess.run([*command, part], check=True, capture_output=True, env=environment)
    place = image.with_suffix(".mnt")
    place.mkdir()
    subprocess.run(["mount", "-o", "loop", part, place], check=True)
    try:
        shutil.copytree(source, place, dirs_exist_ok=True)
    finally:
        subprocess.run(["umount", place], check=True)
    subprocess.run(
        ["dd", f"if={part}", f"of={image}", "bs=1M", f"seek={offset // MIB}", "conv=notrunc"],
        check=True,
        capture_output=True,
    )
    return files


@needs_sfdisk
@pytest.mark.parametrize(
    ("command", "options"),
    [(["mkfs.ext4", "-q", "-F"], "noload"), (["mkfs.xfs", "-q", "-f"], "norecovery,nouuid")],
    ids=["ext4", "xfs"],
)
def test_loop_mounts(repository: Repository, tmp_path: Path, command: list[str], options: str) -> None:
    """A guest's file system, mounted by the kernel from its volume, and from the disk with an offset."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"needs {command[0]}")
    image = tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(40 * MIB)
    run("sfdisk", "-q", "--no-reread", image, input="label: gpt\nsize=4M\nsize=32M\n")
    files = make_file_system(image, command, 5 * MIB, 32 * MIB)
    add_point(repository, {"sda": image})
    place = tmp_path / "guest"
    place.mkdir()
    with mounted(repository, tmp_path / "mnt") as mount:
        point = mount.path / "web" / "latest"
        for source, extra in (
            (point / "volumes" / "sda-p2.raw", ""),
            (point / "disks" / "sda.raw", f",offset={5 * MIB},sizelimit={32 * MIB}"),
        ):
            done = run("mount", "-o", f"ro,loop,{options}{extra}", source, place)
            assert done.returncode == 0, done.stderr
            try:
                found = {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()}
                assert found == files
                busy = run("umount", mount.path)
                assert busy.returncode != 0
            finally:
                run("umount", place)
        loop = run(
            "losetup", "--show", "-f", "-r", "--direct-io=on", point / "disks" / "sda.raw"
        ).stdout.strip()
        try:
            assert run("cmp", loop, image).returncode == 0
        finally:
            run("losetup", "-d", loop)
        wait_until(lambda: str(mount.path) not in run("losetup", "-a").stdout)


def test_mount_survives_whatever_is_asked_of_it(repository: Repository, tmp_path: Path) -> None:
    add_point(repository, {"sda": b"\1" * MIB})
    with mounted(repository, tmp_path / "mnt") as mount:
        disk = mount.path / "web" / TIME / "disks" / "sda.raw"
        descriptor = os.open(disk, os.O_RDONLY)
        assert errno_of(lambda: os.fsync(descriptor)) in (None, errno.EINVAL)
        assert os.pread(descriptor, 10, 10 * MIB) == b""
        assert os.lseek(descriptor, 0, os.SEEK_DATA) == 0
        os.close(descriptor)
        assert errno_of(lambda: os.mkfifo(mount.path / "x")) == errno.EROFS
        assert errno_of(lambda: os.stat(mount.path / ("x" * 300))) == errno.ENAMETOOLONG
        assert errno_of(lambda: os.stat(mount.path / "x\n")) == errno.ENOENT
        assert errno_of(lambda: os.listdir(disk)) == errno.ENOTDIR
        assert run("find", mount.path, "-newer", disk).returncode == 0
        assert run("tar", "-C", mount.path, "-cf", "/dev/null", ".").returncode == 0
        assert run("cp", "-a", mount.path / "web" / TIME, tmp_path / "copy").returncode == 0
        assert (tmp_path / "copy" / "disks" / "sda.raw").read_bytes() == b"\1" * MIB
        assert "unexpected" not in mount.log
