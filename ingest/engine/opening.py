"""The disks of a backup, opened for reading: a transfer and a source each.

A host whose imageio is being restarted is waited for, where a transfer is to begin and where it goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from threading import Lock
from types import TracebackType
from typing import NamedTuple

from ingest.engine.backups import is_ready
from ingest.engine.errors import (
    BrokenChain,
    ConflictError,
    EngineError,
    NotFoundError,
    RefusedError,
    TransferError,
)
from ingest.engine.session import Engine, Pauses
from ingest.engine.transfers import Transfer, download
from ingest.engine.vms import EngineDisk, EngineVm
from ingest.sources.base import BitmapError
from ingest.sources.imageio import PATIENCE, Image, RenewLater
from ingest.sources.ovirt import OvirtSource

log = logging.getLogger(__name__)

_OPENERS = 4
"""Disks whose extents are asked for at once."""
_RENEWALS = 5
"""So often a transfer of one disk may be begun again."""
_HURRIED_PATIENCE = 15.0
"""Seconds for which conflicts are waited for then."""


class Download:
    """The download of one disk, begun again when it was lost on the way: the Access of an imageio client.

    Use as a context manager. An end that fails after all was read is only warned of: the data are here.
    """

    def __init__(
        self,
        engine: Engine,
        begin: Callable[[Engine], AbstractContextManager[Transfer]],
        name: str,
        *,
        can_go_on: Callable[[], bool] = lambda: True,
        patience: float,
    ) -> None:
        """`can_go_on` tells whether there is still a backup to transfer from. For `patience` seconds a host
        is borne that does not let it begin. Raises EngineError when it cannot: BrokenChain when the bitmap is
        the reason; TransferError, `borne` if patience is used up."""
        self._can_go_on = can_go_on
        self._name = name
        self._lock = Lock()
        self._begun = 0
        self._told = ""
        self._ended = False
        self._engine = engine
        self._begin = begin
        self._context, self._transfer = self._enter_at_last(patience)

    @property
    def url(self) -> str:
        return self._transfer.url

    @property
    def proxy_url(self) -> str | None:
        return self._transfer.proxy_url

    def renew(self) -> None:
        """Extend it; where the engine has paused it, go on, and where it has ended it, begin again. Raises
        EngineError when that cannot be: BrokenChain when the bitmap is the reason; RenewLater."""
        with self._lock:
            if self._ended:
                raise TransferError(f"the transfer of disk {self._name} has ended")
            try:
                self._transfer.check()
                self._transfer.extend()
            except BrokenChain as error:
                raise _bitmap_broken(error) from None
            except TransferError as error:
                self._go_on(error)

    def __enter__(self) -> Download:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._ended = True
            try:
                self._context.__exit__(kind, error, trace)
            except EngineError as failure:
                if failure is not error:
                    log.warning("disk %s: %s", self._name, failure)

    def _go_on(self, error: TransferError) -> None:
        if self._begun == _RENEWALS or not self._can_go_on():
            raise error
        if str(error) != self._told:
            self._told = str(error)
            log.warning("disk %s: %s; going on", self._name, error)
        try:
            self._transfer.resume()
        except EngineError as failure:
            log.debug("disk %s: %s", self._name, failure)
        else:
            self._begun += 1
            return
        with suppress(TransferError):
            # Left by an exception, it is cancelled.
            self._context.__exit__(type(error), error, None)
        # A backup that is just ending looks like one that is not ready yet.
        hurried = self._engine.with_patience(min(self._engine.patience, _HURRIED_PATIENCE))
        try:
            self._context, self._transfer = self._enter(hurried)
        except TransferError as failure:
            if not self._may_pass(failure):
                raise
            raise RenewLater(str(failure)) from None
        self._begun += 1

    def _may_pass(self, error: TransferError) -> bool:
        """Not where the engine has refused it: where the host did, whose imageio may be just restarting."""
        return error.code is None and self._can_go_on()

    def _enter_at_last(self, patience: float) -> tuple[AbstractContextManager[Transfer], Transfer]:
        pauses = Pauses(patience)
        while True:
            try:
                return self._enter(self._engine)
            except BrokenChain as error:
                error.args = (f"disk {self._name}: {error}",)
                raise
            except TransferError as error:
                error.args = (f"disk {self._name}: {error}",)
                if not self._may_pass(error):
                    raise
                pauses.next(error)

    def _enter(self, engine: Engine) -> tuple[AbstractContextManager[Transfer], Transfer]:
        context = self._begin(engine)
        try:
            return context, context.__enter__()
        except BrokenChain as error:
            raise _bitmap_broken(error) from None
        except (ConflictError, RefusedError, NotFoundError) as error:
            # The backup has ended meanwhile, or the disk is gone.
            raise TransferError(str(error), code=error.code, fault=error.fault) from None


def _bitmap_broken(error: BrokenChain) -> BrokenChain:
    """The engine's words name the disk by an id, if at all."""
    return BrokenChain(f"its bitmap is broken: {error.fault}", code=error.code, fault=error.fault)


class Opened(NamedTuple):
    """`reason` is why the source cannot tell what changed, though it was asked to; None if it can."""

    source: OvirtSource
    reason: str | None


@contextmanager
def opened_sources(
    engine: Engine,
    vm: EngineVm,
    disks: Sequence[EngineDisk],
    *,
    dirty: Collection[str],
    backup_id: str | None = None,
    host_id: str | None = None,
    patience: float = PATIENCE,
    patience_to_begin: float = PATIENCE,
) -> Iterator[dict[str, Opened]]:
    """A source of each disk, by id; those with an id in `dirty` tell what changed. Transfers end with the
    context. A host is borne for `patience` seconds while it is read from, and for `patience_to_begin` where
    it lets no transfer begin. Raises EngineError, SourceError: a TransferError that is `borne`, or a
    PatienceError, when patience is used up."""
    settings = engine.settings

    def can_go_on() -> bool:
        return backup_id is None or is_ready(engine, vm, backup_id)

    with ExitStack() as stack:
        images = {}
        for disk in disks:

            def begin(session: Engine, disk_id: str = disk.id) -> AbstractContextManager[Transfer]:
                return download(session, disk_id=disk_id, backup_id=backup_id, host_id=host_id)

            name = f"{vm.name}/{disk.alias}"
            access = Download(engine, begin, name, can_go_on=can_go_on, patience=patience_to_begin)
            images[disk.id] = Image(
                name,
                stack.enter_context(access),
                ca_file=settings.ca_file,
                insecure=settings.insecure,
                patience=patience,
            )
        with ThreadPoolExecutor(_OPENERS, "vmfs-open") as pool:
            opening = {key: pool.submit(_open, image, key in dirty) for key, image in images.items()}
            try:
                found = {key: work.result() for key, work in opening.items()}
            except BaseException:
                # To list the extents of a huge disk takes long, and nobody wants them any more.
                for image in images.values():
                    image.stop()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        yield found


def _open(image: Image, dirty: bool) -> Opened:
    try:
        return Opened(OvirtSource(image, dirty=dirty), None)
    except BitmapError as error:
        log.warning("%s; reading the disk in full", error)
        return Opened(OvirtSource(image), str(error))
