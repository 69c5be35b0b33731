"""The TIME of VM@TIME."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmfs.catalog.models import from_microseconds, to_microseconds
from vmfs.catalog.timespan import end_of
from vmfs.errors import UsageError


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("2026", utc(2027, 1, 1)),
        ("2024", utc(2025, 1, 1)),
        ("2026-11", utc(2026, 12, 1)),
        ("2026-12", utc(2027, 1, 1)),
        ("2026-11-20", utc(2026, 11, 21)),
        ("20261120", utc(2026, 11, 21)),
        ("2026-12-31", utc(2027, 1, 1)),
        ("2026-11-20T10", utc(2026, 11, 20, 11)),
        ("2026-11-20T10:00", utc(2026, 11, 20, 10, 1)),
        ("2026-11-20 10:00", utc(2026, 11, 20, 10, 1)),
        ("2026-11-20T10:00:00", utc(2026, 11, 20, 10, 0, 1)),
        ("2026-11-20T100000Z", utc(2026, 11, 20, 10, 0, 1)),
        ("2026-11-20t100000z", utc(2026, 11, 20, 10, 0, 1)),
        ("20261120T100000Z", utc(2026, 11, 20, 10, 0, 1)),
        ("2026-11-20T10:00:00.5Z", utc(2026, 11, 20, 10, 0, 0, 600_000)),
        ("2026-11-20T10:00:00,123456", utc(2026, 11, 20, 10, 0, 0, 123_457)),
        ("2026-11-20T10:00:00+01:00", utc(2026, 11, 20, 9, 0, 1)),
        ("2026-11-20T10:00-0530", utc(2026, 11, 20, 15, 31)),
        ("2026-11-20T23:59:59+14", utc(2026, 11, 20, 10, 0, 0)),
        (" 2026-11-20 ", utc(2026, 11, 21)),
    ],
)
def test_names_a_whole_span(text: str, end: datetime) -> None:
    assert from_microseconds(end_of(text)) == end


@pytest.mark.parametrize(
    ("text", "distance"),
    [
        ("0001-01-01T00:00+14:00", timedelta(hours=-14, minutes=1) - (utc(9999, 12, 31) - utc(1, 1, 1))),
        ("9999-12-31T23:59:59-14:00", timedelta(days=1, hours=14)),
        ("9999", timedelta(days=1)),
        ("9999-12-31", timedelta(days=1)),
    ],
)
def test_ends_of_the_calendar(text: str, distance: timedelta) -> None:
    """No datetime can be so early or so late, so they are told by their distance from one."""
    assert end_of(text) - to_microseconds(utc(9999, 12, 31)) == distance // timedelta(microseconds=1)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "latest ",
        "yesterday",
        "26-11-20",
        "2026-13-01",
        "2026-02-30",
        "2026-00",
        "2026-11-20T25",
        "2026-11-20T10:61",
        "2026-11-20T10:00:00+99:00",
        "2026-11-20Z",
        "2026-11-20T10:00:00.1234567",
        "0000",
        "٢٠٢٦",
        "2026-11-20\n2026",
    ],
)
def test_refuses_what_is_no_time(text: str) -> None:
    with pytest.raises(UsageError, match="is not a time; write latest"):
        end_of(text)


@given(st.text())
def test_any_text_is_a_time_or_a_usage_error(text: str) -> None:
    try:
        end_of(text)
    except UsageError as error:
        assert "\n" not in str(error)  # noqa: PT017 - nothing is raised for a good time


@given(st.datetimes(timezones=st.just(UTC)))
def test_microseconds_keep_every_time(time: datetime) -> None:
    assert from_microseconds(to_microseconds(time)) == time
