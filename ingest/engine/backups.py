"""Backups of a VM in the engine: begun, waited for, finalized.

A backup goes through the phases initializing, starting, ready, finalizing, and ends as succeeded or failed.
Finalizing it before it is ready makes it fail. The engine forgets it minutes after its end, and then says
404.
"""

from __future__ import annotations

import logging
import math
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from ovirtsdk4 import types

from ingest.engine import events, snapshots
from ingest.engine.errors import (
    BackupFailedError,
    BrokenChain,
    ConflictError,
    EngineError,
    NotFoundError,
    RefusedError,
    WaitError,
)
from ingest.engine.session import LATE_LIMIT, Engine, may_have_made
from ingest.engine.values import has_ended, text_of, utc
from ingest.engine.vms import EngineVm
from vmfs.errors import UsageError

log = logging.getLogger(__name__)

Mode = Literal["auto", "live", "hybrid"]
HYBRID_LEVEL = (4, 7)
"""The first compatibility level of a cluster whose backups are hybrid unless asked to be live."""
READY_LIMIT = 600.0
FINALIZE_LIMIT = 6 * 3600.0
"""Seconds. A hybrid backup is finalizing for as long as the merge of its snapshot takes."""
HURRIED_LIMIT = 300.0
"""Seconds for the same when an error or an interruption is what ends the backup: the engine goes on alone."""

_BUSY = ("initializing", "starting")


@dataclass(frozen=True, slots=True, kw_only=True)
class Backup:
    """A backup that is ready: its disks can be transferred.

    `checkpoint` is the checkpoint taken with it, None if the engine took none (only raw disks).
    `incremental` tells of each disk, by id, whether the engine can say what changed since the checkpoint that
    was asked for. `time` is the engine's time of the backup, UTC.
    """

    id: str
    vm_id: str
    host_id: str | None
    checkpoint: str | None
    incremental: Mapping[str, bool]
    time: datetime | None


@contextmanager
def running_backup(
    engine: Engine,
    vm: EngineVm,
    disk_ids: Sequence[str],
    *,
    description: str,
    since: str | None = None,
    mode: Mode = "auto",
    require_consistency: bool = False,
    backup_id: str | None = None,
    limit: float = READY_LIMIT,
) -> Iterator[Backup]:
    """A backup of these disks, ready within `limit` seconds and finalized when the context is left, however
    it is left; a hybrid one's snapshot is gone then. `since` is the checkpoint to tell the changes since.
    `backup_id` is a UUID of the caller's choice.

    Raises BrokenChain when there can be no incremental backup since that checkpoint, and a full one may do;
    BackupFailedError with the engine's words when the backup failed; UsageError for a mode that the VM's
    cluster does not have. A context left by an exception raises that one, whatever the ending comes to.
    """
    query = _query(vm, mode)
    run = _Run(engine, vm, backup_id or str(uuid.uuid4()), since)
    try:
        run.start(disk_ids, description, query, require_consistency)
        yield run.ready(limit)
    except BaseException as error:
        run.abandon(error)
        raise
    run.finalize(FINALIZE_LIMIT)


def finish_backup(engine: Engine, vm: EngineVm, backup_id: str, *, limit: float = HURRIED_LIMIT) -> None:
    """End a backup that somebody else began, whatever phase it is in; its transfers must have ended.
    Raises EngineError."""
    run = _Run(engine, vm, backup_id, None)
    run.sent = True
    run.finish(limit)


def is_ready(engine: Engine, vm: EngineVm, backup_id: str) -> bool:
    """Whether disks can still be transferred from that backup. Raises EngineError."""
    service = engine.services().vms_service().vm_service(vm.id).backups_service().backup_service(backup_id)
    try:
        return _phase(engine.ask(f"VM {vm.name}: backup", lambda: service.get(), repeat=True)) == "ready"
    except NotFoundError:
        return False


class _Run:
    """One backup from its beginning to its end."""

    def __init__(self, engine: Engine, vm: EngineVm, backup_id: str, since: str | None) -> None:
        self._engine = engine
        self._vm = vm
        self._id = backup_id
        self._since = since
        self._what = f"VM {vm.name}: backup"
        self._all = engine.services().vms_service().vm_service(vm.id).backups_service()
        self._service = self._all.backup_service(backup_id)
        self._event = 0
        self._before: set[str] = set()
        """Snapshots of backups that there were already."""
        self.sent = False
        self._made = False

    def start(
        self, disk_ids: Sequence[str], description: str, query: dict[str, str], consistent: bool
    ) -> None:
        self._before = snapshots.backup_snapshots(self._engine, self._vm)
        self._event = events.newest_event(self._engine)
        wished = types.Backup(
            id=self._id,
            description=description,
            from_checkpoint_id=self._since,
            disks=[types.Disk(id=disk_id) for disk_id in disk_ids],
        )
        self.sent = True
        try:
            made = self._engine.create(
                self._what,
                lambda: self._all.add(wished, require_consistency=consistent or None, query=query),
                lambda: self._find(description),
            )
        except EngineError as error:
            self.sent = may_have_made(error)
            if self._since and _is_of_checkpoint(error):
                raise BrokenChain(str(error), code=error.code, fault=error.fault) from None
            raise
        self._made = True
        if made.id != self._id:
            self._id = made.id
            self._service = self._all.backup_service(made.id)

    def ready(self, limit: float) -> Backup:
        try:
            found = self._wait(lambda now: _phase(now) not in (*_BUSY, None), limit)
        except NotFoundError:
            raise self._failure("the engine has no record of it any more") from None
        if _phase(found) != "ready":
            raise self._failure(f"it went to phase {_phase(found)}")
        disks = self._engine.ask(self._what, lambda: self._service.disks_service().list(), repeat=True)
        if found.to_checkpoint_id is None and any(text_of(disk.format) != "raw" for disk in disks):
            found = self._with_checkpoint(found)
        return Backup(
            id=self._id,
            vm_id=self._vm.id,
            host_id=found.host.id if found.host else None,
            checkpoint=found.to_checkpoint_id,
            incremental={
                disk.id: bool(self._since) and text_of(disk.backup_mode) == "incremental" for disk in disks
            },
            time=utc(found.creation_date),
        )

    def finalize(self, limit: float) -> None:
        """The good end. Raises BackupFailedError when it was none."""
        try:
            self.finish(limit)
        finally:
            self._remove_snapshots()

    def abandon(self, error: BaseException) -> None:
        """The end after an error: nothing of this may hide it."""
        if not self.sent:
            return
        self._engine = self._engine.for_the_end(error)
        try:
            if self._appeared():
                self.finish(HURRIED_LIMIT)
        except WaitError:
            log.warning("%s %s: the engine is still ending it", self._what, self._id)
            return
        except (BackupFailedError, BrokenChain) as failure:
            log.debug("%s", failure)
        except EngineError as failure:
            log.warning("%s %s is left to the next run to end: %s", self._what, self._id, failure)
            return
        self._remove_snapshots()

    def finish(self, limit: float) -> None:
        """Raises BackupFailedError when it has failed; nothing if the engine has no record of it: its end was
        some time ago, or it never was."""
        deadline = time.monotonic() + limit
        try:
            self._wait(lambda now: _phase(now) not in (*_BUSY, None), limit)
            self._ask_to_finalize()
            left = max(0.0, deadline - time.monotonic())
            found = self._wait(has_ended, left)
        except NotFoundError:
            return
        if _phase(found) == "failed":
            raise self._failure("it failed when it was finalized")

    def _ask_to_finalize(self) -> None:
        """Until it is no longer `ready`. A request may be refused because of an earlier one whose answer was
        lost, or because of a transfer that is just ending."""
        begun = time.monotonic()

        def step() -> str | None:
            phase = _phase(self._service.get())
            if phase == "ready":
                try:
                    self._engine.ask(
                        self._what, lambda: self._service.finalize(), repeat=True, wait_for_conflicts=False
                    )
                except (ConflictError, RefusedError) as error:
                    passing = isinstance(error, ConflictError) and error.passing
                    patience = self._engine.patience if passing else min(LATE_LIMIT, self._engine.patience)
                    if time.monotonic() - begun > patience:
                        raise
                    log.info("%s", error)
            return phase

        self._engine.wait(self._what, step, lambda phase: phase != "ready", limit=math.inf)

    def _appeared(self) -> bool:
        """Whether there is a backup to end. Where its making was interrupted, it may come a little late."""
        limit = 0.0 if self._made else LATE_LIMIT
        try:
            found = self._engine.wait(self._what, self._find, lambda now: now is not None, limit=limit)
        except WaitError:
            return False
        return not has_ended(found)

    def _find(self, description: str | None = None) -> Any:
        """By id; by description where the engine chose an id of its own."""
        try:
            return self._engine.ask(self._what, lambda: self._service.get(), repeat=True)
        except NotFoundError:
            if description is None:
                return None
        found = self._engine.ask(self._what, lambda: self._all.list(), repeat=True)
        own = (one for one in found if one.description == description and not has_ended(one))
        return next(own, None)

    def _with_checkpoint(self, found: Any) -> Any:
        try:
            return self._wait(lambda now: now.to_checkpoint_id is not None, LATE_LIMIT)
        except WaitError:
            log.warning("%s: the engine took no checkpoint; the next backup will be a full one", self._what)
            return found

    def _wait(self, until: Any, limit: float) -> Any:
        return self._engine.wait(self._what, lambda: self._service.get(), until, limit=limit)

    def _failure(self, fallback: str) -> EngineError:
        found = events.events_about(self._engine, self._id, since=self._event, vm_id=self._vm.id)
        text = events.tell(found, fallback)
        lost = any(event.code == events.FULL_BACKUP_NEEDED for event in found)
        if lost or (self._since and events.tells_broken_chain(found)):
            return BrokenChain(f"{self._what}: {text}", fault=text, checkpoints_lost=lost)
        restarted = any(event.code == events.ENDED_BY_RESTART for event in found)
        return BackupFailedError(f"{self._what} failed: {text}", fault=text, by_restart=restarted)

    def _remove_snapshots(self) -> None:
        """Where another backup has begun meanwhile, the next run does it."""
        try:
            left = snapshots.left_behind(self._engine, self._vm)
        except EngineError as error:
            log.warning("%s: cannot see whether a snapshot is left: %s", self._what, error)
            return
        snapshots.remove_left_behind(self._engine, self._vm, left - self._before)


def _query(vm: EngineVm, mode: Mode) -> dict[str, str]:
    hybrid_known = vm.level is None or vm.level >= HYBRID_LEVEL
    if mode == "hybrid" and not hybrid_known:
        raise UsageError(f"VM {vm.name}: its cluster {vm.cluster} knows no hybrid backup; use --mode live")
    # The SDK has no argument for it.
    return {"legacy": "true"} if mode == "live" and hybrid_known else {}


def _is_of_checkpoint(error: EngineError) -> bool:
    """Whether the engine refused because of the checkpoint, or because not all of the disks can be backed up
    incrementally (clusters of 4.4 and below, with raw or new disks): it will again."""
    if isinstance(error, ConflictError) and error.passing:
        return False
    told = error.fault.lower()
    return isinstance(error, RefusedError | NotFoundError | ConflictError) and any(
        word in told for word in ("checkpoint", "bitmap", "incremental")
    )


def _phase(backup: Any) -> str | None:
    """None for one that this SDK does not know."""
    return text_of(backup.phase)
