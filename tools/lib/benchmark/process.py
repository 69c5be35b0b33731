"""Runs the programs that are measured, and tells what each cost."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


class BenchError(Exception):
    """The benchmark cannot go on. One line for the user."""


@dataclass(frozen=True)
class Cost:
    """What one run of a program took."""

    seconds: float
    """Wall clock."""
    cpu_seconds: float
    """User and system time of the program and its children."""
    peak_rss: int
    """Bytes: the largest process among the program and its children."""
    load: float
    """The machine's load average (one minute) when it began: beside other work no figure is worth much."""

    def as_json(self) -> dict[str, float]:
        return {key: round(value, 4) for key, value in asdict(self).items()}


def say(text: str) -> None:
    """One line of progress on stderr; stdout is for the table."""
    sys.stderr.write(f"[{time.strftime('%H:%M:%S')}] {text}\n")
    sys.stderr.flush()


def run(
    argv: Sequence[str | Path],
    env: Mapping[str, str] | None = None,
    log: Path | None = None,
    answer: Path | None = None,
) -> Cost:
    """Run a program to its end; what it prints goes to `log`, or its standard output to `answer`. Raises
    BenchError with the end of the log when it fails."""
    arguments = [str(argument) for argument in argv]
    nowhere = Path(os.devnull)
    with (log or nowhere).open("ab+") as output, (answer or nowhere).open("wb") as printed:
        start = output.seek(0, os.SEEK_END)
        load = os.getloadavg()[0]
        begin = time.monotonic()
        process = subprocess.Popen(
            arguments,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=printed if answer else output,
            stderr=output,
        )
        # wait4 and not wait: it alone gives this child's own resource usage.
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            output.seek(max(start, output.seek(0, os.SEEK_END) - 2000))
            tail = output.read().decode(errors="replace").strip()
            raise BenchError(f"{shlex.join(arguments)}: exit status {process.returncode}: {tail}")
    return Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, load)


def output(argv: Sequence[str | Path], env: Mapping[str, str] | None = None) -> str:
    """A program's standard output. Raises BenchError when it fails."""
    arguments = [str(argument) for argument in argv]
    result = subprocess.run(
        arguments,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        raise BenchError(f"{shlex.join(arguments)}: exit status {result.returncode}: {result.stderr.strip()}")
    return result.stdout


def peak_rss(pid: int) -> int:
    """Peak resident memory, bytes, of a process that is running."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise BenchError(f"process {pid}: no VmHWM in its status")


def tree_size(root: Path) -> int:
    """Bytes allocated on disk under `root`."""
    total = 0
    for folder, _, names in os.walk(root):
        for name in names:
            total += os.lstat(os.path.join(folder, name)).st_blocks * 512
    return total


class Mount:
    """A file system served by a process in the foreground, until `close`."""

    def __init__(
        self, argv: Sequence[str | Path], mountpoint: Path, env: Mapping[str, str] | None, log: Path
    ) -> None:
        """Start it and wait till it is mounted. Raises BenchError when it ends or takes over 120 seconds."""
        self.mountpoint = mountpoint
        mountpoint.mkdir(parents=True, exist_ok=True)
        begin = time.monotonic()
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [str(argument) for argument in argv],
                env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        while not os.path.ismount(mountpoint):
            if self._process.poll() is not None:
                tail = log.read_text(errors="replace")[-2000:].strip()
                raise BenchError(f"{shlex.join(map(str, argv))}: ended before it was mounted: {tail}")
            if time.monotonic() - begin > 120:
                self.close()
                raise BenchError(f"{mountpoint}: not mounted after 120 seconds")
            time.sleep(0.002)
        self.seconds = time.monotonic() - begin
        self.pid = self._process.pid

    def close(self) -> None:
        if os.path.ismount(self.mountpoint):
            subprocess.run(["fusermount3", "-u", "-z", str(self.mountpoint)], check=False)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.terminate()
            self._process.wait(20)
