"""Threads for the blocking part of reads, and a bridge from them to trio that costs less than trio's own."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from types import TracebackType
from typing import Any, TypeVar

import outcome
import trio

log = logging.getLogger(__name__)

T = TypeVar("T")

# Seconds for jobs under way; what hangs in a store longer than that is left to the end of the process.
_GRACE = 5.0


class Workers:
    """A fixed number of threads over one queue. A context manager: leaving it waits for what is running, but
    not for ever, and drops what is queued."""

    def __init__(self, name: str, count: int) -> None:
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads = [
            Thread(target=self._work, name=f"{name}-{number}", daemon=True) for number in range(count)
        ]
        self._closed = False

    def __enter__(self) -> Workers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        for _ in self._threads:
            self._queue.put(None)
        deadline = time.monotonic() + _GRACE
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def submit(self, job: Callable[[], None]) -> None:
        """Run it some time; nobody learns of the result. Any thread."""
        self._queue.put(job)

    async def run(self, job: Callable[[], T]) -> T:
        """Run it in a thread and wait for it. When cancelled, the thread goes on and drops its result."""
        task = trio.lowlevel.current_task()
        token = trio.lowlevel.current_trio_token()
        waiting = True

        def deliver(result: outcome.Outcome[T]) -> None:
            if waiting:
                trio.lowlevel.reschedule(task, result)

        def work() -> None:
            result = outcome.capture(job)
            try:
                token.run_sync_soon(deliver, result)
            except trio.RunFinishedError:
                return

        def abandon(_: Any) -> trio.lowlevel.Abort:
            nonlocal waiting
            waiting = False
            return trio.lowlevel.Abort.SUCCEEDED

        self._queue.put(work)
        result: T = await trio.lowlevel.wait_task_rescheduled(abandon)
        return result

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            if self._closed:
                continue
            try:
                job()
            except Exception:
                log.exception("unexpected error in a worker thread")
