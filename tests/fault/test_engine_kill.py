"""The backup command is killed at random moments; or asked to end, and then it puts things in order first."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from blake3 import blake3
from engine_fault_helpers import Clinic, Patient, check_content
from fault_helpers import check_sound
from fault_process_helpers import Run, Zygote
from lab_helpers import MIB, needs_lab

from vmfs.repo import names

pytestmark = [needs_lab, pytest.mark.slow]
pytest_plugins = "engine_fault_fixtures"

KILLS = 50
TERMINATIONS = 6
SIZE = 8 * MIB
PACK = 256 << 10


class Victim:
    """A VM, the runs of its backup that are killed, and what each of its restore points must hold."""

    def __init__(self, clinic: Clinic, patient: Patient, zygote: Zygote) -> None:
        self.clinic = clinic
        self.patient = patient
        self.choose = random.Random(20261121)  # noqa: S311
        self.kills = self.committed = self.left = 0
        self.places: set[str] = set()
        """The phases of the backups that killed runs have left."""
        self._zygote = zygote
        self._digests: dict[str, dict[str, bytes]] = {}
        """Of the disks of each point, by their ids."""
        with clinic.site.open() as repository:
            self._others = set(repository.point_ids())
        began = time.monotonic()
        self.back_up()
        self.duration = time.monotonic() - began

    def start(self) -> Run:
        self.patient.write()
        words = ["--vm", self.patient.vm.id, "--mode", self.patient.mode, *self.clinic.engine]
        arguments = map(str, [self.clinic.site.repository, *words, *self.clinic.site.options()])
        return self._zygote.start("vmfs-ingest", "backup", *arguments)

    def back_up(self) -> str:
        """A whole run. What it said."""
        run = self.start()
        assert run.wait() == 0, run.text
        assert "Traceback" not in run.text
        self.clinic.check_clean()
        new = self.take_in_points()
        assert len(new) == 1
        return run.text

    def end_after(self, delay: float, number: signal.Signals) -> tuple[int, str]:
        """Exit status and what it said."""
        run = self.start()
        time.sleep(delay)
        run.kill(number)
        return run.wait(), run.text

    def take_in_points(self) -> list[str]:
        """The points that are new, each of which must be right; at most one, that of the last run."""
        records = self.patient.records()
        with self.clinic.site.open() as repository:
            new = sorted(set(repository.point_ids()) - self._others - self._digests.keys())
            assert len(new) <= 1
            for point in new:
                truth = records[list(records)[-1]]
                check_content(repository, point, truth)
                self._digests[point] = {
                    disk: blake3(path.read_bytes()).digest() for disk, path in truth.items()
                }
        for record in records.values():
            for path in record.values():
                path.unlink(missing_ok=True)
        return new

    def check_all(self) -> None:
        """Every point is there and byte for byte what it was; the repository is sound."""
        with self.clinic.site.open() as repository:
            assert set(repository.point_ids()) == self._others | self._digests.keys()
            for point, digests in self._digests.items():
                for disk in repository.load_point(point).manifest.disks:
                    content = repository.open_disk(disk).read(0, disk.size)
                    assert blake3(content).digest() == digests[disk.id]
            check_sound(repository)
            assert not list(repository.store.list(names.LEASES))

    def look(self) -> None:
        """What the kill has hit."""
        with self.clinic.lab.core.lock:
            left = [each.phase for each in self.clinic.lab.core.backups.values() if not each.finished]
        self.left += bool(left)
        self.places.add(left[0] if left else "none")


@contextmanager
def victim(clinic: Clinic, place: Path, patient: Patient) -> Iterator[Victim]:
    with Zygote(place, PACK) as zygote:
        yield Victim(clinic, patient, zygote)


@pytest.fixture
def patient(clinic: Clinic, mode: str) -> Iterator[Patient]:
    found = clinic.admit("cow", "raw", size=SIZE)
    found.mode = mode
    yield found
    found.discharge()


@pytest.mark.parametrize("mode", ["live", "hybrid"])
def test_killed(clinic: Clinic, place: Path, patient: Patient) -> None:
    """25 times in each mode. Whatever it was in the middle of, the next run ends it, and succeeds."""
    with victim(clinic, place, patient) as runs:
        for _ in range(4 * KILLS):
            delay = runs.choose.uniform(0, runs.duration)
            status, text = runs.end_after(delay, signal.SIGKILL)
            assert status in (0, -signal.SIGKILL), text
            runs.kills += status != 0
            runs.look()
            # It may be killed after its commit.
            runs.committed += bool(runs.take_in_points()) and status != 0
            said = runs.back_up()
            assert ("which an interrupted run had left" in said) or not clinic.lab.leftovers()
            if runs.kills == KILLS // 2:
                break
        assert runs.kills == KILLS // 2
        runs.check_all()
        # The kills hit what they were meant to hit.
        assert runs.left > KILLS // 10
        assert len(runs.places) > 1
        assert runs.committed < KILLS // 4


@pytest.mark.parametrize("mode", ["live", "hybrid"])
def test_terminated(clinic: Clinic, place: Path, patient: Patient) -> None:
    """It ends what it has begun in the engine before it goes."""
    with victim(clinic, place, patient) as runs:
        ended = 0
        for _ in range(TERMINATIONS):
            status, text = runs.end_after(runs.choose.uniform(0.1, runs.duration), signal.SIGTERM)
            assert status in (0, 128 + signal.SIGTERM), text
            assert "Traceback" not in text
            ended += status != 0
            clinic.check_clean()
            runs.take_in_points()
        assert ended
        runs.back_up()
        runs.check_all()
