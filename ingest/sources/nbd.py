"""Disks exported over NBD."""

from __future__ import annotations

from collections.abc import Iterator

from ingest.memory import Memory
from ingest.nbd import Address, CommandError, Connection, NbdError, ProtocolError, wire
from ingest.sources.base import BitmapError, Extent, SourceError
from vmfs.format.manifest import MAX_DISK_SIZE, SECTOR

TIMEOUT = 60.0
"""Seconds that a server may take over one request."""
HANDSHAKE_TIMEOUT = 10.0
"""Seconds that a server may take to accept the first connection, and each step of its handshake."""
SPARE_TIMEOUT = 3.0
"""The same for each further connection: a server that serves one client keeps the second waiting for ever."""

_MAX_BATCH = 8
_NEAR = 64 << 20
_MAX_GROUP = 4096

Run = tuple[int, int]
"""Start and end, bytes."""


class NbdSource:
    """An export of an NBD server, at the address `location`. With `bitmap` (the name of a dirty bitmap that
    qemu exports with the disk) it tells what changed.

    Raises UsageError for an address that is not one, BitmapError when the export has no such bitmap, and
    SourceError for all else.
    """

    def __init__(
        self,
        location: str | Address,
        *,
        bitmap: str | None = None,
        name: str | None = None,
        timeout: float = TIMEOUT,
        handshake_timeout: float = HANDSHAKE_TIMEOUT,
    ) -> None:
        self._address = location if isinstance(location, Address) else Address.parse(location)
        self.name = str(location) if name is None else name
        self._timeout = timeout
        self._single = False
        self._context = None if bitmap is None else wire.DIRTY_BITMAP + bitmap
        contexts = [wire.BASE_ALLOCATION] + ([self._context] if self._context else [])
        try:
            self._main = self._connect(contexts, handshake_timeout)
        except NbdError as error:
            raise SourceError(f"disk {self.name}: {error}") from None
        try:
            self.size = self._main.size
            self.block_size = max(SECTOR, self._main.min_block)
            self._check(bitmap)
        except BaseException:
            self._main.close()
            raise

    def extents(self) -> Iterator[Extent]:
        """Zero is what the server's base:allocation says reads as zeros; a server that cannot say has one
        extent of data. Raises SourceError."""
        return _merge(self._allocation(self._main, 0, self.size))

    def dirty_extents(self) -> Iterator[Extent] | None:
        """Asks where data is only near what changed, so that the cost follows the changes and not the disk.
        Raises SourceError."""
        return None if self._context is None else _merge(self._dirty(self._context))

    def reader(self, _: Memory | None = None) -> NbdReader:
        spare = self._spare([])
        return NbdReader(self.name, self.size, spare or self._main, owned=spare is not None)

    def close(self) -> None:
        self._main.close()

    def _connect(self, contexts: list[str], handshake_timeout: float) -> Connection:
        return Connection.open(
            self._address, contexts=contexts, timeout=self._timeout, handshake_timeout=handshake_timeout
        )

    def _spare(self, contexts: list[str]) -> Connection | None:
        """One more connection, or None when the server has none to give: the first is then shared."""
        if self._single:
            return None
        try:
            connection = self._connect(contexts, SPARE_TIMEOUT)
        except NbdError:
            self._single = True
            return None
        if connection.size != self.size or not connection.contexts.issuperset(contexts):
            connection.close()
            raise SourceError(f"disk {self.name}: the server's export changed while it was read")
        return connection

    def _check(self, bitmap: str | None) -> None:
        if not self.size or self.size % SECTOR or self.size > MAX_DISK_SIZE:
            raise SourceError(
                f"disk {self.name} has {self.size} bytes; a disk has a multiple of {SECTOR}, no more "
                f"than {MAX_DISK_SIZE}"
            )
        if self.size % self._main.min_block:
            raise SourceError(
                f"disk {self.name} has {self.size} bytes, and the server cannot read the end of it: "
                f"its blocks have {self._main.min_block}"
            )
        if self._context is None or self._context in self._main.contexts:
            return
        names = ", ".join(ascii(name) for name in self._main.offered_bitmaps[:10])
        raise BitmapError(
            f"disk {self.name}: the server exports no dirty bitmap {bitmap!a}; "
            + (f"it has {names}" if names else "it has none, so take a full backup")
        )

    def _dirty(self, context: str) -> Iterator[Extent]:
        # With a connection that has the bitmap alone, the server need not look up where data is on the whole
        # disk, which it does from tables on the storage.
        spare = self._spare([context])
        try:
            runs = (
                (extent.start, extent.start + extent.length)
                for extent in _merge(self._bitmap(spare or self._main, context))
                if not extent.zero
            )
            for group in _groups(runs):
                yield from _cut(self._allocation(self._main, group[0][0], group[-1][1]), group)
        finally:
            if spare is not None:
                spare.close()

    def _allocation(self, connection: Connection, start: int, end: int) -> Iterator[Extent]:
        if wire.BASE_ALLOCATION not in connection.contexts:
            yield Extent(start, end - start, False)
            return
        for position, length, flags in self._status(connection, wire.BASE_ALLOCATION, start, end):
            yield Extent(position, length, bool(flags & wire.STATE_ZERO))

    def _bitmap(self, connection: Connection, context: str) -> Iterator[Extent]:
        for position, length, flags in self._status(connection, context, 0, self.size):
            yield Extent(position, length, not flags & wire.STATE_DIRTY)

    def _status(
        self, connection: Connection, context: str, start: int, end: int
    ) -> Iterator[tuple[int, int, int]]:
        """(start, length, flags) of the context all over [start, end), which is rounded out to the server's
        blocks for the question and cut back in the answer.

        Several questions are asked at once as long as the server answers each of them whole.
        """
        block = connection.min_block
        position = start // block * block
        limit = -(-end // block) * block
        batch = 1
        while position < limit:
            step = wire.MAX_STATUS_LENGTH
            ranges = [(at, min(step, limit - at)) for at in range(position, limit, step)[:batch]]
            try:
                replies = connection.block_status(context, ranges)
            except CommandError as error:
                raise self._no_status(error.offset, error) from None
            except NbdError as error:
                raise self._no_status(position, error) from None
            batch = min(2 * batch, _MAX_BATCH)
            for (position, length), reply in zip(ranges, replies, strict=True):
                stop = position + length
                for size, flags in wire.STATUS.iter_unpack(reply):
                    if not size:
                        raise self._no_status(position, ProtocolError("the server sent an empty extent"))
                    first, last = max(position, start), min(position + size, stop, end)
                    if first < last:
                        yield first, last - first, flags
                    position = min(position + size, stop)
                if position < stop:
                    batch = 1
                    break

    def _no_status(self, position: int, error: NbdError) -> SourceError:
        return SourceError(f"disk {self.name}: no block status at byte {position}: {error}")


class NbdReader:
    """A connection of its own, or a turn on the source's where the server serves one client only."""

    def __init__(self, name: str, size: int, connection: Connection, *, owned: bool) -> None:
        self._name = name
        self._size = size
        self._connection = connection
        self._owned = owned

    def readinto(self, offset: int, buffer: memoryview) -> None:
        if offset + len(buffer) > self._size:
            raise SourceError(f"disk {self._name} ends at byte {self._size}, before {offset + len(buffer)}")
        try:
            self._connection.readinto(offset, buffer)
        except CommandError as error:
            raise SourceError(f"disk {self._name}: read error at byte {error.offset}: {error}") from None
        except NbdError as error:
            raise SourceError(f"disk {self._name}: read at byte {offset}: {error}") from None

    def close(self) -> None:
        if self._owned:
            self._connection.close()


def _merge(extents: Iterator[Extent]) -> Iterator[Extent]:
    """The same with adjacent extents of one kind made one."""
    last: Extent | None = None
    for extent in extents:
        if last is not None and last.zero == extent.zero and last.start + last.length == extent.start:
            last = Extent(last.start, last.length + extent.length, last.zero)
            continue
        if last is not None:
            yield last
        last = extent
    if last is not None:
        yield last


def _groups(runs: Iterator[Run]) -> Iterator[list[Run]]:
    """Runs near each other together: one question for the whole stretch is cheaper than one a run."""
    group: list[Run] = []
    for run in runs:
        if group and (run[0] - group[-1][1] > _NEAR or len(group) == _MAX_GROUP):
            yield group
            group = []
        group.append(run)
    if group:
        yield group


def _cut(extents: Iterator[Extent], runs: list[Run]) -> Iterator[Extent]:
    """The parts of the extents that lie in the runs. The extents cover all the runs; both ascend."""
    index = 0
    for extent in extents:
        end = extent.start + extent.length
        while index < len(runs) and runs[index][0] < end:
            first, last = max(runs[index][0], extent.start), min(runs[index][1], end)
            if first < last:
                yield Extent(first, last - first, extent.zero)
            if runs[index][1] > end:
                break
            index += 1
