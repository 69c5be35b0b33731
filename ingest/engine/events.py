"""The engine's event log: where it says why something failed. Reading it is best effort: never an error."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass

from ingest.engine.errors import EngineError
from ingest.engine.session import Engine
from ingest.engine.values import text_of

log = logging.getLogger(__name__)

FULL_BACKUP_NEEDED = 10791
"""AuditLogType of ovirt-engine: redefining the checkpoints failed, and all of the VM's were removed."""
SNAPSHOT_NOT_REMOVED = 10813
ENDED_BY_RESTART = 10814
MAX_EVENTS = 200

_OF_TRANSFERS = frozenset((10802, *range(1062, 1080)))
"""AuditLogType of ovirt-engine: what a host said when it failed, and what became of transfers."""

_BROKEN = re.compile(
    r"full backup is (now )?needed"
    r"|bitmap\b.*(not exist|not found|inconsistent|invalid|corrupt|missing|broken)"
    r"|(invalid|inconsistent|missing|no such|broken) (dirty )?bitmap|redefin\w+ .*checkpoint"
    r"|checkpoint\b.*(not exist|not found|invalid|inconsistent|missing)|(no such|invalid|missing) checkpoint",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, order=True)
class EngineEvent:
    """`index` grows with time."""

    index: int
    code: int
    text: str
    severity: str = "error"
    """normal, warning, error or alert."""
    host_id: str = ""


def newest_event(engine: Engine) -> int:
    """Index of the newest event, to tell later ones from; 0 if it cannot be read."""
    found = _list(engine, max=1)
    return max((event.index for event in found), default=0)


def events_about(engine: Engine, *ids: str, since: int = 0, vm_id: str | None = None) -> list[EngineEvent]:
    """Events after the one of index `since`, in their order, in which one of the ids is told, or, if `vm_id`
    is given, which are of that VM."""
    found = {event for id in ids for event in _list(engine, search=id, max=MAX_EVENTS) if event.index > since}
    if vm_id is not None and since:
        found.update(_list(engine, vm_id=vm_id, from_=since, max=MAX_EVENTS))
    return sorted(found)


def events_of_transfer(
    engine: Engine, *ids: str, since: int, host_id: str | None = None
) -> list[EngineEvent]:
    """Events after the one of index `since` that may tell why an image transfer failed: those in which one of
    the ids is told, and as few tell any, what has gone wrong with transfers, on its host if that is known."""
    found = {event for id in ids for event in _list(engine, search=id, max=MAX_EVENTS) if event.index > since}
    if since:
        found.update(
            event
            for event in _list(engine, from_=since, max=MAX_EVENTS)
            if event.code in _OF_TRANSFERS and host_id in (None, event.host_id or host_id)
        )
    return sorted(found)


def tell(events: Iterable[EngineEvent], fallback: str) -> str:
    """What the engine said went wrong, in one line; the fallback if it said nothing."""
    found = [event for event in events if event.text]
    worst = [event for event in found if event.severity in ("error", "alert")] or [
        event for event in found if event.severity == "warning"
    ]
    return "; ".join(dict.fromkeys(event.text.rstrip(".") for event in worst)) or fallback


def tells_broken_chain(events: Iterable[EngineEvent]) -> bool:
    """Whether an incremental backup is impossible for good, and a full one may do."""
    return any(event.code == FULL_BACKUP_NEEDED or words_of_broken_chain(event.text) for event in events)


def words_of_broken_chain(text: str) -> bool:
    return bool(_BROKEN.search(text))


def _list(engine: Engine, *, vm_id: str | None = None, **query: object) -> list[EngineEvent]:
    try:
        found = engine.ask("events", lambda: engine.services().events_service().list(**query), repeat=True)
    except EngineError as error:
        log.debug("reading the engine's events: %s", error)
        return []
    return [
        EngineEvent(
            event.index if event.index is not None else _number(event.id),
            event.code or 0,
            " ".join((event.description or "").split()),
            text_of(event.severity) or "error",
            event.host.id if event.host else "",
        )
        for event in found
        if vm_id is None or (event.vm is not None and event.vm.id == vm_id)
    ]


def _number(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 0
