"""Checking a repository: that every object is whole, and what is hit where one is not.

Structure: every small object, every index, every pack's directory, every map down to where its chunks lie.
Data: besides that, every byte of every pack (or of a sample), against its name, its seal and its ids.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from blake3 import blake3

from vmfs.errors import IntegrityError, ObjectMissingError, StoreError
from vmfs.format import blob, config, index, pack, sealed
from vmfs.format.keys import METADATA_EPOCH, Kind, SealedType
from vmfs.format.manifest import Disk
from vmfs.repo import keyring, names
from vmfs.repo.blobs import load_epoch
from vmfs.repo.damage import MapChecker, Range
from vmfs.repo.index import load_index, read_directory
from vmfs.repo.places import Places
from vmfs.repo.repository import Point, Repository, read_config
from vmfs.repo.segment import Location
from vmfs.repo.verify_notes import check_notes

Progress = Callable[[str, int, int], None]
"""(what, done, total)"""

_THREADS = min(8, os.cpu_count() or 1)
"""Each holds a whole pack: bounds the memory."""


@dataclass(frozen=True, slots=True)
class Finding:
    """An object of the store that is not as it should be."""

    object: str
    problem: str


@dataclass(frozen=True, slots=True)
class Hit:
    """What of a restore point is lost: ranges of one disk, an artifact, what a note of that kind said, or
    (none of them set) all of it."""

    point: str
    vm: str | None
    disk: str | None = None
    ranges: tuple[Range, ...] = ()
    artifact: str | None = None
    note: str | None = None


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
        """Of the packs, bytes, when they were listed."""
        self._later: dict[bytes, int] = {}
        """Of packs that were not there yet; 0 of those that are not there now."""
        self._places = Places()
        self._unknown: set[bytes] = set()
        """Packs that do not tell what is in them."""
        self._covered: set[bytes] = set()
        """Packs that an index object tells of."""
        self._index_complete = True
        self._told: set[Finding] = set()
        self._read_chunks = False

    def run(self, data: float, wanted: Sequence[str] | None) -> Report:
        # A damaged cache is no damage, and what no index tells of can still be read.
        self._repository.index.heal()
        self._check_small_objects()
        self._check_packs()
        self._check_indexes()
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
        for slot in keyring.list_slots(self._store, self._keys):
            if slot.error:
                self._found(names.key_slot(slot.id), slot.error)
        for name, _ in list(self._store.list(names.EPOCHS)):
            epoch_id = names.epoch_id(name)
            if epoch_id is None:
                self._found(name, "is no name of an epoch; give it back its own, or remove it")
                continue
            try:
                load_epoch(self._store, name, self._keys)
            except IntegrityError as error:
                self._found(name, error)
                self._bad_epochs.add(epoch_id)
        for prefix, kind in (
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
                self._check_index(name, load_index(self._store, name, self._keys))
            except ObjectMissingError:
                # Replaced meanwhile by a rebuild.
                continue
            except IntegrityError as error:
                self._found(name, f"{error}; 'vmfs rebuild' replaces it")
                self._index_complete = False

    def _check_index(self, name: str, data: bytes) -> None:
        header = index.parse_header(data, len(data))
        refs = index.packs(data, header)
        self._covered.update(ref.name for ref in refs)
        wrong = 0
        for at in range(header.entries_offset, len(data) - index.MAC_SIZE, index.ENTRY.size):
            blob_id, number, offset, length = index.ENTRY.unpack_from(data, at)
            location = Location(refs[number].name, offset, length)
            if not self._is_place(blob_id, location):
                wrong += 1
                if self._repository.index.find(blob_id) == location:
                    self._bad.add(blob_id)
        if wrong:
            self._found(name, f"{wrong} of its blobs are not where it says")

    def _is_place(self, blob_id: bytes, location: Location) -> bool:
        """Whether the pack itself says so, as far as it is there and can tell."""
        unknown = location.pack in self._unknown or location.pack not in self._sizes
        return unknown or self._places.has(blob_id, location)

    def _check_packs(self) -> None:
        stored: dict[bytes, int] = {}
        for name, length in self._store.list(names.PACKS):
            if found := names.pack_digest(name):
                stored[found] = length
            else:
                self._found(name, "is no name of a pack; give it back its own, or remove it")
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
                self._unknown.add(digest)
                continue
            for entry in entries:
                self._places.add(entry.id, Location(digest, entry.offset, entry.length))
            self._check_epoch_of(digest, entries)

    def _check_epoch_of(self, digest: bytes, entries: Sequence[pack.Entry]) -> None:
        """A missing epoch leaves no object to find damaged; the first blob of a pack tells of it."""
        if not entries or entries[0].kind is not Kind.DATA:
            return
        name = names.pack(digest)
        try:
            epoch_id = blob.parse_header(self._store.get_range(name, 0, blob.HEADER.size)).epoch
        except IntegrityError as error:
            self._found(name, f"blob at byte 0: {error}")
            return
        try:
            self._repository.blobs.epoch(epoch_id)
        except IntegrityError as error:
            if epoch_id in self._bad_epochs:
                return
            if blake3(self._store.get(name)).digest() != digest:
                self._found(name, "blob at byte 0: its epoch is none of the repository's")
                return
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
        with ThreadPoolExecutor(_THREADS) as executor:
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
                readable = self._check_blob(kind, blob_id, part)
            except IntegrityError as error:
                readable = False
                self._found(name, f"blob at byte {location.offset}: {error}")
            # Another copy may lie elsewhere; what counts is the one that readers would take.
            if not readable and self._repository.index.find(blob_id) in (None, location):
                self._bad.add(blob_id)
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

    def _check_blob(self, kind: Kind | None, blob_id: bytes, part: memoryview) -> bool:
        """Whether it can be read, as far as its epoch goes. Raises IntegrityError for a damaged one."""
        header = blob.parse_header(part)
        if header.epoch in self._bad_epochs:
            return False
        plain = blob.unseal(
            part,
            kind=header.kind if kind is None else kind,
            blob_id=blob_id,
            epoch=self._repository.blobs.epoch(header.epoch),
            repository_id=self._keys.repository_id,
        )
        if self._keys.blob_id(Kind(header.kind), plain) != blob_id:
            raise IntegrityError("its content is not what its id says")
        return True

    def _check_points(self, wanted: Sequence[str] | None) -> None:
        checker = MapChecker(self._load_node, self._has_chunk, self._repository.chunk_size)
        ids = self._repository.point_ids() if wanted is None else list(wanted)
        # A point that was made meanwhile may lie in packs that were, too.
        self._repository.refresh()
        self._repository.index.heal()
        loaded: list[Point] = []
        for number, point_id in enumerate(ids):
            self._progress("points", number, len(ids))
            try:
                loaded.append(self._repository.load_point(point_id))
            except ObjectMissingError:
                if wanted is not None:
                    raise
                continue
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
                    if artifact.id:
                        self._note_uncovered(self._repository.index.find(artifact.id))
                    self._repository.read_artifact(artifact)
                except IntegrityError as error:
                    if artifact.id not in self._bad:
                        self._found_in_pack(error)
                    vm = point.manifest.vm.name
                    self._report.hits.append(Hit(point.id, vm, artifact=artifact.name))
        self._check_notes({point.id: point.manifest.vm.name for point in loaded})

    def _check_notes(self, points: Mapping[str, str]) -> None:
        """`points` are ids, and the names of their VMs."""
        for name, error, lost in check_notes(self._repository, points, self._bad):
            if lost is None:
                self._found(name, error)
                continue
            self._found_in_pack(error)
            self._report.hits.append(Hit(lost.point, points[lost.point], note=lost.kind))

    def _hit_disk(self, point: Point, disk: Disk, ranges: list[Range]) -> None:
        if ranges:
            hit = Hit(point.id, point.manifest.vm.name, disk.alias, tuple(ranges))
            self._report.hits.append(hit)

    def _load_node(self, node_id: bytes) -> bytes:
        try:
            if node_id in self._bad:
                raise IntegrityError("found damaged before")
            self._note_uncovered(self._repository.index.find(node_id))
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
            finding = Finding(names.INDEX, "restore points need blobs that no pack is known to have")
        else:
            return
        if finding not in self._told:
            self._told.add(finding)
            self._report.findings.append(finding)

    def _note_uncovered(self, location: Location | None) -> None:
        """An index object that is gone leaves nothing to find damaged, but a pack of which none tells."""
        known = location is not None and location.pack in self._sizes and location.pack not in self._covered
        if known and self._index_complete:
            self._found(names.INDEX, "an index object is missing; 'vmfs rebuild' makes it again")
            self._index_complete = False

    def _size_of(self, digest: bytes) -> int:
        """Of a pack, 0 if it is missing. A backup that ran meanwhile may have stored it, for a point of its
        own or because another was storing the same."""
        known = self._sizes.get(digest, self._later.get(digest))
        if known is not None:
            return known
        try:
            size = self._store.size(names.pack(digest))
        except ObjectMissingError:
            size = 0
        self._later[digest] = size
        return size

    def _has_chunk(self, blob_id: bytes) -> bool:
        if blob_id in self._bad:
            return False
        try:
            location = self._repository.index.find(blob_id)
            if location is None:
                raise IntegrityError(f"blob {blob_id.hex()} is in no pack")
            self._note_uncovered(location)
            if location.offset + location.length > self._size_of(location.pack):
                return False
            if self._bad_epochs and self._epoch_of(location) in self._bad_epochs:
                return False
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
