"""The tree over a real repository, without FUSE."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest
from mount_helpers import MIB, WHEN, add_point, damage, needs_sfdisk, partitioned
from test_fs_names import row

from vmfs.catalog import Catalog
from vmfs.errors import IntegrityError
from vmfs.fs.entries import Children, Entry, Role
from vmfs.fs.inodes import Inodes
from vmfs.fs.listing import build
from vmfs.fs.points import Points
from vmfs.fs.tree import Tree
from vmfs.repo import names
from vmfs.repo.repository import Repository


def make_tree(repository: Repository, tmp_path: Path) -> Tree:
    with Catalog.open(tmp_path / "catalog", repository.id) as catalog:
        damaged = catalog.sync(repository)
        return Tree(build(catalog.points(), damaged, 1), Points(repository))


def inside(tree: Tree, entry: Entry) -> Children:
    known = tree.children(entry)
    return tree.load(entry) if known is None else known


def find(tree: Tree, path: str) -> Entry:
    entry = tree.listing.root
    for name in path.split("/"):
        entry = inside(tree, entry)[name.encode()]
    return entry


def read_all(tree: Tree, path: str) -> bytes:
    content = tree.open(find(tree, path))
    return content.read(0, content.size)


@needs_sfdisk
def test_everything_of_a_point(repository: Repository, tmp_path: Path) -> None:
    image = partitioned(tmp_path / "disk")
    point = add_point(
        repository, {"sda": image, "sdb": b"\1" * MIB}, artifacts={"vm.ovf": b"<xml/>", "empty": b""}
    )
    tree = make_tree(repository, tmp_path)
    top = find(tree, "web/2026-11-20T100000Z")
    assert tree.children(top) is None
    assert set(inside(tree, top)) == {
        b"disks",
        b"volumes",
        b"files",
        b"point.json",
        b"vm.ovf",
        b"empty",
    }
    assert tree.children(top) is not None
    assert set(inside(tree, find(tree, "web/2026-11-20T100000Z/disks"))) == {b"sda.raw", b"sdb.raw"}
    volumes = inside(tree, find(tree, "web/2026-11-20T100000Z/volumes"))
    assert set(volumes) == {b"sda-p1.raw", b"sda-p2.raw"}
    assert read_all(tree, "web/2026-11-20T100000Z/disks/sda.raw") == image.read_bytes()
    assert (
        read_all(tree, "web/2026-11-20T100000Z/volumes/sda-p2.raw") == image.read_bytes()[5 * MIB : 13 * MIB]
    )
    assert read_all(tree, "web/2026-11-20T100000Z/vm.ovf") == b"<xml/>"
    assert read_all(tree, "web/2026-11-20T100000Z/empty") == b""
    facts = json.loads(read_all(tree, "web/2026-11-20T100000Z/point.json"))
    assert facts["id"] == point.id
    assert facts["time"] == "2026-11-20T10:00:00.250000+00:00"
    assert facts["vm"]["name"] == "web"
    assert [disk["file"] for disk in facts["disks"]] == ["disks/sda.raw", "disks/sdb.raw"]
    disk = find(tree, "web/2026-11-20T100000Z/disks/sdb.raw")
    assert (disk.size, disk.allocated) == (MIB, MIB)
    assert tree.present(find(tree, "web/2026-11-20T100000Z/point.json")).size == len(
        read_all(tree, "web/2026-11-20T100000Z/point.json")
    )


@needs_sfdisk
def test_reads_stay_within_a_volume(repository: Repository, tmp_path: Path) -> None:
    image = partitioned(tmp_path / "disk", script="label: dos\nstart=2049,size=1001\n")
    data = image.read_bytes()[2049 * 512 : 3050 * 512]
    add_point(repository, {"sda": image})
    tree = make_tree(repository, tmp_path)
    entry = find(tree, "web/latest")
    assert entry.role is Role.LATEST
    content = tree.open(find(tree, "web/2026-11-20T100000Z/volumes/sda-p1.raw"))
    assert content.size == len(data)
    assert content.read(0, 5000) == data[:5000]
    assert content.read(len(data) - 10, 100) == data[-10:]
    assert content.cached(len(data) - 10, 100) == data[-10:]
    assert content.read(len(data), 10) == b""
    assert content.read(2 * len(data), 10) == b""


def test_artifacts_that_are_called_as_our_own(repository: Repository, tmp_path: Path) -> None:
    add_point(repository, {"sda": bytes(512)}, artifacts={"disks": b"x", "point.json": b"y"})
    tree = make_tree(repository, tmp_path)
    found = inside(tree, find(tree, "web/2026-11-20T100000Z"))
    assert [entry.role for name, entry in found.items() if name == b"disks"] == [Role.DISKS]
    others = [name for name, entry in found.items() if entry.role is Role.ARTIFACT]
    assert len(others) == 2
    assert others[0].startswith(b"disks-")
    assert others[1].startswith(b"point-")
    assert others[1].endswith(b".json")


def test_odd_aliases(repository: Repository, tmp_path: Path) -> None:
    long, hidden = "x" * 255, ".hidden"
    add_point(repository, {long: bytes(512), hidden: bytes(512), "_hidden": bytes(512)})
    tree = make_tree(repository, tmp_path)
    found = inside(tree, find(tree, "web/2026-11-20T100000Z/disks"))
    assert set(found) == {b"x" * 251 + b".raw", b"_hidden.raw", b"_hidden-.hidden.raw"}


def test_damaged_manifest(repository: Repository, tmp_path: Path) -> None:
    """Seen before the damage: the directory stays, with nothing readable in it. Seen after: it is shown
    apart."""
    bad = add_point(repository, {"sda": b"\1" * 512})
    add_point(repository, {"sda": b"\2" * 512}, time=WHEN + timedelta(hours=1))
    tree = make_tree(repository, tmp_path)
    damage(repository, names.point(bad.id))
    for _ in range(2):
        with pytest.raises(IntegrityError, match=names.point(bad.id)):
            inside(tree, find(tree, "web/2026-11-20T100000Z"))
    assert read_all(tree, "web/2026-11-20T110000Z/disks/sda.raw") == b"\2" * 512
    (tmp_path / "catalog").unlink()
    later = make_tree(repository, tmp_path)
    assert set(inside(later, later.listing.root)) == {b"web", b"damaged"}
    with pytest.raises(IntegrityError, match=bad.id):
        inside(later, find(later, f"damaged/{bad.id}"))


@needs_sfdisk
def test_one_unreadable_table_leaves_the_other_disks_volumes(
    repository: Repository, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = partitioned(tmp_path / "good")
    bad = partitioned(tmp_path / "bad", script="label: dos\nsize=4M\n")
    point = add_point(repository, {"good": good, "bad": bad})
    first_chunk = repository.open_disk(point.manifest.disks[1]).chunk_ids(0, 1)[0]
    assert first_chunk is not None
    location = repository.index.find(first_chunk)
    assert location is not None
    damage(repository, names.pack(location.pack), location.offset + 200)
    tree = make_tree(repository, tmp_path)
    assert set(inside(tree, find(tree, "web/2026-11-20T100000Z/volumes"))) == {b"good-p1.raw", b"good-p2.raw"}
    assert "disk bad: no volumes" in caplog.text


def test_refresh_tells_what_is_gone() -> None:
    points = [row(1), row(2, WHEN + timedelta(hours=1)), row(3, vm="db", vm_id="db")]
    before = build(points, [], 1)
    tree = Tree(before, None)  # type: ignore[arg-type]
    vm = before.children[""][b"web"]
    number = tree.inodes.hold(vm)
    latest = tree.inodes.hold(before.children[vm.key][b"latest"])
    gone = tree.replace(build(points[:1], [], 1))
    assert {(name.parent, name.name) for name in gone} == {(number, b"2026-11-20T110000Z"), (1, b"db")}
    assert tree.inodes.entry(latest).target == b"2026-11-20T100000Z"
    assert tree.replace(build(points, [], 1)) == []
    assert tree.inodes.entry(latest).target == b"2026-11-20T110000Z"
    assert tree.children(before.children[""][b"db"]) is not None


def test_children_of_a_vm_that_is_gone() -> None:
    before = build([row(1)], [], 1)
    tree = Tree(before, None)  # type: ignore[arg-type]
    tree.replace(build([], [], 1))
    assert tree.children(before.children[""][b"web"]) == {}


def test_ten_thousand_points() -> None:
    points = [row(number, WHEN + timedelta(minutes=number)) for number in range(10_000)]
    listing = build(points, [], 1)
    tree = Tree(listing, None)  # type: ignore[arg-type]
    children = tree.children(listing.children[""][b"web"])
    assert children is not None
    held = [tree.inodes.hold(entry) for entry in children.values()]
    assert len(set(held)) == 10_001
    for number in held:
        tree.inodes.forget(number, 1)
    assert len(tree.inodes) == 1


def test_inode_numbers() -> None:
    root = Entry("", Role.ROOT, 0)
    one, two = Entry("one", Role.POINT, 0), Entry("two", Role.POINT, 0)
    inodes = Inodes(root)
    number = inodes.hold(one)
    assert inodes.number(one) == number == inodes.hold(one)
    assert inodes.hold(two) != number
    inodes.forget(number, 1)
    assert inodes.entry(number) is one
    inodes.forget(number, 1)
    with pytest.raises(KeyError):
        inodes.entry(number)
    assert inodes.hold(one) == number == Inodes(root).hold(one)
    inodes.forget(1, 1000)
    inodes.forget(12345, 1)
    assert inodes.entry(1) is root


def test_inode_numbers_that_collide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmfs.fs.inodes._BITS", 3)
    inodes = Inodes(Entry("", Role.ROOT, 0))
    entries = [Entry(str(number), Role.POINT, 0) for number in range(6)]
    numbers = [inodes.hold(entry) for entry in entries]
    assert len(set(numbers)) == 6
    assert [inodes.number(entry) for entry in entries] == numbers
