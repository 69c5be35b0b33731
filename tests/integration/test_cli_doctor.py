"""doctor: what it sees, and that it says what to do."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from command_helpers import Site, call, spawn

_REPOSITORY = ("config", "keys", "writable", "space", "open", "index", "points", "leases")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = Site(tmp_path)
    site.init()
    disk = tmp_path / "disk.raw"
    disk.write_bytes(os.urandom(200 << 10) + bytes(56 << 10))
    site.ingest("web", disk)
    return site


def checks(site: Site, *argv: object) -> dict[str, dict[str, Any]]:
    done = site.vmfs("doctor", *argv, "--json")
    assert done.status in (0, 1)
    facts = json.loads(done.out)
    assert facts["ok"] == (done.status == 0)
    assert facts["ok"] == all(check["status"] != "fail" for check in facts["checks"])
    for check in facts["checks"]:
        assert list(check) == ["name", "status", "message", "remedy"]
        assert "\n" not in check["message"]
    return {check["name"]: check for check in facts["checks"]}


def test_machine_alone() -> None:
    done = call("vmfs", "doctor", "--json")
    names = {check["name"] for check in done.json()["checks"]}
    assert names >= {
        "python",
        "crypto",
        "fuse",
        "pyfuse3",
        "fusermount3",
        "loop",
        "qemu-img",
        "qemu-nbd",
        "cache",
    }
    assert "config" not in names


def test_missing_programs_are_warned_of(tmp_path: Path) -> None:
    done = spawn("vmfs", "doctor", env={**os.environ, "PATH": str(tmp_path)})
    assert b"warn  qemu-nbd: qemu-nbd is missing" in done.stdout
    assert b"-> install the package qemu-utils" in done.stdout


def test_all_in_order(site: Site) -> None:
    found = checks(site)
    assert {name: check["status"] for name, check in found.items() if name in _REPOSITORY} == dict.fromkeys(
        _REPOSITORY, "ok"
    )
    text = site.vmfs("doctor")
    assert text.status == 0
    assert "ok    points: 1 restore point of 1 VM\n" in text.out
    assert "ok" not in site.vmfs("doctor", "--quiet").out


def test_not_a_repository(tmp_path: Path) -> None:
    found = checks(Site(tmp_path))
    assert found["config"]["status"] == "fail"
    assert "is not a vmfs repository" in found["config"]["message"]
    assert "open" not in found


def test_damaged_config(site: Site) -> None:
    (site.repository / "config").write_bytes(b"")
    assert checks(site)["config"]["status"] == "fail"


def test_without_a_secret(site: Site) -> None:
    done = spawn("vmfs", "doctor", site.repository, "--cache-dir", site.cache)
    assert done.returncode == 0
    assert b"warn  open: not opened, so the rest is not checked: no passphrase" in done.stdout


def test_wrong_secret(site: Site) -> None:
    site.passphrase.write_text("battery staple")
    found = checks(site)
    assert found["open"]["status"] == "fail"
    assert "wrong passphrase" in found["open"]["message"]


def test_no_key_slot_that_works(site: Site) -> None:
    for path in (site.repository / "keys").iterdir():
        path.write_bytes(b"")
    assert checks(site)["keys"]["status"] == "fail"


def test_damage_is_told(site: Site) -> None:
    for path in (site.repository / "index").iterdir():
        path.write_bytes(b"")
    for path in (site.repository / "points").iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    # What the cache knows is not read again: that is for verify.
    shutil.rmtree(site.cache)
    found = checks(site)
    assert (found["index"]["status"], found["index"]["remedy"]) == ("warn", "vmfs rebuild")
    assert found["points"]["status"] == "fail"
    assert "verify" in found["points"]["remedy"]


def test_what_dead_runs_left(site: Site) -> None:
    pid = os.fork()
    if pid == 0:
        # A writer that is killed: its lease stays.
        site.open().lease("writer")
        (site.repository / "packs" / ".tmp-0123456789abcdef").write_bytes(b"half")
        os.kill(os.getpid(), 9)
    os.waitpid(pid, 0)
    lease = checks(site)["leases"]
    assert lease["status"] == "warn"
    assert lease["message"] == "1 lease and 1 temporary file of runs that were killed"
    # As the remedy says.
    site.ingest("web", site.root / "disk.raw")
    assert checks(site)["leases"]["status"] == "ok"


def test_a_living_writer_is_no_fault(site: Site) -> None:
    with site.open() as repository, repository.lease("writer"):
        lease = checks(site)["leases"]
    assert lease["status"] == "ok"
    assert lease["message"].startswith("in use by writer on ")


def test_cache_that_cannot_be_written() -> None:
    done = call("vmfs", "doctor", "--cache-dir", "/proc/nowhere")
    assert "warn  cache: the cache /proc/nowhere cannot be written to" in done.out
