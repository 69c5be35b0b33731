"""Every fault of the lab happens when it is armed, and is over afterwards."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import pytest
from lab_client_helpers import sdk_client
from lab_fault_bench import CASES, Bench
from lab_helpers import DEFAULT, FAULTS, LEGACY, Lab, UnknownFaultError, needs_lab, running_lab

pytestmark = needs_lab

for group in ("backups", "engine", "transfers", "vms"):
    pytest.register_assert_rewrite(f"lab_fault_cases_{group}")
    importlib.import_module(f"lab_fault_cases_{group}")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with running_lab(tmp_path_factory.mktemp("lab")) as lab:
        yield lab


@pytest.mark.parametrize("name", FAULTS)
def test_fault(lab: Lab, name: str) -> None:
    before = lab.faults.used[name]
    with sdk_client(lab) as sdk:
        live = name in ("checkpoint-redefine-fails", "finalize-fails")
        CASES[name](Bench(lab, sdk, LEGACY if live else DEFAULT))
    assert lab.faults.used[name] > before
    assert lab.faults.armed == []
    lab.faults.mend()
    assert lab.leftovers() == []
    assert lab.problems == []


def test_unknown(lab: Lab) -> None:
    for arguments in ({"name": "nonsense"}, {"name": "vm-removed", "at": "never"}):
        with pytest.raises(UnknownFaultError, match="no such"):
            lab.faults.break_(arguments["name"], at=arguments.get("at"))
    with pytest.raises(UnknownFaultError, match="happens by itself"):
        lab.faults.break_("finalize-slow", at="reading")
    with pytest.raises(UnknownFaultError, match="no such VM"):
        lab.faults.break_("vm-removed", vm="nobody")


def test_skip_times_and_mend(lab: Lab) -> None:
    lab.faults.break_("unavailable", skip=1, times=2)
    assert [lab.faults.take("unavailable") is None for _ in range(4)] == [True, False, False, True]
    lab.faults.break_("unavailable", times=0, vm="one")
    assert lab.faults.take("unavailable", vm="two") is None
    assert lab.faults.take("unavailable", vm="one") is not None
    lab.faults.mend("unavailable")
    assert lab.faults.take("unavailable", vm="one") is None
