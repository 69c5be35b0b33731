"""Power cuts under a writable view that is kept: its files after any system call, with any part of what was
not synced. It must be as a disk with a volatile cache: each sector holds what was last synced there, or
something that was written to it since, and nothing else."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from fault_helpers import Killed
from hypothesis import given, settings
from hypothesis import strategies as st

from vmfs.fs.scratch.bitmap import PAGE_BLOCKS
from vmfs.fs.scratch.io import Buffer, Io
from vmfs.fs.scratch.overlay import BLOCK, SEGMENT, Identity, Overlay

SECTOR = 512
SIZE = SEGMENT + 64 * BLOCK
IDENTITY = Identity(repository="00", point="P", disk="d", root="11", size=SIZE)
# Two pages of the bitmap, and two data files.
WINDOWS = (PAGE_BLOCKS * BLOCK - 2 * BLOCK, SEGMENT - 2 * BLOCK)
WINDOW = 4 * BLOCK


class Medium(Io):
    """Files whose data is there for sure once they are synced, and their names once the directory is. The
    process dies before call number `dies`."""

    def __init__(self, dies: int) -> None:
        self.calls = 0
        self._dies = dies
        self._names: dict[int, int] = {}
        self._entries: dict[str, int] = {}
        self._durable_entries: dict[str, int] = {}
        self._synced: dict[int, dict[int, bytes]] = defaultdict(dict)
        self._pending: dict[int, list[tuple[int, bytes]]] = defaultdict(list)

    def open(self, directory: int, name: str, flags: int) -> int:
        self._call()
        descriptor = super().open(directory, name, flags)
        inode = os.fstat(descriptor).st_ino
        self._names[descriptor] = self._entries[name] = inode
        return descriptor

    def write(self, descriptor: int, buffers: Sequence[Buffer], offset: int) -> int:
        self._call()
        count = super().write(descriptor, buffers, offset)
        self._change(descriptor, offset, b"".join(buffers)[:count])
        return count

    def punch(self, descriptor: int, offset: int, length: int) -> bool:
        self._call()
        assert super().punch(descriptor, offset, length)
        self._change(descriptor, offset, bytes(length))
        return True

    def sync(self, descriptor: int) -> None:
        self._call()
        inode = self._names[descriptor]
        self._synced[inode].update(self._pending.pop(inode, ()))

    def sync_directory(self, descriptor: int) -> None:
        self._call()
        self._durable_entries = dict(self._entries)

    def rename(self, directory: int, old: str, new: str) -> None:
        self._call()
        super().rename(directory, old, new)
        self._entries[new] = self._entries.pop(old)

    @contextmanager
    def dying_after(self, count: int) -> Iterator[None]:
        """The process dies after that many calls at most, and another goes on."""
        dies, self._dies = self._dies, min(self.calls + count, self._dies)
        try:
            yield
        finally:
            self._dies = dies

    def check(self) -> None:
        """Die for good if it is time."""
        if self.calls >= self._dies:
            raise Killed

    def _call(self) -> None:
        self.check()
        self.calls += 1

    def _change(self, descriptor: int, offset: int, data: bytes) -> None:
        """By sectors, each of which is written whole or not; a write may begin and end within one."""
        inode, at = self._names[descriptor], 0
        for start in range(offset // SECTOR * SECTOR, offset + len(data), SECTOR):
            sector = os.pread(descriptor, SECTOR, start).ljust(SECTOR, b"\0")
            self._pending[inode].append((start, sector))
            at += SECTOR

    def cut_power(self, target: Path, chance: random.Random) -> None:
        """What is found afterwards: all that was synced, and of the rest any part."""
        entries = self._entries if chance.random() < 0.5 else self._durable_entries
        share = chance.choice((0.0, 0.3, 0.7, 1.0))
        for name, inode in entries.items():
            kept = dict(self._synced[inode])
            kept.update(item for item in self._pending[inode] if chance.random() < share)
            with (target / name).open("wb") as file:
                for start, sector in sorted(kept.items()):
                    os.pwrite(file.fileno(), sector, start)


def original(offset: int, length: int) -> bytes:
    first = offset // SECTOR
    sectors = b"".join(
        bytes([number % 9 + 1]) * SECTOR for number in range(first, -(-(offset + length) // SECTOR))
    )
    return sectors[offset - first * SECTOR : offset - first * SECTOR + length]


def read(disk: Overlay | None, offset: int, length: int) -> bytes:
    if disk is None:
        return original(offset, length)
    found = b""
    for start, count, written in disk.runs(offset, length):
        data = disk.read(start, count) if written else original(start, count)
        assert data is not None
        found += data
    return found


class Versions:
    """What each sector of the windows may hold after a power cut."""

    def __init__(self) -> None:
        self.now = {start: bytearray(original(start, WINDOW)) for start in WINDOWS}
        self.may = {
            start + at: [original(start + at, SECTOR)] for start in WINDOWS for at in range(0, WINDOW, SECTOR)
        }

    def write(self, window: int, offset: int, data: bytes) -> None:
        now = self.now[window]
        now[offset : offset + len(data)] = data
        for at in range(offset // SECTOR * SECTOR, offset + len(data), SECTOR):
            self.may[window + at].append(bytes(now[at : at + SECTOR]))

    def look(self, disk: Overlay) -> None:
        """What is there now is what the next sync makes durable."""
        for window, now in self.now.items():
            now[:] = read(disk, window, WINDOW)
            for at in range(0, WINDOW, SECTOR):
                assert now[at : at + SECTOR] in self.may[window + at]
                self.may[window + at].append(bytes(now[at : at + SECTOR]))

    def sync(self) -> None:
        for versions in self.may.values():
            del versions[:-1]


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("sync"), st.just(0), st.just(0), st.just(0)),
        st.tuples(st.just("kill"), st.integers(0, 6), st.just(0), st.just(0)),
        st.tuples(
            st.sampled_from(WINDOWS).map(str),
            st.integers(0, WINDOW // SECTOR - 1).map(lambda sector: sector * SECTOR),
            st.sampled_from((SECTOR, 3 * SECTOR, BLOCK, 2 * BLOCK, WINDOW)),
            st.integers(0, 3),
        ),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=600, deadline=None)
@given(OPERATIONS, st.integers(0, 60), st.integers(0, 1 << 30))
def test_a_power_cut_at_any_call(operations: list[tuple[str, int, int, int]], dies: int, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311
    top = Path(tempfile.mkdtemp())
    try:
        medium = Medium(dies)
        versions = Versions()
        promised = _run(medium, top, operations, versions, chance)
        after = top / "after"
        after.mkdir()
        medium.cut_power(after, chance)
        directory = os.open(after, os.O_RDONLY)
        try:
            disk = None
            if (after / "P-0.map").exists():
                disk = Overlay.reopen(Io(), directory, "P-0")
                assert disk.identity == IDENTITY
            assert disk is not None or not promised
            for start in WINDOWS:
                found = read(disk, start, WINDOW)
                for at in range(0, WINDOW, SECTOR):
                    assert found[at : at + SECTOR] in versions.may[start + at], (start, at)
            if disk is not None:
                disk.close()
        finally:
            os.close(directory)
    finally:
        shutil.rmtree(top)


def _run(
    medium: Medium,
    top: Path,
    operations: list[tuple[str, int, int, int]],
    versions: Versions,
    chance: random.Random,
) -> bool:
    """Do the operations until the process dies; whether a sync had returned by then."""
    live = top / "live"
    live.mkdir()
    directory = os.open(live, os.O_RDONLY)
    disk: Overlay | None = None
    promised = False
    try:
        disk = Overlay.create(medium, directory, "P-0", IDENTITY)
        for where, offset, length, fill in operations:
            if where == "sync":
                disk.sync()
                versions.sync()
                promised = True
                continue
            if where == "kill":
                # Of the mount, in the middle of a sync, and not of the machine: what was not synced may be
                # lost, or only seem not to be.
                with contextlib.suppress(Killed), medium.dying_after(offset):
                    disk.sync()
                    versions.sync()
                medium.check()
                dead, disk = disk, None
                dead.close()
                disk = Overlay.reopen(medium, directory, "P-0")
                versions.look(disk)
                continue
            length = min(length, WINDOW - offset)
            data = bytes(length) if fill == 0 else chance.randbytes(length)
            # What a write did that was cut off may be there.
            versions.write(int(where), offset, data)
            assert disk.write(int(where) + offset, memoryview(data), original) == length
    except Killed:
        pass
    finally:
        if disk is not None:
            disk.close()
        os.close(directory)
    return promised


class FailingSync(Io):
    """The next sync of a file fails, as it does when the disk below has lost what it was to write."""

    failing = False

    def sync(self, descriptor: int) -> None:
        if self.failing:
            self.failing = False
            raise OSError(5, "Input/output error")
        super().sync(descriptor)


def test_a_failed_sync_is_not_forgotten(tmp_path: Path) -> None:
    """The kernel tells of lost writes once; a second sync that found nothing to do would be a lie."""
    io = FailingSync()
    directory = os.open(tmp_path, os.O_RDONLY)
    disk = Overlay.create(io, directory, "P-0", IDENTITY)
    disk.write(0, b"1" * BLOCK, original)
    disk.sync()
    disk.write(BLOCK, b"2" * BLOCK, original)
    io.failing = True
    for _ in range(2):
        with pytest.raises(OSError, match=r"error|failed"):
            disk.sync()
    disk.close()
    again = Overlay.reopen(Io(), directory, "P-0")
    assert read(again, 0, 2 * BLOCK) == b"1" * BLOCK + original(BLOCK, BLOCK)
    again.close()
    os.close(directory)
