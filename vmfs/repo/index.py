"""Where every blob lies: the index objects of the store, merged into a few local files.

Nothing of it is held in memory but fan-out and pack tables; a look-up is one small read a file. The local
files may be deleted at any time, and a damaged one is noticed when a look-up goes wrong. An index object that
is damaged or gone is made up for by the directories of the packs that it covered.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from blake3 import blake3

from vmfs.errors import IntegrityError, ObjectMissingError, StoreError
from vmfs.format import index, pack
from vmfs.format.keys import Keys
from vmfs.repo import names
from vmfs.repo.segment import (
    Location,
    Segment,
    is_sound,
    make_row,
    merge,
    unique_sorted,
    write,
    write_durably,
)
from vmfs.store import Store

log = logging.getLogger(__name__)

_STATE = "state.json"
_MERGE_FAN_IN = 32
_ROWS = 1 << 18
"""Entries of directories after which an index is made of them: bounds the memory."""
_GROWTH = 4
"""Each file is at least so many times larger than the next: a few files, and few rewrites of each row."""


class ChunkIndex:
    """All of a repository's index, by way of the cache in `directory`."""

    def __init__(self, store: Store, keys: Keys, directory: Path) -> None:
        self._store = store
        self._keys = keys
        self._directory = directory
        self._segments: tuple[Segment, ...] = ()
        self._files: tuple[str, ...] = ()
        self._covered: set[str] = set()
        self._healed = False
        self.damaged: dict[str, str] = {}
        """Index objects that could not be used, with the reason."""

    def find(self, blob_id: bytes) -> Location | None:
        try:
            return self._find(blob_id)
        except IntegrityError:
            self.heal()
            return self._find(blob_id)

    def _find(self, blob_id: bytes) -> Location | None:
        for segment in self._segments:
            if location := segment.find(blob_id):
                return location
        return None

    def __len__(self) -> int:
        """Entries; a blob that two sessions stored at once may count twice."""
        return sum(segment.header.entries for segment in self._segments)

    def packs(self) -> dict[bytes, int]:
        """Size in bytes of every pack that is indexed, by name."""
        return {ref.name: ref.size for segment in self._segments for ref in segment.packs}

    def rows(self) -> Iterator[tuple[bytes, Location]]:
        """Every entry, in no order."""
        for segment in self._segments:
            for row in segment.rows():
                blob_id, number, offset, length = index.ENTRY.unpack(row)
                yield blob_id, Location(segment.packs[number].name, offset, length)

    def sync(self) -> None:
        """Take in what the store has and the cache has not; forget what the store no longer has."""
        with self._locked():
            try:
                self._sync()
            except IntegrityError:
                self._sync(check=True)

    def heal(self) -> None:
        """After a look-up that found nothing, or not what is there: do without local files that are damaged,
        take in what is new, and learn from the packs' directories what no index object tells. Costs little
        when nothing changed since the last time."""
        if self._healed:
            return
        with self._locked():
            if not self._healed:
                self._sync(check=True)
                self._healed = True

    def _sync(self, *, check: bool = False) -> None:
        stored = {name for name, _ in self._store.list(names.INDEX)}
        state = _State.load(self._directory)
        before = dict(state.segments)
        if check:
            state.drop_damaged(self._keys)
        state.drop_unless(stored)
        self.damaged = {}
        for name in sorted(stored - state.covered()):
            self._take_in(name, state)
        if self.damaged or check:
            self._make_up(state)
        self._compact(state)
        if state.segments != before:
            state.save()
        self._reopen(state)
        state.remove_unused()

    def add(self, name: str, data: bytes) -> None:
        """Take in an index object that was just stored, without reading it back."""
        with self._locked():
            state = _State.load(self._directory)
            gone = set(self._files) - state.segments.keys()
            if gone and (self.damaged or not self._covered <= state.covered()):
                # The cache was lost or cleared while it was in use.
                self._sync()
                return
            # Another process that shares the cache may have seen it in the store already.
            if name not in state.covered():
                state.add(write(self._directory, data), {name})
            try:
                self._compact(state)
            except IntegrityError:
                self._sync(check=True)
                return
            state.save()
            self._reopen(state)
            state.remove_unused()

    def clear(self) -> None:
        """Forget what the cache holds; the next `sync` brings it back."""
        with self._locked():
            # Without its table of contents it counts as empty; the files are removed by that sync.
            (self._directory / _STATE).unlink(missing_ok=True)

    def unindexed_packs(self) -> list[tuple[str, int]]:
        """(object name, size) of packs in the store that no index covers."""
        known = {names.pack(name) for name in self.packs()}
        return [
            (name, size)
            for name, size in self._store.list(names.PACKS)
            if name not in known and names.pack_digest(name)
        ]

    def from_directories(self, packs: Iterable[tuple[str, int]]) -> bytes | None:
        """See `index_from_directories`. A pack that cannot be read is left out with a warning."""
        unreadable: dict[str, str] = {}
        made = index_from_directories(self._store, packs, self._keys, unreadable)
        for name, problem in unreadable.items():
            log.warning("%s is left out: %s", name, problem)
        return made

    def _take_in(self, name: str, state: _State) -> None:
        try:
            data = load_index(self._store, name, self._keys)
        except IntegrityError as error:
            log.warning("%s: %s; using the directories of the packs instead", name, error)
            self.damaged[name] = str(error)
            return
        except ObjectMissingError:
            # Replaced by a rebuild since it was listed.
            return
        state.add(write(self._directory, data), {name})
        if len(state.segments) > _MERGE_FAN_IN:
            self._compact(state)

    def _make_up(self, state: _State) -> None:
        self._reopen(state)
        files: list[str] = []
        rest = iter(self.unindexed_packs())
        while data := self.from_directories(rest):
            files.append(write(self._directory, data))
            if len(files) == _MERGE_FAN_IN:
                files = [merge(self._directory, files, self._keys)]
        if files:
            # It covers nothing: the damage is to be noticed again at the next opening.
            state.add(merge(self._directory, files, self._keys), set())

    def _compact(self, state: _State) -> None:
        """Merge from the small end until each file is _GROWTH times the next."""
        sizes = {file: (self._directory / file).stat().st_size for file in state.segments}
        # What stands for no object is dropped at the next sync, so it must not become part of what stays.
        order = sorted((f for f, covers in state.segments.items() if covers), key=lambda file: sizes[file])
        take = total = 0
        for number, file in enumerate(order):
            if number and sizes[file] < _GROWTH * total:
                take = number + 1
            total += sizes[file]
        if take > 1:
            merged = merge(self._directory, order[:take], self._keys)
            covers = set().union(*(state.segments.pop(file) for file in order[:take]))
            state.add(merged, covers)

    def _reopen(self, state: _State) -> None:
        files = tuple(state.segments)
        if files != self._files:
            kept = dict(zip(self._files, self._segments, strict=True))
            opened = tuple(kept.get(file) or Segment(self._directory / file) for file in files)
            # Newest and smallest first would be no better: a look-up that fails asks all of them.
            self._segments, self._files = opened, files
            self._healed = False
        self._covered = state.covered()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One thread of one process at a time changes the cache; readers hold their files open and need no
        lock."""
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            fd = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                yield
            finally:
                os.close(fd)
        except OSError as error:
            raise StoreError(
                f"the cache in {self._directory} cannot be used: {error.strerror}; free some space there, or "
                "give another --cache-dir"
            ) from error


class _State:
    """Which files make up the cache, and which index objects each stands for."""

    def __init__(self, directory: Path, segments: dict[str, set[str]]) -> None:
        self._directory = directory
        self.segments = segments

    @staticmethod
    def load(directory: Path) -> _State:
        try:
            tree = json.loads((directory / _STATE).read_bytes())
            segments = {str(file): set(covers) for file, covers in tree["segments"].items()}
            for file in segments:
                Segment(directory / file)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IntegrityError):
            # A cache: whatever is wrong with it, it is made anew.
            segments = {}
        return _State(directory, segments)

    def save(self) -> None:
        tree = {"segments": {file: sorted(covers) for file, covers in self.segments.items()}}
        new = self._directory / f"{_STATE}.new"
        write_durably(new, json.dumps(tree).encode())
        new.replace(self._directory / _STATE)

    def covered(self) -> set[str]:
        return set().union(*self.segments.values())

    def add(self, file: str, covers: set[str]) -> None:
        self.segments[file] = covers

    def drop_unless(self, stored: set[str]) -> None:
        """Forget files that stand for objects which the store lost, and those that stand for none."""
        self.segments = {f: covers for f, covers in self.segments.items() if covers and covers <= stored}

    def drop_damaged(self, keys: Keys) -> None:
        """Forget files that are not as they were written."""
        self.segments = {
            file: covers for file, covers in self.segments.items() if is_sound(self._directory / file, keys)
        }

    def remove_unused(self) -> None:
        for path in self._directory.glob("*.vmfi"):
            if path.name not in self.segments:
                path.unlink(missing_ok=True)


def load_index(store: Store, name: str, keys: Keys) -> bytes:
    """The index object of that name, checked. Raises IntegrityError."""
    data = store.get(name)
    # First, for it tells damage from what a later program wrote.
    if names.index(blake3(data).digest()) != name:
        raise IntegrityError("it is not what its name says")
    index.check(data, keys)
    return data


def index_from_directories(
    store: Store, packs: Iterable[tuple[str, int]], keys: Keys, unreadable: dict[str, str]
) -> bytes | None:
    """An index made from the own directories of the packs, (name, size) each; None if there is nothing to
    index. It ends at what is enough for one: with an iterator, call again for the rest. What cannot be read
    is left out and entered in `unreadable`, with the reason."""
    table: list[index.PackRef] = []
    rows: list[bytes] = []
    for name, size in packs:
        try:
            entries = read_directory(store, name, size, keys)
        except ObjectMissingError:
            continue
        except IntegrityError as error:
            unreadable[name] = str(error)
            continue
        rows += (make_row(entry.id, len(table), entry.offset, entry.length) for entry in entries)
        table.append(index.PackRef(bytes.fromhex(name.rsplit("/", 1)[1]), size))
        if len(rows) >= _ROWS:
            break
    return index.encode(table, unique_sorted(rows), keys) if table else None


def read_directory(store: Store, name: str, size: int, keys: Keys) -> list[pack.Entry]:
    """The directory of a pack of `size` bytes. Raises IntegrityError."""
    trailer = store.get_range(name, max(0, size - pack.TRAILER_SIZE), pack.TRAILER_SIZE)
    tail = pack.tail_size(trailer, size)
    return pack.parse_tail(store.get_range(name, size - tail, tail), size, keys)
