"""Our qcow2 images as QEMU sees them: sound, and the same disk."""

from __future__ import annotations

import json
import subprocess
import tempfile
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmfs.format.qcow2 import CLUSTER, GROUP, Range, layout, stream

SECTOR = 512


def qemu_img(*args: object) -> str:
    done = subprocess.run(["qemu-img", *map(str, args)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def content(found: Range) -> bytes:
    """Some bytes that differ from cluster to cluster, and from zero."""
    clusters = -(-found.length // CLUSTER)
    return b"".join(
        (found.start // CLUSTER + i + 1).to_bytes(8, "big") * (CLUSTER // 8) for i in range(clusters)
    )[: found.length]


def write_both(directory: Path, size: int, ranges: list[Range]) -> tuple[Path, Path]:
    image, raw = directory / "image.qcow2", directory / "image.raw"
    with raw.open("wb") as file:
        file.truncate(size)
        for found in ranges:
            file.seek(found.start)
            file.write(content(found))
    with image.open("wb") as file:
        for part in stream(size, lambda: ranges):
            file.write(content(part) if isinstance(part, Range) else part)
        assert file.tell() == layout(size, lambda: ranges).size
    return image, raw


@st.composite
def disks(draw: st.DrawFn) -> tuple[int, list[Range]]:
    """A size, and runs of clusters: few and small, anywhere, also across the ends of L2 tables."""
    size = draw(st.integers(1, 3 * GROUP // SECTOR)) * SECTOR
    clusters = -(-size // CLUSTER)
    near = st.sampled_from([0, GROUP // CLUSTER - 2, GROUP // CLUSTER, clusters - 2, clusters - 1])
    marks = st.one_of(st.integers(0, clusters), near.map(lambda mark: min(max(mark, 0), clusters)))
    bounds = sorted(draw(st.sets(marks, max_size=12)))
    ranges = []
    for first, last in pairwise(bounds):
        if draw(st.booleans()):
            start = first * CLUSTER
            end = min(min(last, first + 20) * CLUSTER, size)
            ranges.append(Range(start, end - start))
    return size, ranges


@settings(max_examples=60, deadline=None)
@given(disks())
def test_is_sound_and_holds_the_same_disk(disk: tuple[int, list[Range]]) -> None:
    size, ranges = disk
    with tempfile.TemporaryDirectory() as name:
        image, raw = write_both(Path(name), size, ranges)
        report = json.loads(qemu_img("check", "--output=json", "-f", "qcow2", image))
        assert report["check-errors"] == 0
        assert "leaks" not in report
        assert report.get("allocated-clusters", 0) == sum(-(-r.length // CLUSTER) for r in ranges)
        assert report["image-end-offset"] == image.stat().st_size
        info = json.loads(qemu_img("info", "--output=json", image))
        assert info["virtual-size"] == size
        qemu_img("compare", "-f", "qcow2", "-F", "raw", image, raw)


def test_an_empty_disk(tmp_path: Path) -> None:
    image, _ = write_both(tmp_path, 0, [])
    qemu_img("check", image)
    assert json.loads(qemu_img("info", "--output=json", image))["virtual-size"] == 0


def test_one_cluster_at_each_end_of_64_tib(tmp_path: Path) -> None:
    size = 64 << 40
    ranges = [Range(0, CLUSTER), Range(33 << 40, 3 * CLUSTER), Range(size - CLUSTER, CLUSTER)]
    image = tmp_path / "image.qcow2"
    with image.open("wb") as file:
        for part in stream(size, lambda: ranges):
            file.write(content(part) if isinstance(part, Range) else part)
    assert image.stat().st_size < 2 << 20
    qemu_img("check", image)
    mapped = json.loads(qemu_img("map", "--output=json", image))
    assert [Range(m["start"], m["length"]) for m in mapped if m["data"]] == ranges
    for found in ranges:
        pattern = content(Range(found.start, CLUSTER))[:8]
        command = f"read -v {found.start} 8"
        dump = subprocess.run(
            ["qemu-io", "-r", "-c", command, image], capture_output=True, text=True, check=True
        )
        assert pattern.hex(" ") in dump.stdout


@pytest.mark.parametrize(
    "clusters",
    # Where the refcounts need one more block, their own among them: 32768 to a block.
    [0, 32762, 32763, 32764, 32765, 65530, 100_000, 32768 * 8192, 1 << 30],
)
def test_refcounts_cover_the_file_and_no_more_than_they_must(clusters: int) -> None:
    size = max(clusters, 1) * CLUSTER
    ranges = [Range(0, clusters * CLUSTER)] if clusters else []
    plan = layout(size, lambda: ranges)
    tables = sum(1 for count in plan.groups if count)
    assert plan.total == 1 + plan.table + plan.blocks + plan.l1 + tables + clusters
    assert (plan.blocks - 1) * 32768 < plan.total <= plan.blocks * 32768
    assert plan.table == -(-plan.blocks * 8 // CLUSTER)


def test_writable_in_qemu_afterwards(tmp_path: Path) -> None:
    """The counts are wide enough for snapshots, and what is written goes where nothing was."""
    image, _ = write_both(tmp_path, 1 << 30, [Range(0, 40 * CLUSTER), Range(600 << 20, CLUSTER)])
    qemu_img("snapshot", "-c", "one", image)
    subprocess.run(["qemu-io", "-c", "write -P 7 0 1M", image], capture_output=True, check=True)
    qemu_img("check", image)
    qemu_img("snapshot", "-a", "one", image)
    qemu_img("check", image)
