"""Reading blobs: where they lie, and what they say, with the plaintext of the last ones kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from threading import Lock

from vmfs.errors import ContentError, IntegrityError, ObjectMissingError
from vmfs.format import blob, node, sealed
from vmfs.format.keys import METADATA_EPOCH, Epoch, Keys, Kind, SealedType
from vmfs.repo import names
from vmfs.repo.index import ChunkIndex
from vmfs.repo.segment import Location
from vmfs.store import Store

_NODE_CACHE = 48 << 20
_CHUNK_CACHE = 96 << 20


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


class BlobReader:
    def __init__(self, store: Store, keys: Keys, index: ChunkIndex, chunk_size: int) -> None:
        self.chunk_size = chunk_size
        self._store = store
        self._keys = keys
        self._index = index
        self._epochs = {METADATA_EPOCH: keys.metadata}
        self._nodes = BlobCache(_NODE_CACHE)
        self._chunks = BlobCache(_CHUNK_CACHE)

    def node(self, blob_id: bytes) -> bytes:
        """The 8 KiB of a map's node. Raises IntegrityError, as all here do."""
        return self._nodes.get(blob_id, self._load_node)

    def chunk(self, blob_id: bytes) -> bytes:
        """The plaintext of a data chunk, chunk_size bytes."""
        return self._chunks.get(blob_id, self._load_chunk)

    def cached_chunk(self, blob_id: bytes) -> bytes | None:
        return self._chunks.peek(blob_id)

    def artifact(self, blob_id: bytes) -> bytes:
        return self.read(Kind.ARTIFACT, blob_id)

    def read(self, kind: Kind, blob_id: bytes) -> bytes:
        """The plaintext of a blob, from the store."""
        location = self._index.find(blob_id)
        try:
            return self._read_found(kind, blob_id, location)
        except IntegrityError:
            self._index.heal()
            again = self._index.find(blob_id)
            if again == location:
                raise
            return self._read_found(kind, blob_id, again)

    def _read_found(self, kind: Kind, blob_id: bytes, location: Location | None) -> bytes:
        if location is None:
            raise IntegrityError(f"blob {blob_id.hex()} is in no pack")
        return self.read_at(kind, blob_id, location)

    def read_at(self, kind: Kind, blob_id: bytes, location: Location) -> bytes:
        name = names.pack(location.pack)
        try:
            data = self._store.get_range(name, location.offset, location.length)
            epoch = self.epoch(blob.parse_header(data).epoch)
            plain = blob.unseal(
                data, kind=kind, blob_id=blob_id, epoch=epoch, repository_id=self._keys.repository_id
            )
            # Chunks are left to verify: hashing would slow every read, and the seal already binds the id.
            if kind is not Kind.DATA and self._keys.blob_id(kind, plain) != blob_id:
                raise ContentError("its content is not what its id says")
            return plain
        except ObjectMissingError as error:
            raise IntegrityError(f"{name} is missing from the store") from error
        except IntegrityError as error:
            raise type(error)(f"{name}, blob at byte {location.offset}: {error}") from error

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
