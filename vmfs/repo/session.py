"""A write session: blobs into packs, packs into the store, and one commit at the end.

Order of a commit: data packs durable, node packs durable, index durable, lease and generation checked again,
point object. A crash before the last leaves garbage that the next session puts to use and prune would find;
after it, a whole point.
"""

from __future__ import annotations

import logging
import secrets
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from mmap import mmap
from queue import SimpleQueue
from threading import Condition, Lock
from types import TracebackType
from typing import NamedTuple

from blake3 import blake3
from ulid import ULID

from vmfs.errors import ObjectExistsError, VmfsError
from vmfs.format import blob, index, note, pack, point
from vmfs.format.keys import Epoch, Keys, Kind
from vmfs.format.manifest import Artifact, Manifest, check_name
from vmfs.repo import names, trash
from vmfs.repo.blobs import BlobReader
from vmfs.repo.diskmap import Map, MapWriter
from vmfs.repo.index import ChunkIndex
from vmfs.repo.lease import Lease
from vmfs.repo.segment import make_row, unique_sorted
from vmfs.store import Store

log = logging.getLogger(__name__)

_UPLOADERS = 2
_PACKS_IN_MEMORY = 5
"""One of data and one of nodes being filled, the others on their way to the store."""
_INDEX_ENTRIES = 1 << 18
"""After so many new blobs an index object is written: bounds the memory of a session, and what a crash
leaves to be found again."""


class Stored(NamedTuple):
    """`new` tells that the blob was not in the repository; `size` is then what it takes there, bytes."""

    id: bytes
    new: bool
    size: int


class _Pack:
    """A pack being filled. Its memory is used for one pack after another: fresh pages cost more than what is
    done with them. Aligned, as memory of mmap is, so that the store can write it directly."""

    CAPACITY = pack.TARGET_SIZE + blob.OVERHEAD + blob.MAX_PLAIN
    SIZE = CAPACITY + pack.MAX_ENTRIES * pack.ENTRY.size + pack.TRAILER_SIZE

    def __init__(self, memory: mmap) -> None:
        self.memory = memory
        self.entries: list[pack.Entry] = []
        self.size = 0
        self.writing = 0
        """Blobs whose place is taken and whose bytes are still being sealed."""
        self.closed = False

    def reserve(self, kind: Kind, blob_id: bytes, length: int) -> memoryview:
        """The place for a blob, bytes."""
        start = self.size
        self.entries.append(pack.Entry(blob_id, start, length, kind))
        self.size += length
        self.writing += 1
        return memoryview(self.memory)[start : self.size]

    @property
    def full(self) -> bool:
        return self.size >= pack.TARGET_SIZE or len(self.entries) >= pack.MAX_ENTRIES

    @property
    def ready(self) -> bool:
        return self.closed and not self.writing


class _Nonces:
    """Random nonces, drawn many at a time: each system call is a chance to lose the interpreter's lock, and
    to wait for it."""

    SIZE = 12
    _DRAWN = 1 << 10

    def __init__(self) -> None:
        self._left: list[bytes] = []

    def next(self) -> bytes:
        while True:
            try:
                return self._left.pop()
            except IndexError:
                drawn = secrets.token_bytes(self.SIZE * self._DRAWN)
                self._left += (drawn[at : at + self.SIZE] for at in range(0, len(drawn), self.SIZE))


class WriteSession:
    """Use as a context manager: leaving without `commit` keeps the packs for the next try, and no point.

    `store_blob` may be called from several threads; the rest from one.
    """

    def __init__(
        self,
        store: Store,
        keys: Keys,
        chunk_index: ChunkIndex,
        blobs: BlobReader,
        epoch: Epoch,
        signing_seed: bytes,
    ) -> None:
        self._store = store
        self._keys = keys
        self._index = chunk_index
        self._blobs = blobs
        self._epoch = epoch
        self._seed = signing_seed
        self._generation = trash.generation(store)
        self._condemned = trash.condemned_packs(store, keys)
        self._lock = Lock()
        self._sealed = Condition(self._lock)
        """Told whenever a blob's bytes are in their place."""
        self._nonces = _Nonces()
        self._index_lock = Lock()
        self._claimed: set[bytes] = set()
        self._memories: SimpleQueue[mmap] = SimpleQueue()
        for _ in range(_PACKS_IN_MEMORY):
            self._memories.put(mmap(-1, _Pack.SIZE))
        self._packs: dict[Kind, _Pack | None] = {Kind.DATA: None, Kind.NODE: None}
        self._finished: list[tuple[index.PackRef, list[pack.Entry]]] = []
        self._uploads: dict[Kind, set[Future[None]]] = {Kind.DATA: set(), Kind.NODE: set()}
        self._error: BaseException | None = None
        self._executor = ThreadPoolExecutor(_UPLOADERS, "vmfs-upload")
        self._lease = Lease(store, keys, "writer")

    def __enter__(self) -> WriteSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)
        try:
            # For the next try to find.
            self._write_index()
        except VmfsError as failure:
            log.warning("packs are left without an index: %s", failure)
            # The lease that stays tells the next session to look for them.
            self._lease.abandon()
        else:
            self._lease.release()

    def store_blob(self, kind: Kind, plain: bytes | bytearray | memoryview) -> Stored:
        """Make sure that the repository has this blob, by the time of the commit."""
        if self._error:
            raise self._error
        blob_id = self._keys.blob_id(kind, plain)
        with self._lock:
            if blob_id in self._claimed:
                return Stored(blob_id, False, 0)
        location = self._index.find(blob_id)
        if location and location.pack not in self._condemned:
            return Stored(blob_id, False, 0)
        with self._lock:
            if blob_id in self._claimed:
                return Stored(blob_id, False, 0)
            self._claimed.add(blob_id)
        try:
            body = blob.make_body(plain)
            self._append(kind, blob_id, body)
        except BaseException as error:
            # It is claimed and not there, and its place in a pack may hold no blob: that pack must never be
            # stored, nobody wait for it, and no point rely on the claim.
            with self._sealed:
                self._error = self._error or error
                self._sealed.notify_all()
            raise
        return Stored(blob_id, True, body.length)

    def keeps(self, blob_id: bytes) -> bool:
        """Whether something new may rely on the blob without storing it again."""
        with self._lock:
            if blob_id in self._claimed:
                return True
        location = self._index.find(blob_id)
        return location is not None and location.pack not in self._condemned

    def store_artifact(self, name: str, content: bytes) -> Artifact:
        """Keep a small file beside the disks. Raises UsageError for a name that cannot be, VmfsError for too
        large a file."""
        check_name("artifact", name)
        if len(content) > blob.MAX_PLAIN:
            raise VmfsError(f"{name} is {len(content)} bytes; an artifact has at most {blob.MAX_PLAIN}")
        blob_id = self.store_blob(Kind.ARTIFACT, content).id if content else None
        return Artifact(name=name, id=blob_id, size=len(content))

    def map_writer(self, size: int, parent: Map) -> MapWriter:
        """For the map of a disk of `size` bytes; `parent` is the map it starts from."""

        def store(content: bytes) -> bytes:
            return self.store_blob(Kind.NODE, content).id

        return MapWriter(size, self._blobs.chunk_size, parent, self._blobs.node, store)

    def commit(self, manifest: Manifest) -> str:
        """Make the restore point; its id. Raises LeaseLostError or VmfsError, and then there is none."""
        self._settle()
        point_id = str(ULID.from_datetime(self._store.now()))
        name = names.point(point_id)
        nonce = secrets.token_bytes(12)
        self._store.put(name, [point.encode(name, manifest, seed=self._seed, nonce=nonce, keys=self._keys)])
        return point_id

    def commit_note(self, point_id: str, content: note.Note) -> str:
        """Add a note to a point, with the blobs that it needs; the note's id. The session may go on to
        others. Raises as `commit` does, and UsageError for facts that cannot be kept."""
        note_id = str(ULID.from_datetime(self._store.now()))
        name = names.note(point_id, note_id)
        nonce = secrets.token_bytes(12)
        data = note.encode(name, content, seed=self._seed, nonce=nonce, keys=self._keys)
        self._settle()
        self._store.put(name, [data])
        return note_id

    def _settle(self) -> None:
        """Everything stored so far is durable on return, indexed, and not condemned."""
        self._drain(Kind.DATA)
        self._drain(Kind.NODE)
        self._write_index()
        # Also what others wrote and this session relies on, should they have died before they could.
        self._store.settle(names.INDEX)
        self._lease.check()
        if trash.generation(self._store) != self._generation:
            raise VmfsError("the repository was pruned meanwhile, so nothing was committed; run it again")

    def _append(self, kind: Kind, blob_id: bytes, body: blob.Body) -> None:
        lane = Kind.DATA if kind is Kind.DATA else Kind.NODE
        filling, place = self._reserve(lane, kind, blob_id, body.length)
        with place:
            blob.seal_into(
                place,
                kind,
                blob_id,
                body,
                epoch=self._epoch if kind is Kind.DATA else self._keys.metadata,
                nonce=self._nonces.next(),
                repository_id=self._keys.repository_id,
            )
        with self._sealed:
            filling.writing -= 1
            nodes_ready = filling.ready and lane is Kind.NODE
            if filling.ready and not nodes_ready:
                self._upload(lane, filling)
            self._sealed.notify_all()
        if nodes_ready:
            self._upload_nodes(filling)

    def _reserve(self, lane: Kind, kind: Kind, blob_id: bytes, length: int) -> tuple[_Pack, memoryview]:
        while True:
            with self._lock:
                filling = self._packs[lane]
                if filling:
                    place = filling.reserve(kind, blob_id, length)
                    if filling.full:
                        filling.closed = True
                        self._packs[lane] = None
                    return filling, place
            # Waits for an upload to end when all memory is in use.
            memory = self._memories.get()
            with self._lock:
                if self._packs[lane] is None:
                    self._packs[lane] = _Pack(memory)
                    continue
            self._memories.put(memory)

    def _drain(self, lane: Kind) -> None:
        """Wait until all blobs of that lane so far are durable."""
        with self._sealed:
            filling, self._packs[lane] = self._packs[lane], None
            if filling and not filling.entries:
                # Another thread has just opened it and will find it gone.
                self._memories.put(filling.memory)
            elif filling:
                filling.closed = True
                if filling.ready:
                    self._upload(lane, filling)
                # Else whoever seals its last blob uploads it.
                self._sealed.wait_for(lambda: filling.ready or self._error)
            waiting = set(self._uploads[lane])
        wait(waiting)
        if self._error:
            raise self._error

    def _upload_nodes(self, full: _Pack) -> None:
        """Nodes must not be durable before the chunks that they point to."""
        self._drain(Kind.DATA)
        with self._lock:
            self._upload(Kind.NODE, full)

    def _upload(self, lane: Kind, full: _Pack) -> None:
        """With the lock held."""
        self._uploads[lane] = {future for future in self._uploads[lane] if not future.done()}
        self._uploads[lane].add(self._executor.submit(self._put_pack, full))

    def _put_pack(self, full: _Pack) -> None:
        try:
            directory = pack.encode_directory(full.entries, full.size, self._keys)
            end = full.size + len(directory)
            full.memory[full.size : end] = directory
            with memoryview(full.memory) as memory, memory[:end] as content:
                name = blake3(content).digest()
                self._store.put(names.pack(name), [content])
            with self._lock:
                self._finished.append((index.PackRef(name, end), full.entries))
                due = sum(len(entries) for _, entries in self._finished) >= _INDEX_ENTRIES
            if due:
                self._write_index()
        except BaseException as error:
            self._error = self._error or error
            raise
        finally:
            self._memories.put(full.memory)

    def _write_index(self) -> None:
        """An index object for the packs that are durable and in no index yet."""
        with self._index_lock:
            with self._lock:
                finished, self._finished = self._finished, []
            if not finished:
                return
            rows = unique_sorted(
                make_row(entry.id, number, entry.offset, entry.length)
                for number, (_, entries) in enumerate(finished)
                for entry in entries
            )
            try:
                self._put_index(index.encode([ref for ref, _ in finished], rows, self._keys))
            except BaseException:
                with self._lock:
                    self._finished += finished
                raise
            with self._lock:
                self._claimed.difference_update(entry.id for _, entries in finished for entry in entries)

    def _put_index(self, data: bytes) -> None:
        name = names.index(blake3(data).digest())
        with suppress(ObjectExistsError):
            self._store.put(name, [data])
        self._index.add(name, data)

    def adopt(self) -> int:
        """Index the packs that a session which died left behind, so that they are not stored again; how
        many."""
        orphans = self._index.unindexed_packs()
        for prefix in {name.rpartition("/")[0] for name, _ in orphans}:
            self._store.settle(prefix)
        rest = iter(orphans)
        while data := self._index.from_directories(rest):
            self._put_index(data)
        return len(orphans)
