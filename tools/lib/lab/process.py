"""Child processes that die with the lab, and what a lab that was killed leaves behind."""

from __future__ import annotations

import os
import queue
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

SOCKETS = "sockets"
"""Link in the folder of whoever has sockets, to the short folder where they are."""
PREFIX = "vmfs-lab-"
OWNER = "owner"
"""Link in the short folder, back to that link: when the owner's folder is gone, this one is an orphan."""
END_TIMEOUT = 60.0
"""How long (s) a process may take to end after it was told to."""


class Spawner:
    """Starts processes from one thread that lives as long as this process.

    Linux sends the parent-death signal of prctl(2) when the *thread* that started the child ends, and the
    lab's REST server has a thread for each connection.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._pid = 0

    def popen(self, command: Sequence[str | os.PathLike[str]], **options: Any) -> subprocess.Popen[bytes]:
        """subprocess.Popen, in a session of its own: Ctrl-C in a terminal is for the lab alone."""
        with self._lock:
            if self._pid != os.getpid():  # also after a fork, which does not copy the thread
                self._pid = os.getpid()
                threading.Thread(target=self._run, name="lab-spawner", daemon=True).start()
        arguments = [os.fspath(part) for part in command]
        if setpriv := shutil.which("setpriv"):
            arguments = [setpriv, "--pdeathsig", "KILL", "--", *arguments]
        future: Future[subprocess.Popen[bytes]] = Future()
        self._jobs.put((lambda: subprocess.Popen(arguments, start_new_session=True, **options), future))
        return future.result()

    def _run(self) -> None:
        while True:
            job, future = self._jobs.get()
            try:
                future.set_result(job())
            except BaseException as error:
                future.set_exception(error)


_spawner = Spawner()


class Child:
    """A process of the lab, with its pid in `<folder>/<name>.pid` and its output in `<folder>/<name>.log`."""

    def __init__(self, folder: Path, name: str, command: Sequence[str | os.PathLike[str]]) -> None:
        """Starts it. Raises OSError when the program is missing."""
        self.log = folder / f"{name}.log"
        self._pid_file = folder / f"{name}.pid"
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            self._process = _spawner.popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.pid = self._process.pid
        self._pid_file.write_text(f"{self.pid} {_start_time(self.pid)}\n")

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def output(self) -> str:
        """What it wrote so far; its log has before that what those of its name wrote."""
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace").strip()

    def signal(self, number: signal.Signals) -> None:
        """Does nothing when it has ended."""
        self._process.send_signal(number)

    def wait(self, timeout: float = END_TIMEOUT) -> None:
        """Till it has ended; kills it after `timeout` seconds."""
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._pid_file.unlink(missing_ok=True)

    def terminate(self) -> None:
        """SIGTERM, and till it has ended."""
        self.signal(signal.SIGTERM)
        self.wait()

    def kill(self) -> None:
        """SIGKILL, and till it has ended."""
        self.signal(signal.SIGKILL)
        self.wait()


def socket_folder(owner: Path) -> Path:
    """A new folder with a short path, as the address of a Unix socket has 107 bytes; `owner`, a folder, gets
    a link to it, by which sweep finds it."""
    link = owner / SOCKETS
    remove_socket_folder(owner)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    link.symlink_to(folder)
    (folder / OWNER).symlink_to(link.absolute())  # after the other: this folder is at no time an orphan
    return folder


def remove_socket_folder(owner: Path) -> None:
    """Undoes socket_folder; does nothing when there is none."""
    link = owner / SOCKETS
    if link.is_symlink():
        target = Path(os.readlink(link))
        if target.name.startswith(PREFIX):
            shutil.rmtree(target, ignore_errors=True)
        link.unlink(missing_ok=True)


def sweep(root: Path) -> list[str]:
    """Ends the processes and removes the socket folders that a killed lab left, which was in `root`, and all
    socket folders whose lab's files are gone; tells what it ended and removed."""
    done = []
    for file in sorted(root.rglob("*.pid")):
        try:
            pid, started = map(int, file.read_text().split())
        except ValueError:
            continue  # not ours, or the lab was killed while it wrote the file: the child dies by itself
        if _start_time(pid) == started:
            os.kill(pid, signal.SIGKILL)
            done.append(f"process {pid} ({file.stem})")
        file.unlink()
    for link in sorted(root.rglob(SOCKETS)):
        if link.is_symlink():
            done.append(f"folder {os.readlink(link)}")
            remove_socket_folder(link.parent)
    for folder in sorted(Path(tempfile.gettempdir()).glob(f"{PREFIX}*")):
        owner = folder / OWNER
        if owner.is_symlink() and not Path(os.readlink(owner)).is_symlink():
            done.append(f"folder {folder}")
            shutil.rmtree(folder, ignore_errors=True)
    return done


def _start_time(pid: int) -> int:
    """In clock ticks since boot, -1 when there is no such process: a pid alone may be another's by now."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return -1
    return int(stat.rpartition(")")[2].split()[19])
