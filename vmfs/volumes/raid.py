"""Where the chunks of RAID levels 0, 4, 5, 6 and 10 lie, as the Linux md driver deals them out.

Parity is read only for what a lost member held. From drivers/md/raid5.c (raid5_compute_sector) and raid10.c
of Linux; the numbers of layouts are those of the superblocks of md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial

from vmfs.volumes.damage import Unmappable
from vmfs.volumes.pieces import LaidSpace, Mirror, Part, Striped, bounds
from vmfs.volumes.rebuilt import Rebuilt, Recipe, Row, recipe
from vmfs.volumes.space import Extent

SECTOR = 512
MAX_MEMBERS = 512
MAX_CHUNK = 1 << 30

# Of a row, and the index of a chunk of data within it: the column. `n` is the number of columns.
_Column = Callable[[int, int, int], int]


def _left_asymmetric_5(row: int, index: int, n: int) -> int:
    return index + (index >= n - 1 - row % n)


def _right_asymmetric_5(row: int, index: int, n: int) -> int:
    return index + (index >= row % n)


def _left_symmetric_5(row: int, index: int, n: int) -> int:
    return (n - row % n + index) % n


def _right_symmetric_5(row: int, index: int, n: int) -> int:
    return (row % n + 1 + index) % n


def _parity_first(row: int, index: int, n: int) -> int:
    return index + 1


def _parity_last(row: int, index: int, n: int) -> int:
    return index


def _past_both(index: int, parity: int, n: int) -> int:
    """P at `parity` and Q behind it, around the end."""
    if parity == n - 1:
        return index + 1
    return index + 2 if index >= parity else index


def _left_asymmetric_6(row: int, index: int, n: int) -> int:
    return _past_both(index, n - 1 - row % n, n)


def _right_asymmetric_6(row: int, index: int, n: int) -> int:
    return _past_both(index, row % n, n)


def _left_symmetric_6(row: int, index: int, n: int) -> int:
    return (n - 1 - row % n + 2 + index) % n


def _right_symmetric_6(row: int, index: int, n: int) -> int:
    return (row % n + 2 + index) % n


def _parity_first_6(row: int, index: int, n: int) -> int:
    return index + 2


def _rotating_n_restart(row: int, index: int, n: int) -> int:
    return _past_both(index, n - 1 - (row + 1) % n, n)


def _rotating_n_continue(row: int, index: int, n: int) -> int:
    return (n - row % n + index) % n


def _one_less(column: _Column) -> _Column:
    """Level 5 over all columns but the last, which holds Q."""
    return lambda row, index, n: column(row, index, n - 1)


LAYOUTS_5: dict[int, _Column] = {
    0: _left_asymmetric_5,
    1: _right_asymmetric_5,
    2: _left_symmetric_5,
    3: _right_symmetric_5,
    4: _parity_first,
    5: _parity_last,
}
ROTATING_N_CONTINUE = 10
LEFT_ASYMMETRIC_6 = 16
DDF_LAYOUTS = (8, 9, ROTATING_N_CONTINUE)
"""In these, the power of 2 in Q is the number of the column."""
LAYOUTS_6: dict[int, _Column] = {
    0: _left_asymmetric_6,
    1: _right_asymmetric_6,
    2: _left_symmetric_6,
    3: _right_symmetric_6,
    4: _parity_first_6,
    5: _parity_last,
    8: _right_asymmetric_6,
    9: _rotating_n_restart,
    ROTATING_N_CONTINUE: _rotating_n_continue,
    LEFT_ASYMMETRIC_6: _one_less(_left_asymmetric_5),
    17: _one_less(_right_asymmetric_5),
    18: _one_less(_left_symmetric_5),
    19: _one_less(_right_symmetric_5),
    20: _parity_first,
}


def striped(columns: Sequence[LaidSpace], chunk: int, rotation: int = 0) -> LaidSpace:
    """Level 0 over columns of one size: chunk n lies in column (n + rotation) modulo their number."""
    if len(columns) == 1:
        return columns[0]
    _check(columns, chunk, least=1)
    count = len(columns)
    rows = min(column.size for column in columns) // chunk

    def place(number: int) -> tuple[int, int]:
        row, index = divmod(number, count)
        return (index + rotation) % count, row

    return Striped(columns, chunk, rows * chunk * count, place, count)


def parity(columns: Sequence[LaidSpace | None], chunk: int, level: int, layout: int) -> LaidSpace:
    """Level 4, 5 or 6. What lost columns (None) held is computed. Raises Unmappable when these are too many,
    and for a layout that is not known."""
    if level == 4:
        layout = 5
    column_of = (LAYOUTS_6 if level == 6 else LAYOUTS_5).get(layout)
    if column_of is None:
        raise Unmappable(f"its layout {layout} of RAID {level} is not known")
    _check(columns, chunk, least=4 if level == 6 else 2)
    spare = redundancy(level)
    count = len(columns)
    data = count - spare
    present = [column for column in columns if column is not None]
    if count - len(present) > spare:
        raise Unmappable(
            f"{count - len(present)} of its {count} members are missing or out of date, and its parity makes "
            f"up for {spare}"
        )
    rows = min(column.size for column in present) // chunk
    lost = [number for number, column in enumerate(columns) if column is None]
    # After so many rows a layout repeats.
    period = count - 1 if level == 6 and layout >= LEFT_ASYMMETRIC_6 else count

    @lru_cache(MAX_MEMBERS)
    def recipes(wanted: int, row: int) -> Recipe | None:
        found = _row(column_of, count, layout, level, row)
        return recipe(found, lost, wanted) if wanted in found.powers else None

    def lost_column(number: int) -> LaidSpace:
        return Rebuilt(columns, chunk, rows, lambda row: recipes(number, row % period))

    whole = [lost_column(number) if column is None else column for number, column in enumerate(columns)]
    return Striped(whole, chunk, rows * chunk * data, partial(_parity_place, column_of, count, data), data)


def redundancy(level: int) -> int:
    """How many members may be lost of level 4, 5 or 6."""
    return 2 if level == 6 else 1


def _row(column_of: _Column, count: int, layout: int, level: int, row: int) -> Row:
    """Where parity is, and how Q is made (raid6_d0 and raid6_idx_to_slot of drivers/md/raid5.c)."""
    data = [column_of(row, index, count) for index in range(count - redundancy(level))]
    if level != 6:
        (p,) = set(range(count)) - set(data)
        return Row(p, None, dict.fromkeys(data, 0))
    first, last = sorted(set(range(count)) - set(data))
    # Q follows P, around the end; it comes before P in one layout, and is the last column in others.
    p, q = (last, first) if (first, last) == (0, count - 1) else (first, last)
    if layout == ROTATING_N_CONTINUE:
        p, q = q, p
    elif layout >= LEFT_ASYMMETRIC_6:
        p, q = first, last
    if layout in DDF_LAYOUTS:
        return Row(p, q, {column: column for column in data})
    begin = 0 if q == count - 1 else q + 1
    order = [column for step in range(count) if (column := (begin + step) % count) not in (p, q)]
    return Row(p, q, {column: power for power, column in enumerate(order)})


def _parity_place(column_of: _Column, count: int, data: int, number: int) -> tuple[int, int]:
    row, index = divmod(number, data)
    return column_of(row, index, count), row


def copied(
    columns: Sequence[LaidSpace | None], chunk: int, near: int, far: int = 1, *, offset: bool = False
) -> LaidSpace:
    """Level 10: each chunk `near` times in the columns that follow each other, and all of that `far` times:
    in other parts of the columns, or with `offset` in the rows that follow. A column may be missing (None)
    when the others have all of its chunks as near copies. Raises Unmappable when they do not."""
    count = len(columns)
    present = [column for column in columns if column is not None]
    _check(present, chunk, least=1)
    if not (near >= 1 and far >= 1 and near * far <= count):
        raise Unmappable(f"it is said to have {near * far} copies on {count} members")
    rows = min(column.size for column in present) // chunk // far
    if far == 1 and count % near == 0:
        mirrors: list[LaidSpace] = []
        for first in range(0, count, near):
            legs = [column for column in columns[first : first + near] if column is not None]
            if not legs:
                raise Unmappable("all copies of a part of it are missing")
            mirrors.append(Mirror([Part(leg, 0, rows * chunk) for leg in legs]))
        return striped(mirrors, chunk)
    if len(present) < count:
        raise Unmappable("a member is missing, and in its layout others do not stand in for it")

    def place(number: int) -> tuple[int, int]:
        row, column = divmod(number * near, count)
        return column, row * far if offset else row

    # A chunk's copies may begin in one row and end in the next; the last chunk has to be whole.
    return _Uneven(present, chunk, rows * count // near * chunk, place, count)


class _Uneven(Striped):
    """Rows that do not hold a whole number of chunks, or not at the row's place: holes are not told."""

    def extents(self, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int, bool]]:
        start, end = bounds(self.size, start, end)
        if start < end:
            yield Extent(start, end - start, False)


def _check(columns: Sequence[LaidSpace | None], chunk: int, least: int) -> None:
    if not least <= len(columns) <= MAX_MEMBERS:
        raise Unmappable(f"it is said to have {len(columns)} members")
    if not SECTOR <= chunk <= MAX_CHUNK or chunk % SECTOR:
        raise Unmappable(f"it is said to have chunks of {chunk} bytes")
