"""The HTTPS server of the engine: connections, keep-alive, certificates, restarts."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from lab.pki import ServerCertificate

MAX_BODY = 64 << 20
IDLE = 60.0
"""Seconds after which a connection without requests is closed."""


@dataclass(frozen=True)
class Request:
    """`path` is decoded, without the query; `headers` have lower-case names."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    def flag(self, name: str) -> bool:
        """A query parameter that is true or not."""
        return self.query.get(name, "false").lower() in ("true", "")


@dataclass(frozen=True)
class Reply:
    status: int
    content_type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


class Drop(Exception):
    """The connection is to be closed without an answer."""


Handler = Callable[[Request], Reply]


class HttpsServer:
    """Serves on one port of 127.0.0.1 for its whole life, over restarts. `handler` is called by a thread for
    each connection; `connection` is the class that reads requests from it."""

    def __init__(
        self,
        certificate: ServerCertificate,
        handler: Any,
        connection: type[BaseHTTPRequestHandler] | None = None,
    ) -> None:
        self._certificate = certificate
        self._handler = handler
        self._connection = connection or _Connection
        self._server: TlsServer | None = None
        self._thread: threading.Thread | None = None
        self.port = 0

    def start(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._certificate.cert_file, self._certificate.key_file)
        self._server = TlsServer(self.port, context, self._handler, self._connection)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, name="rest", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Nothing listens, and every connection is closed, whatever it was doing."""
        server, self._server = self._server, None
        if server is None:
            return
        server.shutdown()
        server.server_close()
        server.close_connections()
        if self._thread is not None:
            self._thread.join()

    def use(self, certificate: ServerCertificate) -> None:
        """Another certificate, after the next start."""
        self._certificate = certificate


class TlsServer(ThreadingHTTPServer):
    """A thread for each connection."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(
        self, port: int, context: ssl.SSLContext, handler: Any, connection: type[BaseHTTPRequestHandler]
    ) -> None:
        self.context = context
        self.handler = handler
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", port), connection)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """The TLS handshake is done here, in the connection's thread: a client that is slow at it delays
        nobody else."""
        with self._lock:
            self._connections.add(request)
        secured: ssl.SSLSocket | None = None
        try:
            request.settimeout(IDLE)
            secured = self.context.wrap_socket(request, server_side=True)
            with self._lock:
                self._connections.add(secured)
            self.finish_request(secured, client_address)
        except (OSError, ValueError):
            pass  # the client went away, or did not like the certificate
        finally:
            with self._lock:
                self._connections -= {request, secured}
            for open_socket in (secured, request):
                if open_socket is not None:
                    self.shutdown_request(open_socket)

    def close_connections(self) -> None:
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are no news."""


class _Connection(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "Apache"
    sys_version = ""
    server: TlsServer
    disable_nagle_algorithm = True

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        if length > MAX_BODY:
            self.send_error(413)
            self.close_connection = True
            return
        body = self.rfile.read(length)
        parts = urlsplit(self.path)
        request = Request(
            method=self.command,
            path=unquote(parts.path),
            query=dict(parse_qsl(parts.query, keep_blank_values=True)),
            headers={name.lower(): value for name, value in self.headers.items()},
            body=body,
        )
        try:
            reply = self.server.handler(request)
        except Drop:
            self.close_connection = True
            return
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.content_type)
        self.send_header("Content-Length", str(len(reply.body)))
        for name, value in reply.headers:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do_OPTIONS = _answer

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the lab has its own log of requests."""
