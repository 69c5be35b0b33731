"""The threads of an ingest: each reads a few megabytes of a disk and makes something of every chunk."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from queue import Empty, SimpleQueue
from threading import Semaphore
from typing import Any, ParamSpec, TypeVar

from ingest.memory import Memory, is_zero
from ingest.plan import Run
from ingest.sources.base import DiskSource, Interruptible, SourceReader

P = ParamSpec("P")
T = TypeVar("T")

Task = Generator[Future[Any], None, T]
"""Work on one disk, done by the calling thread a piece at a time; it yields what it has to wait for."""

BATCH = 8 << 20
"""Bytes a worker takes at once."""
_TASKS_AT_ONCE = 4
"""More would only keep more connections open."""


def default_workers() -> int:
    """One processor is left to the uploads and to the thread that hands out the work; more threads than that
    only wait for the interpreter's lock."""
    return max(2, (os.cpu_count() or 1) - 1)


class Readers:
    """Connections to one source, each made by the first thread that finds none free, `limit` at most."""

    def __init__(self, source: DiskSource, limit: int, memory: Memory) -> None:
        self.source = source
        self._memory = memory
        self._places = Semaphore(limit)
        self._free: SimpleQueue[SourceReader] = SimpleQueue()

    @contextmanager
    def borrow(self) -> Iterator[SourceReader]:
        with self._places:
            try:
                reader = self._free.get_nowait()
            except Empty:
                reader = self.source.reader(self._memory)
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


class Workers:
    """Threads for all disks together. Memory is bounded by their number: a buffer of BATCH bytes each."""

    def __init__(self, chunk_size: int, count: int) -> None:
        self.chunk_size = chunk_size
        self._window = 4 * count
        self._batch = max(1, BATCH // chunk_size)
        self._executor = ThreadPoolExecutor(count, "vmfs-ingest")
        buffer = self._batch * chunk_size
        self._memory = Memory(count * buffer)
        self._buffers: SimpleQueue[memoryview] = SimpleQueue()
        for at in range(0, count * buffer, buffer):
            self._buffers.put(self._memory.view[at : at + buffer])
        self._readers: list[Readers] = []
        self._count = count
        self._ready: SimpleQueue[int | BaseException] = SimpleQueue()
        """The numbers of tasks that can go on; and what went wrong in a thread, for all to end at once."""

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            for readers in self._readers:
                if isinstance(readers.source, Interruptible):
                    readers.source.interrupt()
        self._executor.shutdown(wait=True, cancel_futures=True)
        for readers in self._readers:
            readers.close()
        self._memory.close()

    def readers(self, source: DiskSource, limit: int | None) -> Readers:
        """Closed with the workers, or before that by the caller."""
        readers = Readers(source, min(limit or self._count, self._count), self._memory)
        self._readers.append(readers)
        return readers

    def run(self, tasks: Iterable[Task[T]]) -> list[T]:
        """What each task returns; several of them are on their way at once. The first error, of a task or of
        a thread, ends all."""
        pending = deque(enumerate(tasks))
        results: list[T | None] = [None] * len(pending)
        active: dict[int, Task[T]] = {}
        while pending or active:
            while pending and len(active) < _TASKS_AT_ONCE:
                number, task = pending.popleft()
                active[number] = task
                self._ready.put(number)
            ready = self._ready.get()
            if isinstance(ready, BaseException):
                raise ready
            try:
                awaited = next(active[ready])
            except StopIteration as end:
                results[ready] = end.value
                del active[ready]
            else:
                awaited.add_done_callback(partial(self._wake, ready))
        return [result for result in results if result is not None]

    def submit(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        work = self._executor.submit(call, *args, **kwargs)
        work.add_done_callback(self._notice)
        return work

    def each(
        self,
        readers: Readers,
        runs: Iterable[Run],
        make: Callable[[memoryview], T],
        take: Callable[[Run, list[T | None] | None], bool],
    ) -> Task[None]:
        """Read the runs, cut into batches, and let `make` make something of every chunk, in any thread.
        `take` gets each batch in order with what was made of its chunks: None of a chunk of zeros, None
        instead of the list for a run known to be zeros. It tells whether to go on."""
        waiting: deque[tuple[Run, Future[list[T | None]] | None]] = deque()
        left = self._batches(runs)
        more = True
        while more or waiting:
            while more and len(waiting) <= self._window:
                batch = next(left, None)
                if batch is None:
                    more = False
                else:
                    work = None if batch.zero else self.submit(self._read, readers, batch, make)
                    waiting.append((batch, work))
            if waiting:
                batch, work = waiting.popleft()
                if work:
                    yield work
                if not take(batch, work.result() if work else None):
                    for _, rest in waiting:
                        if rest:
                            rest.cancel()
                    return

    def _batches(self, runs: Iterable[Run]) -> Iterator[Run]:
        for run in runs:
            if run.zero:
                yield run
                continue
            for first in range(run.first, run.first + run.chunks, self._batch):
                yield Run(first, min(self._batch, run.first + run.chunks - first), False)

    def _read(self, readers: Readers, batch: Run, make: Callable[[memoryview], T]) -> list[T | None]:
        buffer = self._buffers.get()
        try:
            chunk = self.chunk_size
            start = batch.first * chunk
            wanted = min(batch.chunks * chunk, readers.source.size - start)
            with readers.borrow() as reader:
                reader.readinto(start, buffer[:wanted])
            # The last chunk of a disk reaches past its end, as zeros.
            buffer[wanted : batch.chunks * chunk] = bytes(batch.chunks * chunk - wanted)
            chunks = (buffer[at : at + chunk] for at in range(0, batch.chunks * chunk, chunk))
            return [None if is_zero(chunk) else make(chunk) for chunk in chunks]
        finally:
            self._buffers.put(buffer)

    def _wake(self, number: int, _: Future[Any]) -> None:
        self._ready.put(number)

    def _notice(self, work: Future[Any]) -> None:
        if not work.cancelled() and (error := work.exception()):
            self._ready.put(error)
