"""What a guest says on its serial console, and whether a text has come."""

from __future__ import annotations

import codecs
import os
import re
import select
import time

_KEPT = 1 << 20
_OVERLAP = 16 << 10
"""A text is found if it is within that many characters."""
# Colours, and moves of the cursor (ECMA-48), which say nothing to a reader of the log.
_CONTROL = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[()][A-Z0-9]|[@-Z\\-_])|[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f]")
_BEGUN = re.compile(r"\x1b(?:\[[0-?]*[ -/]*|[()])?\Z")


class Console:
    """The output of a guest, from a pipe. `text` is its end, without control characters."""

    def __init__(self, fd: int) -> None:
        self.text = ""
        self.ended = False
        self._fd = fd
        self._readable = select.poll()
        self._readable.register(fd, select.POLLIN)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._begun = ""

    def wait_for(self, pattern: re.Pattern[str], seconds: float) -> re.Match[str] | None:
        """The first match of the pattern in what comes within `seconds`; None when the time is over or the
        guest ends."""
        deadline = time.monotonic() + seconds
        while not self.ended and (left := deadline - time.monotonic()) > 0:
            new = self._read(left)
            if found := pattern.search(self.text, max(0, len(self.text) - new - _OVERLAP)):
                return found
        return None

    def drain(self, seconds: float) -> bool:
        """Take what comes until the guest ends; whether it did within `seconds`."""
        deadline = time.monotonic() + seconds
        while not self.ended and (left := deadline - time.monotonic()) > 0:
            self._read(left)
        return self.ended

    def _read(self, seconds: float) -> int:
        """How many characters came."""
        if not self._readable.poll(seconds * 1000):
            return 0
        data = os.read(self._fd, 64 << 10)
        self.ended = not data
        text = self._begun + self._decoder.decode(data, final=self.ended)
        # A sequence may be cut in two.
        found = _BEGUN.search(text)
        self._begun = found[0] if found else ""
        text = _CONTROL.sub("", text.removesuffix(self._begun))
        self.text = (self.text + text)[-_KEPT:]
        return len(text)
