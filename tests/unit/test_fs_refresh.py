"""When the tree is brought up to date, on a clock of the test's own."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta

import pytest
import trio
import trio.testing
from test_fs_names import WHEN, row

from vmfs.catalog import DamagedPoint, PointRow
from vmfs.errors import StoreError
from vmfs.fs import log
from vmfs.fs.refresh import INTERVAL, ListingSource, Refresher
from vmfs.fs.tree import Gone, Tree


@dataclass
class Rows:
    """A repository of rows; `error` is what listing it raises, `gate` makes it slow."""

    rows: list[PointRow]
    damaged: list[DamagedPoint] = field(default_factory=list)
    error: Exception | None = None
    gate: threading.Event | None = None
    listings: int = 0
    syncs: int = 0

    def point_ids(self) -> list[str]:
        self.listings += 1
        if self.gate:
            self.gate.wait(20)
        if self.error:
            raise self.error
        return [point.id for point in self.rows]

    def sync(self) -> list[DamagedPoint]:
        self.syncs += 1
        return self.damaged

    def points(self) -> list[PointRow]:
        return list(self.rows)


Work = Callable[[Rows, Tree, Refresher, list[Gone]], Awaitable[None]]


def refreshed(work: Work) -> None:
    log.forget_said()
    rows = Rows([row(1)])
    source = ListingSource(rows)
    listing = source.load()
    assert listing is not None
    tree = Tree(listing, None)  # type: ignore[arg-type]
    gone: list[Gone] = []

    async def main() -> None:
        refresher = Refresher(tree, source, gone.append)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refresher.run)
            await trio.testing.wait_all_tasks_blocked()
            await work(rows, tree, refresher, gone)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock())


def clock() -> trio.testing.MockClock:
    found = trio.lowlevel.current_clock()
    assert isinstance(found, trio.testing.MockClock)
    return found


def test_at_most_once_an_interval() -> None:
    async def work(rows: Rows, tree: Tree, refresher: Refresher, gone: list[Gone]) -> None:
        rows.rows.append(row(2, WHEN + timedelta(hours=1)))
        await refresher.fresh()
        assert tree.listing.files == 1
        clock().jump(INTERVAL)
        await refresher.fresh()
        assert (tree.listing.files, rows.listings) == (2, 2)
        await refresher.fresh()
        refresher.poke()
        assert rows.listings == 2
        clock().jump(INTERVAL)
        await refresher.fresh()
        assert (rows.listings, rows.syncs) == (3, 2)

    refreshed(work)


def test_many_who_wait_cause_one_listing() -> None:
    async def work(rows: Rows, tree: Tree, refresher: Refresher, gone: list[Gone]) -> None:
        rows.rows.clear()
        clock().jump(INTERVAL)
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(refresher.fresh)
        assert (rows.listings, tree.listing.files) == (2, 0)
        assert gone == [Gone(1, b"web")]

    refreshed(work)


def test_a_slow_store_does_not_hold_up_clients() -> None:
    async def work(rows: Rows, tree: Tree, refresher: Refresher, gone: list[Gone]) -> None:
        rows.rows.append(row(2, WHEN + timedelta(hours=1)))
        rows.gate = threading.Event()
        clock().jump(INTERVAL)
        clock().autojump_threshold = 0
        await refresher.fresh()
        assert tree.listing.files == 1
        rows.gate.set()
        while tree.listing.files == 1:
            await trio.sleep(0.001)

    refreshed(work)


def test_errors_leave_the_tree_as_it_was(caplog: pytest.LogCaptureFixture) -> None:
    async def work(rows: Rows, tree: Tree, refresher: Refresher, gone: list[Gone]) -> None:
        for error in (StoreError("store is away"), StoreError("store is away"), ValueError("a bug")):
            rows.error = error
            clock().jump(INTERVAL)
            await refresher.fresh()
            assert tree.listing.files == 1
        rows.error = None
        rows.rows.append(row(2, WHEN + timedelta(hours=1)))
        clock().jump(INTERVAL)
        await refresher.fresh()
        assert tree.listing.files == 2

    refreshed(work)
    assert caplog.text.count("store is away") == 1
    assert caplog.text.count("up to date: a bug") == 1


def test_damaged_points_are_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Rows([row(1)], damaged=[DamagedPoint("01M7XMGRWRS4SG33RM609P9999", "bad")])
    source = ListingSource(rows)
    assert source.load() is not None
    assert source.load() is None
    monkeypatch.setattr("vmfs.fs.refresh.DAMAGED_INTERVAL", 0.0)
    rows.rows.append(row(2))
    assert source.load() is not None
    rows.damaged = []
    again = source.load()
    assert again is not None
    assert "damaged" not in again.children
    assert source.load() is None
