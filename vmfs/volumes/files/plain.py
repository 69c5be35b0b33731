"""Data of files that lies in the volume as it is: the worker says where, and has no part in reading it."""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

from vmfs.volumes.files.worker.model import Run

_MOST_RUNS = 1 << 16
"""Of one file; one in more pieces than that is left to the worker."""
_FILES = 16
"""Of these many files it is kept where they lie."""


class FileRuns:
    """Where a file of `size` bytes lies, in a volume of `room`. Raises ValueError for what cannot be."""

    def __init__(self, size: int, runs: Sequence[Run], room: int) -> None:
        self.size = size
        end = 0
        for start, length, place in runs:
            if start < end or not length or start + length > size or place + length > room:
                raise ValueError("a file lies where none can")
            end = start + length
        # A third of the memory that tuples take.
        self._starts = array("Q", [run.start for run in runs])
        self._lengths = array("Q", [run.length for run in runs])
        self._places = array("Q", [run.place for run in runs])

    def __len__(self) -> int:
        return len(self._starts)

    def within(self, offset: int, length: int) -> Iterator[tuple[int, int | None]]:
        """The range, clipped at the end of the file, as (length, place in the volume) in order; None is a
        hole."""
        end = min(offset + length, self.size)
        number = max(bisect_right(self._starts, offset) - 1, 0)
        while offset < end:
            if number < len(self._starts):
                start, stop = self._starts[number], self._starts[number] + self._lengths[number]
            else:
                start = stop = end
            if offset < start:
                count, place = min(end, start) - offset, None
            else:
                count = max(min(end, stop) - offset, 0)
                place = self._places[number] + offset - start if count else None
                number += 1
            if count:
                yield count, place
            offset += count


class RunsOfFiles:
    """The runs of the last few files, by node. `find` asks the worker: None for a file whose data does not
    lie in the volume as it is. Thread-safe."""

    def __init__(self, find: Callable[[int], FileRuns | None]) -> None:
        self._find = find
        self._lock = threading.Lock()
        self._known: OrderedDict[int, FileRuns | None] = OrderedDict()

    def of(self, node: int) -> FileRuns | None:
        with self._lock:
            if node in self._known:
                self._known.move_to_end(node)
                return self._known[node]
        found = self._find(node)
        with self._lock:
            self._known[node] = found
            if len(self._known) > _FILES:
                self._known.popitem(last=False)
        return found


def few(runs: Sequence[Run]) -> bool:
    """Whether they are few enough to be kept."""
    return len(runs) <= _MOST_RUNS
