"""Which blocks of a disk were written: a bit each, in pages of which only some are in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import NamedTuple

PAGE = 4096
"""Bytes of a page."""
PAGE_BLOCKS = PAGE * 8
KEPT = 1024
"""Pages that stay in memory, if they need not be written."""
_ZEROS = bytes(PAGE)

LoadPage = Callable[[int], bytes]
"""The page of that number, as it was stored last. Raises OSError."""


class Run(NamedTuple):
    """Blocks [first, end), all of them written or none."""

    first: int
    end: int
    written: bool


class Bitmap:
    """`stored` are the pages that there are outside; all others are zeros. Not thread-safe.

    For the 2^34 blocks of 64 TiB there are 2^19 pages; what is in memory is KEPT of them, those that must be
    written, and a number for each that has a bit set.
    """

    def __init__(self, blocks: int, load: LoadPage, stored: Iterable[int] | None = None) -> None:
        self.blocks = blocks
        self._load = load
        self._stored = set(stored or ())
        self._pages: OrderedDict[int, bytearray] = OrderedDict()
        self._dirty: set[int] = set()

    @property
    def dirty(self) -> int:
        """How many pages must be written."""
        return len(self._dirty)

    def missing(self, first: int, end: int) -> list[int]:
        """The pages of blocks [first, end) that are not stored."""
        return [
            page for page in range(first // PAGE_BLOCKS, -(-end // PAGE_BLOCKS)) if page not in self._stored
        ]

    def add(self, page: int) -> None:
        """The page is stored now, as zeros."""
        self._stored.add(page)

    def runs(self, first: int, end: int) -> list[Run]:
        """Blocks [first, end), in order; adjacent runs differ. Raises OSError."""
        found: list[Run] = []
        for page, low, high in _parts(first, end):
            base = page * PAGE_BLOCKS
            if page not in self._stored:
                _append(found, base + low, base + high, False)
                continue
            bits = _take(self._page(page), low, high)
            at = low
            while at < high:
                written = bool(bits & 1)
                # The number of equal bits at the low end.
                other = ~bits if written else bits
                count = min((other & -other).bit_length() - 1, high - at) if other else high - at
                _append(found, base + at, base + at + count, written)
                bits >>= count
                at += count
        return found

    def set(self, first: int, end: int) -> int:
        """Blocks [first, end) are written; the number of those that were not before. The pages must be
        stored. Raises OSError, and then has changed nothing of the page that could not be read."""
        added = 0
        for number, low, high in _parts(first, end):
            page = self._page(number)
            begin, stop = low >> 3, (high + 7) >> 3
            before = int.from_bytes(page[begin:stop], "little")
            after = before | ((1 << (high - low)) - 1) << (low & 7)
            if after != before:
                page[begin:stop] = after.to_bytes(stop - begin, "little")
                self._dirty.add(number)
                added += after.bit_count() - before.bit_count()
        return added

    def take_dirty(self) -> dict[int, bytes]:
        """The pages to be written now, as they are now. They count as stored: who cannot store them tells so
        by `put_back`."""
        taken = {number: bytes(self._pages[number]) for number in sorted(self._dirty)}
        self._dirty.clear()
        return taken

    def put_back(self, pages: Iterable[int]) -> None:
        """Those pages could not be stored. Since they were taken `shrink` must have been told to hold
        them."""
        self._dirty.update(pages)

    def shrink(self, held: Collection[int] = ()) -> None:
        """Drop what need not be in memory, but not `held`, pages that are being stored."""
        if len(self._pages) <= KEPT:
            return
        for number in list(self._pages):
            if len(self._pages) <= KEPT:
                break
            if number not in self._dirty and number not in held:
                del self._pages[number]

    def _page(self, number: int) -> bytearray:
        page = self._pages.get(number)
        if page is None:
            page = self._pages[number] = bytearray(self._load(number))
        else:
            self._pages.move_to_end(number)
        return page


def _parts(first: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(page, first bit in it, end bit in it)."""
    while first < end:
        page, low = divmod(first, PAGE_BLOCKS)
        high = min(PAGE_BLOCKS, low + end - first)
        yield page, low, high
        first += high - low


def _take(page: bytearray, low: int, high: int) -> int:
    """Bits [low, high) of the page as a number."""
    bits = int.from_bytes(page[low >> 3 : (high + 7) >> 3], "little") >> (low & 7)
    return bits & ((1 << (high - low)) - 1)


def _append(runs: list[Run], first: int, end: int, written: bool) -> None:
    if runs and runs[-1].written is written:
        runs[-1] = Run(runs[-1].first, end, written)
    else:
        runs.append(Run(first, end, written))
