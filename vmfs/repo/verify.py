"""Checking a repository: that every object is whole, and what is hit where one is not.

Structure: every small object, every index, every pack's directory, every map down to where its chunks lie.
Data: besides that, every byte of every pack (or of a sample), against its name, its seal and its ids.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from blake3 import blake3

from vmfs.errors import IntegrityError, ObjectMissingError, StoreError
from vmfs.format import blob, config, pack, sealed
from vmfs.format.keys import METADATA_EPOCH, Kind, SealedType
from vmfs.format.manifest import Disk
from vmfs.repo import keyring, names
from vmfs.repo.blobs import load_epoch
from vmfs.repo.damage import MapChecker, Range
from vmfs.repo.index import Location, load_index, read_directory
from vmfs.repo.repository import Point, Repository, read_config

Progress = Callable[[str, int, int], None]
"""(what, done, total)"""


@dataclass(frozen=True, slots=True)
class Finding:
    """An object of the store that is not as it should be."""

    object: str
    problem: str


@dataclass(frozen=True, slots=True)
class Hit:
    """What of a restore point is lost: ranges of one disk, an artifact, or (neither set) all of it."""

    point: str
    vm: str | None
    disk: str | None = None
    ranges: tuple[Range, ...] = ()
    artifact: str | None = None


@dataclass(slots=True)
class Report:
    findings: list[Finding] = field(default_factory=list)
    hits: list[Hit] = field(default_factory=list)
    points: int = 0
    packs: int = 0
    bytes_read: int = 0

    @property
    def sound(self) -> bool:
        return not self.findings and not self.hits


def verify(
    repository: Repository,
    *,
    data: float = 0.0,
    points: Sequence[str] | None = None,
    progress: Progress = lambda *_: None,
    choose: random.Random | None = None,
) -> Report:
    """Check the structure of everything, and every byte of `data` (0 to 1) of the packs, chosen at random;
    with `points`, only the chunks of those. Raises StoreError when the store itself fails."""
    return _Verifier(repository, progress, choose or random.Random()).run(data, points)  # noqa: S311


class _Verifier:
    def __init__(self, repository: Repository, progress: Progress, choose: random.Random) -> None:
        self._repository = repository
        self._store = repository.store
        self._keys = repository.keys
        self._progress = progress
        self._choose = choose
        self._report = Report()
        self._bad: set[bytes] = set()
        """Blobs that were found unreadable."""
        self._bad_epochs: set[bytes] = set()
        self._sizes: dict[bytes, int] = {}
        self._read_chunks = False

    def run(self, data: float, wanted: Sequence[str] | None) -> Report:
        self._check_small_objects()
        self._check_indexes()
        self._check_packs()
        if data and wanted is None:
            self._check_data(data)
        self._read_chunks = bool(data) and wanted is not None
        self._check_points(wanted)
        return self._report

    def _found(self, name: str, problem: object) -> None:
        text = str(problem).removeprefix(f"{name}: ").removeprefix(f"{name} ").removeprefix(f"{name}, ")
        self._report.findings.append(Finding(name, text))

    def _check_small_objects(self) -> None:
        try:
            content = read_config(self._store)
            config.decode(content)
            config.authenticate(content, self._keys.config)
        except IntegrityError as error:
            self._found(names.CONFIG, error)
        for slot in keyring.list_slots(self._store):
            if slot.error:
                self._found(names.key_slot(slot.id), slot.error)
        for name, _ in list(self._store.list(names.EPOCHS)):
            try:
                load_epoch(self._store, name, self._keys)
            except IntegrityError as error:
                self._found(name, error)
                self._bad_epochs.add(bytes.fromhex(name.rsplit("/", 1)[1]))
        for prefix, kind in (
            (names.NOTES, SealedType.NOTE),
            (names.LEASES, SealedType.LEASE),
            (names.TRASH, SealedType.TRASH),
        ):
            for name, _ in list(self._store.list(prefix)):
                try:
                    sealed.unseal(kind, name, self._store.get(name), self._keys)
                except ObjectMissingError:
                    continue
                except IntegrityError as error:
                    self._found(name, error)

    def _check_indexes(self) -> None:
        for name, _ in sorted(self._store.list(names.INDEX)):
            try:
                load_index(self._store, name, self._keys)
            except IntegrityError as error:
                self._found(name, error)

    def _check_packs(self) -> None:
        stored = {bytes.fromhex(name.rsplit("/", 1)[1]): size for name, size in self._store.list(names.PACKS)}
        indexed = self._repository.index.packs()
        self._sizes = stored
        for digest in sorted(stored.keys() | indexed.keys()):
            name = names.pack(digest)
            size = stored.get(digest)
            if size is None:
                self._found(name, "missing")
                continue
            if size != indexed.get(digest, size):
                self._found(name, f"is {size} bytes long; {indexed[digest]} were written")
            self._report.packs += 1
            try:
                entries = read_directory(self._store, name, size, self._keys)
            except IntegrityError as error:
                self._found(name, error)
                continue
            self._check_epoch_of(name, entries)

    def _check_epoch_of(self, name: str, entries: Sequence[pack.Entry]) -> None:
        """A missing epoch leaves no object to find damaged; the first blob of a pack tells of it."""
        if not entries or entries[0].kind is not Kind.DATA:
            return
        try:
            epoch_id = blob.parse_header(self._store.get_range(name, 0, blob.HEADER.size)).epoch
        except IntegrityError as error:
            self._found(name, f"blob at byte 0: {error}")
            return
        try:
            self._repository.blobs.epoch(epoch_id)
        except IntegrityError as error:
            if epoch_id not in self._bad_epochs:
                self._bad_epochs.add(epoch_id)
                self._found(names.epoch(epoch_id), error)

    def _check_data(self, share: float) -> None:
        everything = sorted(self._sizes.items())
        self._choose.shuffle(everything)
        total = sum(size for _, size in everything)
        chosen: list[tuple[bytes, int]] = []
        planned = 0
        for digest, size in everything:
            if planned >= share * total:
                break
            chosen.append((digest, size))
            planned += size
        with ThreadPoolExecutor(os.cpu_count()) as executor:
            for size in executor.map(lambda item: self._check_pack_data(*item), chosen):
                self._report.bytes_read += size
                self._progress("packs", self._report.bytes_read, planned)

    def _check_pack_data(self, digest: bytes, size: int) -> int:
        name = names.pack(digest)
        content = self._store.get(name)
        if blake3(content).digest() != digest:
            self._found(name, "its bytes are not those that were written (BLAKE3 differs from its name)")
        view = memoryview(content)
        for kind, blob_id, location in self._blobs_of(digest, content):
            part = view[location.offset : location.offset + location.length]
            try:
                self._check_blob(kind, blob_id, part)
            except IntegrityError as error:
                # Another copy may lie elsewhere; what counts is the one that readers would take.
                if self._repository.index.find(blob_id) in (None, location):
                    self._bad.add(blob_id)
                    self._found(name, f"blob at byte {location.offset}: {error}")
        return size

    def _blobs_of(self, digest: bytes, content: bytes) -> Iterator[tuple[Kind | None, bytes, Location]]:
        """What is to be in the pack: by its own directory, or if that is damaged by the index."""
        try:
            size = pack.tail_size(content[-pack.TRAILER_SIZE :], len(content))
            for entry in pack.parse_tail(content[-size:], len(content), self._keys):
                yield entry.kind, entry.id, Location(digest, entry.offset, entry.length)
        except IntegrityError:
            for blob_id, location in self._repository.index.rows():
                if location.pack == digest:
                    yield None, blob_id, location

    def _check_blob(self, kind: Kind | None, blob_id: bytes, part: memoryview) -> None:
        header = blob.parse_header(part)
        if header.epoch in self._bad_epochs:
            raise IntegrityError(f"its epoch {header.epoch.hex()} is damaged")
        plain = blob.unseal(
            part,
            kind=header.kind if kind is None else kind,
            blob_id=blob_id,
            epoch=self._repository.blobs.epoch(header.epoch),
            repository_id=self._keys.repository_id,
        )
        if self._keys.blob_id(header.kind, plain) != blob_id:
            raise IntegrityError("its content is not what its id says")

    def _check_points(self, wanted: Sequence[str] | None) -> None:
        checker = MapChecker(self._load_node, self._has_chunk, self._repository.chunk_size)
        ids = self._repository.point_ids() if wanted is None else list(wanted)
        loaded: list[Point] = []
        for number, point_id in enumerate(ids):
            self._progress("points", number, len(ids))
            try:
                loaded.append(self._repository.load_point(point_id))
            except IntegrityError as error:
                self._found(names.point(point_id), error)
                self._report.hits.append(Hit(point_id, None))
                continue
            for disk in loaded[-1].manifest.disks:
                checker.walk(disk)
        self._progress("points", len(ids), len(ids))
        self._report.points = len(ids)
        for point in loaded:
            for disk in point.manifest.disks:
                self._hit_disk(point, disk, checker.ranges(disk))
            for artifact in point.manifest.artifacts:
                try:
                    self._repository.read_artifact(artifact)
                except IntegrityError as error:
                    self._found_in_pack(error)
                    vm = point.manifest.vm.name
                    self._report.hits.append(Hit(point.id, vm, artifact=artifact.name))

    def _hit_disk(self, point: Point, disk: Disk, ranges: list[Range]) -> None:
        if ranges:
            hit = Hit(point.id, point.manifest.vm.name, disk.alias, tuple(ranges))
            self._report.hits.append(hit)

    def _load_node(self, node_id: bytes) -> bytes:
        try:
            if node_id in self._bad:
                raise IntegrityError("found damaged before")
            return self._repository.blobs.node(node_id)
        except IntegrityError as error:
            self._found_in_pack(error)
            raise

    def _found_in_pack(self, error: IntegrityError) -> None:
        """An error of reading a blob begins with the name of the pack; each is told once."""
        name, _, problem = str(error).partition(", ")
        if name.startswith(names.PACKS) and problem:
            finding = Finding(name, problem)
        elif "is in no pack" in str(error):
            finding = Finding(names.INDEX, str(error))
        else:
            return
        if finding not in self._report.findings:
            self._report.findings.append(finding)

    def _has_chunk(self, blob_id: bytes) -> bool:
        if blob_id in self._bad:
            return False
        try:
            location = self._repository.index.find(blob_id)
            if location is None:
                raise IntegrityError(f"blob {blob_id.hex()} is in no pack")
            if location.offset + location.length > self._sizes.get(location.pack, 0):
                return False
            if self._bad_epochs:
                return self._epoch_of(location) not in self._bad_epochs
            if self._read_chunks:
                plain = self._repository.blobs.read_at(Kind.DATA, blob_id, location)
                self._report.bytes_read += location.length
                if self._keys.blob_id(Kind.DATA, plain) != blob_id:
                    raise IntegrityError(f"{names.pack(location.pack)}, a chunk is not what its id says")
        except IntegrityError as error:
            self._found_in_pack(error)
            return False
        except StoreError:
            return False
        return True

    def _epoch_of(self, location: Location) -> bytes:
        data = self._store.get_range(names.pack(location.pack), location.offset, blob.HEADER.size)
        try:
            return blob.parse_header(data).epoch
        except IntegrityError:
            return METADATA_EPOCH
