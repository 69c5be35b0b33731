"""The catalog on SQLite and on a real PostgreSQL: the same tests, the same answers."""

from __future__ import annotations

import multiprocessing
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from catalog_helpers import START, Backups, answers, backups_in
from conftest import SECRET
from postgres_helpers import make_database, postgres_server
from sqlalchemy import URL, Engine, create_engine, event, inspect, text
from ulid import ULID

from vmfs.catalog import Catalog, sqlite_url
from vmfs.catalog.fullsearch import SEARCH_TABLE
from vmfs.catalog.models import TABLE_PREFIX, Base
from vmfs.errors import IntegrityError, UsageError
from vmfs.repo.repository import Point, Repository
from vmfs.store import LocalStore


@pytest.fixture(scope="session")
def postgres() -> Iterator[Path]:
    with postgres_server() as directory:
        yield directory


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> URL:
    if request.param == "sqlite":
        return sqlite_url(tmp_path / "cache" / "catalog ?#%.sqlite")
    return make_database(request.getfixturevalue("postgres"), secrets.token_hex(8))


@pytest.fixture
def points(tmp_path: Path) -> Iterator[Backups]:
    with backups_in(tmp_path) as backups:
        yield backups


@pytest.fixture
def catalog(url: URL, points: Backups) -> Iterator[Catalog]:
    with Catalog.open(url, points.repository.id) as catalog:
        yield catalog


def engine_of(url: URL) -> Engine:
    """For a look behind the catalog's back."""
    return create_engine(url.set(drivername="postgresql+psycopg") if url.drivername != "sqlite" else url)


def test_empty(catalog: Catalog, points: Backups) -> None:
    assert catalog.sync(points.repository) == []
    assert catalog.vms() == []
    assert catalog.points() == []
    assert catalog.points("web") == []
    assert catalog.point("01ARZ3NDEKTSV4RRFFQ69G5FAV") is None
    for spec in ("01ARZ", "web@latest", "web"):
        with pytest.raises(UsageError, match=r"no restore points yet|is no point"):
            catalog.resolve(spec)


def test_answers_what_the_manifest_says(catalog: Catalog, points: Backups) -> None:
    point_id = points.add()
    points.add("db", START + timedelta(microseconds=1))
    catalog.sync(points.repository)
    (row,) = catalog.points("web")
    manifest = points.repository.load_point(point_id).manifest
    assert (row.id, row.vm, row.vm_id, row.engine) == (point_id, "web", "web", None)
    assert (row.time, row.consistency, row.parent) == (START, "filesystem", None)
    assert (row.producer, row.signer) == ("vmfs 1", points.repository.load_point(point_id).signer)
    assert row == catalog.point(point_id)
    for disk, stored in zip(row.disks, manifest.disks, strict=True):
        for name in disk.__slots__:
            assert getattr(disk, name) == getattr(stored, name)
    assert [(artifact.name, artifact.size) for artifact in row.artifacts] == [("vm.ovf", 6)]
    assert [point.vm for point in catalog.points()] == ["web", "db"]
    (db, web) = catalog.vms()
    assert (web.name, web.id, web.cluster, web.points) == ("web", "web", "rack 1", 1)
    assert (db.first, db.latest) == (START + timedelta(microseconds=1),) * 2
    assert web.latest_point == point_id


def test_only_what_changed_is_loaded(catalog: Catalog, points: Backups, url: URL) -> None:
    kept, pruned = points.add(), points.add("db")
    catalog.sync(points.repository)
    # What is known is not read again: not even to see that it has become unreadable.
    points.path(kept).write_bytes(b"")
    assert catalog.sync(points.repository) == []
    points.repository.store.delete(f"points/{pruned}")
    added = points.add("web", START + timedelta(days=1))
    with Catalog.open(url, points.repository.id) as other:
        assert other.sync(points.repository) == []
        assert [point.id for point in other.points()] == [kept, added]
        assert [vm.name for vm in other.vms()] == ["web"]


def test_cleared_and_filled_again_gives_equal_answers(catalog: Catalog, points: Backups) -> None:
    for number in range(20):
        points.add(f"vm{number % 3}", START + timedelta(hours=number))
    catalog.sync(points.repository)
    before = answers(catalog)
    catalog.clear()
    assert catalog.points() == []
    assert catalog.vms() == []
    loaded: list[tuple[int, int]] = []
    catalog.sync(points.repository, progress=lambda done, total: loaded.append((done, total)))
    assert answers(catalog) == before
    assert loaded[-1] == (20, 20)


def test_several_repositories_in_one_database(url: URL, points: Backups) -> None:
    # The same point ids and VMs under two repository ids.
    shared = points.add()
    with Catalog.open(url, points.repository.id) as one, Catalog.open(url, b"o" * 16) as other:
        one.sync(points.repository)
        assert other.vms() == []
        points.add("db")
        other.sync(points.repository)
        assert [vm.name for vm in one.vms()] == ["web"]
        assert [vm.name for vm in other.vms()] == ["db", "web"]
        one.clear()
        assert len(other.points()) == 2
        assert len(other.points("web")[0].disks) == 2
        with pytest.raises(UsageError, match=f"there is no point '{shared}'"):
            one.resolve(shared)
        assert other.resolve(shared) == shared


def test_damaged_points_are_told_and_tried_again(catalog: Catalog, points: Backups) -> None:
    good, bad = points.add(), points.add("db")
    whole = points.path(bad).read_bytes()
    points.path(bad).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    points.path("not-a-ulid").write_bytes(whole)
    damaged = catalog.sync(points.repository)
    assert sorted(point.id for point in damaged) == sorted([bad, "not-a-ulid"])
    assert all(point.message and "\n" not in point.message for point in damaged)
    assert [point.id for point in catalog.points()] == [good]
    with pytest.raises(IntegrityError, match=f"point {bad} is damaged: "):
        catalog.resolve(bad)
    points.path(bad).write_bytes(whole)
    points.path("not-a-ulid").unlink()
    assert catalog.sync(points.repository) == []
    assert catalog.resolve(bad) == bad


def test_a_point_moved_to_another_name_is_damaged(catalog: Catalog, points: Backups) -> None:
    point_id = points.add()
    moved = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
    points.path(point_id).rename(points.path(moved))
    assert [point.id for point in catalog.sync(points.repository)] == [moved]
    assert catalog.points() == []


def test_a_point_pruned_while_the_store_is_listed_is_not_damaged(catalog: Catalog, points: Backups) -> None:
    kept, pruned = points.add(), points.add()
    repository = points.repository

    class Overtaken:
        def point_ids(self) -> list[str]:
            return repository.point_ids()

        def load_point(self, point_id: str) -> Point:
            repository.store.delete(f"points/{pruned}")
            return repository.load_point(point_id)

    assert catalog.sync(Overtaken()) == []
    assert [point.id for point in catalog.points()] == [kept]


def test_a_renamed_vm_is_found_by_either_name(catalog: Catalog, points: Backups) -> None:
    old = points.add("web", vm_id="42", engine="e")
    new = points.add("www", START + timedelta(days=1), vm_id="42", engine="e")
    catalog.sync(points.repository)
    assert [(vm.name, vm.points) for vm in catalog.vms()] == [("www", 2)]
    for name in ("web", "www", "42"):
        assert [point.id for point in catalog.points(name)] == [old, new]
        assert {point.vm for point in catalog.points(name)} == {"www"}
        assert catalog.resolve(f"{name}@latest") == new
        assert [vm.name for vm in catalog.select_vms(name)] == ["www"]
    points.repository.store.delete(f"points/{new}")
    catalog.sync(points.repository)
    assert [(vm.name, vm.points) for vm in catalog.vms()] == [("web", 1)]


def test_vms_of_one_name(catalog: Catalog, points: Backups) -> None:
    ids = {vm_id: points.add("web", vm_id=vm_id, engine="e") for vm_id in ("1", "2")}
    catalog.sync(points.repository)
    assert len(catalog.points("web")) == 2
    assert [vm.id for vm in catalog.select_vms("web")] == ["1", "2"]
    with pytest.raises(UsageError, match="2 VMs are called 'web'; name one by its id: 1, 2"):
        catalog.resolve("web@latest")
    assert catalog.resolve("2@latest") == ids["2"]


class TestResolve:
    @pytest.fixture
    def ids(self, catalog: Catalog, points: Backups) -> list[str]:
        times = [START + timedelta(days=day) for day in range(3)]
        ids = [points.add("web", when) for when in times]
        ids.append(points.add("a@b", START))
        ids.append(points.add("Größe ünd\u00a0más", START))
        catalog.sync(points.repository)
        return ids

    def test_ids(self, catalog: Catalog, ids: list[str]) -> None:
        for point_id in ids:
            assert catalog.resolve(point_id) == point_id
            assert catalog.resolve(point_id.lower()) == point_id
            assert catalog.resolve(point_id[:-1].lower()) == point_id

    def test_times(self, catalog: Catalog, ids: list[str]) -> None:
        cases = {
            "web@latest": 2,
            "web@LATEST": 2,
            "web@2026-11-20": 0,
            "web@2026-11-21": 1,
            "web@2026": 2,
            "web@2026-11": 2,
            "web@2100-01-01": 2,
            "web@9999-12-31T23:59:59-14:00": 2,
            "web@2026-11-20T100000Z": 0,
            "web@2026-11-21T10:00:00.4Z": 0,
            "web@2026-11-21T10:00:00.5Z": 1,
            "web@2026-11-21T11:00:00+01:00": 1,
            "a@b@latest": 3,
            "a@b@2026-11-20": 3,
            "Größe ünd\u00a0más@latest": 4,
        }
        for spec, index in cases.items():
            assert catalog.resolve(spec) == ids[index], spec

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            (
                "web@2026-11-19",
                "has no point at or before 2026-11-19; it has 2026-11-20T100000Z, 2026-11-21T",
            ),
            ("web@0001-01-01T00:00+14:00", "has no point at or before"),
            ("wbe@latest", "there is no VM 'wbe' in the repository; there is 'web'"),
            ("zzz@latest", "there is 'Größe ünd.*', 'a@b', 'web'"),
            ("web@soon", "'soon' is not a time; write latest"),
            ("web@", "is not a time"),
            ("@latest", "there is no VM ''"),
            ("a@latest", "there is no VM 'a'"),
            ("web", "'web' is a VM, not a point; write web@latest or web@TIME"),
            ("01J", "is no point; write an id, its first 4 or more"),
            ("UUUU", "is no point"),
            ("%%%%", "is no point"),
            ("", "is no point"),
            ("7ZZZZ", "there is no point '7ZZZZ' in the repository; there is 0"),
            ("\udc80@latest", "there is no VM"),
            ("\0@latest", "there is no VM"),
            ("we%@latest", "there is no VM 'we%'"),
            ("we_@latest", "there is no VM"),
            ("web\n@latest", r"there is no VM 'web\\n'"),
        ],
    )
    def test_refusals(self, catalog: Catalog, ids: list[str], spec: str, message: str) -> None:
        with pytest.raises(UsageError, match=message) as caught:
            catalog.resolve(spec)
        assert "\n" not in str(caught.value)

    def test_ambiguous_prefix_lists_five(self, catalog: Catalog, ids: list[str], points: Backups) -> None:
        points.add()
        catalog.sync(points.repository)
        with pytest.raises(UsageError, match="begins more than one id") as caught:
            catalog.resolve(ids[0][:6])
        assert str(caught.value).count("@2026") == 5
        assert str(caught.value).endswith("…")
        assert f"{ids[0]} (web@2026-11-20T100000Z)" in str(caught.value)

    def test_prefix_of_a_damaged_and_a_good_point_is_ambiguous(
        self, catalog: Catalog, ids: list[str], points: Backups
    ) -> None:
        prefix, last = ids[0][:-1], ids[0][-1]
        points.path(prefix + ("0" if last != "0" else "1")).write_bytes(b"")
        catalog.sync(points.repository)
        with pytest.raises(UsageError, match=r"begins more than one id.*\(damaged\)"):
            catalog.resolve(prefix)

    def test_candidates_for_a_mistyped_id(self, catalog: Catalog, ids: list[str]) -> None:
        wrong = ids[0][:-1] + ("0" if ids[0][-1] != "0" else "1")
        with pytest.raises(UsageError, match=ids[0]):
            catalog.resolve(wrong)


@pytest.mark.parametrize("change", ["version", "table", "column"])
def test_another_schema_is_made_anew(url: URL, points: Backups, change: str) -> None:
    points.add()
    with Catalog.open(url, points.repository.id) as catalog:
        catalog.sync(points.repository)
        before = answers(catalog)
    engine = engine_of(url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE somebody_elses (a INTEGER)"))
        if change == "version":
            connection.execute(text("UPDATE vmfs_schema SET version = '0-old'"))
            connection.execute(text("CREATE TABLE vmfs_forgotten (a INTEGER)"))
        elif change == "table":
            connection.execute(text("DROP TABLE vmfs_schema"))
        else:
            connection.execute(text("DROP TABLE vmfs_schema"))
            connection.execute(text("CREATE TABLE vmfs_schema (number INTEGER)"))
    with Catalog.open(url, points.repository.id) as catalog:
        assert catalog.points() == []
        catalog.sync(points.repository)
        assert answers(catalog) == before
    names = set(inspect(engine).get_table_names())
    engine.dispose()
    # SQLite keeps the index of names in tables of its own.
    names = {name for name in names if not name.startswith(SEARCH_TABLE)}
    assert names == {"somebody_elses", *Base.metadata.tables}
    assert all(name.startswith(TABLE_PREFIX) for name in Base.metadata.tables)


def test_tables_dropped_under_an_open_catalog(catalog: Catalog, points: Backups, url: URL) -> None:
    points.add()
    catalog.sync(points.repository)
    before = answers(catalog)
    engine = engine_of(url)
    with engine.begin() as connection:
        for name in ("vmfs_disk", "vmfs_artifact", "vmfs_volume", "vmfs_note", "vmfs_point"):
            connection.execute(text(f"DROP TABLE {name}"))
    engine.dispose()
    assert answers(catalog) == before
    points.add("db")
    catalog.sync(points.repository)
    assert len(catalog.vms()) == 2


def test_threads_share_one_catalog(catalog: Catalog, points: Backups) -> None:
    failures: list[BaseException] = []
    for number in range(6):
        points.add(f"vm{number}")

    def work(number: int) -> None:
        try:
            for _ in range(5):
                catalog.sync(points.repository)
                assert catalog.vms()
                assert catalog.resolve(f"vm{number}@latest")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def _sync_at_once(url: URL, root: Path, cache: Path, barrier: Barrier) -> None:
    with Repository.open(LocalStore(root), SECRET, cache_root=cache) as repository:
        barrier.wait()
        with Catalog.open(url, repository.id) as catalog:
            catalog.sync(repository)
            assert len(catalog.points()) == 100
            assert catalog._database.engine.url.database == url.database  # not in memory


def test_processes_that_create_and_sync_at_once(url: URL, points: Backups, tmp_path: Path) -> None:
    for number in range(100):
        points.add(f"vm{number % 7}")
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(4)
    arguments = (url, points.root, tmp_path / "cache", barrier)
    processes = [spawn.Process(target=_sync_at_once, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    with Catalog.open(url, points.repository.id) as catalog:
        assert sorted(point.id for point in catalog.points()) == points.repository.point_ids()
        assert len(catalog.vms()) == 7


def test_ten_thousand_points(catalog: Catalog, points: Backups) -> None:
    """Without the loading of so many manifests, which is the repository's part."""
    point = points.repository.load_point(points.add())
    ids = [str(ULID.from_timestamp(1e9 + number)) for number in range(10_000)]

    class Many:
        def point_ids(self) -> list[str]:
            return ids

        def load_point(self, point_id: str) -> Point:
            return replace(point, id=point_id)

    many = Many()
    statements: list[str] = []

    @event.listens_for(catalog._database.engine, "before_cursor_execute")
    def _count(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        statements.append(statement)

    began = time.monotonic()
    assert catalog.sync(many) == []
    synced = time.monotonic()
    assert len(catalog.points("web")) == 10_000
    listed = time.monotonic()
    (vm,) = catalog.vms()
    assert vm.points == 10_000
    catalog.resolve("web@latest")
    asked = time.monotonic()
    catalog.sync(many)
    again = time.monotonic()
    print(
        f"sync {synced - began:.2f} s, list {listed - synced:.2f} s,"
        f" vms and resolve {asked - listed:.2f} s, sync again {again - asked:.2f} s"
    )
    # The machine may be busy, so the statements are counted and not the seconds: none is made for each point.
    assert len(statements) < 40
