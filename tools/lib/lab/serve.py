"""The process of `tools/lab up`: the lab, its ready VMs, and the control socket, until it is told to end."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

from lab import ready
from lab.control import ControlError, ControlServer, Request
from lab.engine.errors import Refused
from lab.faults import UnknownFaultError
from lab.lab import Lab
from lab.machine import MachineError

CONTROL = "control.sock"
FACTS = "lab.json"
"""Written when everything is ready: what `status` shows first."""


class Service:
    """A lab that obeys the control socket."""

    def __init__(self, folder: Path) -> None:
        self._lab = Lab(folder)
        self._ended = threading.Event()
        self._writes = 0
        self._ready: dict[str, ready.ReadyVm] = {}

    def run(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: self._ended.set())
        with self._lab:
            self._ready = ready.create(self._lab)
            server = ControlServer(self._lab.folder / CONTROL, self.answer)
            try:
                facts = self._lab.folder / FACTS
                temporary = facts.with_suffix(".new")
                temporary.write_text(json.dumps(self.facts()))
                temporary.rename(facts)
                self._ended.wait()
            finally:
                server.close()

    def facts(self) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            **self._lab.engine,
            "vms": {name: each.what for name, each in self._ready.items()},
        }

    def answer(self, request: Request) -> dict[str, Any]:
        """Raises ControlError with a line for the user."""
        try:
            return self._answer(request)
        except (UnknownFaultError, MachineError, LookupError, Refused) as error:
            text = error.detail if isinstance(error, Refused) else str(error.args[0] if error.args else error)
            raise ControlError(text) from None

    def _answer(self, request: Request) -> dict[str, Any]:
        command = request.get("command")
        if command == "status":
            return self._status()
        if command == "write":
            return self._write(str(request["vm"]))
        if command == "break":
            self._lab.faults.break_(
                str(request["kind"]),
                times=int(request.get("times", 1)),
                at=request.get("at"),
                skip=int(request.get("skip", 0)),
                **self._options(request.get("options", {})),
            )
            return {"armed": [armed.name for armed in self._lab.faults.armed]}
        if command == "mend":
            self._lab.faults.mend(request.get("kind"))
            return {"armed": [armed.name for armed in self._lab.faults.armed]}
        if command == "down":
            self._ended.set()
            return {}
        raise ControlError(f"{command}: no such command")

    def _options(self, told: dict[str, Any]) -> dict[str, Any]:
        """Names of VMs and aliases of disks become ids, by which the engine knows them."""
        options = dict(told)
        core = self._lab.core
        for key, named in (
            ("vm", {vm.name: vm.id for vm in core.vms.values()}),
            ("disk", {disk.alias: disk.id for disk in core.disks.values()}),
        ):
            if key in options:
                options[key] = named.get(options[key], options[key])
        for key in ("seconds", "replies", "size", "life"):
            if key in options:
                options[key] = float(options[key]) if key == "seconds" else int(options[key])
        return options

    def _write(self, name: str) -> dict[str, Any]:
        self._writes += 1
        chosen = self._ready.get(name)
        if chosen is None or chosen.vm.id not in self._lab.core.vms:
            chosen = ready.ReadyVm(self._lab.vm(name), "", False)
        return {"written": ready.write(chosen, self._writes)}

    def _status(self) -> dict[str, Any]:
        core = self._lab.core
        with core.lock:
            vms = [
                {
                    "name": vm.name,
                    "id": vm.id,
                    "status": vm.status,
                    "cluster": core.clusters[vm.cluster_id].name,
                    "disks": {core.disks[disk_id].alias: disk_id for disk_id in vm.attachments},
                    "checkpoints": [each.id for each in vm.checkpoints],
                    "snapshots": [each.description for each in vm.snapshots],
                }
                for vm in core.vms.values()
            ]
        return {
            "facts": self.facts(),
            "vms": vms,
            "faults": [
                {"name": armed.name, "left": armed.left, "at": armed.at} for armed in self._lab.faults.armed
            ],
            "leftovers": self._lab.leftovers(),
            "problems": self._lab.problems,
        }
