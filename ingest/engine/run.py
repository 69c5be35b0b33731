"""The backup of one VM, from its beginning to its end.

    clean up what an interrupted run left → pre command → backup begun and ready → OVF, transfers, sources
    → all data read → **point committed** → transfers and backup finalized → old checkpoints removed
    → post command

A point is committed only when all of its data are in the repository. Whatever ends a run before that leaves
no point, and its checkpoint is removed; what ends it after leaves a good one, and the next run ends the
backup in the engine.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial

from ingest.audit import Audit, Finding
from ingest.engine import checkpoints, hooks
from ingest.engine.backups import HYBRID_LEVEL, Backup, Mode, running_backup
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
from ingest.engine.opening import Opened, opened_sources
from ingest.engine.parents import Chain, Parent, find_chain, full_reason
from ingest.engine.runs import Run, is_alive
from ingest.engine.session import Engine
from ingest.engine.vms import EngineDisk, EngineVm, find_vm, get_vm, vm_disks, vm_ovf
from ingest.pipeline import PlannedDisk, Progress, ingest
from ingest.sources.base import SourceError
from ingest.sources.imageio import PATIENCE
from vmfs.catalog.catalog import Catalog
from vmfs.errors import VmfsError
from vmfs.format.manifest import Consistency, Vm, check_name
from vmfs.repo.repository import Point, Repository

log = logging.getLogger(__name__)

OVF = "vm.ovf"
FACTS = "vm.json"
"""What the OVF does not say and a restore needs."""
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
    with Run() as run:
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
        self._mark = str(make_mark(run.id, repository.id))
        self._findings: list[Finding] = []
        self._point: Point | None = None
        self._reading = False
        """Whether all was open, so that an error is not one of the beginning."""

    def run(self) -> Outcome:
        cleaned = clean_up_backups(
            self._engine, self._vm, repository=self._short_id, alive=partial(is_alive, self._repository)
        )
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
            cleaned=cleaned,
            findings=self._findings,
            removed=removed,
        )

    def _choose(self) -> Choice:
        return choose_disks(self._vm, vm_disks(self._engine, self._vm), self._options.disks)

    def _back_up(self, choice: Choice) -> tuple[Point, list[str]]:
        present = checkpoints.list_checkpoints(self._engine, self._vm)
        chain = find_chain(
            self._repository,
            self._catalog,
            engine_id=self._engine.id,
            vm_id=self._vm.id,
            # One that was qcow2 by a snapshot may be raw again: no checkpoint is of use to it.
            disks=[disk.id for disk in choice.disks if disk.format != "raw"],
            valid=[item.id for item in present if item.valid],
            present=[item.id for item in present],
        )
        point = self._persist(choice, chain)
        return point, self._prune(chain, point)

    def _persist(self, choice: Choice, chain: Chain) -> Point:
        """As often as there is another way to do it."""
        parent = None if self._options.full else chain.parent
        reason = None if self._options.full else chain.reason
        mode = self._options.mode
        again = True
        while True:
            try:
                return self._attempt(choice, parent, reason, mode)
            except BrokenChain as error:
                if parent is None:
                    raise
                reason, parent = self._break(error)
            except (BackupFailedError, TransferError, SourceError) as error:
                self._check_policy(error)
                if again and (self._reading or not isinstance(error, SourceError)):
                    # A host or an engine that was restarted, a VM that was stopped: the chain is as it was.
                    again = False
                    log.warning("%s; beginning again", error)
                elif parent is not None and not self._reading and not isinstance(error, SourceError):
                    reason, parent = self._break(error)
                elif mode == "auto" and self._hybrid and isinstance(error, BackupFailedError):
                    log.warning("%s; trying a live backup", error)
                    mode = "live"
                else:
                    raise
            except (RefusedError, ConflictError) as error:
                self._check_policy(error)
                if self._vm.running or (isinstance(error, ConflictError) and error.passing):
                    raise
                log.warning("%s; downloading the disks of the VM, which is down", error)
                return self._download(choice, f"the engine did not back up the VM, which is down: {error}")
            self._vm = get_vm(self._engine, self._vm.id)
            # A disk may have been removed, or resized: perhaps that was why.
            choice = self._choose()

    def _break(self, error: VmfsError) -> tuple[str, None]:
        log.warning("%s; reading all disks in full", error)
        return str(error), None

    def _attempt(self, choice: Choice, parent: Parent | None, reason: str | None, mode: Mode) -> Point:
        """One backup of the engine's. Raises VmfsError when no point was committed."""
        self._reading = False
        self._point = None
        checkpoint = None
        try:
            with running_backup(
                self._engine,
                self._vm,
                [disk.id for disk in choice.disks],
                description=self._mark,
                since=parent.checkpoint if parent else None,
                mode=mode,
                require_consistency=self._options.require_consistency and self._vm.running,
            ) as backup:
                checkpoint = backup.checkpoint
                # Not before the content was fixed: who asks for a time gets nothing from after it.
                fixed = datetime.now(UTC)
                self._read(choice, parent, reason, backup, fixed)
        except BaseException as error:
            if self._point is None:
                if checkpoint is not None:
                    self._drop(checkpoint, error)
                raise
            if not isinstance(error, EngineError):
                raise
            log.warning("the restore point is good, but the backup did not end well in the engine: %s", error)
        assert self._point  # noqa: S101 - or there was an error
        return self._point

    def _read(
        self, choice: Choice, parent: Parent | None, reason: str | None, backup: Backup, fixed: datetime
    ) -> None:
        why = {
            disk.id: full_reason(disk, disk.size, parent, backup.incremental) or reason
            for disk in choice.disks
        }
        artifacts = self._artifacts(choice, backup.checkpoint)
        with opened_sources(
            self._engine,
            self._vm,
            choice.disks,
            dirty=[key for key, text in why.items() if text is None and parent is not None],
            backup_id=backup.id,
            host_id=backup.host_id,
            patience=self._options.patience,
        ) as opened:
            planned = [
                self._plan(disk, opened[disk.id], parent, why[disk.id], backup) for disk in choice.disks
            ]
            self._ingest(planned, parent, artifacts, fixed, self._consistency())

    def _plan(
        self, disk: EngineDisk, opened: Opened, parent: Parent | None, why: str | None, backup: Backup
    ) -> PlannedDisk:
        source = opened.source
        reason = why or opened.reason or full_reason(disk, source.size, parent, backup.incremental)
        base = parent.disk(disk.id) if parent and reason is None else None
        if parent and reason:
            # Raw disks always are.
            level = logging.INFO if disk.format == "raw" else logging.WARNING
            log.log(level, "disk %s is read in full: %s", source.name, reason)
        return PlannedDisk(
            alias=disk.alias,
            source=source,
            base=base,
            checkpoint=None if disk.format == "raw" else backup.checkpoint,
            full_reason=reason,
            id=disk.id,
            bus=disk.interface,
            boot_order=1 if disk.bootable else None,
            connections=min(self._options.connections, source.max_readers),
        )

    def _download(self, choice: Choice, reason: str) -> Point:
        """Of a VM that is down, each disk by itself: the engine locks them, so that it cannot be started."""
        self._point = None
        fixed = datetime.now(UTC)
        artifacts = self._artifacts(choice, None)
        with opened_sources(
            self._engine, self._vm, choice.disks, dirty=(), patience=self._options.patience
        ) as opened:
            planned = [
                PlannedDisk(
                    alias=disk.alias,
                    source=opened[disk.id].source,
                    full_reason=reason,
                    id=disk.id,
                    bus=disk.interface,
                    boot_order=1 if disk.bootable else None,
                    connections=min(self._options.connections, opened[disk.id].source.max_readers),
                )
                for disk in choice.disks
            ]
            return self._ingest(planned, None, artifacts, fixed, "offline")

    def _ingest(
        self,
        planned: list[PlannedDisk],
        parent: Parent | None,
        artifacts: Mapping[str, bytes],
        fixed: datetime,
        consistency: Consistency,
    ) -> Point:
        self._reading = True
        self._findings.clear()
        self._point = ingest(
            self._repository,
            Vm(name=self._vm.name, id=self._vm.id, engine=self._engine.id, cluster=self._vm.cluster),
            planned,
            time=fixed,
            parent=parent.point if parent else None,
            artifacts=artifacts,
            consistency=consistency,
            progress=self._progress,
            audit=self._options.audit,
            audited=self._findings.append,
        )
        return self._point

    def _artifacts(self, choice: Choice, checkpoint: str | None) -> dict[str, bytes]:
        told = {
            "version": 1,
            "engine": {"id": self._engine.id, "name": self._engine.name},
            "vm": asdict(self._vm),
            "checkpoint": checkpoint,
            "disks": [asdict(disk) for disk in choice.disks],
            "left_out": [{"alias": alias, "reason": reason} for alias, reason in choice.left_out],
        }
        text = json.dumps(told, indent=2, sort_keys=True, ensure_ascii=False)
        return {OVF: vm_ovf(self._engine, self._vm), FACTS: text.encode(errors="replace")}

    def _consistency(self) -> Consistency:
        if not self._vm.running and not get_vm(self._engine, self._vm.id).running:
            return "offline"
        return "filesystem" if self._options.require_consistency and self._vm.running else "crash"

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

    def _prune(self, chain: Chain, point: Point) -> list[str]:
        """Remove the checkpoints that no backup will start from again."""
        newest = dict(chain.newest)
        newest.update({disk.id: disk.checkpoint for disk in point.manifest.disks if disk.checkpoint})
        try:
            found = vm_disks(self._engine, self._vm)
            of_use = {disk.id for disk in found if disk.format != "raw"}
            return checkpoints.prune_checkpoints(
                self._engine,
                self._vm,
                keep={checkpoint for disk_id, checkpoint in newest.items() if disk_id in of_use},
                own=chain.recorded,
                repository=self._short_id,
            )
        except EngineError as error:
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
        point = self._point.id if self._point else ""
        told = self._facts(aliases, point=point, result="failure", error=str(error) or type(error).__name__)
        try:
            hooks.run_hook(self._options.post, told)
        except VmfsError as failure:
            log.warning("%s", failure)
