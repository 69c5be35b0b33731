"""Inode numbers of guests' files. A number says by itself which file of which volume it is: however many
files the kernel remembers, there is no table of them here."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b

from vmfs.errors import VmfsError

# Above the numbers of the mount's own files.
_FLAG = 1 << 62
_SLOT_BITS = 12
_HIGH_BITS = 10
_LOW_BITS = 40
_SLOTS = 1 << _SLOT_BITS
_LOW = (1 << _LOW_BITS) - 1
# What cannot be read has a name all the same: all of a volume's such files share the last number.
_UNREADABLE = (1 << (_HIGH_BITS + _LOW_BITS)) - 1


class OutOfNumbersError(VmfsError):
    """More volumes are in use, or more kinds of nodes in one volume, than there are numbers for."""


@dataclass(slots=True, eq=False)
class Volume:
    """A volume whose files the kernel may ask for. `index` is its place among the volumes of the point
    `point`; `held` how many references the kernel has to its files.

    Readers put the number of a subvolume or the like into the upper bits of a node: `_highs` makes few bits
    of them.
    """

    slot: int
    key: str
    point: str
    index: int
    held: int = 0
    _highs: dict[int, int] = field(default_factory=dict)
    _by_index: list[int] = field(default_factory=list)

    def number(self, node: int) -> int:
        """The inode number of a node. Raises OutOfNumbersError."""
        high = node >> _LOW_BITS
        index = self._highs.get(high)
        if index is None:
            index = len(self._highs)
            # The last is kept for what cannot be read.
            if index >= (1 << _HIGH_BITS) - 1 or node < 0:
                raise OutOfNumbersError(f"{self.key}: too many subvolumes")
            self._highs[high] = index
            self._by_index.append(high)
        return self._base() | index << _LOW_BITS | node & _LOW

    def unreadable(self) -> int:
        """The number of every file of which nothing is known but its name."""
        return self._base() | _UNREADABLE

    def node(self, number: int) -> int | None:
        """The node of an inode number; None for `unreadable`. Raises KeyError for a number never given."""
        rest = number & _UNREADABLE
        if rest == _UNREADABLE:
            return None
        index = rest >> _LOW_BITS
        if index >= len(self._by_index):
            raise KeyError(number)
        return self._by_index[index] << _LOW_BITS | rest & _LOW

    def _base(self) -> int:
        return _FLAG | self.slot << (_HIGH_BITS + _LOW_BITS)


class Volumes:
    """The volumes in use. A volume's slot comes from its key, so numbers are the same in the next mount; it
    is given up when another needs it and the kernel holds nothing of the volume."""

    def __init__(self) -> None:
        self._by_slot: dict[int, Volume] = {}
        self._by_key: dict[str, Volume] = {}

    def __len__(self) -> int:
        return len(self._by_slot)

    def get(self, key: str, point: str, index: int) -> Volume:
        """The volume of that key. Raises OutOfNumbersError."""
        known = self._by_key.get(key)
        if known is not None:
            return known
        slot = self._free_slot(key)
        there = self._by_slot.get(slot)
        if there is not None:
            del self._by_key[there.key]
        volume = self._by_slot[slot] = self._by_key[key] = Volume(slot, key, point, index)
        return volume

    def find(self, number: int) -> Volume:
        """The volume of an inode number. Raises KeyError."""
        return self._by_slot[_slot_of(number)]

    def forget(self, number: int, count: int) -> None:
        """The kernel drops `count` references to a file."""
        volume = self._by_slot.get(_slot_of(number))
        if volume is not None:
            volume.held = max(0, volume.held - count)

    def _free_slot(self, key: str) -> int:
        """One that nothing is in, else one whose volume the kernel has forgotten."""
        first = int.from_bytes(
            blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little"
        )
        slots = [(first + step) % _SLOTS for step in range(_SLOTS)]
        found = next((slot for slot in slots if slot not in self._by_slot), None)
        if found is None:
            found = next((slot for slot in slots if self._by_slot[slot].held == 0), None)
        if found is None:
            raise OutOfNumbersError(
                f"files of {_SLOTS} volumes are in use at once; unmount, or look at fewer"
            )
        return found


def _slot_of(number: int) -> int:
    return number >> (_HIGH_BITS + _LOW_BITS) & _SLOTS - 1


def is_guest(number: int) -> bool:
    """Whether it is a number of a guest's file."""
    return bool(number & _FLAG)
