"""Histories of disks that a VM writes to while they are backed up, as libvirt does it: a pull backup from a
point-in-time export, a new checkpoint's bitmap with each, and each a change later than the last."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from history_helpers import (
    CHUNK,
    QUIET,
    TO_ZEROS,
    History,
    Model,
    Op,
    Step,
    Stroke,
    content_of,
    different,
    histories,
    history,
    history_settings,
    known_zero,
    live_through,
)
from hypothesis import given, settings
from qemu_helpers import StorageDaemon, create_image, needs_qemu, run

from vmfs.repo.repository import Point

pytestmark = needs_qemu


def inconsistent(image: Path, format: str) -> list[str]:
    """Bitmaps that qemu could not save: as long as there are any, it does not resize the image."""
    details = json.loads(run("qemu-img", "info", "--output=json", "-f", format, image))
    bitmaps = details.get("format-specific", {}).get("data", {}).get("bitmaps", [])
    return [bitmap["name"] for bitmap in bitmaps if "in-use" in bitmap["flags"]]


class Guest:
    """The export has the bitmap by the name of its checkpoint, as libvirt's `exportbitmap` can say.

    `format` raw has bitmaps that last as long as its process; those of qcow2 outlive it."""

    def __init__(self, taken: History, format: str, size: int = 20 * CHUNK) -> None:
        self.taken = taken
        self.format = format
        self.image = create_image(taken.folder / "disk", format, size)
        self.model = Model(bytearray(size))
        self.points: list[tuple[str, Point]] = []
        self.usable: set[str] = set()
        """Checkpoints whose bitmaps are as qemu made them."""
        self.daemon = self.start()

    def start(self) -> StorageDaemon:
        return StorageDaemon(self.taken.folder, self.image, self.format)

    def live(self, step: Step) -> None:
        if step.other == 2:
            self.daemon.kill()
            self.usable.clear()
            self.daemon = self.start()
        if step.other == 3 or step.resize:
            self.daemon.close()
            if step.resize:
                for name in inconsistent(self.image, self.format):
                    run("qemu-img", "bitmap", "--remove", self.image, name)
                self.model.resize_image(self.image, self.format, step.resize)
            if self.format == "raw":
                self.usable.clear()
            self.daemon = self.start()
        self.write(self.model.ops(step.strokes))

    def write(self, ops: Sequence[Op]) -> None:
        if ops:
            self.daemon.io(*(op.for_qemu_io() for op in ops))
            self.model.apply(ops)

    def back_up(self, step: Step) -> None:
        number = len(self.points)
        name = f"chk{number}"
        base, parent = self.points[-min(step.lag, number)] if number else (None, None)
        since = base if base in self.usable else None
        uri = self.daemon.begin_backup(
            since=since, exported=since or "", checkpoint=name, persistent=self.format == "qcow2"
        )
        options = ["--checkpoint", name, *(["--bitmap", base] if base else []), f"vda={uri}"]
        content = bytes(self.model.content)
        touched = set(self.model.touched.get(base or "", ()))
        size = self.model.size
        self.model.touched[name] = set()
        self.usable.add(name)
        # The guest goes on; the backup is of the disk as it was. While it runs, qemu drops discards.
        self.write([op for op in self.model.ops(step.late) if op.kind != "discard"])
        zeros = known_zero(size, uri)
        broken = parent is not None and (since is None or self._resized(parent))
        if broken:
            refused = self.taken.try_ingest(*options)
            assert refused.status == 1
            assert "bitmap" in refused.err
            assert self.taken.repository.point_ids() == list(self.taken.kept)
            options.append("--heal")
        point = self.taken.check(self.taken.try_ingest(*options), {"vda": content})
        self.daemon.end_backup()
        (disk,) = point.manifest.disks
        if parent and not broken:
            assert (disk.mode, disk.full_reason) == ("incremental", None)
            assert point.manifest.parent == parent.id
        else:
            assert disk.mode == "full"
            assert bool(disk.full_reason) == bool(parent)
            touched = set(range(-(-size // CHUNK)))
        read = touched - zeros
        assert disk.bytes_read == sum(min(CHUNK, size - number * CHUNK) for number in read)
        self.points.append((name, point))

    def _resized(self, parent: Point) -> bool:
        later = {point.manifest.disks[0].size for _, point in self.points if point.id >= parent.id}
        return later != {self.model.size}

    def finish(self) -> None:
        self.daemon.close()
        # The model is right: what the last point would have is what is on the disk.
        assert different(content_of(self.image, self.format), self.model.content) == []
        self.taken.check_all()


@pytest.mark.parametrize("format", ["qcow2", "raw"])
@settings(history_settings, max_examples=3)
@given(steps=histories())
def test_checkpoints_of_a_running_vm(format: str, steps: list[Step]) -> None:
    with history() as taken:
        guest = Guest(taken, format)
        try:
            live_through(guest, steps)
            guest.finish()
        finally:
            if guest.daemon.process.poll() is None:
                guest.daemon.kill()


@pytest.mark.parametrize("format", ["qcow2", "raw"])
def test_dirty_and_zero(format: str) -> None:
    """What changed to zeros must not be taken for what did not change."""
    with history() as taken:
        guest = Guest(taken, format)
        try:
            guest.write([Op("write", 0, 20 * CHUNK, 0x55)])
            guest.back_up(QUIET)
            guest.write(TO_ZEROS)
            guest.back_up(QUIET)
            (disk,) = guest.points[-1][1].manifest.disks
            assert disk.mode == "incremental"
            assert disk.allocated == 13 * CHUNK
            guest.write([Op("discard", 0, 20 * CHUNK)])
            # Written again while the backup of the zeros runs.
            guest.back_up(QUIET._replace(late=(Stroke("write", 0, 0, 1000, 0x77),)))
            (disk,) = guest.points[-1][1].manifest.disks
            assert (disk.mode, disk.root, disk.allocated) == ("incremental", None, 0)
            guest.back_up(QUIET)
            guest.finish()
        finally:
            if guest.daemon.process.poll() is None:
                guest.daemon.kill()


def test_two_disks_of_a_running_vm_by_a_bitmap_of_any_name() -> None:
    """Without checkpoints, the bitmap is told from the newest point on; a disk that was not in it is read in
    full."""
    with history() as taken:
        image = create_image(taken.folder / "vda", "qcow2", 5 * CHUNK)
        other = create_image(taken.folder / "vdb", "qcow2", 3 * CHUNK + 512)
        vda, vdb = Model(bytearray(5 * CHUNK)), Model(bytearray(3 * CHUNK + 512))
        with (
            StorageDaemon(taken.folder, image, "qcow2") as first,
            StorageDaemon(taken.folder, other, "qcow2") as second,
        ):
            first.io(f"write -P 1 0 {5 * CHUNK}")
            vda.apply([Op("write", 0, 5 * CHUNK, 1)])
            one = first.begin_backup(checkpoint="inc")
            taken.ingest({"vda": vda}, f"vda={one}")
            first.end_backup()
            first.io(f"write -P 2 {CHUNK - 1} 2")
            vda.apply([Op("write", CHUNK - 1, 2, 2)])
            one = first.begin_backup(since="inc")
            two = second.begin_backup()
            point = taken.ingest({"vda": vda, "vdb": vdb}, "--bitmap", "changed", f"vda={one}", f"vdb={two}")
            first.end_backup()
            second.end_backup()
        modes = [(disk.mode, disk.bytes_read) for disk in point.manifest.disks]
        assert modes == [("incremental", 2 * CHUNK), ("full", 0)]
        taken.check_all()
