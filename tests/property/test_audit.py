"""The sample of the audit of changed-block tracking, and what the pipeline makes of a bitmap that lies."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest.audit import Audit, Finding, draw
from ingest.pipeline import PlannedDisk, ingest
from ingest.plan import Plan, Run
from ingest.sources.base import Extent
from ingest.sources.file import FileSource
from vmfs.format.manifest import Disk, Vm
from vmfs.repo.repository import Point, Repository

CHUNK = 64 << 10
PERCENTS = st.one_of(st.floats(0.001, 100), st.sampled_from((0.1, 1, 10, 50, 100)))


@st.composite
def plans(draw_: st.DrawFn) -> tuple[int, list[Run]]:
    """A number of chunks, and runs of changed ones."""
    runs: list[Run] = []
    end = 0
    lengths = st.integers(1, 300)
    for gap, length, zero in draw_(st.lists(st.tuples(st.integers(0, 300), lengths, st.booleans()))):
        runs.append(Run(end + gap, length, zero))
        end += gap + length
    return max(1, end + draw_(st.integers(0, 300))), runs


@given(plans(), PERCENTS, st.integers())
def test_never_what_changed_and_the_right_share(
    plan: tuple[int, list[Run]], percent: float, seed: int
) -> None:
    chunks, runs = plan
    drawn = list(draw(runs, chunks, percent, random.Random(seed)))  # noqa: S311
    changed = {number for run in runs for number in range(run.first, run.first + run.chunks)}
    unchanged = set(range(chunks)) - changed
    assert drawn == sorted(set(drawn))
    assert set(drawn) <= unchanged
    assert len(drawn) == min(len(unchanged), math.ceil(len(unchanged) * percent / 100))


@given(plans(), PERCENTS, st.integers())
def test_reproducible(plan: tuple[int, list[Run]], percent: float, seed: int) -> None:
    chunks, runs = plan
    assert list(draw(runs, chunks, percent, random.Random(seed))) == list(  # noqa: S311
        draw(runs, chunks, percent, random.Random(seed))  # noqa: S311
    )


def test_every_chunk_is_as_likely() -> None:
    """Also across the blocks that a large disk is drawn in."""
    chunks = 3 << 16
    runs = [Run(1000, 100, False), Run((1 << 16) - 5, 10, True)]
    seen = [0] * chunks
    rounds = 60
    for seed in range(rounds):
        for number in draw(runs, chunks, 10, random.Random(seed)):  # noqa: S311
            seen[number] += 1
    assert not any(seen[1000:1100])
    for start in range(0, chunks, 1 << 14):
        part = seen[start : start + (1 << 14)]
        expected = rounds * (1 << 14) / 10
        assert abs(sum(part) - expected) < 0.02 * expected + rounds * 10, start
    # Of 196498 chunks, each drawn 60 times with one tenth: none is favoured.
    assert max(seen) < 25


def test_zeros_that_are_known_are_marked() -> None:
    size = 100 * CHUNK
    whole = Plan([Extent(0, size // 2, True), Extent(size // 2, size // 2, False)], size, CHUNK, whole=True)
    changed = Plan([Extent(0, CHUNK, False), Extent(60 * CHUNK, 1, False)], size, CHUNK)
    assert list(Audit(100).sample(changed, whole, 100)) == [
        Run(1, 49, True),
        Run(50, 10, False),
        Run(61, 39, False),
    ]
    assert list(Audit(20, seed=1).sample(changed, whole, 100)) == list(
        Audit(20, seed=1).sample(changed, whole, 100)
    )


class Tracked(FileSource):
    """A raw file with somebody's word for what changed."""

    def __init__(self, path: Path, dirty: list[Extent]) -> None:
        super().__init__(path)
        self._dirty = dirty
        self.reads: list[tuple[int, int]] = []

    def dirty_extents(self) -> Iterator[Extent]:  # type: ignore[override]
        return iter(self._dirty)


def back_up(
    repository: Repository, path: Path, dirty: list[Extent] | None, parent: Point | None, audit: Audit | None
) -> tuple[Point, list[Finding]]:
    findings: list[Finding] = []
    source = Tracked(path, dirty or [])
    base = parent.manifest.disks[0] if parent and dirty is not None else None
    try:
        point = ingest(
            repository,
            Vm(name="vm", id="vm"),
            [PlannedDisk("disk", source, base)],
            parent=parent,
            audit=audit,
            audited=findings.append,
        )
    finally:
        source.close()
    return point, findings


def content(repository: Repository, disk: Disk) -> bytes:
    return repository.open_disk(disk).read(0, disk.size)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_bitmap_that_lies(repository: Repository, tmp_path: Path, data: st.DataObject) -> None:
    """Whatever it missed, an audit of everything finds it, and the point is right; an honest bitmap passes,
    and an audit of a part is never wrong about it."""
    chunks = data.draw(st.integers(1, 40))
    size = chunks * CHUNK - data.draw(st.sampled_from((0, 512, CHUNK - 512)))
    size = max(size, 512)
    sorts = st.lists(st.sampled_from("ab0"), min_size=chunks, max_size=chunks)
    path = tmp_path / "disk.raw"

    def write(kinds: list[str]) -> bytes:
        parts = (bytes(CHUNK) if kind == "0" else kind.encode() * CHUNK for kind in kinds)
        whole = b"".join(parts)[:size]
        path.write_bytes(whole)
        return whole

    before, after = data.draw(sorts), data.draw(sorts)
    write(before)
    parent, _ = back_up(repository, path, None, None, None)
    now = write(after)
    told = [number for number in range(chunks) if data.draw(st.booleans())]
    missed = [n for n in range(chunks) if n not in told and before[n] != after[n]]
    dirty = [Extent(n * CHUNK, min(CHUNK, size - n * CHUNK), False) for n in told]
    point, findings = back_up(repository, path, dirty, parent, Audit(100))
    (disk,) = point.manifest.disks
    (finding,) = findings
    assert content(repository, disk) == now
    assert disk.mode == ("full" if missed else "incremental")
    assert point.manifest.parent == (None if missed else parent.id)
    if missed:
        assert finding.mismatch == missed[0] * CHUNK
        assert disk.full_reason == (
            f"audit: a change at byte {missed[0] * CHUNK} since restore point {parent.id} was not reported"
        )
    else:
        assert finding.mismatch is None
        assert finding.compared == size - sum(extent.length for extent in dirty)
        honest, _ = back_up(repository, path, dirty, parent, Audit(data.draw(PERCENTS)))
        assert honest.manifest.disks[0].mode == "incremental"


def test_a_mismatch_is_loud(repository: Repository, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"a" * CHUNK * 8)
    parent, _ = back_up(repository, path, None, None, None)
    path.write_bytes(b"a" * CHUNK * 7 + b"b" * CHUNK)
    point, _ = back_up(repository, path, [], parent, Audit(100))
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.levelno == logging.ERROR
    assert "AUDIT FAILED: the bytes from 458752" in record.message
    assert parent.id in record.message
    assert content(repository, point.manifest.disks[0]) == path.read_bytes()


def test_the_sample_counts_as_read(repository: Repository, tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(random.Random(1).randbytes(CHUNK * 100))  # noqa: S311
    parent, _ = back_up(repository, path, None, None, None)
    point, (finding,) = back_up(repository, path, [Extent(0, 512, False)], parent, Audit(10, seed=3))
    assert (finding.compared, finding.read) == (10 * CHUNK, 10 * CHUNK)
    assert point.manifest.disks[0].bytes_read == 11 * CHUNK
    assert point.manifest.disks[0].bytes_new == 0
