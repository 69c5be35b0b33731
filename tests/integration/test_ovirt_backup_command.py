"""The command vmfs-ingest backup: what it prints, what it refuses, and what is left when it is ended."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import tomllib
from pathlib import Path
from typing import Any

import pytest
from command_helpers import Site, call, program, unmeasured
from lab_helpers import LEGACY, MIB, Lab, LabVm, needs_lab
from ovirt_helpers import CHUNK, both_modes, make_vm

sys.path.append(str(Path(__file__).parents[2] / "tools/lib"))
from lab import faults

pytest_plugins = "engine_fixtures"
pytestmark = needs_lab


@pytest.fixture
def site(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    site = Site(tmp_path)
    site.init()
    config = tmp_path / "vmfs.toml"
    lines = [f"{key} = {json.dumps(value)}" for key, value in lab.engine.items()]
    config.write_text("\n".join(["[engine.lab]", *lines, ""]))
    assert tomllib.loads(config.read_text())
    monkeypatch.setenv("VMFS_CONFIG", str(config))
    return site


def run_backup(site: Site, vm: LabVm | str, *options: object) -> Any:
    name = vm if isinstance(vm, str) else vm.name
    return call(
        "vmfs-ingest", "backup", site.repository, "--engine", "lab", "--vm", name, *options, *site.options()
    )


def test_the_command(lab: Lab, site: Site) -> None:
    vm = make_vm(lab)
    first = run_backup(site, vm, "--json").json()
    assert (first["vm"], first["vm_id"], first["parent"]) == (vm.name, vm.id, None)
    assert {disk["alias"]: disk["mode"] for disk in first["disks"]} == {"root": "full", "data": "full"}
    vm.write("root", 0, b"x" * 512)
    second = run_backup(site, vm, "--json", "--audit", "50", "--connections", 2).json()
    assert second["parent"] == first["id"]
    (root,) = (disk for disk in second["disks"] if disk["alias"] == "root")
    assert root["mode"] == "incremental"
    assert root["audit"]["mismatch"] is None
    assert second["checkpoints_removed"] == [first["disks"][0]["checkpoint"]]
    done = run_backup(site, vm, "--disk", "root")
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith("Restore point ")
    assert f"of {vm.name} (crash)\n  root: incremental, 0 B read of 16.0 MiB" in done.out
    assert run_backup(site, vm, "--quiet").out == ""
    assert lab.leftovers() == []


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--vm", "no-such-vm"], 2, "has no VM 'no-such-vm'"),
        (["--disk", "nothing"], 2, "has no disk 'nothing'"),
        (["--audit", "0"], 2, "give a percentage above 0, to 100"),
        (["--audit", "101"], 2, "give a percentage above 0, to 100"),
        (["--audit", "5", "--full"], 2, "leave out one of them"),
        (["--connections", "0"], 2, "no number of connections; use 1 to 32"),
        (["--mode", "cold"], 2, "invalid choice"),
        (["--pre", "'"], 2, "cannot be understood"),
        (["--hook-timeout", "-1"], 2, "is no time"),
        (["--engine", "other"], 2, "has no engine 'other'"),
    ],
)
def test_bad_requests(lab: Lab, site: Site, options: list[str], status: int, message: str) -> None:
    vm = make_vm(lab, up=False)
    done = run_backup(site, vm, *options)
    assert done.status == status, done.err
    assert message in done.err
    assert len(done.err.splitlines()) == 1
    assert not list((site.repository / "points").glob("*"))


def test_a_mode_that_the_cluster_does_not_have(lab: Lab, site: Site) -> None:
    done = run_backup(site, make_vm(lab, LEGACY), "--mode", "hybrid")
    assert (done.status, "use --mode live" in done.err) == (2, True)


def test_a_name_that_is_not_unique(lab: Lab, site: Site) -> None:
    vm = make_vm(lab)
    lab.faults.break_("name-not-unique", vm=vm.id)
    done = run_backup(site, vm)
    assert (done.status, vm.id in done.err) == (2, True)
    assert (
        call(
            "vmfs-ingest", "backup", site.repository, "--engine", "lab", "--vm", vm.id, *site.options()
        ).status
        == 0
    )
    lab.faults.mend()


def spawn_backup(site: Site, vm: LabVm) -> subprocess.Popen[str]:
    command = [program("vmfs-ingest"), "backup", site.repository, "--engine", "lab", "--vm", vm.name]
    return subprocess.Popen(
        [*map(str, command), *map(str, site.options())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=unmeasured(),
    )


def end_at(lab: Lab, site: Site, vm: LabVm, moment: str, number: int) -> tuple[int, str]:
    """A backup that gets this signal at that moment: its exit status, and what it said."""
    running: list[subprocess.Popen[str]] = []
    ready = threading.Event()

    def end(_: Any) -> None:
        assert ready.wait(60)
        running[0].send_signal(number)
        if number == signal.SIGKILL:
            running[0].wait()

    lab.faults.actions["test-end"] = end
    faults.FAULTS["test-end"] = faults.Fault("test-end", "the client is ended", 0, True)
    try:
        lab.faults.break_("test-end", at=moment)
        running.append(spawn_backup(site, vm))
        ready.set()
        _, err = running[0].communicate(timeout=120)
    finally:
        del faults.FAULTS["test-end"]
    return running[0].returncode, err


@both_modes
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("moment", ["backup-requested", "backup-ready", "transferring", "reading"])
def test_a_run_that_is_ended(lab: Lab, site: Site, cluster: str, number: int, moment: str) -> None:
    """Asked to end, it puts all in order; killed, the next one does."""
    vm = make_vm(lab, cluster)
    before = run_backup(site, vm, "--json").json()
    vm.write("root", 0, b"x" * 512)
    status, err = end_at(lab, site, vm, moment, number)
    if number == signal.SIGKILL:
        assert status == -signal.SIGKILL
    else:
        assert status == 128 + number, err
        assert lab.leftovers() == []
    assert len(list((site.repository / "points").glob("*"))) == 1
    after = run_backup(site, vm, "--json").json()
    assert lab.leftovers() == []
    assert after["parent"] == before["id"]
    assert [disk["mode"] for disk in after["disks"]] == ["incremental", "incremental"]


@both_modes
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_ended_after_its_commit(lab: Lab, site: Site, cluster: str, number: int) -> None:
    """The point is there, and the next one starts from it."""
    vm = make_vm(lab, cluster)
    run_backup(site, vm, "--json").json()
    vm.write("root", 0, b"x" * 512)
    status, _ = end_at(lab, site, vm, "backup-finalizing", number)
    assert status == (-signal.SIGKILL if number == signal.SIGKILL else 128 + number)
    _, committed = sorted(path.name for path in (site.repository / "points").glob("*"))
    vm.write("root", 8 * MIB, b"y" * 512)
    after = run_backup(site, vm, "--json").json()
    assert lab.leftovers() == []
    assert after["parent"] == committed
    assert [disk["bytes_read"] for disk in after["disks"] if disk["alias"] == "root"] == [CHUNK]
