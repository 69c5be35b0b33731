"""Names in the mount, and the listing made of them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmfs.catalog import DamagedPoint, DiskRow, PointRow
from vmfs.fs.entries import Role
from vmfs.fs.listing import build
from vmfs.fs.names import Wanted, of_time, safe, unique

WHEN = datetime(2026, 11, 20, 10, 0, 0, 123456, tzinfo=UTC)
STARTED = 5


@pytest.mark.parametrize(
    ("stem", "expected"),
    [
        ("web", b"web.raw"),
        ("größe", "größe.raw".encode()),
        ("a/b\n\x00", b"a_b__.raw"),
        (".hidden", b"_hidden.raw"),
        ("..", b"_..raw"),
        ("", b"_.raw"),
        ("\udce4", b"_.raw"),
        ("x" * 300, b"x" * 251 + b".raw"),
        ("ü" * 200, "ü".encode() * 125 + b".raw"),
    ],
)
def test_safe(stem: str, expected: bytes) -> None:
    assert safe(stem, ".raw") == expected


stems = st.text(max_size=300) | st.sampled_from(["a", "A", "a/", "a_", ".", "..", "latest", "a-x", "a-x-2"])


@given(st.lists(st.tuples(stems, st.sampled_from(["", ".raw", "-p1.raw"]), st.sampled_from(["x", "y"]))))
def test_unique_names_are_safe_different_and_repeatable(items: list[tuple[str, str, str]]) -> None:
    wanted = [Wanted(*item) for item in items]
    names = unique(wanted, taken=(b"latest",))
    assert names == unique(wanted, taken=(b"latest",))
    assert len(set(names)) == len(names) == len(items)
    for name, (_, ending, _) in zip(names, items, strict=True):
        text = name.decode()
        assert 1 <= len(name) <= 255
        assert text.endswith(ending)
        assert "/" not in text
        assert "\0" not in text
        assert not text.startswith(".")
    assert b"latest" not in names


def test_who_needed_no_change_keeps_the_plain_name() -> None:
    names = unique([Wanted("a/b", "", "id1"), Wanted("a_b", "", "id2"), Wanted("a_b", "", "id3")])
    assert names == [b"a_b-id1", b"a_b", b"a_b-id3"]


def test_time_is_utc_whatever_the_zone() -> None:
    assert of_time(WHEN) == "2026-11-20T100000Z"
    assert of_time(WHEN.astimezone(timezone(timedelta(hours=9)))) == "2026-11-20T100000Z"


def row(number: int, time: datetime = WHEN, vm: str = "web", vm_id: str = "id-of-web") -> PointRow:
    disk = DiskRow("d", "sda", 1 << 30, 1 << 20, "full", None, 0, 0, 0)
    return PointRow(
        f"01M7XMGRWRS4SG33RM609P{number:04d}", vm, vm_id, None, time, "crash", None, "", b"", (disk,), ()
    )


def test_listing() -> None:
    listing = build([row(1), row(2, WHEN + timedelta(hours=1)), row(3, vm="db", vm_id="db")], [], STARTED)
    top = listing.children[listing.root.key]
    assert set(top) == {b"web", b"db"}
    web = listing.children[top[b"web"].key]
    assert list(web) == [b"2026-11-20T100000Z", b"2026-11-20T110000Z", b"latest"]
    assert web[b"latest"].target == b"2026-11-20T110000Z"
    assert web[b"latest"].size == len(web[b"latest"].target)
    assert web[b"2026-11-20T100000Z"].point.endswith("0001")
    assert top[b"web"].mtime_ns == web[b"latest"].mtime_ns
    assert web[b"2026-11-20T100000Z"].mtime_ns % 10**9 == 123_456_000
    assert (listing.size, listing.allocated, listing.files) == (3 << 30, 3 << 20, 3)


def test_points_of_one_second_keep_their_names_when_another_comes() -> None:
    first = build([row(1)], [], STARTED).children["vm//id-of-web"]
    both = build([row(1), row(2, WHEN + timedelta(milliseconds=5))], [], STARTED).children["vm//id-of-web"]
    assert set(first) == {b"2026-11-20T100000Z", b"latest"}
    assert set(both) == {b"2026-11-20T100000Z", b"2026-11-20T100000Z-9p0002", b"latest"}
    assert both[b"2026-11-20T100000Z"] == first[b"2026-11-20T100000Z"]
    assert both[b"latest"].target == b"2026-11-20T100000Z-9p0002"


def test_two_vms_of_one_name() -> None:
    listing = build([row(1), row(2, vm_id="another-id")], [], STARTED)
    top = listing.children[listing.root.key]
    assert set(top) == {b"web", b"web-another-"}
    assert top[b"web"].key == "vm//id-of-web"


def test_renamed_vm_is_one_directory() -> None:
    renamed = replace(row(2, WHEN + timedelta(hours=1)), vm="www")
    listing = build([replace(row(1), vm="www"), renamed], [], STARTED)
    assert set(listing.children[listing.root.key]) == {b"www"}


def test_damaged_points_are_not_lost_from_sight() -> None:
    broken = DamagedPoint("01M7XMGRWRS4SG33RM609P9999", "authentication failed")
    listing = build([row(1)], [broken], STARTED)
    top = listing.children[listing.root.key]
    assert top[b"damaged"].role is Role.DAMAGED
    assert set(listing.children["damaged"]) == {broken.id.encode()}
    named_so = build([row(1, vm="damaged")], [broken], STARTED)
    assert set(named_so.children[named_so.root.key]) == {b"damaged", b"damaged-points"}


def test_empty_repository() -> None:
    listing = build([], [], STARTED)
    assert listing.children[listing.root.key] == {}
    assert listing.root.mtime_ns == STARTED
