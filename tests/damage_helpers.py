"""A small repository whose objects are damaged one by one, and judges of what is made of that."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from conftest import SECRET
from fault_helpers import (
    CHUNK,
    Contents,
    back_up,
    check_points,
    check_sound,
    create_at,
    fails_clearly,
    is_clear,
    noise_chunk,
    open_at,
    text_chunk,
    unreadable_chunks,
    write_disk,
)

from vmfs.errors import IntegrityError
from vmfs.format import blob, config
from vmfs.format.config import Config
from vmfs.repo import names
from vmfs.repo.keyring import Unlocked, unlock
from vmfs.repo.repository import Repository, read_config
from vmfs.repo.secret import KeyFile
from vmfs.repo.verify import Report, verify
from vmfs.store import LocalStore

KEY_FILE = KeyFile(bytes(range(32)))
RAW_SAMPLES = 24
"""Bytes tried of a chunk that does not compress."""

Reads = dict[tuple[str, str], list[int]]
"""By point and disk alias, the chunks that cannot be read."""


@dataclass(frozen=True)
class Scene:
    """A repository with `contents` and `artifacts` (by point id)."""

    root: Path
    cache: Path
    contents: Contents
    artifacts: dict[str, dict[str, bytes]]
    settings: Config
    unlocked: Unlocked
    interesting: dict[str, list[int]] = field(default_factory=dict)
    """Offsets to try, by object name; all of the object if it is not named."""


def make_scene(parent: Path) -> Scene:
    """Two VMs, four points that share chunks, an artifact, two key slots, a lease that was left behind."""
    place = parent / "small"
    place.mkdir()
    root, cache = place / "repository", place / "cache"
    contents: dict[str, dict[str, bytes]] = {}
    artifacts: dict[str, dict[str, bytes]] = {}
    first = [text_chunk(1), bytes(CHUNK), text_chunk(2), text_chunk(3)]
    second = [text_chunk(1), text_chunk(4), text_chunk(2), text_chunk(3) + b"tail" * 128]
    other = [text_chunk(2), noise_chunk(5), bytes(CHUNK), text_chunk(6)]
    far = [b"".join(first), bytes(255 * CHUNK), text_chunk(3), text_chunk(7)]
    with create_at(root, cache) as repository:
        for vm, disks in (
            ("one", {"root": first}),
            ("one", {"root": second}),
            ("two", {"root": other, "data": far}),
            ("two", {"root": first, "data": far}),
        ):
            whole = {alias: b"".join(chunks) for alias, chunks in disks.items()}
            paths = {alias: write_disk(place / f"{alias}.raw", content) for alias, content in whole.items()}
            kept = {"vm.ovf": b"<ovf/>", "empty": b""} if len(contents) == 2 else {}
            point = back_up(repository, vm, paths, artifacts=kept)
            contents[point.id], artifacts[point.id] = whole, kept
        repository.add_key(KEY_FILE, label="spare")
        repository.lease("writer").abandon()
        check_points(repository, contents)
        check_sound(repository)
        raw = {
            location.pack: (location.offset, location.length)
            for _, location in repository.index.rows()
            if location.length > CHUNK
        }
    interesting = {}
    for digest, (offset, length) in raw.items():
        name = names.pack(digest)
        size = (root / name).stat().st_size
        inside = random.Random(0).sample(range(offset + blob.HEADER.size, offset + length), RAW_SAMPLES)  # noqa: S311
        interesting[name] = [
            *range(offset + blob.HEADER.size),
            *sorted(inside),
            *range(offset + length, size),
        ]
    return Scene(root, cache, contents, artifacts, *unlocked(root), interesting)


def unlocked(root: Path) -> tuple[Config, Unlocked]:
    store = LocalStore(root)
    settings = config.decode(read_config(store))
    return settings, unlock(store, settings.repository_id, SECRET)


def all_objects(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


@dataclass
class Seen:
    """What a reader of everything meets."""

    reads: Reads = field(default_factory=dict)
    points: set[str] = field(default_factory=set)
    artifacts: set[tuple[str, str]] = field(default_factory=set)


def read_everything(repository: Repository, scene: Scene) -> Seen:
    """Every chunk of every point and every artifact, each right or an IntegrityError."""
    seen = Seen()
    for point_id, disks in scene.contents.items():
        if point_id not in repository.point_ids():
            continue
        try:
            manifest = repository.load_point(point_id).manifest
        except IntegrityError:
            seen.points.add(point_id)
            continue
        for disk in manifest.disks:
            if bad := unreadable_chunks(repository, disk, disks[disk.alias]):
                seen.reads[point_id, disk.alias] = bad
        for artifact in manifest.artifacts:
            try:
                right = repository.read_artifact(artifact) == scene.artifacts[point_id][artifact.name]
            except IntegrityError as error:
                right = is_clear(error)
                seen.artifacts.add((point_id, artifact.name))
            assert right
    return seen


def told(report: Report, scene: Scene) -> Seen:
    """What verify says a reader would meet."""
    seen = Seen()
    for hit in report.hits:
        if hit.artifact:
            seen.artifacts.add((hit.point, hit.artifact))
        elif not hit.disk:
            seen.points.add(hit.point)
        else:
            size = len(scene.contents[hit.point][hit.disk])
            end = 0
            chunks: list[int] = []
            for item in hit.ranges:
                assert end < item.start or not chunks
                end = item.start + item.length
                assert item.start % CHUNK == 0
                assert end % CHUNK == 0 or end == size
                chunks += range(item.start // CHUNK, -(-end // CHUNK))
            seen.reads[hit.point, hit.disk] = chunks
    return seen


def judge(open_anew: Callable[[], Repository], scene: Scene, *damaged: str, structure: bool = True) -> Seen:
    """Verify and a reader agree, and the objects found are these."""
    with open_anew() as repository:
        seen = read_everything(repository, scene)
    with open_anew() as repository:
        report = verify(repository, data=1.0)
    assert {finding.object for finding in report.findings} == set(damaged), report.findings
    assert all(len(finding.problem.splitlines()) == 1 for finding in report.findings)
    assert told(report, scene) == seen
    if structure:
        # Without reading all data, less may be found, but nothing else.
        with open_anew() as repository:
            less = verify(repository)
        assert {finding.object for finding in less.findings} <= set(damaged)
        assert {hit.point for hit in less.hits} <= {hit.point for hit in report.hits}
    return seen


def judge_unopenable(root: Path, cache: Path, name: str) -> None:
    error = fails_clearly(lambda: open_at(root, cache).close())
    assert isinstance(error, IntegrityError)
    assert name in str(error)


@dataclass
class Damage:
    """A copy of the scene in which one object after the other is changed and restored."""

    scene: Scene
    root: Path
    place: Path

    def open_with(self, cache: Path) -> Callable[[], Repository]:
        """Opens the damaged repository, every time anew, without scrypt."""

        def open_anew() -> Repository:
            repository = Repository(LocalStore(self.root), self.scene.settings, self.scene.unlocked, cache)
            repository.refresh()
            return repository

        return open_anew

    def __call__(self, name: str, content: bytes | None, *, structure: bool = True) -> None:
        """Put `content` in place of the object, None for nothing, and check what everybody makes of it. Every
        other time with a cache that knew the repository before."""
        path = self.root / name
        whole = path.read_bytes()
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)
        fresh = self.place / "fresh"
        cache = fresh if len(content or b"") % 2 or name.startswith(names.INDEX) else self.place / "cache"
        try:
            if name in (names.CONFIG, names.key_slot(self.scene.unlocked.slot_id)):
                judge_unopenable(self.root, cache, name)
            else:
                judge(self.open_with(cache), self.scene, name, structure=structure)
        finally:
            path.write_bytes(whole)
            shutil.rmtree(fresh, ignore_errors=True)
