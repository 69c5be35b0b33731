"""Where the data of files lies, as a worker says, and what is read by it."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmfs.volumes.files.plain import FileRuns, RunsOfFiles
from vmfs.volumes.files.worker import wire
from vmfs.volumes.files.worker.model import Run

ROOM = 4000
VOLUME = bytes((at * 7 + at // 251) % 255 + 1 for at in range(ROOM))


@st.composite
def files(draw: st.DrawFn) -> tuple[int, list[Run]]:
    """A size, and runs within it, ascending."""
    size = draw(st.integers(0, 1500))
    edges = sorted(draw(st.sets(st.integers(0, size), max_size=20)))
    spans = [span for span in pairwise(edges) if draw(st.booleans())]
    return size, [Run(start, end - start, draw(st.integers(0, ROOM - (end - start)))) for start, end in spans]


@given(files(), st.lists(st.tuples(st.integers(0, 1600), st.integers(0, 1600)), max_size=10))
def test_any_range(file: tuple[int, list[Run]], ranges: list[tuple[int, int]]) -> None:
    size, runs = file
    content = bytearray(size)
    for start, length, place in runs:
        content[start : start + length] = VOLUME[place : place + length]
    known = FileRuns(size, runs, ROOM)
    for offset, length in ranges:
        data = b""
        for count, where in known.within(offset, length):
            assert count > 0
            data += bytes(count) if where is None else VOLUME[where : where + count]
        assert data == content[offset : offset + length]


@given(files())
def test_as_they_are_sent(file: tuple[int, list[Run]]) -> None:
    assert wire.unpack_runs(b"".join(wire.RUN.pack(*run) for run in file[1])) == file[1]


@pytest.mark.parametrize(
    "runs",
    [
        [Run(0, 0, 0)],
        [Run(0, 101, 0)],
        [Run(100, 1, 0)],
        [Run(0, 10, ROOM - 9)],
        [Run(0, 10, 0), Run(9, 1, 50)],
        [Run(10, 10, 0), Run(0, 10, 50)],
        [Run(0, 1, 2**64 - 1)],
        [Run(2**64 - 1, 2**64 - 1, 0)],
    ],
)
def test_what_cannot_be(runs: list[Run]) -> None:
    with pytest.raises(ValueError, match="where none can"):
        FileRuns(100, runs, ROOM)


def test_a_few_files_are_remembered() -> None:
    asked = []

    def find(node: int) -> FileRuns | None:
        asked.append(node)
        return FileRuns(node, [], ROOM) if node % 2 else None

    runs = RunsOfFiles(find)
    for node in (1, 2, 1, 2, 3):
        found = runs.of(node)
        assert (None if found is None else found.size) == (node if node % 2 else None)
    assert asked == [1, 2, 3]
    for node in range(100, 200):
        runs.of(node)
    runs.of(1)
    assert asked[-1] == 1
