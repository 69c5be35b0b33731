"""VMs, backups, transfers and checkpoints of the lab's engine, when all goes well."""

from __future__ import annotations

import pytest
from engine_helpers import REPOSITORY, SIZE, Guest, client_of, read_all, small_guest
from lab_helpers import DEFAULT, LEGACY, MIB, DiskRecipe, Lab, needs_lab
from ovirtsdk4 import types

from ingest.engine.backups import Mode
from ingest.engine.checkpoints import (
    checkpoint_disks,
    list_checkpoints,
    prune_checkpoints,
    remove_checkpoint,
)
from ingest.engine.cleanup import remove_disk
from ingest.engine.errors import NotFoundError, WaitError
from ingest.engine.marks import short_id
from ingest.engine.session import Engine
from ingest.engine.snapshots import backup_snapshots
from ingest.engine.transfers import active_transfers, download, upload
from ingest.engine.vms import find_vm, get_disk, get_vm, list_vms, vm_disks, vm_ovf
from vmfs.errors import UsageError

pytestmark = needs_lab
pytest_plugins = ["engine_fixtures"]


def new_disk(engine: Engine, lab: Lab, *, size: int = SIZE) -> str:
    """A free one, and ready."""
    disks = engine.services().disks_service()
    made = disks.add(
        types.Disk(
            name="new",
            format=types.DiskFormat.COW,
            sparse=True,
            provisioned_size=size,
            storage_domains=[types.StorageDomain(id=lab.domain().id)],
        )
    )
    engine.wait("disk", lambda: get_disk(engine, made.id).status, lambda status: status == "ok", limit=60)
    return str(made.id)


# VMs.


def test_a_vm_is_found_by_its_name_and_by_its_id(lab: Lab, engine: Engine) -> None:
    guest = small_guest(lab, engine)
    assert find_vm(engine, guest.made.name) == find_vm(engine, guest.made.id) == guest.vm
    assert find_vm(engine, guest.made.id.upper()) == guest.vm
    assert (guest.vm.status, guest.vm.cluster, guest.vm.level) == ("up", DEFAULT, (4, 7))
    assert guest.vm.running
    assert guest.vm in list_vms(engine)


@pytest.mark.parametrize("name", ["with space", "web*", 'q"uote', "büro", "a=b or name=c"])
def test_names_that_a_search_would_misunderstand(lab: Lab, engine: Engine, name: str) -> None:
    made = lab.create_vm(name, [], up=False)
    found = find_vm(engine, name)
    assert (found.id, found.name, found.running) == (made.id, name, False)


def test_a_vm_that_is_not_there(lab: Lab, engine: Engine) -> None:
    small_guest(lab, engine)
    for name in ("no-such", "vm", "VM1", "*", "11111111-1111-1111-1111-111111111111"):
        with pytest.raises(UsageError, match=r"has no VM .* list them with: vmfs-ingest vms --engine lab"):
            find_vm(engine, name)
    with pytest.raises(NotFoundError):
        get_vm(engine, "11111111-1111-1111-1111-111111111111")


def test_a_name_that_two_vms_have(lab: Lab, engine: Engine) -> None:
    guest = small_guest(lab, engine)
    lab.faults.break_("name-not-unique", vm=guest.made.id)
    with pytest.raises(UsageError, match="has 2 VMs called") as caught:
        find_vm(engine, guest.made.name)
    assert f"{guest.made.id} (cluster Default)" in str(caught.value)
    assert find_vm(engine, guest.made.id) == guest.vm


def test_the_disks_of_a_vm(lab: Lab, engine: Engine) -> None:
    made = lab.create_vm(
        "three",
        [
            DiskRecipe("zeta", 2 * MIB, format="raw", sparse=False, interface="virtio"),
            DiskRecipe("same", 2 * MIB, description="not this (backup=0)"),
            DiskRecipe("a/b\tc", 4 * MIB, bootable=True, description="backup=01"),
        ],
        up=False,
    )
    lab.add_disk(made, DiskRecipe("same", 6 * MIB))
    disks = vm_disks(engine, find_vm(engine, "three"))
    assert [disk.alias.split("-")[0] for disk in disks] == ["a_b_c", "same", "same", "zeta"]
    same = [disk for disk in disks if disk.name == "same"]
    assert {disk.alias for disk in same} == {f"same-{disk.id[:8]}" for disk in same}
    boot, zeta = disks[0], disks[3]
    assert (boot.bootable, boot.format, boot.incremental, boot.size) == (True, "cow", True, 4 * MIB)
    assert (zeta.format, zeta.incremental, zeta.sparse, zeta.interface) == ("raw", False, False, "virtio")
    assert zeta.storage_domain_id == lab.domain().id
    reasons = {disk.size: disk.left_out for disk in disks if disk.name == "same"}
    assert reasons == {2 * MIB: "its description says backup=0", 6 * MIB: None}
    assert boot.left_out is None


def test_the_configuration_of_a_vm(lab: Lab, engine: Engine) -> None:
    guest = small_guest(lab, engine)
    ovf = vm_ovf(engine, guest.vm).decode()
    assert guest.made.name in ovf
    assert guest.disks[0] in ovf


# Backups and downloads.

MODES = [
    pytest.param(DEFAULT, "auto", id="hybrid"),
    pytest.param(DEFAULT, "hybrid", id="hybrid-asked"),
    pytest.param(DEFAULT, "live", id="live-asked"),
    pytest.param(LEGACY, "auto", id="live"),
    pytest.param(LEGACY, "live", id="live-old"),
]


@pytest.mark.parametrize(("cluster", "mode"), MODES)
def test_a_full_and_an_incremental_backup(lab: Lab, engine: Engine, cluster: str, mode: Mode) -> None:
    guest = small_guest(lab, engine, formats=("cow", "raw"), cluster=cluster)
    with guest.backup(mode=mode) as full:
        assert bool(backup_snapshots(engine, guest.vm)) == (cluster == DEFAULT and mode != "live")
        guest.write(b"after the backup began", at=MIB)
        assert guest.read(full) == guest.record(full)
        assert guest.read(full, disk=1) == guest.record(full, disk=1)
    assert full.checkpoint is not None
    assert full.incremental == dict.fromkeys(guest.disks, False)
    assert full.time is not None
    guest.write(b"more", at=2 * MIB)
    with guest.backup(mode=mode, since=full.checkpoint) as second:
        assert second.incremental == {guest.disks[0]: True, guest.disks[1]: False}
        with (
            download(engine, disk_id=guest.disks[0], backup_id=second.id, host_id=second.host_id) as transfer,
            client_of(lab, transfer) as client,
        ):
            dirty = sorted(
                (item.start, item.start + item.length) for item in client.extents("dirty") if item.dirty
            )
        # The second is told as two: what the guest wrote, and zeros.
        assert (dirty[0], dirty[1][0], dirty[-1][1]) == ((MIB, MIB + 65536), 2 * MIB, 2 * MIB + 65536)
        assert guest.read(second) == guest.record(second)
    assert second.checkpoint not in (None, full.checkpoint)


@pytest.mark.parametrize("cluster", [DEFAULT, LEGACY])
def test_a_vm_that_is_down(lab: Lab, engine: Engine, cluster: str) -> None:
    guest = small_guest(lab, engine, cluster=cluster, up=False)
    with guest.backup() as backup:
        assert guest.read(backup) == guest.record(backup)


def test_raw_disks_alone_have_no_checkpoint(lab: Lab, engine: Engine) -> None:
    guest = small_guest(lab, engine, formats=("raw",), cluster=LEGACY)
    with guest.backup() as backup:
        assert guest.read(backup) == guest.record(backup)
    assert backup.checkpoint is None


def test_a_mode_that_the_cluster_does_not_have(lab: Lab, engine: Engine) -> None:
    guest = small_guest(lab, engine, cluster=LEGACY, up=False)
    with (
        pytest.raises(UsageError, match="knows no hybrid backup; use --mode live"),
        guest.backup(mode="hybrid"),
    ):
        pass


def test_a_backup_has_our_id_and_our_description(lab: Lab, engine: Engine) -> None:
    guest = small_guest(lab, engine)
    own = "12345678-1234-1234-1234-123456789abc"
    with guest.backup(backup_id=own) as backup:
        assert backup.id == own
        assert lab.core.backups[own].description == "vmfs 01JD5Z8Q8Y0000000000000000 deadbeef"


def test_a_second_backup_of_a_vm_waits_for_the_first(lab: Lab, engine: Engine) -> None:
    guest = small_guest(lab, engine)
    hasty = Guest(engine.with_patience(0.3), lab, guest.made, guest.vm)
    with guest.backup() as first:
        with pytest.raises(Exception, match="The VM is during a backup operation"), hasty.backup():
            pass
        assert guest.read(first) == guest.record(first)


def test_a_transfer_is_extended_while_it_is_open(lab: Lab, engine: Engine) -> None:
    guest = small_guest(lab, engine)
    with (
        guest.backup() as backup,
        download(engine, disk_id=guest.disks[0], backup_id=backup.id, inactivity=1) as transfer,
    ):
        before = len(lab.api.log)
        path = f"/imagetransfers/{transfer.id}/extend"
        engine.wait("log", lambda: str(lab.api.log[before:]), lambda log: path in log, limit=30)
        assert [item.id for item in active_transfers(engine, set(guest.disks))] == [transfer.id]
        # Used again, it is as before.
        lab.core.transfers[transfer.id].inactivity_timeout = 600
        assert read_all(lab, transfer) == guest.record(backup)


# Uploads.


def test_an_upload_and_a_download_of_a_free_disk(lab: Lab, engine: Engine) -> None:
    disk_id = new_disk(engine, lab)
    with upload(engine, disk_id=disk_id) as transfer, client_of(lab, transfer) as client:
        client.write(MIB, b"uploaded")
        client.zero(2 * MIB, MIB)
        client.flush()
    with download(engine, disk_id=disk_id) as transfer:
        content = read_all(lab, transfer)
    assert content == bytes(MIB) + b"uploaded" + bytes(SIZE - MIB - 8)
    assert get_disk(engine, disk_id).status == "ok"
    assert remove_disk(engine, disk_id)
    assert not remove_disk(engine, disk_id)


def test_an_upload_that_is_broken_off(lab: Lab, engine: Engine) -> None:
    """The engine removes the disk with it, unless we want to keep it."""
    for keep in (False, True):
        disk_id = new_disk(engine, lab)
        with pytest.raises(ZeroDivisionError), upload(engine, disk_id=disk_id, keep_disk=keep):
            _ = 1 / 0
        assert (disk_id in lab.core.disks) == keep
    assert get_disk(engine, disk_id).status == "ok"
    remove_disk(engine, disk_id)


# Checkpoints.


def test_checkpoints_are_listed_in_their_order(lab: Lab, engine: Engine) -> None:
    guest = small_guest(lab, engine, formats=("cow", "raw"), cluster=LEGACY)
    ids = [guest.checkpoint() for _ in range(3)]
    found = list_checkpoints(engine, guest.vm)
    assert [item.id for item in found] == ids
    assert [item.parent for item in found] == [None, *ids[:-1]]
    assert all(item.valid and item.created for item in found)
    assert {item.repository for item in found} == {short_id(REPOSITORY)}
    assert checkpoint_disks(engine, guest.vm, ids[0]) == guest.disks[:1]
    with pytest.raises(NotFoundError):
        checkpoint_disks(engine, guest.vm, "no-such")


def test_removing_a_checkpoint(lab: Lab, engine: Engine) -> None:
    guest = small_guest(lab, engine)
    first, second = guest.checkpoint(), guest.checkpoint()
    remove_checkpoint(engine, guest.vm, first)
    remove_checkpoint(engine, guest.vm, first)
    assert [item.id for item in list_checkpoints(engine, guest.vm)] == [second]
    with guest.backup(since=second) as backup:
        assert backup.incremental == {guest.disks[0]: True}


def test_pruning_removes_what_is_ours_and_not_needed(
    lab: Lab, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    guest = small_guest(lab, engine)
    ids = [guest.checkpoint() for _ in range(4)]
    lab.core.vm(guest.vm.id).checkpoints[0].description = "of another product"
    lab.core.vm(guest.vm.id).checkpoints[1].description = ""

    def prune(engine: Engine, *, keep: set[str], own: set[str]) -> list[str]:
        present = list_checkpoints(engine, guest.vm)
        return prune_checkpoints(engine, guest.vm, present, keep=keep, own=own, repository="deadbeef")

    assert prune(engine, keep={ids[3]}, own=set()) == [ids[2]]
    assert prune(engine, keep={ids[3]}, own={ids[1]}) == [ids[1]]
    assert [item.id for item in list_checkpoints(engine, guest.vm)] == [ids[0], ids[3]]
    hasty = engine.with_patience(0.2)
    with guest.backup():
        assert prune(hasty, keep=set(), own=set(ids)) == []
    assert "is not needed any more stays" in caplog.text


def test_waiting_for_ready_has_a_limit(lab: Lab, engine: Engine) -> None:
    """And what was begun is ended all the same."""
    guest = small_guest(lab, engine)
    with pytest.raises(WaitError), guest.backup(limit=0):
        pass
