"""What the parsers of partition tables share: their results, and the disk as they see it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

ReadAt = Callable[[int, int], bytes]
Scheme = Literal["gpt", "mbr", "none"]

MAX_VOLUMES = 1024
MAX_WARNINGS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """One partition. `start` and `length` are bytes, and lie within the disk; `is_cut` if it says that it is
    longer. `type` is the GUID of a GPT
    partition (lower case), or the type byte of an MBR one as `0x83`; `type_name` says it in words where it
    is known. `label` is the GPT's name; `uuid` is what Linux shows as PARTUUID."""

    name: str
    number: int
    start: int
    length: int
    type: str
    type_name: str | None = None
    label: str | None = None
    uuid: str | None = None
    is_cut: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The partitions of a disk, in the order of their numbers. `warnings` are lines for a person."""

    scheme: Scheme
    volumes: tuple[Volume, ...]
    block_size: int
    warnings: tuple[str, ...] = ()


@dataclass(slots=True)
class Disk:
    """A disk being parsed, with what was found wrong so far. Sizes are bytes."""

    read: ReadAt
    size: int
    block_size: int
    warnings: list[str] = field(default_factory=list)

    def warn(self, text: str) -> None:
        if len(self.warnings) < MAX_WARNINGS and text not in self.warnings:
            self.warnings.append(text)

    def blocks(self, first: int, count: int) -> bytes:
        """The blocks [first, first + count), fewer at the end of the disk."""
        return self.at(first * self.block_size, count * self.block_size)

    def at(self, offset: int, length: int) -> bytes:
        length = min(length, self.size - offset)
        return self.read(offset, length) if offset >= 0 and length > 0 else b""

    def clip(self, what: str, start: int, length: int) -> int | None:
        """The length of a partition that says it is [start, start + length), cut at the end of the disk;
        None when nothing of it is on the disk. Both cases are warned of."""
        if length <= 0:
            self.warn(f"{what} has no length; it is left out")
            return None
        if start >= self.size:
            self.warn(f"{what} starts beyond the end of the disk; it is left out")
            return None
        if start + length > self.size:
            self.warn(f"{what} ends beyond the end of the disk; it is cut there")
            return self.size - start
        return length

    def table(self, scheme: Scheme, volumes: Sequence[Volume]) -> Table:
        if len(volumes) > MAX_VOLUMES:
            self.warn(
                f"there are {len(volumes)} partitions; those after the first {MAX_VOLUMES} are left out"
            )
            volumes = volumes[:MAX_VOLUMES]
        self._warn_of_overlaps(volumes)
        return Table(
            scheme=scheme, volumes=tuple(volumes), block_size=self.block_size, warnings=tuple(self.warnings)
        )

    def _warn_of_overlaps(self, volumes: Sequence[Volume]) -> None:
        widest: Volume | None = None
        for volume in sorted(volumes, key=lambda item: (item.start, item.number)):
            if widest is not None and volume.start < widest.start + widest.length:
                self.warn(f"partitions {widest.number} and {volume.number} overlap")
            if widest is None or volume.start + volume.length > widest.start + widest.length:
                widest = volume
