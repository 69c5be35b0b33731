"""Real qemu processes for tests: a storage daemon that is to a disk what a running VM is, and image tools."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import pytest

MISSING = [
    tool for tool in ("qemu-nbd", "qemu-img", "qemu-io", "qemu-storage-daemon") if not shutil.which(tool)
]
needs_qemu = pytest.mark.skipif(bool(MISSING), reason=f"install qemu-utils, qemu-system-common: no {MISSING}")

NODE = "disk"
TIMEOUT = 20.0


def run(*command: str | os.PathLike[str]) -> str:
    """The output of a command that has to succeed."""
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
    return result.stdout


def create_image(path: Path, fmt: str, size: int, *options: str) -> Path:
    """A new image; `size` in bytes."""
    run("qemu-img", "create", "-q", "-f", fmt, *options, path, str(size))
    return path


def qemu_io(target: str | os.PathLike[str], fmt: str, *commands: str) -> None:
    """Runs qemu-io commands such as `write -P 0x41 0 64k`, `write -z 0 1M`, `discard 0 64k` on an image or an
    NBD URI (fmt `raw`)."""
    arguments = [argument for command in commands for argument in ("-c", command)]
    output = run("qemu-io", "-f", fmt, *arguments, target)
    assert "failed" not in output, output


class QmpError(Exception):
    """The daemon refused a command."""


class StorageDaemon:
    """A qemu-storage-daemon that has `image` open for writing, as block node NODE, like a running VM.

    `fail_at` makes every read of the 512 bytes there fail with EIO (offset in the image file). Files such as
    the daemon's log go to `tmp`; the sockets to a directory of their own, as their paths must be short.
    """

    def __init__(self, tmp: Path, image: Path, fmt: str, *, fail_at: int | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="qsd-"))
        self._exports = 0
        self._uri: str | None = None
        self._backup = ""
        self.events: list[dict[str, Any]] = []
        self.log = tmp / f"qsd-{self.folder.name}.log"
        control = self.folder / "qmp"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(os.fspath(control))
        listener.listen(1)
        listener.settimeout(TIMEOUT)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    "qemu-storage-daemon",
                    "--chardev",
                    f"socket,path={control},server=off,id=control",
                    "--monitor",
                    "chardev=control",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            self._socket, _ = listener.accept()
            self._socket.settimeout(TIMEOUT)
            self._lines = self._socket.makefile("rb")
            self._lines.readline()
            self.qmp("qmp_capabilities")
            protocol: dict[str, Any] = {"driver": "file", "filename": os.fspath(image), "discard": "unmap"}
            if fail_at is not None:
                error = {
                    "event": "none",
                    "iotype": "read",
                    "errno": 5,
                    "sector": fail_at // 512,
                    "once": False,
                }
                protocol = {"driver": "blkdebug", "image": protocol, "inject-error": [error]}
            node = {"node-name": NODE, "driver": fmt, "file": protocol, "discard": "unmap"}
            self.qmp("blockdev-add", **node)
        except BaseException:
            self.kill()
            raise
        finally:
            listener.close()

    def qmp(self, command: str, **arguments: Any) -> Any:
        """What the command returns; `_` in argument names stands for `-`. Raises QmpError."""
        request = {"execute": command, "arguments": {k.replace("_", "-"): v for k, v in arguments.items()}}
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        while True:
            answer = self._receive()
            if "error" in answer:
                raise QmpError(f"{command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]
            self.events.append(answer)

    def wait_event(self, name: str) -> dict[str, Any]:
        """The next event of that name, which is then forgotten with those before it."""
        while True:
            while self.events:
                if (event := self.events.pop(0))["event"] == name:
                    return event
            self.events.append(self._receive())

    def add_bitmap(self, name: str, *, granularity: int = 65536, persistent: bool = True) -> None:
        """Starts to record writes. Only qcow2 images can keep a persistent bitmap."""
        self.qmp(
            "block-dirty-bitmap-add", node=NODE, name=name, granularity=granularity, persistent=persistent
        )

    def export_nbd(
        self, *, name: str | None = None, writable: bool = False, bitmaps: Sequence[str] = ()
    ) -> str:
        """The URI of a new export of the live disk. qemu exports a bitmap that is recording only with
        `writable`; for the disk at one instant use begin_backup."""
        return self._export(NODE, name, writable=writable, bitmaps=bitmaps)[1]

    def begin_backup(
        self,
        *,
        since: str | None = None,
        exported: str = "changed",
        checkpoint: str | None = None,
        persistent: bool = True,
    ) -> str:
        """The URI of an export of the disk as it is now, whatever is written later: libvirt's pull backup.
        With `since`, the name of a bitmap, the export has what that recorded as dirty bitmap `exported`. A
        bitmap `checkpoint`, which is `persistent` or not, starts to record at the same instant."""
        self._guest()  # none can be added while a backup runs
        size = self._node_size()
        scratch = create_image(self.folder / "scratch.qcow2", "qcow2", size)
        file = {"driver": "file", "filename": os.fspath(scratch), "discard": "unmap"}
        self.qmp("blockdev-add", node_name="backup", driver="qcow2", file=file, backing=NODE)
        actions: list[dict[str, Any]] = []
        if checkpoint is not None:
            data = {"node": NODE, "name": checkpoint, "persistent": persistent}
            actions.append({"type": "block-dirty-bitmap-add", "data": data})
        if since is not None:
            data = {"node": "backup", "name": exported, "disabled": True, "granularity": 65536}
            actions.append({"type": "block-dirty-bitmap-add", "data": data})
            bitmaps = [{"node": NODE, "name": since}]
            data = {"node": "backup", "target": exported, "bitmaps": bitmaps}
            actions.append({"type": "block-dirty-bitmap-merge", "data": data})
        data = {"job-id": "backup", "device": NODE, "target": "backup", "sync": "none", "auto-dismiss": False}
        actions.append({"type": "blockdev-backup", "data": data})
        self.qmp("transaction", actions=actions)
        self._backup, uri = self._export(
            "backup", None, writable=False, bitmaps=[exported] if since is not None else []
        )
        return uri

    def end_backup(self) -> None:
        """Undoes begin_backup. Clients that are still connected lose their connection."""
        self.events.clear()
        self.qmp("block-export-del", id=self._backup, mode="hard")
        self.wait_event("BLOCK_EXPORT_DELETED")
        self.qmp("block-job-cancel", device="backup", force=True)
        while self.wait_event("JOB_STATUS_CHANGE")["data"]["status"] != "concluded":
            pass
        self.qmp("job-dismiss", id="backup")
        self.qmp("blockdev-del", node_name="backup")
        (self.folder / "scratch.qcow2").unlink()

    def export_fuse(self, path: Path, *, writable: bool = False) -> None:
        """Makes the file at `path` (created when missing) the raw disk."""
        path.touch()
        self.qmp(
            "block-export-add",
            type="fuse",
            id=f"fuse-{path.name}",
            node_name=NODE,
            mountpoint=os.fspath(path),
            writable=writable,
        )

    def io(self, *commands: str) -> None:
        """Writes like a guest, through a writable NBD export: see qemu_io."""
        qemu_io(self._guest(), "raw", *commands)

    def kill(self) -> None:
        """Ends it as a crash does: bitmaps are not saved."""
        self.process.send_signal(signal.SIGKILL)
        self._clean()

    def close(self) -> None:
        """Ends it as a clean shutdown does."""
        if self.process.poll() is None:
            try:
                self.qmp("quit")
            except OSError:
                self.process.terminate()
        self._clean()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _export(
        self, node: str, name: str | None, *, writable: bool, bitmaps: Sequence[str]
    ) -> tuple[str, str]:
        if self._exports == 0:
            address = {"type": "unix", "data": {"path": os.fspath(self.folder / "nbd")}}
            self.qmp("nbd-server-start", addr=address, max_connections=0)
        self._exports += 1
        export = f"nbd{self._exports}"
        name = f"export{self._exports}" if name is None else name
        self.qmp(
            "block-export-add",
            type="nbd",
            id=export,
            node_name=node,
            name=name,
            writable=writable,
            bitmaps=list(bitmaps),
        )
        return export, f"nbd+unix:///{name}?socket={self.folder / 'nbd'}"

    def _guest(self) -> str:
        self._uri = self._uri or self.export_nbd(name="guest", writable=True)
        return self._uri

    def _node_size(self) -> int:
        nodes = self.qmp("query-named-block-nodes", flat=True)
        return next(int(node["image"]["virtual-size"]) for node in nodes if node["node-name"] == NODE)

    def _receive(self) -> dict[str, Any]:
        line = self._lines.readline()
        if not line:
            raise ConnectionError(f"qemu-storage-daemon ended: {self.log.read_text()}")
        return dict(json.loads(line))

    def _clean(self) -> None:
        self.process.wait(TIMEOUT)
        if hasattr(self, "_lines"):
            self._lines.close()
            self._socket.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def _listens(path: Path) -> bool:
    """Whether a program waits for connections there. To connect would be to be its client, perhaps its last.
    The fourth word of a line is __SO_ACCEPTCON, see unix(7) and proc(5)."""
    lines = (line.split() for line in Path("/proc/net/unix").read_text().splitlines())
    return any(words[-1] == str(path) and words[3] == "00010000" for words in lines)


class NbdServer:
    """A qemu-nbd with the arguments given, on a Unix socket."""

    def __init__(self, *arguments: str | os.PathLike[str]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="nbd-"))
        path = self.folder / "socket"
        self.process = subprocess.Popen(
            ["qemu-nbd", "--socket", path, *arguments], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.path = path
        deadline = time.monotonic() + TIMEOUT
        while not _listens(path):
            assert self.process.poll() is None, "qemu-nbd ended"
            assert time.monotonic() < deadline, "qemu-nbd does not start"
            time.sleep(0.01)

    def uri(self, export: str = "") -> str:
        return f"nbd+unix:///{export}?socket={self.path}"

    def close(self) -> None:
        self.process.kill()
        self.process.wait(TIMEOUT)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
