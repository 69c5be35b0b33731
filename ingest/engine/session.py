"""A session with an engine: every call has a time limit, and outlives what passes.

Engines restart, sessions end, disks are locked for a while. `Engine.ask` repeats what may be repeated until
`patience` is used up; `Engine.create` does so for what must not be done twice, by looking whether it was
done. What is left is an EngineError that says what to do.
"""

from __future__ import annotations

import copy
import logging
import re
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

import ovirtsdk4

from ingest.engine.errors import (
    ConflictError,
    EngineError,
    LoginError,
    NotFoundError,
    RefusedError,
    TrustError,
    UnavailableError,
    WaitError,
)
from ingest.engine.settings import EngineSettings
from ingest.engine.transport import CALL_TIMEOUT, Connection
from vmfs.errors import VmfsError

__all__ = [
    "PATIENCE",
    "ConflictError",
    "Engine",
    "EngineError",
    "LoginError",
    "NotFoundError",
    "Pauses",
    "RefusedError",
    "TrustError",
    "UnavailableError",
    "WaitError",
]

log = logging.getLogger(__name__)

T = TypeVar("T")
S = TypeVar("S")

PATIENCE = 300.0
"""Seconds for which an engine that does not answer, or a passing conflict, is borne."""
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
"""Seconds between two calls that ask for the same."""
LONGEST_POLL = 2.0
"""Seconds between two looks at something that goes on."""
LATE_LIMIT = 10.0
"""Seconds in which what an interrupted request has made will be seen."""
HURRIED_PATIENCE = 30.0
"""Seconds, where the user has interrupted us, or patience is used up, and only order is to be made."""

_PASSING = re.compile(
    r"\block(ed)?\b|in progress|try again (later|in)|\bduring\b|is being\b|are being\b|\bbusy\b"
    r"|not in ready phase(?!.*(failed|succeeded|finalizing))|not ready|active (image )?transfer|\bmigrating\b"
    r"|should be in up or down status",
    re.IGNORECASE,
)
"""What the engine says in a conflict that will pass: AppErrors.properties of ovirt-engine."""


class Engine:
    """A logged-in session. May be used from several threads at once."""

    def __init__(self, settings: EngineSettings, *, patience: float, timeout: float = CALL_TIMEOUT) -> None:
        """Not logged in yet: see `connect`."""
        self.settings = settings
        self.patience = patience
        self.id = settings.host
        self.product = ""
        self._connection = Connection(settings, timeout=timeout)

    @classmethod
    def connect(
        cls, settings: EngineSettings, *, patience: float = PATIENCE, timeout: float = CALL_TIMEOUT
    ) -> Engine:
        """Log in. `patience` and `timeout`, that of one call, are in seconds. Raises LoginError, TrustError,
        and UnavailableError when patience is used up.

        `id` of the engine is its instance id, which stays when it is moved or renamed; the host's name where
        an old engine tells none.
        """
        engine = cls(settings, patience=patience, timeout=timeout)
        try:
            api = engine.ask("login", lambda: engine.services().get(), repeat=True)
        except BaseException:
            engine.close()
            raise
        product = getattr(api, "product_info", None)
        if product is not None:
            engine.id = product.instance_id or engine.id
            version = product.version.full_version if product.version else None
            engine.product = " ".join(filter(None, (product.name, version)))
        return engine

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Log out. Never raises an error of the engine."""
        self._connection.close()

    @property
    def name(self) -> str:
        return self.settings.name

    def services(self) -> Any:
        """The SDK's SystemService. Its calls go through `ask`."""
        return self._connection.system_service()

    def with_patience(self, patience: float) -> Engine:
        """The same session, with other patience; in seconds."""
        other = copy.copy(self)
        other.patience = patience
        return other

    def for_the_end(self, error: BaseException) -> Engine:
        """The session to put things in order with after this error."""
        wait = isinstance(error, Exception) and not isinstance(error, UnavailableError)
        return self if wait else self.with_patience(min(self.patience, HURRIED_PATIENCE))

    def ask(self, what: str, call: Callable[[], T], *, repeat: bool, wait_for_conflicts: bool = True) -> T:
        """What `call` returns. `what` begins the message of an error: "VM web: backup".

        With `repeat`, for calls that may be carried out twice, an engine that does not answer is asked again
        for `patience` seconds; without, only what has certainly not been carried out is sent again. A
        conflict that will pass is waited for as long. Raises EngineError.
        """
        pauses = Pauses(self.patience)
        while True:
            try:
                return self._call(what, call)
            except EngineError as error:
                if not _will_pass(error) or (_may_be_done(error) and not repeat):
                    raise
                if isinstance(error, ConflictError) and not wait_for_conflicts:
                    raise
                pauses.next(error)

    def create(self, what: str, call: Callable[[], T], find: Callable[[], T | None]) -> T:
        """As `ask`, for what must not be made twice: where the answer was lost, `find` looks for what the
        call may have made, before it is made again."""
        pauses = Pauses(self.patience)
        lost = False
        while True:
            try:
                return self._call(what, call)
            except EngineError as error:
                lost = lost or _may_be_done(error)
                # Also where the second call was refused: perhaps because of what the first one made.
                if lost and (found := self.ask(what, find, repeat=True)) is not None:
                    return found
                if not _will_pass(error):
                    raise
                pauses.next(error)

    def wait(self, what: str, poll: Callable[[], S], until: Callable[[S], bool], *, limit: float) -> S:
        """Poll, by `ask`, until `until` is true of the result. Raises WaitError after `limit` seconds."""
        deadline = time.monotonic() + limit
        pause = FIRST_PAUSE
        while True:
            state = self.ask(what, poll, repeat=True)
            if until(state):
                return state
            left = deadline - time.monotonic()
            if left <= 0:
                raise WaitError(f"{what}: not done in {limit:.0f} s")
            time.sleep(min(pause, left))
            pause = min(pause * 1.5, LONGEST_POLL)

    def _call(self, what: str, call: Callable[[], T]) -> T:
        try:
            return call()
        except UnavailableError as error:
            # One of a call within this call has been told already.
            if error.told:
                raise
            raise UnavailableError(
                f"{what}: {error}", code=error.code, fault=error.fault, sent=error.sent, told=True
            ) from None
        except ovirtsdk4.Error as error:
            raise self._translate(what, error) from None
        except ValueError as error:
            raise self._nonsense(what, error) from None
        except Exception as error:
            # The SDK's XML reader has no class of its own for what it cannot read.
            if type(error) is not Exception:
                raise
            raise self._nonsense(what, error) from None

    def _nonsense(self, what: str, error: Exception) -> EngineError:
        return UnavailableError(
            f"{what}: engine {self.name} gave an answer that makes no sense: {error}", told=True
        )

    def _translate(self, what: str, error: ovirtsdk4.Error) -> EngineError:
        fault = _fault(error)
        code = error.code
        message = f"{what}: {fault}"
        if code == 400:
            return RefusedError(message, code=code, fault=fault)
        if code == 403:
            user = self.settings.username or "the user"
            return LoginError(
                f"{what}: {fault}; give {user} the permission for it in the engine", code=code, fault=fault
            )
        if code == 404:
            return NotFoundError(message, code=code, fault=fault)
        if code == 409:
            return ConflictError(message, code=code, fault=fault, passing=bool(_PASSING.search(fault)))
        if code is None:
            return self._nonsense(what, error)
        return EngineError(message, code=code, fault=fault)


class Pauses:
    """The pauses between attempts, each longer than the last, until patience is used up. `next` pauses, or
    raises the error it is given."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._begun: float | None = None
        self._pause = FIRST_PAUSE

    def next(self, error: EngineError) -> None:
        now = time.monotonic()
        if self._begun is None:
            self._begun = now
            if self._patience > 0:
                level = logging.INFO if isinstance(error, ConflictError) else logging.WARNING
                log.log(level, "%s; trying again for %.0f s", error, self._patience)
        left = self._begun + self._patience - now
        if left <= 0:
            error.borne = True
            raise error
        time.sleep(min(self._pause, left))
        self._pause = min(self._pause * 2, LONGEST_PAUSE)


def may_have_made(error: BaseException) -> bool:
    """Whether a request that ended so may have been carried out: its answer was lost, or not waited for."""
    return not isinstance(error, VmfsError) or (isinstance(error, EngineError) and _may_be_done(error))


def _will_pass(error: EngineError) -> bool:
    if error.borne:
        return False
    return isinstance(error, UnavailableError) or (isinstance(error, ConflictError) and error.passing)


def _may_be_done(error: EngineError) -> bool:
    return isinstance(error, UnavailableError) and error.sent


def _fault(error: ovirtsdk4.Error) -> str:
    """The engine's own words: those of its fault, without the brackets of a list of one."""
    told = error.fault and (error.fault.detail or error.fault.reason)
    text = " ".join(str(told or error).split())
    return text.removeprefix("[").removesuffix("]").rstrip(".")
