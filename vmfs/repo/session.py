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
from threading import BoundedSemaphore, Lock
from types import TracebackType
from typing import NamedTuple

from blake3 import blake3
from ulid import ULID

from vmfs.errors import ObjectExistsError, VmfsError
from vmfs.format import blob, index, pack, point
from vmfs.format.keys import Epoch, Keys, Kind
from vmfs.format.manifest import Artifact, Manifest, check_name
from vmfs.repo import names, trash
from vmfs.repo.blobs import BlobReader
from vmfs.repo.diskmap import Map, MapWriter
from vmfs.repo.index import ChunkIndex, make_row, unique_sorted
from vmfs.repo.lease import Lease
from vmfs.store import Store

log = logging.getLogger(__name__)

_UPLOADERS = 2
_WAITING_PACKS = 3
_INDEX_ENTRIES = 1 << 18
"""After so many new blobs an index object is written: bounds the memory of a session, and what a crash
leaves to be found again."""


class Stored(NamedTuple):
    """`new` tells that the blob was not in the repository; `size` is then what it takes there, bytes."""

    id: bytes
    new: bool
    size: int


class _Pack:
    def __init__(self) -> None:
        self.entries: list[pack.Entry] = []
        self.parts: list[bytes] = []
        self.size = 0

    def append(self, kind: Kind, blob_id: bytes, header: bytes, sealed: bytes) -> None:
        length = len(header) + len(sealed)
        self.entries.append(pack.Entry(blob_id, self.size, length, kind))
        self.parts += (header, sealed)
        self.size += length


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
        self._index_lock = Lock()
        self._claimed: set[bytes] = set()
        self._packs = {Kind.DATA: _Pack(), Kind.NODE: _Pack()}
        self._finished: list[tuple[index.PackRef, list[pack.Entry]]] = []
        self._uploads: dict[Kind, set[Future[None]]] = {Kind.DATA: set(), Kind.NODE: set()}
        self._error: BaseException | None = None
        self._slots = BoundedSemaphore(_WAITING_PACKS)
        self._executor = ThreadPoolExecutor(_UPLOADERS, "vmfs-upload")
        self._lease = Lease(store, keys, "writer")

    def __enter__(self) -> WriteSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)
        # For the next try to find; it would find the packs without it, only slower.
        with suppress(VmfsError):
            self._write_index()
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
        header, sealed = blob.seal(
            kind,
            blob_id,
            plain,
            epoch=self._epoch if kind is Kind.DATA else self._keys.metadata,
            nonce=secrets.token_bytes(12),
            repository_id=self._keys.repository_id,
        )
        self._append(kind, blob_id, header, sealed)
        return Stored(blob_id, True, len(header) + len(sealed))

    def store_artifact(self, name: str, content: bytes) -> Artifact:
        """Keep a small file beside the disks. Raises UsageError for a name or size that cannot be."""
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
        self._drain(Kind.DATA)
        self._drain(Kind.NODE)
        self._write_index()
        self._lease.check()
        if trash.generation(self._store) != self._generation:
            raise VmfsError("the repository was pruned meanwhile, so nothing was committed; run it again")
        point_id = str(ULID.from_datetime(self._store.now()))
        name = names.point(point_id)
        nonce = secrets.token_bytes(12)
        self._store.put(name, [point.encode(name, manifest, seed=self._seed, nonce=nonce, keys=self._keys)])
        return point_id

    def _append(self, kind: Kind, blob_id: bytes, header: bytes, sealed: bytes) -> None:
        lane = Kind.DATA if kind is Kind.DATA else Kind.NODE
        with self._lock:
            filling = self._packs[lane]
            filling.append(kind, blob_id, header, sealed)
            if filling.size < pack.TARGET_SIZE:
                return
            self._packs[lane] = _Pack()
        if lane is Kind.NODE:
            self._drain(Kind.DATA)
        self._upload(lane, filling)

    def _drain(self, lane: Kind) -> None:
        """Wait until all blobs of that lane so far are durable."""
        with self._lock:
            filling, self._packs[lane] = self._packs[lane], _Pack()
        if filling.entries:
            self._upload(lane, filling)
        with self._lock:
            waiting = set(self._uploads[lane])
        wait(waiting)
        if self._error:
            raise self._error

    def _upload(self, lane: Kind, full: _Pack) -> None:
        self._slots.acquire()
        with self._lock:
            self._uploads[lane] = {future for future in self._uploads[lane] if not future.done()}
            self._uploads[lane].add(self._executor.submit(self._put_pack, full))

    def _put_pack(self, full: _Pack) -> None:
        try:
            full.parts.append(pack.encode_directory(full.entries, full.size, self._keys))
            digest = blake3()
            for part in full.parts:
                digest.update(part)
            name = digest.digest()
            size = full.size + len(full.parts[-1])
            self._store.put(names.pack(name), full.parts)
            with self._lock:
                self._finished.append((index.PackRef(name, size), full.entries))
                due = sum(len(entries) for _, entries in self._finished) >= _INDEX_ENTRIES
            if due:
                self._write_index()
        except BaseException as error:
            self._error = self._error or error
            raise
        finally:
            full.parts.clear()
            self._slots.release()

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
            self._put_index(index.encode([ref for ref, _ in finished], rows, self._keys))
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
        if orphans and (data := self._index.from_directories(orphans)):
            self._put_index(data)
        return len(orphans)
