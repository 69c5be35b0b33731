"""Reading blobs: where they lie, and what they say, with the plaintext of the last ones kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from threading import Lock, local
from typing import TypeVar

from vmfs.errors import ContentError, IntegrityError, ObjectMissingError
from vmfs.format import blob, node, sealed
from vmfs.format.keys import METADATA_EPOCH, Epoch, Keys, Kind, SealedType
from vmfs.repo import names
from vmfs.repo.index import ChunkIndex
from vmfs.repo.segment import Location
from vmfs.store import Store

_NODE_CACHE = 48 << 20
_CHUNK_CACHE = 96 << 20
# Of so many chunks it is known that a piece of them was read; as many as the cache holds, about.
_GLANCES = 256

T = TypeVar("T")


class BlobCache:
    """Plaintexts by id, least recently used dropped first, with one flight an id: whoever asks for what is
    being read waits for that. Thread-safe."""

    def __init__(self, limit: int) -> None:
        """`limit` in bytes."""
        self._limit = limit
        self._used = 0
        self._lock = Lock()
        self._kept: OrderedDict[bytes, bytes] = OrderedDict()
        self._flights: dict[bytes, Future[bytes]] = {}

    def peek(self, blob_id: bytes) -> bytes | None:
        with self._lock:
            plain = self._kept.get(blob_id)
            if plain is not None:
                self._kept.move_to_end(blob_id)
            return plain

    def get(self, blob_id: bytes, load: Callable[[bytes], bytes]) -> bytes:
        with self._lock:
            if (plain := self._kept.get(blob_id)) is not None:
                self._kept.move_to_end(blob_id)
                return plain
            flight = self._flights.get(blob_id)
            mine = flight is None
            if flight is None:
                flight = self._flights[blob_id] = Future()
        if not mine:
            return flight.result()
        try:
            plain = load(blob_id)
        except BaseException as error:
            with self._lock:
                del self._flights[blob_id]
            flight.set_exception(error)
            raise
        with self._lock:
            del self._flights[blob_id]
            self._kept[blob_id] = plain
            self._used += len(plain)
            while self._used > self._limit:
                self._used -= len(self._kept.popitem(last=False)[1])
        flight.set_result(plain)
        return plain


class _Buffers(local):
    """A thread's memory for what lies between a pack and a plaintext, used for every chunk: new memory for
    each would cost as much as to decrypt it."""

    def __init__(self, chunk_size: int) -> None:
        self.sealed = memoryview(bytearray(chunk_size + blob.OVERHEAD))
        self.stored = memoryview(bytearray(chunk_size))
        self.plain = memoryview(bytearray(chunk_size))


class BlobReader:
    def __init__(self, store: Store, keys: Keys, index: ChunkIndex, chunk_size: int) -> None:
        self.chunk_size = chunk_size
        self._store = store
        self._keys = keys
        self._index = index
        self._epochs = {METADATA_EPOCH: keys.metadata}
        self._nodes = BlobCache(_NODE_CACHE)
        self._chunks = BlobCache(_CHUNK_CACHE)
        self._buffers = _Buffers(chunk_size)
        self._lock = Lock()
        # Oldest first.
        self._glanced: dict[bytes, None] = {}

    def node(self, blob_id: bytes) -> bytes:
        """The 8 KiB of a map's node. Raises IntegrityError, as all here do."""
        return self._nodes.get(blob_id, self._load_node)

    def chunk(self, blob_id: bytes) -> bytes:
        """The plaintext of a data chunk, chunk_size bytes."""
        return self._chunks.get(blob_id, self._load_chunk)

    def cached_chunk(self, blob_id: bytes) -> bytes | None:
        return self._chunks.peek(blob_id)

    def piece(self, blob_id: bytes, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of a data chunk. The first time, no more of it is decompressed than is needed;
        whoever comes back reads more of it, and has it kept."""
        plain = self._chunks.peek(blob_id)
        if plain is None and not self._seen(blob_id):
            out = self._buffers.plain[:stop]
            self.chunk_into(blob_id, out)
            return bytes(out[start:])
        return (plain or self.chunk(blob_id))[start:stop]

    def chunk_into(self, blob_id: bytes, out: memoryview) -> None:
        """Fill `out` with the plaintext of a data chunk, or as much of its start as `out` is long, from the
        store."""
        self._where_found(blob_id, partial(self._unseal_into, blob_id, out))

    def artifact(self, blob_id: bytes) -> bytes:
        return self.read(Kind.ARTIFACT, blob_id)

    def read(self, kind: Kind, blob_id: bytes) -> bytes:
        """The plaintext of a blob, from the store."""
        return self._where_found(blob_id, partial(self.read_at, kind, blob_id))

    def read_at(self, kind: Kind, blob_id: bytes, location: Location) -> bytes:
        with _naming(location) as name:
            data = self._store.get_range(name, location.offset, location.length)
            epoch = self.epoch(blob.parse_header(data).epoch)
            plain = blob.unseal(
                data, kind=kind, blob_id=blob_id, epoch=epoch, repository_id=self._keys.repository_id
            )
            # Chunks are left to verify: hashing would slow every read, and the seal already binds the id.
            if kind is not Kind.DATA and self._keys.blob_id(kind, plain) != blob_id:
                raise ContentError("its content is not what its id says")
            return plain

    def _unseal_into(self, blob_id: bytes, out: memoryview, location: Location) -> None:
        buffers = self._buffers
        with _naming(location) as name:
            if location.length > len(buffers.sealed):
                raise ContentError(f"chunk {blob_id.hex()} is larger than the repository's chunks")
            data = buffers.sealed[: location.length]
            data = data[: self._store.read_into(name, location.offset, data)]
            length = blob.unseal_start(
                data,
                out,
                buffers.stored,
                kind=Kind.DATA,
                blob_id=blob_id,
                epoch=self.epoch(blob.parse_header(data).epoch),
                repository_id=self._keys.repository_id,
            )
            if length != self.chunk_size:
                raise ContentError(f"chunk {blob_id.hex()} is not of the repository's chunk size")

    def _where_found(self, blob_id: bytes, read: Callable[[Location], T]) -> T:
        """What `read` gives for the place of the blob; for another, if it has one, when it can't be read."""
        location = self._index.find(blob_id)
        try:
            return read(_place(blob_id, location))
        except IntegrityError:
            self._index.heal()
            again = self._index.find(blob_id)
            if again == location:
                raise
            return read(_place(blob_id, again))

    def _seen(self, blob_id: bytes) -> bool:
        """Whether a piece of the chunk was read lately; it is taken for read from now on."""
        with self._lock:
            if blob_id in self._glanced:
                return True
            self._glanced[blob_id] = None
            if len(self._glanced) > _GLANCES:
                del self._glanced[next(iter(self._glanced))]
            return False

    def epoch(self, epoch_id: bytes) -> Epoch:
        if found := self._epochs.get(epoch_id):
            return found
        loaded = load_epoch(self._store, names.epoch(epoch_id), self._keys)
        self._epochs[epoch_id] = loaded
        return loaded

    def _load_node(self, blob_id: bytes) -> bytes:
        return node.check(self.read(Kind.NODE, blob_id))

    def _load_chunk(self, blob_id: bytes) -> bytes:
        plain = self.read(Kind.DATA, blob_id)
        if len(plain) != self.chunk_size:
            raise ContentError(f"chunk {blob_id.hex()} is not of the repository's chunk size")
        return plain


def _place(blob_id: bytes, location: Location | None) -> Location:
    if location is None:
        raise IntegrityError(f"blob {blob_id.hex()} is in no pack")
    return location


@contextmanager
def _naming(location: Location) -> Iterator[str]:
    """The name of the pack; errors say which blob of it they are about."""
    name = names.pack(location.pack)
    try:
        yield name
    except ObjectMissingError as error:
        raise IntegrityError(f"{name} is missing from the store") from error
    except IntegrityError as error:
        raise type(error)(f"{name}, blob at byte {location.offset}: {error}") from error


def load_epoch(store: Store, name: str, keys: Keys) -> Epoch:
    """Raises IntegrityError."""
    try:
        data = store.get(name)
    except ObjectMissingError as error:
        raise IntegrityError(f"{name} is missing: what was written in this epoch is unreadable") from error
    root = sealed.unseal(SealedType.EPOCH, name, data, keys)
    if len(root) != 32:
        raise ContentError(f"{name} makes no sense")
    return Epoch(bytes.fromhex(name.rsplit("/", 1)[1]), root)
