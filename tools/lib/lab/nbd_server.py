"""A qemu-nbd that serves one image: what vdsm starts for hybrid and offline backups, and for uploads."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from lab.errors import MachineError
from lab.nbd import NbdDisk
from lab.process import Child
from lab.qemu_img import DRIVERS, Format

EXPORT = "sda"
START_TIMEOUT = 60.0
POLL = 0.01


class NbdServer:
    """Serves until `close`."""

    def __init__(
        self,
        folder: Path,
        sockets: Path,
        name: str,
        image: Path,
        fmt: Format,
        *,
        writable: bool = False,
        bitmap: str | None = None,
    ) -> None:
        """`folder` is for log and pid, `sockets` has a short path; `name` is this server's own in both.
        Raises MachineError with qemu's message, such as that the bitmap does not exist."""
        self.path = sockets / name
        self.path.unlink(missing_ok=True)
        options = ["--persistent", "--shared=8", f"--format={DRIVERS[fmt]}", "--discard=unmap"]
        options += [f"--socket={self.path}", f"--export-name={EXPORT}", "--allocation-depth"]
        if not writable:
            options.append("--read-only")
        if bitmap is not None:
            options.append(f"--bitmap={bitmap}")
        self._child = Child(folder, name, ["qemu-nbd", *options, image])
        try:
            self._wait_ready()
        except BaseException:
            self._child.kill()
            raise

    @property
    def url(self) -> str:
        """For a ticket of imageio."""
        return f"nbd:unix:{self.path}:exportname={EXPORT}"

    @property
    def running(self) -> bool:
        return self._child.running

    def close(self) -> None:
        """Clients lose their connection; what they wrote is in the image."""
        self._child.terminate()
        self.path.unlink(missing_ok=True)

    def _wait_ready(self) -> None:
        """qemu-nbd makes its socket before it opens the image: it is ready when it shakes hands."""
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            with contextlib.suppress(MachineError):
                NbdDisk(self.path, EXPORT).close()
                return
            if not self._child.running:
                self._child.wait()
                raise MachineError(self._child.output().removeprefix("qemu-nbd: ") or "qemu-nbd ended")
            if time.monotonic() > deadline:
                raise MachineError(f"qemu-nbd does not start: {self._child.log}")
            time.sleep(POLL)
