"""The SDK's objects and their values in plain Python."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import ovirtsdk4


def text_of(item: Any) -> str | None:
    """Of one of its enumerations; None for what is not there, or is a word that this SDK does not know."""
    return None if item is None else str(item.value)


def has_ended(backup: Any) -> bool:
    """Whether a backup of the SDK's has; one in a phase that this SDK does not know has not."""
    return text_of(backup.phase) in ("succeeded", "failed")


def utc(moment: datetime | None) -> datetime | None:
    """In UTC, with a time zone of Python's own: the SDK's cannot be copied."""
    if moment is None:
        return None
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def found_by(service: Any) -> Any:
    """The object of an SDK service, None if the engine has none. For `Engine.ask` and the like, which
    translate all other errors."""
    try:
        return service.get()
    except ovirtsdk4.NotFoundError:
        return None
