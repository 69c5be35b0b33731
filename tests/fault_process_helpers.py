"""Runs of the real commands that can be killed at any moment, without the time that Python takes to start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Self


@dataclass
class Run:
    """One run of a command, by its process. `wait` gives its exit status, negative for a signal."""

    pid: int
    output: Path
    _zygote: Zygote

    def kill(self, number: int) -> None:
        """The process stays a zombie until `wait`, so its number cannot be another's by now."""
        os.kill(self.pid, number)

    def wait(self) -> int:
        self._zygote.send([])
        return int(self._zygote.receive())

    @property
    def text(self) -> str:
        """What it printed, to standard output and standard error."""
        return self.output.read_text()


class Zygote:
    """A process that has all modules of the commands loaded and forks into one run after the other."""

    def __init__(self, place: Path, pack_size: int) -> None:
        """`pack_size` in bytes is what packs are closed at; the runs' output goes to a file in `place`."""
        # Not for the process itself, which has no need of the tests' modules.
        from command_helpers import unmeasured

        self._output = place / "output"
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(pack_size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=unmeasured() | {"VMFS_CACHE_DIR": str(place / "cache")},
        )

    def __enter__(self) -> Self:
        assert self.receive() == "ready"
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait(20)
        self._process.stdout.close()

    def start(self, program: str, *arguments: str | Path) -> Run:
        """Begin a run of `vmfs` or `vmfs-ingest`."""
        self.send([program, str(self._output), *map(str, arguments)])
        return Run(int(self.receive()), self._output, self)

    def run(self, program: str, *arguments: str | Path) -> tuple[int, str]:
        """Exit status and output."""
        run = self.start(program, *arguments)
        status = run.wait()
        return status, run.text

    def send(self, order: list[str]) -> None:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def receive(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()


def _serve(pack_size: int) -> None:
    import ingest.cli.backup
    import ingest.cli.image
    import ingest.cli.main
    import vmfs.catalog.catalog
    import vmfs.cli.init
    import vmfs.cli.main
    import vmfs.cli.verify
    from vmfs.format import pack

    pack.TARGET_SIZE = pack_size
    mains = {"vmfs": vmfs.cli.main.main, "vmfs-ingest": ingest.cli.main.main}
    print("ready", flush=True)
    while line := sys.stdin.readline():
        program, output, *arguments = json.loads(line)
        pid = os.fork()
        if pid:
            print(pid, flush=True)
            sys.stdin.readline()
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
            continue
        fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        status = 120
        try:
            status = mains[program](arguments)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
