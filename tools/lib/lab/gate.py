"""Relays before imageio daemons, for faults in the middle of a transfer.

A gate ends TLS, counts the requests of the imageio client, lets faults happen at them, and hands them on to
the real daemon. There is one only for transfers that begin while a fault waits for it.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lab.engine.model import Transfer
from lab.faults import Faults
from lab.pki import ServerCertificate
from lab.rest.server import HttpsServer, TlsServer

NEEDED = ("slow-extents", "connection-closed", "upload-no-space", "reading", "writing", "data", "extents")
"""Faults and moments that a gate is there for."""
BLOCK = 1 << 20
HOP_HEADERS = {"connection", "keep-alive", "transfer-encoding", "content-length", "host"}


class Gates:
    """All gates, and a port where nobody listens."""

    def __init__(self, faults: Faults, certificate: ServerCertificate, ca_file: Path) -> None:
        self.faults = faults
        self.ca_file = ca_file
        self.transfers: dict[str, Transfer] = {}
        """By ticket."""
        self._certificate = certificate
        self._servers: dict[str, HttpsServer] = {}
        self._lock = threading.Lock()
        self._nowhere = socket.socket()
        # Bound and not listening: connections are refused, and nobody else gets the port.
        self._nowhere.bind(("127.0.0.1", 0))

    def route(self, transfer: Transfer, direct: str, proxy: str | None) -> tuple[str, str | None]:
        """What a client is told for these URLs."""
        nowhere = f"127.0.0.1:{self._nowhere.getsockname()[1]}"
        if self.faults.take("all-unreachable", disk=transfer.disk_id) is not None:
            return _at(direct, nowhere), _at(proxy, nowhere) if proxy else None
        if self.faults.take("direct-unreachable", disk=transfer.disk_id) is not None:
            return _at(direct, nowhere), proxy
        if not self.faults.waits_for(*NEEDED):
            return direct, proxy
        target = urlsplit(direct)
        with self._lock:
            self.transfers[target.path.rpartition("/")[2]] = transfer
            server = self._servers.get(target.netloc)
            if server is None:
                server = HttpsServer(self._certificate, (self, target.netloc), _Relay)
                server.start()
                self._servers[target.netloc] = server
        return _at(direct, f"127.0.0.1:{server.port}"), proxy

    def close(self) -> None:
        with self._lock:
            for server in self._servers.values():
                server.stop()
            self._nowhere.close()


def _at(url: str, netloc: str) -> str:
    return urlsplit(url)._replace(netloc=netloc).geturl()


class _Relay(BaseHTTPRequestHandler):
    """A client's connection, and one of its own to the daemon, for imageio keeps state by connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: TlsServer

    def setup(self) -> None:
        super().setup()
        gates, target = self.server.handler
        self.gates: Gates = gates
        context = ssl.create_default_context(cafile=gates.ca_file)
        self.daemon = http.client.HTTPSConnection(target, context=context, timeout=300)

    def finish(self) -> None:
        self.daemon.close()
        super().finish()

    def _pass_on(self) -> None:
        try:
            if not self._spoiled():
                self._forward()
        except (OSError, http.client.HTTPException):
            # As if the client had been connected to the daemon itself.
            self.close_connection = True

    def _spoiled(self) -> bool:
        """Let faults happen. True: the request is not handed on."""
        parts = self.path.split("?")[0].strip("/").split("/")
        transfer = self.gates.transfers.get(parts[1]) if len(parts) > 1 else None
        if transfer is None or parts[0] != "images" or self.command == "OPTIONS":
            return False
        faults = self.gates.faults
        facts = {
            "transfer": transfer.id,
            "disk": transfer.disk_id,
            "vm": transfer.vm_id,
            "backup": transfer.backup_id,
        }
        if self.command == "GET" and parts[-1] == "extents":
            faults.moment("extents", **facts)
            slow = faults.take("slow-extents", **facts)
            if slow is not None:
                time.sleep(float(slow.get("seconds", 5)))
            return False
        moment = "reading" if self.command == "GET" else "writing"
        faults.moment(moment, **facts)
        faults.moment("data", **facts)
        if faults.take("connection-closed", **facts) is not None:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
            return True
        if moment == "writing" and faults.take("upload-no-space", **facts) is not None:
            self._no_space()
            return True
        return False

    def _no_space(self) -> None:
        """What imageio answers when qemu-nbd tells it ENOSPC."""
        self._body()
        text = b"Server failed to perform the request, check logs\n"
        self.send_response(500)
        self.send_header("Content-Type", "text/plain; charset=UTF-8")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _forward(self) -> None:
        headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP_HEADERS}
        body = self._body()
        self.daemon.request(self.command, self.path, body or None, headers)
        answer = self.daemon.getresponse()
        self.send_response(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in (*HOP_HEADERS, "date", "server"):
                self.send_header(name, value)
        if answer.will_close:
            self.send_header("Connection", "close")  # the client then connects again by itself
        if answer.length is None:  # chunked, or till the end
            whole = answer.read()
            self.send_header("Content-Length", str(len(whole)))
            self.end_headers()
            self.wfile.write(whole)
        else:
            self.send_header("Content-Length", str(answer.length))
            self.end_headers()
            while block := answer.read(BLOCK):
                self.wfile.write(block)

    do_GET = do_PUT = do_PATCH = do_OPTIONS = do_HEAD = do_POST = do_DELETE = _pass_on

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the daemon has its log."""
