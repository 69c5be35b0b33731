"""Histories of qcow2 images that no VM has open, with persistent dirty bitmaps, by way of qemu-nbd."""

from __future__ import annotations

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
    histories,
    history,
    history_settings,
    known_zero,
    live_through,
)
from hypothesis import given, settings
from qemu_helpers import create_image, needs_qemu, qemu_io, run

from vmfs.repo.repository import Point

pytestmark = needs_qemu


class Guest:
    """Two disks. The second is there at some of the points only; the first is resized now and then.

    With `checkpoints`, a new bitmap begins with every point and has its name; else there is one bitmap, which
    is cleared after every point.
    """

    def __init__(self, taken: History, *, checkpoints: bool, size: int = 20 * CHUNK) -> None:
        self.taken = taken
        self.checkpoints = checkpoints
        self.models = {"a": Model(bytearray(size)), "b": Model(bytearray(9 * CHUNK + 512))}
        self.points: list[tuple[str, Point]] = []
        """With the names of the bitmaps that tell the changes since."""
        for alias, model in self.models.items():
            create_image(self.image(alias), "qcow2", model.size)

    def image(self, alias: str) -> Path:
        return self.taken.folder / f"{alias}.qcow2"

    def live(self, step: Step) -> None:
        model = self.models["a"]
        if step.resize and step.resize != model.size:
            model.resize_image(self.image("a"), "qcow2", step.resize)
        self.write("a", model.ops(step.strokes))
        self.write("b", self.models["b"].ops(step.late))

    def write(self, alias: str, ops: Sequence[Op]) -> None:
        if ops:
            qemu_io(self.image(alias), "qcow2", *(op.for_qemu_io() for op in ops))
            self.models[alias].apply(ops)

    def back_up(self, step: Step) -> None:
        models = {alias: self.models[alias] for alias in ("a", "b")[: 1 + step.second]}
        images = [self.image(alias) for alias in models]
        name = f"chk{len(self.points)}" if self.checkpoints else "since"
        options = ["--checkpoint", name] if self.checkpoints else []
        base, parent = self._choose(step.lag)
        if base:
            options += ["--bitmap", base]
        broken = {alias for alias in models if parent and self._resized(alias, parent)}
        if broken:
            refused = self.taken.try_ingest(*options, *images)
            assert refused.status == 1
            assert "size" in refused.err
            assert self.taken.repository.point_ids() == list(self.taken.kept)
            options.append("--heal")
        point = self.taken.ingest(models, *options, *images)
        for disk in point.manifest.disks:
            model = models[disk.alias]
            known = parent is not None and parent.manifest.disk(disk.alias) is not None
            zeros = known_zero(model.size, "-f", "qcow2", str(self.image(disk.alias)))
            if known and disk.alias not in broken:
                assert (disk.mode, disk.full_reason) == ("incremental", None)
                assert disk.bytes_read == model.chunk_bytes(model.touched[base or ""] - zeros)
            else:
                assert disk.mode == "full"
                assert (disk.full_reason is None) == (parent is None)
                everything = set(range(-(-model.size // CHUNK)))
                assert disk.bytes_read == model.chunk_bytes(everything - zeros)
        for alias, model in models.items():
            if self.checkpoints or name not in model.touched:
                run("qemu-img", "bitmap", "--add", self.image(alias), name)
            else:
                run("qemu-img", "bitmap", "--clear", self.image(alias), name)
            model.touched[name] = set()
        self.points.append((name, point))

    def _choose(self, lag: int) -> tuple[str | None, Point | None]:
        """The bitmap to go by, and the point that it belongs to."""
        if not self.points:
            return None, None
        return self.points[-min(lag if self.checkpoints else 1, len(self.points))]

    def _resized(self, alias: str, parent: Point) -> bool:
        """Whether the disk had another size since then. A disk that the parent has not is read in full
        anyway."""
        base = parent.manifest.disk(alias)
        later = (point.manifest.disk(alias) for _, point in self.points if point.id >= parent.id)
        sizes = {disk.size for disk in later if disk} | {self.models[alias].size}
        return base is not None and len(sizes) > 1


@settings(history_settings, max_examples=2)
@given(histories())
def test_one_bitmap_that_is_cleared(steps: list[Step]) -> None:
    with history() as taken:
        guest = Guest(taken, checkpoints=False)
        live_through(guest, steps)
        taken.check_all()


@settings(history_settings, max_examples=3)
@given(histories())
def test_a_bitmap_for_each_checkpoint(steps: list[Step]) -> None:
    with history() as taken:
        guest = Guest(taken, checkpoints=True)
        live_through(guest, steps)
        taken.check_all()


def test_dirty_and_zero() -> None:
    """What changed to zeros must not be taken for what did not change."""
    with history() as taken:
        guest = Guest(taken, checkpoints=True)
        guest.write("a", [Op("write", 0, 20 * CHUNK, 0x55)])
        guest.back_up(QUIET)
        guest.write(
            "a",
            TO_ZEROS,
        )
        guest.back_up(QUIET)
        (disk, _) = guest.points[-1][1].manifest.disks
        assert (disk.mode, disk.allocated) == ("incremental", 13 * CHUNK)
        # 7, 9, 10, 11 and 14: the others are known to be zeros.
        assert disk.bytes_read == 5 * CHUNK
        guest.write("a", [Op("discard", 0, 20 * CHUNK)])
        guest.back_up(QUIET)
        (disk, _) = guest.points[-1][1].manifest.disks
        assert (disk.root, disk.allocated, disk.bytes_read) == (None, 0, 0)
        taken.check_all()


def test_an_incremental_of_nothing() -> None:
    with history() as taken:
        guest = Guest(taken, checkpoints=True)
        guest.write("a", [Op("write", 3 * CHUNK, 5 * CHUNK, 0x11)])
        guest.back_up(QUIET)
        packs = sorted((taken.site.repository / "packs").rglob("*"))
        guest.back_up(QUIET)
        first, second = (point.manifest.disks for _, point in guest.points)
        assert [disk.root for disk in second] == [disk.root for disk in first]
        assert [(disk.mode, disk.bytes_read, disk.bytes_stored) for disk in second] == [
            ("incremental", 0, 0)
        ] * 2
        assert sorted((taken.site.repository / "packs").rglob("*")) == packs


@pytest.mark.parametrize("back", [True, False])
def test_a_disk_that_was_resized_and_maybe_back(back: bool) -> None:
    """qemu's bitmaps do not tell what a disk lost and got back as zeros."""
    with history() as taken:
        guest = Guest(taken, checkpoints=True)
        step = QUIET._replace(second=False)
        guest.write("a", [Op("write", 0, 20 * CHUNK, 0x55)])
        guest.back_up(step)
        guest.live(step._replace(resize=7 * CHUNK))
        guest.back_up(step)
        if back:
            guest.live(step._replace(resize=20 * CHUNK))
        refused = taken.try_ingest("--bitmap", "chk0", guest.image("a"))
        assert refused.status == 1
        assert "size" in refused.err.splitlines()[-1]
        guest.back_up(step._replace(lag=2))
        disk = guest.points[-1][1].manifest.disks[0]
        assert disk.mode == "full"
        assert disk.full_reason
        taken.check_all()
