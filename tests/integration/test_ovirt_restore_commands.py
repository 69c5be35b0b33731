"""vmfs-ingest restore as a user runs it, against the lab; and killed in the middle."""

from __future__ import annotations

import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from command_helpers import Done, Site, call, program, unmeasured
from lab_helpers import DiskRecipe, Lab, LabVm, needs_lab, running_lab

pytestmark = needs_lab

MIB = 1 << 20
SIZE = 24 * MIB


def noise(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)  # noqa: S311


RECIPES = (
    DiskRecipe("root", SIZE, bootable=True, chunks=((MIB, noise(1, 20 * MIB)),)),
    DiskRecipe("data", SIZE, format="raw", chunks=((0, noise(2, 12 * MIB)),)),
)


@dataclass
class User:
    """Somebody with a repository, a configuration file, and a VM that is backed up and then removed."""

    site: Site
    lab: Lab
    vm: LabVm
    environment: dict[str, str]
    kept: dict[str, bytes]

    def arguments(self, *argv: object) -> list[object]:
        return [self.site.repository, "web@latest", "--engine", "lab", *argv, *self.site.options()]

    def restore(self, *argv: object) -> Done:
        return call("vmfs-ingest", "restore", *self.arguments(*argv))

    def start(self, *argv: object) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [program("vmfs-ingest"), "restore", *map(str, self.arguments(*argv))],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=unmeasured() | self.environment,
        )

    def check_disks(self, found: list[dict[str, Any]], folder: Path) -> None:
        assert {disk["alias"] for disk in found} == set(self.kept)
        for disk in found:
            content = self.lab.content(disk["id"], folder / "content").read_bytes()
            assert content == self.kept[disk["alias"]]

    def remove_vm(self) -> None:
        self.lab.faults.break_("vm-removed", vm=self.vm.id)
        assert self.lab.core.wait(lambda: not self.lab.core.vms and not self.lab.core.disks, 30)


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[User]:
    site = Site(tmp_path)
    site.init()
    with running_lab(tmp_path / "lab") as lab:
        vm = lab.create_vm("web", RECIPES)
        config = tmp_path / "vmfs.toml"
        table = "".join(f'{key} = "{value}"\n' for key, value in lab.engine.items())
        config.write_text(f"[engine.lab]\n{table}")
        monkeypatch.setenv("VMFS_CONFIG", str(config))
        done = call(
            "vmfs-ingest", "backup", site.repository, "--engine", "lab", "--vm", "web", *site.options()
        )
        assert done.status == 0, done.err
        kept = {
            alias: lab.content(disk_id, tmp_path / alias).read_bytes() for alias, disk_id in vm.disks.items()
        }
        yield User(site, lab, vm, {"VMFS_CONFIG": str(config)}, kept)


def test_text_and_json(user: User, tmp_path: Path) -> None:
    done = user.restore("--keep-mac")
    assert done.status == 0, done.err
    first, second, *disks = done.out.splitlines()
    assert first.startswith("Restored VM web-1 (")
    assert first.endswith(tuple("0123456789ABCDEFGHJKMNPQRSTVWXYZ"))
    assert second == "  the name web was taken"
    assert [line.split(":")[0] for line in disks] == ["  root", "  data"]
    assert "NIC nic1 stays unplugged: its MAC address" in done.err
    told = user.restore("--as", "web-2", "--start", "--json").json()
    assert told["vm"] == {"id": told["vm"]["id"], "name": "web-2", "started": True}
    assert told["warnings"] == []
    user.check_disks(told["disks"], tmp_path)
    assert user.lab.core.vms[told["vm"]["id"]].running
    assert user.lab.leftovers() == []


def test_as_it_was(user: User, tmp_path: Path) -> None:
    user.remove_vm()
    told = user.restore("--keep-ids", "--keep-mac", "--json").json()
    assert told["vm"]["id"] == user.vm.id
    assert {disk["alias"]: disk["id"] for disk in told["disks"]} == user.vm.disks
    user.check_disks(told["disks"], tmp_path)


def test_no_point_or_two(user: User) -> None:
    for argv, message in (
        ((), "takes a repository and one POINT"),
        (("web@latest", "web@latest"), "takes a repository and one POINT"),
        (("db@latest",), "there is no VM 'db'"),
        (("web@latest", "--into-disk", "x", "--start"), "--start makes no sense with --into-disk; leave"),
        (("web@latest", "--attach-to", "web", "--keep-mac"), "--keep-mac makes no sense with --attach-to"),
        (("web@latest", "--attach-to", "a", "--into-disk", "b"), "not allowed with argument"),
        (("web@latest", "--connections", "0"), "'0' is no number of connections; use 1 to 32"),
        (("web@latest", "--vnic-profile", "=x"), "'=x' is no vNIC profile"),
        (("web@latest", "--vnic-profile", "x", "--vnic-profile", "y"), "two vNIC profiles are given for all"),
        (("web@latest", "--format", "vmdk"), "invalid choice: 'vmdk'"),
    ):
        done = call(
            *("vmfs-ingest", "restore", user.site.repository, *argv, "--engine", "lab"), *user.site.options()
        )
        assert (done.status, done.out) == (2, ""), done.err
        assert message in done.err
        assert done.err.count("\n") == 1


def uploads(lab: Lab) -> list[str]:
    """Phases of all there ever were."""
    return [each.phase for each in lab.core.transfers.values() if each.direction == "upload"]


MOMENTS: dict[str, Callable[[Lab], bool]] = {
    "a disk is being made": lambda lab: bool(lab.core.disks),
    "a transfer is being made": lambda lab: bool(uploads(lab)),
    "a disk is being uploaded": lambda lab: "transferring" in uploads(lab),
    "a disk is uploaded": lambda lab: len(lab.core.disks) > 1,
    "a VM is made": lambda lab: bool(lab.core.vms),
}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_ended_in_the_middle(user: User, tmp_path: Path, moment: str, number: signal.Signals) -> None:
    """What SIGTERM ends has left nothing; what SIGKILL ends the next run cleans up."""
    user.remove_vm()
    process = user.start()
    assert user.lab.core.wait(lambda: MOMENTS[moment](user.lab), 60)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    if number is signal.SIGTERM and process.returncode:
        assert process.returncode == 128 + signal.SIGTERM, err
        assert b"Traceback" not in err
        assert user.lab.leftovers() == []
        assert user.lab.core.disks == {}
        assert user.lab.core.vms == {}
    told = user.restore("--json").json()
    user.check_disks(told["disks"], tmp_path)
    assert user.lab.leftovers() == []
    attached = {disk for vm in user.lab.core.vms.values() for disk in vm.attachments}
    assert set(user.lab.core.disks) == attached
    assert not any(disk.description.startswith("vmfs") for disk in user.lab.core.disks.values())
