"""nbdkit, from the distribution, as the server of NBD: started with our plugin, watched, and ended."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from vmfs.errors import UsageError, VmfsError
from vmfs.serve import plugin
from vmfs.serve.folder import private_folder
from vmfs.serve.relay import Export, Relay

log = logging.getLogger(__name__)

PORT = 10809
"""IANA's for NBD."""
_START = 20.0
# A client in the middle of its greeting keeps nbdkit; nothing that it holds is worth waiting for.
_GRACE = 1.0
_INSTALL = (
    "install it: apt-get install nbdkit nbdkit-plugin-python, or dnf install nbdkit nbdkit-python-plugin"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A Unix socket, or a host (name or address) and a port."""

    path: Path | None = None
    host: str = "localhost"
    port: int = PORT

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect."""
        if self.path is not None or self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            # A name, which leads to who knows where.
            return False

    def uri(self, export: str, *, tls: bool = False) -> str:
        """As qemu, libnbd and others take it."""
        name = quote(export, safe="")
        if self.path is not None:
            return f"nbd{'s' if tls else ''}+unix:///{name}?socket={quote(str(self.path))}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"nbd{'s' if tls else ''}://{host}:{self.port}/{name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """`certificates` is a directory as nbdkit-tls(1) describes it, `psk` a file of pre-shared keys."""

    certificates: Path | None = None
    psk: Path | None = None
    verify_peer: bool = False

    def arguments(self) -> list[str]:
        found = ["--tls=require"]
        if self.certificates is not None:
            found.append(f"--tls-certificates={self.certificates}")
        if self.psk is not None:
            found.append(f"--tls-psk={self.psk}")
        return [*found, *(["--tls-verify-peer"] if self.verify_peer else [])]


class Server:
    """Serves the exports at the address while it is entered; the first is the default one.

    `overlay` is a directory for a copy-on-write overlay: then clients may write, and what they wrote is gone
    in the end. That takes one export: nbdkit's filter has one overlay for all. Entering raises UsageError
    when nbdkit is missing or the address is taken, VmfsError when it does not start."""

    def __init__(
        self,
        exports: Sequence[Export],
        address: Address,
        *,
        tls: Tls | None = None,
        overlay: Path | None = None,
    ) -> None:
        if overlay is not None and len(exports) != 1:
            raise UsageError("a copy-on-write export takes one disk; write POINT:DISK, one server for each")
        self.address = address
        self._exports = exports
        self._tls = tls
        self._overlay = overlay
        self._stack = ExitStack()
        self._said: list[str] = []

    def __enter__(self) -> Self:
        if shutil.which("nbdkit") is None:
            raise UsageError(f"nbdkit is missing; {_INSTALL}")
        if self.address.path is not None:
            _free(self.address.path)
        with ExitStack() as stack:
            # Ours alone: who may open the relay's socket may read the disks.
            folder = stack.enter_context(private_folder("vmfs-serve-"))
            relay = stack.enter_context(Relay(self._exports, folder / "relay"))
            ready = folder / "ready"
            self._process = self._start(relay.path, ready)
            # nbdkit's errors go to our own log as they come.
            self._listener = threading.Thread(target=self._listen, name="vmfs-nbdkit-log", daemon=True)
            self._listener.start()
            stack.callback(self._end)
            self._await(ready)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def wait(self) -> None:
        """Until nbdkit ends, which it does not by itself. Raises VmfsError then."""
        status = self._process.wait()
        raise VmfsError(f"nbdkit ended by itself, with status {status}: {self._last_words()}")

    def _start(self, relay: Path, ready: Path) -> subprocess.Popen[str]:
        address = self.address
        command = ["nbdkit", "--foreground", "--exit-with-parent", "--newstyle", f"--pidfile={ready}"]
        if address.path is not None:
            command.append(f"--unix={address.path}")
        else:
            command += [f"--ipaddr={address.host}", f"--port={address.port}"]
        command += self._tls.arguments() if self._tls else ["--tls=off"]
        environment = dict(os.environ)
        if self._overlay is not None:
            command.append("--filter=cow")
            environment["TMPDIR"] = str(self._overlay)
        else:
            command.append("--readonly")
        command += ["python", plugin.__file__, f"relay={relay}"]
        # Its Python is not ours, and shall not look for modules where ours does.
        for name in ("PYTHONPATH", "PYTHONHOME", "COVERAGE_PROCESS_START"):
            environment.pop(name, None)
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=environment,
            # Ctrl-C in a terminal is for us, who end it in order.
            start_new_session=True,
            umask=0o077,
        )

    def _await(self, ready: Path) -> None:
        deadline = time.monotonic() + _START
        while not (ready.is_file() and ready.stat().st_size):
            if self._process.poll() is not None:
                self._listener.join()
                raise self._refused()
            if time.monotonic() > deadline:
                raise VmfsError(f"nbdkit was not ready after {_START:g} s: {self._last_words()}")
            time.sleep(0.01)

    def _refused(self) -> VmfsError:
        said = " ".join(self._said)
        if "python" in said and ("cannot open plugin" in said or "No such file" in said):
            return UsageError(f"nbdkit lacks its Python plugin; {_INSTALL}")
        if "ddress already in use" in said:
            return UsageError(f"{self.address.host}:{self.address.port} is in use; choose another --listen")
        return VmfsError(f"nbdkit did not start: {said.removeprefix('nbdkit: ') or 'it said nothing'}")

    def _listen(self) -> None:
        assert self._process.stderr is not None  # noqa: S101 - it is a pipe
        with self._process.stderr as lines:
            for line in lines:
                self._said = [*self._said[-20:], line.strip()]
                log.info("%s", line.strip())

    def _last_words(self) -> str:
        return self._said[-1] if self._said else "it said nothing"

    def _end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._listener.join()
        if self.address.path is not None:
            self.address.path.unlink(missing_ok=True)


def _free(path: Path) -> None:
    """Raises UsageError unless a socket can be made at that path; removes one that nobody listens at."""
    if len(os.fsencode(path)) > 107:
        raise UsageError(
            f"{path} is too long for a socket, which has 107 bytes; "
            "choose another --socket, or a shorter TMPDIR"
        )
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent} is no directory; choose another --socket")
    if not os.path.lexists(path):
        return
    if not path.is_socket():
        raise UsageError(f"{path} is there and is no socket; choose another --socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}; choose another --socket") from None
        else:
            raise UsageError(f"somebody listens at {path} already; choose another --socket")
