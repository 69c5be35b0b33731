"""Image transfers: what opens a disk to an imageio client, for reading or writing.

The engine ends a transfer that nobody uses, and ends a download by itself once all bytes have gone. It
forgets a transfer minutes after its end (4.4: at once), and then says 404.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ovirtsdk4 import types

from ingest.engine import events
from ingest.engine.errors import (
    BrokenChain,
    ConflictError,
    EngineError,
    NotFoundError,
    TransferError,
    WaitError,
)
from ingest.engine.session import LATE_LIMIT, Engine, may_have_made
from ingest.engine.values import text_of

log = logging.getLogger(__name__)

INACTIVITY = 600
"""Seconds after which the engine ends a transfer that nobody uses; the engine's own default is 60."""
START_LIMIT = 300.0
END_LIMIT = 3600.0
"""Seconds. The end of an upload takes as long as its verification."""
HURRIED_LIMIT = 120.0
"""Seconds for the end of a transfer that is cancelled."""
CLEANUP_SECONDS = 2.0

_BEGINNING = ("initializing", "resuming")
_GOOD = ("finished_success",)
_BAD = ("finished_failure", "finished_cleanup")
_ENDED = (*_GOOD, *_BAD)
_CANCELLED = ("cancelled", "cancelled_system", "cancelled_user")
"""These lead to _BAD, by way of finalizing_failure or finalizing_cleanup."""
_ENDING = ("finalizing_success", "finalizing_failure", "finalizing_cleanup", *_CANCELLED)
_PAUSED = ("paused_system", "paused_user")


class Transfer:
    """An image transfer in phase `transferring`. It is extended in the background for as long as it is open,
    so that a client that pauses does not lose it; when this process dies, the engine ends it by itself.

    `url` is for ImageioClient, of the host's imageio daemon; `proxy_url` of the engine's imageio proxy, for a
    host that cannot be reached.
    """

    def __init__(self, engine: Engine, what: str, disk_id: str, found: Any, since: int) -> None:
        self._engine = engine
        self._what = what
        self._event = since
        self._service = engine.services().image_transfers_service().image_transfer_service(found.id)
        self.id: str = found.id
        self.disk_id = disk_id
        self.url = ""
        self.proxy_url: str | None = None
        self.host_id: str | None = None
        self._take(found)

    def extend(self) -> None:
        """Renew it, and its ticket. Does nothing if the engine has ended the transfer."""
        try:
            self._engine.ask(
                self._what, lambda: self._service.extend(), repeat=True, wait_for_conflicts=False
            )
        except (NotFoundError, ConflictError) as error:
            log.debug("%s: not extended: %s", self._what, error)

    def check(self) -> None:
        """To call when imageio refuses to go on. Raises TransferError, with the engine's words, if the
        transfer is no longer `transferring`; BrokenChain if they tell of a bitmap that cannot be used."""
        phase = self._phase()
        if phase != "transferring":
            raise self._failure(f"the engine has ended it ({phase or 'forgotten'})")

    def revive(self) -> None:
        """To call when imageio no longer knows the ticket, or takes it for expired: extends the transfer, or
        resumes one that the engine has paused, perhaps with another `url`. Raises TransferError, BrokenChain,
        if the engine has ended it."""
        if self._phase() in _PAUSED:
            self.resume()
        self.check()
        self.extend()

    def words(self) -> str:
        """What the engine's events say of this transfer; may be empty."""
        return events.tell(self._events(), "")

    def pause(self) -> None:
        self._act(self._service.pause)
        self._wait(lambda now: _phase(now) in (*_PAUSED, *_ENDED), START_LIMIT)

    def resume(self) -> None:
        """Back to `transferring`, perhaps with another `url`: for transfers that were paused."""
        self._act(self._service.resume)
        self.become_ready(START_LIMIT)

    def become_ready(self, limit: float) -> None:
        """Wait until it is `transferring`. Raises TransferError, BrokenChain."""
        waiting = (*_BEGINNING, None)
        try:
            found = self._wait(lambda now: _phase(now) not in waiting, limit)
        except NotFoundError:
            raise self._failure("the engine has ended it") from None
        if _phase(found) != "transferring":
            raise self._failure(f"it went to phase {_phase(found)}")
        self._take(found)
        if not self.url:
            raise self._failure("the engine gave no https URL for it")

    def finish(self, limit: float, *, is_good: Callable[[], bool]) -> None:
        """The good end. `is_good` tells it where the engine has forgotten the transfer. Raises TransferError,
        BrokenChain."""
        phase = self._end(self._service.finalize, limit)
        if phase in _BAD or (phase is None and not is_good()):
            raise self._failure(f"the engine ended it as {phase or 'failed'}")

    def cancel(self, limit: float) -> None:
        self._end(self._service.cancel, limit)

    def abandon(self, engine: Engine) -> None:
        """The end after an error: nothing of this may hide it."""
        self._engine = engine
        try:
            self.cancel(HURRIED_LIMIT)
        except WaitError:
            log.warning("%s %s: the engine is still ending it", self._what, self.id)
        except EngineError as error:
            log.warning("%s %s is left to the engine to end: %s", self._what, self.id, error)

    def _end(self, action: Callable[[], Any], limit: float) -> str | None:
        """Ask for the end as often as it takes: a ticket that is in use is not given up. The phase that it
        ended in, None if the engine has no record of it."""

        begun = time.monotonic()
        cleaned: float | None = None

        def step() -> str | None:
            phase = self._phase()
            if phase in _BEGINNING and time.monotonic() - begun < LATE_LIMIT:
                # Its ticket is being made: what is ended now may get one all the same.
                return phase
            if phase is not None and phase not in _ENDED and phase not in _ENDING:
                try:
                    self._act(action)
                except NotFoundError:
                    return None
                phase = self._phase()
            return phase

        def is_end(phase: str | None) -> bool:
            nonlocal cleaned
            if phase == "finished_cleanup":
                # Of the engines, some stop here, and some have the disk of an upload still to remove.
                cleaned = cleaned or time.monotonic()
                return time.monotonic() - cleaned > CLEANUP_SECONDS
            return phase is None or phase in _ENDED

        return self._engine.wait(self._what, step, is_end, limit=limit)

    def _act(self, action: Callable[[], Any]) -> None:
        try:
            self._engine.ask(self._what, action, repeat=True, wait_for_conflicts=False)
        except ConflictError as error:
            # Its ticket is in use, or it has gone on to another phase: the caller looks at it again.
            log.debug("%s: %s", self._what, error)

    def _phase(self) -> str | None:
        """None if the engine has no record of it any more."""
        try:
            found = self._engine.ask(self._what, lambda: self._service.get(), repeat=True)
        except NotFoundError:
            return None
        return _phase(found) or "unknown"

    def _wait(self, until: Callable[[Any], bool], limit: float) -> Any:
        return self._engine.wait(self._what, lambda: self._service.get(), until, limit=limit)

    def _take(self, found: Any) -> None:
        # Ticket and data would go in clear otherwise.
        direct, proxy = (
            url if url and url.startswith("https://") else None
            for url in (found.transfer_url, found.proxy_url)
        )
        self.url = direct or proxy or ""
        self.proxy_url = proxy
        self.host_id = found.host.id if found.host else None

    def _events(self) -> list[events.EngineEvent]:
        ids = (self.id, self.disk_id)
        return events.events_of_transfer(self._engine, *ids, since=self._event, host_id=self.host_id)

    def _failure(self, fallback: str) -> EngineError:
        found = self._events()
        text = events.tell(found, fallback)
        if events.tells_broken_chain(found):
            return BrokenChain(f"{self._what}: {text}", fault=text)
        return TransferError(f"{self._what} failed: {text}", fault=text)


@contextmanager
def download(
    engine: Engine,
    *,
    disk_id: str,
    backup_id: str | None = None,
    host_id: str | None = None,
    inactivity: int = INACTIVITY,
    limit: float = START_LIMIT,
) -> Iterator[Transfer]:
    """Read a disk as it is in a backup; or the disk itself, when no VM uses it. Finalized when the context
    is left, cancelled when it is left by an exception; imageio clients must be closed by then. The engine may
    finalize it earlier by itself. Raises TransferError, BrokenChain when the engine's words tell of the
    bitmap."""
    wished = types.ImageTransfer(
        direction=types.ImageTransferDirection.DOWNLOAD,
        format=types.DiskFormat.RAW,
        disk=types.Disk(id=disk_id),
        backup=types.Backup(id=backup_id) if backup_id else None,
        host=types.Host(id=host_id) if host_id else None,
        inactivity_timeout=inactivity,
        timeout_policy=types.ImageTransferTimeoutPolicy.CANCEL,
    )
    with _running(engine, f"download of disk {disk_id}", wished, limit) as transfer:
        yield transfer
        # Data that came whole through imageio is none the worse for the engine forgetting who asked for it.
        transfer.finish(END_LIMIT, is_good=lambda: True)


@contextmanager
def upload(
    engine: Engine,
    *,
    disk_id: str,
    host_id: str | None = None,
    inactivity: int = INACTIVITY,
    limit: float = START_LIMIT,
    keep_disk: bool = False,
) -> Iterator[Transfer]:
    """Write a disk (as raw, whatever its format). Finalized when the context is left, which waits until the
    disk is `ok` again; cancelled when it is left by an exception, and then the engine may delete the disk: so
    not with `keep_disk`, which finalizes it then as well. Imageio clients must be closed by then. Raises
    TransferError when the engine does not accept what was uploaded."""
    policy = types.ImageTransferTimeoutPolicy
    wished = types.ImageTransfer(
        direction=types.ImageTransferDirection.UPLOAD,
        format=types.DiskFormat.RAW,
        disk=types.Disk(id=disk_id),
        host=types.Host(id=host_id) if host_id else None,
        inactivity_timeout=inactivity,
        timeout_policy=policy.PAUSE if keep_disk else policy.CANCEL,
    )
    disk = engine.services().disks_service().disk_service(disk_id)

    def status() -> str | None:
        try:
            found = engine.ask(f"disk {disk_id}", lambda: disk.get(), repeat=True)
        except NotFoundError:
            return None
        return text_of(found.status) or "ok"

    what = f"upload to disk {disk_id}"
    with _running(engine, what, wished, limit, keep_disk=keep_disk) as transfer:
        yield transfer
        transfer.finish(END_LIMIT, is_good=lambda: status() in ("ok", "locked"))
    ended = engine.wait(what, status, lambda now: now != "locked", limit=END_LIMIT)
    if ended != "ok":
        words = transfer.words() or "see its events"
        raise TransferError(f"{what}: the engine found the disk {ended or 'gone'} afterwards: {words}")


def active_transfers(engine: Engine, disk_ids: set[str]) -> list[Any]:
    """The SDK's transfers of these disks that have not ended."""
    service = engine.services().image_transfers_service()
    found = engine.ask("image transfers", lambda: service.list(), repeat=True)
    return [item for item in found if _disk_id(item) in disk_ids and _phase(item) not in _ENDED]


def cancel_transfer(engine: Engine, found: Any, *, limit: float = HURRIED_LIMIT) -> None:
    """End a transfer that somebody else began. Raises EngineError."""
    disk_id = _disk_id(found)
    Transfer(engine, f"transfer of disk {disk_id}", disk_id, found, 0).cancel(limit)


@contextmanager
def _running(
    engine: Engine, what: str, wished: Any, limit: float, *, keep_disk: bool = False
) -> Iterator[Transfer]:
    """A transfer that is ready, cancelled when the context is left by an exception."""
    service = engine.services().image_transfers_service()
    disk_id = wished.disk.id
    earlier = {item.id for item in active_transfers(engine, {disk_id})}
    since = events.newest_event(engine)

    def find() -> Any:
        """Transfers take no id of our choice, but a disk has one transfer at a time."""
        found = active_transfers(engine, {disk_id})
        return next((item for item in found if item.id not in earlier), None)

    transfer: Transfer | None = None
    try:
        found = engine.create(what, lambda: service.add(wished), find)
        transfer = Transfer(engine, what, disk_id, found, since)
        transfer.become_ready(limit)
        with _extended(transfer, wished.inactivity_timeout):
            yield transfer
    except BaseException as error:
        hurried = engine.for_the_end(error)
        if transfer is None and may_have_made(error):
            transfer = _interrupted(hurried, what, disk_id, find, since)
        if transfer is not None:
            if keep_disk:
                _finish_quietly(transfer)
            else:
                transfer.abandon(hurried)
        raise


def _interrupted(
    engine: Engine, what: str, disk_id: str, find: Callable[[], Any], since: int
) -> Transfer | None:
    """What a request may have made whose answer did not arrive; it may come a little late."""
    try:
        found = engine.wait(what, find, lambda now: now is not None, limit=LATE_LIMIT)
    except WaitError:
        return None
    except EngineError as error:
        log.warning("%s: cannot see whether a transfer is left: %s", what, error)
        return None
    return Transfer(engine, what, disk_id, found, since)


def _finish_quietly(transfer: Transfer) -> None:
    try:
        transfer.finish(HURRIED_LIMIT, is_good=lambda: True)
    except EngineError as error:
        log.warning("%s", error)


@contextmanager
def _extended(transfer: Transfer, inactivity: int) -> Iterator[None]:
    """Extend it now and then, in a thread of its own."""
    stop = threading.Event()

    def extend() -> None:
        while not stop.wait(inactivity / 4):
            try:
                transfer.extend()
            except EngineError as error:
                log.debug("%s", error)

    thread = threading.Thread(target=extend, name=f"vmfs-extend-{transfer.id[:8]}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        # Not joined: it may be in a call that takes its time, and a late extension harms nothing.


def _phase(transfer: Any) -> str | None:
    return text_of(transfer.phase)


def _disk_id(transfer: Any) -> str:
    """The engine tells the disk as `image`."""
    told = transfer.disk or transfer.image
    return told.id if told else ""
