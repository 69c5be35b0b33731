"""Hundreds of damaged and forged file systems through real mounts and the commands: these stay up, no worker
exceeds its limits, and every failure is an error that says of what; also when workers are killed.

How many there are of each kind is IMAGES, or what the environment says:

    VMFS_HOSTILE_IMAGES=2000 pytest -s --timeout 0 tests/integration/test_mount_hostile.py

does it with 2,000 of each, which takes hours of processor time, and prints the figures.
"""

from __future__ import annotations

import errno
import os
import random
import re
import shutil
import tarfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

import pytest
from command_helpers import Done, Site, spawn
from hostile_disks import (
    KINDS,
    LONGEST,
    Calls,
    Pieces,
    Watch,
    content_of,
    damages,
    kill,
    memory_of,
    walk,
    workers,
    write_disk,
)
from hostile_images import small_tree
from mount_helpers import Mount, mounted, needs_fuse, needs_sfdisk, wait_until

from vmfs.volumes.files.client import Limits
from vmfs.volumes.files.pool import WORKERS

TOOLS = (
    *("mke2fs", "mkfs.xfs", "mkfs.btrfs", "mkntfs", "ntfs-3g", "mkfs.vfat", "mcopy", "mkfs.exfat"),
    *("mount.exfat-fuse", "losetup", "xorriso"),
)
pytestmark = [
    needs_fuse,
    needs_sfdisk,
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.usefixtures("untraced"),
    pytest.mark.skipif(not all(map(shutil.which, TOOLS)), reason="needs " + ", ".join(TOOLS)),
]
IMAGES = int(os.environ.get("VMFS_HOSTILE_IMAGES", "16"))
OF_EACH = 3
"""Damaged ones of each kind, where workers are killed as well."""
OF_A_POINT = 100
"""File systems of one point, at most."""
READ_EVERY = 5
"""Of so many of them the commands read one's files; the mount, and index, look at all."""
ALONE_EVERY = 5
"""Of so many of those, each by a command of its own."""
AT_ONCE = 3
"""Commands, each on a point of its own."""
WALKERS = 2
# What cannot be read; a name that is gone; a directory that is its own parent; what is not supported.
ALLOWED = {errno.EIO, errno.ENOENT, errno.ELOOP, errno.EOPNOTSUPP}
ERROR = re.compile(
    r"vmfs: (.*\bvda-p\d|\d+ extended attributes? of .* could not be kept there$"
    r"|\d+ files? could not be copied; \d+ files? copied$"
    r"|more files have problems; they are only counted from here on$"
    r"|.* is not written: there is nothing to put into it$)"
)
"""Each line names the volume that it is about, or sums up."""
NAMES = ["file", "sparse", *(f"dir/a longer name of a file {number}" for number in range(40))]


class Evil:
    """A repository whose VMs evil0, evil1… have a disk each: damaged file systems, and last a sound one."""

    def __init__(self, folder: Path) -> None:
        self.site = Site(folder)
        self.site.init()
        self.volumes: dict[str, list[str]] = {}
        """By VM: those that are damaged."""
        self.sound: dict[str, str] = {}
        small_tree(folder / "truth", links=False)
        self.truth = content_of(folder / "truth", NAMES)

    def add(self, damaged: Sequence[tuple[bytes, Pieces]], sound: bytes) -> str:
        """The name of the VM."""
        vm = f"evil{len(self.volumes)}"
        disk = self.site.root / "disk"
        write_disk(disk, [*damaged, (sound, {})])
        self.site.ingest(vm, f"vda={disk}")
        disk.unlink()
        self.volumes[vm] = [f"vda-p{number + 1}" for number in range(len(damaged))]
        self.sound[vm] = f"vda-p{len(damaged) + 1}"
        return vm

    def wrong(self, top: Path) -> list[str]:
        """Files of a sound file system that are not as they should be."""
        return [name for name, content in content_of(top, NAMES).items() if content != self.truth[name]]

    def wrong_in(self, archive: Path, vm: str) -> list[str]:
        with tarfile.open(archive) as opened:
            files = {name: opened.extractfile(f"{self.sound[vm]}/{name}") for name in NAMES}
            return [name for name, file in files.items() if not file or file.read() != self.truth[name]]


class Commands:
    """What the commands did; every one must end by itself, with errors that say of what. `whole`: what is
    sound must come out whole. `complaints` are what was not so."""

    def __init__(self, evil: Evil, *, whole: bool) -> None:
        self.done: Counter[str] = Counter()
        self.failures = 0
        self.complaints: list[str] = []
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._evil = evil
        self._whole = whole
        self._lock = threading.Lock()

    def run(self, command: str, *argv: object) -> Done:
        started = time.monotonic()
        site = self._evil.site
        words = [*command.split(), site.repository, *argv, *site.options()]
        ended = spawn("vmfs", *words, timeout=20 * LONGEST)
        done = Done(ended.returncode, ended.stdout.decode("latin-1"), ended.stderr.decode(errors="replace"))
        lines = done.err.splitlines()
        complaints = [line for line in lines if not ERROR.match(line) or "unexpected" in line]
        if done.status not in (0, 1) or (done.status and not lines):
            complaints.append(f"{words} ended with {done.status}")
        with self._lock:
            self.done[command] += 1
            self.seconds[command] += time.monotonic() - started
            self.failures += len(lines)
            self.complaints += complaints
        return done

    def all_of(self, vm: str, target: Path) -> None:
        """All commands on a VM's point: on all of its volumes, and those that read files on some."""
        point, evil = f"{vm}@latest", self._evil
        volumes = [*evil.volumes[vm][::READ_EVERY], evil.sound[vm]]
        target.mkdir()
        self.run("index", point)
        found = self.run("find", "--point", point, "file")
        self.run("tar", point, *(f"{volume}:/" for volume in volumes), "-o", target / "tar")
        self.run("cat", point, *(f"{volume}:/file" for volume in volumes))
        for number, volume in enumerate([*volumes[:-1:ALONE_EVERY], volumes[-1]]):
            self.run("ls -laR", point, f"{volume}:/")
            copied = self.run("cp -a", point, f"{volume}:/", target / f"copy {number}")
        if self._whole:
            assert evil.wrong_in(target / "tar", vm) + evil.wrong(target / f"copy {number}") == []
            assert f"{evil.sound[vm]}:/file" in found.out
            assert copied.status == 0
        shutil.rmtree(target)


@contextmanager
def walking(mount: Mount, evil: Evil, calls: Calls, counts: dict[Path, int]) -> Iterator[None]:
    """All damaged file systems, meanwhile. `counts` are the entries of each that is known to be one."""

    def one(path: Path) -> None:
        counts[path] = walk(path, calls)

    with calls.bounded(mount), ThreadPoolExecutor(WALKERS) as threads:
        paths = []
        for vm, volumes in evil.volumes.items():
            files = mount.path / vm / "latest" / "files"
            known = set(os.listdir(files))
            paths += [files / volume for volume in volumes if volume in known]
        jobs = [threads.submit(one, path) for path in paths]
        try:
            yield
        finally:
            for job in jobs:
                job.result()


def check(mount: Mount, watch: Watch, calls: Calls, commands: Commands) -> None:
    assert "Traceback" not in mount.log
    assert "unexpected" not in mount.log
    assert commands.complaints == []
    assert calls.errors.keys() <= ALLOWED, calls.errors
    assert 0 < watch.peak < Limits().memory
    assert watch.most_space <= Limits().memory
    # One that is at work is not ended for another's sake.
    assert max(watch.at_once.values()) <= WORKERS + WALKERS, watch.at_once


def listed(folder: Path) -> list[str]:
    """Nothing where that fails."""
    with suppress(OSError):
        return os.listdir(folder)
    return []


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_file_systems(tmp_path: Path, kind: str) -> None:
    (tmp_path / "image").mkdir()
    sound = KINDS[kind].make(tmp_path / "image").read_bytes()
    evil = Evil(tmp_path)
    started = time.monotonic()
    changes = damages(KINDS[kind], sound, IMAGES)
    while some := list(islice(changes, OF_A_POINT)):
        evil.add([(sound, pieces) for pieces in some], sound)
    calls, counts = Calls(), dict[Path, int]()
    commands = Commands(evil, whole=True)
    made = time.monotonic()
    with evil.site.open() as repository, mounted(repository, tmp_path / "mnt") as mount, Watch() as watch:
        with walking(mount, evil, calls, counts):
            with ThreadPoolExecutor(AT_ONCE) as threads:
                jobs = [threads.submit(commands.all_of, vm, tmp_path / vm) for vm in evil.volumes]
            for job in jobs:
                job.result()
        for vm in evil.volumes:
            assert evil.wrong(mount.path / vm / "latest" / "files" / evil.sound[vm]) == []
        assert mount.process.poll() is None
        seconds = time.monotonic() - made
        of_mount = memory_of(mount.process.pid)
    opened = sum(count >= 0 for count in counts.values())
    print(
        f"\n{kind}: {IMAGES} images, {len(counts)} known as file systems, {opened} opened, "
        f"{sum(max(count, 0) for count in counts.values())} entries; errors",
        {errno.errorcode[number]: count for number, count in calls.errors.items()},
        f"slowest call {calls.slowest[0]:.1f} s ({calls.slowest[1]}); commands {dict(commands.done)}, "
        f"{commands.failures} lines of errors; {len(watch.seen)} workers of at most {watch.peak >> 20} MiB "
        f"({watch.most_space >> 20} of address space), {max(watch.at_once.values())} at once; the mount "
        f"{of_mount >> 20} MiB; {seconds:.0f} s, {made - started:.0f} s to make them; commands",
        {command: round(seconds) for command, seconds in commands.seconds.items()},
    )
    check(mount, watch, calls, commands)
    # Else nothing was tested. What is damaged shows in a few of a hundred at least.
    assert opened > IMAGES // 4
    assert calls.errors or IMAGES < 100


def test_workers_killed_at_random(tmp_path: Path) -> None:
    """While the mount and the commands read sound and damaged file systems: they live on, each failure is an
    error, and when it is over all is as it was."""
    images = {}
    for kind in ("ext4", "xfs", "btrfs", "ntfs", "fat32"):
        (tmp_path / kind).mkdir()
        images[kind] = KINDS[kind].make(tmp_path / kind).read_bytes()
    evil = Evil(tmp_path)
    damaged = [
        (image, pieces)
        for kind, image in images.items()
        for pieces in [{}, *damages(KINDS[kind], image, OF_EACH)]
    ]
    vm = evil.add(damaged, images["ext4"])
    choice, over, killed = random.Random(1), threading.Event(), Counter[str]()  # noqa: S311

    def kill_some() -> None:
        while not over.wait(choice.random() * 0.3):
            found = workers()
            if found:
                worker, parent = choice.choice(found)
                whose = "mount" if parent == mount.process.pid else "command"
                killed[whose] += kill(worker)

    calls, counts = Calls(), dict[Path, int]()
    commands = Commands(evil, whole=False)
    with evil.site.open() as repository, mounted(repository, tmp_path / "mnt") as mount, Watch() as watch:
        killer = threading.Thread(target=kill_some)
        killer.start()
        try:
            with walking(mount, evil, calls, counts):
                commands.all_of(vm, tmp_path / vm)
        finally:
            over.set()
            killer.join()
        # A file system whose workers die again and again gets none for a minute.
        sound = mount.path / vm / "latest" / "files" / evil.sound[vm]
        wait_until(lambda: listed(sound), 90)
        assert evil.wrong(sound) == []
        assert mount.process.poll() is None
    check(mount, watch, calls, commands)
    assert killed["mount"] > 5, killed
    assert killed["command"] > 5, killed
    assert "ended by signal 9" in mount.log
    assert calls.errors[errno.EIO]
