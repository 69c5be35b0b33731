"""Keeping the tree up with the repository: looked at again when somebody looks at the tree."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Protocol

import trio

from vmfs.catalog import DamagedPoint, PointRow
from vmfs.errors import VmfsError
from vmfs.fs.listing import Listing, build
from vmfs.fs.log import warn_once
from vmfs.fs.tree import Gone, Tree

INTERVAL = 2.0
# How long a client waits for a slow store before it is shown what is known; the look-up goes on.
PATIENCE = 1.0
# A manifest that could not be read is tried again, as the store may have been at fault.
DAMAGED_INTERVAL = 60.0


class Rows(Protocol):
    """Where the listing comes from: the repository's store and its catalog, on the mount's behalf."""

    def point_ids(self) -> list[str]: ...

    def sync(self) -> list[DamagedPoint]: ...

    def points(self) -> list[PointRow]: ...


class ListingSource:
    """Makes listings. Blocks; one thread at a time."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._started_ns = time.time_ns()
        self._ids: list[str] | None = None
        self._retry: float | None = None

    def load(self) -> Listing | None:
        """The present state, None if nothing changed since the last call. Raises StoreError."""
        ids = self._rows.point_ids()
        due = self._retry is not None and time.monotonic() >= self._retry
        if ids == self._ids and not due:
            return None
        damaged = self._rows.sync()
        for point in damaged:
            warn_once(f"point {point.id} is damaged: {point.message}")
        listing = build(self._rows.points(), damaged, self._started_ns)
        self._ids = ids
        self._retry = time.monotonic() + DAMAGED_INTERVAL if damaged else None
        return listing


class Refresher:
    """Refreshes a tree at most every INTERVAL seconds, and only when somebody asks."""

    def __init__(self, tree: Tree, source: ListingSource, gone: Callable[[Gone], None]) -> None:
        """`gone` is told of every name that went away."""
        self._tree = tree
        self._source = source
        self._gone = gone
        self._looked = -math.inf
        self._wanted = trio.Event()
        self._done = trio.Event()

    def poke(self) -> None:
        """Somebody looked: refresh in the background if it is time."""
        if trio.current_time() - self._looked >= INTERVAL:
            self._wanted.set()

    async def fresh(self) -> None:
        """Wait until the tree is at most INTERVAL old, or PATIENCE is over."""
        if trio.current_time() - self._looked < INTERVAL:
            return
        self._wanted.set()
        with trio.move_on_after(PATIENCE):
            await self._done.wait()

    async def run(self) -> None:
        """The background task; ends by being cancelled."""
        # The tree was made a moment ago.
        self._looked = trio.current_time()
        while True:
            await self._wanted.wait()
            try:
                listing = await trio.to_thread.run_sync(self._source.load, abandon_on_cancel=True)
            except VmfsError as error:
                warn_once(f"the list of restore points is not up to date: {error}")
            except Exception as error:
                warn_once(f"the list of restore points is not up to date: {error}", exc_info=True)
            else:
                if listing is not None:
                    for name in self._tree.replace(listing):
                        self._gone(name)
            self._looked = trio.current_time()
            done, self._done, self._wanted = self._done, trio.Event(), trio.Event()
            done.set()
