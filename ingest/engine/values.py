"""Values of the SDK's objects in plain Python."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any


def text_of(item: Any) -> str | None:
    """Of one of its enumerations; None for what is not there, or is a word that this SDK does not know."""
    return None if item is None else str(item.value)


def utc(moment: datetime | None) -> datetime | None:
    """In UTC, with a time zone of Python's own: the SDK's cannot be copied."""
    if moment is None:
        return None
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
