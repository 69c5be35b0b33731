"""A file that appears whole or not at all, also where the file system offers little help."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from vmfs.errors import UsageError, VmfsError
from vmfs.repo.newfile import NewFile


@pytest.fixture(params=["unnamed files", "no unnamed files", "no links either"])
def file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last two refuse what FAT, NFS and many FUSE file systems refuse."""
    really_open = os.open

    def refusing_open(path: Any, flags: int, *rest: int, **options: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "not supported")
        return really_open(path, flags, *rest, **options)

    def refusing_link(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "not permitted")

    if request.param != "unnamed files":
        monkeypatch.setattr(os, "open", refusing_open)
    if request.param == "no links either":
        monkeypatch.setattr(os, "link", refusing_link)


def write(path: Path, content: bytes, *, replace: bool = False) -> None:
    with NewFile(path, replace=replace) as file:
        file.resize(len(content))
        file.write_at(0, content)
        assert path.name not in os.listdir(path.parent) or replace
        file.commit()


@pytest.mark.usefixtures("file_system")
def test_new(tmp_path: Path) -> None:
    write(tmp_path / "new", b"content")
    assert (tmp_path / "new").read_bytes() == b"content"
    assert os.listdir(tmp_path) == ["new"]


@pytest.mark.usefixtures("file_system")
def test_replace(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write(path, b"old", replace=True)
    write(path, b"new", replace=True)
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.usefixtures("file_system")
def test_given_up(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with NewFile(path, replace=True) as file:
        file.write_at(0, b"half")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.usefixtures("file_system")
def test_somebody_else_was_faster(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with NewFile(path) as file:
        path.write_bytes(b"theirs")
        with pytest.raises(UsageError, match="has appeared meanwhile"):
            file.commit()
    assert path.read_bytes() == b"theirs"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.usefixtures("file_system")
def test_longest_name(tmp_path: Path) -> None:
    write(tmp_path / ("n" * 255), b"content")
    assert os.listdir(tmp_path) == ["n" * 255]


def test_errors_are_one_line_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(VmfsError, match=r"cannot write .*/no/where: there is no such directory"):
        NewFile(tmp_path / "no" / "where")
    with pytest.raises(VmfsError, match=r"cannot write .*: File name too long"):
        NewFile(tmp_path / ("n" * 256))
