"""What of a disk has to be written: its data without the zeros inside, and the zeros where they matter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from vmfs.repo.reader import DiskReader

BATCH = 4 << 20
"""Bytes that are read, and mostly sent, at once."""
ZERO_STEP = 256 << 20
"""Bytes zeroed by one request: a host that has to write them does so well within a client's patience (60
s)."""
CLUSTER = 64 << 10
"""A qcow2 image's cluster, bytes: what it allocates at least."""
BLOCK = 4 << 10
"""A file system's block, bytes: what a raw image allocates at least."""
_BRIDGED = 0.02
"""Zeros that may be sent as data, as a part of the data around them, for fewer requests."""


class Run(NamedTuple):
    """Bytes [start, start + length) of the disk."""

    start: int
    length: int
    zero: bool


def batches(reader: DiskReader, *, zeros: bool, start: int = 0) -> Iterator[Run]:
    """The disk from byte `start` on, ascending, in runs of at most BATCH bytes of data, cut at multiples of
    it, and of at most ZERO_STEP bytes of zeros. Without `zeros`, only the data."""
    for at, length, zero in reader.extents(min(start, reader.size)):
        if zero and not zeros:
            continue
        step = ZERO_STEP if zero else BATCH
        end = at + length
        while at < end:
            stop = min(end, (at // step + 1) * step)
            yield Run(at, stop - at, zero)
            at = stop


def zero_runs(start: int, end: int) -> Iterator[Run]:
    """[start, end) in runs of at most ZERO_STEP bytes."""
    for at in range(start, end, ZERO_STEP):
        yield Run(at, min(ZERO_STEP, end - at), True)


def split(data: bytes, start: int, granule: int) -> list[Run]:
    """The batch at `start` as runs of data and zeros, adjacent, cut at multiples of `granule` bytes. The
    shortest runs of zeros between data are taken for data as long as they are few against the data."""
    runs = _find(data, start, granule)
    if len(runs) < 4:
        return runs
    allowance = int(_BRIDGED * sum(run.length for run in runs if not run.zero))
    between = sorted(run.length for run in runs[1:-1] if run.zero)
    longest = 0
    for length in between:
        allowance -= length
        if allowance < 0:
            break
        longest = length
    if not longest or longest == between[-1]:
        return _joined(runs, longest)
    # Of the runs as long as the longest, some would have to stay.
    return _joined(runs, longest - 1)


def _find(data: bytes, start: int, granule: int) -> list[Run]:
    zeros = bytes(granule)
    runs: list[Run] = []
    begin, before = 0, None
    at = 0
    while at < len(data):
        stop = min(len(data), (start + at) // granule * granule + granule - start)
        # startswith is a plain memcmp: the cheapest test for zeros there is.
        zero = data.startswith(zeros if stop - at == granule else bytes(stop - at), at)
        if before is not None and zero != before:
            runs.append(Run(start + begin, at - begin, before))
            begin = at
        before = zero
        at = stop
    if before is not None:
        runs.append(Run(start + begin, len(data) - begin, before))
    return runs


def _joined(runs: list[Run], longest: int) -> list[Run]:
    """Runs of zeros between data of at most that length become data."""
    joined: list[Run] = []
    for number, run in enumerate(runs):
        inner = 0 < number < len(runs) - 1
        zero = run.zero and not (inner and run.length <= longest)
        if joined and joined[-1].zero == zero:
            joined[-1] = Run(joined[-1].start, joined[-1].length + run.length, zero)
        else:
            joined.append(Run(run.start, run.length, zero))
    return joined
