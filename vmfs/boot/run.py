"""A VM started from a restore point: on the terminal, or watched until it says a text."""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, NamedTuple, Self

from vmfs.boot.command import BootDisk, Guest, qemu_command
from vmfs.boot.console import Console
from vmfs.boot.overlay import make_overlay
from vmfs.boot.qmp import Monitor
from vmfs.errors import VmfsError
from vmfs.format.manifest import Disk
from vmfs.serve.folder import private_folder
from vmfs.serve.nbdkit import Address, Server
from vmfs.serve.relay import Export

log = logging.getLogger(__name__)

Ending = Literal["acpi", "quit", "itself"]
"""How a VM ended: it obeyed the power button, was cut off, or ended by itself."""

_GRACE = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What a watched VM did. `matched` is the line with the text, None when it did not come within the time
    or the VM ended; `seconds` since the start until then. `console` is the end of the serial console's
    text."""

    matched: str | None
    seconds: float
    ending: Ending
    shutdown_seconds: float
    console: str


class VmDisk(NamedTuple):
    """A disk and the bus that it is attached to. `number` is its place in the restore point, by which its
    overlay is found again."""

    number: int
    disk: Disk
    bus: str


class Vm:
    """qemu over the disks of a point, between `__enter__` and `__exit__`, which leave no process and no
    socket.

    `folder` takes the overlays and the firmware's variables. With `terminal` the serial console is the
    terminal of this process (Ctrl-A X ends the VM); else it is `self.console`. Entering raises UsageError and
    VmfsError."""

    def __init__(
        self,
        qemu: str,
        guest: Guest,
        exports: Sequence[Export],
        disks: Sequence[VmDisk],
        folder: Path,
        *,
        terminal: bool,
    ) -> None:
        """`disks` are in the order to boot from, `exports` the same ones."""
        self._qemu = qemu
        self._guest = guest
        self._exports = exports
        self._disks = disks
        self._folder = folder
        self._terminal = terminal
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            sockets = stack.enter_context(private_folder("vmfs-boot-"))
            server = stack.enter_context(Server(self._exports, Address(path=sockets / "nbd")))
            assert server.address.path is not None  # noqa: S101 - given above
            disks = [
                BootDisk(
                    export=export.name,
                    overlay=make_overlay(self._folder, number, disk.size),
                    socket=server.address.path,
                    bus=bus,
                    serial=_serial(disk.id),
                    sector=disk.block_size,
                )
                for export, (number, disk, bus) in zip(self._exports, self._disks, strict=True)
            ]
            self._monitor = sockets / "qmp"
            serial = ["-serial", "mon:stdio"]
            if not self._terminal:
                serial = ["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]
            command = qemu_command(
                self._qemu, self._guest, disks, serial=serial, monitor=self._monitor, folder=self._folder
            )
            log.debug("%s", " ".join(command))
            self._start(command, stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def wait(self) -> None:
        """Until the VM ends. Raises VmfsError when qemu failed."""
        if status := self._process.wait():
            raise VmfsError(f"qemu ended with status {status}")

    def check(self, pattern: re.Pattern[str], seconds: float, shutdown: float) -> Check:
        """Wait at most `seconds` for the text, then press the power button, and cut off the VM that is still
        there after `shutdown` seconds. Raises VmfsError when qemu did not start."""
        began = time.monotonic()
        found = self.console.wait_for(pattern, seconds)
        waited = time.monotonic() - began
        if found is None and self.console.ended and self._process.wait():
            raise VmfsError(f"qemu did not start the VM: {self._complaint()}")
        matched = None if found is None else _line_of(found)
        began = time.monotonic()
        ending = self._power_off(shutdown if found is not None else min(shutdown, _GRACE))
        return Check(
            matched=matched,
            seconds=waited,
            ending=ending,
            shutdown_seconds=time.monotonic() - began,
            console=self.console.text,
        )

    def _power_off(self, seconds: float) -> Ending:
        if self.console.ended:
            return "itself"
        with suppress(VmfsError), Monitor(self._monitor) as monitor:
            monitor.run("system_powerdown")
            if self.console.drain(seconds):
                return "acpi"
            monitor.run("quit")
            self.console.drain(_GRACE)
        return "quit"

    def _start(self, command: list[str], stack: ExitStack) -> None:
        if shutil.which("setpriv"):
            # Without us there are no disks, and nobody to end it.
            command = ["setpriv", "--pdeathsig", "KILL", *command]
        if self._terminal:
            self._process = subprocess.Popen(command)
        else:
            self._errors = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - closed by the stack
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                # Ctrl-C is for us, who end it in order.
                start_new_session=True,
            )
            assert self._process.stdout is not None  # noqa: S101 - it is a pipe
            stack.callback(self._process.stdout.close)
            self.console = Console(self._process.stdout.fileno())
        stack.callback(self._end)

    def _complaint(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def _end(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _serial(disk_id: str) -> str:
    """What a guest sees as the disk's serial number: the beginning of its id, as engines do it. virtio has
    room for 20 characters."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", disk_id)[:20]


def _line_of(found: re.Match[str]) -> str:
    text = found.string
    start = text.rfind("\n", 0, found.start()) + 1
    end = text.find("\n", found.end())
    return text[start : end if end >= 0 else len(text)].strip()[:500]
