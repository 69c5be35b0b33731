"""Fixtures of the tests in which things go wrong with the engine: a lab and a repository for each module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_fault_helpers import Clinic, Patient, clinic_in

pytest_plugins = "fault_fixtures"


@pytest.fixture(scope="module")
def clinic(module_place: Path) -> Iterator[Clinic]:
    with clinic_in(module_place) as clinic:
        yield clinic


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lab's engine is quicker than a real one."""
    monkeypatch.setattr("ingest.engine.session.FIRST_PAUSE", 0.02)


@pytest.fixture
def _mended(clinic: Clinic) -> Iterator[None]:
    """Afterwards everything works again, and the engine is clean."""
    yield
    clinic.lab.faults.mend()
    clinic.check_clean()


@pytest.fixture
def admit(clinic: Clinic, _mended: None) -> Iterator[Callable[..., Patient]]:
    """As Clinic.admit, and the mode of its backups; the VMs are gone afterwards."""
    patients: list[Patient] = []

    def admit(*formats: str, mode: str = "auto", **options: Any) -> Patient:
        patient = clinic.admit(*formats, **options)
        patient.mode = mode
        patients.append(patient)
        return patient

    yield admit
    clinic.lab.faults.mend()
    for patient in patients:
        patient.discharge()


@pytest.fixture(scope="module")
def _patients() -> dict[str, Patient]:
    return {}


@pytest.fixture
def patient(clinic: Clinic, _patients: dict[str, Patient], _mended: None, mode: str) -> Patient:
    """A VM that the tests of a module share, one for each mode. There is a restore point for an incremental
    backup to begin from, and the guest has written since."""
    if mode not in _patients:
        _patients[mode] = clinic.admit("cow", "cow")
        _patients[mode].mode = mode
    found = _patients[mode]
    found.make_chain()
    return found
