"""How commands reach a lab that runs in the background: a Unix socket, a JSON object a line each way."""

from __future__ import annotations

import json
import os
import socket
import socketserver
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

Request = dict[str, Any]
Handler = Callable[[Request], dict[str, Any]]
TIMEOUT = 300.0


class ControlError(Exception):
    """No lab answers, or it refused; one line for the user."""


class ControlServer:
    """Answers each request with what `handler` gives; what that raises as ControlError is the user's."""

    def __init__(self, path: Path, handler: Handler) -> None:
        path.unlink(missing_ok=True)

        class Connection(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                try:
                    answer = handler(json.loads(self.rfile.readline()))
                except ControlError as error:
                    answer = {"error": str(error)}
                self.wfile.write(json.dumps(answer).encode() + b"\n")

        class Server(socketserver.ThreadingUnixStreamServer):
            daemon_threads = True

        self._server = Server(os.fspath(path), Connection)
        path.chmod(0o600)
        self._thread = threading.Thread(target=self._server.serve_forever, name="control", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def ask(path: Path, request: Request) -> dict[str, Any]:
    """The lab's answer. Raises ControlError."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(TIMEOUT)
            connection.connect(os.fspath(path))
            connection.sendall(json.dumps(request).encode() + b"\n")
            line = connection.makefile("rb").readline()
    except OSError as error:
        raise ControlError(
            f"no lab is running ({error.strerror or error}); start one: tools/lab up"
        ) from None
    if not line:
        raise ControlError("the lab ended before it answered; see its log")
    answer: dict[str, Any] = json.loads(line)
    if "error" in answer:
        raise ControlError(str(answer["error"]))
    return answer
