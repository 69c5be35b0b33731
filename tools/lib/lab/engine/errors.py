"""What the engine answers when it does not do what it was asked."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

Status = Literal[400, 401, 403, 404, 409, 500, 503]


class Refused(Exception):
    """A request that the engine answers with a fault: `status` (HTTP) and `detail`, in the engine's words."""

    def __init__(self, status: Status, detail: str, reason: str = "Operation Failed") -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.reason = reason


def conflict(text: str) -> Refused:
    """409: not now."""
    return Refused(409, f"[{text}]")


def bad_request(text: str) -> Refused:
    """400: not like this."""
    return Refused(400, f"[{text}]")


def disks_locked(action: str, aliases: Iterable[str]) -> Refused:
    """409: `action` as in "backup VM"."""
    text = f"The following disks are locked: {', '.join(aliases)}. Please try again in a few minutes."
    return conflict(f"Cannot {action}: {text}")


def not_found(entity_id: str) -> Refused:
    """404."""
    return Refused(404, f"Entity not found: {entity_id}")
