"""Several runs at once at one VM: none takes what another has in use for what was left behind."""

from __future__ import annotations

import re
import shlex
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from command_helpers import call
from engine_fault_helpers import MODES, Admit, Clinic, Held, Patient, once
from engine_helpers import connected
from lab_helpers import needs_lab

import ingest.cli.checkpoints
from ingest.engine import backups, checkpoints
from ingest.engine.backups import Mode, running_backup
from ingest.engine.hooks import make_hook
from ingest.engine.marks import make_mark
from ingest.engine.run import Outcome
from ingest.engine.runs import Run
from ingest.engine.vms import get_vm

pytestmark = needs_lab
pytest_plugins = "engine_fault_fixtures"


def modes(outcome: Outcome) -> set[str]:
    return {disk.mode for disk in outcome.point.manifest.disks}


def prune(patient: Patient, *options: object) -> dict[str, Any]:
    """By the command `checkpoints prune`; what it printed."""
    site, engine = patient.clinic.site, patient.clinic.engine
    words = ["checkpoints", "prune", site.repository, "--vm", patient.vm.id, "--json", *options]
    found: dict[str, Any] = call("vmfs-ingest", *words, *engine, *site.options()).json()
    return found


@MODES
def test_two_backups_at_once(patient: Patient, clinic: Clinic, mode: str) -> None:
    """The second one waits for the first, and does not take it for what an interrupted run has left."""
    before = list(patient.records())
    log = len(clinic.lab.api.log)
    with Held(patient) as held, ThreadPoolExecutor(1) as other:
        held.start()
        waiting = other.submit(patient.attempt)
        clinic.until_refused(after=log)
        first, second = held.finish(), waiting.result()
    check_two(patient, before, first, second)
    patient.check_chain()


def check_two(patient: Patient, before: list[str], first: Outcome, second: Outcome) -> None:
    """They are incremental and right. `before` are the backups that the lab had recorded before them."""
    new = [backup for backup in patient.records() if backup not in before]
    for backup, outcome in zip(new, (first, second), strict=True):
        assert outcome.cleaned == []
        assert modes(outcome) == {"incremental"}
        patient.check(outcome.point.id, backup)
    patient.clinic.check_clean()


@MODES
def test_another_backup_is_killed_while_we_wait_for_it(patient: Patient, clinic: Clinic, mode: Mode) -> None:
    """When we have waited for as long as we do, we look again whether it is alive."""
    log = len(clinic.lab.api.log)
    with (
        connected(clinic.lab) as engine,
        ThreadPoolExecutor(1) as pool,
        clinic.site.open() as repository,
        ExitStack() as killed,
    ):
        run = killed.enter_context(Run())
        mark = str(make_mark(run.id, repository.id))
        disks = list(patient.vm.disks.values())
        with running_backup(engine, get_vm(engine, patient.vm.id), disks, description=mark, mode=mode):
            waiting = pool.submit(patient.attempt, engine_patience=2.0)
            clinic.until_refused(after=log)
            killed.close()
            outcome = waiting.result()
    assert "which an interrupted run had left" in outcome.cleaned[0]
    assert modes(outcome) == {"incremental"}
    patient.check(outcome.point.id)
    clinic.check_clean()


@MODES
def test_another_backup_begins_before_all_is_in_order(
    patient: Patient,
    clinic: Clinic,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    mode: str,
) -> None:
    """As soon as the engine has ended ours: its snapshot is there when we look for one that ours has left,
    its checkpoint when we look for those that are not needed any more."""
    before = list(patient.records())
    log = len(clinic.lab.api.log)
    ended: list[Outcome] = []
    with Held(patient) as other:
        once(monkeypatch, backups._Run, "finish", after=other.start)
        once(monkeypatch, checkpoints, "remove_checkpoint", before=lambda: ended.append(other.finish()))
        ours = patient.attempt(engine_patience=5.0)
    (theirs,) = ended
    assert caplog.text == ""
    assert not [line for line in clinic.lab.api.log[log:] if re.match(r"DELETE \S*/snapshots/", line)]
    check_two(patient, before, ours, theirs)
    patient.check_chain()


@MODES
def test_another_backup_of_another_disk_ends_before_we_prune(
    patient: Patient, clinic: Clinic, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """Ours has chosen where to begin before that, and so does not know of its point."""
    other: list[Outcome] = []

    def back_up_b() -> None:
        other.append(patient.attempt(cache=clinic.site.root / "cache2", disks=("b",)))

    once(monkeypatch, checkpoints, "list_checkpoints", after=back_up_b)
    patient.attempt(disks=("a",))
    again = patient.attempt(disks=("b",))
    assert modes(again) == {"incremental"}
    assert again.point.manifest.parent == other[0].point.id
    patient.backup()


@MODES
def test_another_backup_ends_after_we_have_seen_the_checkpoints(
    patient: Patient, clinic: Clinic, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """It has removed the one that we begin from; we begin from its own instead."""
    other: list[Outcome] = []

    def back_up() -> None:
        other.append(patient.attempt(cache=clinic.site.root / "cache2"))
        patient.check(other[0].point.id)
        patient.write()

    once(monkeypatch, checkpoints, "list_checkpoints", after=back_up)
    taken = patient.backup()
    assert taken.incremental
    assert taken.facts["parent"] == other[0].point.id
    assert taken.said == ""
    (left,) = patient.vm.record.checkpoints
    assert taken.facts["disks"][0]["checkpoint"] == left.id
    patient.check_chain()


@MODES
@pytest.mark.parametrize("options", [(), ("--all",)], ids=["needed", "all"])
def test_checkpoints_are_pruned_while_a_backup_goes_on(
    patient: Patient, monkeypatch: pytest.MonkeyPatch, mode: str, options: tuple[str, ...]
) -> None:
    """Its own is kept, which no restore point records yet."""
    remove = checkpoints.remove_checkpoint
    with Held(patient) as backup:
        backup.start()
        begun = patient.vm.record.checkpoints[-1].id
        # What prune takes it removes when the engine lets it: after the backup.
        once(monkeypatch, checkpoints, "remove_checkpoint", before=backup.finish)
        told = prune(patient, *options)
        monkeypatch.setattr(checkpoints, "remove_checkpoint", remove)
        outcome = backup.finish()
    assert begun in told["kept"]
    assert begun not in told["removed"]
    assert {disk.checkpoint for disk in outcome.point.manifest.disks} == {begun}
    patient.check_chain()


@MODES
def test_a_backup_ends_while_checkpoints_are_pruned(
    patient: Patient, clinic: Clinic, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """Between the two questions, which checkpoints there are and which of them are recorded."""
    back_up = partial(patient.attempt, cache=clinic.site.root / "cache2")
    once(monkeypatch, ingest.cli.checkpoints, "_recorded", after=back_up)
    prune(patient)
    patient.check_chain()


def test_a_run_holds_a_lease_from_its_beginning(admit: Admit, clinic: Clinic, tmp_path: Path) -> None:
    """Runs on other machines know of it by that. At its end as well: the post command is the last of all."""
    leases = clinic.site.repository / "leases"
    hooks = {}
    for name in ("pre", "post"):
        hooks[name] = make_hook(name, f"sh -c {shlex.quote(f'ls {leases} > {tmp_path / name}')}")
    admit("cow").attempt(**hooks)
    for name in hooks:
        assert len((tmp_path / name).read_text().split()) == 1
    assert not list(leases.iterdir())
