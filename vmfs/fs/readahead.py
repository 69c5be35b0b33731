"""Telling sequential readers from others, and how far to read ahead of them. Arithmetic only."""

from __future__ import annotations

from dataclasses import dataclass

MAX_WINDOW = 8 << 20
MIN_WINDOW = 1 << 20
# The kernel sends the requests of one sequential reader side by side, so they come in any order.
_SLACK = 4 << 20
_STREAMS = 4


@dataclass(slots=True)
class _Stream:
    """One reader's way through the file: bytes read in sequence, where that ended, and how far ahead was
    asked for already."""

    run: int
    end: int
    ahead: int


class ReadAhead:
    """For one open file, which ends at byte `end` of a disk. `window` is the most to be ahead of a reader,
    bytes."""

    def __init__(self, end: int, window: int = MAX_WINDOW) -> None:
        self._end = end
        self._window = window
        self._streams: list[_Stream] = []

    def note(self, offset: int, length: int) -> tuple[int, int] | None:
        """Somebody reads these bytes of the disk; the range [start, end) to fetch for the reads to come, if
        there is any."""
        end = offset + length
        for stream in self._streams:
            if -_SLACK <= offset - stream.end <= _SLACK:
                break
        else:
            stream = _Stream(0, end, end)
            self._streams.append(stream)
            if len(self._streams) > _STREAMS:
                del self._streams[0]
        stream.run += length
        stream.end = max(stream.end, end)
        if stream.run > length:
            # A run earns what it has proven: short ones must not cost more than they gain.
            window = min(2 * stream.run, self._window)
        elif length >= MIN_WINDOW:
            # Whoever begins with so much will hardly stop there.
            window = MIN_WINDOW
        else:
            return None
        start = max(stream.ahead, stream.end)
        target = min(stream.end + window, self._end)
        if window < MIN_WINDOW or (target - start < MIN_WINDOW and target < self._end) or target <= start:
            return None
        stream.ahead = target
        return start, target
