"""File names for what people named otherwise: safe, at most 255 bytes, and no two alike."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

MAX_BYTES = 255
_UNSAFE = frozenset(("Cc", "Cs", "Zl", "Zp"))


class Wanted(NamedTuple):
    """A name to give: `stem` as it was chosen by a person, `ending` such as `.raw`, and `id`, short, which
    tells the thing from others of the same name."""

    stem: str
    ending: str
    id: str


def safe(stem: str, ending: str = "") -> bytes:
    """`stem` and `ending` as one file name: what cannot be in one is an underscore, the stem is cut."""
    plain = stem + ending
    if plain.isascii() and plain.isprintable() and "/" not in plain and stem[:1] not in ("", "."):
        return (stem[: MAX_BYTES - len(ending)] + ending).encode()
    text = "".join("_" if char == "/" or unicodedata.category(char) in _UNSAFE else char for char in stem)
    if text.startswith(".") or not text:
        text = "_" + text[1:]
    tail = ending.encode()
    return text.encode()[: MAX_BYTES - len(tail)].decode(errors="ignore").encode() + tail


def unique(wanted: Sequence[Wanted], taken: Iterable[bytes] = ()) -> list[bytes]:
    """A name for each, in the same order. Where names clash, the one that needed no change has it, else the
    first; the others get their id as a suffix."""
    names: list[bytes | None] = [None] * len(wanted)
    used = set(taken)
    plain = [safe(item.stem, item.ending) for item in wanted]
    changed = [
        name != (item.stem + item.ending).encode(errors="replace")
        for name, item in zip(plain, wanted, strict=True)
    ]
    for place in sorted(range(len(wanted)), key=lambda place: changed[place]):
        item, name = wanted[place], plain[place]
        attempt = 1
        while name in used:
            suffix = f"-{item.id}" if attempt == 1 else f"-{item.id}-{attempt}"
            name = safe(item.stem, suffix + item.ending)
            attempt += 1
        used.add(name)
        names[place] = name
    return [name for name in names if name is not None]


def of_time(time: datetime) -> str:
    """`2026-11-20T100000Z`: no colons, which rsync, scp and Windows clients stumble over."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H%M%SZ")
