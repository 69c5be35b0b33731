"""Several connections to the imageio server of one transfer, that outlive what passes.

Ticket and server may be lost in many ways: the daemon is restarted and has forgotten all tickets, the engine
has paused the transfer, the disk's NBD server has died, a proxy closes what was idle. Which it was shows only
in what helps: a new connection; asking the engine; waiting.
"""

from __future__ import annotations

import http.client
import logging
import ssl
import time
from collections.abc import Callable
from queue import SimpleQueue
from threading import Event, Lock
from types import TracebackType
from typing import Protocol
from urllib.parse import urlsplit

from ovirt_imageio._internal import http as imageio_http
from ovirt_imageio.client import ImageioClient

from vmfs.errors import VmfsError

log = logging.getLogger(__name__)

_BUFFER = 1 << 20
_WAIT_FIRST, _WAIT_LONGEST = 0.1, 3.0
"""Seconds between attempts to reach a server."""
_SERVER_ERRORS = 4
"""How often the server may fail one and the same request, having been reached again each time."""
_FAILED = (OSError, http.client.HTTPException, imageio_http.Error)
_NO_TICKET = (403, 404)
_REFUSALS = 5
"""How often a server may refuse the ticket, or fail, after the engine has said that the transfer goes on."""


class UploadError(VmfsError):
    """imageio did not take the data."""


class TransferLostError(UploadError):
    """The server does not know the ticket of the transfer any more, or fails for it (its NBD server is gone),
    and the engine takes no notice: another transfer may do."""


class Place(Protocol):
    """A transfer; see `ingest.engine.upload.Target`."""

    disk_id: str

    @property
    def url(self) -> str: ...

    @property
    def proxy_url(self) -> str | None: ...

    def revive(self) -> None: ...


class Connections:
    """At most `wanted` clients, as many as the server takes, each used by one thread at a time."""

    def __init__(
        self, target: Place, wanted: int, *, ca_file: str | None, insecure: bool, patience: float
    ) -> None:
        """Connects once. Raises UploadError, or what the target raises when the transfer has ended."""
        self.losses = 0
        """How often a server or its ticket was lost: what was not flushed by then may be lost as well."""
        self._target = target
        self._ca_file = ca_file
        self._insecure = insecure
        self._patience = patience
        self._lock = Lock()
        self._generation = 0
        self._aborted = Event()
        self._end: VmfsError | None = None
        self._free: SimpleQueue[tuple[int, ImageioClient | None]] = SimpleQueue()
        self.count = 1
        self._free.put((0, None))
        self.run(self._learn)
        self.losses = 0
        for _ in range(wanted - 1):
            if self.count < max(1, self._most):
                self._free.put((0, None))
                self.count += 1

    def __enter__(self) -> Connections:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Not `count` of them: whoever was interrupted with one in hand has not put it back.
        while not self._free.empty():
            _, client = self._free.get()
            if client:
                _close(client)

    def run(self, use: Callable[[ImageioClient], None]) -> None:
        """Calls `use` with a client; again, with another, as long as that may help."""
        deadline = time.monotonic() + self._patience
        server_errors = 0
        while True:
            generation, client = self._free.get()
            try:
                self._raise_if_ended()
                if client is None or generation != self._generation:
                    if client:
                        _close(client)
                    generation, client = self._generation, None
                    client = self._open()
                use(client)
            except _FAILED as error:
                if client:
                    _close(client)
                self._free.put((generation, None))
                if isinstance(error, imageio_http.Error):
                    server_errors += error.code not in _NO_TICKET
                try:
                    self._check(error, server_errors, late=time.monotonic() > deadline)
                    self._recover(generation, error, deadline)
                except VmfsError as end:
                    self._end = self._end or end
                    self._aborted.set()
                    raise
            except BaseException:
                self._free.put((generation, client))
                raise
            else:
                self._free.put((generation, client))
                return

    def flush(self) -> None:
        """Flushes what went over each of the connections. Nobody else may use them meanwhile."""
        used = []
        for _ in range(self.count):
            generation, client = self._free.get()
            used.append((generation, client))
        for item in used:
            self._free.put(item)
        # First in, first out: each has its turn.
        for _, client in used:
            if client is not None:
                self.run(lambda client: client.flush())
            else:
                self._free.put(self._free.get())

    def abort(self) -> None:
        """Nobody waits any longer, or begins anything."""
        self._aborted.set()

    def _learn(self, client: ImageioClient) -> None:
        self._most = int(client.max_writers)

    def _open(self) -> ImageioClient:
        return ImageioClient(
            self._target.url,
            cafile=self._ca_file,
            secure=not self._insecure,
            proxy_url=self._target.proxy_url,
            buffer_size=_BUFFER,
        )

    def _raise_if_ended(self) -> None:
        """All threads give the reason that the first has met."""
        if self._aborted.is_set():
            raise self._end or UploadError("upload was ended")

    def _check(self, error: Exception, server_errors: int, *, late: bool) -> None:
        """Raises UploadError for what no waiting helps against."""
        if isinstance(error, ssl.SSLCertVerificationError):
            raise self._error(_untrusted(error)) from error
        if late:
            raise self._error(f"it does not answer: {error}; see the log of ovirt-imageio there") from error
        if not isinstance(error, imageio_http.Error):
            return
        if error.code in (400, 405, 416):
            raise self._error(f"it refuses: {error}") from error
        if server_errors >= _SERVER_ERRORS:
            raise self._lost(error) from error

    def _recover(self, generation: int, error: Exception, deadline: float) -> None:
        """Makes the server reachable again, or waits until another thread has. Raises UploadError when it is
        not by the deadline (monotonic time)."""
        with self._lock:
            if generation != self._generation:
                return
            # A daemon keeps its tickets in memory: one that knows ours has not been restarted.
            if not isinstance(error, imageio_http.Error) and self._knows_us():
                return
            self.losses += 1
            log.info("%s: %s; trying again", self._name(), error)
            wait = _WAIT_FIRST
            refusals = 0
            while True:
                self._raise_if_ended()
                self._target.revive()
                try:
                    if self._answers():
                        break
                except imageio_http.Error as refusal:
                    refusals += 1
                    if refusals >= _REFUSALS:
                        raise self._lost(refusal) from refusal
                self._check(error, 0, late=time.monotonic() > deadline)
                self._aborted.wait(wait)
                wait = min(2 * wait, _WAIT_LONGEST)
            self._generation += 1

    def _knows_us(self) -> bool:
        try:
            return self._answers()
        except imageio_http.Error:
            return False

    def _answers(self) -> bool:
        """Raises imageio's Error where the server refuses."""
        try:
            _close(self._open())
        except ssl.SSLCertVerificationError as error:
            raise self._error(_untrusted(error)) from error
        except imageio_http.Error:
            raise
        except _FAILED as error:
            log.debug("%s: %s", self._name(), error)
            return False
        return True

    def _lost(self, error: imageio_http.Error) -> TransferLostError:
        what = "does not know the ticket" if error.code in _NO_TICKET else "fails"
        return TransferLostError(
            f"upload to disk {self._target.disk_id}: {self._name()} {what}: {error}; see its log on the host"
        )

    def _error(self, text: str) -> UploadError:
        return UploadError(f"upload to disk {self._target.disk_id}: {self._name()}: {text}")

    def _name(self) -> str:
        return f"imageio at {urlsplit(self._target.url).netloc}"


def _untrusted(error: ssl.SSLCertVerificationError) -> str:
    return f"its certificate is not trusted: {error.verify_message}; see ca_file"


def _close(client: ImageioClient) -> None:
    try:
        client.close()
    except OSError as error:
        log.debug("closing: %s", error)
