"""Random histories of disks: what a guest does to a disk between restore points, and what has to come back.

Every disk is modelled by its bytes; a copy is kept aside for each restore point that is taken of it. What is
written is one byte over and over, as qemu-io does: other bytes each time, and at other places.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple, Protocol

from command_helpers import Done, Site, call
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from mount_helpers import can_mount, mounted
from qemu_helpers import run

from vmfs.format.manifest import Disk
from vmfs.repo.reader import DiskExtent
from vmfs.repo.repository import Point

CHUNK = 64 << 10
"""Of the repository; and the granularity of qemu's dirty bitmaps and qcow2 clusters."""
LEAF = 256 * CHUNK
ZEROS = bytes(CHUNK)
SECTOR = 512
POINTS = 20
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Where syncing takes no time: there are hundreds of them."""

SIZES = (
    SECTOR,
    CHUNK,
    CHUNK + SECTOR,
    7 * CHUNK - SECTOR,
    20 * CHUNK,
    20 * CHUNK + 3 * SECTOR,
    LEAF - SECTOR,
    LEAF,
    LEAF + SECTOR,
    LEAF + 5 * CHUNK + SECTOR,
)
"""Most are no multiple of the chunk; the map of some has two levels."""

# Shrinking a history that fails would take many minutes.
history_settings = settings(
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ],
)


class Op(NamedTuple):
    """What is done to a range of a disk. A discard reads as zeros afterwards; so that all formats agree on
    what it does, it is of whole chunks."""

    kind: Literal["write", "zero", "discard"]
    offset: int
    length: int
    byte: int = 0

    def for_qemu_io(self) -> str:
        if self.kind == "write":
            return f"write -P {self.byte} {self.offset} {self.length}"
        verb = "write -z" if self.kind == "zero" else "discard"
        return f"{verb} {self.offset} {self.length}"


class Stroke(NamedTuple):
    """An Op before the size of the disk is known."""

    kind: Literal["write", "zero", "discard"]
    chunk: int
    shift: int
    sectors: int
    byte: int

    def on(self, size: int) -> Op | None:
        """At its place on a disk of `size` bytes; None when there is none."""
        count = -(-size // CHUNK)
        if self.kind == "discard":
            first = self.chunk % count * CHUNK
            length = min(-(-self.sectors * SECTOR // CHUNK) * CHUNK, (size - first) // CHUNK * CHUNK)
            return Op("discard", first, length) if length else None
        offset = max(0, self.chunk % count * CHUNK + self.shift * SECTOR) % size
        return Op(self.kind, offset, min(self.sectors * SECTOR, size - offset), self.byte)


class Step(NamedTuple):
    """What happens between two restore points, and how the second is taken.

    `resize` is the new size, None for no change. `late` is done after the instant of the backup and before
    its end. `lag` counts back: by the bitmap of which restore point an incremental is taken. `second` tells
    whether the VM has its second disk then. `other` is a choice that is the kind of disk's to make.
    """

    strokes: tuple[Stroke, ...]
    resize: int | None
    late: tuple[Stroke, ...]
    lag: int
    second: bool
    other: int


QUIET = Step((), None, (), 1, True, 0)
"""Nothing happens."""

TO_ZEROS = (
    Op("discard", 0, CHUNK),
    Op("discard", 2 * CHUNK, 2 * CHUNK),
    Op("zero", 5 * CHUNK, CHUNK),
    Op("write", 7 * CHUNK, CHUNK, 0),
    # Parts of chunks: the rest stays.
    Op("zero", 9 * CHUNK + 512, 1024),
    Op("write", 11 * CHUNK - 512, 1024, 0),
    # And zeros that are written over again.
    Op("discard", 13 * CHUNK, 3 * CHUNK),
    Op("write", 14 * CHUNK, 512, 0x66),
)
"""What makes zeros, of a disk of 20 chunks that has none, in every way. 13 chunks keep data; of these, 9, 10,
11 and 14 are not what they were."""


class Guest(Protocol):
    """What lives through a history: each kind of disk has its own."""

    def live(self, step: Step) -> None: ...

    def back_up(self, step: Step) -> None: ...


def live_through(guest: Guest, steps: Sequence[Step]) -> None:
    for step in steps:
        guest.live(step)
        guest.back_up(step)


def strokes(most: int) -> st.SearchStrategy[tuple[Stroke, ...]]:
    one = st.builds(
        Stroke,
        st.sampled_from(("write", "write", "write", "zero", "discard")),
        st.one_of(st.integers(0, 6), st.integers(0, 262)),
        st.sampled_from((0, 0, 0, -1, 1, 64, 127)),
        st.sampled_from((1, 2, 127, 128, 129, 256, 384, 1000)),
        st.integers(1, 255),
    )
    return st.lists(one, max_size=most).map(tuple)


def histories(*, points: int = POINTS, resizes: bool = True) -> st.SearchStrategy[list[Step]]:
    resize = st.sampled_from((None, None, None, None, *SIZES)) if resizes else st.none()
    steps = st.builds(
        Step,
        strokes(4),
        resize,
        strokes(2),
        st.sampled_from((1, 1, 1, 2, 3)),
        st.sampled_from((True, True, False)),
        st.integers(0, 3),
    )
    return st.lists(steps, min_size=points, max_size=points)


@dataclass
class Model:
    """The bytes of a disk, and the numbers of the chunks touched since each checkpoint."""

    content: bytearray
    touched: dict[str, set[int]] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return len(self.content)

    def apply(self, ops: Sequence[Op]) -> None:
        for op in ops:
            end = op.offset + op.length
            self.content[op.offset : end] = bytes([op.byte if op.kind == "write" else 0]) * op.length
            for touched in self.touched.values():
                touched.update(range(op.offset // CHUNK, -(-end // CHUNK)))

    def resize(self, size: int) -> None:
        del self.content[size:]
        self.content.extend(bytes(size - len(self.content)))

    def resize_image(self, image: Path, format: str, size: int) -> None:
        """A qcow2 image that grows shows again what was in a cluster that shrinking cut through."""
        run("qemu-img", "resize", "-q", "-f", format, "--shrink", image, str(size))
        self.content = content_of(image, format)
        assert self.size == size

    def ops(self, chosen: Sequence[Stroke]) -> list[Op]:
        return [op for stroke in chosen if (op := stroke.on(self.size))]

    def chunk_bytes(self, numbers: set[int]) -> int:
        """Bytes of those chunks that are inside the disk."""
        return sum(min(CHUNK, self.size - number * CHUNK) for number in numbers)


def chunks_of(content: bytes | bytearray) -> list[bytes]:
    """As they are stored: the last one padded."""
    return [bytes(content[at : at + CHUNK]).ljust(CHUNK, b"\0") for at in range(0, len(content), CHUNK)]


def different(found: bytes | bytearray, wanted: bytes | bytearray) -> list[str]:
    """Which chunks differ."""
    if len(found) != len(wanted):
        return [f"{len(found)} bytes instead of {len(wanted)}"]
    pairs = enumerate(zip(chunks_of(found), chunks_of(wanted), strict=True))
    return [f"chunk {n}: {got[:8]!r} {want[:8]!r}" for n, (got, want) in pairs if got != want]


class History:
    """A repository that is written to by `vmfs-ingest`, and the copies of all that was backed up."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.site = Site(folder)
        self.site.init()
        self.repository = self.site.open()
        self.kept: dict[str, dict[str, bytes]] = {}
        self._stored: set[bytes] = set()
        self._roots: dict[bytes, bytes | None] = {}

    def try_ingest(self, *argv: object) -> Done:
        return call(
            "vmfs-ingest", "image", self.site.repository, "--vm", "web", "--json", *self.site.options(), *argv
        )

    def ingest(self, models: dict[str, Model], *argv: object) -> Point:
        """Take a restore point and hold it against what the disks are to contain: the bytes, and what the
        manifest tells of them."""
        kept = {alias: bytes(model.content) for alias, model in models.items()}
        return self.check(self.try_ingest(*argv), kept)

    def check(self, done: Done, kept: dict[str, bytes]) -> Point:
        assert done.status == 0, done.err
        facts = done.json()
        self.repository.refresh()
        point = self.repository.load_point(facts["id"])
        assert [disk.alias for disk in point.manifest.disks] == list(kept)
        self.kept[point.id] = kept
        fresh = set().union(*(self._check_facts(disk, kept[disk.alias]) for disk in point.manifest.disks))
        # Disks are read side by side: which of them has stored what two have is chance.
        assert sum(disk.bytes_new for disk in point.manifest.disks) == len(fresh) * CHUNK
        self._stored |= fresh
        self.check_content(point)
        return point

    def _check_facts(self, disk: Disk, content: bytes) -> set[bytes]:
        """Gives the chunks of the disk that the repository did not have."""
        assert disk.size == len(content)
        chunks = [chunk for chunk in chunks_of(content) if chunk != ZEROS]
        new = set(chunks) - self._stored
        assert disk.allocated == len(chunks) * CHUNK
        assert disk.bytes_new <= len(new) * CHUNK
        # However it came about: equal content, equal map.
        assert self._roots.setdefault(content, disk.root) == disk.root
        return new

    def check_content(self, point: Point) -> None:
        for disk in point.manifest.disks:
            content = self.kept[point.id][disk.alias]
            reader = self.repository.open_disk(disk)
            assert different(reader.read(0, disk.size), content) == [], disk
            assert list(reader.extents()) == data_extents(content)

    def check_all(self) -> None:
        """Every restore point, old ones too, with nothing in any cache: by the library, by `vmfs export` and
        by `vmfs mount`; and `vmfs verify`."""
        with self.site.open(self.folder / "other") as self.repository:
            assert self.repository.point_ids() == list(self.kept)
            for point_id in self.kept:
                self.check_content(self.repository.load_point(point_id))
        report = self.site.vmfs("verify", "--data", "--json").json()
        assert report["sound"]
        self.check_exports()
        if can_mount:
            self.check_mount()

    def check_exports(self) -> None:
        """Every disk of every point as a file: raw or qcow2, in turns."""
        for number, (point_id, disks) in enumerate(self.kept.items()):
            for alias, content in disks.items():
                format = ("raw", "qcow2")[number % 2]
                out = self.folder / f"export.{format}"
                done = self.site.vmfs("export", f"{point_id}:{alias}", "-o", out, "--format", format, "-q")
                assert done.status == 0, done.err
                found = out.read_bytes() if format == "raw" else content_of(out, format)
                assert different(found, content) == [], (point_id, alias, format)
                out.unlink()

    def check_mount(self) -> None:
        """Every disk of every point as a file of a real mount."""
        with mounted(self.repository, self.folder / "mount") as mount:
            found: set[str] = set()
            for folder in (mount.path / "web").iterdir():
                if folder.name == "latest":
                    continue
                point_id = json.loads((folder / "point.json").read_text())["id"]
                for alias, content in self.kept[point_id].items():
                    path = folder / "disks" / f"{alias}.raw"
                    assert different(path.read_bytes(), content) == [], path
                    data = sum(extent.length for extent in data_extents(content) if not extent.zero)
                    assert path.stat().st_blocks * SECTOR - data in range(CHUNK), path
                found.add(point_id)
            assert found == self.kept.keys()


@contextmanager
def history() -> Iterator[History]:
    with TemporaryDirectory(dir=MEMORY) as folder:
        made = History(Path(folder))
        try:
            yield made
        finally:
            made.repository.close()


def data_extents(content: bytes) -> list[DiskExtent]:
    """By looking at every chunk."""
    found: list[DiskExtent] = []
    for number, chunk in enumerate(chunks_of(content)):
        zero = chunk == ZEROS
        length = min(CHUNK, len(content) - number * CHUNK)
        if found and found[-1].zero == zero:
            length += found.pop().length
        found.append(
            DiskExtent(number * CHUNK + min(CHUNK, len(content) - number * CHUNK) - length, length, zero)
        )
    return found


def known_zero(size: int, *target: str) -> set[int]:
    """The chunks that qemu says to be zeros without reading them: `qemu-img map` of the target."""
    data: set[int] = set()
    for extent in map_of(*target):
        if not extent["zero"]:
            end = extent["start"] + extent["length"]
            data.update(range(extent["start"] // CHUNK, -(-end // CHUNK)))
    return set(range(-(-size // CHUNK))) - data


def content_of(image: Path, format: str) -> bytearray:
    """The bytes of a disk image that nobody has open, as qemu reads them."""
    copy = image.with_suffix(".copy")
    run("qemu-img", "convert", "-f", format, "-O", "raw", image, copy)
    return bytearray(copy.read_bytes())


def map_of(*target: str) -> list[dict[str, Any]]:
    return list(json.loads(run("qemu-img", "map", "--output=json", *target)))
