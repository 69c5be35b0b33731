"""What can go wrong with an NBD server. The messages are fragments that the source completes with the name
of the disk."""

from __future__ import annotations


class NbdError(Exception):
    """Base of the errors of this package."""


class ServerRefused(NbdError):
    """The server answered, and will not serve this export."""


class ProtocolError(NbdError):
    """The server sent what the protocol does not allow. The connection cannot be used any more."""


class Disconnected(NbdError):
    """The server cannot be reached, closed the connection, or did not answer in time."""


class CommandError(NbdError):
    """The server failed the request at byte `offset` with the error number `code`, and the connection is
    still good."""

    def __init__(self, offset: int, code: int, message: str) -> None:
        super().__init__(message)
        self.offset = offset
        self.code = code
