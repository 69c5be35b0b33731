"""How requests travel to the engine: the SDK's Connection with another way of sending.

The SDK's own sends all requests over one lock, with no time limit for logging in, and one thread may be told
of the failure of another's request while that one waits for ever (ovirtsdk4 4.6.3, Connection.wait). It may
also send a POST twice when a kept connection breaks, as curl does. Here every request has a connection and a
time limit of its own, is sent once, and fails in the thread that made it.
"""

from __future__ import annotations

import http.client
import json
import logging
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode, urlsplit

import ovirtsdk4
from ovirtsdk4.http import Response

from ingest.engine.errors import EngineError, LoginError, TrustError, UnavailableError
from ingest.engine.settings import EngineSettings, base_url
from vmfs import __version__

log = logging.getLogger(__name__)

CONNECT_TIMEOUT = 10.0
"""Seconds, to connect and agree on TLS."""
CALL_TIMEOUT = 60.0
"""Seconds for one request and its answer."""
LOGOUT_TIMEOUT = 10.0
MAX_ANSWER = 64 << 20
"""Bytes. The largest answers list the VMs with their configuration."""


class Connection(ovirtsdk4.Connection):  # type: ignore[misc]
    """Raises, besides the SDK's errors, LoginError, TrustError and UnavailableError."""

    def __init__(self, settings: EngineSettings, *, timeout: float = CALL_TIMEOUT) -> None:
        self._sso_token: str | None
        super().__init__(
            url=settings.url,
            username=settings.username,
            password=settings.password,
            token=settings.token,
            insecure=settings.insecure,
        )
        self._settings = settings
        self._limit = timeout
        self._context = tls_context(settings)
        self._login = threading.Lock()

    def authenticate(self) -> str:
        with self._login:
            if self._sso_token is None:
                self._sso_token = self._log_in()
            return self._sso_token

    def send(self, request: Any) -> Response:
        """The answer itself: SDK calls hand it to `wait`."""
        token = self.authenticate()
        response = self._send(request, token)
        if response.code == http.client.UNAUTHORIZED:
            # The session has ended: they do after half an hour of silence, or when an administrator says so.
            response = self._send(request, self._renew(token))
        if response.code == http.client.UNAUTHORIZED:
            raise LoginError(f"engine {self._settings.name} does not accept a session that it has just begun")
        return response

    def wait(self, context: Response, failed_auth: bool = False) -> Response:
        return context

    def close(self, logout: bool = True) -> None:
        """Never raises."""
        self._limit = LOGOUT_TIMEOUT
        try:
            # A token that was given to us is not ours to revoke.
            super().close(logout=logout and self._settings.token is None)
        except (ovirtsdk4.Error, EngineError) as error:
            log.debug("logging out: %s", error)

    def _renew(self, ended: str) -> str:
        """Another token than the one that has ended. One thread logs in, the others use what it got."""
        with self._login:
            if self._sso_token == ended:
                # None while it is got: if that fails, the next request tries again.
                self._sso_token = None
            if self._sso_token is None:
                self._sso_token = self._log_in()
            return self._sso_token

    def _log_in(self) -> str:
        if self._settings.username is None or self._settings.password is None:
            raise LoginError(
                f"engine {self._settings.name}: the session of this token has ended; "
                "give a user name and password"
            )
        token = self._get_access_token()
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise UnavailableError(f"engine {self._settings.name}: the login service gave no token")
        return token

    def _send(self, request: Any, token: str) -> Response:
        path = self._build_url(path=request.path, query=request.query).removeprefix(base_url(self.url))
        headers = {
            **self._headers,
            **{name: value for name, value in request.headers.items() if value is not None},
            "Version": "4",
            "Content-Type": "application/xml",
            "Accept": "application/xml",
            "Authorization": f"Bearer {token}",
        }
        if (request.query or {}).get("all_content"):
            headers["All-Content"] = request.query["all_content"]
        body = (request.body or "").encode() if request.method in ("POST", "PUT") else None
        response = self._exchange(request.method, path, headers, body)
        kind = self._get_header_value(response.headers, "content-type") or ""
        if response.code in (502, 503, 504) or (response.code >= 403 and "xml" not in kind):
            # Not the API speaks here but what stands before it: it is being started or stopped.
            raise UnavailableError(
                f"engine {self._settings.name} does not serve its API (HTTP {response.code})",
                code=response.code,
                sent=response.code not in (404, 503),
            )
        return response

    def _get_sso_response(self, url: str, params: Mapping[str, str] | str = "") -> Any:
        headers = {"Accept": "application/json", "Content-Type": "application/x-www-form-urlencoded"}
        body = urlencode(params).encode() if isinstance(params, Mapping) else params.encode()
        response = self._exchange("POST", url.removeprefix(base_url(self.url)), headers, body)
        try:
            answer = json.loads(response.body)
        except ValueError:
            answer = None
        if isinstance(answer, list) and answer:
            answer = answer[0]
        if not isinstance(answer, dict) or response.code >= 500:
            raise UnavailableError(
                f"engine {self._settings.name} does not serve its login (HTTP {response.code})",
                code=response.code,
                sent=False,
            )
        if "error" in answer or "error_code" in answer:
            told = str(answer.get("error_description") or answer.get("error") or answer["error_code"])
            told = told.strip().rstrip(".")
            raise LoginError(
                f"engine {self._settings.name}: login as {self._settings.username} failed: {told}; "
                "check user name (with its profile, as in admin@internal) and password",
                code=response.code,
                fault=told,
            )
        return answer

    def _exchange(self, method: str, path: str, headers: Mapping[str, str], body: bytes | None) -> Response:
        parts = urlsplit(self.url)
        wire = http.client.HTTPConnection(parts.hostname or "", parts.port or 443)
        wire.default_port = 443
        deadline = time.monotonic() + self._limit
        sent = False
        try:
            # Not by HTTPSConnection, which leaves a socket open when it is interrupted.
            wire.sock = _connect(parts.hostname or "", parts.port or 443)
            wire.sock = wire_socket = self._context.wrap_socket(
                wire.sock, server_hostname=parts.hostname, do_handshake_on_connect=False
            )
            wire_socket.do_handshake()
            sent = True
            wire_socket.settimeout(self._limit)
            wire.request(
                method,
                path,
                body,
                {
                    **headers,
                    "User-Agent": f"vmfs/{__version__}",
                    "Accept-Encoding": "gzip",
                    "Connection": "close",
                },
            )
            answer = wire.getresponse()
            content = bytearray()
            while part := answer.read1(1 << 20):
                content += part
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                if len(content) > MAX_ANSWER:
                    raise EngineError(
                        f"engine {self._settings.name}: the answer to {method} {path} has no end"
                    )
                wire_socket.settimeout(left)
            if answer.getheader("Content-Encoding", "").lower() == "gzip":
                content = bytearray(_unpack(bytes(content)))
        except ssl.SSLCertVerificationError as error:
            raise TrustError(f"engine {self._settings.name}: {distrust(error, self._settings)}") from None
        except (OSError, http.client.HTTPException, zlib.error) as error:
            raise UnavailableError(
                f"engine {self._settings.name} at {parts.netloc} {_reason(error, connected=sent)}", sent=sent
            ) from None
        finally:
            wire.close()
        response = Response()
        response.code = answer.status
        response.reason = answer.reason
        response.message = answer.reason
        response.headers = [f"{name}: {value}" for name, value in answer.getheaders()]
        response.body = bytes(content)
        return response


def _connect(host: str, port: int) -> socket.socket:
    """To the first of the host's addresses that answers. Raises OSError."""
    failure = OSError("it has no address")
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        try:
            found = socket.socket(family, kind, protocol)
        except OSError as error:
            # The machine may have no IPv6.
            failure = error
            continue
        try:
            found.settimeout(CONNECT_TIMEOUT)
            found.connect(address)
        except OSError as error:
            failure = error
            found.close()
        except BaseException:
            found.close()
            raise
        else:
            return found
    raise failure


def tls_context(settings: EngineSettings) -> ssl.SSLContext:
    """Raises TrustError for a CA file that cannot be used."""
    if settings.insecure:
        return unverified_context()
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
    except ssl.SSLError:
        raise TrustError(f"CA file {settings.ca_file} holds no certificate in PEM form") from None
    except OSError as error:
        raise TrustError(
            f"CA file {settings.ca_file}: {error.strerror}; get it with: {_trust_command(settings)}"
        ) from None
    # CAs of engines set up long ago lack some of what RFC 5280 asks for; Python 3.13 minds by default.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def unverified_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def distrust(error: ssl.SSLCertVerificationError, settings: EngineSettings) -> str:
    """Why a certificate is not trusted, and the remedy."""
    why = error.verify_message.rstrip(".")
    why = why[:1].lower() + why[1:]
    # In OpenSSL's x509_vfy.h: X509_V_ERR_CERT_NOT_YET_VALID, …_CERT_HAS_EXPIRED, …_HOSTNAME_MISMATCH, …_IP_….
    if error.verify_code in (9, 10):
        return f"{why}; renew the engine's certificate (engine-setup --offline), or set this machine's clock"
    if error.verify_code in (62, 64):
        return f"{why}; use the name that the engine was set up with"
    anew = _trust_command(settings)
    if settings.ca_file is None:
        return (
            f"its certificate is not trusted ({why}); give --ca-file, or fetch the engine's CA with: {anew}"
        )
    return f"its certificate is not of the CA in {settings.ca_file} ({why}); if the CA was renewed: {anew}"


def _trust_command(settings: EngineSettings) -> str:
    named = "" if any(mark in settings.name for mark in ".:/") else f" --name {settings.name}"
    return f"vmfs-ingest engine trust {base_url(settings.url)}{named}"


def _unpack(data: bytes) -> bytes:
    """Of gzip. Raises zlib.error."""
    unpacker = zlib.decompressobj(wbits=31)
    content = unpacker.decompress(data, MAX_ANSWER)
    if not unpacker.eof:
        raise zlib.error("incomplete or too large")
    return content


def _reason(error: Exception, *, connected: bool) -> str:
    if isinstance(error, TimeoutError):
        return "does not answer" if connected else "cannot be reached: no answer"
    if isinstance(
        error, http.client.RemoteDisconnected | ConnectionResetError | BrokenPipeError | ssl.SSLEOFError
    ):
        return "closed the connection"
    if isinstance(error, socket.gaierror):
        return f"cannot be reached: {error.strerror}; check the name"
    if isinstance(error, OSError):
        return f"cannot be reached: {error.strerror or error}"
    return f"gave an answer that is no HTTP: {error!r}"
