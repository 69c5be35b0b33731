"""Backups of running VMs of the lab: real qemu, real imageio, a simulated engine; both modes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import SECRET
from lab_helpers import DEFAULT, MIB, Lab, LabVm, needs_lab
from ovirt_helpers import (
    CHUNK,
    KIB,
    SIZE,
    Bench,
    artifact,
    bench,
    both_modes,
    facts_of,
    make_vm,
    modes,
    reasons,
    recipe,
)

from ingest.audit import Audit
from ingest.engine.backups import finish_backup
from ingest.engine.errors import BackupFailedError, ConflictError, EngineError
from ingest.engine.hooks import HookError, make_hook
from ingest.engine.run import PolicyError
from ingest.engine.vms import get_vm
from vmfs.errors import UsageError, VmfsError
from vmfs.repo.repository import Repository
from vmfs.store import LocalStore

sys.path.append(str(Path(__file__).parents[2] / "tools/lib"))
from lab import faults
from lab.engine import backup_start, backups
from lab.errors import MachineError

pytest_plugins = "engine_fixtures"
pytestmark = needs_lab


@pytest.fixture
def on(lab: Lab, repository: Repository, tmp_path: Path) -> Iterator[Bench]:
    with bench(lab, repository, tmp_path) as made:
        yield made
    lab.faults.mend()


@both_modes
def test_full_and_incremental(on: Bench, cluster: str) -> None:
    vm = make_vm(on.lab, cluster)
    first = on.backed_up(vm).point
    assert modes(first) == {"root": "full", "data": "full"}
    assert reasons(first) == {"root": None, "data": None}
    assert (first.manifest.parent, first.manifest.consistency) == (None, "crash")
    assert first.manifest.vm.id == vm.id
    assert first.manifest.vm.engine == on.engine.id
    assert first.manifest.vm.cluster == cluster
    root = first.manifest.disk("root")
    assert root
    assert (root.id, root.bus, root.boot_order) == (vm.disks["root"], "virtio_scsi", 1)
    assert on.transferred(vm) == {"root": MIB, "data": MIB}
    assert on.checkpoints(vm) == [root.checkpoint]

    vm.write("root", 5 * MIB - 512, b"w" * 1024)
    vm.machine.zero(vm.disks["data"], 2 * MIB, 512 * KIB)
    outcome = on.backed_up(vm)
    second = outcome.point
    assert modes(second) == {"root": "incremental", "data": "incremental"}
    assert second.manifest.parent == first.id
    # What changed on root lies in two chunks; zeros need not be read.
    assert on.transferred(vm) == {"root": 2 * CHUNK, "data": 0}
    assert {disk.alias: disk.bytes_read for disk in second.manifest.disks} == on.transferred(vm)
    assert outcome.removed == [root.checkpoint]
    (now,) = on.checkpoints(vm)
    assert {disk.checkpoint for disk in second.manifest.disks} == {now}

    third = on.backed_up(vm).point
    assert on.transferred(vm) == {"root": 0, "data": 0}
    assert third.manifest.parent == second.id
    full = on.backed_up(vm, full=True).point
    assert modes(full) == {"root": "full", "data": "full"}
    assert reasons(full) == {"root": None, "data": None}
    assert len(on.checkpoints(vm)) == 1


@both_modes
def test_a_raw_disk(on: Bench, cluster: str) -> None:
    vm = make_vm(on.lab, cluster, [recipe("raw", format="raw")])
    first = on.backed_up(vm).point
    assert [disk.checkpoint for disk in first.manifest.disks] == [None]
    assert reasons(first) == {"raw": None}
    second = on.backed_up(vm).point
    assert modes(second) == {"raw": "full"}
    assert reasons(second) == {"raw": "a raw disk, of which changes cannot be known"}


@both_modes
def test_a_vm_that_is_down(on: Bench, cluster: str) -> None:
    vm = make_vm(on.lab, cluster, up=False)
    first = on.backed_up(vm).point
    assert (first.manifest.consistency, modes(first)) == ("offline", {"root": "full", "data": "full"})
    vm.start()
    vm.write("root", 0, b"x" * 512)
    second = on.backed_up(vm).point
    assert (second.manifest.consistency, set(modes(second).values())) == ("crash", {"incremental"})
    vm.write("root", 4096, b"y" * 512)
    vm.stop()
    third = on.backed_up(vm).point
    assert (third.manifest.consistency, set(modes(third).values())) == ("offline", {"incremental"})
    assert sum(on.transferred(vm).values()) == CHUNK


def test_the_engine_refuses_a_vm_that_is_down(on: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """Then its disks are downloaded as they are."""
    vm = make_vm(on.lab, up=False)
    on.lab.faults.break_("hosted-engine", vm=vm.id)
    outcome = on.back_up(vm)
    assert outcome.point.manifest.consistency == "offline"
    assert all("the engine did not back up the VM" in str(why) for why in reasons(outcome.point).values())
    for disk in outcome.point.manifest.disks:
        assert on.repository.open_disk(disk).read(2 * MIB, MIB) == disk.alias.encode()[:1] * MIB
    on.check_clean()
    assert "downloading the disks" in caplog.text


def test_the_engine_refuses_a_vm_that_runs(on: Bench) -> None:
    vm = make_vm(on.lab)
    on.lab.faults.break_("hosted-engine", vm=vm.id)
    with pytest.raises(ConflictError, match="Backup of Hosted Engine VM is not supported"):
        on.back_up(vm)
    assert on.repository.point_ids() == []
    on.check_clean()


def test_what_is_kept_with_the_disks(on: Bench) -> None:
    vm = make_vm(on.lab)
    point = on.backed_up(vm).point
    ovf = artifact(on.repository, point, "vm.ovf")
    assert vm.name.encode() in ovf
    facts = facts_of(on.repository, point)
    assert facts["vm"]["id"] == vm.id
    assert {disk["alias"]: disk["id"] for disk in facts["disks"]} == vm.disks
    assert {disk["storage_domain_id"] for disk in facts["disks"]} == {on.lab.domain().id}


# A broken chain is never a failed backup.


@both_modes
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("bitmap-broken", "[Bb]itmap|[Ff]ull backup is now needed"),
        ("checkpoint-unknown", "has no checkpoint of this VM's restore points any more"),
        ("checkpoint-invalid", "checkpoints are invalid"),
        ("power-off-hard", "[Bb]itmap|[Ff]ull backup is now needed"),
    ],
)
def test_a_broken_chain(
    on: Bench, cluster: str, fault: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    vm = make_vm(on.lab, cluster)
    on.backed_up(vm)
    vm.write("root", 8 * MIB, b"n" * 512)
    on.lab.faults.break_(fault, vm=vm.id)
    outcome = on.backed_up(vm)
    assert set(modes(outcome.point).values()) == {"full"}
    for why in reasons(outcome.point).values():
        assert why
        assert re.search(reason, why), why
    # The chain is whole again.
    vm.write("root", 9 * MIB, b"m" * 512)
    assert set(modes(on.backed_up(vm).point).values()) == {"incremental"}
    assert len(on.checkpoints(vm)) == 1


@both_modes
def test_the_checkpoint_goes_between_the_look_and_the_backup(on: Bench, cluster: str) -> None:
    vm = make_vm(on.lab, cluster)
    on.backed_up(vm)
    hook = make_hook("pre", f"touch {on.repository.cache_dir / 'hook'}")
    # The engine forgets it after it was listed: it answers 400, or fails the backup.
    on.lab.faults.break_("checkpoint-redefine-fails", vm=vm.id)
    mode = "live"
    point = on.backed_up(vm, mode=mode, pre=hook).point
    assert set(modes(point).values()) == {"full"}
    assert all("Full backup is now needed" in str(why) for why in reasons(point).values())
    assert set(modes(on.backed_up(vm, mode=mode).point).values()) == {"incremental"}


@both_modes
def test_a_snapshot_restored(on: Bench, cluster: str) -> None:
    """The engine removes all checkpoints, and the disks are other ones."""
    vm = make_vm(on.lab, cluster)
    vm.snapshot("before")
    vm.write("root", 8 * MIB, b"later")
    on.backed_up(vm)
    on.lab.faults.break_("snapshot-restored", vm=vm.id)
    point = on.backed_up(vm).point
    assert set(modes(point).values()) == {"full"}
    assert all("any more" in str(why) for why in reasons(point).values())


@both_modes
def test_a_snapshot_taken_and_removed(on: Bench, cluster: str) -> None:
    """Breaks nothing: bitmaps go through."""
    vm = make_vm(on.lab, cluster)
    on.backed_up(vm)
    vm.write("root", 8 * MIB, b"1" * 512)
    snapshot = vm.snapshot("between")
    vm.write("root", 9 * MIB, b"2" * 512)
    assert set(modes(on.backed_up(vm).point).values()) == {"incremental"}
    assert on.transferred(vm) == {"root": 2 * CHUNK, "data": 0}
    vm.write("root", 10 * MIB, b"3" * 512)
    vm.remove_snapshot(snapshot)
    vm.write("root", 11 * MIB, b"4" * 512)
    on.backed_up(vm)


@both_modes
def test_disks_that_come_and_go(on: Bench, cluster: str) -> None:
    vm = make_vm(on.lab, cluster)
    first = on.backed_up(vm).point
    on.lab.add_disk(vm, recipe("more"))
    second = on.backed_up(vm).point
    assert modes(second) == {"root": "incremental", "data": "incremental", "more": "full"}
    assert reasons(second)["more"] == f"not in restore point {first.id}"
    on.lab.faults.break_("disk-removed", vm=vm.id, disk="data")
    third = on.backed_up(vm).point
    assert modes(third) == {"root": "incremental", "more": "incremental"}


@both_modes
def test_a_disk_resized(on: Bench, cluster: str) -> None:
    vm = make_vm(on.lab, cluster)
    first = on.backed_up(vm).point
    on.lab.faults.break_("disk-resized", vm=vm.id, disk="root", size=SIZE + 8 * MIB)
    vm.write("root", SIZE, b"g" * 512)
    second = on.backed_up(vm).point
    assert modes(second) == {"root": "full", "data": "incremental"}
    assert reasons(second)["root"] == (
        f"it has {SIZE + 8 * MIB} bytes, and had {SIZE} in restore point {first.id}"
    )
    assert set(modes(on.backed_up(vm).point).values()) == {"incremental"}


def test_a_disk_that_is_not_in_the_checkpoint(on: Bench) -> None:
    vm = make_vm(on.lab)
    on.backed_up(vm)
    on.lab.faults.break_("disk-not-in-checkpoint", disk=vm.disks["data"])
    point = on.backed_up(vm).point
    assert modes(point) == {"root": "incremental", "data": "full"}
    assert "does not know what changed" in str(reasons(point)["data"])


def test_a_checkpoint_that_is_never_told(on: Bench, caplog: pytest.LogCaptureFixture) -> None:
    vm = make_vm(on.lab)
    on.lab.faults.break_("checkpoint-absent", vm=vm.id)
    first = on.backed_up(vm).point
    assert {disk.checkpoint for disk in first.manifest.disks} == {None}
    assert "the engine took no checkpoint" in caplog.text
    second = on.backed_up(vm).point
    assert set(reasons(second).values()) == {"no restore point of this VM has a checkpoint"}
    assert set(modes(on.backed_up(vm).point).values()) == {"incremental"}


def test_a_damaged_parent(on: Bench, tmp_path: Path) -> None:
    """Its manifest cannot be read, so its checkpoint is of no use."""
    vm = make_vm(on.lab)
    first = on.backed_up(vm).point
    path = tmp_path / "repository" / "points" / first.id
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    point = on.backed_up(vm).point
    assert set(modes(point).values()) == {"full"}


# Bad days in the middle.


@both_modes
@pytest.mark.parametrize(
    ("fault", "at", "skip"),
    [
        ("imageio-restart", "reading", 1),
        ("engine-restart", "backup-requested", 0),
        ("engine-restart", "backup-ready", 0),
        ("engine-restart", "reading", 1),
        ("engine-restart", "backup-finalizing", 0),
        ("backup-unmonitored", "reading", 1),
        ("sso-expired", "reading", 1),
        ("sso-expired", "backup-ready", 0),
        ("ticket-expired", "reading", 1),
        ("nbd-dead", "reading", 1),
        ("vm-migrated", "reading", 1),
        ("transfer-paused", "reading", 1),
        ("inactivity", "reading", 1),
        ("snapshot-taken", "backup-requested", 0),
        ("power-off-hard", "reading", 1),
    ],
    ids=lambda value: str(value),
)
def test_the_backup_goes_on_or_begins_again(on: Bench, cluster: str, fault: str, at: str, skip: int) -> None:
    goes_on_or_begins_again(on, cluster, fault, at, skip)


def test_a_disk_resized_while_it_is_read(on: Bench) -> None:
    """During a live backup, the engine does not resize it."""
    goes_on_or_begins_again(on, DEFAULT, "disk-resized", "reading", 1)


def goes_on_or_begins_again(on: Bench, cluster: str, fault: str, at: str, skip: int) -> None:
    disks = [recipe("root", chunks=[(0, bytes(range(1, 251)) * 50_000)]), recipe("data")]
    vm = make_vm(on.lab, cluster, disks)
    on.lab.faults.break_(
        fault, at=at, skip=skip, **({"vm": vm.id} if fault.startswith(("vm-", "po", "disk", "sn")) else {})
    )
    used = on.lab.faults.used[fault]
    outcome = on.back_up(vm)
    assert on.lab.faults.used[fault] == used + 1
    on.check(vm, outcome.point)
    vm.write("root", 9 * MIB, b"m" * 512)
    on.backed_up(vm)


@pytest.mark.parametrize(
    "fault",
    [
        "conflict-vm-during-backup",
        "conflict-disk-locked",
        "conflict-backup-not-ready",
        "conflict-disk-transferred",
        "conflict-active-transfer",
        "conflict-related-operation",
        "finalize-slow",
        "finalize-refused",
        "snapshot-leftover",
        "engine-finalizes-download",
        "backup-purged",
        "transfer-purged",
        "ticket-busy",
        "slow-extents",
        "connection-closed",
        "direct-unreachable",
        "connection-dropped",
        "connection-hangs",
        "answer-lost",
        "unavailable",
        "backup-fails",
        "stale-snapshot",
    ],
)
def test_it_is_borne(on: Bench, fault: str) -> None:
    vm = make_vm(on.lab)
    on.backed_up(vm)
    vm.write("root", 8 * MIB, b"n" * 512)
    on.lab.faults.break_(fault)
    used = on.lab.faults.used[fault]
    outcome = on.backed_up(vm)
    assert on.lab.faults.used[fault] > used
    if fault not in ("backup-fails", "stale-snapshot"):
        assert set(modes(outcome.point).values()) == {"incremental"}
    on.backed_up(vm)


def test_a_backup_that_ends_badly_after_its_point(on: Bench, caplog: pytest.LogCaptureFixture) -> None:
    vm = make_vm(on.lab)
    on.lab.faults.break_("finalize-fails", vm=vm.id)
    outcome = on.backed_up(vm)
    assert "the restore point is good, but" in caplog.text
    assert outcome.point.id in on.repository.point_ids()
    on.backed_up(vm)


def test_the_vm_is_removed(on: Bench) -> None:
    vm = make_vm(on.lab)
    on.lab.faults.break_("vm-removed", at="reading", vm=vm.id)
    with pytest.raises(VmfsError) as error:
        on.back_up(vm)
    assert vm.id in str(error.value) or vm.name in str(error.value)
    assert on.repository.point_ids() == []
    on.check_clean()


def test_hosts_that_cannot_be_reached(on: Bench) -> None:
    vm = make_vm(on.lab)
    on.lab.faults.break_("all-unreachable", times=0)
    with pytest.raises(VmfsError, match="run the backup again"):
        on.back_up(vm, patience=1)
    assert on.repository.point_ids() == []
    on.lab.faults.mend()
    on.check_clean()
    assert on.checkpoints(vm) == [], "that of a failed backup is removed"


def test_an_imageio_whose_certificate_has_expired(on: Bench) -> None:
    vm = make_vm(on.lab)
    on.lab.faults.break_("imageio-certificate-expired")
    on.lab.proxy.restart(certificate=on.lab.authority.issue("late", expired=True))
    try:
        with pytest.raises(VmfsError, match="certificate has expired"):
            on.back_up(vm)
    finally:
        on.lab.proxy.restart(certificate=on.lab.authority.issue("proxy"))
        on.lab.faults.mend()
    on.check_clean()


def test_two_backups_at_once(on: Bench, tmp_path: Path) -> None:
    """The second waits for the first, and does not clean up what belongs to it."""
    vm = make_vm(on.lab)
    outcomes: list[Any] = []
    began = threading.Event()
    proceed = threading.Event()

    def hold(_: Any) -> None:
        began.set()
        assert proceed.wait(60)

    on.lab.faults.actions["test-hold"] = hold
    faults.FAULTS["test-hold"] = faults.Fault("test-hold", "a test holds the reader", 0, True)
    try:
        on.lab.faults.break_("test-hold", at="reading")

        def run() -> None:
            with bench(on.lab, on.repository, tmp_path / "other") as other:
                outcomes.append(other.back_up(vm))

        (tmp_path / "other").mkdir()
        first = threading.Thread(target=run)
        first.start()
        assert began.wait(60)
        threading.Timer(1.0, proceed.set).start()
        second = on.backed_up(vm)
        first.join()
    finally:
        proceed.set()
        del faults.FAULTS["test-hold"]
    assert second.cleaned == []
    assert len(outcomes) == 1
    assert set(modes(second.point).values()) == {"full"}, "it looked when the first had no point yet"


# What is chosen, required, compared.


def test_the_choice_of_disks(on: Bench, caplog: pytest.LogCaptureFixture) -> None:
    disks = [recipe("root"), recipe("swap", description="scratch backup=0"), recipe("data")]
    vm = make_vm(on.lab, disks=disks)
    outcome = on.backed_up(vm)
    assert set(modes(outcome.point)) == {"root", "data"}
    assert outcome.left_out == [("swap", "its description says backup=0")]
    named = on.backed_up(vm, disks=("swap", vm.disks["root"])).point
    assert modes(named) == {"root": "incremental", "swap": "full"}
    with pytest.raises(UsageError, match=r"has no disk 'nothing'; it has data, root, swap"):
        on.back_up(vm, disks=("nothing",))
    with on.lab.core.lock:
        on.lab.core.disk(vm.disks["data"]).status = "illegal"
    assert set(modes(on.back_up(vm).point)) == {"root"}
    assert "disk data is left out: the engine says that it is illegal" in caplog.text
    with pytest.raises(VmfsError, match=r"disk data of VM .* cannot be backed up: the engine says"):
        on.back_up(vm, disks=("data",))
    with on.lab.core.lock:
        on.lab.core.disk(vm.disks["data"]).status = "ok"
    on.check_clean()


def test_disks_in_turns(on: Bench) -> None:
    """Each has a chain of its own, and the checkpoint of each is kept."""
    vm = make_vm(on.lab)
    root, data = on.backed_up(vm, disks=("root",)).point, on.backed_up(vm, disks=("data",)).point
    assert len(on.checkpoints(vm)) == 2
    vm.write("root", 8 * MIB, b"1" * 512)
    vm.write("data", 8 * MIB, b"2" * 512)
    again = on.backed_up(vm, disks=("root",)).point
    assert (modes(again), again.manifest.parent) == ({"root": "incremental"}, root.id)
    again = on.backed_up(vm, disks=("data",)).point
    assert (modes(again), again.manifest.parent) == ({"data": "incremental"}, data.id)
    assert len(on.checkpoints(vm)) == 2
    assert modes(on.backed_up(vm).point) == {"root": "full", "data": "incremental"}
    assert len(on.checkpoints(vm)) == 1


def test_two_repositories(on: Bench, tmp_path: Path) -> None:
    """Each keeps its own checkpoint, and starts from it."""
    vm = make_vm(on.lab)
    with (
        Repository.create(
            LocalStore(tmp_path / "second"), SECRET, chunk_size=CHUNK, cost=10, cache_root=tmp_path / "cache2"
        ) as second,
        bench(on.lab, second, tmp_path / "cache2") as other,
    ):
        on.backed_up(vm)
        other.backed_up(vm)
        assert len(on.checkpoints(vm)) == 2
        vm.write("root", 8 * MIB, b"1" * 512)
        assert set(modes(on.backed_up(vm).point).values()) == {"incremental"}
        assert set(modes(other.backed_up(vm).point).values()) == {"incremental"}
        assert len(on.checkpoints(vm)) == 2


def test_required_consistency(on: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    vm = make_vm(on.lab)
    assert on.backed_up(vm, require_consistency=True).point.manifest.consistency == "filesystem"

    def refuse(engine: Any, vm: Any, backup: Any) -> None:
        if backup.require_consistency:
            raise MachineError("Failed to freeze guest filesystems: Guest agent is not responding")

    monkeypatch.setattr(backup_start, "_spoil", refuse)
    with pytest.raises(PolicyError, match=r"freeze.*; see that the guest agent runs in the VM, or leave out"):
        on.back_up(vm, require_consistency=True)
    assert len(on.repository.point_ids()) == 1
    on.check_clean()
    assert on.backed_up(vm).point.manifest.consistency == "crash"
    # Nobody needs to quiesce a guest that does not run.
    vm.stop()
    assert on.backed_up(vm, require_consistency=True).point.manifest.consistency == "offline"


def test_an_audit(on: Bench, caplog: pytest.LogCaptureFixture) -> None:
    vm = make_vm(on.lab, disks=[recipe("root", chunks=[(0, bytes(range(1, 251)) * 50_000)]), recipe("data")])
    on.backed_up(vm)
    vm.write("root", 0, b"x" * 512)
    outcome = on.backed_up(vm, audit=Audit(10, seed=1))
    sampled = {finding.alias: finding for finding in outcome.findings}
    assert all(finding.mismatch is None for finding in outcome.findings)
    assert sampled["root"].compared == 26 * CHUNK
    assert on.transferred(vm)["root"] == CHUNK + sampled["root"].read
    assert set(modes(outcome.point).values()) == {"incremental"}
    # A change that the bitmap does not know of.
    spoil_behind_the_bitmap(vm, "root")
    outcome = on.back_up(vm, audit=Audit(100))
    assert modes(outcome.point) == {"root": "full", "data": "incremental"}
    assert "audit: a change at byte" in str(reasons(outcome.point)["root"])
    assert "AUDIT FAILED" in caplog.text
    on.check_clean()


def spoil_behind_the_bitmap(vm: LabVm, alias: str) -> None:
    """Write to the image while the VM is down, with the bitmaps put aside, as a lost write of them does."""
    vm.stop()
    vm.lab.core.wait(lambda: vm.record.status == "down", 60)
    disk = vm.lab.core.disk(vm.disks[alias])
    path = disk.files[-1]
    info = json.loads(
        subprocess.run(["qemu-img", "info", "--output=json", path], capture_output=True, check=True).stdout
    )
    names = [item["name"] for item in info["format-specific"]["data"].get("bitmaps", [])]
    for name in names:
        subprocess.run(["qemu-img", "bitmap", "--disable", path, name], check=True)
    subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", "write -P 0x66 4M 512", path], check=True, capture_output=True
    )
    for name in names:
        subprocess.run(["qemu-img", "bitmap", "--enable", path, name], check=True)
    vm.start()


def test_hooks(on: Bench, tmp_path: Path) -> None:
    vm = make_vm(on.lab)
    script = tmp_path / "hook"
    script.write_text(
        "#!/bin/sh\n"
        f'echo "$1 $VMFS_VM_NAME $VMFS_RESULT ${{VMFS_POINT:-none}}" >> {tmp_path}/told\n'
        '[ "$1" != fail ]\n'
    )
    script.chmod(0o700)
    point = on.backed_up(
        vm, pre=make_hook("pre", f"{script} pre"), post=make_hook("post", f"{script} post")
    ).point
    told = (tmp_path / "told").read_text().splitlines()
    assert told == [f"pre {vm.name}  none", f"post {vm.name} success {point.id}"]
    with pytest.raises(HookError, match=r"the pre command .* failed with exit status 1"):
        on.back_up(vm, pre=make_hook("pre", f"{script} fail"))
    assert len(on.repository.point_ids()) == 1
    on.backed_up(vm, pre=make_hook("pre", f"{script} fail", policy="warn"))
    on.lab.faults.break_("backup-fails", times=2, vm=vm.id)
    with pytest.raises(BackupFailedError):
        on.back_up(vm, full=True, mode="hybrid", post=make_hook("post", f"{script} post"))
    assert (tmp_path / "told").read_text().splitlines()[-1] == f"post {vm.name} failure none"


# By the command.


def test_leftovers_of_others_are_left_alone(on: Bench) -> None:
    """A backup of another product is waited for, not ended."""
    vm = make_vm(on.lab)
    with on.lab.core.lock:
        other = backups.begin(on.lab.core, vm.record, [vm.disks["root"]], description="nightly of somebody")
    on.lab.core.wait(lambda: other.phase == "ready", 60)
    on.engine.patience = 1
    with pytest.raises(EngineError, match="during"):
        on.back_up(vm)
    assert other.phase == "ready"
    on.engine.patience = 20
    finish_backup(on.engine, get_vm(on.engine, vm.id), other.id)
    on.backed_up(vm)
