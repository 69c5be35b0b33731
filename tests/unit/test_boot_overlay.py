"""Where a booted VM writes: whose directories are removed, and which names are refused."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from vmfs.boot.overlay import open_folder
from vmfs.errors import UsageError

POINT = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


def test_what_the_killed_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    script = (
        "import os, pathlib, signal, sys\n"
        "from contextlib import ExitStack\n"
        "from vmfs.boot.overlay import open_folder\n"
        "stack = ExitStack()\n"
        "folder = open_folder(pathlib.Path(sys.argv[1]), None, 'p', stack)\n"
        "(folder / 'disk0.qcow2').write_bytes(bytes(4096))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    with ExitStack() as living:
        mine = open_folder(tmp_path, None, POINT, living)
        (mine / "disk0.qcow2").touch()
        subprocess.run([sys.executable, "-c", script, tmp_path], check=False)
        assert len(list(tmp_path.iterdir())) == 2
        # Another program's, of which we do not know whether it lives; and what is kept.
        (tmp_path / "vmfs-boot-other").mkdir()
        (tmp_path / "vmfs-boot-file").touch()
        (tmp_path / "vmfs-boot-link").symlink_to(mine)
        with ExitStack() as keeping:
            open_folder(tmp_path, "kept", POINT, keeping)
        with ExitStack() as stack:
            new = open_folder(tmp_path, None, POINT, stack)
            assert {path.name for path in tmp_path.iterdir()} == {
                *("vmfs-boot-other", "vmfs-boot-file", "vmfs-boot-link", "kept"),
                *(mine.name, new.name),
            }
        assert not new.exists()
        assert (mine / "disk0.qcow2").exists()


def test_a_name_that_is_taken_by_a_file(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("")
    with ExitStack() as stack, pytest.raises(UsageError, match="kept: File exists; choose another --keep"):
        open_folder(tmp_path, "kept", POINT, stack)
