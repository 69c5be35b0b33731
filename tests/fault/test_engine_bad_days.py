"""Bad days of whoever backs up VMs of an engine: wrong credentials and certificates, hosts that come and go,
VMs that change under the backup or between two, no space, hostile configurations."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from command_helpers import Done, Site, call
from engine_fault_helpers import LIVE, MODES, Admit, Clinic, Patient, check_content, until
from engine_helpers import meanwhile
from fault_helpers import check_sound, needs_root
from fault_process_helpers import Zygote
from lab.pki import Authority
from lab_helpers import MIB, DiskRecipe, needs_lab

from ingest.engine.errors import TransferError, UnavailableError
from ingest.sources.imageio import PatienceError

pytestmark = needs_lab
pytest_plugins = "engine_fault_fixtures"


# The way to the engine.


def backup_as(patient: Patient, **changed: object) -> Done:
    """The command with other options for the engine."""
    lab = patient.lab
    told = {"engine": lab.url, "username": lab.username, "password-file": lab.password_file}
    told["ca-file"] = lab.ca_file
    words = [word for name, value in (told | changed).items() for word in (f"--{name}", value)]
    site = patient.clinic.site
    return call("vmfs-ingest", "backup", site.repository, "--vm", patient.vm.name, *words, *site.options())


def refused(done: Done) -> str:
    """It ended with one line and without a backup. Gives the line."""
    assert (done.status, done.out) == (1, "")
    (line,) = done.err.splitlines()
    return line


def test_a_wrong_password(admit: Admit, clinic: Clinic, tmp_path: Path) -> None:
    patient = admit("cow")
    wrong = tmp_path / "wrong"
    wrong.write_text("wrong\n")
    for changed in ({"password-file": wrong}, {"username": "nobody@internal"}):
        said = refused(backup_as(patient, **changed))
        assert "check user name (with its profile, as in admin@internal) and password" in said
    assert not patient.records()


def test_a_wrong_ca(admit: Admit, clinic: Clinic, tmp_path: Path) -> None:
    patient = admit("cow")
    foreign = Authority.create(tmp_path / "pki", "foreign").ca_file
    said = refused(backup_as(patient, **{"ca-file": foreign}))
    assert f"its certificate is not of the CA in {foreign}" in said
    assert "vmfs-ingest engine trust" in said
    assert "there is no CA file" in refused(backup_as(patient, **{"ca-file": tmp_path / "none"}))
    assert not patient.records()


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("certificate-expired", "certificate has expired; renew the engine's certificate"),
        ("certificate-foreign", "its certificate is not of the CA in"),
    ],
)
def test_a_certificate_that_is_not_good(admit: Admit, clinic: Clinic, fault: str, told: str) -> None:
    patient = admit("cow")
    with clinic.broken(fault):
        assert told in refused(backup_as(patient))
    assert not patient.records()


@pytest.mark.parametrize("moment", [None, "backup-ready", "reading"])
def test_imageio_with_an_expired_certificate(admit: Admit, clinic: Clinic, moment: str | None) -> None:
    """Nothing is wrong with the engine, so all is in order there afterwards."""
    patient = admit("cow", mode=LIVE)
    with clinic.broken("imageio-certificate-expired", at=moment):
        said = patient.fail()
    assert "certificate has expired" in said


@MODES
def test_the_engine_goes_down_and_stays_down(patient: Patient, clinic: Clinic, mode: str) -> None:
    """For longer than it is waited for. The next run puts in order what this one had to leave."""
    with (
        patient.broken("engine-restart", at="backup-ready", seconds=4),
        pytest.raises(UnavailableError, match=r"cannot be reached|closed the connection"),
    ):
        patient.attempt(engine_patience=0.3)
    until(lambda: clinic.lab.server._server is not None)
    assert any(each.startswith("backup") for each in clinic.lab.leftovers())
    taken = patient.backup()
    assert taken.incremental
    assert "which an interrupted run had left" in taken.said


@MODES
def test_the_engine_is_down_when_all_has_been_read(patient: Patient, clinic: Clinic, mode: str) -> None:
    with patient.broken("engine-restart", at="reading", seconds=4):
        outcome = patient.attempt(engine_patience=0.3)
    until(lambda: clinic.lab.server._server is not None)
    patient.check(outcome.point.id)
    assert patient.backup().incremental


# imageio.


@MODES
@pytest.mark.parametrize("moment", ["transferring", "extents", "reading"])
def test_imageio_is_killed_and_started_again(
    patient: Patient, clinic: Clinic, mode: str, moment: str
) -> None:
    """Its tickets are gone. The backup goes on with other transfers."""
    with patient.broken("imageio-restart", at=moment):
        taken = patient.backup()
    assert taken.incremental
    assert taken.backups == 1


@MODES
def test_imageio_is_killed_while_a_whole_disk_is_read(patient: Patient, clinic: Clinic, mode: str) -> None:
    with patient.broken("imageio-restart", at="reading", skip=2):
        taken = patient.backup("--full", "--connections", 1)
    assert taken.full
    assert taken.backups == 1


@MODES
@pytest.mark.parametrize("option", [[], ["--full"]], ids=["incremental", "full"])
def test_imageio_is_away_for_a_while(patient: Patient, clinic: Clinic, mode: str, option: list[str]) -> None:
    """Until the client has asked for another transfer, and the host could not be told of it."""
    host = clinic.lab.hosts[0]
    events = len(clinic.lab.core.events)

    def start_again() -> None:
        until(lambda: any(event.code == 1069 for event in clinic.lab.core.events[events:]))
        clinic.lab.faults.mend("imageio-down")

    with meanwhile(start_again), patient.broken("imageio-down", at="reading", mended=False):
        taken = patient.backup(*option)
    assert host.imageio.running
    assert taken.full if option else taken.incremental
    assert taken.backups == 1


@MODES
def test_imageio_stays_away(
    patient: Patient, clinic: Clinic, caplog: pytest.LogCaptureFixture, mode: str
) -> None:
    """On all hosts; what the proxy would read it would read there. All patience has been used up then, so
    there is no other backup that would need as much."""
    points, records = patient.points(), set(patient.records())
    with (
        patient.broken("imageio-down", at="reading"),
        pytest.raises(PatienceError, match=r"disk \S+/[ab]: read at byte .*; run the backup again"),
    ):
        patient.attempt(patience=1.0)
    assert patient.points() == points
    assert len(set(patient.records()) - records) == 1
    assert "ovirt-imageio does not answer" in caplog.text
    clinic.check_clean()
    assert patient.backup().incremental


@MODES
@pytest.mark.parametrize("option", [[], ["--full"]], ids=["incremental", "full"])
def test_imageio_is_away_when_transfers_are_to_begin(
    patient: Patient, clinic: Clinic, mode: str, option: list[str]
) -> None:
    """For longer than two attempts take."""
    events = len(clinic.lab.core.events)

    def start_again() -> None:
        until(lambda: sum(event.code == 1069 for event in clinic.lab.core.events[events:]) > 2)
        clinic.lab.faults.mend("imageio-down")

    with meanwhile(start_again), patient.broken("imageio-down", at="backup-starting", mended=False):
        taken = patient.backup(*option)
    assert taken.backups == 1
    assert taken.full if option else taken.incremental
    assert taken.reasons == {}
    said = taken.said.splitlines()
    assert f"disk {patient.vm.name}/a: download of disk " in said[0]
    # On a slow machine it says so in several words.
    assert [line for line in said if "; trying again for 180 s" not in line] == []


@MODES
def test_imageio_stays_away_when_transfers_are_to_begin(
    patient: Patient, clinic: Clinic, caplog: pytest.LogCaptureFixture, mode: str
) -> None:
    """It may be a bitmap, of which the engine has not said so: it is tried to read all in full, once."""
    points, records = patient.points(), set(patient.records())
    with (
        patient.broken("imageio-down", at="backup-starting"),
        pytest.raises(TransferError, match="ovirt-imageio does not answer") as caught,
    ):
        patient.attempt(patience=1.0)
    assert caught.value.borne
    assert patient.points() == points
    assert len(set(patient.records()) - records) == 2
    # Not for the second one, too.
    assert caplog.text.count("; trying again for 1 s") == 1
    assert "beginning again" not in caplog.text
    clinic.check_clean()
    assert patient.backup().incremental


# The VM in the middle of a backup.


@MODES
@pytest.mark.parametrize("moment", ["backup-starting", "backup-ready", "reading"])
def test_the_vm_is_removed(admit: Admit, clinic: Clinic, mode: str, moment: str) -> None:
    patient = admit("cow", "raw", mode=mode)
    with patient.broken("vm-removed", at=moment):
        said = patient.fail()
    assert patient.vm.id in said or patient.vm.name in said


@MODES
@pytest.mark.parametrize("moment", ["backup-ready", "reading"])
def test_the_vm_migrates(patient: Patient, clinic: Clinic, mode: str, moment: str) -> None:
    """The engine does not let it while it is backed up; when it happens all the same, the backup fails."""
    with patient.broken("vm-migrated", at=moment):
        taken = patient.backup()
    assert taken.incremental
    assert taken.backups == 2
    assert "beginning again" in taken.said


@MODES
def test_power_fails(admit: Admit, clinic: Clinic, mode: str) -> None:
    """The bitmaps are not to be trusted afterwards."""
    patient = admit("cow", "raw", mode=mode)
    patient.full_then_write()
    with patient.broken("power-off-hard", at="reading"):
        taken = patient.backup()
    assert taken.full
    assert taken.reasons["a"]
    patient.write()
    assert patient.backup().modes["a"] == "incremental"


@MODES
def test_power_fails_and_the_vm_stays_down(admit: Admit, clinic: Clinic, mode: str) -> None:
    patient = admit("cow", "raw", mode=mode)
    patient.full_then_write()
    with patient.broken("power-off-hard", at="reading", up=False):
        taken = patient.backup()
    assert taken.full
    assert taken.facts["consistency"] == "offline"
    patient.vm.start()
    patient.write()
    patient.backup()
    patient.write()
    assert patient.backup().modes["a"] == "incremental"


# Disks that come, go and grow.


@MODES
def test_disks_between_points(admit: Admit, clinic: Clinic, mode: str) -> None:
    patient = admit("cow", "cow", mode=mode)
    patient.full_then_write()
    clinic.lab.faults.break_("disk-added", vm=patient.vm.id, alias="c", size=8 * MIB)
    patient.write()
    taken = patient.backup()
    assert taken.modes == {"a": "incremental", "b": "incremental", "c": "full"}
    assert taken.reasons["c"].startswith("not in restore point ")

    clinic.lab.faults.break_("disk-resized", vm=patient.vm.id, disk="a")
    patient.write()
    taken = patient.backup()
    assert taken.modes == {"a": "full", "b": "incremental", "c": "incremental"}
    assert re.match(r"it has \d+ bytes, and had \d+ in restore point", taken.reasons["a"])
    patient.check_chain()

    clinic.lab.faults.break_("disk-removed", vm=patient.vm.id, disk="b")
    patient.write()
    taken = patient.backup()
    assert taken.modes == {"a": "incremental", "c": "incremental"}


@MODES
@pytest.mark.parametrize("form", ["cow", "raw"])
def test_a_disk_grows_while_the_vm_is_down(admit: Admit, clinic: Clinic, mode: str, form: str) -> None:
    patient = admit(form, mode=mode)
    patient.full_then_write()
    patient.vm.stop()
    clinic.lab.faults.break_("disk-resized", vm=patient.vm.id, disk="a", size=40 * MIB)
    patient.vm.start()
    patient.write()
    taken = patient.backup()
    assert taken.full
    assert taken.facts["disks"][0]["size"] == 40 * MIB


@MODES
def test_a_disk_grows_in_the_middle(admit: Admit, clinic: Clinic, mode: str) -> None:
    patient = admit("cow", "cow", mode=mode)
    patient.full_then_write()
    with patient.broken("disk-resized", at="reading", disk=patient.vm.disks["a"], size=40 * MIB):
        taken = patient.backup()
    assert taken.modes == {"a": "full", "b": "incremental"}


@MODES
def test_a_disk_is_added_in_the_middle(admit: Admit, clinic: Clinic, mode: str) -> None:
    """It is not in this point, and in full in the next."""
    patient = admit("cow", "cow", mode=mode)
    patient.full_then_write()
    with patient.broken("disk-added", at="reading", alias="c", size=8 * MIB):
        assert patient.backup().modes == {"a": "incremental", "b": "incremental"}
    patient.write()
    assert patient.backup().modes == {"a": "incremental", "b": "incremental", "c": "full"}


@MODES
def test_a_disk_is_removed_in_the_middle(admit: Admit, clinic: Clinic, mode: str) -> None:
    """The backup that it was in fails; there is another one of the disks that are left."""
    patient = admit("cow", "cow", mode=mode)
    patient.full_then_write()
    with patient.broken("disk-removed", at="reading", disk=patient.vm.disks["b"]):
        taken = patient.backup()
    assert taken.modes == {"a": "incremental"}


# Snapshots between points.


@MODES
def test_snapshots_between_points(admit: Admit, clinic: Clinic, mode: str) -> None:
    """The bitmaps go with them."""
    patient = admit("cow", "cow", mode=mode)
    patient.full_then_write()
    for fault in ("snapshot-taken", "snapshot-taken", "snapshot-removed", "snapshot-removed"):
        clinic.lab.faults.break_(fault, vm=patient.vm.id)
        patient.write()
        taken = patient.backup()
        assert taken.incremental, taken.reasons
        patient.write()


@MODES
def test_a_snapshot_of_a_raw_disk_between_points(admit: Admit, clinic: Clinic, mode: str) -> None:
    """It has a bitmap as long as there is the snapshot, and so a qcow2 layer. Without that, all of the VM is
    read in full, for a backup begins from one checkpoint."""
    patient = admit("cow", "raw", mode=mode)
    patient.full_then_write()
    clinic.lab.faults.break_("snapshot-taken", vm=patient.vm.id)
    patient.write()
    assert patient.backup().modes["a"] == "incremental"
    patient.write()
    patient.backup()
    clinic.lab.faults.break_("snapshot-removed", vm=patient.vm.id)
    patient.write()
    assert patient.backup().reasons
    patient.write()
    assert patient.backup().modes == {"a": "incremental", "b": "full"}


@MODES
def test_no_checkpoint_is_kept_for_a_raw_disk(admit: Admit, clinic: Clinic, mode: str) -> None:
    """It was in one as long as it had a snapshot."""
    patient = admit("cow", "raw", mode=mode)
    clinic.lab.faults.break_("snapshot-taken", vm=patient.vm.id)
    of_raw = patient.run("--disk", "b").json()["disks"][0]["checkpoint"]
    of_qcow2 = patient.run("--disk", "a").json()["disks"][0]["checkpoint"]
    assert [each.id for each in patient.vm.record.checkpoints] == [of_raw, of_qcow2]
    clinic.lab.faults.break_("snapshot-removed", vm=patient.vm.id)
    words = ["checkpoints", "prune", clinic.site.repository, "--vm", patient.vm.id, "--json"]
    facts = call("vmfs-ingest", *words, *clinic.engine, *clinic.site.options()).json()
    assert (facts["kept"], facts["removed"]) == ([of_qcow2], [of_raw])


@MODES
def test_a_snapshot_is_taken_and_reverted(admit: Admit, clinic: Clinic, mode: str) -> None:
    """The disks hold again what they held before, which no bitmap knows."""
    patient = admit("cow", "raw", mode=mode)
    patient.full_then_write()
    patient.backup()
    patient.write()
    clinic.lab.faults.break_("snapshot-taken", vm=patient.vm.id)
    patient.write()
    patient.backup()
    patient.write()
    clinic.lab.faults.break_("snapshot-restored", vm=patient.vm.id)
    taken = patient.backup()
    assert taken.full
    assert "the engine has no checkpoint of this VM's restore points any more" in taken.reasons["a"]
    patient.write()
    assert patient.backup().modes["a"] == "incremental"


@MODES
def test_power_fails_between_points(admit: Admit, clinic: Clinic, mode: str) -> None:
    """Once with the VM up again, once with it down."""
    patient = admit("cow", "raw", mode=mode)
    patient.full_then_write()
    for up in (True, False):
        clinic.lab.faults.break_("power-off-hard", vm=patient.vm.id, up=up)
        taken = patient.backup()
        assert taken.full
        assert taken.reasons["a"]
        assert taken.facts["consistency"] == ("crash" if up else "offline")
        if not patient.vm.record.running:
            patient.vm.start()
        patient.write()
        patient.backup()
        patient.write()
        assert patient.backup().modes["a"] == "incremental"
        patient.write()


# Several of a name.


def test_a_name_that_is_not_unique(admit: Admit, clinic: Clinic) -> None:
    patient = admit("cow")
    with patient.broken("name-not-unique"):
        done = backup_as(patient)
        assert done.status == 2
        (line,) = done.err.splitlines()
        assert f"has 2 VMs called '{patient.vm.name}'; give the id: " in line
        assert patient.vm.id in line
        # By its id, as all tests here do it.
        patient.backup()


# No space.


@contextmanager
def small_file_system(place: Path, size: int) -> Iterator[Path]:
    """An empty one for `size` bytes."""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], check=True)
    try:
        yield place
    finally:
        # A store keeps the last files that it read from open.
        subprocess.run(["umount", "--lazy", place], check=True)


@dataclass(frozen=True)
class SiteElsewhere(Site):
    """With the repository, and nothing else, at another place."""

    elsewhere: Path

    @property
    def repository(self) -> Path:
        return self.elsewhere / "repository"


@needs_root
@pytest.mark.root
@MODES
def test_the_repository_has_no_space(admit: Admit, clinic: Clinic, place: Path, mode: str) -> None:
    patient = admit("cow", mode=mode)
    with small_file_system(place / "small", 8 * MIB) as small, Zygote(place, MIB) as zygote:
        site = SiteElsewhere(place, small)
        site.init()
        words = ["--vm", patient.vm.id, "--mode", mode, *clinic.engine, *site.options()]
        for size in (8, 8, 64):
            subprocess.run(["mount", "-o", f"remount,size={size}m", small], check=True)
            status, said = zygote.run("vmfs-ingest", "backup", *map(str, [site.repository, *words]))
            assert status == (0 if size == 64 else 1)
            assert "Traceback" not in said
            assert status == 0 or "no space left; free some and run again" in said.splitlines()[-1]
            clinic.check_clean()
            # That of a failed backup is removed.
            assert len(patient.vm.record.checkpoints) == (status == 0)
        with site.open() as repository:
            (point,) = repository.point_ids()
            records = patient.records()
            check_content(repository, point, records[list(records)[-1]])
            check_sound(repository)


def test_the_storage_domain_has_no_space(admit: Admit, clinic: Clinic) -> None:
    patient = admit("cow", "raw")
    taken = patient.backup()
    with clinic.unchanged(), clinic.broken("storage-domain-full"):
        done = clinic.command("restore", taken.id)
    assert (done.status, done.out) == (1, "")
    assert "free" in done.err.splitlines()[-1]
    with clinic.unchanged(), clinic.broken("upload-no-space", times=0):
        done = clinic.command("restore", taken.id)
    assert (done.status, done.out) == (1, "")
    assert len(done.err.splitlines()[-1]) < 400
    clinic.check_clean()


# A configuration that is meant to do harm.


@pytest.mark.parametrize("form", ["bomb", "external", "broken", "huge", "names"])
def test_a_hostile_configuration(admit: Admit, clinic: Clinic, form: str) -> None:
    """It is kept as it is, and the disks with it. No VM is made of it, but the disks can be restored."""
    patient = admit("cow")
    with patient.broken("ovf-hostile", form=form):
        taken = patient.backup()
    before = set(clinic.lab.core.vms), set(clinic.lab.core.disks)
    done = clinic.command("restore", taken.id, "--as", "made")
    if form != "names":
        assert (done.status, done.out) == (1, "")
        assert len(done.err.splitlines()) == 1
        assert "passwd" not in done.err
        assert (set(clinic.lab.core.vms), set(clinic.lab.core.disks)) == before
    elif done.status == 0:
        clinic.lab.faults.break_("vm-removed", vm="made")
    clinic.check_clean()
    target = clinic.lab.create_vm(f"target-{form}", [DiskRecipe("other", MIB)], up=False)
    done = clinic.command("restore", taken.id, "--attach-to", target.name, "--json")
    (disk,) = done.json()["disks"]
    patient.check_restored(taken.id, "a", disk["id"])
    clinic.lab.faults.break_("vm-removed", vm=target.id)
    clinic.check_clean()
