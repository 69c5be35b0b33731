"""points, show, stats and rebuild: what they say, and that it is the same after a rebuild."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from command_helpers import Site, spawn

MIB = 1 << 20


def make_site(root: Path) -> Site:
    """Three points: two of web, whose disk vdb grows and changes, and one of a VM with an unusual name."""
    site = Site(root)
    site.init()
    system, data = root / "system.raw", root / "data.raw"
    system.write_bytes(os.urandom(MIB))
    with data.open("wb") as file:
        file.truncate(8 * MIB)
        file.seek(3 * MIB)
        file.write(os.urandom(MIB // 2))
    (root / "domain.xml").write_text("<domain/>")
    site.ingest("web", f"vda={system}", f"vdb={data}", "--attach", root / "domain.xml")
    with data.open("r+b") as file:
        file.truncate(9 * MIB)
        file.write(os.urandom(MIB // 4))
    site.ingest("web", f"vda={system}", f"vdb={data}")
    site.ingest("größe: 日@本", f"vda={system}")
    return site


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return make_site(tmp_path_factory.mktemp("site"))


@pytest.fixture
def site(made: Site, tmp_path: Path) -> Site:
    """A copy, for tests that break something."""
    shutil.copytree(made.root, tmp_path / "copy")
    return Site(tmp_path / "copy")


def everything(site: Site) -> list[object]:
    """What the commands answer, but for what is of this machine and of no point."""
    points = site.vmfs("points", "--json").json()
    shown = [site.vmfs("show", point["id"], "--json").json() for point in points["points"]]
    stats = site.vmfs("stats", "--json").json()
    for volatile in ("cache", "repository", "objects", "stored", "ratio"):
        del stats[volatile]
    return [points, shown, stats, site.vmfs("points").out, site.vmfs("show", "web@latest").out]


def test_points_json(made: Site) -> None:
    facts = made.vmfs("points", "--json").json()
    assert facts["damaged"] == []
    first, second, third = facts["points"]
    assert [point["vm"] for point in facts["points"]] == ["web", "web", "größe: 日@本"]
    assert list(first) == [
        *("id", "vm", "vm_id", "engine", "time", "consistency", "parent", "producer", "signer"),
        *("disks", "artifacts"),
    ]
    assert first["time"].endswith("+00:00")
    assert first["artifacts"] == [{"name": "domain.xml", "size": 9}]
    (vda, vdb) = first["disks"]
    assert (vda["alias"], vda["size"], vda["allocated"], vda["bytes_new"]) == ("vda", MIB, MIB, MIB)
    assert (vdb["size"], vdb["allocated"]) == (8 * MIB, MIB // 2)
    assert [disk["bytes_new"] for disk in second["disks"]] == [0, MIB // 4]
    assert third["disks"][0]["bytes_stored"] == 0


def test_points_table(made: Site) -> None:
    lines = made.vmfs("points").out.splitlines()
    assert lines[0].split() == ["TIME", "VM", "ID", "MODE", "CONSISTENCY", "DISKS", "SIZE", "READ", "STORED"]
    assert len(lines) == 4
    # The newest: two may share the second that is shown, and it is the last of them that is meant.
    time, vm, point_id = lines[2].split()[:3]
    assert vm == "web"
    assert made.vmfs("show", f"web@{time}", "--json").json()["id"] == point_id


def test_points_of_one_vm(made: Site) -> None:
    assert len(made.vmfs("points", "--vm", "web", "--json").json()["points"]) == 2
    assert len(made.vmfs("points", "--vm", "größe: 日@本", "--json").json()["points"]) == 1
    done = made.vmfs("points", "--vm", "wbe")
    assert (done.status, done.out) == (2, "")
    assert done.err == "vmfs: there is no VM 'wbe' in the repository; there is 'web'\n"


def test_no_points_yet(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.init()
    assert site.vmfs("points", "--json").json() == {"points": [], "damaged": []}
    assert "no restore points yet" in site.vmfs("points").out
    assert site.vmfs("points", "--quiet").out == ""
    assert site.vmfs("stats").status == 0
    assert site.vmfs("rebuild").status == 0
    assert site.vmfs("show", "web@latest").status == 2


def test_show(made: Site) -> None:
    facts = made.vmfs("show", "web@latest", "--json").json()
    assert facts["vm"] == {"name": "web", "id": "web", "engine": None, "cluster": None}
    assert facts["key"] == "first"
    assert len(facts["signer"]) == 64
    assert [disk["alias"] for disk in facts["disks"]] == ["vda", "vdb"]
    text = made.vmfs("show", facts["id"][:10].lower() + facts["id"][10:]).out
    assert f"Point:       {facts['id']}\n" in text
    assert "Signed by:   key slot 'first'\n" in text
    assert "domain.xml" in made.vmfs("show", _ids(made)[0]).out


def _ids(site: Site) -> list[str]:
    return [point["id"] for point in site.vmfs("points", "--json").json()["points"]]


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (["nothing@latest"], "there is no VM 'nothing'"),
        (["web"], "'web' is a VM, not a point; write web@latest or web@TIME"),
        (["01"], "is no point; write an id"),
        (["web@1999"], "has no point at or before 1999"),
        ([], "takes a repository and one restore point"),
        (["web@latest", "web@latest"], "takes a repository and one restore point"),
    ],
)
def test_show_refusals(made: Site, specs: list[str], message: str) -> None:
    done = made.vmfs("show", *specs)
    assert (done.status, done.out) == (2, "")
    assert message in done.err
    assert done.err.count("\n") == 1


def test_ambiguous_prefix(made: Site) -> None:
    prefix = _ids(made)[0][:5]
    assert all(point_id.startswith(prefix) for point_id in _ids(made))
    done = made.vmfs("show", prefix)
    assert done.status == 2
    assert all(point_id in done.err for point_id in _ids(made))


def test_the_repository_may_come_from_the_environment(made: Site) -> None:
    environment = {**os.environ, "VMFS_REPOSITORY": str(made.repository), "VMFS_CACHE_DIR": str(made.cache)}
    environment["VMFS_PASSPHRASE_FILE"] = str(made.passphrase)
    done = spawn("vmfs", "show", "web@latest", "--json", env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["vm"]["name"] == "web"
    assert spawn("vmfs", "points", env=environment).stdout.decode() == made.vmfs("points").out


def test_stats(made: Site) -> None:
    facts = made.vmfs("stats", "--json").json()
    sizes = [path.stat().st_size for path in made.repository.rglob("*") if path.is_file()]
    assert facts["stored"] == sum(sizes)
    assert sum(kind["objects"] for kind in facts["objects"].values()) == len(sizes)
    assert facts["points"] == 3
    assert facts["size"] == (1 + 8 + 1 + 9 + 1) * MIB
    assert facts["data"] == 3 * MIB + MIB // 2 + MIB // 2 + MIB // 4
    assert [(vm["name"], vm["points"], vm["size"]) for vm in facts["vms"]] == [
        ("größe: 日@本", 1, MIB),
        ("web", 2, 10 * MIB),
    ]
    assert "3 of 2 VMs" in made.vmfs("stats").out


def test_wrong_passphrase(made: Site, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("battery staple")
    for command in (["points"], ["stats"], ["rebuild"], ["show", "web@latest"]):
        name, *rest = command
        done = spawn(
            "vmfs", name, made.repository, *rest, "--passphrase-file", wrong, "--cache-dir", tmp_path
        )
        assert done.returncode == 1
        assert b"wrong passphrase" in done.stderr
        assert done.stderr.count(b"\n") == 1


class TestRebuild:
    def test_cache_deleted(self, site: Site) -> None:
        before = everything(site)
        shutil.rmtree(site.cache)
        facts = site.vmfs("rebuild", "--json").json()
        assert (facts["points"], facts["vms"], facts["sound"]) == (3, 2, True)
        assert everything(site) == before
        # And without being asked to.
        shutil.rmtree(site.cache)
        assert everything(site) == before

    def test_cache_full_of_rubbish(self, site: Site) -> None:
        before = everything(site)
        for path in site.cache.rglob("*"):
            if path.is_file():
                path.write_bytes(os.urandom(5000))
        assert site.vmfs("rebuild").status == 0
        assert everything(site) == before

    @pytest.mark.parametrize("harm", ["delete", "flip", "cut", "empty"])
    def test_index_objects_lost(self, site: Site, harm: str) -> None:
        before = everything(site)
        objects = [path for path in (site.repository / "index").rglob("*") if path.is_file()]
        for path in objects:
            _harm(path, harm)
        shutil.rmtree(site.cache)
        facts = site.vmfs("rebuild", "--json").json()
        assert facts["index"]["indexed"] == facts["index"]["packs"] > 0
        assert len(facts["index"]["replaced"]) == (0 if harm == "delete" else len(objects))
        assert everything(site) == before
        assert site.vmfs("verify", "--data").status == 0
        again = site.vmfs("rebuild", "--json").json()
        assert (again["index"]["indexed"], again["index"]["replaced"]) == (0, [])

    def test_damaged_index_is_kept_while_a_pack_cannot_be_read(self, site: Site) -> None:
        objects = [path for path in (site.repository / "index").rglob("*") if path.is_file()]
        packs = [path for path in (site.repository / "packs").rglob("*") if path.is_file()]
        for path in objects:
            _harm(path, "flip")
        _harm(packs[0], "cut")
        done = site.vmfs("rebuild", "--json")
        assert done.status == 3
        facts = json.loads(done.out)
        assert not facts["sound"]
        assert f"packs/{packs[0].parent.name}/{packs[0].name}" in facts["index"]["unreadable"]
        assert facts["index"]["replaced"] == []
        assert all(path.exists() for path in objects)

    def test_damaged_point(self, site: Site) -> None:
        lost = _ids(site)[1]
        _harm(site.repository / "points" / lost, "flip")
        # A point that the catalog knows is not read again; verify is for that.
        assert len(_ids(site)) == 3
        done = site.vmfs("rebuild")
        assert done.status == 3
        assert f"damaged: restore point {lost}" in done.out
        facts = site.vmfs("points", "--json").json()
        assert len(facts["points"]) == 2
        assert facts["damaged"][0]["id"] == lost
        shown = site.vmfs("show", lost)
        assert (shown.status, shown.out) == (3, "")
        assert f"point {lost} is damaged" in shown.err


def _harm(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "delete":
        path.unlink()
    elif how == "flip":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    else:
        path.write_bytes(data[: len(data) // 2] if how == "cut" else b"")
