"""Which restore point an incremental starts from, and what happens to a broken chain."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
from mount_helpers import damage
from qemu_helpers import create_image, needs_qemu, qemu_io, run

from ingest.chain import Parent, find_parent, plan_disks
from ingest.pipeline import PlannedDisk, ingest
from ingest.sources.base import BitmapError, SourceError
from ingest.sources.file import FileSource
from ingest.sources.spec import DiskSpec
from vmfs.errors import UsageError
from vmfs.format.manifest import Vm
from vmfs.repo import names
from vmfs.repo.repository import Point, Repository

MIB = 1 << 20


class Site:
    def __init__(self, repository: Repository, tmp: Path) -> None:
        self.repository = repository
        self.tmp = tmp

    def point(self, checkpoint: str | None, *, size: int = MIB, aliases: tuple[str, ...] = ("a",)) -> Point:
        path = self.tmp / "disk.raw"
        path.write_bytes(bytes(size))
        source = FileSource(path)
        try:
            disks = [PlannedDisk(alias, source, None, checkpoint) for alias in aliases]
            return ingest(self.repository, Vm(name="web", id="web"), disks)
        finally:
            source.close()

    def find(self, bitmap: str) -> Parent | None:
        return find_parent(self.repository, reversed(self.repository.point_ids()), bitmap)


@pytest.fixture
def site(repository: Repository, tmp_path: Path) -> Site:
    return Site(repository, tmp_path)


def test_no_point_yet(site: Site) -> None:
    assert site.find("b") is None


def test_the_point_of_that_checkpoint(site: Site) -> None:
    points = [site.point(f"chk{number}") for number in range(3)]
    for number, point in enumerate(points):
        assert site.find(f"chk{number}") == Parent(point, frozenset())


def test_of_two_points_of_one_checkpoint_the_newer(site: Site) -> None:
    site.point("chk")
    newer = site.point("chk")
    site.point("other")
    assert site.find("chk") == Parent(newer, frozenset())


def test_without_checkpoints_the_newest(site: Site) -> None:
    site.point(None)
    newest = site.point(None)
    assert site.find("b") == Parent(newest, frozenset())


def test_a_checkpoint_that_no_point_has(site: Site) -> None:
    site.point("chk0")
    with pytest.raises(BitmapError, match=r"no restore point of this VM was taken at checkpoint 'chk1'"):
        site.find("chk1")
    # Since then points are taken without: the user keeps the bitmap in step.
    newest = site.point(None)
    assert site.find("chk1") == Parent(newest, frozenset())


def test_a_damaged_point_that_may_be_the_newest(site: Site) -> None:
    """The bitmap may have been begun with it, and knows nothing of what changed before."""
    older = site.point(None)
    lost = site.point(None).id
    damage(site.repository, names.point(lost))
    with pytest.raises(BitmapError, match=rf"{lost} is damaged and may be the one that bitmap 'b'"):
        site.find("b")
    with pytest.raises(BitmapError, match="is damaged"):
        find_parent(site.repository, [older.id], "b", damaged=[lost])
    newest = site.point(None)
    assert site.find("b") == Parent(newest, frozenset())


def test_damaged_points_are_passed_over_in_search_of_a_checkpoint(site: Site) -> None:
    older = site.point("chk")
    damage(site.repository, names.point(site.point("other").id))
    assert site.find("chk") == Parent(older, frozenset())


def test_disks_that_were_resized_later(site: Site) -> None:
    parent = site.point("chk0", aliases=("a", "b", "c"))
    site.point("chk1", size=2 * MIB, aliases=("a", "d"))
    site.point("chk2", aliases=("a", "b"))
    assert site.find("chk0") == Parent(parent, frozenset({"a"}))


def plan(
    specs: list[DiskSpec], parent: Parent | None, *, heal: bool = False
) -> list[tuple[str, bool, str | None]]:
    """Of each disk its alias, whether it is read in full, and why."""
    with ExitStack() as opened:
        planned = plan_disks(specs, parent, bitmap="inc", checkpoint=None, heal=heal, opened=opened)
        return [(disk.alias, disk.base is None, disk.full_reason) for disk in planned]


@needs_qemu
def test_every_disk_of_its_own(site: Site) -> None:
    """One has its bitmap, one is new, one has another size, one has no bitmap, one was resized and back."""
    parent_point = site.point(None, aliases=("good", "larger", "bare", "back"))
    parent = Parent(parent_point, frozenset({"back"}))
    specs = []
    for alias, size in (("good", MIB), ("new", MIB), ("larger", 2 * MIB), ("bare", MIB), ("back", MIB)):
        image = create_image(site.tmp / f"{alias}.qcow2", "qcow2", size)
        if alias != "bare":
            run("qemu-img", "bitmap", "--add", image, "inc")
        qemu_io(image, "qcow2", "write 0 64k")
        specs.append(DiskSpec(alias, str(image)))
    planned = plan(specs, parent, heal=True)
    assert planned[:2] == [("good", False, None), ("new", True, f"not in restore point {parent_point.id}")]
    for (alias, full, reason), told in zip(
        planned[2:], ("another size", "does not exist", "and back"), strict=True
    ):
        assert full, alias
        assert reason
        assert told in reason
    for spec, told in zip(specs[2:], ("another size", "does not exist", "and back"), strict=True):
        with pytest.raises(BitmapError, match=told):
            plan([spec], parent)
    assert plan(specs[:1], None) == [("good", True, "no restore point of this VM yet")]


def test_a_disk_that_cannot_be_opened_is_not_healed(site: Site) -> None:
    parent = Parent(site.point(None), frozenset())
    with pytest.raises(SourceError, match="does not exist"):
        plan([DiskSpec("a", str(site.tmp / "nothing.raw"))], parent, heal=True)


def test_two_disks_of_one_name(site: Site) -> None:
    specs = [DiskSpec("a", str(site.tmp / name)) for name in ("x", "y")]
    with pytest.raises(UsageError, match="two disks are called 'a'; tell them apart with ALIAS="):
        plan(specs, None)
