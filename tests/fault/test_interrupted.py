"""Ingests that end before they are done: by Ctrl-C or SIGTERM, by a full or read-only file system, by a disk
that cannot be read to its end. Nothing is committed, nothing durable lost, and the next one goes on there."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from command_helpers import program
from conftest import SECRET
from fault_helpers import (
    CHUNK,
    back_up,
    check_points,
    check_sound,
    create_at,
    fails_clearly,
    needs_root,
    noise_chunk,
    open_at,
    stored_twice,
    temporary_files,
    write_disk,
)
from fault_process_helpers import Zygote
from mount_helpers import wait_until

from ingest.memory import Memory
from ingest.pipeline import PlannedDisk, Progress, ingest
from ingest.sources.base import Extent, SourceError, SourceReader
from ingest.sources.file import FileSource
from vmfs.errors import StoreError
from vmfs.format import pack
from vmfs.format.manifest import Vm
from vmfs.repo import names
from vmfs.repo.repository import Repository
from vmfs.store import LocalStore

pytest_plugins = "fault_fixtures"

MIB = 1 << 20


def noise(chunks: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(chunks * CHUNK)  # noqa: S311


def passphrase(place: Path) -> list[str]:
    path = place / "passphrase"
    path.write_bytes(SECRET.secret)
    return ["--passphrase-file", str(path)]


@contextmanager
def mounted(*arguments: str | Path) -> Iterator[None]:
    """`mount` with these arguments, the last of which is the mountpoint."""
    subprocess.run(["mount", *arguments], check=True)
    try:
        yield
    finally:
        # A store keeps the last files that it read from open.
        subprocess.run(["umount", "--lazy", arguments[-1]], check=True)


@pytest.mark.parametrize(
    ("number", "status", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
    ids=["SIGINT", "SIGTERM"],
)
def test_a_signal(place: Path, number: signal.Signals, status: int, word: str) -> None:
    """Through the installed program, once its first packs of 64 MiB are stored."""
    with create_at(place / "repository", place / "cache", chunk_size=256 << 10) as repository:
        first = noise(8, 1)
        point = back_up(repository, "vm", {"disk": write_disk(place / "disk.raw", first)})
    disk = place / "disk.raw"
    body = noise(4, 2)
    with disk.open("wb") as file:
        # Every chunk differs from the others by its first bytes.
        for chunk in range(640 * MIB // len(body)):
            file.write(chunk.to_bytes(8, "big") + body[8:])
    command = [
        program("vmfs-ingest"),
        "image",
        place / "repository",
        "--vm",
        "vm",
        disk,
        *passphrase(place),
        "--json",
    ]
    command += ["--cache-dir", place / "cache"]

    def packs() -> int:
        return len(list((place / "repository" / names.PACKS).rglob("?" * 64)))

    before = packs()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: packs() > before, seconds=60)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (status, "")
    assert err == f"vmfs-ingest: {word}\n"
    assert not temporary_files(place / "repository")
    with open_at(place / "repository", place / "cache") as repository:
        check_points(repository, {point.id: {"disk": first}})
        check_sound(repository)
        assert not list(repository.store.list(names.LEASES))
        durable = sum(size for _, size in repository.store.list(names.PACKS))
        assert durable > 64 * MIB
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    with open_at(place / "repository", place / "cache") as repository:
        assert not stored_twice(repository)
        second = max(repository.point_ids())
        (taken,) = repository.load_point(second).manifest.disks
        assert taken.bytes_stored < 640 * MIB - 63 * MIB
        reader = repository.open_disk(taken)
        with disk.open("rb") as file:
            for start in range(0, taken.size, 8 * MIB):
                assert reader.read(start, 8 * MIB) == file.read(8 * MIB)


@needs_root
@pytest.mark.root
def test_a_full_file_system(place: Path) -> None:
    (place / "full").mkdir()
    with mounted("-t", "tmpfs", "-o", "size=12m", "tmpfs", place / "full"), Zygote(place, MIB) as zygote:
        root = place / "full" / "repository"
        with create_at(root, place / "cache") as repository:
            first = noise(16, 1)
            point = back_up(repository, "vm", {"disk": write_disk(place / "disk.raw", first)})
        second = noise(16 * 20, 2)
        write_disk(place / "disk.raw", second)
        command = ["image", root, "--vm", "vm", place / "disk.raw", *passphrase(place)]
        for _ in range(2):
            status, text = zygote.run("vmfs-ingest", *command)
            assert status == 1
            assert "no space left; free some and run again: what was stored already is kept" in text
            assert "Traceback" not in text
            assert not temporary_files(root)
            with open_at(root, place / "cache") as repository:
                check_points(repository, {point.id: {"disk": first}})
                check_sound(repository)
                assert not stored_twice(repository)
        subprocess.run(["mount", "-o", "remount,size=64m", place / "full"], check=True)
        status, text = zygote.run("vmfs-ingest", *command)
        assert status == 0, text
        with open_at(root, place / "cache") as repository:
            new = max(repository.point_ids())
            check_points(repository, {point.id: {"disk": first}, new: {"disk": second}})
            check_sound(repository)
            assert not stored_twice(repository)
            assert not list(repository.store.list(names.LEASES))


@needs_root
@pytest.mark.root
def test_not_even_room_for_the_index(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is durable when the disk is full to the last byte is found once there is room."""
    monkeypatch.setattr(pack, "TARGET_SIZE", 4 * CHUNK)
    (place / "full").mkdir()
    with mounted("-t", "tmpfs", "-o", "size=8m", "tmpfs", place / "full"):
        root = place / "full" / "repository"
        create_at(root, place / "cache").close()
        disk = write_disk(place / "disk.raw", content := noise(16 * 12, 2))

        class Hog(LocalStore):
            """As soon as there is no room for one object, there is none for any: another program takes it."""

            def put(self, name: str, parts: Any) -> None:
                try:
                    super().put(name, parts)
                except StoreError:
                    with (place / "full" / "hog").open("ab", buffering=0) as hog:
                        for size in (CHUNK, 4096):
                            while fits(hog, size):
                                pass
                    raise

        repository = Repository.open(Hog(root), SECRET, cache_root=place / "cache")
        with repository:
            error = fails_clearly(lambda: back_up(repository, "vm", {"disk": disk}))
        assert "no space left" in str(error)
        assert list(root.glob("packs/*/*"))
        assert not list(root.glob("index/*"))
        (place / "full" / "hog").unlink()
        subprocess.run(["mount", "-o", "remount,size=64m", place / "full"], check=True)
        with open_at(root, place / "cache") as repository:
            point = back_up(repository, "vm", {"disk": disk})
            check_points(repository, {point.id: {"disk": content}})
            check_sound(repository)
            assert not stored_twice(repository)


def fits(file: Any, size: int) -> bool:
    try:
        return bool(file.write(bytes(size)))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return False


@needs_root
@pytest.mark.root
def test_a_cache_on_a_full_file_system(place: Path) -> None:
    (place / "full").mkdir()
    with create_at(place / "repository", place / "cache") as repository:
        content = noise(8, 1)
        point = back_up(repository, "vm", {"disk": write_disk(place / "disk.raw", content)})
    with (
        mounted("-t", "tmpfs", "-o", "size=64k", "tmpfs", place / "full"),
        Zygote(place, MIB) as zygote,
    ):
        with (place / "full" / "hog").open("wb", buffering=0) as hog:
            while fits(hog, 4096):
                pass
        status, text = zygote.run(
            "vmfs", "verify", place / "repository", *passphrase(place), "--cache-dir", place / "full"
        )
        assert status == 1
        assert len(text.splitlines()) == 1
        assert "--cache-dir" in text
    with open_at(place / "repository", place / "cache") as repository:
        check_points(repository, {point.id: {"disk": content}})


@needs_root
@pytest.mark.root
def test_a_read_only_file_system(place: Path) -> None:
    root = place / "repository"
    with create_at(root, place / "cache") as repository:
        content = noise(8, 1)
        point = back_up(repository, "vm", {"disk": write_disk(place / "disk.raw", content)})
    objects = sorted(root.rglob("*"))
    with mounted("--bind", root, root), Zygote(place, MIB) as zygote:
        subprocess.run(["mount", "-o", "remount,bind,ro", root], check=True)
        write_disk(place / "disk.raw", noise(8, 2))
        status, text = zygote.run(
            "vmfs-ingest", "image", root, "--vm", "vm", place / "disk.raw", *passphrase(place)
        )
        assert status == 1
        assert "read-only; mount it writable" in text
        assert len(text.splitlines()) == 1
        # Reading needs no writing.
        status, text = zygote.run("vmfs", "verify", root, "--data", *passphrase(place))
        assert (status, "all sound" in text) == (0, True)
        with open_at(root, place / "cache") as repository:
            check_points(repository, {point.id: {"disk": content}})
        status, text = zygote.run("vmfs", "init", root / "other", *passphrase(place))
        assert status == 1
        assert len(text.splitlines()) == 1
    assert sorted(root.rglob("*")) == objects


class FailingSource:
    """A disk on failing hardware: a file of which the bytes from `fails_at` on cannot be read."""

    def __init__(self, path: Path, fails_at: int) -> None:
        self._file = FileSource(path)
        self._fails_at = fails_at
        self.name = self._file.name
        self.size = self._file.size
        self.block_size = self._file.block_size

    def extents(self) -> Iterator[Extent]:
        return self._file.extents()

    def dirty_extents(self) -> None:
        return None

    def reader(self, memory: Memory) -> SourceReader:
        return FailingReader(self._file.reader(memory), self.name, self._fails_at)

    def close(self) -> None:
        self._file.close()


class FailingReader:
    def __init__(self, inner: SourceReader, name: str, fails_at: int) -> None:
        self._inner = inner
        self._name = name
        self._fails_at = fails_at

    def readinto(self, offset: int, buffer: memoryview) -> None:
        if offset + len(buffer) > self._fails_at:
            raise SourceError(f"disk {self._name}: read error at byte {offset}")
        self._inner.readinto(offset, buffer)

    def close(self) -> None:
        self._inner.close()


@pytest.mark.parametrize("fails_at", [0, 5 * MIB, 23 * MIB])
def test_a_disk_that_cannot_be_read_to_its_end(
    place: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    monkeypatch.setattr(pack, "TARGET_SIZE", MIB)
    content = noise(16 * 24, 1)
    disk = write_disk(place / "disk.raw", content)
    with create_at(place / "repository", place / "cache") as repository:
        sound = FileSource(write_disk(place / "other.raw", noise_chunk(3)))
        failing = FailingSource(disk, fails_at)
        planned = [PlannedDisk("other", sound), PlannedDisk("disk", failing)]
        threads = threading.active_count()
        with pytest.raises(SourceError, match="read error at byte"):
            ingest(repository, Vm(name="vm", id="vm"), planned, workers=2)
        assert threading.active_count() == threads
        sound.close()
        failing.close()
        assert not repository.point_ids()
        assert not list(repository.store.list(names.LEASES))
        assert not temporary_files(place / "repository")
        check_sound(repository)
    with open_at(place / "repository", place / "fresh") as repository:
        before = sum(size for _, size in repository.store.list(names.PACKS))
        point = back_up(repository, "vm", {"disk": disk})
        check_points(repository, {point.id: {"disk": content}})
        assert not stored_twice(repository)
        assert (point.manifest.disks[0].bytes_stored < len(content)) is (before > MIB)


def test_a_file_that_shrinks_while_it_is_read(place: Path) -> None:
    disk = write_disk(place / "disk.raw", noise(16 * 32, 1))

    def shrink(_: Progress) -> None:
        os.truncate(disk, 3 * MIB + 512)

    with create_at(place / "repository", place / "cache") as repository:
        source = FileSource(disk)
        with pytest.raises(SourceError, match="became shorter while it was read; nothing may write to it"):
            ingest(repository, Vm(name="vm", id="vm"), [PlannedDisk("disk", source)], progress=shrink)
        source.close()
        assert not repository.point_ids()
        assert not list(repository.store.list(names.LEASES))
        assert not temporary_files(place / "repository")
