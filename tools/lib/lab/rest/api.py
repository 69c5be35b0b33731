"""From a request to its answer: login, routes, faults."""

from __future__ import annotations

import contextlib
import json
import re
import time
import traceback
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl

from lab.engine.core import Engine, Stopped
from lab.engine.errors import Refused, bad_request, conflict, not_found
from lab.rest import views
from lab.rest.server import Drop, Reply, Request
from lab.rest.sso import LoginFailed, SingleSignOn
from lab.rest.xml import parse, serialize

BASE = views.BASE
XML = "application/xml;charset=UTF-8"
JSON = "application/json;charset=UTF-8"
HTML = "text/html;charset=UTF-8"


@dataclass(frozen=True)
class Call:
    """A request to a route. `body` is parsed."""

    engine: Engine
    request: Request
    body: ET.Element | None

    @property
    def correlation_id(self) -> str | None:
        return self.request.query.get("correlation_id") or self.request.headers.get("correlation-id")

    @property
    def follow(self) -> list[str]:
        """Links to put in as what they lead to."""
        return [part for part in self.request.query.get("follow", "").split(",") if part]

    def all_content(self) -> bool:
        return self.request.flag("all_content") or self.request.headers.get("all-content") == "true"

    def limited(self, found: list[ET.Element]) -> list[ET.Element]:
        """The first `max` of them."""
        limit = self.request.query.get("max")
        return found if limit is None or int(limit) < 0 else found[: int(limit)]

    def needed_body(self) -> ET.Element:
        if self.body is None:
            raise bad_request("Request syntactically incorrect: the body is missing")
        return self.body


Answer = tuple[int, ET.Element]
Route = Callable[..., Answer]
"""Called with the Call and the ids in the path."""
ROUTES: list[tuple[str, re.Pattern[str], Route, bool]] = []


def route(method: str, path: str, *, locked: bool = True) -> Callable[[Route], Route]:
    """Registers a route; `{}` in the path stands for an id. It is called under the engine's lock; not
    `locked`: it takes that itself, as it has machines do something."""
    pattern = re.compile("/".join("([^/]+)" if part == "{}" else re.escape(part) for part in path.split("/")))

    def register(function: Route) -> Route:
        ROUTES.append((method, pattern, function, locked))
        return function

    return register


REFUSALS = (
    ("conflict-vm-during-backup", "POST", "vms/[^/]+/backups",
     conflict("Cannot backup VM. The VM is during a backup operation.")),
    ("conflict-disk-locked", "POST", "vms/[^/]+/backups",
     conflict("Cannot backup VM: The following disks are locked: disk1. Please try again in a few minutes.")),
    ("conflict-backup-not-ready", "POST", "imagetransfers",
     conflict("Cannot transfer Virtual Disk. The VM backup is not in READY phase.")),
    ("conflict-disk-transferred", "POST", "imagetransfers",
     conflict("Cannot transfer Virtual Disk. Disk disk1 is being transferred.")),
    ("conflict-active-transfer", "POST", "vms/[^/]+/backups/[^/]+/finalize",
     conflict("Cannot stop VM backup. There is an active image transfer for VM backup")),
    ("conflict-related-operation", "(POST|PUT|DELETE)", ".*",
     conflict("Cannot do it. Related operation is currently in progress. Please try again later.")),
    ("import-fails", "POST", "vms",
     Refused(500, "[Internal Engine Error]")),
)  # fmt: skip
"""Faults that are just an answer: name, method, path below the base."""


class Api:
    """The handler of the engine's HTTPS server."""

    def __init__(self, engine: Engine, sso: SingleSignOn, ca_file: Path) -> None:
        self._engine = engine
        self._sso = sso
        self._ca_file = ca_file
        self.log: list[str] = []
        """Every request: method, path, query, status."""

    def handle(self, request: Request) -> Reply:
        target = request.path
        if request.query and "password" not in request.query:
            target += "?" + "&".join(f"{key}={value}" for key, value in request.query.items())
        try:
            self._spoil(request)
            reply = self._dispatch(request)
            if self._take("answer-lost", request) is not None:
                raise Drop
        except Drop:
            self.log.append(f"{request.method} {target} -> dropped")
            raise
        self.log.append(f"{request.method} {target} -> {reply.status}")
        return reply

    def _take(self, fault: str, request: Request) -> dict[str, object] | None:
        """A fault of this request: its options `path` and `method` are patterns."""
        for armed in self._engine.faults.armed:
            if armed.name == fault:
                path, method = armed.options.get("path", "."), armed.options.get("method", ".")
                if re.search(path, request.path) and re.search(method, request.method):
                    return self._engine.faults.take(fault, path=path, method=method)
        return None

    def _spoil(self, request: Request) -> None:
        """Faults that come before the engine has done anything."""
        if (options := self._take("connection-hangs", request)) is not None:
            # Not a pause of the engine's: other requests are answered.
            time.sleep(float(str(options.get("seconds", 5))))
            raise Drop
        if self._take("connection-dropped", request) is not None:
            raise Drop

    def _dispatch(self, request: Request) -> Reply:
        if self._take("unavailable", request) is not None:
            body = b"<html><body><h1>Service Unavailable</h1></body></html>"
            return Reply(503, HTML, body, (("Retry-After", "1"),))
        if request.path in ("/ovirt-engine/sso/oauth/token", "/ovirt-engine/services/sso-logout"):
            return self._session(request)
        if request.path == "/ovirt-engine/services/pki-resource":
            return Reply(200, "application/x-x509-ca-cert", self._ca_file.read_bytes())
        if request.path == "/ovirt-engine/services/health":
            return Reply(200, "text/plain", b"DB Up!Welcome to Health Status!")
        if request.path != BASE and not request.path.startswith(BASE + "/"):
            return Reply(404, HTML, b"<html><body>Not Found</body></html>")
        authorization = request.headers.get("authorization", "")
        token = authorization.removeprefix("Bearer ") if authorization.startswith("Bearer ") else None
        if not self._sso.accepts(token):
            body = b"<html><head><title>Error</title></head><body>Unauthorized</body></html>"
            return Reply(401, HTML, body, (("WWW-Authenticate", 'Bearer realm="ENGINE"'),))
        status, answer = self._answer(request)
        return Reply(status, XML, serialize(answer))

    def _session(self, request: Request) -> Reply:
        form = dict(parse_qsl(request.body.decode(errors="replace"))) | request.query
        if request.path.endswith("sso-logout"):
            self._sso.logout(form.get("token", ""))
            return Reply(200, JSON, b"{}")
        try:
            token = self._sso.login(form)
        except LoginFailed as error:
            failure = {"error_code": error.code, "error": str(error)}
            return Reply(400, JSON, json.dumps(failure).encode())
        granted = {
            "access_token": token,
            "scope": "ovirt-app-api",
            "exp": "9223372036854775807",
            "token_type": "bearer",
        }
        return Reply(200, JSON, json.dumps(granted).encode())

    def _answer(self, request: Request) -> Answer:
        path = request.path[len(BASE) + 1 :].rstrip("/")
        try:
            for fault, method, pattern, refusal in REFUSALS:
                meant = re.fullmatch(method, request.method) and re.fullmatch(pattern, path)
                if meant and self._take(fault, request) is not None:
                    raise refusal
            call = Call(self._engine, request, parse(request.body))
            for route_method, route_pattern, function, locked in ROUTES:
                if route_method == request.method and (found := route_pattern.fullmatch(path)):
                    with self._engine.lock if locked else contextlib.nullcontext():
                        return function(call, *found.groups())
            raise not_found(path)
        except Refused as refused:
            problem = views.fault(refused.detail, refused.reason)
            acting = request.method == "POST" and path.rpartition("/")[2] in ACTIONS
            return refused.status, views.action("failed", problem) if acting else problem
        except Stopped:
            raise Drop from None
        except Exception:
            self._engine.problems.append(f"{request.method} {request.path}: {traceback.format_exc()}")
            return 500, views.fault("[Internal Engine Error]", "Operation Failed")


ACTIONS = {
    *("cancel", "extend", "finalize", "pause", "resume"),
    *("migrate", "shutdown", "start", "stop"),
    *("commitsnapshot", "previewsnapshot", "restore", "undosnapshot"),
}
"""Last parts of paths; a fault to one comes inside an action."""
