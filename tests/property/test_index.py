"""The index against a dict: whatever sessions add, whatever the store loses, whoever shares the cache."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import secrets
import shutil
import tracemalloc
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from blake3 import blake3
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from vmfs.format import blob, index, pack
from vmfs.format.keys import Keys, Kind, derive_keys
from vmfs.repo import names
from vmfs.repo.index import ChunkIndex, Location, make_row, unique_sorted
from vmfs.store import LocalStore

KEYS = derive_keys(bytes(range(32)), bytes(16))
MAX_SEGMENTS = 8
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Where syncing takes no time, for what is repeated often."""

Rows = set[tuple[bytes, Location]]


class Depot:
    """A store with packs and index objects, and what each of them says. An index does not look at the blobs
    themselves, so they are noise."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = LocalStore(root)
        self.random = random.Random(0)  # noqa: S311
        """Examples must come out the same when they are tried again."""
        self.packs: dict[str, Rows] = {}
        self.objects: dict[str, set[str]] = {}
        """The packs of each index object that is whole."""
        self.broken: set[str] = set()

    def put_pack(self, ids: list[bytes]) -> str:
        entries, offset = [], 0
        for blob_id in ids:
            length = blob.HEADER.size + 17 + self.random.randrange(9)
            entries.append(pack.Entry(blob_id, offset, length, Kind.DATA))
            offset += length
        data = self.random.randbytes(offset) + pack.encode_directory(entries, offset, KEYS)
        digest = blake3(data).digest()
        self.store.put(names.pack(digest), [data])
        self.packs[names.pack(digest)] = {(e.id, Location(digest, e.offset, e.length)) for e in entries}
        return names.pack(digest)

    def put_index(self, packs: list[str]) -> tuple[str, bytes]:
        refs = [index.PackRef(bytes.fromhex(name[-64:]), self.store.size(name)) for name in packs]
        rows = unique_sorted(
            make_row(blob_id, number, place.offset, place.length)
            for number, name in enumerate(packs)
            for blob_id, place in self.packs[name]
        )
        data = index.encode(refs, rows, KEYS)
        name = names.index(blake3(data).digest())
        self.store.put(name, [data])
        self.objects[name] = set(packs)
        return name, data

    def damage(self, name: str, at: int) -> None:
        data = bytearray(self.store.get(name))
        data[at % len(data)] ^= 1
        (self.root / name).write_bytes(data)
        self.broken.add(name)

    def expected(self) -> Rows:
        """What an index that is in step with the store has: with a damaged index object, all packs."""
        covered = {p for name, packs in self.objects.items() if name not in self.broken for p in packs}
        return {row for name in (self.packs if self.broken else covered) for row in self.packs[name]}


def check(chunk_index: ChunkIndex, rows: Rows) -> None:
    """Each blob is found at one of its places, and nothing else is there."""
    by_id: dict[bytes, set[Location]] = {}
    for blob_id, place in rows:
        by_id.setdefault(blob_id, set()).add(place)
    for blob_id, places in by_id.items():
        assert chunk_index.find(blob_id) in places
    listed = dict(chunk_index.rows())
    assert listed.keys() == by_id.keys()
    assert all(place in by_id[blob_id] for blob_id, place in listed.items())
    assert len(by_id) <= len(chunk_index) <= len(rows)
    assert chunk_index.find(bytes(32)) is None
    known = {row.pack for _, row in rows}
    assert known <= chunk_index.packs().keys()


class IndexMachine(RuleBasedStateMachine):
    """Two processes' indexes over one cache, and a third on another machine that only writes to the store."""

    ids = st.lists(st.integers(1, 60), min_size=1, max_size=12, unique=True)

    @initialize()
    def start(self) -> None:
        self.folder = TemporaryDirectory(dir=MEMORY)
        Path(self.folder.name, "store").mkdir()
        self.depot = Depot(Path(self.folder.name, "store"))
        self.cache = Path(self.folder.name, "cache", "index")
        self.indexes = [self._new(), self._new()]
        self.seen: list[Rows] = [set(), set()]
        """What each index has to know at least: what was there at its last sync, and what it added since."""

    def teardown(self) -> None:
        self.folder.cleanup()

    def _new(self) -> ChunkIndex:
        return ChunkIndex(self.depot.store, KEYS, self.cache)

    @rule(packs=st.lists(ids, min_size=1, max_size=3), who=st.integers(0, 1))
    def session(self, packs: list[list[int]], who: int) -> None:
        written = [self.depot.put_pack([blake3(bytes([n])).digest() for n in ids]) for ids in packs]
        self.indexes[who].add(*self.depot.put_index(written))
        self.seen[who] |= {row for name in written for row in self.depot.packs[name]}

    @rule(packs=st.lists(ids, min_size=1, max_size=3))
    def session_elsewhere(self, packs: list[list[int]]) -> None:
        self.depot.put_index(
            [self.depot.put_pack([blake3(bytes([n])).digest() for n in ids]) for ids in packs]
        )

    @rule(ids=ids)
    def session_that_died(self, ids: list[int]) -> None:
        """A pack in no index."""
        self.depot.put_pack([blake3(bytes([n])).digest() for n in ids])

    @precondition(lambda self: self.depot.objects)
    @rule(data=st.data(), packs_too=st.booleans())
    def index_is_deleted(self, data: st.DataObject, packs_too: bool) -> None:
        name = data.draw(st.sampled_from(list(self.depot.objects)))
        self.depot.store.delete(name)
        gone = self.depot.objects.pop(name)
        self.depot.broken.discard(name)
        if packs_too:
            for packed in gone - {p for packs in self.depot.objects.values() for p in packs}:
                self.depot.store.delete(packed)
                del self.depot.packs[packed]
        self.seen = [set(), set()]

    @precondition(lambda self: self.depot.objects.keys() - self.depot.broken)
    @rule(data=st.data(), at=st.integers(0, 1000))
    def index_is_damaged(self, data: st.DataObject, at: int) -> None:
        """Noticed when it is taken in: by a cache that has it already, never."""
        name = data.draw(st.sampled_from(sorted(self.depot.objects.keys() - self.depot.broken)))
        self.depot.damage(name, at)
        shutil.rmtree(self.cache, ignore_errors=True)

    @rule(how=st.sampled_from(("all", "state", "segment", "nonsense")))
    def cache_is_lost(self, how: str) -> None:
        if how == "all":
            shutil.rmtree(self.cache, ignore_errors=True)
        elif self.cache.exists() and how == "state":
            (self.cache / "state.json").unlink(missing_ok=True)
        elif self.cache.exists() and how == "segment":
            for path in list(self.cache.glob("*.vmfi"))[:1]:
                path.unlink()
        elif self.cache.exists():
            (self.cache / "state.json").write_text('{"segments": {"../x": 5}}')

    @rule(who=st.integers(0, 1), anew=st.booleans())
    def sync(self, who: int, anew: bool) -> None:
        if anew:
            self.indexes[who] = self._new()
        self.indexes[who].sync()
        self.seen[who] = self.depot.expected()
        check(self.indexes[who], self.seen[who])
        assert self.indexes[who].damaged.keys() == self.depot.broken
        files = {path.name for path in self.cache.glob("*.vmfi")}
        if files:
            assert files == json.loads((self.cache / "state.json").read_text())["segments"].keys()
        assert len(files) <= MAX_SEGMENTS

    @invariant()
    def all_that_was_seen_is_found(self) -> None:
        if hasattr(self, "seen"):
            for chunk_index, rows in zip(self.indexes, self.seen, strict=True):
                for blob_id, _ in rows:
                    assert chunk_index.find(blob_id) is not None


TestIndexMachine = IndexMachine.TestCase
TestIndexMachine.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)


@pytest.fixture
def depot(tmp_path: Path) -> Depot:
    (tmp_path / "store").mkdir()
    return Depot(tmp_path / "store")


def fill(depot: Depot, sessions: int, blobs: int) -> None:
    for _ in range(sessions):
        depot.put_index([depot.put_pack([secrets.token_bytes(32) for _ in range(blobs)])])


def test_many_sessions_make_few_files(depot: Depot, tmp_path: Path) -> None:
    """Added one by one, and taken in all at once, by the reader of another machine."""
    one, other = (ChunkIndex(depot.store, KEYS, tmp_path / name) for name in ("one", "other"))
    for number in range(100):
        packs = [depot.put_pack([secrets.token_bytes(32) for _ in range(1 + number % 7)])]
        one.add(*depot.put_index(packs))
        assert len(list((tmp_path / "one").glob("*.vmfi"))) <= MAX_SEGMENTS
    other.sync()
    assert len(list((tmp_path / "other").glob("*.vmfi"))) <= MAX_SEGMENTS
    for chunk_index in (one, other):
        check(chunk_index, depot.expected())


def test_a_cache_lost_while_in_use_is_made_anew(depot: Depot, tmp_path: Path) -> None:
    fill(depot, 3, 5)
    chunk_index = ChunkIndex(depot.store, KEYS, tmp_path / "cache")
    chunk_index.sync()
    shutil.rmtree(tmp_path / "cache")
    packs = [depot.put_pack([secrets.token_bytes(32)])]
    chunk_index.add(*depot.put_index(packs))
    check(chunk_index, depot.expected())


def test_a_sync_that_finds_nothing_new_reads_nothing(depot: Depot, tmp_path: Path) -> None:
    fill(depot, 20, 3)
    chunk_index = ChunkIndex(depot.store, KEYS, tmp_path / "cache")
    chunk_index.sync()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*.vmfi")}
    ChunkIndex(depot.store, KEYS, tmp_path / "cache").sync()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*.vmfi")} == before


def _work(root: Path, cache: Path, keys: Keys, worker: int, rounds: int) -> None:
    """A process that adds and syncs; what it added it always finds again."""
    depot = Depot(root)
    chunk_index = ChunkIndex(depot.store, keys, cache)
    own: list[bytes] = []
    for number in range(rounds):
        ids = [blake3(bytes([worker, number, item])).digest() for item in range(5)]
        chunk_index.add(*depot.put_index([depot.put_pack(ids)]))
        own += ids
        if number % 3 == worker % 3:
            chunk_index.sync()
        assert all(chunk_index.find(blob_id) for blob_id in own)


def test_several_processes_share_one_cache(depot: Depot, tmp_path: Path) -> None:
    """They add and sync at once; all that they wrote is found in the end."""
    workers, rounds = 3, 20
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_work, args=(depot.root, tmp_path / "cache", KEYS, worker, rounds))
        for worker in range(workers)
    ]
    for process in processes:
        process.start()
    reader = ChunkIndex(depot.store, KEYS, tmp_path / "cache")
    while any(process.is_alive() for process in processes):
        reader.sync()
        for process in processes:
            process.join(0.01)
    assert [process.exitcode for process in processes] == [0] * workers
    reader.sync()
    ids = [
        blake3(bytes([worker, number, item])).digest()
        for worker in range(workers)
        for number in range(rounds)
        for item in range(5)
    ]
    assert all(reader.find(blob_id) for blob_id in ids)
    assert len(reader) == len(ids)
    assert len(list((tmp_path / "cache").glob("*.vmfi"))) <= MAX_SEGMENTS


def test_a_merge_needs_little_memory(depot: Depot, tmp_path: Path) -> None:
    count = 60_000
    chunk_index = ChunkIndex(depot.store, KEYS, tmp_path / "cache")
    for worker in range(2):
        rows = sorted(
            make_row(blake3(bytes([worker]) + n.to_bytes(4, "big")).digest(), 0, n, 1) for n in range(count)
        )
        data = index.encode([index.PackRef(bytes([worker]) * 32, 1 << 20)], rows, KEYS)
        name = names.index(blake3(data).digest())
        depot.store.put(name, [data])
        if worker:
            tracemalloc.start()
        chunk_index.add(name, data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(list((tmp_path / "cache").glob("*.vmfi"))) == 1
    # Some buffers, and not two files of 2.6 MB, nor their rows as objects.
    assert peak < 4 << 20
    assert len(chunk_index) == 2 * count
    for worker in range(2):
        found = chunk_index.find(blake3(bytes([worker]) + (777).to_bytes(4, "big")).digest())
        assert found == Location(bytes([worker]) * 32, 777, 1)
