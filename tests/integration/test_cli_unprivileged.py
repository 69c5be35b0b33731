"""Indexing and searching by a user who is not root and may only read the repository: the catalog is at its
place in his home, or in a database of his."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_helpers import Done, Site
from file_index_helpers import HOME_AT, HOME_SIZE, GuestImage
from postgres_helpers import make_database, postgres_server
from recovery_helpers import NOBODY, needs_guests, run, vmfs

pytestmark = needs_guests

NOTES = "/home/ada/notes.txt"


class Nobody:
    """A site with three points, of which the last two are alike, where others may read; and a home."""

    def __init__(self, root: Path) -> None:
        self.site = Site(root)
        self.home = root / "home"
        self.home.mkdir()
        os.chown(self.home, NOBODY, NOBODY)
        (root / "content").mkdir()
        image = GuestImage(root / "guest.img", root / "content")
        self.site.init()
        self.points = [self._back_up(image)]
        with image.mounted(HOME_AT, HOME_SIZE) as home:
            (home / "ada/notes.txt").write_text("two\n")
        self.points += [self._back_up(image), self._back_up(image)]

    def _back_up(self, image: GuestImage) -> str:
        return str(json.loads(self.site.ingest("web01", f"sda={image.path}", "--json").out)["id"])

    def may(self, *, write: bool) -> None:
        if write:
            run("chown", "-R", f"{NOBODY}:{NOBODY}", self.site.repository)
        run("chmod", "-R", "o+rX", self.site.repository, self.site.passphrase)

    def vmfs(self, command: str, *argv: object) -> Done:
        return vmfs(self.site, command, *argv, nobody=self.home)

    def stored(self) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in self.site.repository.rglob("*") if path.is_file()}

    def points_of(self, done: Done, key: str) -> list[list[str]]:
        found: dict[str, Any] = done.json()
        return [[point["id"] for point in row["points"]] for row in found[key]]


@pytest.fixture
def nobody() -> Iterator[Nobody]:
    """Where other users may look: pytest's own directories are closed to them."""
    root = Path(tempfile.mkdtemp(prefix="vmfs-test-", dir="/var/tmp"))
    try:
        root.chmod(0o755)
        yield Nobody(root)
    finally:
        shutil.rmtree(root)


@pytest.fixture(scope="module")
def postgres() -> Iterator[Path]:
    with postgres_server() as directory:
        # Nobody is to reach the socket.
        directory.chmod(0o711)
        yield directory


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_reader_searches(nobody: Nobody, kind: str, request: pytest.FixtureRequest) -> None:
    assert nobody.site.vmfs("index", "--all").status == 0
    nobody.may(write=False)
    words: list[object] = []
    if kind == "postgresql":
        url = make_database(request.getfixturevalue("postgres"), secrets.token_hex(8))
        words = ["--catalog", url.render_as_string(hide_password=False)]
    first, *others = nobody.points
    stored = nobody.stored()
    for _ in range(2):
        found = nobody.vmfs("find", "notes.txt", "--json", *words)
        assert nobody.points_of(found, "files") == [[first], others]
        assert found.err == ""
    told = nobody.vmfs("history", "web01", NOTES, "--json", *words)
    assert nobody.points_of(told, "versions") == [[first], others]
    assert told.err == ""
    assert nobody.vmfs("find", "payroll.xlsx", "--latest", *words).out.endswith(" /home/ada/payroll.xlsx\n")
    assert len(nobody.vmfs("history", "web01", NOTES, *words).out.splitlines()) == 3
    assert nobody.stored() == stored
    catalogs = list(nobody.home.glob(".cache/vmfs/*/catalog.sqlite"))
    assert len(catalogs) == (1 if kind == "sqlite" else 0)


def test_a_reader_looks_through_points_without_lists(nobody: Nobody) -> None:
    nobody.may(write=False)
    first, *others = nobody.points
    stored = nobody.stored()
    for command, words, key in (
        ("find", [NOTES], "files"),
        ("history", ["web01", NOTES], "versions"),
    ):
        left_out = nobody.vmfs(command, *words)
        assert left_out.out == ""
        assert "3 of 3 restore points are not indexed and left out" in left_out.err
        assert "--walk" in left_out.err
        walked = nobody.vmfs(command, *words, "--walk", "--json")
        assert nobody.points_of(walked, key) == [[first], others]
        assert walked.json()["not_indexed"] == []
        assert walked.err == ""
    assert nobody.stored() == stored


def test_a_reader_is_told_that_lists_are_kept_in_the_repository(nobody: Nobody) -> None:
    assert nobody.site.vmfs("index", nobody.points[0]).status == 0
    nobody.may(write=False)
    stored = nobody.stored()
    done = nobody.vmfs("index", "--all", "-v")
    assert (done.status, done.err.count("\n")) == (1, 1)
    assert "permission denied; run as the repository's owner; 'vmfs find --walk'" in done.err
    # What is there is no reason to complain.
    assert nobody.vmfs("index", nobody.points[0]).status == 0
    assert nobody.stored() == stored


def test_who_may_write_indexes(nobody: Nobody) -> None:
    nobody.may(write=True)
    done = nobody.vmfs("index", "--all", "--json")
    assert [point["new"] for point in done.json()["points"]] == [True] * 3
    assert done.err == ""
    found = nobody.vmfs("find", "payroll.xlsx", "--json")
    assert nobody.points_of(found, "files") == [nobody.points]
    # For others, too.
    assert nobody.site.vmfs("find", "payroll.xlsx", "--json").json() == found.json()
