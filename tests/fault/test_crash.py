"""An ingest, and the making of a repository, with every operation on the store in turn failing, torn, or the
last before a kill or a power cut: there is the whole point or none, and nothing durable is stored again."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from fault_helpers import (
    CHUNK,
    Contents,
    CrashPosix,
    Fault,
    Killed,
    Medium,
    back_up,
    check_points,
    check_sound,
    copy_tree,
    create_at,
    fails_clearly,
    noise_chunk,
    open_at,
    stored_twice,
    temporary_files,
    text_chunk,
    write_disk,
)

from vmfs.errors import VmfsError
from vmfs.format import pack

pytest_plugins = "fault_fixtures"
pytestmark = pytest.mark.usefixtures("killed_leases")

SHARDS = range(4)
"""Each takes every fourth operation, so that they can run at once."""

AFTER_KILL = ("kill", "tear-kill")
AFTER_ERROR = ("EIO", "ENOSPC", "tear")
LASTING = ("EIO from there on", "ENOSPC from there on")


@pytest.fixture(autouse=True)
def _small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "TARGET_SIZE", 3 * CHUNK)


@dataclass(frozen=True)
class Scene:
    """A repository in `top`/repository with two points and the `cache` of its last user; `disks` is what the
    next ingest backs up."""

    top: Path
    cache: Path
    contents: Contents
    disks: dict[str, Path]
    next: dict[str, bytes]


@pytest.fixture(scope="module")
def scene(module_place: Path) -> Scene:
    return make_scene(module_place / "old", points=2)


@pytest.fixture(scope="module")
def new_scene(module_place: Path) -> Scene:
    """Nothing was ever backed up, and no directory made for it."""
    return make_scene(module_place / "new", points=0)


def make_scene(place: Path, points: int) -> Scene:
    place.mkdir()
    top, cache = place / "top", place / "cache"
    top.mkdir()
    chunks = [noise_chunk(1), bytes(CHUNK), text_chunk(2), text_chunk(3), noise_chunk(4)]
    contents: dict[str, dict[str, bytes]] = {}
    with create_at(top / "repository", cache) as repository:
        for number in range(points):
            chunks[3] = text_chunk(10 + number)
            content = b"".join(chunks)
            point = back_up(repository, "vm", {"root": write_disk(place / "root.raw", content)})
            contents[point.id] = {"root": content}
    chunks[1:3] = [noise_chunk(20 + number) for number in range(6)]
    following = {"root": b"".join(chunks), "data": text_chunk(30) + bytes(CHUNK) + noise_chunk(4)}
    disks = {alias: write_disk(place / f"{alias}.raw", content) for alias, content in following.items()}
    return Scene(top, cache, contents, disks, following)


@dataclass
class Stage:
    """A copy of a scene, on a medium of its own."""

    scene: Scene
    place: Path
    medium: Medium

    @property
    def root(self) -> Path:
        return self.medium.top / "repository"

    @property
    def cache(self) -> Path:
        return self.place / "cache"

    def ingest(self, posix: CrashPosix) -> str:
        with open_at(self.root, self.cache, posix=posix) as repository:
            return back_up(repository, "vm", self.scene.disks, artifacts={"vm.ovf": b"<ovf/>" * 50}).id

    def cut_power(self, name: str, chance: random.Random | None = None) -> Stage:
        """The stage as it is found after a power cut, the cache as it was."""
        place = self.place / name
        place.mkdir()
        shutil.copytree(self.cache, place / "cache")
        return Stage(self.scene, place, Medium(self.medium.cut_power(place / "top", chance)))

    def check(self, *, may_have_more: bool) -> list[str]:
        """Every earlier point is there and byte-equal, any further one is the whole next one; with the cache
        that was left behind, and with none. The ids of all points."""
        found: list[list[str]] = []
        for cache in (self.place / "fresh", self.cache):
            with open_at(self.root, cache) as repository:
                ids = repository.point_ids()
                more = set(ids) - set(self.scene.contents)
                assert len(more) <= may_have_more
                check_points(repository, self.scene.contents | dict.fromkeys(more, self.scene.next))
                check_sound(repository)
            found.append(ids)
        shutil.rmtree(self.place / "fresh")
        assert found[0] == found[1]
        return found[0]

    def recover(self, ids: list[str], *, fresh_cache: bool, litter: bool = False) -> None:
        """The next ingest makes one more point, stores nothing that is there, leaves nothing behind (but the
        `litter` of a file that could not be unlinked); and then survives a power cut."""
        if fresh_cache:
            shutil.rmtree(self.cache)
        point_id = self.ingest(CrashPosix(self.medium))
        contents = {point_id: self.scene.next} | {
            known: self.scene.contents.get(known, self.scene.next) for known in ids
        }
        for stage in (self, self.cut_power("recovered")):
            with open_at(stage.root, stage.cache) as repository:
                check_points(repository, contents)
                check_sound(repository)
                assert not stored_twice(repository)
            assert not temporary_files(stage.root) or litter


@pytest.fixture
def stages(scene: Scene, place: Path) -> Iterator[Stage]:
    return make_stages(scene, place)


@pytest.fixture
def new_stages(new_scene: Scene, place: Path) -> Iterator[Stage]:
    return make_stages(new_scene, place)


def make_stages(scene: Scene, place: Path) -> Iterator[Stage]:
    """As many stages as are asked for, one after the other; each is gone when the next begins."""

    def make() -> Iterator[Stage]:
        while True:
            inner = place / "stage"
            inner.mkdir()
            shutil.copytree(scene.cache, inner / "cache")
            yield Stage(scene, inner, Medium(copy_tree(scene.top, inner / "top")))
            shutil.rmtree(inner)

    return make()


def operations(kind: str, shard: int, only: str | None = None) -> Iterator[Fault]:
    """A fault at every operation of this shard, until one is planned that the ingest has no operation for."""
    number = shard
    while True:
        fault = Fault(kind, number, only)
        yield fault
        if not fault.hit:
            return
        number += len(SHARDS)


@pytest.mark.parametrize("shard", SHARDS)
@pytest.mark.parametrize("kind", [*AFTER_ERROR, *LASTING])
def test_an_operation_fails(stages: Iterator[Stage], kind: str, shard: int) -> None:
    hits = 0
    for fault in operations(kind.split()[0], shard, "write" if kind == "tear" else None):
        fault.lasting = kind in LASTING
        stage = next(stages)
        posix = CrashPosix(stage.medium, fault)
        error = fails_clearly(partial(stage.ingest, posix))
        assert fault.hit or error is None
        hits += fault.hit
        # A disk that takes nothing any more does not take the point back either.
        dead = fault.lasting and fault.kind == "EIO"
        ids = stage.check(may_have_more=error is None or dead)
        # An operation that fails after the commit, or whose failure harms nothing, is no failure of all.
        assert dead or len(ids) == len(stage.scene.contents) + (error is None)
        litter = dead or fault.operation == "unlink"
        stage.recover(ids, fresh_cache=bool(fault.at % 2), litter=litter)
    assert hits


@pytest.mark.parametrize("shard", SHARDS)
def test_a_kill_after_a_failure(stages: Iterator[Stage], shard: int) -> None:
    """While the session puts in order what is left."""
    hits = 0
    for fault in operations("EIO", shard):
        fault.killed_after = 1 + fault.at * 7 % 11
        stage = next(stages)
        with suppress(Killed, VmfsError):
            stage.ingest(CrashPosix(stage.medium, fault))
        hits += fault.hit
        after = stage.cut_power("after") if fault.at % 2 else stage
        ids = after.check(may_have_more=True)
        after.recover(ids, fresh_cache=bool(fault.at % 3), litter=True)
    assert hits


@pytest.mark.parametrize("shard", SHARDS)
@pytest.mark.parametrize("kind", AFTER_KILL)
def test_a_kill(stages: Iterator[Stage], kind: str, shard: int) -> None:
    hits = 0
    for fault in operations(kind, shard, "write" if kind == "tear-kill" else None):
        stage = next(stages)
        try:
            stage.ingest(CrashPosix(stage.medium, fault))
        except Killed:
            assert fault.hit
        else:
            assert not fault.hit
        hits += fault.hit
        ids = stage.check(may_have_more=True)
        stage.recover(ids, fresh_cache=bool(fault.at % 2))
    assert hits


@pytest.mark.parametrize("shard", SHARDS)
@pytest.mark.parametrize("survivors", ["none", "some", "others"])
def test_a_power_cut(stages: Iterator[Stage], survivors: str, shard: int) -> None:
    hits = 0
    for fault in operations("kill", shard):
        stage = next(stages)
        committed = None
        try:
            committed = stage.ingest(CrashPosix(stage.medium, fault))
        except Killed:
            assert fault.hit
        hits += fault.hit
        chance = None if survivors == "none" else random.Random(f"{survivors} {fault.at}")  # noqa: S311
        after = stage.cut_power("after", chance)
        ids = after.check(may_have_more=True)
        assert committed is None or committed in ids, "a point that was reported as made is gone"
        after.recover(ids, fresh_cache=bool(fault.at % 2))
    assert hits > 1


@pytest.mark.parametrize("shard", SHARDS)
@pytest.mark.parametrize("which", ["stages", "new_stages"])
def test_a_power_cut_after_a_kill(request: pytest.FixtureRequest, which: str, shard: int) -> None:
    """What a killed session left unsynced is no ground for the next one to build on."""
    stages: Iterator[Stage] = request.getfixturevalue(which)
    hits = 0
    for fault in operations("kill", shard):
        stage = next(stages)
        with suppress(Killed):
            stage.ingest(CrashPosix(stage.medium, fault))
        hits += fault.hit
        made = set(stage.scene.contents)
        with suppress(Killed):
            # Every other one comes to its end.
            again = Fault("kill", fault.at // 2 + 12 if fault.at // len(SHARDS) % 2 else 1 << 20)
            made.add(stage.ingest(CrashPosix(stage.medium, again)))
        after = stage.cut_power("after")
        with open_at(after.root, after.cache) as repository:
            ids = repository.point_ids()
            check_points(
                repository, {known: stage.scene.contents.get(known, stage.scene.next) for known in ids}
            )
            check_sound(repository)
            assert made <= set(ids)
    assert hits


def create(top: Path, place: Path, posix: CrashPosix) -> None:
    create_at(top / "repository", place / "cache", posix=posix).close()


def whole_or_none(root: Path, cache: Path, place: Path) -> bool:
    """Whether there is a repository, and then it works; otherwise it is said clearly that there is none."""
    error = fails_clearly(lambda: open_at(root, cache).close())
    if error:
        assert str(root) in str(error)
        assert "vmfs init" in str(error)
        return False
    with open_at(root, cache) as repository:
        content = text_chunk(1)
        point = back_up(repository, "vm", {"root": write_disk(place / "disk.raw", content)})
        check_points(repository, {point.id: {"root": content}})
        check_sound(repository)
    return True


@pytest.mark.parametrize("made", [False, True], ids=["absent", "empty"])
@pytest.mark.parametrize("kind", [*AFTER_ERROR, *AFTER_KILL])
def test_init(place: Path, kind: str, made: bool) -> None:
    hits = 0
    only = "write" if kind.startswith("tear") else None
    fault = Fault(kind, -1, only)
    while hits == 0 or fault.hit:
        fault = Fault(kind, fault.at + 1, only)
        inner = place / str(fault.at)
        top = inner / "top"
        (top / "repository" if made else top).mkdir(parents=True)
        medium = Medium(top)
        done = False
        with suppress(Killed):
            posix = CrashPosix(medium, fault)
            done = not fails_clearly(partial(create, top, inner, posix))
        hits += fault.hit
        found = whole_or_none(top / "repository", inner / "cache", place)
        if done or kind in AFTER_ERROR:
            assert found is done
        if kind == "kill":
            for number in range(4):
                chance = random.Random(number) if number else None  # noqa: S311
                after = medium.cut_power(inner / f"after-{number}", chance)
                assert whole_or_none(after / "repository", inner / "cache", place) or not done
    assert hits > 5 or only
