"""The user's commands before and after a backup: real processes."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from ingest.engine.hooks import Hook, HookError, facts, make_hook, run_hook
from vmfs.errors import UsageError

FACTS = facts(vm_name="web\0 one", vm_id="1", engine="rhv", point="01J", result="success", disks=["a", "b"])


def shell(script: str, *, policy: str = "abort", limit: float = 60.0) -> Hook:
    return Hook(name="pre", words=("sh", "-c", script), policy=policy, limit=limit)  # type: ignore[arg-type]


def test_a_hook_learns_of_the_vm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMFS_PASSPHRASE_FILE", "/secret")
    monkeypatch.setenv("VMFS_CACHE_DIR", "/cache")
    run_hook(shell(f"env >{tmp_path}/env"), FACTS)
    seen = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines() if "=" in line)
    assert {name: seen[f"VMFS_{name}"] for name in ("VM_NAME", "VM_ID", "ENGINE", "POINT", "RESULT")} == {
        "VM_NAME": "web one",
        "VM_ID": "1",
        "ENGINE": "rhv",
        "POINT": "01J",
        "RESULT": "success",
    }
    assert seen["VMFS_CACHE_DIR"] == "/cache"
    assert "VMFS_PASSPHRASE_FILE" not in seen


def test_what_a_hook_prints_goes_to_our_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    with capfd.disabled():
        reader, writer = os.pipe()
        kept = os.dup(2)
        os.dup2(writer, 2)
        try:
            # pytest has an object of its own in place of sys.stderr.
            before, sys.stderr = sys.stderr, os.fdopen(os.dup(2), "w")
            run_hook(shell("echo out; echo err >&2"), FACTS)
        finally:
            sys.stderr.close()
            sys.stderr = before
            os.dup2(kept, 2)
            os.close(kept)
            os.close(writer)
        with os.fdopen(reader) as pipe:
            assert pipe.read() == "out\nerr\n"


@pytest.mark.parametrize(
    ("script", "told"),
    [("exit 3", "failed with exit status 3"), ("kill -9 $$", "was ended by signal 9")],
)
def test_a_failure_decides_by_policy(script: str, told: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(HookError, match=f"the pre command sh {told}"):
        run_hook(shell(script), FACTS)
    run_hook(shell(script, policy="warn"), FACTS)
    assert told in caplog.text


@pytest.mark.parametrize("word", ["/no/such", "/etc/passwd", "with\0nul"])
def test_a_command_that_cannot_be_run(word: str) -> None:
    with pytest.raises(HookError, match="cannot be run"):
        run_hook(Hook(name="post", words=(word,)), FACTS)


def test_a_hook_that_takes_too_long_is_ended_with_all_it_started(tmp_path: Path) -> None:
    # The child does not end when it is asked to, and its parent is gone by then.
    script = f"""(trap '' TERM; echo $$ >{tmp_path}/begun; exec 3<>{tmp_path}/alive; cat {tmp_path}/never) &
    wait"""
    os.mkfifo(tmp_path / "never")
    os.mkfifo(tmp_path / "alive")
    begun = time.monotonic()
    with pytest.raises(HookError, match=r"was ended after 0\.5 s"):
        run_hook(shell(script, limit=0.5), FACTS)
    assert time.monotonic() - begun < 60
    # Whoever has the pipe open keeps this from being refused.
    assert wait_until_nobody_reads(tmp_path / "alive")


def wait_until_nobody_reads(path: Path) -> bool:
    """A writer is refused (ENXIO) once no process has the pipe open; a killed one is gone a little later."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:
            return True
        time.sleep(0.01)
    return False


def test_an_interruption_ends_the_hook(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "begun")
    os.mkfifo(tmp_path / "alive")

    def interrupt() -> None:
        (tmp_path / "begun").read_text()
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run_hook(shell(f"exec 3<>{tmp_path}/alive; echo >{tmp_path}/begun; sleep 1000"), FACTS)
    thread.join()
    assert wait_until_nobody_reads(tmp_path / "alive")


def test_commands_of_the_user() -> None:
    assert make_hook("pre", "run 'two words' x").words == ("run", "two words", "x")
    for wrong in ("", "  ", "'"):
        with pytest.raises(UsageError, match="cannot be understood"):
            make_hook("pre", wrong)
    with pytest.raises(UsageError, match="time limit"):
        make_hook("pre", "true", limit=0)
