"""The commands with their catalog in PostgreSQL: the same answers, and no password in anything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from command_helpers import Site
from postgres_helpers import make_database, postgres_server
from sqlalchemy import URL


@pytest.fixture(scope="module")
def url() -> Iterator[URL]:
    with postgres_server() as directory:
        yield make_database(directory, "catalog")


def test_same_answers(url: URL, tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.init()
    disk = tmp_path / "disk.raw"
    disk.write_bytes(bytes(range(256)) * 512)
    place = url.render_as_string(hide_password=False)
    site.ingest("web", disk, "--catalog", place)
    site.ingest("web", disk)
    for command in (["points"], ["points", "--json"], ["show", "web@latest"], ["points", "--vm", "web"]):
        name, *rest = command
        in_postgres = site.vmfs(name, *rest, "--catalog", place)
        assert in_postgres.status == 0, in_postgres.err
        assert in_postgres == site.vmfs(name, *rest)
    assert site.vmfs("rebuild", "--catalog", place).status == 0
    assert site.vmfs("stats", "--catalog", place).status == 0


def test_server_away(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.init()
    done = site.vmfs("points", "--json", "--catalog", f"postgresql://u:secret-word@/db?host={tmp_path}")
    assert done.status == 0
    assert "cannot be used, points are read one by one" in done.err
    assert "secret-word" not in done.err


def test_no_such_kind_of_database(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.init()
    done = site.vmfs("points", "--catalog", "oracle://u:secret-word@h/db")
    assert done.status == 2
    assert "use sqlite:///PATH or postgresql://" in done.err
    assert "secret-word" not in done.err
