"""Restore points to mount, and real mounts of them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from command_helpers import program
from conftest import SECRET

from ingest.pipeline import PlannedDisk, ingest
from ingest.sources.file import FileSource
from vmfs.format.manifest import Vm
from vmfs.fs.mountpoint import mounted_at
from vmfs.repo.repository import Point, Repository

MIB = 1 << 20
WHEN = datetime(2026, 11, 20, 10, 0, 0, 250_000, tzinfo=UTC)
VMFS = Path(program("vmfs"))

can_mount = os.geteuid() == 0 and os.path.exists("/dev/fuse") and shutil.which("fusermount3") is not None
needs_fuse = pytest.mark.skipif(not can_mount, reason="needs root and FUSE")
needs_sfdisk = pytest.mark.skipif(shutil.which("sfdisk") is None, reason="needs sfdisk")


def add_point(
    repository: Repository,
    disks: Mapping[str, bytes | Path],
    *,
    vm: str = "web",
    time: datetime = WHEN,
    artifacts: Mapping[str, bytes] | None = None,
    vm_id: str | None = None,
) -> Point:
    """Back up those disks, in full."""
    planned = []
    scratch = repository.cache_dir.parent / "images"
    scratch.mkdir(exist_ok=True)
    for alias, content in disks.items():
        if isinstance(content, bytes):
            path = scratch / f"{len(os.listdir(scratch))}.img"
            path.write_bytes(content)
        else:
            path = content
        planned.append(PlannedDisk(alias, FileSource(path)))
    try:
        return ingest(repository, Vm(name=vm, id=vm_id or vm), planned, time=time, artifacts=artifacts)
    finally:
        for disk in planned:
            disk.source.close()


def partitioned(path: Path, size: int = 16 * MIB, script: str = "label: gpt\nsize=4M\nsize=8M\n") -> Path:
    """A disk image with a partition table, and noise everywhere else."""
    noise = os.urandom(MIB)
    path.write_bytes(noise * (size // MIB))
    subprocess.run(
        ["sfdisk", "-q", "--no-reread", "--wipe=always", path], input=script.encode(), check=True, timeout=60
    )
    return path


def damage(repository: Repository, name: str, at: int = -40) -> None:
    """Flip a bit of an object of a local store."""
    path = Path(repository.store.url) / name
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def command(repository: Repository, *words: str | Path) -> list[str]:
    """A vmfs command line that can open the repository; `words` begins with the command's name."""
    secret = repository.cache_dir.parent / "passphrase"
    secret.write_bytes(SECRET.secret)
    name, *rest = (str(word) for word in words)
    options = ["--passphrase-file", str(secret), "--cache-dir", str(repository.cache_dir.parent)]
    return [str(VMFS), name, *options, *rest]


def run(*words: str | Path, timeout: float = 60, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        **options,  # type: ignore[call-overload]
    )


class Mount:
    """A mount in a process of its own, in the foreground. `log` is what it said so far."""

    def __init__(self, process: subprocess.Popen[bytes], path: Path, log_file: Path) -> None:
        self.process = process
        self.path = path
        self._log_file = log_file

    @property
    def log(self) -> str:
        return self._log_file.read_text()

    def end(self) -> int:
        """Unmount; the exit status of the process."""
        if self.process.poll() is None:
            subprocess.run(["umount", "-l", self.path], check=False, capture_output=True)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.send_signal(signal.SIGABRT)
                self.process.wait()
        return self.process.returncode


@contextmanager
def mounted(repository: Repository, path: Path, *options: str, status: int = 0) -> Iterator[Mount]:
    """The repository mounted at a new directory `path`; `status` is how the mount's process must end."""
    path.mkdir()
    log_file = path.with_name(path.name + ".log")
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            command(repository, "mount", "-f", "-v", *options, repository.store.url, path), stderr=log
        )
    mount = Mount(process, path, log_file)
    try:
        wait_until(lambda: "ready" in mount.log or process.poll() is not None)
        assert process.poll() is None, mount.log
        yield mount
    finally:
        ended = mount.end()
    assert ended == status, mount.log


def mount_loop(image: Path, place: Path, *options: str) -> None:
    """Two that look for a free loop device at the same time may find the same one."""
    for left in reversed(range(5)):
        words = ["mount", "-o", ",".join(("loop", *options)), str(image), str(place)]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode == 0:
            return
        assert left, done.stderr
        assert "already mounted or mount point busy" in done.stderr
        time.sleep(0.1)


def forget_content(path: Path) -> None:
    """Have the kernel ask for the file's content again."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def wait_until(condition: Callable[[], object], seconds: float = 30) -> None:
    """Wait for what only the passing of time or another process can bring."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def is_mounted(path: Path) -> bool:
    return mounted_at(path) is not None
