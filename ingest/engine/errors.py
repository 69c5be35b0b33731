"""Errors of the engine, each telling what the caller may do next."""

from __future__ import annotations

from vmfs.errors import VmfsError


class EngineError(VmfsError):
    """The engine did not do what was asked. `code` is the HTTP status of its answer, None when there was no
    answer. `fault` is the engine's own text, may be empty. `borne` once patience with it is used up."""

    def __init__(self, message: str, *, code: int | None = None, fault: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.fault = fault
        self.borne = False


class LoginError(EngineError):
    """Wrong credentials, or a user without the permission that this needs. Asking again does not help."""


class NotFoundError(EngineError):
    """The engine has no such object: never had, or has forgotten it."""


class ConflictError(EngineError):
    """The object is in a state that does not allow this. `passing` when the engine's words tell that it will
    not stay so: a lock, another operation."""

    def __init__(
        self, message: str, *, code: int | None = 409, fault: str = "", passing: bool = False
    ) -> None:
        super().__init__(message, code=code, fault=fault)
        self.passing = passing


class RefusedError(EngineError):
    """The request makes no sense to the engine (400): asking again does not help."""


class UnavailableError(EngineError):
    """No answer from the engine itself: it is down, starting, or cannot be reached. `sent` when the request
    may have been carried out all the same; `told` when the message begins with what was asked for."""

    def __init__(
        self, message: str, *, code: int | None = None, fault: str = "", sent: bool = True, told: bool = False
    ) -> None:
        super().__init__(message, code=code, fault=fault)
        self.sent = sent
        self.told = told


class TrustError(EngineError):
    """The engine's certificate is not one to trust: another CA, another name, or expired."""


class WaitError(EngineError):
    """What was waited for did not happen in time."""


class BrokenChain(EngineError):
    """The engine cannot tell what changed since the checkpoint: an incremental backup is not possible, a full
    one is. `checkpoints_lost` when the engine has dropped all checkpoints of the VM."""

    def __init__(
        self, message: str, *, code: int | None = None, fault: str = "", checkpoints_lost: bool = False
    ) -> None:
        super().__init__(message, code=code, fault=fault)
        self.checkpoints_lost = checkpoints_lost


class BackupFailedError(EngineError):
    """The backup failed on the engine's side; its events say why. `by_restart` when that is because the
    engine was restarted: another backup may well succeed."""

    def __init__(
        self, message: str, *, code: int | None = None, fault: str = "", by_restart: bool = False
    ) -> None:
        super().__init__(message, code=code, fault=fault)
        self.by_restart = by_restart


class TransferError(EngineError):
    """An image transfer failed or was ended on the engine's side; its events say why."""
