"""Restores into the lab's engine, over real imageio daemons into real images."""

from __future__ import annotations

import logging
import random
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from lab_helpers import DiskRecipe, Lab, needs_lab
from restore_helpers import engine_settings, keep

from ingest.engine.errors import EngineError, TransferError
from ingest.engine.made import Made
from ingest.engine.marks import make_mark
from ingest.engine.ovf import Changes, NewDisk, NewNic, OvfError, parse_ovf, rewrite_ovf
from ingest.engine.restore import Restored, restore
from ingest.engine.restore_plan import RestoreOptions, make_plan
from ingest.engine.runs import Run
from ingest.engine.session import Engine
from ingest.engine.upload import UploadError
from ingest.engine.vms import get_disk, get_vm, vm_disks, vm_ovf
from vmfs.errors import UsageError, VmfsError
from vmfs.repo.repository import Point, Repository

pytestmark = needs_lab

KIB, MIB = 1 << 10, 1 << 20
SIZE = 32 * MIB


def noise(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length).replace(b"\0", b"\1")  # noqa: S311


RECIPES = (
    DiskRecipe(
        "root",
        SIZE,
        bootable=True,
        description="the root disk",
        chunks=((0, noise(1, 64 * KIB)), (3 * MIB, noise(2, 5 * MIB)), (SIZE - 64 * KIB, noise(3, 64 * KIB))),
    ),
    DiskRecipe(
        "plain",
        SIZE // 2,
        format="raw",
        interface="virtio",
        chunks=((MIB, noise(4, 100 * KIB)), (4 * MIB + 4 * KIB, noise(5, 2 * MIB))),
    ),
)


@dataclass
class Site:
    lab: Any
    vm: Any
    engine: Engine
    repository: Repository
    point: Point
    folder: Path

    def restore(self, **options: Any) -> Restored:
        return restore(self.engine, self.repository, self.point, RestoreOptions(**options))

    def ovf(self, vm_id: str) -> bytes:
        return vm_ovf(self.engine, get_vm(self.engine, vm_id))

    def original(self, disk_id: str) -> bytes:
        return (self.folder / f"{disk_id}.raw").read_bytes()

    def content(self, disk_id: str) -> bytes:
        return bytes(self.lab.content(disk_id, self.folder / "restored.raw").read_bytes())

    def allocated(self, disk_id: str) -> int:
        return int(self.lab.core.actual_size(self.lab.core.disk(disk_id)))

    def check_disks(self, restored: Restored) -> None:
        for disk, old in zip(restored.disks, self.point.manifest.disks, strict=True):
            assert disk.alias == old.alias
            assert self.content(disk.id) == self.original(old.id)

    def check_clean(self, disks: set[str], vms: set[str]) -> None:
        """Nothing is in the engine but these."""
        assert self.lab.leftovers() == []
        assert self.lab.problems == []
        assert set(self.lab.core.disks) == disks
        assert set(self.lab.core.vms) == vms


@pytest.fixture
def site(tmp_path: Path, repository: Repository) -> Iterator[Site]:
    with Lab(tmp_path / "lab") as lab:
        vm = lab.create_vm("web", RECIPES)
        with Engine.connect(engine_settings(lab), patience=20) as engine:
            point = keep(repository, engine, lab, vm.id, tmp_path / "kept")
            yield Site(lab, vm, engine, repository, point, tmp_path / "kept")
        assert lab.problems == []


def same_but_for(original: bytes, restored: bytes, changes: Changes) -> None:
    """The engine writes an OVF anew; all in it is as it was, but for the changes and what tells of times."""
    expected = rewrite_ovf(original, changes)
    assert lines(restored) == lines(expected)


def lines(ovf: bytes) -> list[str]:
    told = ovf.decode().replace("><", ">\n<").splitlines()
    passing = ("<CreationDate", "<ExportDate", "<rasd:CreationDate", "<rasd:LastModified", "<rasd:last_mod")
    return [_without_sizes(line) for line in told if not line.startswith(passing)]


def _without_sizes(line: str) -> str:
    """Sizes on the storage and snapshot ids are the engine's to say."""
    words = [word for word in line.split(" ") if not word.startswith(("ovf:size", "ovf:actual_size"))]
    return " ".join(word for word in words if not word.startswith("ovf:vm_snapshot_id"))


def test_vm_is_as_it_was(site: Site) -> None:
    original = site.ovf(site.vm.id)
    before = {disk.name: disk for disk in vm_disks(site.engine, get_vm(site.engine, site.vm.id))}
    old_sizes = {disk.alias: site.allocated(disk.id) for disk in site.point.manifest.disks}
    restored = site.restore()
    assert restored.vm_name == "web-1"
    assert restored.wanted_name == "web"
    assert restored.warnings == ()
    site.check_disks(restored)
    assert restored.vm_id is not None
    vm = get_vm(site.engine, restored.vm_id)
    assert (vm.status, vm.cluster) == ("down", "Default")
    after = {disk.name: disk for disk in vm_disks(site.engine, vm)}
    for name, old in before.items():
        new = after[name]
        for fact in (
            *("size", "format", "sparse", "incremental", "storage_domain_id", "interface", "bootable"),
            *("active", "read_only", "description", "wipe_after_delete", "status"),
        ):
            assert getattr(new, fact) == getattr(old, fact), fact
        assert abs(site.allocated(new.id) - old_sizes[name]) <= 0.05 * old_sizes[name]
    ovf = parse_ovf(original)
    made = parse_ovf(site.ovf(restored.vm_id))
    changes = Changes(
        name="web-1",
        vm_id=restored.vm_id,
        disks={
            before[disk.name].id: NewDisk(id=disk.id, image_id=after[disk.name].image_id)
            for disk in restored.disks
        },
        nics={old.id: NewNic(id=new.id, mac=new.mac) for old, new in zip(ovf.nics, made.nics, strict=True)},
    )
    same_but_for(original, site.ovf(restored.vm_id), changes)
    assert {nic.mac for nic in made.nics}.isdisjoint({nic.mac for nic in ovf.nics})
    site.check_clean(
        {*site.vm.disks.values(), *(disk.id for disk in restored.disks)}, {site.vm.id, restored.vm_id}
    )


def test_everything_kept_of_a_destroyed_vm(site: Site) -> None:
    original = site.ovf(site.vm.id)
    images = {disk.id: get_disk(site.engine, disk.id).image_id for disk in site.point.manifest.disks}
    site.vm.stop()
    site.lab.faults.break_("vm-removed", vm=site.vm.id)
    assert site.lab.core.wait(lambda: not site.lab.core.vms and not site.lab.core.disks, 30)
    restored = site.restore(keep_mac=True, keep_ids=True, start=True)
    assert (restored.vm_id, restored.vm_name, restored.wanted_name) == (site.vm.id, "web", "web")
    assert restored.started
    assert [disk.id for disk in restored.disks] == [disk.id for disk in site.point.manifest.disks]
    assert get_vm(site.engine, site.vm.id).running
    site.check_disks(restored)
    new = {disk_id: get_disk(site.engine, disk_id).image_id for disk_id in images}
    changes = Changes(disks={disk_id: NewDisk(id=disk_id, image_id=new[disk_id]) for disk_id in images})
    same_but_for(original, site.ovf(site.vm.id), changes)


def test_chosen_otherwise(site: Site) -> None:
    restored = site.restore(
        name="other",
        cluster="Legacy",
        storage_domain="data2",
        form="raw",
        allocation="preallocated",
        disks=["root"],
        profiles={"": "backup"},
        connections=1,
    )
    assert restored.vm_id is not None
    vm = get_vm(site.engine, restored.vm_id)
    assert (vm.name, vm.cluster) == ("other", "Legacy")
    (disk,) = vm_disks(site.engine, vm)
    assert (disk.name, disk.format, disk.sparse, disk.incremental) == ("root", "raw", False, False)
    assert disk.storage_domain_id == site.lab.domain("data2").id
    assert site.content(disk.id) == site.original(site.vm.disks["root"])
    (nic,) = parse_ovf(site.ovf(vm.id)).nics
    assert (nic.network, nic.profile) == ("backup", "backup")


def test_mac_in_use(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    restored = site.restore(keep_mac=True)
    (warning,) = restored.warnings
    mac = site.vm.record.nics[0].mac
    assert warning == (
        f"NIC nic1 stays unplugged: its MAC address {mac} is in use by VM web; "
        "change one of them before you plug it in"
    )
    assert warning in caplog.messages
    (nic,) = site.lab.core.vms[restored.vm_id].nics
    assert (nic.mac, nic.plugged) == (mac, False)


def test_missing_profile(site: Site) -> None:
    site.lab.core.profiles.clear()
    restored = site.restore()
    assert restored.warnings == (
        "NIC nic1 will have no network: the engine has no vNIC profile ovirtmgmt/ovirtmgmt; "
        "choose one with --vnic-profile",
    )


def test_into_an_existing_disk(site: Site) -> None:
    target = site.lab.create_vm(
        "target",
        [DiskRecipe("old", SIZE + MIB, chunks=((0, b"A" * (SIZE + MIB)),)), DiskRecipe("up", SIZE)],
        up=False,
    )
    disk_id = target.disks["old"]
    restored = site.restore(into_disk=disk_id, disks=["root"])
    assert restored.vm_id is None
    assert restored.disks[0].id == disk_id
    assert site.content(disk_id) == site.original(site.vm.disks["root"]) + bytes(MIB)
    description = get_disk(site.engine, disk_id).description
    assert "vmfs" not in description
    assert site.lab.leftovers() == []


def test_existing_disks_that_cannot_be(site: Site) -> None:
    small = site.lab.create_vm("target", [DiskRecipe("small", SIZE - MIB), DiskRecipe("fit", SIZE)])
    with pytest.raises(UsageError, match="takes one disk; choose it with --disk, one of 'root', 'plain'"):
        site.restore(into_disk=small.disks["fit"])
    with pytest.raises(UsageError, match=r"the engine has no disk '0123'"):
        site.restore(into_disk="0123", disks=["root"])
    with pytest.raises(UsageError, match=rf"has {SIZE - MIB} bytes and root needs {SIZE}; extend it"):
        site.restore(into_disk=small.disks["small"], disks=["root"])
    with pytest.raises(UsageError, match="attached to VM target, which is up; shut it down first"):
        site.restore(into_disk=small.disks["fit"], disks=["root"])
    small.stop()
    site.lab.core.disks[small.disks["fit"]].status = "locked"
    with pytest.raises(VmfsError, match="is locked; wait until"):
        site.restore(into_disk=small.disks["fit"], disks=["root"])


def test_attached_to_a_vm(site: Site) -> None:
    target = site.lab.create_vm("target", [DiskRecipe("boot", MIB, bootable=True)], up=False)
    restored = site.restore(attach_to="target")
    assert (restored.vm_id, restored.vm_name, restored.wanted_name) == (target.id, "target", None)
    site.check_disks(restored)
    attachments = site.lab.core.vms[target.id].attachments
    assert [attachments[disk.id].bootable for disk in restored.disks] == [False, False]
    assert sorted(attachments[disk.id].interface for disk in restored.disks) == ["virtio", "virtio_scsi"]


def test_no_space(site: Site) -> None:
    site.lab.domain().capacity = site.lab.core.used(site.lab.domain()) + MIB
    before = set(site.lab.core.disks)
    with pytest.raises(
        VmfsError,
        match=r"storage domain data has 1\.0 MiB free, and the restore needs \d+\.\d MiB; free some, or "
        "choose another with --storage-domain",
    ):
        site.restore()
    site.check_clean(before, {site.vm.id})
    site.restore(storage_domain="data2")


def test_names_that_are_not_there(site: Site) -> None:
    for options, message in (
        ({"cluster": "Nowhere"}, "has no cluster 'Nowhere' for this; there is 'Default', 'Legacy'"),
        ({"storage_domain": "x"}, "has no storage domain 'x' for this; there is 'data', 'data2'"),
        ({"disks": ["swap"]}, "has no disk 'swap'; it has 'root', 'plain'|'plain', 'root'"),
        ({"profiles": {"": "dmz"}}, "no vNIC profile 'dmz' for this cluster; there is backup/backup, ovirt"),
        ({"attach_to": "db"}, "has no VM 'db'"),
        ({"name": "a b"}, "'a b' cannot be the name of a VM; give --as NAME"),
        ({"keep_ids": True}, "still has a VM of id .*; leave out --keep-ids"),
    ):
        with pytest.raises(UsageError, match=message):
            site.restore(**options)
    site.check_clean(set(site.vm.disks.values()), {site.vm.id})


@pytest.mark.parametrize("content", [b"<Envelope/>", b"<!DOCTYPE x><x/>", None])
def test_ovf_that_cannot_be_used(site: Site, tmp_path: Path, content: bytes | None) -> None:
    artifacts = {} if content is None else {"vm.ovf": content}
    site.point = keep(site.repository, site.engine, site.lab, site.vm.id, site.folder, artifacts=artifacts)
    before = set(site.lab.core.disks)
    error, message = (OvfError, "kept OVF cannot be used") if content else (VmfsError, "has no vm.ovf")
    with pytest.raises(error, match=message):
        site.restore()
    site.check_clean(before, {site.vm.id})
    target = site.lab.create_vm("target", [], up=False)
    site.check_disks(site.restore(attach_to=target.id))


def test_failed_import_leaves_nothing(site: Site) -> None:
    site.lab.faults.break_("import-fails")
    with pytest.raises(EngineError):
        site.restore()
    assert site.lab.faults.used["import-fails"] == 1
    site.check_clean(set(site.vm.disks.values()), {site.vm.id})


def test_failed_restore_is_kept_if_asked(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.lab.faults.break_("import-fails")
    with pytest.raises(EngineError):
        site.restore(keep_failed=True)
    kept = set(site.lab.core.disks) - set(site.vm.disks.values())
    assert len(kept) == 2
    assert all(disk_id in caplog.text for disk_id in kept)
    site.restore()
    assert kept <= set(site.lab.core.disks), "the next restore leaves them alone"


def test_upload_verification_fails(site: Site) -> None:
    site.lab.faults.break_("upload-verification", times=0)
    with pytest.raises(TransferError):
        site.restore()
    assert site.lab.faults.used["upload-verification"] >= 1
    site.check_clean(set(site.vm.disks.values()), {site.vm.id})


def test_upload_verification_fails_once(site: Site) -> None:
    site.lab.faults.break_("upload-verification")
    restored = site.restore()
    assert site.lab.faults.used["upload-verification"] == 1
    site.check_disks(restored)
    site.check_clean(
        {*site.vm.disks.values(), *(disk.id for disk in restored.disks)}, {site.vm.id, restored.vm_id}
    )


def test_storage_runs_full(site: Site) -> None:
    site.lab.faults.break_("upload-no-space", times=0)
    site.lab.faults.break_("storage-domain-full", at="writing", domain="data")
    with pytest.raises(
        UploadError, match=r"data has 0 bytes free and the disk needs \d+ more: free some, or"
    ):
        site.restore()
    assert site.lab.faults.used["upload-no-space"] >= 1
    site.check_clean(set(site.vm.disks.values()), {site.vm.id})


@pytest.mark.parametrize(
    ("fault", "options"),
    [
        ("transfer-paused", {}),
        ("inactivity", {}),
        ("imageio-restart", {"at": "writing"}),
        ("ticket-expired", {"at": "writing"}),
        ("nbd-dead", {"at": "writing"}),
        ("connection-closed", {}),
        ("direct-unreachable", {}),
        ("ticket-busy", {}),
        ("sso-expired", {"at": "writing"}),
        ("engine-restart", {"at": "writing"}),
        ("engine-restart", {"at": "disk-created"}),
        ("engine-restart", {"at": "upload-finalizing"}),
        ("answer-lost", {"path": "disks"}),
        ("answer-lost", {"path": "vms"}),
        ("answer-lost", {"path": "imagetransfers"}),
        ("unavailable", {}),
        ("connection-dropped", {}),
        ("transfer-purged", {}),
        ("upload-no-space", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value.values()) or "once",
)
@pytest.mark.parametrize("into", ["new", "existing"])
def test_goes_on_after(site: Site, fault: str, options: dict[str, Any], into: str) -> None:
    if into == "new":
        site.lab.faults.break_(fault, **options)
        restored = site.restore()
        site.check_disks(restored)
        site.check_clean(
            {*site.vm.disks.values(), *(disk.id for disk in restored.disks)}, {site.vm.id, restored.vm_id}
        )
    else:
        recipe = DiskRecipe("old", SIZE, chunks=((0, b"A" * SIZE),))
        target = site.lab.create_vm("target", [recipe], up=False).disks["old"]
        site.lab.faults.break_(fault, **options)
        site.restore(into_disk=target, disks=["root"])
        assert site.content(target) == site.original(site.vm.disks["root"])
        assert site.lab.leftovers() == []
        if options.get("at") == "disk-created" or options.get("path") == "vms":
            return
    assert site.lab.faults.used[fault] >= 1


def test_what_a_killed_restore_has_left_is_removed(site: Site) -> None:
    """Its disk, by its description; and of a run that lives, nothing."""
    plan = make_plan(site.engine, site.repository, site.point, RestoreOptions())
    with Run() as run:
        dead, alive = plan.disks
        Made(site.engine, make_mark(run.id[:-9] + "x" + run.id[-9:], site.repository.id)).create_disk(dead)
        Made(site.engine, make_mark(run.id, site.repository.id)).create_disk(alive)
        restored = site.restore()
        site.check_disks(restored)
        assert dead.id not in site.lab.core.disks
        assert alive.id in site.lab.core.disks


def test_two_restores_with_the_ids_of_the_original(site: Site) -> None:
    """At once: neither has seen anything of the other when it began. The second one fails, and takes back
    nothing of the first one's."""
    site.lab.faults.break_("vm-removed", vm=site.vm.id)
    (disk, _) = make_plan(site.engine, site.repository, site.point, RestoreOptions(keep_ids=True)).disks
    first, second = (Made(site.engine, make_mark(f"run-{name}-1234", site.repository.id)) for name in "ab")
    first.create_disk(disk)
    with pytest.raises(EngineError) as caught:
        second.create_disk(disk)
    second.take_back(caught.value, keep=False)
    assert disk.id in site.lab.core.disks
    first.take_back(caught.value, keep=False)
    assert disk.id not in site.lab.core.disks


def test_a_run_on_another_machine(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of it nothing is known but that it uses the repository: its disk stays as long as it does."""
    plan = make_plan(site.engine, site.repository, site.point, RestoreOptions())
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(socket, "gethostname", lambda: "elsewhere")
        run, lease = Run(), site.repository.lease("mount")
    with run, lease:
        Made(site.engine, make_mark(run.id, site.repository.id)).create_disk(plan.disks[0])
        site.restore()
        assert plan.disks[0].id in site.lab.core.disks
    site.restore()
    assert plan.disks[0].id not in site.lab.core.disks


def test_interrupted(site: Site) -> None:
    """Ctrl-C in the middle of an upload: nothing is left."""

    def interrupt(alias: str, done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restore(site.engine, site.repository, site.point, RestoreOptions(), progress=interrupt)
    site.check_clean(set(site.vm.disks.values()), {site.vm.id})


def test_log_is_silent_when_all_is_well(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.restore()
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []
