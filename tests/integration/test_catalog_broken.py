"""A catalog that cannot be used must not fail anything: it is made anew, or kept in memory."""

from __future__ import annotations

import logging
import os
import random
import secrets
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from catalog_helpers import Backups, answers, backups_in

from vmfs.catalog import Catalog
from vmfs.errors import UsageError


@pytest.fixture
def points(tmp_path: Path) -> Iterator[Backups]:
    with backups_in(tmp_path) as backups:
        for number in range(30):
            backups.add(f"vm{number % 3}")
        yield backups


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "catalog.sqlite"


def fill(path: Path, points: Backups) -> object:
    with Catalog.open(path, points.repository.id) as catalog:
        catalog.sync(points.repository)
        return answers(catalog)


def is_in_memory(catalog: Catalog) -> bool:
    return catalog._database.engine.url.database is None


@pytest.mark.parametrize(
    "content", [b"", b"\0", b"not a database" * 1000, b"SQLite format 3\0", os.urandom(8192)]
)
def test_a_file_that_is_no_database_is_made_anew(path: Path, points: Backups, content: bytes) -> None:
    path.write_bytes(content)
    expected = fill(path, points)
    with Catalog.open(path, points.repository.id) as catalog:
        assert answers(catalog) == expected
        assert not is_in_memory(catalog)


def test_what_was_there_is_set_aside(path: Path, points: Backups) -> None:
    path.write_bytes(b"somebody's notes")
    fill(path, points)
    assert path.with_name("catalog.sqlite.damaged").read_bytes() == b"somebody's notes"


def test_any_page_overwritten(path: Path, points: Backups) -> None:
    """Found when the page is read, be it at once or in the middle; the file is made anew, once."""
    expected = fill(path, points)
    whole = path.read_bytes()
    size = int.from_bytes(whole[16:18], "big")
    anew = 0
    for page in range(len(whole) // size):
        aside = Path(f"{path}.damaged")
        aside.unlink(missing_ok=True)
        path.write_bytes(whole[: page * size] + b"\xff" * size + whole[(page + 1) * size :])
        assert fill(path, points) == expected
        anew += aside.exists()
        assert fill(path, points) == expected
    assert anew > 5


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
def test_truncated(path: Path, points: Backups, keep: float) -> None:
    expected = fill(path, points)
    os.truncate(path, int(path.stat().st_size * keep))
    assert fill(path, points) == expected
    assert fill(path, points) == expected


def test_bytes_flipped_anywhere_raise_nothing(path: Path, points: Backups) -> None:
    fill(path, points)
    whole = path.read_bytes()
    seed = secrets.randbits(32)
    choose = random.Random(seed)  # noqa: S311 - chooses what to damage
    for _ in range(100):
        damaged = bytearray(whole)
        for _ in range(choose.choice((1, 1, 1, 20))):
            damaged[choose.randrange(len(damaged))] ^= 1 << choose.randrange(8)
        path.write_bytes(damaged)
        try:
            fill(path, points)
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error


def test_truncated_while_open(path: Path, points: Backups) -> None:
    with Catalog.open(path, points.repository.id) as catalog:
        catalog.sync(points.repository)
        expected = answers(catalog)
        os.truncate(path, 5000)
        assert answers(catalog) == expected
        points.add()
        catalog.sync(points.repository)
        assert len(catalog.points()) == 31


def test_deleted_while_open(path: Path, points: Backups) -> None:
    with Catalog.open(path, points.repository.id) as catalog:
        catalog.sync(points.repository)
        path.unlink()
        points.add()
        catalog.sync(points.repository)
        assert len(catalog.points()) == 31


def test_locked_by_a_writer_that_hangs(path: Path, points: Backups, caplog: pytest.LogCaptureFixture) -> None:
    expected = fill(path, points)
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("BEGIN EXCLUSIVE")
    with (
        caplog.at_level(logging.DEBUG, "vmfs.catalog"),
        Catalog.open(path, points.repository.id, busy_seconds=0.1) as catalog,
    ):
        catalog.sync(points.repository)
        assert answers(catalog) == expected
        assert is_in_memory(catalog)
    assert "kept in memory: database is locked" in caplog.text
    assert {record.levelno for record in caplog.records} == {logging.DEBUG}
    blocker.rollback()
    blocker.close()
    assert fill(path, points) == expected


def test_locked_once_it_is_open(path: Path, points: Backups) -> None:
    fill(path, points)
    points.add()
    with Catalog.open(path, points.repository.id, busy_seconds=0.1) as catalog:
        blocker = sqlite3.connect(path, isolation_level=None)
        blocker.execute("BEGIN EXCLUSIVE")
        catalog.sync(points.repository)
        assert len(catalog.points()) == 31
        blocker.rollback()
        blocker.close()


def test_nothing_new_needs_no_writing(path: Path, points: Backups) -> None:
    """So that readers of a repository at rest never wait, and a read-only catalog serves them."""
    expected = fill(path, points)
    before = path.stat().st_mtime_ns
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    with Catalog.open(path, points.repository.id, busy_seconds=0.1) as catalog:
        catalog.sync(points.repository)
        assert answers(catalog) == expected
        assert not is_in_memory(catalog)
    writer.rollback()
    writer.close()
    assert path.stat().st_mtime_ns == before


def test_directory_that_cannot_be_written(
    path: Path, points: Backups, caplog: pytest.LogCaptureFixture
) -> None:
    # A file for a parent: no user may make anything below it, root included.
    path.write_bytes(b"")
    below = path / "cache" / "catalog.sqlite"
    with caplog.at_level(logging.DEBUG, "vmfs.catalog"):
        assert fill(below, points) == fill(path.with_name("other.sqlite"), points)
    assert "kept in memory" in caplog.text


def test_a_directory_in_its_place(path: Path, points: Backups) -> None:
    path.mkdir()
    assert fill(path, points) == fill(path.with_name("other.sqlite"), points)


def test_nobody_else_may_read_it(path: Path, points: Backups) -> None:
    before = os.umask(0)
    try:
        fill(path, points)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_postgresql_that_is_away_is_a_warning(
    points: Backups, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    url = f"postgresql://user:secret-word@/db?host={tmp_path}"
    with Catalog.open(url, points.repository.id) as catalog:
        catalog.sync(points.repository)
        assert len(catalog.points()) == 30
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "cannot be used" in record.getMessage()
    assert "secret-word" not in caplog.text


@pytest.mark.parametrize(
    "url", ["mysql://user:secret@host/db", "nonsense", "", "postgresql://u:secret@h:port/db"]
)
def test_urls_of_no_database_we_know(url: str) -> None:
    with pytest.raises(UsageError, match="sqlite:///PATH or postgresql://") as caught:
        Catalog.open(url, b"r" * 16)
    assert "secret" not in str(caught.value)
