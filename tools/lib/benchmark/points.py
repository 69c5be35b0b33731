"""Repositories with many restore points of one large disk: what a mount of them costs."""

from __future__ import annotations

import os
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

from vmfs.format.keys import Kind
from vmfs.format.manifest import Disk, Manifest, Vm
from vmfs.repo.diskmap import EMPTY, Map
from vmfs.repo.repository import Repository
from vmfs.repo.secret import Passphrase
from vmfs.store import open_store

from .contenders import PASSPHRASE, Borg, Restic, Vmfs
from .process import BenchError, Mount, output, peak_rss, run, say
from .results import Results

TIB = 1 << 40
DISK_SIZE = 64 * TIB
FIRST_TIME = datetime(2026, 1, 1, tzinfo=UTC)
CHANGES_A_POINT = 4
SAMPLE = 20
"""Points whose first byte is read; the slowest counts."""


def make_points(repository: Path, count: int) -> None:
    """Give a repository, which must be there, `count` points of a VM `large`, each a few chunks of its disk
    after the one before."""
    places = random.Random("points")  # noqa: S311 - repeatable is what is wanted
    with Repository.open(open_store(str(repository)), Passphrase(PASSPHRASE.encode())) as opened:
        chunks = DISK_SIZE // opened.chunk_size
        before = EMPTY
        parent = None
        with opened.write_session() as session:
            for number in range(count):
                writer = session.map_writer(DISK_SIZE, before)
                # The first chunk always, where a partition table is; and some anywhere.
                changed = {0, *(places.randrange(chunks) for _ in range(CHANGES_A_POINT))}
                for index in sorted(changed):
                    content = f"point {number}, chunk {index}. ".encode().ljust(64, b".")
                    plain = content * (opened.chunk_size // 64)
                    writer.set(index, session.store_blob(Kind.DATA, plain).id)
                written = writer.finish()
                before = Map(written.root, written.size, written.allocated)
                disk = Disk(
                    id="disk",
                    alias="disk",
                    size=DISK_SIZE,
                    root=written.root,
                    allocated=written.allocated,
                    mode="incremental" if parent else "full",
                )
                manifest = Manifest(
                    vm=Vm(name="large", id="large"),
                    time=FIRST_TIME + timedelta(minutes=number),
                    consistency="crash",
                    disks=(disk,),
                    parent=parent,
                    producer="benchmark",
                )
                parent = session.commit(manifest)
                if (number + 1) % 1000 == 0:
                    say(f"made {number + 1:,} points")


def measure_vmfs(contender: Vmfs, results: Results, count: int, rounds: int) -> None:
    """Mount a repository of `count` points; list it, and read from it."""
    name = f"{count:,} points"
    contender.create()
    say(f"making {name} of a disk of 64 TiB")
    environment = {**os.environ, **contender.env, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "benchmark.points", str(contender.repository), str(count)]
    run(command, environment, contender.log)
    output(["rm", "-rf", contender.folder / "cache"])
    for number in range(rounds + 1):
        mount, _ = contender.mount(contender.folder)
        try:
            first = ": first mount" if number == 0 else ": mount"
            results.add(f"{name}{first}", contender.name, mount.seconds)
            begin = time.monotonic()
            listed = sorted(os.listdir(mount.mountpoint / "large"))
            results.add(f"{name}: listing", contender.name, time.monotonic() - begin)
            if len(listed) != count + 1:  # and `latest`
                raise BenchError(f"{count} points were made, and {len(listed) - 1} are listed")
            took = max(_first_byte(mount, point) for point in listed[:: max(1, count // SAMPLE)])
            results.add(f"{name}: first byte", contender.name, took)
            _list_all(mount.mountpoint)
            results.add(f"{name}: memory", contender.name, peak_rss(mount.pid))
        finally:
            mount.close()
        begin = time.monotonic()
        contender.points()
        results.add(f"{name}: points", contender.name, time.monotonic() - begin)


def _first_byte(mount: Mount, point: str) -> float:
    """Seconds from the end of open to the first byte of a disk."""
    fd = os.open(mount.mountpoint / "large" / point / "disks" / "disk.raw", os.O_RDONLY)
    try:
        begin = time.monotonic()
        if os.pread(fd, 5, 0) != b"point":
            raise BenchError(f"{point}: its disk does not begin with what was written")
        return time.monotonic() - begin
    finally:
        os.close(fd)


def _list_all(mountpoint: Path) -> None:
    """As `find -ls` does: every folder, every file's attributes."""
    for folder, _, names in os.walk(mountpoint):
        for name in names:
            os.lstat(os.path.join(folder, name))


def measure_restic(contender: Restic, results: Results, count: int, rounds: int) -> None:
    """The same for restic: `count` snapshots of a small file."""
    name = f"{count:,} points"
    contender.create()
    file = contender.folder / "small"
    file.write_bytes(os.urandom(1 << 20))
    say(f"restic: making {name}")
    # Its snapshots may be taken side by side, which borg's may not.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for cost in pool.map(lambda _: contender.ingest(file), range(count)):
            if cost.seconds > 60:
                raise BenchError("restic takes too long for so many points")
    for _ in range(rounds):
        mount, path = contender.mount(file)
        try:
            results.add(f"{name}: mount", contender.name, mount.seconds)
            begin = time.monotonic()
            listed = os.listdir(mount.mountpoint / "snapshots")
            results.add(f"{name}: listing", contender.name, time.monotonic() - begin)
            if len(listed) < count:
                raise BenchError(f"restic lists {len(listed)} of {count} snapshots")
            with path.open("rb") as opened:
                begin = time.monotonic()
                opened.read(1)
                results.add(f"{name}: first byte", contender.name, time.monotonic() - begin)
            results.add(f"{name}: memory", contender.name, peak_rss(mount.pid))
        finally:
            mount.close()


def measure_borg(contender: Borg, results: Results, count: int, rounds: int) -> None:
    """The same for borg: `count` archives of a small file. Making them takes a second each."""
    name = f"{count:,} points"
    contender.create()
    file = contender.folder / "small"
    file.write_bytes(os.urandom(1 << 20))
    say(f"borg: making {name}")
    for _ in range(count):
        contender.ingest(file)
    for _ in range(rounds):
        mount = contender.mount_all()
        try:
            results.add(f"{name}: mount", contender.name, mount.seconds)
            begin = time.monotonic()
            listed = os.listdir(mount.mountpoint)
            results.add(f"{name}: listing", contender.name, time.monotonic() - begin)
            if len(listed) < count:
                raise BenchError(f"borg lists {len(listed)} of {count} archives")
            begin = time.monotonic()
            with (mount.mountpoint / listed[0] / str(file).lstrip("/")).open("rb") as opened:
                opened.read(1)
            results.add(f"{name}: first byte", contender.name, time.monotonic() - begin)
            results.add(f"{name}: memory", contender.name, peak_rss(mount.pid))
        finally:
            mount.close()


if __name__ == "__main__":
    make_points(Path(sys.argv[1]), int(sys.argv[2]))
