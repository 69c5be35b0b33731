"""A repository: made, opened, read from and written to."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakSet

import platformdirs

from vmfs.errors import IntegrityError, ObjectExistsError, ObjectMissingError, UsageError, VmfsError
from vmfs.format import config, keyslot, point, sealed
from vmfs.format.config import Config
from vmfs.format.keys import Epoch, Keys, SealedType, derive_keys
from vmfs.format.manifest import Artifact, Disk, Manifest
from vmfs.repo import keyring, names
from vmfs.repo.blobs import BlobReader, load_epoch
from vmfs.repo.index import ChunkIndex
from vmfs.repo.lease import Lease, Purpose, clear_dead
from vmfs.repo.reader import DiskReader
from vmfs.repo.secret import Secret
from vmfs.repo.session import WriteSession
from vmfs.store import LocalStore, Store

log = logging.getLogger(__name__)

DEFAULT_CHUNK = 256 << 10


@dataclass(frozen=True, slots=True)
class Point:
    """A restore point as read back: its id (a ULID), what it says, and the Ed25519 public key of the key slot
    that signed it."""

    id: str
    manifest: Manifest
    signer: bytes


class Repository:
    """Opened with a secret. Reading is thread-safe."""

    def __init__(
        self, store: Store, settings: Config, unlocked: keyring.Unlocked, cache_root: Path | None
    ) -> None:
        self.store = store
        self.id = settings.repository_id
        self.chunk_size = settings.chunk_size
        self.slot_id = unlocked.slot_id
        self.keys: Keys = derive_keys(unlocked.opened.master, settings.repository_id)
        self._seed = unlocked.opened.seed
        self._private_cache: Path | None = None
        self._leases: WeakSet[Lease] = WeakSet()
        self.cache_dir = self._open_cache(cache_root)
        self.index = ChunkIndex(store, self.keys, self.cache_dir / "index")
        self.blobs = BlobReader(store, self.keys, self.index, self.chunk_size)

    @classmethod
    def create(
        cls,
        store: Store,
        secret: Secret,
        *,
        chunk_size: int = DEFAULT_CHUNK,
        cost: int = keyring.DEFAULT_COST,
        label: str = "first",
        cache_root: Path | None = None,
    ) -> Repository:
        """A new repository. `chunk_size` in bytes, a power of two from 64 KiB to 4 MiB; `cost` is log2 of
        scrypt's N. The config object comes last: without it there is no repository. Raises StoreError when
        the place is not empty."""
        if not config.valid_chunk_size(chunk_size):
            raise UsageError(f"a chunk size of {chunk_size} bytes cannot be; use a power of two, 64K to 4M")
        if not keyslot.MIN_COST <= cost <= keyslot.MAX_COST:
            raise UsageError(f"scrypt cost {cost} cannot be; use {keyslot.MIN_COST} to {keyslot.MAX_COST}")
        if isinstance(store, LocalStore):
            store.prepare()
        master = secrets.token_bytes(32)
        settings = Config(secrets.token_bytes(config.REPOSITORY_ID_SIZE), chunk_size)
        keys = derive_keys(master, settings.repository_id)
        try:
            keyring.add_slot(store, settings.repository_id, master, secret, label=label, cost=cost)
            _add_epoch(store, keys)
            store.put(names.CONFIG, [config.encode(settings, keys.config)])
        except ObjectExistsError:
            raise VmfsError(f"{store.url} has become a repository meanwhile; choose another place") from None
        return cls.open(store, secret, cache_root=cache_root)

    @classmethod
    def open(cls, store: Store, secret: Secret, *, cache_root: Path | None = None) -> Repository:
        """Raises VmfsError when there is no repository, SecretError for the wrong secret, VersionError for
        a later version, IntegrityError for a damaged one."""
        data = read_config(store)
        settings = config.decode(data)
        unlocked = keyring.unlock(store, settings.repository_id, secret)
        config.authenticate(data, derive_keys(unlocked.opened.master, settings.repository_id).config)
        repository = cls(store, settings, unlocked, cache_root)
        try:
            repository.refresh()
        except BaseException:
            repository.close()
            raise
        return repository

    def close(self) -> None:
        if self._private_cache:
            shutil.rmtree(self._private_cache, ignore_errors=True)

    def __enter__(self) -> Repository:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def refresh(self) -> None:
        """Learn of the packs that others have written."""
        self.index.sync()

    def point_ids(self) -> list[str]:
        """All points, oldest first."""
        prefix = f"{names.POINTS}/"
        ids = (name.removeprefix(prefix) for name, _ in self.store.list(names.POINTS))
        return sorted(point_id for point_id in ids if "/" not in point_id)

    def load_point(self, point_id: str) -> Point:
        """Raises ObjectMissingError, IntegrityError."""
        name = names.point(point_id)
        signer, manifest = point.decode(name, self.store.get(name), self.keys)
        return Point(point_id, manifest, signer)

    def open_disk(self, disk: Disk) -> DiskReader:
        return DiskReader(disk, self.blobs)

    def read_artifact(self, artifact: Artifact) -> bytes:
        """Raises IntegrityError."""
        content = self.blobs.artifact(artifact.id) if artifact.id else b""
        if len(content) != artifact.size:
            raise IntegrityError(f"artifact {artifact.name} is not as long as the manifest says")
        return content

    def lease(self, purpose: Purpose) -> Lease:
        lease = Lease(self.store, self.keys, purpose)
        self._leases.add(lease)
        return lease

    def write_session(self) -> WriteSession:
        """A session that writes data in the newest epoch, after making use of what dead sessions left."""
        self._warn_of_lost_packs()
        before = {name for name, _ in self.store.list(names.LEASES)} - {own.name for own in self._leases}
        # The one thing that is written with no lease in place.
        self.store.sweep(names.LEASES)
        session = WriteSession(
            self.store, self.keys, self.index, self.blobs, self._newest_epoch(), self._seed
        )
        try:
            if before:
                self.store.sweep()
                if orphans := session.adopt():
                    log.info("found %d packs of an interrupted session", orphans)
                clear_dead(self.store, self.keys)
        except BaseException as error:
            session.__exit__(type(error), error, None)
            raise
        return session

    def add_key(self, secret: Secret, *, label: str, cost: int = keyring.DEFAULT_COST) -> str:
        """Another way in; the new slot's id."""
        return keyring.add_slot(self.store, self.id, self.keys.master, secret, label=label, cost=cost)

    def _warn_of_lost_packs(self) -> None:
        """A chunk that is stored already is not stored again, even where it can no longer be read."""
        stored = dict(self.store.list(names.PACKS))
        indexed = {names.pack(digest): size for digest, size in self.index.packs().items()}
        lost = [name for name, size in indexed.items() if stored.get(name) != size]
        if lost:
            log.warning(
                "missing or cut short: %s%s; new restore points will share that damage: see 'vmfs verify', "
                "and the chapter on damage in docs/operations.md",
                min(lost),
                f" and {len(lost) - 1} more packs" if len(lost) > 1 else "",
            )

    def _newest_epoch(self) -> Epoch:
        stored = sorted(name for name, _ in self.store.list(names.EPOCHS) if names.epoch_id(name))
        if not stored:
            raise IntegrityError(f"{self.store.url} has no epoch; restore epochs/ from a copy")
        return load_epoch(self.store, stored[-1], self.keys)

    def _open_cache(self, root: Path | None) -> Path:
        directory = (root or default_cache_root()) / self.id.hex()
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.TemporaryFile(dir=directory):
                return directory
        except OSError as error:
            log.warning("no cache at %s (%s); using a temporary one", directory, error.strerror)
            self._private_cache = Path(tempfile.mkdtemp(prefix="vmfs-"))
            return self._private_cache


def read_config(store: Store) -> bytes:
    try:
        return store.get(names.CONFIG)
    except ObjectMissingError:
        if any(store.list(names.POINTS)):
            raise IntegrityError(f"{store.url} has lost its config; restore it from a copy") from None
        if any(store.list(names.KEYS)):
            raise VmfsError(
                f"{store.url} holds what an unfinished 'vmfs init' left, and no repository; empty it and run "
                "'vmfs init' again"
            ) from None
        raise VmfsError(
            f"{store.url} is not a vmfs repository; check that its file system is mounted, or make one with "
            "'vmfs init'"
        ) from None


def default_cache_root() -> Path:
    """$VMFS_CACHE_DIR, or the user's cache directory."""
    given = os.environ.get("VMFS_CACHE_DIR")
    return Path(given) if given else platformdirs.user_cache_path("vmfs")


def _add_epoch(store: Store, keys: Keys) -> None:
    """Ids begin with the time of making, so that the newest sorts last."""
    epoch_id = int(store.now().timestamp() * 1000).to_bytes(6, "big") + secrets.token_bytes(2)
    name = names.epoch(epoch_id)
    nonce, root = secrets.token_bytes(12), secrets.token_bytes(32)
    store.put(name, [sealed.seal(SealedType.EPOCH, name, root, nonce=nonce, keys=keys)])
