"""Serving restore points, and looking at what is served: the real nbdkit, and real clients."""

from __future__ import annotations

import hashlib
import json
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from command_helpers import Site, program, unmeasured

CHUNK = 64 << 10


@dataclass(frozen=True)
class Served:
    process: subprocess.Popen[str]
    uris: list[str]

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """The exit status, and what was said on standard error."""
        self.process.send_signal(number)
        _, said = self.process.communicate(timeout=30)
        return self.process.returncode, said


@contextmanager
def serve(site: Site, *argv: object, uris: int = 1, **options: Any) -> Iterator[Served]:
    """`vmfs serve nbd` in a process of its own, ready, with that many disks."""
    words = [program("vmfs"), "serve", "nbd", site.repository, *argv, *site.options()]
    process = subprocess.Popen(
        [str(word) for word in words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=unmeasured(),
        **options,
    )
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        lines = [process.stdout.readline().strip() for _ in range(uris)]
        assert all(line.startswith("nbd") for line in lines), process.stderr.read()
        yield Served(process, lines)
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=30)


def run(*words: object) -> str:
    """What a client prints, which must succeed."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def block_status(uri: str) -> list[tuple[int, int, bool]]:
    """(start, length, zero), merged, as libnbd's client sees them."""
    found = json.loads(run("nbdinfo", "--map", "--json", uri))
    return [(item["offset"], item["length"], bool(item["type"] & 2)) for item in found]


def fingerprint(folder: Path) -> dict[str, str]:
    """Every file below the folder, by its path, and its SHA-256."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def processes(pattern: str) -> list[str]:
    """Command lines of those processes that match."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if re.search(pattern, line):
            found.append(line)
    return found
