"""Inode numbers, and which of them the kernel holds."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

from vmfs.fs.entries import Entry

ROOT = 1
_BITS = 62


@dataclass(slots=True)
class _Held:
    entry: Entry
    lookups: int


class Inodes:
    """The entries that the kernel may ask for by number. A number comes from its entry's key, so it is the
    same after it was forgotten, and in the next mount: programs that compare trees by inode rely on that."""

    def __init__(self, root: Entry) -> None:
        self._held: dict[int, _Held] = {ROOT: _Held(root, 1)}
        self._numbers: dict[str, int] = {root.key: ROOT}

    def __len__(self) -> int:
        return len(self._held)

    def entry(self, number: int) -> Entry:
        """Raises KeyError for a number that is not held."""
        return self._held[number].entry

    def referenced(self, key: str) -> int | None:
        """The number of the entry of that key, if it is held."""
        return self._numbers.get(key)

    def number(self, entry: Entry) -> int:
        """The number that `hold` would give."""
        known = self._numbers.get(entry.key)
        if known is not None:
            return known
        digest = blake2b(entry.key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        number = int.from_bytes(digest, "little") >> (64 - _BITS)
        while number <= ROOT or number in self._held:
            number = (number + 1) % (1 << _BITS)
        return number

    def hold(self, entry: Entry) -> int:
        """Count one more reference; the number."""
        number = self.number(entry)
        held = self._held.get(number)
        if held is None:
            self._held[number] = _Held(entry, 1)
            self._numbers[entry.key] = number
        else:
            held.lookups += 1
        return number

    def forget(self, number: int, count: int) -> None:
        """Drop `count` references. The root stays, whatever it is told."""
        held = self._held.get(number)
        if held is None or number == ROOT:
            return
        held.lookups -= count
        if held.lookups <= 0:
            del self._held[number]
            del self._numbers[held.entry.key]

    def update(self, entry: Entry) -> None:
        """The entry of that key has new attributes."""
        number = self._numbers.get(entry.key)
        if number is not None:
            self._held[number].entry = entry
