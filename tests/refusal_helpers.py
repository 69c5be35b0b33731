"""Commands that must refuse: with one line, the right status, and nothing left behind."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from command_helpers import PROGRAMS, program

can_drop_rights = pytest.mark.skipif(
    os.geteuid() == 0 and shutil.which("setpriv") is None, reason="install util-linux: no setpriv"
)

Listing = Mapping[str, int | str]


def listing(root: Path) -> dict[str, int | str]:
    """Everything below a directory, with what would show a change: size of a file, target of a link."""
    found: dict[str, int | str] = {}
    for folder, folders, files in os.walk(root):
        for name in folders + files:
            path = Path(folder, name)
            if path.is_symlink():
                found[str(path)] = os.readlink(path)
            else:
                found[str(path)] = path.stat().st_size if path.is_file() else "other"
    return found


def without_cache(found: Listing, root: Path) -> dict[str, int | str]:
    return {name: size for name, size in found.items() if not name.startswith(str(root / "cache"))}


def refused(root: Path, status: int, *command: object, **options: Any) -> str:
    """The one line that a command says which must fail with that status, and must leave everything below
    `root` as it was but for the cache."""
    before = without_cache(listing(root), root)
    words = [program(word) if word in PROGRAMS else str(word) for word in map(str, command)]
    done = subprocess.run(
        words, capture_output=True, stdin=subprocess.DEVNULL, check=False, timeout=60, **options
    )
    lines = done.stderr.decode(errors="replace").splitlines()
    assert done.returncode == status, (done.returncode, done.stdout, lines)
    assert done.stdout == b""
    assert len(lines) == 1, lines
    assert without_cache(listing(root), root) == before
    return lines[0]


def unprivileged(name: str, *argv: object) -> list[str]:
    """A command line for a process to which permissions mean something, even if we are root."""
    words = [program(name), *map(str, argv)]
    if os.geteuid() != 0:
        return words
    rights = "-dac_override,-dac_read_search,-fowner"
    return ["setpriv", f"--bounding-set={rights}", f"--inh-caps={rights}", *words]
