"""The TIME of VM@TIME."""

from __future__ import annotations

import calendar
import re
from datetime import UTC, datetime, timedelta, timezone

from vmfs.catalog.models import to_microseconds
from vmfs.errors import UsageError

_FORM = re.compile(
    r"""(?P<year>\d{4}) (?: -(?P<month>\d\d)
        | -?(?P<month2>\d\d)-?(?P<day>\d\d)
          (?: [T ](?P<hour>\d\d)
              (?: :?(?P<minute>\d\d) (?: :?(?P<second>\d\d) (?:[.,](?P<fraction>\d{1,6}))? )? )?
              (?P<zone> Z | [+-]\d\d(?::?\d\d)? )? )? )?""",
    re.VERBOSE | re.ASCII | re.IGNORECASE,
)
_SECOND = 1_000_000
_DAY = 86_400 * _SECOND


def end_of(text: str) -> int:
    """The end of `span_of(text)`."""
    return span_of(text)[1]


def span_of(text: str) -> tuple[int, int]:
    """Beginning and end, exclusive, of the span that `text` names, in microseconds since 1970.

    ISO 8601, in as much detail as one likes: `2026`, `2026-11`, `2026-11-20`, `2026-11-20T10:00`,
    `2026-11-20T100000Z` as the mount shows it, `2026-11-20T11:00:00.5+01:00`. Without a zone it is UTC.
    Each names a span of its own precision (that day, that minute, that second), since a point's own time has
    microseconds and the mount shows it without. Raises UsageError for anything else.
    """
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise UsageError(_complaint(text))
    parts = match.groupdict()
    month = parts["month"] or parts["month2"]
    try:
        start = datetime(
            int(parts["year"]),
            int(month or 1),
            int(parts["day"] or 1),
            int(parts["hour"] or 0),
            int(parts["minute"] or 0),
            int(parts["second"] or 0),
            tzinfo=_zone(parts["zone"]),
        )
    except ValueError:
        raise UsageError(_complaint(text)) from None
    begin = to_microseconds(start)
    fraction: str | None = parts["fraction"]
    if fraction:
        unit = int(10 ** (6 - len(fraction)))
        return begin + int(fraction) * unit, begin + (int(fraction) + 1) * unit
    if parts["second"]:
        length = _SECOND
    elif parts["minute"]:
        length = 60 * _SECOND
    elif parts["hour"]:
        length = 3600 * _SECOND
    elif parts["day"]:
        length = _DAY
    elif month:
        length = calendar.monthrange(start.year, start.month)[1] * _DAY
    else:
        length = (366 if calendar.isleap(start.year) else 365) * _DAY
    return begin, begin + length


def _zone(text: str | None) -> timezone:
    if text is None or text in "Zz":
        return UTC
    digits = text[1:].replace(":", "").ljust(4, "0")
    offset = timedelta(hours=int(digits[:2]), minutes=int(digits[2:]))
    return timezone(-offset if text[0] == "-" else offset)


def _complaint(text: str) -> str:
    return f"{text!a} is not a time; write latest, 2026-11-20 or 2026-11-20T10:00:00Z"
