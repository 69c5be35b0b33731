"""Faults of backups and checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable

from lab_client_helpers import refusal
from lab_fault_bench import Bench, case, remove_snapshot


@case("checkpoint-redefine-fails")
def _(on: Bench) -> None:
    on.sdk.checkpoint(on.vm)
    on.break_("checkpoint-redefine-fails")
    assert on.ends() == "failed"
    assert on.sdk.event_codes()[:2] == [10792, 10791]
    assert on.sdk.vm(on.vm).checkpoints_service().list() == []
    assert on.ends() == "ready"


@case("bitmap-broken")
def _(on: Bench) -> None:
    since = on.sdk.checkpoint(on.vm)
    on.break_("bitmap-broken")
    with on.sdk.backup(on.vm, since=since) as backup:
        transfer = on.sdk.add_transfer(on.root, backup=backup.id)
        on.sdk.until_phase(transfer, "finished_failure")
    assert on.ends(since=since, legacy=True) == "failed"


@case("checkpoint-absent")
def _(on: Bench) -> None:
    on.break_("checkpoint-absent", replies=2)
    with on.sdk.backup(on.vm) as backup:
        assert backup.to_checkpoint_id is None
        again = [
            on.sdk.vm(on.vm).backups_service().backup_service(backup.id).get().to_checkpoint_id
            for _ in range(2)
        ]
        assert again[0] is None
        assert again[1] is not None


@case("disk-not-in-checkpoint")
def _(on: Bench) -> None:
    since = on.sdk.checkpoint(on.vm)
    on.break_("disk-not-in-checkpoint", disk=on.root)
    for mode in ("full", "incremental"):
        with on.sdk.backup(on.vm, since=since) as backup:
            assert on.sdk.modes(on.vm, backup)["root"] == mode


def conflicting(name: str, act: Callable[[Bench], None]) -> None:
    @case(name)
    def _(on: Bench) -> None:
        on.break_(name)
        with refusal(409):
            act(on)
        assert on.ends() == "ready"


def _begin(on: Bench) -> None:
    on.sdk.add_backup(on.vm)


def _transfer(on: Bench) -> None:
    on.sdk.add_transfer(on.root)


conflicting("conflict-vm-during-backup", _begin)
conflicting("conflict-disk-locked", _begin)
conflicting("conflict-related-operation", _begin)
conflicting("conflict-backup-not-ready", _transfer)
conflicting("conflict-disk-transferred", _transfer)


@case("conflict-active-transfer")
def _(on: Bench) -> None:
    service = on.sdk.add_backup(on.vm)
    on.sdk.until_phase(service, "ready")
    on.break_("conflict-active-transfer")
    with refusal(409):
        service.finalize()
    service.finalize()
    on.sdk.until_phase(service, "succeeded")


@case("checkpoint-unknown")
def _(on: Bench) -> None:
    since = on.sdk.checkpoint(on.vm)
    on.break_("checkpoint-unknown")
    with refusal(400):
        on.sdk.add_backup(on.vm, since=since)


@case("checkpoint-invalid")
def _(on: Bench) -> None:
    since = on.sdk.checkpoint(on.vm)
    on.break_("checkpoint-invalid", checkpoint=since)
    (checkpoint,) = on.sdk.vm(on.vm).checkpoints_service().list()
    assert str(checkpoint.state) == "invalid"
    with refusal(400):
        on.sdk.add_backup(on.vm, since=since)


@case("hosted-engine")
def _(on: Bench) -> None:
    on.break_("hosted-engine")
    with refusal(409):
        on.sdk.add_backup(on.vm)
    on.lab.faults.mend("hosted-engine")
    assert on.ends() == "ready"


@case("finalize-refused")
def _(on: Bench) -> None:
    service = on.sdk.add_backup(on.vm)
    on.sdk.until_phase(service, "ready")
    on.break_("finalize-refused")
    with refusal(400):
        service.finalize()
    on.sdk.until_phase(service, "succeeded")


@case("finalize-slow")
def _(on: Bench) -> None:
    on.break_("finalize-slow", seconds=0.5)
    service = on.sdk.add_backup(on.vm)
    on.sdk.until_phase(service, "ready")
    service.finalize()
    begin = time.monotonic()
    on.sdk.until_phase(service, "finalizing")
    on.sdk.until_phase(service, "succeeded")
    assert time.monotonic() - begin > 0.3


@case("finalize-fails")
def _(on: Bench) -> None:
    on.break_("finalize-fails")
    assert on.ends() == "ready"
    assert str(on.last_backup().phase) == "failed"
    assert on.sdk.vm(on.vm).checkpoints_service().list() == []


@case("snapshot-leftover")
def _(on: Bench) -> None:
    on.break_("snapshot-leftover")
    assert on.ends() == "ready"
    assert str(on.last_backup().phase) == "succeeded"
    assert 10813 in on.sdk.event_codes()[:2]
    assert on.vm.machine.active_format(on.vm.disks["raw"]) == "cow"
    remove_snapshot(on)
    assert on.vm.machine.active_format(on.vm.disks["raw"]) == "raw"


@case("stale-snapshot")
def _(on: Bench) -> None:
    on.break_("stale-snapshot")
    assert on.ends() == "failed"
    assert on.last_backup().snapshot is None
    remove_snapshot(on)


@case("backup-fails")
def _(on: Bench) -> None:
    on.break_("backup-fails")
    assert on.ends() == "failed"
    assert on.sdk.event_codes()[0] == 10792


@case("backup-purged")
def _(on: Bench) -> None:
    on.break_("backup-purged")
    service = on.sdk.add_backup(on.vm)
    on.sdk.until_phase(service, "ready")
    service.finalize()
    with refusal(404):
        on.sdk.until_phase(service, "succeeded")
