"""The files in the catalog, through real notes and on both databases: whatever the lists of the points are, a
search finds what a look through all of them finds, and what they have in common is there once."""

from __future__ import annotations

import random
import secrets
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path

import pytest
from catalog_helpers import START, Backups, backups_in
from postgres_helpers import make_database, postgres_server
from sqlalchemy import URL, create_engine, inspect, text

from vmfs.catalog import Catalog, sqlite_url
from vmfs.catalog.filesearch import FileQuery
from vmfs.catalog.globs import compile_glob
from vmfs.errors import UsageError
from vmfs.format import filelist
from vmfs.format.filelist import Entry
from vmfs.format.keys import Kind
from vmfs.repo.filelists import FileLists, Mount, VolumeList
from vmfs.repo.notes import make_note

Tree = Mapping[tuple[bytes, bytes], int]
"""(directory, name) -> size; the size stands for a version."""


@pytest.fixture(scope="module")
def postgres() -> Iterator[Path]:
    with postgres_server() as directory:
        yield directory


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> URL:
    if request.param == "sqlite":
        return sqlite_url(tmp_path / "catalog.sqlite")
    return make_database(request.getfixturevalue("postgres"), secrets.token_hex(8))


@pytest.fixture
def points(tmp_path: Path) -> Iterator[Backups]:
    with backups_in(tmp_path) as backups:
        yield backups


@pytest.fixture
def catalog(url: URL, points: Backups) -> Iterator[Catalog]:
    with Catalog.open(url, points.repository.id) as catalog:
        yield catalog


def add_list(backups: Backups, point: str, tree: Tree, *, key: str = "0/p1", mount: str = "/") -> str:
    entries = [
        Entry(directory, name, 0o100644, 0, 0, size, size * 10**9, 0)
        for (directory, name), size in sorted(tree.items())
    ]
    pieces = tuple(
        backups.session.store_blob(Kind.ARTIFACT, filelist.encode(run)).id for run in filelist.cut(entries)
    )
    volume = VolumeList(
        key=key,
        name=f"vda-{key[2:]}",
        kind="partition",
        type="ext4",
        mounts=(Mount(mount, ""),),
        pieces=pieces,
        entries=len(entries),
        listed=True,
        walked=point,
    )
    facts, blobs = FileLists(volumes=(volume,)).to_facts()
    return backups.session.commit_note(point, make_note(backups.repository, "files", facts, blobs))


def found(catalog: Catalog, query: FileQuery | None = None) -> dict[tuple[str, str, int], set[str]]:
    """(VM, path, size) -> points, each once."""
    answer: dict[tuple[str, str, int], set[str]] = {}
    for row in catalog.find_files(query or FileQuery()):
        key = (row.vm, row.path, row.size)
        assert key not in answer
        assert list(row.points) == sorted(row.points, key=lambda point: (point.time, point.id))
        answer[key] = {point.id for point in row.points}
    return answer


def truth(lists: Mapping[str, tuple[str, Tree]]) -> dict[tuple[str, str, int], set[str]]:
    """The same from (VM, tree) by point."""
    answer: dict[tuple[str, str, int], set[str]] = {}
    for point, (vm, tree) in lists.items():
        for (directory, name), size in tree.items():
            path = filelist.to_text(b"/" + directory + b"/" + name if directory else b"/" + name)
            answer.setdefault((vm, path, size), set()).add(point)
    return answer


@pytest.mark.parametrize("seed", range(3))
def test_any_course_of_events(catalog: Catalog, points: Backups, seed: int, tmp_path: Path) -> None:
    """Files come, change, go and come back; points are indexed in any order, again, or are removed."""
    choose = random.Random(seed)  # noqa: S311
    names = [b"%c%d\xff" % (choose.choice(b"abc_%"), number) for number in range(25)]
    directories = [b"", b"etc", b"etc/x", b"h\xc3\xb6me"]
    trees: dict[str, dict[tuple[bytes, bytes], int]] = {"web": {}, "db": {}}
    waiting: list[tuple[str, str, Tree]] = []
    lists: dict[str, tuple[str, Tree]] = {}
    notes: dict[str, list[tuple[str, Tree]]] = {}
    for step in range(24):
        vm = choose.choice(["web", "web", "db"])
        for _ in range(choose.choice([0, 1, 6])):
            place = (choose.choice(directories), choose.choice(names))
            if choose.random() < 0.3:
                trees[vm].pop(place, None)
            else:
                trees[vm][place] = choose.randrange(4)
        waiting.append((points.add(vm, START + timedelta(hours=step)), vm, dict(trees[vm])))
        choose.shuffle(waiting)
        while len(waiting) > choose.randrange(4):
            point, vm, tree = waiting.pop()
            notes[point] = [(add_list(points, point, tree), tree)]
            lists[point] = (vm, tree)
        if lists and choose.random() < 0.4:
            gone = choose.choice(sorted(lists))
            vm, tree = lists.pop(gone)
            if choose.random() < 0.3:
                points.path(gone).unlink()
            elif choose.random() < 0.5:
                (points.root / "notes" / gone / notes[gone].pop()[0]).unlink()
                if notes[gone]:
                    # The one before it counts again.
                    lists[gone] = (vm, notes[gone][-1][1])
            else:
                tree = {**tree, (b"", b"again"): step}
                notes[gone].append((add_list(points, gone, tree), tree))
                lists[gone] = (vm, tree)
        if choose.random() < 0.5:
            catalog.sync(points.repository)
            assert catalog.sync_files(points.repository) == []
            assert found(catalog) == truth(lists)
    catalog.sync(points.repository)
    catalog.sync_files(points.repository)
    expected = truth(lists)
    assert found(catalog) == expected
    every = set(points.repository.point_ids())
    assert catalog.unindexed() == every - lists.keys()
    for pattern in ("a*", "*1*", "[ab]?*", "?2*", "*", "%*", "_*"):
        glob = compile_glob(pattern)
        wanted = {key: of for key, of in expected.items() if glob.matches(key[1].rpartition("/")[2])}
        assert found(catalog, FileQuery(name=glob)) == wanted
    for pattern in ("/etc/*", "/etc/**", "**/x/*", "/h?me/a*", "/*"):
        glob = compile_glob(pattern)
        wanted = {key: of for key, of in expected.items() if glob.matches(key[1])}
        assert found(catalog, FileQuery(path=glob)) == wanted
    some = choose.sample(sorted(lists), min(3, len(lists)))
    wanted = {key: of & set(some) for key, of in expected.items() if of & set(some)}
    assert found(catalog, FileQuery(points=some)) == wanted
    wanted = {key: of for key, of in expected.items() if key[2] == 2}
    assert found(catalog, FileQuery(smallest=2, largest=2)) == wanted
    assert found(catalog, FileQuery(newer=2 * 10**9, older=2 * 10**9 + 1)) == wanted
    catalog.clear()
    assert found(catalog) == {}
    catalog.sync(points.repository)
    catalog.sync_files(points.repository)
    assert found(catalog) == expected
    with Catalog.open(tmp_path / "other.sqlite", points.repository.id) as other:
        other.sync(points.repository)
        other.sync_files(points.repository)
        assert found(other) == expected


def test_what_points_have_in_common_is_there_once(catalog: Catalog, points: Backups) -> None:
    tree = {(b"d%02d" % (number % 50), b"f%04d" % number): 1 for number in range(2000)}
    for number in range(20):
        tree[b"d00", b"f0000"] = number
        if number % 2:
            tree[b"d01", b"new%d" % number] = number
        add_list(points, points.add("web", START + timedelta(hours=number)), tree)
    catalog.sync(points.repository)
    catalog.sync_files(points.repository)
    # 2000 files, of one of which there are 20 versions, and 10 that came.
    assert catalog.file_versions() == 2000 + 19 + 10
    (row,) = catalog.find_files(FileQuery(name=compile_glob("f1234")))
    assert len(row.points) == 20


def test_a_list_that_is_taken_over_adds_nothing(catalog: Catalog, points: Backups) -> None:
    tree = {(b"etc", b"fstab"): 1}
    for number in range(5):
        add_list(points, points.add("web", START + timedelta(hours=number)), tree)
    catalog.sync(points.repository)
    catalog.sync_files(points.repository)
    assert catalog.file_versions() == 1
    assert len(catalog.find_files(FileQuery())[0].points) == 5


def test_the_mount_of_the_guest_is_part_of_a_path(catalog: Catalog, points: Backups) -> None:
    point = points.add()
    add_list(points, point, {(b"ada", b"x"): 1}, key="0/p2", mount="/home/u")
    catalog.sync(points.repository)
    catalog.sync_files(points.repository)
    for pattern in (
        "/home/u/ada/x",
        "/home/**/x",
        "/home/u/**",
        "/ada/x",
        "/h*/u/ada/?",
        "**/ada/x",
        "/home/u/ada/*",
    ):
        (row,) = catalog.find_files(FileQuery(path=compile_glob(pattern)))
        assert (row.path, row.guest_path) == ("/ada/x", "/home/u/ada/x")
    for pattern in ("/home/ada/x", "/u/ada/x", "/home/*", "/x"):
        assert catalog.find_files(FileQuery(path=compile_glob(pattern))) == []


def test_names_are_found_by_an_index(catalog: Catalog, points: Backups, url: URL) -> None:
    engine = create_engine(url.set(drivername="postgresql+psycopg") if url.drivername != "sqlite" else url)
    with engine.connect() as connection:
        if url.drivername == "sqlite":
            assert inspect(connection).has_table("vmfs_name_search")
        else:
            assert connection.scalar(
                text("SELECT indexdef FROM pg_indexes WHERE indexname = 'vmfs_name_trigrams'")
            )
    engine.dispose()


def test_a_database_without_the_index_answers_the_same(points: Backups, tmp_path: Path) -> None:
    add_list(points, points.add(), {(b"etc", b"fstab"): 1, (b"etc", b"passwd"): 1})
    url = sqlite_url(tmp_path / "plain.sqlite")
    with Catalog.open(url, points.repository.id) as catalog:
        engine = create_engine(url)
        with engine.begin() as connection:
            connection.execute(text("DROP TABLE vmfs_name_search"))
        engine.dispose()
        catalog.sync(points.repository)
        catalog.sync_files(points.repository)
        assert [row.path for row in catalog.find_files(FileQuery(name=compile_glob("*stab")))] == [
            "/etc/fstab"
        ]
        catalog.clear()


def test_a_vm_that_is_not_there(catalog: Catalog, points: Backups) -> None:
    points.add()
    catalog.sync(points.repository)
    with pytest.raises(UsageError, match="no VM 'wbe'"):
        catalog.find_files(FileQuery(), vm="wbe")


def test_another_repository_in_the_same_database(
    catalog: Catalog, points: Backups, url: URL, tmp_path: Path
) -> None:
    add_list(points, points.add(), {(b"etc", b"fstab"): 1})
    (tmp_path / "second").mkdir()
    with backups_in(tmp_path / "second") as others, Catalog.open(url, others.repository.id) as theirs:
        add_list(others, others.add("db"), {(b"etc", b"fstab"): 2, (b"", b"theirs"): 1})
        for one, of in ((catalog, points), (theirs, others)):
            one.sync(of.repository)
            one.sync_files(of.repository)
        assert [row.size for row in catalog.find_files(FileQuery(name=compile_glob("fstab")))] == [1]
        assert [row.size for row in theirs.find_files(FileQuery(name=compile_glob("fstab")))] == [2]
        catalog.clear()
        assert catalog.find_files(FileQuery()) == []
        assert len(theirs.find_files(FileQuery(name=compile_glob("*e*")))) == 1
