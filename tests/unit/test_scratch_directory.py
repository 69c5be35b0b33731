"""Who has which writable view, and what is cleared away of the dead."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from mount_helpers import MIB, add_point

from vmfs.errors import IntegrityError, UsageError, VersionError, VmfsError
from vmfs.fs.scratch import directory, header
from vmfs.fs.scratch.directory import VIEW_MAGIC, opened
from vmfs.fs.scratch.io import Io
from vmfs.fs.scratch.overlay import MAP_MAGIC, Identity, Overlay
from vmfs.fs.scratch.view import open_view
from vmfs.repo.repository import Repository

REPOSITORY = bytes(16)


def views(path: Path) -> Sequence[str]:
    return sorted(os.listdir(path))


def test_unnamed_views_are_gone_with_their_context(tmp_path: Path) -> None:
    with opened(tmp_path, REPOSITORY, None) as one, opened(tmp_path, REPOSITORY, None) as two:
        assert one.path != two.path
        assert len(views(tmp_path)) == 2
        (one.path / "01ARZ3NDEKTSV4RRFFQ69G5FAV-0.map").touch()
        (one.path / "01ARZ3NDEKTSV4RRFFQ69G5FAV-0.data-0000").touch()
    assert views(tmp_path) == []


def test_what_the_dead_left_is_cleared_away(tmp_path: Path) -> None:
    """Of a process that was killed, at any moment; what lives, is named or is not ours stays."""
    script = (
        "import os, signal, sys, pathlib\n"
        "from vmfs.fs.scratch.directory import opened\n"
        "with opened(pathlib.Path(sys.argv[1]), bytes(16), None) as view:\n"
        "    (view.path / '01ARZ3NDEKTSV4RRFFQ69G5FAV-0.map').write_text('x')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path], check=False)
    assert len(views(tmp_path)) == 1
    # It died before it had written the header, or made the file.
    (tmp_path / "view-00000000000000aa").mkdir()
    (tmp_path / "view-00000000000000aa" / "view").touch()
    (tmp_path / "view-00000000000000bb").mkdir()
    # Somebody else's.
    (tmp_path / "view-00000000000000cc").mkdir()
    (tmp_path / "view-00000000000000cc" / "view").write_text("my holidays")
    (tmp_path / "view-00000000000000dd").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "view-00000000000000ee").touch()
    (tmp_path / "views").mkdir()
    mine = ["elsewhere", "view-00000000000000cc", "view-00000000000000dd", "view-00000000000000ee", "views"]
    with opened(tmp_path, REPOSITORY, "x"):
        assert views(tmp_path) == ["elsewhere", "kept-x", *mine[1:]]
    with opened(tmp_path, REPOSITORY, None) as alive, opened(tmp_path, REPOSITORY, None):
        assert alive.path.exists()
    assert views(tmp_path) == ["elsewhere", "kept-x", *mine[1:]]
    # Files of others in a view of ours are left, and the view with them.
    with opened(tmp_path, REPOSITORY, None) as view:
        (view.path / "notes").write_text("x")
    assert sorted(os.listdir(view.path)) == ["notes", "view"]


def test_a_name_is_one_mounts_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "_PATIENCE", 0.1)
    with opened(tmp_path, REPOSITORY, "x"):
        with (
            pytest.raises(UsageError, match=r"scratch x in .* is in use by another mount"),
            opened(tmp_path, REPOSITORY, "x"),
        ):
            pass
        with opened(tmp_path, REPOSITORY, "y"):
            pass
    with opened(tmp_path, REPOSITORY, "x"):
        pass
    with (
        pytest.raises(UsageError, match="belongs to another repository"),
        opened(tmp_path, bytes(15) + b"x", "x"),
    ):
        pass
    (tmp_path / "kept-x" / "view").write_bytes(b"")
    with opened(tmp_path, REPOSITORY, "x"):
        pass
    (tmp_path / "kept-x" / "view").write_bytes(b"")
    (tmp_path / "kept-x" / "A-0.map").touch()
    with (
        pytest.raises(IntegrityError, match="is empty, but the view is not"),
        opened(tmp_path, REPOSITORY, "x"),
    ):
        pass


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "-x", "ä", "x\n", "a" * 101])
def test_bad_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="scratch name"):
        directory.check(tmp_path, [], name)


def test_the_header() -> None:
    fields = {"repository": "ab", "size": 5}
    data = header.encode(VIEW_MAGIC, fields)
    assert len(data) == header.SIZE
    assert header.decode(VIEW_MAGIC, data, "f") == fields
    assert data[:20] == b"VMFSVIEW" + (1).to_bytes(4, "little") + data[12:20]
    for place in (20, 30, 16):
        bad = bytearray(data)
        bad[place] ^= 1
        with pytest.raises(IntegrityError, match="f is damaged"):
            header.decode(VIEW_MAGIC, bytes(bad), "f")
    with pytest.raises(VersionError, match="version 2"):
        header.decode(VIEW_MAGIC, data[:8] + b"\2" + data[9:], "f")
    with pytest.raises(IntegrityError, match="no file of a writable view"):
        header.decode(MAP_MAGIC, data, "f")
    with pytest.raises(IntegrityError, match="too short"):
        header.decode(VIEW_MAGIC, data[:10], "f")


def test_a_view_of_another_state(repository: Repository, tmp_path: Path) -> None:
    """What was written over a disk makes sense over that disk only."""
    point = add_point(repository, {"sda": b"\1" * MIB})
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    disk = point.manifest.disks[0]
    assert disk.root is not None
    right = Identity(
        repository=repository.id.hex(), point=point.id, disk=disk.id, root=disk.root.hex(), size=MIB
    )
    for wrong in (replace(right, root="00"), replace(right, size=MIB + 512), replace(right, disk="x"), right):
        with opened(scratch, repository.id, "x") as place:
            overlay = Overlay.create(Io(), place.descriptor, f"{point.id}-0", wrong)
            overlay.close()
        if wrong is right:
            with open_view(repository, repository.id, scratch, "x") as view:
                assert list(view._disks) == [(point.id, 0)]
            continue
        with (
            pytest.raises(VmfsError, match="changes to another state of restore point"),
            open_view(repository, repository.id, scratch, "x"),
        ):
            pass
    # A copy that somebody made to be safe is none of ours.
    (scratch / "kept-x" / f"{point.id}-0 (copy).map").write_bytes(
        (scratch / "kept-x" / f"{point.id}-0.map").read_bytes()
    )
    with open_view(repository, repository.id, scratch, "x") as view:
        assert list(view._disks) == [(point.id, 0)]
    (scratch / "kept-x" / f"{point.id}-0.map").write_bytes(b"\0" * 5000)
    with pytest.raises(IntegrityError, match="kept-x"), open_view(repository, repository.id, scratch, "x"):
        pass
