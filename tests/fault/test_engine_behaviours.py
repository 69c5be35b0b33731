"""What a client of the engine must survive: nineteen ways in which engines, hosts and imageio behave.

Each has its fault in the lab. After each: what vmfs did, what it said, a point that is right byte for byte,
and nothing of ours left in the engine.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from engine_fault_helpers import HYBRID, LIVE, MODES, Admit, Clinic, Patient, once
from engine_helpers import connected
from lab.machine import DiskImage
from lab.qemu_img import qemu_img
from lab_helpers import LEGACY, needs_lab
from ovirt_imageio._internal.backends import http as imageio_http_backend

from ingest.engine import checkpoints
from ingest.engine.backups import running_backup
from ingest.engine.errors import ConflictError, LoginError
from ingest.engine.session import Engine
from ingest.engine.settings import EngineSettings
from ingest.engine.vms import get_vm
from ingest.sources.base import SourceError

pytestmark = needs_lab
pytest_plugins = "engine_fault_fixtures"


# 1. The checkpoints cannot be redefined: the backup fails, and the engine has dropped the whole chain.


def test_1_checkpoints_cannot_be_redefined(admit: Admit) -> None:
    patient = admit("cow", "cow", mode=LIVE)
    patient.full_then_write()
    with patient.broken("checkpoint-redefine-fails"):
        taken = patient.backup()
    assert taken.full
    assert taken.backups == 1
    assert all("Full backup is now needed" in reason for reason in taken.reasons.values())
    assert "reading all disks in full" in taken.said
    patient.check_chain()


def test_1_in_an_old_cluster_the_summary_says_why(admit: Admit, clinic: Clinic) -> None:
    patient = admit("cow", cluster=LEGACY)
    patient.full_then_write()
    with patient.broken("checkpoint-redefine-fails"):
        done = clinic.command("backup", "--vm", patient.vm.name)
    assert done.status == 0
    assert re.search(r"^  a: full \(.*Full backup is now needed.*\), ", done.out, re.MULTILINE)
    patient.check(patient.points()[-1])
    clinic.check_clean()


def test_1_the_real_bitmap_is_gone(admit: Admit) -> None:
    """The engine finds out by itself when it looks."""
    patient = admit("cow", "cow", mode=LIVE)
    patient.full_then_write()
    with patient.broken("bitmap-broken"):
        taken = patient.backup()
    assert taken.full
    assert "Full backup is now needed" in taken.reasons["a"]


# 2. The bitmap is broken, a hybrid backup becomes ready all the same, and the transfer dies.


def test_2_hybrid_with_a_broken_bitmap(admit: Admit, clinic: Clinic) -> None:
    patient = admit("cow", "raw", mode=HYBRID)
    patient.full_then_write()
    with patient.broken("bitmap-broken"):
        taken = patient.backup()
    assert taken.full
    assert "its bitmap is broken: " in taken.reasons["a"]
    assert "Bitmap does not exist" in taken.reasons["a"]
    assert "Bitmap does not exist" in taken.said
    assert taken.reasons["b"] == "a raw disk, of which changes cannot be known"
    patient.write()
    again = patient.backup()
    assert again.modes == {"a": "incremental", "b": "full"}


def test_2_only_one_disk_has_lost_its_bitmap(admit: Admit) -> None:
    """A backup begins from one checkpoint, so all of the VM is read in full."""
    patient = admit("cow", "cow", mode=HYBRID)
    patient.full_then_write()
    disk = patient.lab.core.disk(patient.vm.disks["b"])
    (image,) = disk.files
    patient.vm.machine.remove_disk(disk.id)
    for checkpoint in patient.vm.record.checkpoints:
        qemu_img("bitmap", "--remove", str(image), checkpoint.id)
    patient.vm.machine.add_disk(DiskImage(disk.id, (image,), "cow", disk.size))
    taken = patient.backup()
    assert taken.full
    # What is wrong with the other disk is said of both, and it is named as the user knows it.
    for reason in taken.reasons.values():
        assert reason.startswith(f"disk {patient.vm.name}/b: its bitmap is broken: ")
        assert "Bitmap does not exist" in reason
    assert set(taken.reasons) == {"a", "b"}
    patient.check_chain()


def test_2_hybrid_with_a_broken_bitmap_of_which_the_engine_says_nothing(
    admit: Admit, clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks like a host that will be back, so that is waited for first."""
    patient = admit("cow", mode=HYBRID)
    patient.full_then_write()
    monkeypatch.setattr("ingest.engine.events.events_of_transfer", lambda *_, **__: [])
    with patient.broken("bitmap-broken"):
        (disk,) = patient.attempt(patience=1.0).point.manifest.disks
    assert disk.mode == "full"
    assert str(disk.full_reason).startswith("what changed could not be read: disk ")
    patient.check(patient.points()[-1])
    clinic.check_clean()
    patient.check_chain()


# 3. to_checkpoint_id comes late, or never.


@MODES
def test_3_the_checkpoint_is_told_late(admit: Admit, mode: str) -> None:
    patient = admit("cow", mode=mode)
    with patient.broken("checkpoint-absent", replies=3):
        taken = patient.backup()
    assert taken.facts["disks"][0]["checkpoint"] == patient.vm.record.checkpoints[-1].id
    patient.check_chain()


@MODES
def test_3_the_checkpoint_is_never_told(admit: Admit, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.engine.backups.LATE_LIMIT", 1.0)
    patient = admit("cow", mode=mode)
    with patient.broken("checkpoint-absent"):
        taken = patient.backup()
    assert taken.facts["disks"][0]["checkpoint"] is None
    assert "the engine took no checkpoint; the next backup will be a full one" in taken.said
    patient.write()
    again = patient.backup()
    assert again.reasons == {"a": "no restore point of this VM has a checkpoint"}
    # That of the first, which no point records, is not kept for ever.
    assert [each.id for each in patient.vm.record.checkpoints] == [again.facts["disks"][0]["checkpoint"]]
    assert patient.backup().incremental


@MODES
def test_3_raw_disks_only(admit: Admit, mode: str) -> None:
    patient = admit("raw", mode=mode)
    for _ in range(3):
        taken = patient.backup()
        assert taken.full
        assert "took no checkpoint" not in taken.said
        assert taken.facts["disks"][0]["checkpoint"] is None
        patient.write()
    assert len(patient.vm.record.checkpoints) <= 1


# 4. Which disks are incremental is to be asked for each.


@MODES
def test_4_a_disk_is_not_in_the_checkpoint(patient: Patient, clinic: Clinic, mode: str) -> None:
    with clinic.broken("disk-not-in-checkpoint", disk=patient.vm.disks["b"]):
        taken = patient.backup()
    assert taken.modes == {"a": "incremental", "b": "full"}
    assert "the engine does not know what changed" in taken.reasons["b"]
    assert "disk " + patient.vm.name + "/b is read in full: the engine does not know" in taken.said
    patient.check_chain()


@MODES
def test_4_raw_and_qcow2(admit: Admit, mode: str) -> None:
    patient = admit("cow", "raw", mode=mode)
    patient.full_then_write()
    taken = patient.backup()
    assert taken.modes == {"a": "incremental", "b": "full"}
    assert taken.reasons == {"b": "a raw disk, of which changes cannot be known"}


# 5. Conflicts that pass.


@MODES
@pytest.mark.parametrize(
    "conflict",
    [
        "conflict-vm-during-backup",
        "conflict-disk-locked",
        "conflict-backup-not-ready",
        "conflict-disk-transferred",
        "conflict-active-transfer",
        "conflict-related-operation",
    ],
)
def test_5_a_conflict_that_passes(patient: Patient, clinic: Clinic, mode: str, conflict: str) -> None:
    with clinic.broken(conflict, times=2, used=2):
        taken = patient.backup()
    assert taken.incremental
    assert taken.backups == 1


def test_5_another_backup_of_the_vm_goes_on(admit: Admit, clinic: Clinic) -> None:
    """That of another product: it is waited for, and left alone."""
    patient = admit("cow", mode=LIVE)
    patient.full_then_write()
    with connected(clinic.lab) as engine, ThreadPoolExecutor(1) as pool:
        vm = get_vm(engine, patient.vm.id)
        with running_backup(engine, vm, list(patient.vm.disks.values()), description="another", mode="live"):
            with pytest.raises(ConflictError, match=r"during a backup|locked"):
                patient.attempt(engine_patience=0.5)
            (left,) = [each for each in clinic.lab.leftovers() if each.startswith("backup")]
            assert left.endswith("is ready")
            log = len(clinic.lab.api.log)
            waiting = pool.submit(patient.attempt)
            clinic.until_refused(after=log)
        point = waiting.result().point
    assert [disk.mode for disk in point.manifest.disks] == ["incremental"]
    patient.check(point.id)
    clinic.check_clean()


# 6. Requests that are refused.


@MODES
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("checkpoint-unknown", "the engine has no checkpoint of this VM's restore points any more"),
        ("checkpoint-invalid", "the engine says that the VM's checkpoints are invalid"),
    ],
)
def test_6_no_checkpoint_to_begin_from(patient: Patient, mode: str, fault: str, reason: str) -> None:
    with patient.broken(fault):
        taken = patient.backup()
    assert taken.reasons == dict.fromkeys("ab", reason)
    patient.check_chain()


@MODES
@pytest.mark.parametrize(
    ("fault", "told"), [("checkpoint-unknown", "doesn't exist"), ("checkpoint-invalid", "is invalid")]
)
def test_6_the_checkpoint_is_lost_after_we_have_seen_it(
    patient: Patient, clinic: Clinic, monkeypatch: pytest.MonkeyPatch, mode: str, fault: str, told: str
) -> None:
    lose = partial(clinic.lab.faults.break_, fault, vm=patient.vm.id)
    once(monkeypatch, checkpoints, "list_checkpoints", after=lose)
    taken = patient.backup()
    assert any(line.endswith("/backups -> 400") for line in _paths(clinic))
    assert taken.full
    assert told in taken.reasons["a"]


def _paths(clinic: Clinic) -> list[str]:
    """Of the requests that were logged, without their queries."""
    return [re.sub(r"\?\S*", "", line) for line in clinic.lab.api.log]


def test_6_the_engines_own_vm(admit: Admit, clinic: Clinic) -> None:
    patient = admit("cow")
    with patient.broken("hosted-engine"):
        said = patient.fail()
    assert "Backup of Hosted Engine VM is not supported" in said


# 7. The end of a backup.


@MODES
def test_7_finalizing_is_refused_although_it_is_done(patient: Patient, mode: str) -> None:
    with patient.broken("finalize-refused"):
        assert patient.backup().incremental
    patient.check_chain()


@MODES
def test_7_finalizing_takes_long(admit: Admit, mode: str) -> None:
    patient = admit("cow", mode=mode)
    with patient.broken("finalize-slow", seconds=3):
        patient.backup()
    patient.check_chain()


@MODES
def test_7_finalizing_fails(patient: Patient, mode: str) -> None:
    """All was read by then: the point is good."""
    with patient.broken("finalize-fails"):
        taken = patient.backup()
    assert taken.incremental
    assert "the restore point is good, but the backup did not end well in the engine" in taken.said
    patient.write()
    patient.backup()
    patient.check_chain()


def test_7_a_snapshot_is_left_of_a_backup_that_succeeded(admit: Admit) -> None:
    patient = admit("cow", "raw", mode=HYBRID)
    patient.full_then_write()
    with patient.broken("snapshot-leftover"):
        taken = patient.backup()
    assert taken.modes == {"a": "incremental", "b": "full"}
    assert "which a backup had left behind" in taken.said
    patient.write()
    assert patient.backup().modes["a"] == "incremental"


# 8. A hybrid backup fails and leaves its snapshot.


@pytest.mark.parametrize("first", [True, False], ids=["full", "incremental"])
def test_8_a_stale_snapshot(admit: Admit, first: bool) -> None:
    patient = admit("cow", "cow")
    if not first:
        patient.full_then_write()
    with patient.broken("stale-snapshot"):
        taken = patient.backup()
    assert taken.backups == 2
    assert taken.full if first else taken.incremental
    assert "removed snapshot" in taken.said
    patient.check_chain()


def test_8_hybrid_backups_always_fail(admit: Admit) -> None:
    patient = admit("cow")
    patient.full_then_write()
    with patient.broken("stale-snapshot", times=0):
        taken = patient.backup()
        assert "trying a live backup" in taken.said
        patient.mode = HYBRID
        said = patient.fail()
    assert "backup failed" in said


# 9. The engine restarts; what has ended is forgotten.

MOMENTS = pytest.mark.parametrize(
    "moment",
    ["backup-requested", "backup-starting", "backup-ready", "transferring", "reading", "backup-finalizing"],
)


@MODES
@MOMENTS
def test_9_the_engine_restarts(patient: Patient, clinic: Clinic, mode: str, moment: str) -> None:
    with patient.broken("engine-restart", at=moment):
        taken = patient.backup()
    assert taken.incremental
    assert taken.backups == 1


@MODES
@MOMENTS
def test_9_the_engine_restarts_and_does_not_know_the_backup(
    patient: Patient, clinic: Clinic, mode: str, moment: str
) -> None:
    with patient.broken("backup-unmonitored", at=moment):
        taken = patient.backup()
    # The chain is as it was.
    assert taken.incremental
    assert taken.backups == (
        1 if moment in ("backup-requested", "backup-starting", "backup-finalizing") else 2
    )
    patient.write()
    patient.backup()


@MODES
@pytest.mark.parametrize("fault", ["backup-purged", "transfer-purged"])
def test_9_what_has_ended_is_forgotten(patient: Patient, clinic: Clinic, mode: str, fault: str) -> None:
    facts = {"vm": patient.vm.id} if fault == "backup-purged" else {"disk": patient.vm.disks["a"]}
    with clinic.broken(fault, **facts):
        taken = patient.backup()
    assert taken.incremental
    assert taken.backups == 1


# 10. Snapshots that are restored, and machines that lose power.


@MODES
def test_10_back_to_a_snapshot(admit: Admit, mode: str) -> None:
    patient = admit("cow", "raw", mode=mode, snapshots=1)
    patient.full_then_write()
    patient.backup()
    with patient.broken("snapshot-restored"):
        taken = patient.backup()
    assert taken.full
    assert taken.reasons["a"] == "the engine has no checkpoint of this VM's restore points any more"
    patient.check_chain()


@MODES
def test_10_power_off(patient: Patient, mode: str) -> None:
    """QEMU was killed, so the bitmaps are inconsistent, and only a backup shows it."""
    with patient.broken("power-off-hard"):
        assert not _bitmaps_valid(patient)
        taken = patient.backup()
    assert taken.full
    assert taken.reasons
    patient.check_chain()


def _bitmaps_valid(patient: Patient) -> bool:
    checkpoint = patient.vm.record.checkpoints[-1]
    return all(patient.vm.machine.checkpoint_valid(checkpoint.id, disk) for disk in checkpoint.disks)


# 11. Transfers that nobody seems to use, and tickets that end.


@MODES
@pytest.mark.parametrize("option", [[], ["--full"]], ids=["incremental", "full"])
def test_11_the_engine_cancels_a_transfer(
    patient: Patient, clinic: Clinic, mode: str, option: list[str]
) -> None:
    """What is left to read is read by another one."""
    before = len(clinic.lab.transfer_stats())
    with patient.broken("inactivity"):
        taken = patient.backup(*option)
    assert taken.full if option else taken.incremental
    assert taken.backups == 1
    assert "Reason: client inactivity timeout; going on" in taken.said
    assert len(clinic.lab.transfer_stats()) == before + 3


@MODES
def test_11_the_engine_pauses_a_transfer(patient: Patient, clinic: Clinic, mode: str) -> None:
    """And its ticket expires; the same transfer goes on."""
    before = len(clinic.lab.transfer_stats())
    with patient.broken("transfer-paused"), patient.broken("ticket-expired"):
        taken = patient.backup()
    assert taken.incremental
    assert taken.backups == 1
    assert "going on" in taken.said
    assert len(clinic.lab.transfer_stats()) == before + 2


def test_11_a_ticket_is_not_renewed(admit: Admit, clinic: Clinic) -> None:
    """It has ended by the time that the extents are known."""
    patient = admit("cow", mode=LIVE)
    disk = patient.vm.disks["a"]
    with clinic.broken("ticket-not-renewed", disk=disk, life=1), clinic.broken("slow-extents", seconds=2):
        taken = patient.backup()
    assert taken.backups == 1


# 12. The engine finalizes a download by itself.


@MODES
def test_12_the_engine_finalizes_a_download(patient: Patient, clinic: Clinic, mode: str) -> None:
    with clinic.broken("engine-finalizes-download", disk=patient.vm.disks["a"]):
        taken = patient.backup()
    assert taken.incremental
    assert taken.backups == 1
    assert taken.said == ""


# 13. An upload that does not pass verification.


def test_13_an_upload_does_not_pass_verification(admit: Admit, clinic: Clinic) -> None:
    """The engine keeps the disk as illegal, or removes it. It is uploaded once more, to another disk."""
    patient = admit("cow")
    taken = patient.backup()
    for remove in (False, True):
        with clinic.broken("upload-verification", remove=remove):
            done = clinic.command("restore", taken.id, "--json")
        assert "beginning again" in done.err
        facts = done.json()
        (disk,) = facts["disks"]
        clinic.check_clean()
        patient.check_restored(taken.id, "a", disk["id"])
        clinic.lab.faults.break_("vm-removed", vm=facts["vm"]["id"])


@pytest.mark.parametrize("remove", [False, True], ids=["illegal", "removed"])
def test_13_no_upload_passes_verification(admit: Admit, clinic: Clinic, remove: bool) -> None:
    patient = admit("cow")
    taken = patient.backup()
    with clinic.unchanged(), clinic.broken("upload-verification", remove=remove, times=0):
        done = clinic.command("restore", taken.id)
    assert done.status == 1
    assert "failed: " in done.err.splitlines()[-1]
    clinic.check_clean()


# 14. A ticket that is in use cannot be removed.


@MODES
def test_14_a_busy_ticket(patient: Patient, clinic: Clinic, mode: str) -> None:
    with clinic.broken("ticket-busy", disk=patient.vm.disks["a"], seconds=2):
        taken = patient.backup()
    assert taken.incremental
    assert taken.backups == 1


# 15. Listing the extents of a huge disk takes longer than the imageio client waits.


@MODES
def test_15_slow_extents(
    patient: Patient, clinic: Clinic, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    _impatient(monkeypatch, 1.0)
    with patient.broken("slow-extents", seconds=3):
        taken = patient.backup()
    assert taken.incremental
    assert taken.backups == 1
    assert taken.said == ""


def _impatient(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """The imageio client waits no longer for an answer; by itself it does so for 60 seconds."""
    begin = imageio_http_backend.Backend.__init__

    def hurried(self: Any, *arguments: Any, **options: Any) -> None:
        options["read_timeout"] = seconds
        begin(self, *arguments, **options)

    monkeypatch.setattr(imageio_http_backend.Backend, "__init__", hurried)


# 16. imageio refuses, closes the connection, has lost the NBD server.


@MODES
def test_16_an_expired_ticket(admit: Admit, mode: str) -> None:
    patient = admit("cow", mode=mode)
    with patient.broken("ticket-expired", skip=1):
        taken = patient.backup()
    assert taken.backups == 1
    assert taken.said == ""


@MODES
def test_16_connections_are_closed(admit: Admit, mode: str) -> None:
    patient = admit("cow", mode=mode)
    with patient.broken("connection-closed", times=3, used=3, skip=1):
        taken = patient.backup()
    assert taken.backups == 1
    assert taken.said == ""


@MODES
def test_16_the_nbd_server_dies(patient: Patient, mode: str) -> None:
    """It stays dead as long as the backup lasts, so there is another backup."""
    with patient.broken("nbd-dead"):
        taken = patient.backup()
    assert taken.incremental
    assert taken.backups == 2
    assert "beginning again" in taken.said


# 17. The host cannot be reached.


@MODES
def test_17_through_the_proxy(patient: Patient, clinic: Clinic, mode: str) -> None:
    with clinic.broken("direct-unreachable", disk=patient.vm.disks["a"]):
        taken = patient.backup()
    assert taken.incremental
    assert "reading through the engine's proxy, which is slower: open port" in taken.said


def test_17_no_way_at_all(admit: Admit, clinic: Clinic) -> None:
    patient = admit("cow", mode=LIVE)
    patient.full_then_write()
    before = patient.points()
    with (
        clinic.broken("all-unreachable", disk=patient.vm.disks["a"], times=0),
        pytest.raises(SourceError, match="Connection refused; run the backup again"),
    ):
        patient.attempt(patience=1.0)
    assert patient.points() == before
    clinic.check_clean()
    assert patient.backup().incremental


# 18. The session ends.


@MODES
@MOMENTS
def test_18_the_session_ends(patient: Patient, clinic: Clinic, mode: str, moment: str) -> None:
    with patient.broken("sso-expired", at=moment):
        taken = patient.backup()
    assert taken.incremental
    assert taken.backups == 1
    assert taken.said == ""


@MODES
@pytest.mark.parametrize("moment", ["backup-ready", "transferring"])
def test_18_the_password_changes_before_anything_is_read(
    patient: Patient, clinic: Clinic, mode: str, moment: str
) -> None:
    """Then nothing can be put in order either; the next run does it."""
    with patient.broken("password-changed", at=moment):
        said = patient.fail(clean=False)
        assert "check user name" in said
        assert any(each.startswith("backup") for each in clinic.lab.leftovers())
    taken = patient.backup()
    assert taken.incremental
    assert "which an interrupted run had left" in taken.said


@MODES
def test_18_the_password_changes_while_data_are_read(patient: Patient, clinic: Clinic, mode: str) -> None:
    """imageio goes on, so the point is good."""
    with patient.broken("password-changed", at="reading"):
        taken = patient.backup(clean=False)
        assert "the restore point is good" in taken.said
    again = patient.backup()
    assert again.incremental
    assert "which an interrupted run had left" in again.said


def test_18_a_token_cannot_log_in_again(clinic: Clinic, admit: Admit) -> None:
    patient = admit("cow")
    token = clinic.lab.sso.login({"username": clinic.lab.username, "password": clinic.lab.password})
    settings = EngineSettings(name="lab", url=clinic.lab.url, token=token, ca_file=str(clinic.lab.ca_file))
    with Engine.connect(settings) as engine:
        assert get_vm(engine, patient.vm.id).name == patient.vm.name
        with clinic.broken("sso-expired"), pytest.raises(LoginError, match="give a user name and password"):
            get_vm(engine, patient.vm.id)


# 19. Requests without an answer.

REQUESTS = {
    "login": ("POST", "sso/oauth/token"),
    "backup": ("POST", "/backups$"),
    "transfer": ("POST", "/imagetransfers$"),
    "end of transfer": ("POST", "/imagetransfers/.*/finalize"),
    "end of backup": ("POST", "/backups/.*/finalize"),
    "phase of backup": ("GET", "/backups/[^/]+$"),
    "phase of transfer": ("GET", "/imagetransfers/[^/]+$"),
    "disks": ("GET", "/diskattachments"),
    "removal of a checkpoint": ("DELETE", "/checkpoints/"),
}


@pytest.mark.parametrize(
    ("fault", "mode"),
    [("answer-lost", LIVE), ("answer-lost", HYBRID), ("connection-dropped", LIVE), ("unavailable", HYBRID)],
)
@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_19_a_request_without_an_answer(
    patient: Patient, clinic: Clinic, mode: str, fault: str, request_: tuple[str, str]
) -> None:
    method, path = request_
    with clinic.broken(fault, method=method, path=path):
        taken = patient.backup()
    assert taken.incremental
    # What was asked for again was not made twice.
    assert taken.backups == 1
    assert len(patient.vm.record.checkpoints) == 1


@pytest.mark.slow
@MODES
def test_19_a_connection_hangs(patient: Patient, clinic: Clinic, mode: str) -> None:
    for method, path in REQUESTS.values():
        with clinic.broken("connection-hangs", seconds=2, method=method, path=path):
            outcome = patient.attempt(timeout=0.7)
        assert {disk.mode for disk in outcome.point.manifest.disks} == {"incremental"}
        patient.check(outcome.point.id)
        clinic.check_clean()
        patient.write()
    patient.chained = True
