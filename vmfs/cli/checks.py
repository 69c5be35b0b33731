"""What `vmfs doctor` looks at on this machine. Each check says one thing, and what to do about it."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vmfs.errors import VmfsError
from vmfs.format import aead
from vmfs.fs import mountpoint

Status = Literal["ok", "warn", "fail"]
LITTLE_SPACE = 1 << 30
OLDEST_PYTHON = (3, 11)


@dataclass(frozen=True, slots=True)
class Check:
    """`remedy` is what to do when the status is not ok."""

    name: str
    status: Status
    message: str
    remedy: str | None = None


def machine(cache_root: Path) -> Iterator[Check]:
    """All checks of the machine."""
    yield _python()
    yield _crypto()
    yield _fuse()
    yield _module("pyfuse3", "mounting", "install the package libfuse3-3, then pip install pyfuse3")
    yield _program("fusermount3", "mounting as another user than root", "install the package fuse3")
    yield _sharing()
    yield _loop()
    for program in ("qemu-img", "qemu-nbd"):
        yield _program(
            program, "backing up qcow2, vmdk, vdi and vhdx images", "install the package qemu-utils"
        )
    yield _cache(cache_root)


def attempt(name: str, check: Callable[[], Check], remedy: str | None = None) -> Check:
    """The check, or a failed one of what it raised."""
    try:
        return check()
    except VmfsError as error:
        return Check(name, "fail", str(error), remedy)


def space(name: str, path: Path, what: str) -> Check:
    """Whether there is room where `what` is kept."""
    usage = shutil.disk_usage(path)
    free = f"{usage.free / (1 << 30):.1f} GiB free for {what} at {path}"
    if usage.free < LITTLE_SPACE:
        return Check(name, "warn", free, "free some space")
    return Check(name, "ok", free)


def _python() -> Check:
    version = platform.python_version()
    if sys.version_info[:2] < OLDEST_PYTHON:
        return Check("python", "fail", f"Python {version} is too old", "use Python 3.11 or later")
    return Check("python", "ok", f"Python {version}")


def _crypto() -> Check:
    if aead.provider.name != "cryptography":
        return Check(
            "crypto",
            "warn",
            f"encryption by {aead.provider.name}, which takes several times longer",
            "pip install 'vmfs[fast]'",
        )
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        flags = ["aes"]
    if "aes" not in flags:
        return Check("crypto", "warn", "the processor has no AES instructions: encryption will be slow")
    return Check("crypto", "ok", "fast encryption (cryptography)")


def _fuse() -> Check:
    def check() -> Check:
        mountpoint.check_fuse()
        return Check("fuse", "ok", f"{mountpoint.FUSE_DEVICE} can be opened")

    return attempt("fuse", check)


def _module(name: str, purpose: str, remedy: str) -> Check:
    try:
        importlib.import_module(name)
    except ImportError as error:
        return Check(name, "fail", f"{name}, needed for {purpose}, cannot be loaded: {error}", remedy)
    return Check(name, "ok", f"{name} can be loaded")


def _program(name: str, purpose: str, remedy: str) -> Check:
    found = shutil.which(name)
    if found is None:
        return Check(name, "warn", f"{name} is missing, which {purpose} needs", remedy)
    return Check(name, "ok", found)


def _sharing() -> Check:
    name = "allow-other"
    try:
        mountpoint.check_allow_other()
    except VmfsError:
        message = "others, root among them, cannot read your mounts: no loop mounts of what is in them"
        return Check(name, "warn", message, "put the line user_allow_other into /etc/fuse.conf, or use root")
    return Check(name, "ok", "a mount can be shared with other users (--allow-other)")


def _loop() -> Check:
    control = Path("/dev/loop-control")
    if not control.exists():
        return Check("loop", "warn", f"{control} is missing: no loop mounts", "modprobe loop")
    if os.geteuid() != 0:
        return Check("loop", "ok", "there are loop devices; mounting with them needs root")
    return Check("loop", "ok", "there are loop devices")


def _cache(root: Path) -> Check:
    directory = next(path for path in (root, *root.absolute().parents) if path.is_dir())
    try:
        with tempfile.TemporaryFile(dir=directory):
            return space("cache", directory, "index and catalog")
    except OSError as error:
        message = (
            f"the cache {root} cannot be written to ({error.strerror}): a temporary one is made each time"
        )
        return Check("cache", "warn", message, "set VMFS_CACHE_DIR to a directory that you may write to")
