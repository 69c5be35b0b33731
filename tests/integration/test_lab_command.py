"""tools/lab: what a user of the lab types."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ovirtsdk4
import pytest
from lab_helpers import FAULTS, TOOLS, needs_lab

pytestmark = needs_lab


class Command:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, *words: str, status: int = 0) -> str:
        """What it prints; on failure, its one line."""
        # Not tools/lab itself: that looks first whether the environment of the tests is up to date.
        command = [sys.executable, "-m", "lab", "--dir", str(self.folder), *words]
        result = subprocess.run(
            command,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(TOOLS)},
            timeout=300,
        )
        assert result.returncode == status, f"{result.stdout}{result.stderr}"
        assert "Traceback" not in result.stderr
        return result.stdout if status == 0 else result.stderr

    def status(self) -> Any:
        return json.loads(self("status", "--json"))


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    command = Command(tmp_path_factory.mktemp("lab") / "lab")
    command("up")
    yield command
    command("down")
    assert not command.folder.exists()


def test_up_prints_what_a_client_needs(command: Command) -> None:
    facts = command.status()["facts"]
    password = Path(facts["password_file"])
    assert password.stat().st_mode & 0o777 == 0o600
    connection = ovirtsdk4.Connection(
        url=facts["url"],
        username=facts["username"],
        password=password.read_text().strip(),
        ca_file=facts["ca_file"],
    )
    names = {vm.name for vm in connection.system_service().vms_service().list()}
    connection.close()
    assert names == set(facts["vms"]) >= {"db", "files"}
    assert ("web" in names) == (os.geteuid() == 0)
    shown = command("status")
    assert f'url = "{facts["url"]}"' in shown
    assert "files (" in shown
    assert f"a lab is running in {command.folder}" in command("up", status=1)


@pytest.mark.parametrize("vm", ["web", "db", "files"])
def test_write(command: Command, vm: str) -> None:
    if vm == "web" and os.geteuid() != 0:
        pytest.skip("only root has a VM with file systems")
    assert "wrote" in command("write", vm)


def test_write_to_no_vm(command: Command) -> None:
    assert command("write", "nobody", status=1) == "lab: nobody: no such VM in the lab\n"


def test_break_and_mend(command: Command) -> None:
    listed = command("break", "--list")
    for fault in FAULTS.values():
        assert f"{fault.name} " in listed
        assert fault.what in listed
    command("break", "finalize-slow", "vm=files", "seconds=1")
    command("break", "engine-restart", "--at", "backup-ready")
    assert [each["name"] for each in command.status()["faults"]] == ["finalize-slow", "engine-restart"]
    assert "broken: engine-restart at backup-ready" in command("status")
    command("mend")
    assert command.status()["faults"] == []
    command("break", "power-off-hard", "vm=files")
    assert command.status()["problems"] == []


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["break", "nonsense"], "nonsense: no such fault; see tools/lab break --list"),
        (["break", "vm-removed", "vm=nobody"], "nobody: no such VM in the lab"),
        (["break", "vm-removed", "--at", "noon"], "noon: no such moment; one of "),
        (["break", "vm-removed", "web"], "web: write OPTION=VALUE, such as vm=web"),
    ],
)
def test_bad_words(command: Command, words: list[str], line: str) -> None:
    assert command(*words, status=1).startswith(f"lab: {line}")


def test_no_lab(tmp_path: Path) -> None:
    command = Command(tmp_path / "none")
    for words in (["status"], ["down"], ["write", "web"]):
        assert "no lab is running" in command(*words, status=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").touch()
    assert "not empty, and not a lab's" in Command(tmp_path / "mine")("up", status=1)
    assert (tmp_path / "mine" / "precious").exists()
