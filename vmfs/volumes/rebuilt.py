"""What a lost member of a RAID 4, 5 or 6 held, computed from the others.

P is the sum of a row's data, Q the sum of the data each times a power of 2, both in the field of 256
elements with the polynomial 0x11d (H. P. Anvin, "The mathematics of RAID-6"); a sum is an exclusive or. So
what is lost is a sum of what is there, each times a number: a recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from vmfs.volumes.pieces import Ground, LaidSpace, Pieces, all_zero, bounds, clipped, footprint, merged
from vmfs.volumes.space import Extent

_POLYNOMIAL = 0x11D
Recipe = Mapping[int, int]
"""Column -> what its bytes are to be multiplied by before all are added."""


class Row(NamedTuple):
    """A row of chunks: the columns of P and Q, and of each column of data the power of 2 in Q. `q` is None,
    and the powers mean nothing, where there is P only."""

    p: int
    q: int | None
    powers: Mapping[int, int]


def recipe(row: Row, lost: Sequence[int], wanted: int) -> Recipe:
    """How to make the column `wanted` of data, which is one of one or two that are lost. There must be parity
    for both."""
    others = {column: power for column, power in row.powers.items() if column not in lost}
    second = next((column for column in lost if column != wanted and column in row.powers), None)
    if row.q is not None and second is not None:
        step = _power(row.powers[second] - row.powers[wanted])
        whole = _inverse(step ^ 1)
        by_p = _times(step, whole)
        by_q = _times(_power(-row.powers[wanted]), whole)
        found = {column: by_p ^ _times(by_q, _power(power)) for column, power in others.items()}
        return {**found, row.p: by_p, row.q: by_q}
    if row.q is None or row.p not in lost:
        return {**dict.fromkeys(others, 1), row.p: 1}
    back = _power(-row.powers[wanted])
    found = {column: _times(back, _power(power)) for column, power in others.items()}
    return {**found, row.q: back}


class Rebuilt:
    """A lost column. `columns` are all, those that are lost None; `recipes` gives the recipe for a row, None
    where the column had no data."""

    def __init__(
        self,
        columns: Sequence[LaidSpace | None],
        chunk: int,
        rows: int,
        recipes: Callable[[int], Recipe | None],
    ) -> None:
        self.size = rows * chunk
        self._columns = tuple(columns)
        self._present = tuple(column for column in columns if column is not None)
        self._chunk = chunk
        self._recipes = recipes

    def read(self, offset: int, length: int) -> bytes:
        end = offset + clipped(self.size, offset, length)
        parts = []
        while offset < end:
            row = offset // self._chunk
            count = min(end, (row + 1) * self._chunk) - offset
            parts.append(self._sum(self._recipes(row) or {}, offset, count))
            offset += count
        return b"".join(parts)

    def _sum(self, recipe: Recipe, offset: int, length: int) -> bytes:
        total = 0
        for number, factor in recipe.items():
            column = self._columns[number]
            if column is None:
                raise ValueError(f"column {number} is lost itself")
            data = column.read(offset, length)
            total ^= int.from_bytes(data if factor == 1 else data.translate(_multiples(factor)), "little")
        return total.to_bytes(length, "little")

    def extents(self, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int, bool]]:
        """A hole where all that is there is one."""
        start, end = bounds(self.size, start, end)
        return merged(Extent(*found) for found in all_zero(self._present, start, end))

    def copies(self) -> Sequence[Pieces]:
        return ()

    def footprint(self) -> Sequence[Ground]:
        return footprint(self._present)


def _tables() -> tuple[tuple[int, ...], Mapping[int, int]]:
    powers = [1]
    while len(powers) < 255:
        value = powers[-1] << 1
        powers.append(value ^ _POLYNOMIAL if value > 0xFF else value)
    return tuple(powers), {value: power for power, value in enumerate(powers)}


_POWERS, _LOGARITHMS = _tables()


def _power(exponent: int) -> int:
    """Of 2."""
    return _POWERS[exponent % 255]


def _times(one: int, other: int) -> int:
    return _power(_LOGARITHMS[one] + _LOGARITHMS[other]) if one and other else 0


def _inverse(value: int) -> int:
    return _power(-_LOGARITHMS[value])


@lru_cache(256)
def _multiples(factor: int) -> bytes:
    """Of every byte."""
    return bytes(_times(factor, value) for value in range(256))
