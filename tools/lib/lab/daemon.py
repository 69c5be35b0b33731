"""The hypervisor of one VM: a qemu-storage-daemon process, its monitor and its NBD server."""

from __future__ import annotations

import contextlib
import itertools
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lab.errors import MachineError
from lab.process import Child
from lab.qemu_img import Bitmap
from lab.qmp import Event, QmpClient, QmpError, export_deleted, job_reached, listen


class Daemon:
    """Not thread-safe but for `kill` and `running`. All raise MachineError when qemu refuses or ends."""

    def __init__(self, folder: Path, sockets: Path) -> None:
        """Starts it; log and pid go to `folder`, sockets to `sockets`, which has a short path."""
        self.nbd_socket = sockets / "nbd"
        self._ids = itertools.count(1)
        control = sockets / "qmp"
        for stale in (self.nbd_socket, control):
            stale.unlink(missing_ok=True)
        with listen(control) as listener:
            self._child = Child(
                folder,
                "qemu-storage-daemon",
                [
                    "qemu-storage-daemon",
                    *("--chardev", f"socket,path={control},server=off,id=control"),
                    *("--monitor", "chardev=control"),
                ],
            )
            try:
                self._qmp = QmpClient.accept(listener, lambda: self._child.running)
                address = {"type": "unix", "data": {"path": str(self.nbd_socket)}}
                self.execute("nbd-server-start", addr=address, max_connections=0)
            except MachineError as error:
                self._child.kill()
                raise MachineError(f"{error}: {self._child.output() or self._child.log}") from None

    @property
    def running(self) -> bool:
        """False as soon as the monitor's connection broke: a process ends a moment later."""
        return self._child.running and not self._qmp.lost

    @property
    def pid(self) -> int:
        return self._child.pid

    def execute(self, command: str, **arguments: Any) -> Any:
        """See QmpClient.execute."""
        return self._qmp.execute(command, **arguments)

    def transaction(self, actions: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        """All of the actions at one instant, or none. An action is (type, data)."""
        self.execute("transaction", actions=[{"type": kind, "data": data} for kind, data in actions])

    def new_id(self, kind: str) -> str:
        """A name for a node, job or export that this process has not had yet: an event is then never taken
        for another's."""
        return f"{kind}-{next(self._ids)}"

    def bitmaps(self) -> dict[str, list[Bitmap]]:
        """Of every node, by its name."""
        return {
            node["node-name"]: [
                Bitmap(b["name"], b["recording"], b["persistent"], b.get("inconsistent", False))
                for b in node.get("dirty-bitmaps", [])
                if "name" in b
            ]
            for node in self.execute("query-named-block-nodes", flat=True)
        }

    def add_export(self, node: str, name: str, *, writable: bool = False, bitmaps: Sequence[str] = ()) -> str:
        """A new NBD export of that name; gives its id."""
        export = self.new_id("export")
        self.execute(
            "block-export-add",
            type="nbd",
            id=export,
            node_name=node,
            name=name,
            writable=writable,
            allocation_depth=not writable,
            bitmaps=list(bitmaps),
        )
        return export

    def remove_export(self, export: str) -> None:
        """At once: clients lose their connection. Does nothing when it is gone."""
        with contextlib.suppress(QmpError):
            self.execute("block-export-del", id=export, mode="hard")
            self._qmp.wait_event(export_deleted(export))

    def exports(self) -> list[str]:
        return [str(found["id"]) for found in self.execute("query-block-exports")]

    def wait_job(self, job: str, *states: str) -> None:
        """Till it has come to one of the states. Raises MachineError, and forgets the job, when it failed."""
        event: Event = self._qmp.wait_event(job_reached(job, "concluded", *states))
        if event["data"]["status"] in states:
            return
        error = self._job_error(job)
        self.execute("job-dismiss", id=job)
        raise MachineError(f"{job}: {error or 'it ended before its time'}")

    def end_job(self, job: str) -> None:
        """Waits till it is done, and forgets it. Raises MachineError when it failed."""
        self._qmp.wait_event(job_reached(job, "concluded"))
        error = self._job_error(job)
        self.execute("job-dismiss", id=job)
        if error:
            raise MachineError(f"{job}: {error}")

    def cancel_job(self, job: str) -> None:
        """Whatever it is at. Does nothing when there is no such job."""
        jobs = {found["id"]: found["status"] for found in self.execute("query-jobs")}
        if job not in jobs:
            return
        if jobs[job] != "concluded":
            self.execute("block-job-cancel", device=job, force=True)
            self._qmp.wait_event(job_reached(job, "concluded"))
        self.execute("job-dismiss", id=job)

    def jobs(self) -> list[str]:
        return [str(job["id"]) for job in self.execute("query-jobs")]

    def forget_events(self) -> None:
        """Of what is over: call it when nothing is under way."""
        self._qmp.forget_events()

    def quit(self) -> None:
        """A clean end: images are closed, bitmaps saved."""
        try:
            self.execute("quit")
        except MachineError:
            self._child.signal(signal.SIGTERM)
        self._close()

    def kill(self) -> None:
        """SIGKILL, without waiting; whoever uses the daemon sees it end. Then call `reap`."""
        self._child.signal(signal.SIGKILL)

    def reap(self) -> None:
        """After its end."""
        self._close()

    def _job_error(self, job: str) -> str | None:
        for found in self.execute("query-jobs"):
            if found["id"] == job:
                return str(found["error"]) if "error" in found else None
        return None

    def _close(self) -> None:
        self._child.wait()
        self._qmp.close()
