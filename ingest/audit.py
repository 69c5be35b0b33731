"""The audit of changed-block tracking: is what was said not to have changed what the parent point has?

A random sample of the unchanged chunks is read again. Nothing but reading can show that a bitmap missed a
write: such a backup looks like any other until it is restored.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ingest.plan import Plan, Run, merged

_BLOCK = 1 << 16
"""Chunks that are drawn from at a time: bounds the memory of a sample."""


@dataclass(frozen=True, slots=True)
class Audit:
    """`percent` of the unchanged chunks of each disk are read again, above 0 to 100, one chunk at least. The
    same `seed` draws the same chunks; None draws others each time."""

    percent: float
    seed: int | None = None

    def sample(self, changed: Plan, whole: Plan, chunks: int) -> Iterator[Run]:
        """The runs to compare, ascending, of a disk of so many chunks. `whole` tells which of them are known
        to be zeros, which need not be read."""
        # S311: no secret. Whoever could foresee it would have to change a guest's bitmap to gain by it.
        drawn = draw(changed, chunks, self.percent, random.Random(self.seed))  # noqa: S311
        return merged(_marked(drawn, whole))


class Finding(NamedTuple):
    """What the audit of one disk found. `read` and `compared` are bytes; the latter has known zeros as well.
    `mismatch` is the offset of the first chunk that differs, bytes; None when none does."""

    alias: str
    compared: int
    read: int
    mismatch: int | None


def draw(changed: Iterable[Run], chunks: int, percent: float, generator: random.Random) -> Iterator[int]:
    """The numbers, ascending, of `percent` of the chunks that are in no run of `changed` (rounded up): every
    one is as likely."""
    gaps = list(_gaps(changed, chunks))
    total = sum(last - first for first, last in gaps)
    wanted = min(total, math.ceil(total * percent / 100))
    left = iter(gaps)
    passed, (first, last) = 0, next(left, (0, 0))
    for start in range(0, total, _BLOCK):
        end = min(start + _BLOCK, total)
        count = wanted * end // total - wanted * start // total
        for number in sorted(generator.sample(range(start, end), count)):
            # The unchanged chunks are numbered through, gap after gap.
            while number - passed >= last - first:
                passed += last - first
                first, last = next(left)
            yield first + number - passed


def _gaps(runs: Iterable[Run], chunks: int) -> Iterator[tuple[int, int]]:
    """[first, last) of the chunks between the runs."""
    end = 0
    for run in runs:
        if run.first > end:
            yield end, run.first
        end = run.first + run.chunks
    if end < chunks:
        yield end, chunks


def _marked(numbers: Iterable[int], whole: Iterable[Run]) -> Iterator[Run]:
    """A run of each chunk, with what `whole`, which has every chunk, says of zeros."""
    rest = iter(whole)
    here = Run(0, 0, False)
    for number in numbers:
        while number >= here.first + here.chunks:
            here = next(rest)
        yield Run(number, 1, here.zero)
