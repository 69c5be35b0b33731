"""Reading ahead: to read a file in small pieces, one after the other, costs a worker no more than in large
ones. What is kept is never stale, as a restore point does not change."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from vmfs.errors import VmfsError

_FILES = 8
"""Of these many files, the last piece is kept."""


class _State(NamedTuple):
    """`following` is where the last read ended. The piece lies at byte `start` of the file; `is_last`:
    nothing comes after it."""

    following: int
    start: int = 0
    piece: bytes = b""
    is_last: bool = False


class ReadAhead:
    """`fetch` reads (node, offset, length), clipped at the end of the file, or raises VmfsError; `piece` is
    what it reads best, in bytes. Thread-safe."""

    def __init__(self, fetch: Callable[[int, int, int], bytes], piece: int) -> None:
        self._fetch = fetch
        self._piece = piece
        self._lock = threading.Lock()
        self._states: OrderedDict[int, _State] = OrderedDict()

    def read(self, node: int, offset: int, length: int) -> bytes:
        if length >= self._piece:
            return self._fetch(node, offset, length)
        with self._lock:
            state = self._states.get(node)
        if state is not None:
            first = offset - state.start
            end = first + (0 if state.is_last else length)
            if first >= 0 and end <= len(state.piece):
                self._keep(node, state._replace(following=offset + length))
                return state.piece[first : first + length]
            # Readers of the kernel overtake each other by a little.
            if 0 <= offset - state.following <= self._piece:
                # What is damaged further on is not this read's.
                with suppress(VmfsError):
                    piece = self._fetch(node, offset, self._piece)
                    self._keep(node, _State(offset + length, offset, piece, len(piece) < self._piece))
                    return piece[:length]
        data = self._fetch(node, offset, length)
        self._keep(node, _State(offset + len(data)))
        return data

    def _keep(self, node: int, state: _State) -> None:
        with self._lock:
            self._states[node] = state
            self._states.move_to_end(node)
            if len(self._states) > _FILES:
                self._states.popitem(last=False)
