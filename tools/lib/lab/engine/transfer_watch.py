"""What the engine does with transfers by itself: renews tickets, ends what nobody uses, forgets."""

from __future__ import annotations

import time
from typing import Any

from lab.engine.core import Engine
from lab.engine.model import FINISHED_BACKUP, Transfer
from lab.engine.transfer_life import end, forget, renew, stop_by_system
from lab.imageio import ImageioError


def monitor(engine: Engine) -> None:
    """Look after running transfers until the lab ends."""

    def task() -> None:
        while True:
            engine.pause(engine.timing.monitor)
            with engine.lock:
                watched = [each for each in engine.transfers.values() if each.phase == "transferring"]
            for transfer in watched:
                _look(engine, transfer)
            _purge(engine)

    engine.spawn("monitor", task, for_ever=True)


def _look(engine: Engine, transfer: Transfer) -> None:
    host, ticket_id = engine.hosts.get(transfer.host_id or ""), transfer.ticket_id
    if host is None or ticket_id is None:
        return
    try:
        ticket = host.imageio.get_ticket(ticket_id)
    except ImageioError:
        if transfer.phase == "transferring":
            text = "Transfer was stopped by system. Reason: missing transfer image ticket."
            engine.event(1065, text, "error")
            stop_by_system(engine, transfer)
        return
    transfer.active = bool(ticket.get("active"))
    transfer.transferred = int(ticket.get("transferred") or 0)
    if not transfer.no_renewal and time.monotonic() > transfer.expires - engine.timing.ticket_allowance:
        renew(engine, transfer)
    idle = float(ticket.get("idle_time") or 0)
    if 0 < transfer.inactivity_timeout < idle and not transfer.active:
        inactive(engine, transfer)


def inactive(engine: Engine, transfer: Transfer) -> None:
    """Nobody has used it for too long: its policy decides."""
    if transfer.timeout_policy == "cancel":
        text = "The transfer was canceled by the system according to the timeout policy."
        engine.event(1076, f"{text} Reason: client inactivity timeout.", "error")
        with engine.lock:
            if transfer.phase == "transferring":
                end(engine, transfer, "cancelled_system")
    elif transfer.timeout_policy == "pause":
        text = "The transfer was paused by the system according to the timeout policy."
        engine.event(1077, f"{text} Reason: client inactivity timeout.", "warning")
        with engine.lock:
            if transfer.phase == "transferring":
                transfer.phase = "paused_system"
    elif transfer.direction == "download":
        engine.event(
            1072, "Download was canceled by system. Reason: timeout due to transfer inactivity.", "error"
        )
        with engine.lock:
            if transfer.phase == "transferring":
                end(engine, transfer, "cancelled_system")
    else:
        engine.event(
            1071, "Upload was paused by system. Reason: timeout due to transfer inactivity.", "error"
        )
        with engine.lock:
            if transfer.phase == "transferring":
                transfer.phase = "paused_system"


def _purge(engine: Engine) -> None:
    """What has ended is forgotten after a while."""
    now = time.monotonic()
    with engine.lock:
        for transfer in list(engine.transfers.values()):
            life = (
                engine.timing.purge_succeeded
                if transfer.phase == "finished_success"
                else engine.timing.purge_failed
            )
            if transfer.finished is not None and now - transfer.finished > life:
                forget(engine, transfer)
        for backup in list(engine.backups.values()):
            succeeded = backup.phase == "succeeded"
            life = engine.timing.purge_succeeded if succeeded else engine.timing.purge_failed
            if (
                backup.phase in FINISHED_BACKUP
                and backup.finished is not None
                and now - backup.finished > life
            ):
                del engine.backups[backup.id]


def stats(engine: Engine) -> list[dict[str, Any]]:
    """Of every transfer, oldest first: what the daemon itself has counted."""
    with engine.lock:
        transfers = [*engine.forgotten.values(), *engine.transfers.values()]
    seen: dict[str, dict[str, Any]] = {}
    for host in engine.hosts.values():
        seen.update(host.imageio.seen)
    made = []
    for transfer in transfers:
        counted = [seen[ticket] for ticket in transfer.tickets if ticket in seen]
        made.append(
            {
                "transfer_id": transfer.id,
                "disk_id": transfer.disk_id,
                "vm_id": transfer.vm_id,
                "backup_id": transfer.backup_id,
                "direction": transfer.direction,
                "phase": transfer.phase,
                "host": engine.hosts[transfer.host_id].name if transfer.host_id else None,
                "transferred": sum(int(ticket.get("transferred") or 0) for ticket in counted),
                "tickets": len(transfer.tickets),
            }
        )
    return made
