"""Read-ahead, helpers, threads: the parts of the read path one by one."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from itertools import pairwise

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from mount_helpers import wait_until

from vmfs.errors import IntegrityError
from vmfs.fs.content import BytesContent, DiskContent
from vmfs.fs.helpers import Helpers
from vmfs.fs.once import OnceCache
from vmfs.fs.readahead import MAX_WINDOW, ReadAhead
from vmfs.fs.reading import OpenFile, Reader
from vmfs.fs.slots import Slots
from vmfs.fs.workers import Workers

KIB, MIB = 1 << 10, 1 << 20
CHUNK = 64 * KIB


def test_read_ahead_follows_a_sequential_reader() -> None:
    ahead = ReadAhead(1 << 30)
    asked = [ahead.note(number * MIB, MIB) for number in range(100)]
    assert asked[:2] == [(MIB, 2 * MIB), (2 * MIB, 6 * MIB)]
    ranges = [item for item in asked if item]
    assert all(before[1] == after[0] for before, after in pairwise(ranges))
    assert ranges[-1][1] == 100 * MIB + MAX_WINDOW


def test_read_ahead_waits_for_a_reader_of_small_pieces_to_go_on() -> None:
    ahead = ReadAhead(1 << 30)
    asked = [ahead.note(number * 128 * KIB, 128 * KIB) for number in range(10)]
    assert asked[:3] == [None] * 3
    assert asked[3] == (512 * KIB, 512 * KIB + MIB)


def test_read_ahead_ends_with_the_file() -> None:
    ahead = ReadAhead(10 * MIB + 5)
    ranges = [item for number in range(10) if (item := ahead.note(number * MIB, MIB))]
    assert ranges[-1][1] == 10 * MIB + 5
    assert ahead.note(10 * MIB, 5) is None


def test_read_ahead_leaves_random_readers_alone() -> None:
    ahead = ReadAhead(1 << 40)
    places = [(number * 7919) % 1000 * (1 << 28) for number in range(1000)]
    assert [ahead.note(place, 4096) for place in places] == [None] * 1000


def test_read_ahead_of_requests_that_overtake_each_other() -> None:
    ahead = ReadAhead(1 << 30)
    order = [1, 0, 3, 2, 5, 4, 7, 6, 9, 8]
    assert any(ahead.note(number * 128 * KIB, 128 * KIB) for number in order)


def test_read_ahead_of_several_readers() -> None:
    ahead = ReadAhead(1 << 40)
    starts = (0, 1 << 36, 1 << 38)
    found = [ahead.note(start + number * MIB, MIB) for number in range(20) for start in starts]
    assert sum(item is not None for item in found) > 20


@given(st.lists(st.tuples(st.integers(0, 64 * MIB), st.integers(1, 2 * MIB))))
def test_read_ahead_is_bounded(reads: list[tuple[int, int]]) -> None:
    ahead = ReadAhead(64 * MIB)
    for offset, length in reads:
        asked = ahead.note(offset, length)
        if asked:
            assert asked[0] < asked[1] <= 64 * MIB
            assert asked[1] - asked[0] <= MAX_WINDOW


def test_once_cache_loads_once() -> None:
    loads: list[str] = []
    go = threading.Event()

    def load(key: str) -> str:
        loads.append(key)
        go.wait(10)
        return key.upper()

    cache = OnceCache(load, 2)
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(cache.get("a"))) for _ in range(5)]
    for thread in threads:
        thread.start()
    assert cache.peek("a") is None
    go.set()
    for thread in threads:
        thread.join()
    assert (found, loads) == (["A"] * 5, ["a"])
    assert cache.peek("a") == "A"
    cache.get("b")
    cache.get("c")
    assert cache.peek("a") is None


def test_once_cache_does_not_keep_errors() -> None:
    answers: list[str | Exception] = [IntegrityError("bad"), "good"]

    def load(_: str) -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    cache = OnceCache(load, 2)
    with pytest.raises(IntegrityError, match="bad"):
        cache.get("a")
    assert cache.get("a") == "good"


def test_workers_give_results_and_errors() -> None:
    async def main() -> None:
        assert await workers.run(lambda: 6 * 7) == 42
        with pytest.raises(IntegrityError, match="bad"):
            await workers.run(lambda: fail("bad"))
        with trio.move_on_after(0.05) as scope:
            await workers.run(lambda: blocked.wait(10))
        assert scope.cancelled_caught
        blocked.set()
        results: list[int] = []

        async def one(number: int) -> None:
            results.append(await workers.run(lambda: number))

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(one, number)
        assert sorted(results) == list(range(50))

    blocked = threading.Event()
    with Workers("test", 3) as workers:
        trio.run(main)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("test-")]


def fail(message: str) -> None:
    raise IntegrityError(message)


def chunk(number: int) -> bytes:
    return number.to_bytes(8, "big") * (CHUNK // 8)


class Disk:
    """A disk whose chunks say their number; every fifth is zeros, `bad` ones cannot be read."""

    chunk_size = CHUNK

    def __init__(self, chunks: int, bad: frozenset[int] = frozenset()) -> None:
        self.size = chunks * CHUNK - 1000
        self.bad = bad
        self.reads = 0
        self.content = b"".join(
            bytes(CHUNK) if number % 5 == 0 else chunk(number) for number in range(chunks)
        )

    def chunk_ids(self, first: int, count: int) -> list[bytes | None]:
        return [
            None if number % 5 == 0 else number.to_bytes(32, "big") for number in range(first, first + count)
        ]

    def load(self, blob_id: bytes, out: memoryview) -> None:
        number = int.from_bytes(blob_id, "big")
        if number in self.bad:
            raise IntegrityError(f"chunk {number} is bad")
        out[:] = chunk(number)

    def read(self, offset: int, length: int) -> bytes:
        self.reads += 1
        for number in range(offset // CHUNK, -(-(offset + length) // CHUNK)):
            if number in self.bad:
                raise IntegrityError(f"chunk {number} is bad")
        return self.content[: self.size][offset : offset + length]

    def cached(self, offset: int, length: int) -> bytes | None:
        return None


def with_helpers(
    disk: Disk, work: Callable[[Slots, Helpers], object], slots: int = 32, *, killed: bool = False
) -> None:
    """`killed` tells that the helpers do not outlive the work, which is to be noticed once."""
    lost: list[bool] = []

    async def main() -> None:
        table = Slots(helpers, lambda: lost.append(True))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(table.run)
            with trio.fail_after(30):
                await work(table, helpers)  # type: ignore[misc]
            nursery.cancel_scope.cancel()

    helpers = Helpers(disk.load, lambda: None, chunk_size=CHUNK, slot_size=4 * CHUNK, slots=slots)
    with helpers:
        trio.run(main)
    assert lost == [True] * killed
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_helpers_fetch_what_is_asked_for() -> None:
    disk = Disk(40)

    async def work(slots: Slots, _: Helpers) -> None:
        slots.fetch("d", disk, 0, disk.size)
        assert await slots.get("d", 0, 4 * CHUNK) == disk.content[: 4 * CHUNK]
        assert await slots.get("d", 3 * CHUNK - 7, 6 * CHUNK) == disk.content[3 * CHUNK - 7 : 9 * CHUNK - 7]
        assert await slots.get("d", disk.size - 10, 10) == disk.content[disk.size - 10 : disk.size]
        assert await slots.get("other", 0, 10) is None

    with_helpers(disk, work)


def test_a_bad_chunk_spoils_its_slot_and_no_more() -> None:
    disk = Disk(40, bad=frozenset((6,)))

    async def work(slots: Slots, _: Helpers) -> None:
        slots.fetch("d", disk, 0, disk.size)
        assert await slots.get("d", 4 * CHUNK, 10) is None
        assert await slots.get("d", 8 * CHUNK, 10) == disk.content[8 * CHUNK : 8 * CHUNK + 10]

    with_helpers(disk, work)


def test_slots_are_used_again() -> None:
    disk = Disk(200)

    async def work(slots: Slots, _: Helpers) -> None:
        for piece in range(49):
            start = piece * 4 * CHUNK
            slots.fetch("d", disk, start, start + 4 * CHUNK)
            assert (
                await slots.get("d", start, 4 * CHUNK) == disk.content[: disk.size][start : start + 4 * CHUNK]
            )
        assert await slots.get("d", 0, 10) is None

    with_helpers(disk, work, slots=3)


def test_a_helper_that_is_killed_is_done_without() -> None:
    disk = Disk(40)

    async def work(slots: Slots, helpers: Helpers) -> None:
        slots.fetch("d", disk, 0, 4 * CHUNK)
        assert await slots.get("d", 0, 10) is not None
        for child in helpers._children:
            os.kill(child, signal.SIGKILL)
        with trio.fail_after(10):
            while slots._alive:
                slots.fetch("d", disk, 8 * CHUNK, 16 * CHUNK)
                await slots.get("d", 8 * CHUNK, 10)
                await trio.sleep(0.01)
        assert await slots.get("d", 12 * CHUNK, 10) in (None, disk.content[12 * CHUNK : 12 * CHUNK + 10])

    with_helpers(disk, work, killed=True)


def test_helpers_end_with_the_process() -> None:
    """Even with a process that is killed: nobody is left to tell them."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        disk = Disk(4)
        helpers = Helpers(disk.load, lambda: None, chunk_size=CHUNK, slot_size=4 * CHUNK, slots=2)
        helpers.__enter__()
        os.write(writing, b" ".join(str(pid).encode() for pid in helpers._children) + b"\n")
        signal.pause()
    pids = [int(pid) for pid in os.read(reading, 1000).split()]
    os.close(reading)
    os.close(writing)
    assert all(alive(pid) for pid in pids)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    wait_until(lambda: not any(alive(pid) for pid in pids))


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_reader_reads_everything_and_bad_ranges_fail_alone() -> None:
    disk = Disk(160, bad=frozenset((77,)))

    async def work(slots: Slots, _: Helpers) -> None:
        with Reader(slots) as reader:
            file = OpenFile(DiskContent("d", disk, 100, disk.size - 200))
            size = 2 * CHUNK
            for offset in range(0, disk.size - 200, size):
                expected = disk.content[100 + offset : min(100 + offset + size, disk.size - 100)]
                chunks = range((100 + offset) // CHUNK, (100 + offset + len(expected) - 1) // CHUNK + 1)
                if 77 in chunks:
                    with pytest.raises(IntegrityError, match=r"^d: chunk 77 is bad$"):
                        await reader.read(file, offset, size)
                else:
                    assert await reader.read(file, offset, size) == expected
            assert await reader.read(file, disk.size, 10) == b""
            assert disk.reads < 30

    with_helpers(disk, work)


def test_reader_of_a_small_file() -> None:
    async def work(slots: Slots, _: Helpers) -> None:
        with Reader(slots) as reader:
            file = OpenFile(BytesContent(b"0123456789"))
            assert await reader.read(file, 3, 4) == b"3456"
            assert await reader.read(file, 8, 4096) == b"89"

    with_helpers(Disk(1), work)
