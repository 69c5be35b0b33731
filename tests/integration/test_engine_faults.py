"""Backups and transfers of the lab's engine when something goes wrong: what is raised, and that nothing is
left."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from engine_helpers import Guest, client_of, connected, read_all, small_guest
from lab_helpers import DEFAULT, LEGACY, MIB, Lab, needs_lab
from ovirt_imageio._internal import http

from ingest.engine import backups, snapshots
from ingest.engine.backups import Backup
from ingest.engine.checkpoints import list_checkpoints
from ingest.engine.errors import (
    BackupFailedError,
    BrokenChain,
    ConflictError,
    EngineError,
    NotFoundError,
    TransferError,
)
from ingest.engine.session import Engine
from ingest.engine.transfers import download
from vmfs.errors import VmfsError

pytestmark = needs_lab
pytest_plugins = ["engine_fixtures"]

CLUSTERS = pytest.mark.parametrize("cluster", [DEFAULT, LEGACY], ids=["hybrid", "live"])


def backed_up(guest: Guest, **options: Any) -> None:
    """A backup that is read and compared."""
    with guest.backup(**options) as backup:
        assert guest.read(backup) == guest.record(backup)


def lose(guest: Guest, fault: str) -> None:
    """A backup whose VM something happens to before it is read."""
    with guest.backup() as backup:
        guest.lab.faults.break_(fault, vm=guest.made.id)
        guest.read(backup)


def check_broken(guest: Guest, since: str, told: str, *, lost: bool = False) -> None:
    """There is no incremental backup, and a full one at once."""
    with pytest.raises(BrokenChain) as caught, guest.backup(since=since) as backup:
        guest.read(backup)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.checkpoints_lost == lost
    assert guest.lab.leftovers() == []
    backed_up(guest)


# 1, 2, 6, 10: the chain is broken.


def test_redefining_the_checkpoints_fails(lab: Lab, engine: Engine) -> None:
    guest = small_guest(lab, engine, cluster=LEGACY)
    since = guest.checkpoint()
    lab.faults.break_("checkpoint-redefine-fails", vm=guest.made.id)
    check_broken(guest, since, "Full backup is now needed", lost=True)
    assert since not in [item.id for item in list_checkpoints(engine, guest.vm)]


def test_a_bitmap_that_is_gone_shows_when_it_is_read(lab: Lab, engine: Engine) -> None:
    guest = small_guest(lab, engine)
    since = guest.checkpoint()
    lab.faults.break_("bitmap-broken", vm=guest.made.id)
    check_broken(guest, since, "itmap")


def test_a_bitmap_that_is_gone_shows_at_once_in_a_live_backup(lab: Lab, engine: Engine) -> None:
    guest = small_guest(lab, engine, cluster=LEGACY)
    since = guest.checkpoint()
    lab.faults.break_("bitmap-broken", vm=guest.made.id)
    check_broken(guest, since, "Full backup is now needed", lost=True)


@CLUSTERS
def test_a_vm_that_was_powered_off_hard(lab: Lab, engine: Engine, cluster: str) -> None:
    guest = small_guest(lab, engine, cluster=cluster)
    since = guest.checkpoint()
    lab.faults.break_("power-off-hard", vm=guest.made.id)
    check_broken(guest, since, "" if cluster == DEFAULT else "Full backup", lost=cluster == LEGACY)


@CLUSTERS
@pytest.mark.parametrize(
    ("fault", "told"), [("checkpoint-unknown", "doesn't exist"), ("checkpoint-invalid", "is invalid")]
)
def test_a_checkpoint_that_the_engine_refuses(
    lab: Lab, engine: Engine, cluster: str, fault: str, told: str
) -> None:
    guest = small_guest(lab, engine, cluster=cluster)
    since = guest.checkpoint()
    lab.faults.break_(fault, vm=guest.made.id)
    check_broken(guest, since, told)
    assert [item.valid for item in list_checkpoints(engine, guest.vm) if item.id == since] in ([], [False])


def test_a_snapshot_that_was_restored(lab: Lab, engine: Engine) -> None:
    guest = small_guest(lab, engine)
    guest.made.snapshot()
    since = guest.checkpoint()
    lab.faults.break_("snapshot-restored", vm=guest.made.id)
    check_broken(guest, since, "doesn't exist")


# 3, 4: what the engine tells, and when.


@CLUSTERS
def test_a_checkpoint_that_is_told_late(lab: Lab, engine: Engine, cluster: str) -> None:
    guest = small_guest(lab, engine, cluster=cluster)
    lab.faults.break_("checkpoint-absent", vm=guest.made.id, replies=4)
    assert guest.checkpoint()


def test_a_checkpoint_that_is_never_told(
    lab: Lab, engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(backups, "LATE_LIMIT", 0.3)
    guest = small_guest(lab, engine)
    lab.faults.break_("checkpoint-absent", vm=guest.made.id)
    with guest.backup() as backup:
        assert backup.checkpoint is None
    assert "the next backup will be a full one" in caplog.text


@CLUSTERS
def test_a_disk_that_is_not_in_the_checkpoint(lab: Lab, engine: Engine, cluster: str) -> None:
    guest = small_guest(lab, engine, formats=("cow", "cow"), cluster=cluster)
    since = guest.checkpoint()
    lab.faults.break_("disk-not-in-checkpoint", disk=guest.disks[0])
    with guest.backup(since=since) as backup:
        assert backup.incremental == {guest.disks[0]: False, guest.disks[1]: True}
        assert guest.read(backup) == guest.record(backup)


# 5, 6: conflicts.


@pytest.mark.parametrize(
    "fault",
    [
        "conflict-vm-during-backup",
        "conflict-disk-locked",
        "conflict-backup-not-ready",
        "conflict-disk-transferred",
        "conflict-active-transfer",
        "conflict-related-operation",
    ],
)
def test_conflicts_are_waited_for(lab: Lab, engine: Engine, fault: str) -> None:
    guest = small_guest(lab, engine)
    lab.faults.break_(fault, times=2)
    backed_up(guest)
    assert lab.faults.used[fault] == 2


def test_the_vm_of_the_engine_itself(lab: Lab, engine: Engine) -> None:
    guest = small_guest(lab, engine)
    lab.faults.break_("hosted-engine", vm=guest.made.id)
    with pytest.raises(ConflictError, match="Backup of Hosted Engine VM is not supported"), guest.backup():
        pass


# 7, 8, 9: the end of a backup.


@CLUSTERS
@pytest.mark.parametrize("fault", ["finalize-refused", "finalize-slow", "backup-purged", "transfer-purged"])
def test_ends_that_are_good_all_the_same(lab: Lab, engine: Engine, cluster: str, fault: str) -> None:
    guest = small_guest(lab, engine, cluster=cluster)
    lab.faults.break_(fault, **({} if fault.startswith("transfer") else {"vm": guest.made.id}))
    backed_up(guest)
    assert lab.faults.used[fault]


@CLUSTERS
def test_a_backup_that_fails_at_its_end(lab: Lab, engine: Engine, cluster: str) -> None:
    guest = small_guest(lab, engine, cluster=cluster)
    lab.faults.break_("finalize-fails", vm=guest.made.id)
    with pytest.raises(BackupFailedError, match="failed") as caught:
        backed_up(guest)
    assert not caught.value.by_restart


def test_a_snapshot_that_was_left_is_removed(
    lab: Lab, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    guest = small_guest(lab, engine)
    lab.faults.break_("snapshot-leftover", vm=guest.made.id)
    backed_up(guest)
    assert "which a backup had left behind" in caplog.text
    assert snapshots.backup_snapshots(engine, guest.vm) == set()


def test_a_snapshot_that_a_failed_backup_left_is_removed(lab: Lab, engine: Engine) -> None:
    guest = small_guest(lab, engine)
    lab.faults.break_("stale-snapshot", vm=guest.made.id)
    with pytest.raises(BackupFailedError), guest.backup():
        pass
    assert lab.leftovers() == []
    backed_up(guest)


def test_a_snapshot_of_somebody_else_stays(lab: Lab, engine: Engine) -> None:
    guest = small_guest(lab, engine)
    other = guest.made.snapshot(f"{snapshots.GENERATED} by hand")
    lab.faults.break_("snapshot-leftover", vm=guest.made.id)
    backed_up(guest)
    assert snapshots.backup_snapshots(engine, guest.vm) == {other}


@CLUSTERS
def test_a_backup_that_fails_before_it_is_ready(lab: Lab, engine: Engine, cluster: str) -> None:
    guest = small_guest(lab, engine, cluster=cluster)
    since = guest.checkpoint()
    lab.faults.break_("backup-fails", vm=guest.made.id)
    with pytest.raises(BackupFailedError, match="unable to execute QEMU command") as caught:
        backed_up(guest, since=since)
    assert "\n" not in str(caught.value)
    assert lab.leftovers() == []
    backed_up(guest, since=since)


@CLUSTERS
@pytest.mark.parametrize("moment", ["backup-requested", "backup-ready", "backup-finalizing", "transferring"])
@pytest.mark.parametrize("fault", ["engine-restart", "sso-expired"])
def test_an_engine_that_restarts(lab: Lab, engine: Engine, cluster: str, moment: str, fault: str) -> None:
    guest = small_guest(lab, engine, cluster=cluster)
    lab.faults.break_(fault, at=moment)
    backed_up(guest)
    assert lab.faults.used[fault]


@CLUSTERS
@pytest.mark.parametrize("moment", ["backup-starting", "backup-ready", "transferring"])
def test_an_engine_that_forgets_its_backups(lab: Lab, engine: Engine, cluster: str, moment: str) -> None:
    guest = small_guest(lab, engine, cluster=cluster)
    lab.faults.break_("backup-unmonitored", at=moment)
    with pytest.raises(EngineError) as caught:
        backed_up(guest)
    if isinstance(caught.value, BackupFailedError):
        assert caught.value.by_restart
    assert lab.leftovers() == []
    backed_up(guest)


# 11 to 14: transfers.


@pytest.mark.parametrize("fault", ["inactivity", "transfer-paused"])
def test_a_transfer_that_the_engine_has_ended(lab: Lab, engine: Engine, fault: str) -> None:
    guest = small_guest(lab, engine)

    def lose_transfer(backup: Backup) -> None:
        with download(engine, disk_id=guest.disks[0], backup_id=backup.id) as transfer:
            lab.faults.break_(fault, at="now")
            transfer.check()

    with guest.backup() as backup:
        with pytest.raises(TransferError, match="download of disk") as caught:
            lose_transfer(backup)
        assert "\n" not in str(caught.value)
        assert guest.read(backup) == guest.record(backup)


def test_a_ticket_that_has_expired_is_good_again_once_it_is_extended(lab: Lab, engine: Engine) -> None:
    guest = small_guest(lab, engine)
    with guest.backup() as backup, download(engine, disk_id=guest.disks[0], backup_id=backup.id) as transfer:
        lab.faults.break_("ticket-expired", at="now")
        with pytest.raises(http.Error, match="expired"):
            read_all(lab, transfer)
        transfer.revive()
        assert read_all(lab, transfer) == guest.record(backup)


def test_a_download_that_the_engine_finalizes_by_itself(lab: Lab, engine: Engine) -> None:
    guest = small_guest(lab, engine)
    lab.faults.break_("engine-finalizes-download", disk=guest.disks[0])
    backed_up(guest)
    assert lab.faults.used["engine-finalizes-download"]


def test_a_ticket_that_is_in_use(lab: Lab, engine: Engine) -> None:
    guest = small_guest(lab, engine)
    lab.faults.break_("ticket-busy", seconds=1)
    backed_up(guest)


def test_a_client_that_is_still_connected(lab: Lab, engine: Engine) -> None:
    """The daemon ends its connection, in a while."""
    guest = small_guest(lab, engine)
    with guest.backup() as backup:
        with download(engine, disk_id=guest.disks[0], backup_id=backup.id) as transfer:
            context = client_of(lab, transfer)
            client = context.__enter__()
            client.read(0, bytearray(MIB))
        with suppress(Exception):
            context.__exit__(None, None, None)


# 18, 19: answers that are lost.


@CLUSTERS
@pytest.mark.parametrize("fault", ["answer-lost", "connection-dropped", "unavailable"])
@pytest.mark.parametrize("path", ["/backups$", "/imagetransfers$", "/finalize$"])
def test_answers_that_are_lost(lab: Lab, engine: Engine, cluster: str, fault: str, path: str) -> None:
    guest = small_guest(lab, engine, cluster=cluster)
    lab.faults.break_(fault, method="POST", path=path)
    with guest.backup() as backup:
        assert guest.read(backup) == guest.record(backup)
    assert lab.faults.used[fault]
    made = [item for item in lab.core.backups.values() if item.vm_id == guest.made.id]
    assert [item.id for item in made] == [backup.id]


def test_an_engine_that_hangs(lab: Lab) -> None:
    with connected(lab, timeout=0.5) as engine:
        guest = small_guest(lab, engine)
        for path in ("/backups$", "/imagetransfers$", "/finalize$"):
            lab.faults.break_("connection-hangs", method="POST", path=path, seconds=3)
        backed_up(guest)


# The VM.


def test_a_vm_that_is_removed_in_the_middle(lab: Lab, engine: Engine) -> None:
    guest = small_guest(lab, engine)
    with pytest.raises(VmfsError):
        lose(guest, "vm-removed")
    with pytest.raises(NotFoundError), guest.backup():
        pass


@CLUSTERS
def test_a_vm_that_is_migrated_in_the_middle(lab: Lab, engine: Engine, cluster: str) -> None:
    guest = small_guest(lab, engine, cluster=cluster)
    with pytest.raises(VmfsError):
        lose(guest, "vm-migrated")
    assert lab.leftovers() == []
    backed_up(guest)
