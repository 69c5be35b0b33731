"""A disk image behind oVirt's imageio: the way to it, what passes and what does not, and its extents.

Facts are of ovirt-imageio 2.5. `ImageioClient` moves the data; extents are asked for here, because that
client waits 60 seconds for an answer that takes longer for huge disks (oVirt/ovirt-imageio#71, #215), and
keeps it as a list of tuples.
"""

from __future__ import annotations

import json
import logging
import socket
import ssl
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from threading import Event, Lock
from time import monotonic
from typing import Any, Literal, NamedTuple, Protocol, TypeVar
from urllib.parse import urlsplit

from ovirt_imageio._internal import http as imageio_http
from ovirt_imageio.client import ImageioClient

from ingest.sources.base import BitmapError, SourceError
from ingest.sources.fetcher import Fetcher
from vmfs.errors import VmfsError

log = logging.getLogger(__name__)

T = TypeVar("T")
Context = Literal["zero", "dirty"]

PATIENCE = 180.0
"""Seconds for which a server that does not answer, or refuses, is borne."""
EXTENTS_TIMEOUT = 3600.0
"""Seconds that the server may take to list the extents of a disk."""

_CONNECT_TIMEOUT = 10.0
_PIECE = 1 << 20
_MAX_PAUSE = 5.0
_FORBIDDEN, _NOT_FOUND = 403, 404
_PASSING = frozenset((408, 429, 500, 502, 503, 504))
_SERVER_ERRORS = 5
"""So often the same request may fail with an error of the server's (500): a dead NBD server stays dead."""


class Access(Protocol):
    """What lets a client in to an image: an image transfer."""

    @property
    def url(self) -> str:
        """On the hypervisor's own daemon."""

    @property
    def proxy_url(self) -> str | None:
        """On the engine's proxy."""

    def renew(self) -> None:
        """After a refusal: do what lets the client in again; the URLs may be others then. Raises RenewLater
        when nothing does for now, VmfsError when nothing ever will."""


class PatienceError(SourceError):
    """All patience with the host was used up: another transfer would have to wait for the same."""


class RenewLater(Exception):
    """The access could not be renewed, but may be a little later: its host is being restarted."""


class ImageExtent(NamedTuple):
    """Bytes [start, start + length). `zero` None where the server does not tell."""

    start: int
    length: int
    dirty: bool
    zero: bool | None


class Extents:
    """The extents of a whole disk, adjacent ones of one kind made one, in 9 bytes each."""

    def __init__(self, extents: Iterable[ImageExtent]) -> None:
        """Raises ValueError when they are not adjacent."""
        self._starts = array("Q")
        self._kinds = array("B")
        self.size = 0
        self.zeros_told = True
        last = None
        for start, length, dirty, zero in extents:
            if start != self.size or length <= 0:
                raise ValueError(f"the server lists impossible extents (byte {start}, {length} long)")
            kind = dirty | bool(zero) << 1
            self.zeros_told &= zero is not None
            if kind != last:
                self._starts.append(start)
                self._kinds.append(kind)
                last = kind
            self.size = start + length

    def __iter__(self) -> Iterator[ImageExtent]:
        for number, (start, kind) in enumerate(zip(self._starts, self._kinds, strict=True), 1):
            end = self._starts[number] if number < len(self._starts) else self.size
            yield ImageExtent(start, end - start, bool(kind & 1), bool(kind & 2))


class Image:
    """Thread-safe. `name` is for messages; without `ca_file` the system's CAs are trusted, and everybody if
    `insecure`. After `stop`, all that waits ends soon, in SourceError."""

    def __init__(
        self,
        name: str,
        access: Access,
        *,
        ca_file: str | None = None,
        insecure: bool = False,
        patience: float = PATIENCE,
    ) -> None:
        self.name = name
        self._access = access
        self._ca_file = ca_file
        self._insecure = insecure
        self._patience = patience
        self._stopped = Event()
        self._lock = Lock()
        self._by_proxy = False
        self._waits: set[Callable[[], None]] = set()
        """What ends the wait of each that waits for the server."""

    def max_readers(self) -> int:
        """Connections that may read at once. Raises SourceError."""

        def ask(url: str) -> int:
            client = ImageioClient(url, cafile=self._ca_file, secure=not self._insecure)
            try:
                return max(1, int(client.max_readers))
            finally:
                # It says goodbye to a server that may be gone.
                with suppress(OSError, HTTPException):
                    client.close()

        return self.persist("connection", lambda: self._reach(ask))

    def connect(self, fetcher: Fetcher) -> None:
        """To the host, or where that cannot be reached to the proxy. Raises what `persist` sorts out."""
        with self.interruptible(fetcher.abort):
            self._reach(lambda url: fetcher.connect(url, ca_file=self._ca_file, secure=not self._insecure))

    def extents(self, context: Context) -> Extents:
        """Raises BitmapError when there are no dirty extents to be had, SourceError."""

        def ask() -> Extents:
            return self._reach(lambda url: self._request_extents(url, context))

        try:
            return self.persist(f"extents ({context})", ask)
        except _Missing as error:
            if context == "dirty":
                raise BitmapError(str(error)) from None
            raise

    def persist(self, what: str, attempt: Callable[[], T]) -> T:
        """What `attempt` returns, tried again while what goes wrong may pass: connections that end or
        time out, a ticket that has expired, a daemon that restarts. Raises SourceError: PatienceError when
        it has not passed for too long."""
        began: float | None = None
        pause = 0.0
        server_errors = 0
        while True:
            if self._stopped.is_set():
                raise SourceError(f"disk {self.name}: {what}: stopped")
            try:
                return attempt()
            except imageio_http.Error as error:
                problem = _shown(error)
                if error.code == _NOT_FOUND:
                    raise _Missing(f"disk {self.name}: {what}: {problem}") from None
                server_errors += error.code == 500
                final = error.code not in _PASSING | {_FORBIDDEN} or server_errors > _SERVER_ERRORS
                refused = True
            except ssl.SSLCertVerificationError as error:
                raise SourceError(
                    f"disk {self.name}: the certificate of the host's imageio cannot be trusted: "
                    f"{error.verify_message}; check ca_file, and the host's certificate in the engine"
                ) from None
            except (OSError, HTTPException, RuntimeError) as error:
                problem = _shown(error)
                final = refused = False
            if self._stopped.is_set():
                continue
            now = monotonic()
            began = now if began is None else began
            # Also after an error of the server's: the engine may know more of what has happened.
            if refused and not self._renew(what, problem):
                # The proxy answers for a host that is away.
                final, server_errors = False, 0
            late = now - began > self._patience
            if final or late:
                kind = PatienceError if late else SourceError
                raise kind(f"disk {self.name}: {what}: {problem}; run the backup again")
            log.debug("disk %s: %s: %s; trying again", self.name, what, problem)
            # A connection that was closed because it was idle comes back at once.
            self._stopped.wait(pause)
            pause = min(max(0.1, pause * 2), _MAX_PAUSE)

    @contextmanager
    def interruptible(self, end: Callable[[], None]) -> Iterator[None]:
        """While it lasts, `stop` calls `end`, which ends a wait for the server."""
        with self._lock:
            self._waits.add(end)
        try:
            if self._stopped.is_set():
                raise ConnectionAbortedError("stopped")
            yield
        finally:
            with self._lock:
                self._waits.remove(end)

    def stop(self) -> None:
        self._stopped.set()
        with self._lock:
            for end in self._waits:
                with suppress(OSError):
                    end()

    def _renew(self, what: str, problem: str) -> bool:
        """False if it cannot be now."""
        try:
            self._access.renew()
        except RenewLater as error:
            log.debug("disk %s: %s: %s", self.name, what, error)
            return False
        except SourceError:
            raise
        except VmfsError as error:
            log.debug("disk %s: %s: %s", self.name, what, problem)
            # The class tells what may be done next.
            error.args = (f"disk {self.name}: {error}",)
            raise
        return True

    def _reach(self, connect: Callable[[str], T]) -> T:
        """The host first; the proxy is the engine's, and all hosts share it."""
        direct, proxy = self._access.url, self._access.proxy_url
        ways = [(direct, False)] + ([(proxy, True)] if proxy and proxy != direct else [])
        failure: Exception | None = None
        for url, by_proxy in reversed(ways) if self._by_proxy else ways:
            try:
                result = connect(url)
            except ssl.SSLCertVerificationError:
                # The proxy would not trust it either, and not say why.
                raise
            except (OSError, HTTPException) as error:
                log.debug("disk %s: %s: %s", self.name, urlsplit(url).netloc, _shown(error))
                failure = error if failure is None or not by_proxy else failure
                continue
            if by_proxy and not self._by_proxy:
                log.warning(
                    "disk %s: %s cannot be reached (%s); reading through the engine's proxy, which is "
                    "slower: open port %s of the host to this machine",
                    self.name,
                    urlsplit(direct).netloc,
                    _shown(failure) if failure else "unknown",
                    urlsplit(direct).port or 443,
                )
            self._by_proxy = by_proxy
            return result
        assert failure  # noqa: S101 - there is at least one way
        raise failure

    def _request_extents(self, url: str, context: Context) -> Extents:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        connection = (
            HTTPSConnection(host, port, timeout=_CONNECT_TIMEOUT, context=self._tls())
            if parts.scheme == "https"
            else HTTPConnection(host, port, timeout=_CONNECT_TIMEOUT)
        )
        try:
            connection.connect()
            connection.sock.settimeout(EXTENTS_TIMEOUT)
            with self.interruptible(partial(connection.sock.shutdown, socket.SHUT_RDWR)):
                connection.request("GET", f"{parts.path}/extents?context={context}")
                answer = connection.getresponse()
                if answer.status != 200:
                    raise imageio_http.Error(answer.status, answer.read(512).decode(errors="replace").strip())
                return Extents(_parse(iter(lambda: answer.read(_PIECE), b"")))
        except ValueError as error:
            raise SourceError(f"disk {self.name}: {error}; run the backup again") from None
        finally:
            connection.close()

    def _tls(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self._ca_file)
        if self._insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


class _Missing(SourceError):
    """The server has no such thing (404)."""


def _parse(pieces: Iterator[bytes]) -> Iterator[ImageExtent]:
    """The objects of a JSON list that arrives in pieces, each object without inner ones: a disk may have
    millions of extents. Raises HTTPException when the list is cut short or makes no sense."""
    rest = b""
    for piece in pieces:
        rest += piece
        whole, brace, tail = rest.rpartition(b"}")
        if brace:
            yield from map(_extent, _objects(whole.lstrip(b"[, \r\n") + brace))
            rest = tail
    if rest.strip() not in (b"]", b"[]"):
        raise HTTPException("the list of extents is cut short")


def _objects(text: bytes) -> list[Any]:
    try:
        found = json.loads(b"[" + text + b"]")
    except ValueError:
        raise HTTPException("the list of extents makes no sense") from None
    return list(found)


def _extent(item: Any) -> ImageExtent:
    try:
        zero = item.get("zero")
        found = ImageExtent(item["start"], item["length"], bool(item.get("dirty")), zero)
    except (KeyError, AttributeError):
        raise HTTPException("the list of extents makes no sense") from None
    if type(found.start) is not int or type(found.length) is not int:
        raise HTTPException("the list of extents makes no sense")
    return found


def _shown(error: Exception) -> str:
    """In one line, with the status where there is one."""
    if isinstance(error, imageio_http.Error):
        return f"{error.code} {error.message}".strip()
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
