"""Several disks at once over one pool of threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from ingest.memory import Memory
from ingest.pipeline import PlannedDisk, Progress, ingest
from ingest.sources.base import Extent, SourceError
from ingest.workers import BATCH
from vmfs.format.manifest import Vm
from vmfs.repo.repository import Repository

CHUNK = 64 << 10
VM = Vm(name="vm", id="vm")
WAIT = 30.0


class Source:
    """A disk of `batches` batches, each with its own byte; `before` is called before every read."""

    block_size = 512

    def __init__(
        self, name: str, batches: int = 4, before: Callable[[Source, int], None] | None = None
    ) -> None:
        self.name = name
        self.size = batches * BATCH
        self.interrupted = threading.Event()
        self.lock = threading.Lock()
        self.open = self.most = self.readers = 0
        self._before = before

    def extents(self) -> Iterator[Extent]:
        yield Extent(0, self.size, False)

    def dirty_extents(self) -> None:
        return None

    def reader(self, _: Memory) -> Reader:
        with self.lock:
            self.readers += 1
        return Reader(self)

    def interrupt(self) -> None:
        self.interrupted.set()

    def close(self) -> None: ...

    def read(self, offset: int, buffer: memoryview) -> None:
        with self.lock:
            self.open += 1
            self.most = max(self.most, self.open)
        try:
            if self._before:
                self._before(self, offset)
            # Each disk and chunk has a content of its own.
            for at in range(0, len(buffer), CHUNK):
                buffer[at : at + CHUNK] = (f"{self.name}{offset + at:15}".encode()).ljust(CHUNK, b".")
        finally:
            with self.lock:
                self.open -= 1


class Reader:
    def __init__(self, source: Source) -> None:
        self._source = source

    def readinto(self, offset: int, buffer: memoryview) -> None:
        self._source.read(offset, buffer)

    def close(self) -> None:
        with self._source.lock:
            self._source.readers -= 1


def test_disks_are_read_at_once_and_kept_in_order(repository: Repository) -> None:
    """None is done before another has begun."""
    together = threading.Barrier(3)

    def meet(_: Source, offset: int) -> None:
        if offset == 0:
            together.wait(WAIT)

    sources = [Source(f"disk{number}", before=meet) for number in range(3)]
    point = ingest(repository, VM, [PlannedDisk(source.name, source) for source in sources], workers=3)
    assert [disk.alias for disk in point.manifest.disks] == ["disk0", "disk1", "disk2"]
    for disk in point.manifest.disks:
        reader = repository.open_disk(disk)
        for offset in range(0, disk.size, CHUNK):
            assert reader.read(offset, 20) == f"{disk.alias}{offset:15}".encode()
    assert [source.readers for source in sources] == [0, 0, 0], "all were closed"


def test_many_disks(repository: Repository) -> None:
    told: dict[str, list[Progress]] = {}
    sources = [Source(f"disk{number:02}", 1) for number in range(20)]
    point = ingest(
        repository,
        VM,
        [PlannedDisk(source.name, source) for source in sources],
        progress=lambda now: told.setdefault(now.alias, []).append(now),
    )
    assert [disk.alias for disk in point.manifest.disks] == [source.name for source in sources]
    for source in sources:
        assert told[source.name][0] == Progress(source.name, 0, BATCH)
        assert told[source.name][-1] == Progress(source.name, BATCH, BATCH)


def test_the_connections_to_a_disk_are_limited(repository: Repository) -> None:
    source = Source("disk", 12)
    ingest(repository, VM, [PlannedDisk("disk", source, connections=2)], workers=6)
    assert 1 <= source.most <= 2


def test_the_connections_asked_for_are_there(repository: Repository) -> None:
    """Whatever the number of processors."""
    together = threading.Barrier(6)
    source = Source("disk", 6, before=lambda *_: (together.wait(WAIT), None)[1])
    ingest(repository, VM, [PlannedDisk("disk", source, connections=6)])
    assert source.most == 6


def test_the_first_error_ends_all(repository: Repository) -> None:
    """Also those who wait for another host, at once."""
    stuck_in_it = threading.Event()

    def wait(source: Source, _: int) -> None:
        stuck_in_it.set()
        assert source.interrupted.wait(WAIT)
        raise SourceError(f"{source.name}: stopped")

    def fail(source: Source, offset: int) -> None:
        if offset:
            assert stuck_in_it.wait(WAIT)
            raise SourceError(f"{source.name}: broken")

    stuck, broken = Source("stuck", before=wait), Source("broken", before=fail)
    disks = [PlannedDisk(source.name, source) for source in (stuck, broken)]
    with pytest.raises(SourceError, match="broken: broken"):
        ingest(repository, VM, disks, workers=6)
    assert repository.point_ids() == []
    assert (stuck.readers, broken.readers) == (0, 0)


def test_an_interruption_ends_all(repository: Repository) -> None:
    def wait(source: Source, _: int) -> None:
        assert source.interrupted.wait(WAIT)
        raise SourceError("stopped")

    def interrupt(now: Progress) -> None:
        raise KeyboardInterrupt

    source = Source("disk", before=wait)
    with pytest.raises(KeyboardInterrupt):
        ingest(repository, VM, [PlannedDisk("disk", source)], progress=interrupt)
    assert repository.point_ids() == []
