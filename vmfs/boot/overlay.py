"""Where a booted VM writes: a qcow2 overlay for each disk, in a directory that goes away or is kept."""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from vmfs.errors import UsageError, VmfsError
from vmfs.serve.folder import private_folder

_FACTS = "boot.json"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}\Z")


def open_folder(scratch: Path, name: str | None, point: str, stack: ExitStack) -> Path:
    """A directory for the overlays: a new one that is removed with the stack, or the kept one of that name,
    made if it is not there. Raises UsageError when that is another point's, or in use."""
    if name is None:
        return stack.enter_context(private_folder("vmfs-boot-", scratch))
    if not _NAME.match(name):
        raise UsageError(f"{name!r} is no name for --keep; use letters, digits, '.', '-' and '_'")
    folder = scratch / name
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        lock = stack.enter_context((folder / ".lock").open("w"))
    except OSError as error:
        raise UsageError(f"{folder}: {os.strerror(error.errno or 0)}; choose another --keep") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(f"{folder} is in use: a VM runs on it") from None
    facts = folder / _FACTS
    if not facts.exists():
        if any(folder.glob("*.qcow2")):
            raise UsageError(f"{folder} is none of ours; choose another --keep")
        facts.write_text(json.dumps({"point": point}) + "\n")
        return folder
    try:
        kept = json.loads(facts.read_text())["point"]
    except (ValueError, LookupError, TypeError):
        raise UsageError(f"{facts} cannot be read; choose another --keep") from None
    if kept != point:
        raise UsageError(f"{folder} keeps what was written over restore point {kept}; choose another --keep")
    return folder


def make_overlay(folder: Path, number: int, size: int) -> Path:
    """The overlay of disk `number`, of `size` bytes; one that is there already is used. Raises VmfsError."""
    path = folder / f"disk{number}.qcow2"
    if path.exists():
        return path
    # It names no backing file: a path to a socket in it would be wrong the next time.
    command = ["qemu-img", "create", "-q", "-f", "qcow2", str(path), str(size)]
    done = subprocess.run(command, capture_output=True, text=True, env=_plain(os.environ))
    if done.returncode != 0:
        raise VmfsError(f"qemu-img cannot make {path}: {done.stderr.strip()}")
    return path


def written(folder: Path) -> int:
    """Bytes that the overlays take."""
    return sum(path.stat().st_blocks * 512 for path in folder.glob("*.qcow2"))


def _plain(environment: Mapping[str, str]) -> dict[str, str]:
    return {**environment, "LC_ALL": "C"}
