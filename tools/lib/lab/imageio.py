"""The real ovirt-imageio daemon of one simulated host.

Its configuration and the control socket's requests are those of vdsm: see "docs/" and `_internal/config.py`,
`_internal/handlers/tickets.py` of https://github.com/oVirt/ovirt-imageio.
"""

from __future__ import annotations

import http.client
import json
import re
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab.pki import ServerCertificate
from lab.process import Child, remove_socket_folder, socket_folder

Ticket = dict[str, Any]
"""A ticket as the daemon tells it: uuid, size, url, ops, transferred (bytes; read or write tickets), active,
connections, idle_time (s), expires (s, monotonic), timeout (s), …"""

START_TIMEOUT = 60.0
POLL = 0.02
CONFIG = """\
[daemon]
systemd_enable = false
drop_privileges = false
run_dir = {folder}
poll_interval = 0.1

[tls]
enable = true
key_file = {key_file}
cert_file = {cert_file}
ca_file = {ca_file}

[remote]
host = 127.0.0.1
port = {port}

# Else a client on this machine goes to the Unix socket by itself, round TLS.
[local]
enable = false

[control]
transport = unix
socket = {control}
remove_timeout = {remove_timeout}

[handlers]
keys = stderr

[logger_root]
level = INFO
handlers = stderr
"""


class ImageioError(Exception):
    """The daemon did not start, or refused a request: `status` is its HTTP status (0: no answer)."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class ImageioHost:
    """An ovirt-imageio daemon over TLS on 127.0.0.1, on one port for its whole life. Thread-safe."""

    def __init__(
        self, folder: Path, certificate: ServerCertificate, ca_file: Path, *, remove_timeout: int = 5
    ) -> None:
        """Config and log go to `folder`. `remove_timeout` (s): how long removing a busy ticket waits before
        409."""
        self.port = 0
        """The TLS port; known after the first start."""
        self._folder = folder
        self._certificate = certificate
        self._ca_file = ca_file
        self._remove_timeout = remove_timeout
        self._child: Child | None = None
        self._control = Path()
        self._lock = threading.RLock()
        self._present: set[str] = set()
        self._seen: dict[str, Ticket] = {}

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.running

    @property
    def url(self) -> str:
        """`https://127.0.0.1:PORT`; a transfer_url is `{url}/images/{ticket uuid}`."""
        return f"https://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Starts the daemon and waits till it listens. Raises ImageioError."""
        with self._lock:
            if self.running:
                return
            program = _program()
            conf = self._folder / "conf.d"
            conf.mkdir(parents=True, exist_ok=True)
            self._control = socket_folder(self._folder) / "control.sock"
            settings = CONFIG.format(
                folder=self._folder,
                key_file=self._certificate.key_file,
                cert_file=self._certificate.cert_file,
                ca_file=self._ca_file,
                port=self.port,
                control=self._control,
                remove_timeout=self._remove_timeout,
            )
            (conf / "lab.conf").write_text(settings)
            self._present.clear()
            self._child = Child(self._folder, "imageio", [program, "-c", self._folder])
            try:
                self._wait_ready(self._child)
            except BaseException:
                self.kill()
                raise

    def stop(self) -> None:
        """SIGTERM and wait. All tickets are gone with it (their last state stays in `seen`)."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL, as stop."""
        self._end(signal.SIGKILL)

    def close(self) -> None:
        """As kill: nothing stays but config and log."""
        self.kill()

    def restart(self, *, certificate: ServerCertificate | None = None) -> None:
        """kill() and start() on the same port, without tickets; with another certificate when given."""
        with self._lock:
            self.kill()
            self._certificate = certificate or self._certificate
            self.start()

    def add_ticket(self, ticket: Mapping[str, Any]) -> None:
        """PUT /tickets/UUID. Raises ImageioError."""
        uuid = str(ticket["uuid"])
        self._request("PUT", uuid, ticket)
        with self._lock:
            self._present.add(uuid)
        self.get_ticket(uuid)

    def get_ticket(self, uuid: str) -> Ticket:
        """GET: the daemon's own JSON. Raises ImageioError (status 404: no such ticket)."""
        ticket = Ticket(json.loads(self._request("GET", uuid)))
        with self._lock:
            self._seen[uuid] = ticket
        return dict(ticket)

    def extend_ticket(self, uuid: str, timeout: int) -> None:
        """PATCH: expires `timeout` seconds from now (0: expires at once). Raises ImageioError."""
        self._request("PATCH", uuid, {"timeout": timeout})

    def remove_ticket(self, uuid: str) -> Ticket | None:
        """DELETE; gives the ticket's last state before that, None when there was none. Raises ImageioError
        (status 409: a connection is busy with it after remove_timeout)."""
        try:
            ticket = self.get_ticket(uuid)
        except ImageioError as error:
            if error.status != http.client.NOT_FOUND:
                raise
            # A daemon that was restarted while the ticket was being added.
            with self._lock:
                self._present.discard(uuid)
            return None
        deadline = time.monotonic() + self._remove_timeout
        while True:
            try:
                self._request("DELETE", uuid)
                break
            except ImageioError as error:
                # A connection that ends at this moment still has its buffer: "BufferError: cannot close
                # exported pointers exist" in the daemon's log (2.5.1). DELETE may be repeated.
                if error.status != http.client.INTERNAL_SERVER_ERROR or time.monotonic() > deadline:
                    raise
                time.sleep(POLL)
        with self._lock:
            self._present.discard(uuid)
        return ticket

    @property
    def tickets(self) -> list[str]:
        """The ids of the tickets that the daemon has now."""
        with self._lock:
            return sorted(self._present) if self.running else []

    @property
    def seen(self) -> dict[str, Ticket]:
        """The last known state of every ticket ever added, by uuid: of a removed one, that before removal."""
        with self._lock:
            for uuid in self.tickets:
                self._look(uuid)
            return {uuid: dict(ticket) for uuid, ticket in self._seen.items()}

    def _end(self, number: signal.Signals) -> None:
        with self._lock:
            if self._child is None:
                return
            for uuid in self.tickets:  # the counters end with the daemon
                self._look(uuid)
            self._child.signal(number)
            self._child.wait()
            self._child = None
            remove_socket_folder(self._folder)
            self._present.clear()

    def _look(self, uuid: str) -> None:
        """Remembers the ticket's state, when the daemon still answers."""
        try:
            self.get_ticket(uuid)
        except ImageioError:
            return

    def _wait_ready(self, child: Child) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while "Ready for requests" not in (output := child.output()):
            if not child.running or time.monotonic() > deadline:
                raise ImageioError(f"ovirt-imageio does not start: {output or child.log}")
            time.sleep(POLL)
        match = re.search(r"remote\.service listening on \('127\.0\.0\.1', (\d+)\)", output)
        if match is None:
            raise ImageioError(f"ovirt-imageio does not say its port: {child.log}")
        self.port = int(match.group(1))

    def _request(self, method: str, uuid: str, body: Mapping[str, Any] | None = None) -> bytes:
        connection = _UnixConnection(self._control, self._remove_timeout + 30.0)
        try:
            connection.request(method, f"/tickets/{uuid}", None if body is None else json.dumps(body))
            response = connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise ImageioError(f"ovirt-imageio does not answer: {error!r}") from None
        finally:
            connection.close()
        if response.status >= http.client.BAD_REQUEST:
            text = answer.decode(errors="replace").strip()
            raise ImageioError(f"ticket {uuid}: {response.status} {text}", response.status)
        return answer


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over the control socket."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _program() -> Path:
    """The daemon's command: of this Python environment first. Raises ImageioError."""
    beside = Path(sys.executable).parent / "ovirt-imageio"
    found = str(beside) if beside.exists() else shutil.which("ovirt-imageio")
    if found is None:
        raise ImageioError("ovirt-imageio is missing: pip install ovirt-imageio")
    return Path(found)
