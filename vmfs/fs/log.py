"""The log of the mount. A program that reads a damaged disk meets the same error thousands of times; the
log says it once."""

from __future__ import annotations

import logging
from collections import OrderedDict
from threading import Lock

log = logging.getLogger("vmfs.fs")

_REMEMBERED = 4096
_said: OrderedDict[str, None] = OrderedDict()
_lock = Lock()


def warn_once(message: str, *, level: int = logging.WARNING, exc_info: bool = False) -> None:
    """Log the message unless it is among the last few thousand said. Any thread."""
    with _lock:
        known = message in _said
        _said[message] = None
        _said.move_to_end(message)
        if len(_said) > _REMEMBERED:
            _said.popitem(last=False)
    if not known:
        log.log(level, "%s", message, exc_info=exc_info)


def forget_said() -> None:
    """Say everything once more: what was wrong in the last mount of this process may be wrong in the next."""
    with _lock:
        _said.clear()
