"""diff: what changed between two points, by disk, volume and file, beside what was changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from command_helpers import Site
from recovery_helpers import MIB, Filled, make_disk, mounted, needs_guests, run, vmfs

from vmfs.cli.guest_arguments import open_guest
from vmfs.recovery.difference import Comparison
from vmfs.repo import names
from vmfs.volumes.files.client import FileSystem

CHUNK = 64 << 10
PARTITIONS = (
    Filled(64, ["mkfs.ext4", "-q"], "/"),
    Filled(40, ["mkfs.xfs", "-q", "-L", "home"], "/home"),
    Filled(32, ["mkfs.ext4", "-q", "-L", "srv"], "/srv"),
)


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Disks of noise, of which some blocks change; one grows, one goes, one comes."""
    site = Site(tmp_path_factory.mktemp("site"))
    site.init()
    disks = {name: site.root / name for name in ("vda", "vdb", "vdc", "vdd")}
    for path in disks.values():
        path.write_bytes(os.urandom(2 * MIB))
    site.ingest("web", *(f"{name}={disks[name]}" for name in ("vda", "vdb", "vdc")))
    with disks["vda"].open("r+b") as file:
        for offset in (5, CHUNK, 10 * CHUNK - 1):
            file.seek(offset)
            file.write(b"xx")
    with disks["vdb"].open("r+b") as file:
        # Beyond what one node of the map can hold, so that the maps are not of one height.
        file.truncate(20 * MIB)
        file.seek(19 * MIB)
        file.write(b"new")
    site.ingest("web", *(f"{name}={disks[name]}" for name in ("vda", "vdb", "vdd")))
    return site


def test_changed_ranges_of_disks(blocks: Site) -> None:
    first, second = points(blocks)
    disks = {item["disk"]: item for item in blocks.vmfs("diff", first, second, "--json").json()["disks"]}
    ranges = {
        name: [(part["start"], part["length"]) for part in item["ranges"]] for name, item in disks.items()
    }
    assert ranges == {
        "vda": [(0, 2 * CHUNK), (9 * CHUNK, 2 * CHUNK)],
        "vdb": [(19 * MIB, CHUNK)],
        "vdc": [(0, 2 * MIB)],
        "vdd": [(0, 2 * MIB)],
    }
    assert disks["vda"]["changed"] == 4 * CHUNK
    assert (disks["vdb"]["size_before"], disks["vdb"]["size_after"]) == (2 * MIB, 20 * MIB)
    assert (disks["vdc"]["size_after"], disks["vdd"]["size_before"]) == (None, None)
    back = {
        item["disk"]: item["changed"] for item in blocks.vmfs("diff", second, first, "--json").json()["disks"]
    }
    assert back == {name: item["changed"] for name, item in disks.items()}
    assert "256.0 KiB" in blocks.vmfs("diff", first, second).out


def test_disks_in_another_order(tmp_path: Path) -> None:
    """A disk is known by its id first, whatever it is called now, and its volumes go with it."""
    site = Site(tmp_path)
    site.init()
    disks = {name: tmp_path / name for name in ("one", "two")}
    for label, path in disks.items():
        with path.open("wb") as file:
            file.truncate(4 * MIB)
        run("mkfs.ext4", "-q", "-L", label, path)
    site.ingest("web", *(f"{name}={path}" for name, path in disks.items()))
    with disks["two"].open("r+b") as file:
        file.seek(3 * MIB)
        file.write(b"new")
    site.ingest("web", *(f"{name}={disks[name]}" for name in ("two", "one")))
    first, second = points(site)
    volumes = {
        item["volume"]: (item["key"], item["changed"])
        for item in site.vmfs("diff", "--volumes", first, second, "--json").json()["volumes"]
    }
    assert volumes == {"two": ("0", CHUNK), "one": ("1", 0)}


def test_no_data_is_read_for_it(blocks: Site) -> None:
    """Whatever holds the data may be gone: the maps are in packs of their own."""
    first, second = points(blocks)
    before = blocks.vmfs("diff", first, second, "--json").json()
    packs = [path for path in (blocks.repository / "packs").rglob("*") if path.is_file()]
    largest = sorted(packs, key=lambda path: path.stat().st_size)[-1]
    aside = largest.with_name("aside")
    largest.rename(aside)
    try:
        assert blocks.vmfs("diff", first, second, "--json").json() == before
    finally:
        aside.rename(largest)


def test_wrong_use(blocks: Site) -> None:
    for words in (
        ["web@latest"],
        ["web@latest", "web@latest", "/etc"],
        ["web@latest", "web@latest", "--contents"],
    ):
        done = blocks.vmfs("diff", *words)
        assert (done.status, done.err.count("\n")) == (2, 1)


def points(site: Site) -> list[str]:
    return [item["id"] for item in site.vmfs("points", "--json").json()["points"]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A guest that works a day, but not on /srv."""
    site = Site(tmp_path_factory.mktemp("site"))
    site.init()
    disk = site.root / "disk.raw"
    make_disk(disk, PARTITIONS)
    with mounted(disk, PARTITIONS, site.root / "guest") as guest:
        (guest / "etc").mkdir()
        (guest / "usr").mkdir()
        (guest / "etc/fstab").write_text("/dev/vda1 / ext4\nLABEL=home /home xfs\nLABEL=srv /srv ext4\n")
        for name in ("same", "changed", "touched", "chmod", "chown", "attribute", "gone", "sneaky", "kind"):
            (guest / "etc" / name).write_bytes(os.urandom(10_000))
        os.utime(guest / "etc/sneaky", ns=(0, 0))
        (guest / "home/joe").mkdir()
        (guest / "home/joe/mail").write_text("mail")
        (guest / "home/old/deep").mkdir(parents=True)
        (guest / "home/old/deep/file").write_text("x")
        (guest / "etc/link").symlink_to("same")
        (guest / "srv/data").write_bytes(os.urandom(MIB))
    site.ingest("web", f"vda={disk}")
    # Read-only there, so that not even the time of mounting is written.
    parts = (*PARTITIONS[:2], PARTITIONS[2]._replace(options="ro"))
    with mounted(disk, parts, site.root / "guest") as guest:
        etc = guest / "etc"
        with (etc / "changed").open("r+b") as file:
            file.write(b"!")
        os.utime(etc / "touched", ns=(7, 7))
        (etc / "chmod").chmod(0o600)
        os.chown(etc / "chown", 12, 34)
        run("setfattr", "-n", "user.x", "-v", "y", etc / "attribute")
        (etc / "gone").unlink()
        (etc / "sneaky").write_bytes(os.urandom(10_000))
        os.utime(etc / "sneaky", ns=(0, 0))
        (etc / "kind").unlink()
        (etc / "kind").mkdir()
        (etc / "link").unlink()
        (etc / "link").symlink_to("changed")
        (guest / "home/joe/mail").rename(guest / "home/joe/read")
        for path in ("home/old/deep/file",):
            (guest / path).unlink()
        (guest / "home/old/deep").rmdir()
        (guest / "home/old").rmdir()
        (guest / "home/new").mkdir()
        (guest / "home/new/file").write_text("x")
    site.ingest("web", f"vda={disk}")
    return site


@needs_guests
def test_volumes(files: Site) -> None:
    first, second = points(files)
    facts = files.vmfs("diff", "--volumes", first, second, "--json").json()["volumes"]
    changed = {item["volume"]: item["changed"] for item in facts}
    assert changed["vda-p3"] == 0
    assert 0 < changed["vda-p1"] < 8 * MIB
    assert 0 < changed["vda-p2"] < 8 * MIB


@needs_guests
def test_changed_files(files: Site) -> None:
    first, second = points(files)
    facts = files.vmfs("diff", "--files", first, second, "--json").json()
    found = {item["path"]: (item["change"], set(item["what"])) for item in facts["files"]}
    assert found == {
        "/etc/changed": ("changed", {"content", "time"}),
        "/etc/touched": ("changed", {"time"}),
        "/etc/chmod": ("changed", {"mode"}),
        "/etc/chown": ("changed", {"owner"}),
        "/etc/attribute": ("changed", {"attributes"}),
        "/etc/gone": ("removed", set()),
        "/etc/sneaky": ("changed", {"content"}),
        "/etc/kind": ("changed", {"type"}),
        "/etc/link": ("changed", {"target", "time"}),
        "/home/joe/mail": ("removed", set()),
        "/home/joe/read": ("added", set()),
        "/home/new": ("added", set()),
        "/home/new/file": ("added", set()),
        "/home/old": ("removed", set()),
        "/home/old/deep": ("removed", set()),
        "/home/old/deep/file": ("removed", set()),
    }


@needs_guests
def test_changed_files_below_a_path(files: Site) -> None:
    first, second = points(files)
    assert vmfs(files, "diff", "--files", first, second, "/home/joe").out.splitlines() == [
        "- /home/joe/mail",
        "+ /home/joe/read",
        "1 file added, 1 file removed, 0 files changed",
    ]
    assert vmfs(files, "diff", "--files", first, second, "/home/new").out.splitlines()[:-1] == [
        "+ /home/new",
        "+ /home/new/file",
    ]
    assert vmfs(files, "diff", "--files", "--contents", first, second, "vda-p3:/").out == "No file differs.\n"
    nothing = vmfs(files, "diff", "--files", first, second, "/home/nobody")
    assert (nothing.status, nothing.err.count("\n")) == (1, 1)


@needs_guests
def test_unchanged_volumes_are_not_read(files: Site) -> None:
    """Not even their root is listed."""
    used: list[FileSystem] = []
    with files.open() as repository:
        before, after = (repository.load_point(point) for point in points(files))
        with open_guest(repository, before) as old, open_guest(repository, after) as new:
            trees = [guest.locate("vda-p3:/")[0] for guest in (old, new)]
            for tree in trees:
                tree.root.system.on_use = used.append
            for same in (False, True):
                used.clear()
                comparison = Comparison(*trees, pytest.fail, same=lambda old, new, same=same: same)
                assert list(comparison.changes(trees[0].root, trees[1].root)) == []
                assert bool(used) is not same


@needs_guests
def test_damage_has_its_exit_status(files: Site, tmp_path: Path) -> None:
    """A byte of the very chunk that the middle of a file is in."""
    whole = tmp_path / "whole"
    assert vmfs(files, "cp", "web@latest", "/srv/data", whole).status == 0
    part = whole.read_bytes()[MIB // 2 :][:64]
    with files.open() as repository:
        (disk,) = repository.load_point(points(files)[1]).manifest.disks
        offset = (files.root / "disk.raw").read_bytes().index(part)
        (chunk,) = repository.open_disk(disk).chunk_ids(offset // CHUNK, 1)
        assert chunk is not None
        location = repository.index.find(chunk)
    assert location is not None
    pack = files.repository / names.pack(location.pack)
    content = pack.read_bytes()
    at = location.offset + location.length // 2
    pack.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    try:
        done = vmfs(files, "cp", "-a", "web@latest", "/srv/data", tmp_path / "data")
        assert (done.status, os.listdir(tmp_path)) == (3, ["whole"])
        assert f"packs/{pack.parent.name}/{pack.name}" in done.err
        cat = vmfs(files, "cat", "web@latest", "/srv/data")
        assert cat.status == 3
        assert whole.read_bytes().startswith(cat.out.encode("latin-1"))
        archive = vmfs(files, "tar", "web@latest", "/srv")
        assert archive.status == 3
        assert "the archive has zeros" in archive.err
    finally:
        pack.write_bytes(content)
