"""A guest that boots, made once: Debian's kernel and busybox, with a login prompt on its serial console."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from command_helpers import Site, program, unmeasured

sys.path.append(str(Path(__file__).parents[1] / "tools/lib"))

from guest.machine import make_bootable

__all__ = ["Terminal", "boot", "make_bootable"]


class Terminal:
    """The other end of a program's terminal."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._readable = select.poll()
        self._readable.register(fd, select.POLLIN)
        self.text = ""

    def expect(self, text: str, seconds: float = 120) -> None:
        """Wait until that has come, after what was waited for before."""
        deadline = time.monotonic() + seconds
        while text not in self.text:
            left = deadline - time.monotonic()
            assert left > 0, f"no {text!r} in {self.text[-2000:]!r}"
            if self._readable.poll(left * 1000):
                # At the end of the program, a terminal says EIO.
                data = b""
                with suppress(OSError):
                    data = os.read(self._fd, 65536)
                assert data, f"it ended without {text!r}: {self.text[-2000:]!r}"
                self.text += data.decode(errors="replace")
        self.text = self.text.partition(text)[2]

    def send(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def close(self) -> None:
        os.close(self._fd)


@contextmanager
def on_terminal(words: list[object]) -> Iterator[tuple[subprocess.Popen[bytes], Terminal]]:
    """The program on a terminal of its own; ended in the end if it runs still."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [str(word) for word in words],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=unmeasured(),
        start_new_session=True,
    )
    os.close(theirs)
    terminal = Terminal(ours)
    try:
        yield process, terminal
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(30)
        terminal.close()


@contextmanager
def boot(site: Site, *argv: object) -> Iterator[tuple[subprocess.Popen[bytes], Terminal]]:
    """`vmfs boot` on a terminal."""
    words = [program("vmfs"), "boot", site.repository, *argv, "--accel", "tcg", *site.options()]
    with on_terminal(words) as found:
        yield found
