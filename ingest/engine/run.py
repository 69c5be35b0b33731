"""The backup of one VM, from its beginning to its end.

    clean up what an interrupted run left → pre command → backup begun and ready → OVF, transfers, sources
    → all data read → **point committed** → transfers and backup finalized → old checkpoints removed
    → post command

Whatever ends a run before the point is committed leaves none, and its checkpoint is removed; what ends it
after leaves a good one, and the next run ends the backup in the engine.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus

from ingest.audit import Audit, Finding
from ingest.engine import checkpoints, hooks
from ingest.engine.backups import HYBRID_LEVEL, Mode, running_backup
from ingest.engine.checkpoints import Checkpoint
from ingest.engine.choice import Choice, choose_disks
from ingest.engine.cleanup import clean_up_backups
from ingest.engine.errors import (
    BackupFailedError,
    BrokenChain,
    ConflictError,
    EngineError,
    RefusedError,
    TransferError,
)
from ingest.engine.hooks import Hook, HookError
from ingest.engine.marks import make_mark, short_id
from ingest.engine.parents import Chain, find_chain
from ingest.engine.reading import Reading
from ingest.engine.runs import Run, is_alive
from ingest.engine.session import Engine
from ingest.engine.vms import EngineVm, find_vm, get_vm, vm_disks
from ingest.pipeline import Progress
from ingest.sources.base import SourceError
from ingest.sources.imageio import PATIENCE, PatienceError
from vmfs.catalog.catalog import Catalog
from vmfs.errors import VmfsError
from vmfs.format.manifest import check_name
from vmfs.repo.repository import Point, Repository

log = logging.getLogger(__name__)

CONNECTIONS = 4

_CONSISTENCY = re.compile(r"freez|frozen|(?<!in)consisten|quiesc|thaw", re.IGNORECASE)


class PolicyError(VmfsError):
    """The backup would not be what the user requires of it, so there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """`disks` are aliases, names or ids, none for all. `connections` are those to each disk. `patience` is
    for how many seconds a host that does not answer is borne."""

    disks: tuple[str, ...] = ()
    full: bool = False
    audit: Audit | None = None
    mode: Mode = "auto"
    require_consistency: bool = False
    connections: int = CONNECTIONS
    pre: Hook | None = None
    post: Hook | None = None
    patience: float = PATIENCE


@dataclass(slots=True, kw_only=True)
class Outcome:
    """`left_out` are pairs of a disk's alias and a reason; `cleaned` tells what interrupted runs had left;
    `removed` are the ids of checkpoints that were not needed any more."""

    point: Point
    left_out: list[tuple[str, str]]
    cleaned: list[str]
    findings: list[Finding]
    removed: list[str] = field(default_factory=list)


def back_up_vm(
    repository: Repository,
    catalog: Catalog,
    engine: Engine,
    vm: str,
    options: Options,
    *,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Outcome:
    """Back up the VM of that name or id as a new restore point. `catalog` is in step with the repository.
    Raises VmfsError: then there is none, unless it is a HookError of the post command. A chain that is broken
    is no error: what cannot be read incrementally is read in full."""
    found = find_vm(engine, vm)
    check_name("VM name", found.name)
    # The write session holds a lease of its own, but not before there is something to read, and not while
    # the engine ends the backup: runs on other machines would take this one for dead.
    with Run() as run, repository.lease("writer"):
        work = _VmBackup(repository, catalog, engine, found, options, run, progress)
        return work.run()


class _VmBackup:
    def __init__(
        self,
        repository: Repository,
        catalog: Catalog,
        engine: Engine,
        vm: EngineVm,
        options: Options,
        run: Run,
        progress: Callable[[Progress], None],
    ) -> None:
        self._repository = repository
        self._catalog = catalog
        self._engine = engine
        self._vm = vm
        self._options = options
        self._progress = progress
        self._short_id = short_id(repository.id)
        self._run = run
        self._mark = str(make_mark(run.id, repository.id))
        self._patience_to_begin = options.patience
        self._cleaned: list[str] = []
        self._reading: Reading | None = None
        """The last one."""

    def run(self) -> Outcome:
        self._clean_up()
        choice = self._choose()
        aliases = [disk.alias for disk in choice.disks]
        if self._options.pre:
            hooks.run_hook(self._options.pre, self._facts(aliases))
        try:
            point, removed = self._back_up(choice)
        except BaseException as error:
            self._after_failure(aliases, error)
            raise
        if self._options.post:
            told = self._facts(aliases, point=point.id, result="success")
            try:
                hooks.run_hook(self._options.post, told)
            except HookError as error:
                raise HookError(f"{error}; restore point {point.id} is good") from None
        return Outcome(
            point=point,
            left_out=choice.left_out,
            cleaned=self._cleaned,
            findings=self._reading.findings if self._reading else [],
            removed=removed,
        )

    def _clean_up(self) -> bool:
        """Whether there was anything to."""
        done = clean_up_backups(self._engine, self._vm, repository=self._short_id, alive=self._is_other_alive)
        self._cleaned += done
        return bool(done)

    def _is_other_alive(self, run_id: str) -> bool:
        return run_id != self._run.id and is_alive(self._repository, run_id)

    def _choose(self) -> Choice:
        return choose_disks(self._vm, vm_disks(self._engine, self._vm), self._options.disks)

    def _back_up(self, choice: Choice) -> tuple[Point, list[str]]:
        chain = self._find_chain(choice)
        point = self._persist(choice, chain.in_full(None) if self._options.full else chain)
        return point, self._prune()

    def _find_chain(self, choice: Choice) -> Chain:
        return self._chain_of(choice, checkpoints.list_checkpoints(self._engine, self._vm))

    def _chain_of(self, choice: Choice, present: list[Checkpoint]) -> Chain:
        return find_chain(
            self._repository,
            self._catalog,
            engine_id=self._engine.id,
            vm_id=self._vm.id,
            # One that was qcow2 by a snapshot may be raw again: no checkpoint is of use to it.
            disks=[disk.id for disk in choice.disks if disk.format != "raw"],
            valid=[item.id for item in present if item.valid],
            present=[item.id for item in present],
        )

    def _persist(self, choice: Choice, chain: Chain) -> Point:
        """As often as there is another way to do it."""
        mode = self._options.mode
        again = True
        while True:
            reading = self._reading = self._new_reading(choice)
            try:
                return self._attempt(reading, chain, mode)
            except BrokenChain as error:
                if chain.parent is None:
                    raise
                chain = self._other_chain(choice, chain, error)
            except (BackupFailedError, TransferError, SourceError) as error:
                self._check_policy(error)
                beginning = not reading.begun and not isinstance(error, SourceError)
                if again and (reading.begun or beginning) and not _is_borne(error):
                    # A host or an engine that was restarted, a VM that was stopped: the chain is as it was.
                    again = False
                    log.warning("%s; beginning again", error)
                elif beginning and chain.parent is not None:
                    # Not every engine says so when it is the bitmap. If it is not, this fails soon.
                    log.warning("%s; trying to read all disks in full", error)
                    chain = chain.in_full(f"what changed could not be read: {error}")
                    if _is_borne(error):
                        self._patience_to_begin = 0.0
                elif mode == "auto" and self._hybrid and isinstance(error, BackupFailedError):
                    log.warning("%s; trying a live backup", error)
                    mode = "live"
                else:
                    raise
            except (RefusedError, ConflictError) as error:
                self._check_policy(error)
                if isinstance(error, ConflictError) and error.passing:
                    # The backup that was waited for may be that of a run which was killed meanwhile.
                    if not self._clean_up():
                        raise
                elif self._vm.running:
                    raise
                else:
                    log.warning("%s; downloading the disks of the VM, which is down", error)
                    reading = self._reading = self._new_reading(choice)
                    reason = f"the engine did not back up the VM, which is down: {error}"
                    return reading.read_as_they_are(reason)
            self._vm = get_vm(self._engine, self._vm.id)
            # A disk may have been removed, or resized: perhaps that was why.
            choice = self._choose()

    def _other_chain(self, choice: Choice, chain: Chain, error: BrokenChain) -> Chain:
        """After this one was broken."""
        if error.code == HTTPStatus.BAD_REQUEST:
            # A backup of the same VM that has just ended has removed our checkpoint, and left its own.
            self._repository.refresh()
            self._catalog.sync(self._repository)
            found = self._find_chain(choice)
            if found.parent and chain.parent and found.parent.checkpoint != chain.parent.checkpoint:
                log.info("%s; starting from restore point %s instead", error, found.parent.point.id)
                return found
        log.warning("%s; reading all disks in full", error)
        return chain.in_full(str(error))

    def _new_reading(self, choice: Choice) -> Reading:
        options = self._options
        return Reading(
            repository=self._repository,
            engine=self._engine,
            vm=self._vm,
            choice=choice,
            connections=options.connections,
            patience=options.patience,
            patience_to_begin=self._patience_to_begin,
            quiesced=options.require_consistency and self._vm.running,
            audit=options.audit,
            progress=self._progress,
        )

    def _attempt(self, reading: Reading, chain: Chain, mode: Mode) -> Point:
        """One backup of the engine's. Raises VmfsError when no point was committed."""
        checkpoint = None
        try:
            with running_backup(
                self._engine,
                self._vm,
                [disk.id for disk in reading.choice.disks],
                description=self._mark,
                since=chain.parent.checkpoint if chain.parent else None,
                mode=mode,
                require_consistency=reading.quiesced,
            ) as backup:
                checkpoint = backup.checkpoint
                reading.read_backup(backup, chain)
        except BaseException as error:
            if reading.point is None:
                if checkpoint is not None:
                    self._drop(checkpoint, error)
                raise
            if not isinstance(error, EngineError):
                raise
            log.warning("the restore point is good, but the backup did not end well in the engine: %s", error)
        assert reading.point  # noqa: S101 - or there was an error
        return reading.point

    def _check_policy(self, error: VmfsError) -> None:
        """Raises PolicyError where the guest could not be quiesced, as the user requires."""
        if self._options.require_consistency and _CONSISTENCY.search(str(error)):
            raise PolicyError(
                f"{error}; see that the guest agent runs in the VM, or leave out --require-consistency"
            ) from None

    @property
    def _hybrid(self) -> bool:
        return self._vm.level is None or self._vm.level >= HYBRID_LEVEL

    def _drop(self, checkpoint: str, error: BaseException) -> None:
        """Of a backup that became no restore point, because of this error."""
        try:
            checkpoints.remove_checkpoint(self._engine.for_the_end(error), self._vm, checkpoint, limit=60)
        except EngineError as failure:
            # It is ours by its description; the next run that ends well removes it.
            log.debug("checkpoint %s stays for now: %s", checkpoint, failure)

    def _prune(self) -> list[str]:
        """Remove the checkpoints that no backup will start from again. Other backups of the VM may have
        begun, or ended, since this one began: what theirs left is looked for anew."""
        assert self._reading  # noqa: S101 - it has made the point
        try:
            present = checkpoints.list_checkpoints(self._engine, self._vm)
            in_use = checkpoints.of_live_runs(present, repository=self._short_id, alive=self._is_other_alive)
            self._catalog.sync(self._repository)
            chain = self._chain_of(self._reading.choice, present)
            tracked = checkpoints.tracked_disks(self._engine, self._vm)
            newest = {checkpoint for disk_id, checkpoint in chain.newest.items() if disk_id in tracked}
            return checkpoints.prune_checkpoints(
                self._engine,
                self._vm,
                present,
                keep=newest | in_use,
                own=chain.recorded,
                repository=self._short_id,
            )
        except VmfsError as error:
            log.warning("checkpoints that are not needed any more stay for now: %s", error)
            return []

    def _facts(self, aliases: list[str], **told: str) -> dict[str, str]:
        return hooks.facts(
            vm_name=self._vm.name, vm_id=self._vm.id, engine=self._engine.name, disks=aliases, **told
        )

    def _after_failure(self, aliases: list[str], error: BaseException) -> None:
        """The post command hears of it; that it fails as well does not hide why."""
        if self._options.post is None:
            return
        point = self._reading.point.id if self._reading and self._reading.point else ""
        told = self._facts(aliases, point=point, result="failure", error=str(error) or type(error).__name__)
        try:
            hooks.run_hook(self._options.post, told)
        except VmfsError as failure:
            log.warning("%s", failure)


def _is_borne(error: VmfsError) -> bool:
    """Whether it comes after all patience was used up."""
    return isinstance(error, PatienceError) or (isinstance(error, EngineError) and error.borne)
