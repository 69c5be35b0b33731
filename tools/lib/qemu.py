"""A qemu process with one disk: what a hypervisor is to its guest's disk, without the guest.

qemu-storage-daemon is qemu's block layer by itself: the same image formats, dirty bitmaps, NBD server and
QMP. Its FUSE export stands in for the virtual machine's disk controller: what is written there goes through
qemu.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

NODE = "disk0"
FROZEN = "frozen"


class QemuError(Exception):
    """qemu did not start, or refused a command."""


class StorageDaemon:
    """qemu-storage-daemon serving `image` (qcow2) read-write, until `close`."""

    def __init__(self, image: Path, folder: Path) -> None:
        """Start it; sockets and the disk's file are made in `folder`. Raises QemuError."""
        folder.mkdir(exist_ok=True)
        self.disk = folder / "disk"
        """The disk as a file: reads and writes of it go through qemu."""
        self.nbd_socket = folder.resolve() / "nbd.sock"
        self._qmp_socket = folder / "qmp.sock"
        self._folder = folder
        self._log = folder / "qemu.log"
        self.disk.touch()
        for stale in (self.nbd_socket, self._qmp_socket):
            stale.unlink(missing_ok=True)
        self.command = [
            "qemu-storage-daemon",
            "--blockdev",
            f"driver=qcow2,node-name={NODE},file.driver=file,file.filename={image},discard=unmap",
            "--nbd-server",
            f"addr.type=unix,addr.path={self.nbd_socket},max-connections=16",
            "--chardev",
            f"socket,path={self._qmp_socket},server=on,wait=off,id=qmp",
            "--monitor",
            "chardev=qmp",
            "--export",
            f"fuse,id=fuse0,node-name={NODE},mountpoint={self.disk},writable=on",
        ]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C in a terminal is for us: qemu ends when its disk is not in use any more.
                start_new_session=True,
            )
        self.pid = self._process.pid
        self._monitor: Monitor | None = None
        try:
            self._wait_for(lambda: self._qmp_socket.exists() and self.disk.stat().st_size > 0)
            self._monitor = Monitor(self._qmp_socket)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def qmp(self, command: str, **arguments: object) -> Any:
        """Run a QMP command and give what it returns. Names are in Python's spelling: `_` stands for `-`.

        Raises QemuError with qemu's own message.
        """
        if self._monitor is None:
            raise QemuError("qemu-storage-daemon: it has been closed")
        return self._monitor.command(
            command.replace("_", "-"), {key.replace("_", "-"): value for key, value in arguments.items()}
        )

    def add_bitmap(self, name: str) -> None:
        """Record from now on what is written, kept in the image when qemu ends."""
        self.qmp("block_dirty_bitmap_add", node=NODE, name=name, persistent=True, granularity=65536)

    def freeze(self, old: str, new: str, export: str) -> str:
        """At one instant: keep the disk as it is, stop recording into `old`, and begin `new`. A checkpoint.

        What the disk held, and what `old` says, is then shown to NBD clients till `thaw`, while the disk goes
        on being written: qemu saves what is about to be overwritten. Gives the NBD export's URI.
        """
        saved = self._folder / "saved.qcow2"
        nodes = self.qmp("query_named_block_nodes", flat=True)
        size = next(node["image"]["virtual-size"] for node in nodes if node["node-name"] == NODE)
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(saved), str(size)], check=True)
        self.qmp(
            "blockdev_add",
            driver="qcow2",
            node_name=FROZEN,
            file={"driver": "file", "filename": str(saved)},
            backing=NODE,
        )
        bitmap = {"node": NODE, "name": new, "persistent": True, "granularity": 65536}
        backup = {"job-id": FROZEN, "device": NODE, "target": FROZEN, "sync": "none"}
        self.qmp(
            "transaction",
            actions=[
                {"type": "blockdev-backup", "data": backup},
                {"type": "block-dirty-bitmap-disable", "data": {"node": NODE, "name": old}},
                {"type": "block-dirty-bitmap-add", "data": bitmap},
            ],
        )
        self.qmp("block_export_add", type="nbd", id=FROZEN, node_name=FROZEN, name=export, bitmaps=[old])
        return f"nbd+unix:///{export}?socket={self.nbd_socket}"

    def thaw(self) -> None:
        """The backup is over: let go of the frozen state."""
        self.qmp("block_export_del", id=FROZEN, mode="hard")
        self._wait_for(lambda: all(found["id"] != FROZEN for found in self.qmp("query_block_exports")))
        self.qmp("job_cancel", id=FROZEN)
        self._wait_for(lambda: not self.qmp("query_jobs"))
        self.qmp("blockdev_del", node_name=FROZEN)
        (self._folder / "saved.qcow2").unlink()

    def dirty_bytes(self, bitmap: str) -> int:
        for node in self.qmp("query_named_block_nodes", flat=True):
            for found in node.get("dirty-bitmaps", []):
                if node["node-name"] == NODE and found["name"] == bitmap:
                    return int(found["count"])
        raise QemuError(f"{bitmap}: no such dirty bitmap")

    def close(self) -> None:
        """End qemu: it writes its bitmaps into the image."""
        if self._process.poll() is None:
            if self._monitor is not None:
                try:
                    self.qmp("quit")
                except (OSError, QemuError):
                    self._process.terminate()
            else:
                self._process.terminate()
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None
        if os.path.ismount(self.disk):
            subprocess.run(["fusermount3", "-u", "-z", str(self.disk)], check=False)
        self.disk.unlink(missing_ok=True)

    def _wait_for(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 30
        while not condition():
            if self._process.poll() is not None:
                raise QemuError(f"qemu-storage-daemon: {self._log.read_text(errors='replace').strip()}")
            if time.monotonic() > end:
                raise QemuError("qemu-storage-daemon: not ready after 30 seconds")
            time.sleep(0.01)


class Monitor:
    """A QMP connection."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(60)
        self._socket.connect(str(path))
        self._file = self._socket.makefile("rb")
        self._message()  # the greeting
        self.command("qmp_capabilities", {})

    def command(self, name: str, arguments: Mapping[str, object]) -> Any:
        request = {"execute": name, "arguments": arguments}
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        while True:
            answer = self._message()
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise QemuError(f"{name}: {answer['error']['desc']}")
            # else an event: nobody here waits for one

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def _message(self) -> dict[str, Any]:
        line = self._file.readline()
        if not line:
            raise QemuError("qemu closed its monitor")
        message: dict[str, Any] = json.loads(line)
        return message
