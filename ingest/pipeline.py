"""From disks to a restore point: read what changed, store what is new, write the maps, commit.

Workers each take the next few megabytes of a disk: read, cut, hash, look up, compress, seal. The calling
thread hands out the work of several disks at once, takes the results of each in order, and writes its map.
Memory is bounded by the number of workers and of results waiting; the first error, wherever it happens, ends
all, and nothing is committed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import NamedTuple

from ingest.audit import Audit, Finding
from ingest.plan import Plan, Run, Runs
from ingest.sources.base import BitmapError, DiskSource
from ingest.workers import Readers, Task, Workers, default_workers
from vmfs import __version__
from vmfs.format.keys import Kind
from vmfs.format.manifest import Consistency, Disk, Manifest, Vm
from vmfs.format.node import chunk_count
from vmfs.repo.diskmap import EMPTY, Map
from vmfs.repo.repository import Point, Repository
from vmfs.repo.session import Stored, WriteSession

log = logging.getLogger(__name__)


class PlannedDisk(NamedTuple):
    """A disk to back up. `base` is the parent point's disk when the source's dirty bitmap tells what changed
    since then; None to read it in full, because of `full_reason` if an incremental was asked for. `id` is the
    engine's where there is one. At most `connections` readers are at work on it at once."""

    alias: str
    source: DiskSource
    base: Disk | None = None
    checkpoint: str | None = None
    full_reason: str | None = None
    id: str | None = None
    bus: str | None = None
    boot_order: int | None = None
    connections: int | None = None


class Progress(NamedTuple):
    """`done` of `total` bytes of the disk's chunks to look at; zeros known beforehand are not counted."""

    alias: str
    done: int
    total: int


@dataclass(slots=True)
class _Counts:
    read: int = 0
    new: int = 0
    stored: int = 0


def ingest(
    repository: Repository,
    vm: Vm,
    disks: Sequence[PlannedDisk],
    *,
    time: datetime | None = None,
    parent: Point | None = None,
    artifacts: Mapping[str, bytes] | None = None,
    consistency: Consistency = "crash",
    progress: Callable[[Progress], None] = lambda _: None,
    workers: int | None = None,
    audit: Audit | None = None,
    audited: Callable[[Finding], None] = lambda _: None,
) -> Point:
    """Back up the disks as one new restore point, and return it.

    `time` is when the disks' content was fixed, now by default. With `audit`, a disk whose parent is found to
    miss a change is read in full; `audited` is told what was found on each. `progress` and `audited` are
    called in this thread. Raises VmfsError; KeyboardInterrupt passes through. Either way no point is left.
    """
    fixed = time or datetime.now(UTC)
    threads = workers or max([default_workers(), *(disk.connections or 0 for disk in disks)])
    with repository.write_session() as session:
        kept = [session.store_artifact(name, content) for name, content in (artifacts or {}).items()]
        with Workers(repository.chunk_size, threads) as pool:
            work = [_DiskWork(repository, session, pool, disk, progress, parent) for disk in disks]
            taken = tuple(pool.run(item.run(audit, audited) for item in work))
        incremental = any(disk.mode == "incremental" for disk in taken)
        manifest = Manifest(
            vm=vm,
            time=fixed,
            consistency=consistency,
            disks=taken,
            artifacts=tuple(kept),
            parent=parent.id if parent and incremental else None,
            producer=f"vmfs {__version__}",
        )
        point_id = session.commit(manifest)
    return repository.load_point(point_id)


class _DiskWork:
    """What is done for one disk, by the calling thread."""

    def __init__(
        self,
        repository: Repository,
        session: WriteSession,
        pool: Workers,
        disk: PlannedDisk,
        progress: Callable[[Progress], None],
        parent: Point | None,
    ) -> None:
        self._repository = repository
        self._session = session
        self._pool = pool
        self._disk = disk
        self._source = disk.source
        self._progress = progress
        self._parent = parent
        self._counts = _Counts()
        self._done = 0
        self._total = 0

    def run(self, audit: Audit | None, audited: Callable[[Finding], None]) -> Task[Disk]:
        disk, base, reason = self._disk, self._disk.base, self._disk.full_reason
        readers = self._pool.readers(self._source, disk.connections)
        planning = self._pool.submit(self._plan, base is None)
        yield planning
        plan = planning.result()
        self._total = plan.chunks_to_read * self._pool.chunk_size
        self._advance(0)
        if base and audit:
            finding = yield from self._audit(readers, base, plan, audit)
            audited(finding)
            if finding.mismatch is not None:
                reason = self._distrust(finding.mismatch)
                base = None
                again = self._pool.submit(self._plan, True)
                yield again
                plan = again.result()
                self._total = self._done + plan.chunks_to_read * self._pool.chunk_size
        written = yield from self._copy(readers, base, plan)
        readers.close()
        return Disk(
            id=disk.id or (disk.base.id if disk.base else disk.alias),
            alias=disk.alias,
            size=self._source.size,
            root=written.root,
            allocated=written.allocated,
            block_size=self._source.block_size,
            bus=disk.bus,
            boot_order=disk.boot_order,
            checkpoint=disk.checkpoint,
            mode="incremental" if base else "full",
            full_reason=reason,
            bytes_read=self._counts.read,
            bytes_new=self._counts.new,
            bytes_stored=self._counts.stored,
        )

    def _plan(self, whole: bool) -> Plan:
        """In a worker, for a source may have to ask for its extents."""
        extents = self._source.extents() if whole else self._source.dirty_extents()
        if extents is None:
            raise BitmapError(f"{self._source.name}: no dirty bitmap was opened; read the disk in full")
        return Plan(extents, self._source.size, self._pool.chunk_size, whole=whole)

    def _copy(self, readers: Readers, base: Disk | None, plan: Plan) -> Task[Map]:
        start = Map(base.root, base.size, base.allocated) if base else EMPTY
        writer = self._session.map_writer(self._source.size, start)

        def take(batch: Run, chunks: list[Stored | None] | None) -> bool:
            if chunks is None:
                writer.clear(batch.first, batch.first + batch.chunks)
                return True
            for index, chunk in enumerate(chunks, batch.first):
                writer.set(index, chunk.id if chunk else None)
                if chunk and chunk.new:
                    self._counts.new += self._pool.chunk_size
                    self._counts.stored += chunk.size
            self._account(batch)
            return True

        yield from self._pool.each(readers, plan, partial(self._session.store_blob, Kind.DATA), take)
        return writer.finish()

    def _audit(self, readers: Readers, base: Disk, plan: Plan, audit: Audit) -> Task[Finding]:
        """Compare a sample of what is not in the plan with the parent's map."""
        chunk_size = self._pool.chunk_size
        chunks = chunk_count(self._source.size, chunk_size)
        sampling = self._pool.submit(lambda: Runs(audit.sample(plan, self._plan(True), chunks)))
        yield sampling
        sample = sampling.result()
        self._total += sample.chunks_to_read * chunk_size
        before = self._repository.open_disk(base)
        compared = 0
        mismatch: int | None = None
        read = self._counts.read

        def take(batch: Run, ids: list[bytes | None] | None) -> bool:
            nonlocal compared, mismatch
            start = batch.first * chunk_size
            end = min(start + batch.chunks * chunk_size, self._source.size)
            compared += end - start
            if ids is None:
                mismatch = next((run.start for run in before.extents(start, end) if not run.zero), None)
            else:
                self._account(batch)
                known = before.chunk_ids(batch.first, batch.chunks)
                differing = (at for at, (now, then) in enumerate(zip(ids, known, strict=True)) if now != then)
                mismatch = next((start + at * chunk_size for at in differing), None)
            return mismatch is None

        yield from self._pool.each(readers, sample, partial(self._repository.keys.blob_id, Kind.DATA), take)
        return Finding(self._disk.alias, compared, self._counts.read - read, mismatch)

    def _distrust(self, offset: int) -> str:
        """Say loudly that the bitmap missed a change; the reason to read the disk in full."""
        since = f"restore point {self._parent.id}" if self._parent else "its parent"
        log.error(
            "disk %s: AUDIT FAILED: the bytes from %d are not those of %s, and were not reported as changed. "
            "The disk is now read in full; do not rely on its restore points back to its last full one, and "
            "look for an unclean shutdown of the host or a storage fault since then",
            self._source.name,
            offset,
            since,
        )
        return f"audit: a change at byte {offset} since {since} was not reported"

    def _account(self, batch: Run) -> None:
        size = batch.chunks * self._pool.chunk_size
        self._counts.read += min(size, self._source.size - batch.first * self._pool.chunk_size)
        self._advance(size)

    def _advance(self, size: int) -> None:
        self._done += size
        self._progress(Progress(self._disk.alias, self._done, self._total))
