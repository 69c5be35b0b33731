"""What was fetched ahead, and what is being fetched: which part of which disk is in which slot."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import trio

from vmfs.errors import IntegrityError, StoreError
from vmfs.fs.content import DiskReader
from vmfs.fs.helpers import Helpers

Key = tuple[str, int]
"""A disk, and the number of a slot-sized piece of it."""

# A sequential reader goes round in as many slots: more than the window that is fetched ahead, few enough for
# the processor's caches.
_ROUND = 16


@dataclass(slots=True, eq=False)
class _Slot:
    """`readers` wait for it or use it: it must not be given to another piece meanwhile. `left` is how many of
    its bytes nobody has read yet."""

    number: int
    key: Key
    left: int
    awaited: bool = False
    done: trio.Event = field(default_factory=trio.Event)
    filled: bool = False
    readers: int = 0


class Slots:
    """Belongs to the thread of the event loop. `lost` is called, once, when the helpers are gone."""

    def __init__(self, helpers: Helpers, lost: Callable[[], None]) -> None:
        self._helpers = helpers
        self._lost = lost
        self._free = dict.fromkeys(range(helpers.slots))
        # By number, read to the end, last one last. They are used again first: what was just read is in the
        # processor's caches, and memory that is never needed is never touched.
        self._spent: dict[int, _Slot] = {}
        # Least recently used first.
        self._slots: OrderedDict[Key, _Slot] = OrderedDict()
        self._loading: dict[int, _Slot] = {}
        self._awaited = 0
        self._somebody_waits = trio.Event()
        self._alive = True

    def fetch(self, disk: str, reader: DiskReader, start: int, end: int) -> None:
        """Begin to fetch bytes [start, end) of the disk, as far as there are slots for it."""
        size = self._helpers.slot_size
        chunks = size // reader.chunk_size
        last_chunk = -(-reader.size // reader.chunk_size)
        for piece in range(start // size, -(-end // size)):
            if (disk, piece) in self._slots or not self._alive:
                continue
            first = piece * chunks
            try:
                ids = reader.chunk_ids(first, min(chunks, last_chunk - first))
            except (IntegrityError, StoreError):
                # Whoever reads there is told.
                return
            if not self._begin((disk, piece), ids):
                return

    async def get(self, disk: str, offset: int, length: int) -> bytes | memoryview | None:
        """Bytes [offset, offset + length) of the disk if they were fetched or are being so; else None. A view
        holds until the caller lets other tasks run."""
        size = self._helpers.slot_size
        if (disk, offset // size) not in self._slots:
            return None
        self._take_replies()
        end = offset + length
        used: list[_Slot] = []
        try:
            for piece in range(offset // size, -(-end // size)):
                slot = self._slots.get((disk, piece))
                if slot is None:
                    return None
                slot.readers += 1
                used.append(slot)
            for slot in used:
                if not slot.done.is_set():
                    await self._wait_for(slot)
                if not slot.filled:
                    return None
                if slot.key in self._slots:
                    self._slots.move_to_end(slot.key)
                base = slot.key[1] * size
                slot.left -= min(end - base, size) - max(offset - base, 0)
                if slot.left <= 0:
                    self._spent[slot.number] = slot
            return self._view(used, offset % size, length)
        finally:
            for slot in used:
                slot.readers -= 1

    def _view(self, used: Sequence[_Slot], start: int, length: int) -> bytes | memoryview:
        """`length` bytes from byte `start` of the first of the slots on."""
        first = used[0].number
        if all(slot.number == first + place for place, slot in enumerate(used)):
            return self._helpers.view(first, start, start + length)
        size = self._helpers.slot_size
        parts = []
        for slot in used:
            stop = min(start + length, size)
            parts.append(self._helpers.view(slot.number, start, stop))
            length -= stop - start
            start = 0
        return b"".join(parts)

    async def run(self) -> None:
        """The background task that takes the helpers' answers; ends by being cancelled, or without them."""
        async with trio.open_nursery() as nursery:

            async def wake() -> None:
                await self._wake_readers()
                nursery.cancel_scope.cancel()

            nursery.start_soon(wake)
            await self._helpers.wait_for_death()
            nursery.cancel_scope.cancel()
        self._alive = False
        for slot in list(self._loading.values()):
            self._finish(slot, False)
        self._lost()

    async def _wake_readers(self) -> None:
        """Returns when no helper is left. Sleeps while nobody waits for a slot: the next reader looks for
        replies anyway, and to be woken by each of them costs as much as a read."""
        while self._take_replies():
            if not self._awaited:
                self._somebody_waits = trio.Event()
                await self._somebody_waits.wait()
            await self._helpers.wait_for_replies()

    async def _wait_for(self, slot: _Slot) -> None:
        if not slot.awaited:
            slot.awaited = True
            self._awaited += 1
            self._somebody_waits.set()
        await slot.done.wait()

    def _take_replies(self) -> bool:
        """Whether there are helpers."""
        try:
            for number, filled in self._helpers.replies():
                self._finish(self._loading[number], filled)
        except (EOFError, OSError):
            return False
        return True

    def _begin(self, key: Key, ids: Sequence[bytes | None]) -> bool:
        number = self._take(self._after(key))
        if number is None:
            return False
        if not self._helpers.request(number, ids):
            self._free[number] = None
            return False
        self._slots[key] = self._loading[number] = _Slot(number, key, self._helpers.slot_size)
        return True

    def _after(self, key: Key) -> int | None:
        """The slot that is best for this piece: side by side with the piece before it, so that a read of both
        is one view and no copy. The kernel's requests seldom begin where pieces do."""
        disk, piece = key
        before = self._slots.get((disk, piece - 1))
        if before is None:
            return None
        number = before.number + 1
        return number if number % _ROUND else number - _ROUND

    def _take(self, wanted: int | None) -> int | None:
        """A slot to fill: the wanted one if it can be had, one that was read to its end, a free one, or the
        one not used for longest."""
        if wanted in self._free:
            del self._free[wanted]
            return wanted
        if wanted in self._spent and self._spent[wanted].readers == 0:
            return self._withdraw(self._spent[wanted])
        for slot in reversed(self._spent.values()):
            if slot.readers == 0:
                return self._withdraw(slot)
        if self._free:
            return self._free.popitem()[0]
        for slot in self._slots.values():
            if slot.readers == 0 and slot.number not in self._loading:
                return self._withdraw(slot)
        return None

    def _withdraw(self, slot: _Slot) -> int:
        self._spent.pop(slot.number, None)
        del self._slots[slot.key]
        return slot.number

    def _finish(self, slot: _Slot, filled: bool) -> None:
        del self._loading[slot.number]
        slot.filled = filled
        slot.done.set()
        self._awaited -= slot.awaited
        if not filled:
            del self._slots[slot.key]
            self._free[slot.number] = None
