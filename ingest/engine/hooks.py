"""Commands of the user's that run on the backup server before and after a backup.

They learn of the VM by their environment, and have a time limit. Standard output goes to our standard error,
as ours may be JSON.
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from vmfs.errors import UsageError, VmfsError

log = logging.getLogger(__name__)

Policy = Literal["abort", "warn"]
DEFAULT_LIMIT = 300.0
GRACE = 5.0
"""Seconds between asking a command to end and ending it."""

_DROPPED = ("VMFS_PASSPHRASE_FILE", "VMFS_PASSPHRASE_COMMAND", "VMFS_KEY_FILE")


class HookError(VmfsError):
    """A command before or after a backup failed, and the policy is to abort."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """`words` is the command; `limit` in seconds. With policy `warn` its failure is only warned of."""

    name: str
    words: tuple[str, ...]
    policy: Policy = "abort"
    limit: float = DEFAULT_LIMIT


def make_hook(name: str, command: str, *, policy: Policy = "abort", limit: float = DEFAULT_LIMIT) -> Hook:
    """Of a command line as in a shell, which is not run by one. Raises UsageError."""
    try:
        words = shlex.split(command)
    except ValueError:
        words = []
    if not words:
        raise UsageError(f"the {name} command {command!a} cannot be understood; check its quotes")
    if not limit > 0:
        raise UsageError(f"the time limit of the {name} command is {limit:g} s; give more than none")
    return Hook(name=name, words=tuple(words), policy=policy, limit=limit)


def facts(
    *,
    vm_name: str,
    vm_id: str,
    engine: str,
    point: str = "",
    result: str = "",
    error: str = "",
    disks: Sequence[str] = (),
) -> dict[str, str]:
    """What a hook is told, each as an environment variable so named. `result` is `success` or
    `failure`, empty before the backup; `point` is the id of the restore point that was made; `disks` are
    aliases."""
    return {
        "VM_NAME": vm_name,
        "VM_ID": vm_id,
        "ENGINE": engine,
        "POINT": point,
        "RESULT": result,
        "ERROR": error,
        "DISKS": "\n".join(disks),
    }


def run_hook(hook: Hook, told: Mapping[str, str]) -> None:
    """Run it to its end, or to its time limit: then it and all it has started are ended, unless that has left
    its process group. Raises HookError by policy."""
    problem = _run(hook, told)
    if problem is None:
        return
    message = f"the {hook.name} command {hook.words[0]} {problem}"
    if hook.policy == "abort":
        raise HookError(message)
    log.warning("%s", message)


def _run(hook: Hook, told: Mapping[str, str]) -> str | None:
    """What went wrong, or None."""
    ours = {name: value for name, value in os.environ.items() if name not in _DROPPED}
    added = {f"VMFS_{name}": value.replace("\0", "") for name, value in told.items()}
    started: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        started.append(
            subprocess.Popen(
                hook.words,
                stdin=subprocess.DEVNULL,
                stdout=_stderr(),
                env={**ours, **added},
                start_new_session=True,
            )
        )

    try:
        # In another thread: an interruption here would leave a process that nobody knows of.
        with ThreadPoolExecutor(1, "vmfs-hook") as pool:
            pool.submit(start).result()
        status = started[0].wait(hook.limit)
    except OSError as error:
        return f"cannot be run: {error.strerror}"
    except ValueError as error:
        return f"cannot be run: {error}"
    except subprocess.TimeoutExpired:
        _end(started[0])
        return f"was ended after {hook.limit:g} s; give it more time, or see why it hangs"
    except BaseException:
        for process in started:
            _end(process)
        raise
    if status == 0:
        return None
    return f"failed with exit status {status}" if status > 0 else f"was ended by signal {-status}"


def _stderr() -> int:
    """Where the user sees what a hook says."""
    try:
        return sys.stderr.fileno()
    except (OSError, ValueError, AttributeError):
        return subprocess.DEVNULL


def _end(process: subprocess.Popen[bytes]) -> None:
    """The whole group: politely, then not."""
    _signal(process, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)
    # Even if the command itself has ended: what it started may not have.
    _signal(process, signal.SIGKILL)
    process.wait()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    # Its pid is its group's: it leads a session. No other process gets that number while the group has
    # members, and if it has none there is nobody to signal.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
