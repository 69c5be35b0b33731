"""The oVirt lab of tools/lab for tests: `lab.Lab` and what belongs to it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parent.parent / "tools" / "lib"
if str(TOOLS) not in sys.path:
    sys.path.insert(0, str(TOOLS))

from lab.engine.model import Timing  # noqa: E402
from lab.faults import FAULTS, UnknownFaultError  # noqa: E402
from lab.lab import DEFAULT, LEGACY, DiskRecipe, Lab, LabVm  # noqa: E402

__all__ = [
    "DEFAULT",
    "FAULTS",
    "LEGACY",
    "MIB",
    "TOOLS",
    "DiskRecipe",
    "Lab",
    "LabVm",
    "Timing",
    "UnknownFaultError",
    "login_options",
    "needs_lab",
    "running_lab",
]

MIB = 1 << 20
MISSING = [tool for tool in ("qemu-nbd", "qemu-img", "qemu-storage-daemon") if not shutil.which(tool)]
needs_lab = pytest.mark.skipif(bool(MISSING), reason=f"install qemu-utils, qemu-system-common: no {MISSING}")


@contextmanager
def running_lab(folder: Path, *, timing: Timing | None = None) -> Iterator[Lab]:
    """A lab in `folder`, and a failure when the lab itself did something wrong."""
    with Lab(folder, timing=timing) as lab:
        yield lab
        problems = list(lab.problems)
    assert not problems, "\n".join(problems)


def login_options(lab: Lab) -> list[object]:
    """Options by which a command finds the lab's engine, with no configuration file."""
    login: list[object] = ["--engine", lab.url, "--username", lab.username]
    return [*login, "--password-file", lab.password_file, "--ca-file", lab.ca_file]
