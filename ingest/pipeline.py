"""From disks to a restore point: read what changed, store what is new, write the maps, commit.

Workers each take the next few megabytes of a disk: read, cut, hash, look up, compress, seal. The calling
thread hands out the work in order, takes the results in order, and writes the map. Memory is bounded by the
number of workers and of results waiting; the first error, wherever it happens, ends all, and nothing is
committed.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from queue import Empty, SimpleQueue
from typing import NamedTuple

from ingest.plan import Plan, Run
from ingest.sources.base import BitmapError, DiskSource, SourceReader
from vmfs import __version__
from vmfs.format.keys import Kind
from vmfs.format.manifest import Consistency, Disk, Manifest, Vm
from vmfs.repo.diskmap import EMPTY, Map
from vmfs.repo.repository import Point, Repository
from vmfs.repo.session import Stored, WriteSession

_BATCH = 4 << 20
"""Bytes a worker takes at once."""


def default_workers() -> int:
    """One processor is left to the uploads and to the thread that hands out the work; more threads than that
    only wait for the interpreter's lock."""
    return max(2, (os.cpu_count() or 1) - 1)


class PlannedDisk(NamedTuple):
    """A disk to back up. `base` is the parent point's disk when the source's dirty bitmap tells what changed
    since then; None to read it in full, because of `full_reason` if an incremental was asked for."""

    alias: str
    source: DiskSource
    base: Disk | None = None
    checkpoint: str | None = None
    full_reason: str | None = None


class Progress(NamedTuple):
    """`done` of `total` bytes of the disk's chunks to look at; zeros known beforehand are not counted."""

    alias: str
    done: int
    total: int


@dataclass(slots=True)
class _Counts:
    read: int = 0
    new: int = 0
    stored: int = 0


def ingest(
    repository: Repository,
    vm: Vm,
    disks: Sequence[PlannedDisk],
    *,
    time: datetime | None = None,
    parent: Point | None = None,
    artifacts: Mapping[str, bytes] | None = None,
    consistency: Consistency = "crash",
    progress: Callable[[Progress], None] = lambda _: None,
    workers: int | None = None,
) -> Point:
    """Back up the disks as one new restore point, and return it.

    `time` is when the disks' content was fixed, now by default. Raises VmfsError; KeyboardInterrupt passes
    through. Either way no point is left.
    """
    fixed = time or datetime.now(UTC)
    with repository.write_session() as session:
        kept = [session.store_artifact(name, content) for name, content in (artifacts or {}).items()]
        with _Workers(session, repository.chunk_size, workers or default_workers()) as pool:
            taken = tuple(_ingest_disk(session, pool, disk, progress) for disk in disks)
        incremental = any(disk.mode == "incremental" for disk in taken)
        manifest = Manifest(
            vm=vm,
            time=fixed,
            consistency=consistency,
            disks=taken,
            artifacts=tuple(kept),
            parent=parent.id if parent and incremental else None,
            producer=f"vmfs {__version__}",
        )
        point_id = session.commit(manifest)
    return repository.load_point(point_id)


def _ingest_disk(
    session: WriteSession, pool: _Workers, disk: PlannedDisk, progress: Callable[[Progress], None]
) -> Disk:
    source, base = disk.source, disk.base
    extents = source.dirty_extents() if base else source.extents()
    if extents is None:
        raise BitmapError(f"{source.name}: no dirty bitmap was opened; read the disk in full")
    start = Map(base.root, base.size, base.allocated) if base else EMPTY
    writer = session.map_writer(source.size, start)
    counts = _Counts()
    plan = Plan(extents, source.size, pool.chunk_size, whole=base is None)
    total = plan.chunks_to_read * pool.chunk_size
    done = 0
    progress(Progress(disk.alias, 0, total))
    for batch, chunks in pool.run(source, plan):
        if chunks is None:
            writer.clear(batch.first, batch.first + batch.chunks)
            continue
        for index, chunk in enumerate(chunks, batch.first):
            writer.set(index, chunk.id if chunk else None)
            if chunk and chunk.new:
                counts.new += pool.chunk_size
                counts.stored += chunk.size
        size = batch.chunks * pool.chunk_size
        counts.read += min(size, source.size - batch.first * pool.chunk_size)
        done += size
        progress(Progress(disk.alias, done, total))
    written = writer.finish()
    return Disk(
        id=base.id if base else disk.alias,
        alias=disk.alias,
        size=source.size,
        root=written.root,
        allocated=written.allocated,
        block_size=source.block_size,
        checkpoint=disk.checkpoint,
        mode="incremental" if base else "full",
        full_reason=disk.full_reason,
        bytes_read=counts.read,
        bytes_new=counts.new,
        bytes_stored=counts.stored,
    )


class _Workers:
    """Threads that read and store batches of chunks, results in order."""

    def __init__(self, session: WriteSession, chunk_size: int, count: int) -> None:
        self.chunk_size = chunk_size
        self._session = session
        self._count = count
        self._batch = max(1, _BATCH // chunk_size)
        self._zeros = bytes(chunk_size)
        self._executor = ThreadPoolExecutor(count, "vmfs-ingest")
        self._buffers: SimpleQueue[bytearray] = SimpleQueue()
        for _ in range(count):
            self._buffers.put(bytearray(self._batch * chunk_size))

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)

    def run(self, source: DiskSource, plan: Plan) -> Iterator[tuple[Run, list[Stored | None] | None]]:
        """Each batch of the plan with what its chunks are stored as: None for a chunk of zeros, None instead
        of the list for a run known to be zeros."""
        readers = _Readers(source)
        waiting: deque[tuple[Run, Future[list[Stored | None]] | None]] = deque()
        try:
            for batch in self._batches(plan):
                if len(waiting) > 4 * self._count:
                    yield _result(*waiting.popleft())
                work = None if batch.zero else self._executor.submit(self._take, readers, source.size, batch)
                waiting.append((batch, work))
            while waiting:
                yield _result(*waiting.popleft())
        finally:
            for _, work in waiting:
                if work:
                    work.cancel()
            for _, work in waiting:
                if work and not work.cancelled():
                    work.exception()
            readers.close()

    def _batches(self, plan: Plan) -> Iterator[Run]:
        for run in plan:
            if run.zero:
                yield run
                continue
            for first in range(run.first, run.first + run.chunks, self._batch):
                yield Run(first, min(self._batch, run.first + run.chunks - first), False)

    def _take(self, readers: _Readers, size: int, batch: Run) -> list[Stored | None]:
        buffer = self._buffers.get()
        try:
            chunk = self.chunk_size
            start = batch.first * chunk
            wanted = min(batch.chunks * chunk, size - start)
            with memoryview(buffer) as view:
                with readers.borrow() as reader, view[:wanted] as target:
                    reader.readinto(start, target)
                # The last chunk of a disk reaches past its end, as zeros.
                view[wanted : batch.chunks * chunk] = bytes(batch.chunks * chunk - wanted)
                return [self._store(buffer, view, at) for at in range(0, batch.chunks * chunk, chunk)]
        finally:
            self._buffers.put(buffer)

    def _store(self, buffer: bytearray, view: memoryview, at: int) -> Stored | None:
        # startswith is a plain memcmp: the cheapest test for zeros there is.
        if buffer.startswith(self._zeros, at):
            return None
        return self._session.store_blob(Kind.DATA, view[at : at + self.chunk_size])


class _Readers:
    """Connections to one source, each made by the first thread that finds none free."""

    def __init__(self, source: DiskSource) -> None:
        self._source = source
        self._free: SimpleQueue[SourceReader] = SimpleQueue()

    @contextmanager
    def borrow(self) -> Iterator[SourceReader]:
        try:
            reader = self._free.get_nowait()
        except Empty:
            reader = self._source.reader()
        try:
            yield reader
        finally:
            self._free.put(reader)

    def close(self) -> None:
        while True:
            try:
                self._free.get_nowait().close()
            except Empty:
                return


def _result(batch: Run, work: Future[list[Stored | None]] | None) -> tuple[Run, list[Stored | None] | None]:
    return batch, work.result() if work else None
