"""The relay and the plugin that nbdkit loads, over a real socket: what is asked comes as the disk has it."""

from __future__ import annotations

import json
import resource
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmfs.errors import IntegrityError
from vmfs.serve import plugin
from vmfs.serve.nbdkit import Address
from vmfs.serve.relay import Export, Relay

CHUNK = 4096
LARGEST = 3 << 20


class MemoryDisk:
    """Data in some chunks, and one that cannot be read."""

    chunk_size = CHUNK

    def __init__(self, size: int, data: frozenset[int], bad: int | None = None) -> None:
        self.size = size
        self.data = data
        self.bad = bad
        self.fetched: set[int] = set()
        content = bytearray(size)
        for chunk in data:
            start = chunk * CHUNK
            piece = bytes([chunk % 255 + 1]) * CHUNK
            content[start : start + CHUNK] = piece[: max(0, size - start)]
        self.content = bytes(content)

    def read(self, offset: int, length: int) -> bytes:
        if self.bad is not None and offset < (self.bad + 1) * CHUNK and offset + length > self.bad * CHUNK:
            raise IntegrityError("that chunk is damaged")
        return self.content[offset : offset + length]

    def extents(self, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int, bool]]:
        stop = self.size if end is None else min(end, self.size)
        while start < stop:
            cut = min(stop, (start // CHUNK + 1) * CHUNK)
            yield start, cut - start, start // CHUNK not in self.data
            start = cut

    def prefetch(self, first: int, count: int) -> None:
        self.fetched.update(range(first, first + count))


@pytest.fixture
def disk() -> MemoryDisk:
    return MemoryDisk(LARGEST + 1000, frozenset(range(0, 700, 3)), bad=300)


@pytest.fixture
def opened(disk: MemoryDisk, tmp_path: Path) -> Iterator[plugin.Disk]:
    with Relay([Export(name="a disk", description="text", disk=disk)], tmp_path / "relay"):
        plugin.config("relay", str(tmp_path / "relay"))
        found = plugin.Disk("a disk")
        yield found
        found.close()


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
def test_any_range_is_what_the_disk_has(opened: plugin.Disk, disk: MemoryDisk, data: st.DataObject) -> None:
    offset = data.draw(st.integers(0, disk.size - 1))
    length = data.draw(st.integers(1, min(2 << 20, disk.size - offset)))
    expected = disk.content[offset : offset + length]
    bad = offset < 301 * CHUNK and offset + length > 300 * CHUNK
    buffer = bytearray(length)
    if bad:
        with pytest.raises((OSError, ModuleNotFoundError)):
            opened.read_into(memoryview(buffer), offset)
    else:
        opened.read_into(memoryview(buffer), offset)
        assert bytes(buffer) == expected
    found = list(plugin.EXTENT.iter_unpack(opened.ask(plugin.EXTENTS, offset, length)))
    at = offset
    for start, size, zero in found:
        assert start == at
        assert size > 0
        assert not zero or not any(disk.content[start : start + size])
        at += size
    assert at == offset + length


def test_many_threads_share_a_connection_of_nbd(opened: plugin.Disk, disk: MemoryDisk) -> None:
    wrong: list[int] = []

    def read(number: int) -> None:
        for turn in range(50):
            offset = (number * 131 + turn * 17) * 512 % (200 * CHUNK)
            buffer = bytearray(10_000)
            opened.read_into(memoryview(buffer), offset)
            if bytes(buffer) != disk.content[offset : offset + 10_000]:
                wrong.append(offset)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_extents_of_a_large_request_are_bounded_and_go_on(tmp_path: Path) -> None:
    disk = MemoryDisk(20_000 * CHUNK, frozenset(range(0, 20_000, 2)))
    with Relay([Export(name="x", description="", disk=disk)], tmp_path / "relay"):
        plugin.config("relay", str(tmp_path / "relay"))
        opened = plugin.Disk("x")
        first = list(plugin.EXTENT.iter_unpack(opened.ask(plugin.EXTENTS, 0, disk.size)))
        at = first[-1][0] + first[-1][1]
        then = list(plugin.EXTENT.iter_unpack(opened.ask(plugin.EXTENTS, at, disk.size - at)))
        opened.close()
    assert len(first) < 20_000
    assert then[0][0] == at


def test_what_is_to_be_ready_soon_is_fetched(tmp_path: Path) -> None:
    disk = MemoryDisk(100 * CHUNK, frozenset(range(100)))
    with Relay([Export(name="x", description="", disk=disk)], tmp_path / "relay") as relay:
        plugin.config("relay", str(tmp_path / "relay"))
        opened = plugin.Disk("x")
        opened.ask(plugin.CACHE, 5 * CHUNK + 1, 3 * CHUNK)
        relay._ahead.shutdown(wait=True)
        opened.close()
    assert disk.fetched == {5, 6, 7, 8}


def test_exports_are_listed_and_an_unknown_one_is_refused(opened: plugin.Disk) -> None:
    link = plugin._connect()
    listed = json.loads(b"".join(plugin._ask(link, plugin.LIST, 0, 0)))
    link.close()
    assert listed == [["a disk", "text"]]
    with pytest.raises((OSError, ModuleNotFoundError)):
        plugin.Disk("another")


def test_who_connects_when_no_more_files_can_be_open_is_served_later(
    disk: MemoryDisk, tmp_path: Path
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Relay([Export(name="a disk", description="text", disk=disk)], tmp_path / "relay"):
        links = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(3)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (links[0].fileno(), hard))
        try:
            for link in links:
                link.settimeout(20)
                link.connect(str(tmp_path / "relay"))
            time.sleep(0.2)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for link in links:
            link.sendall(plugin.REQUEST.pack(plugin.LIST, 0, 0))
            failed, length, _ = plugin.PART.unpack(link.recv(plugin.PART.size, socket.MSG_WAITALL))
            assert (failed, json.loads(link.recv(length, socket.MSG_WAITALL))) == (0, [["a disk", "text"]])
            link.close()


@pytest.mark.parametrize(
    ("host", "local"),
    [
        *((host, True) for host in ("localhost", "127.0.0.1", "127.3.2.1", "::1")),
        *((host, False) for host in ("0.0.0.0", "::", "192.0.2.7", "127.example.com", "web1")),
    ],
)
def test_which_addresses_only_this_machine_reaches(host: str, local: bool) -> None:
    assert Address(host=host).is_local is local
