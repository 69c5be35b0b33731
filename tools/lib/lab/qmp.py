"""QEMU's machine protocol over a Unix socket, synchronous."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lab.errors import MachineError

ANSWER_TIMEOUT = 120.0
"""How long (s) qemu may be silent while something is waited for."""

Event = Mapping[str, Any]


class QmpError(MachineError):
    """qemu refused a command: `kind` is its error class, the message its description."""

    def __init__(self, command: str, error: Mapping[str, str]) -> None:
        super().__init__(f"{command}: {error['desc']}")
        self.kind = error["class"]
        self.description = error["desc"]


class QmpClient:
    """A connected monitor. Not thread-safe: one command at a time. Events are kept till waited for."""

    def __init__(self, sock: socket.socket) -> None:
        """Raises MachineError when the other side does not greet like qemu."""
        self._socket = sock
        sock.settimeout(ANSWER_TIMEOUT)
        self._lines = sock.makefile("rb")
        self._events: list[Event] = []
        self.lost = False
        """The connection broke: qemu has ended, or will not be heard again."""
        self._receive()
        self.execute("qmp_capabilities")

    @classmethod
    def accept(cls, listener: socket.socket, alive: Callable[[], bool]) -> QmpClient:
        """The monitor that connects to `listener`, so that nobody has to poll for qemu's start. Raises
        MachineError when qemu ends (`alive` tells) or does not connect within ANSWER_TIMEOUT."""
        deadline = time.monotonic() + ANSWER_TIMEOUT
        listener.settimeout(0.1)
        while True:
            try:
                return cls(listener.accept()[0])
            except TimeoutError:
                if not alive():
                    raise MachineError("qemu-storage-daemon ended at its start") from None
                if time.monotonic() > deadline:
                    raise MachineError(f"qemu-storage-daemon: no monitor in {ANSWER_TIMEOUT:g} s") from None

    def execute(self, command: str, **arguments: Any) -> Any:
        """What the command returns; `_` in argument names stands for `-`. Raises QmpError, and MachineError
        when qemu is gone."""
        spelled = {key.replace("_", "-"): value for key, value in arguments.items()}
        try:
            self._socket.sendall(json.dumps({"execute": command, "arguments": spelled}).encode() + b"\n")
        except OSError as error:
            self.lost = True
            raise MachineError(f"{command}: qemu is gone ({error.strerror or error})") from None
        while True:
            answer = self._receive()
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise QmpError(command, answer["error"])
            self._events.append(answer)

    def wait_event(self, wanted: Callable[[Event], bool]) -> Event:
        """The first event that is wanted, of those kept or of those to come; it is then forgotten."""
        for number, event in enumerate(self._events):
            if wanted(event):
                return self._events.pop(number)
        while True:
            event = self._receive()
            if wanted(event):
                return event
            self._events.append(event)

    def forget_events(self) -> None:
        self._events.clear()

    def close(self) -> None:
        self._lines.close()
        self._socket.close()

    def _receive(self) -> dict[str, Any]:
        try:
            line = self._lines.readline()
        except (OSError, ValueError) as error:  # ValueError: closed by another thread
            self.lost = True
            raise MachineError(f"qemu does not answer: {error}") from None
        if not line:
            self.lost = True
            raise MachineError("qemu has ended")
        return dict(json.loads(line))


def job_reached(job: str, *states: str) -> Callable[[Event], bool]:
    """For wait_event: the job has come to one of these states (JOB_STATUS_CHANGE)."""
    return lambda event: (
        event["event"] == "JOB_STATUS_CHANGE"
        and event["data"]["id"] == job
        and event["data"]["status"] in states
    )


def export_deleted(export: str) -> Callable[[Event], bool]:
    """For wait_event: the block export of that id is gone."""
    return lambda event: event["event"] == "BLOCK_EXPORT_DELETED" and event["data"]["id"] == export


def listen(path: Path) -> socket.socket:
    """A listening Unix socket at a short `path`."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(1)
    return listener
