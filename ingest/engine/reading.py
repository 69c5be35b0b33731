"""The disks of a VM, read into one restore point: from a backup of the engine's, or as they are.

The point is committed when all data are in the repository, and not before; whatever ends a reading earlier
leaves none.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime

from ingest.audit import Audit, Finding
from ingest.engine.backups import Backup
from ingest.engine.choice import Choice
from ingest.engine.opening import Opened, opened_sources
from ingest.engine.parents import Chain, Parent, full_reason
from ingest.engine.session import Engine
from ingest.engine.vms import EngineDisk, EngineVm, get_vm, vm_ovf
from ingest.pipeline import PlannedDisk, Progress, ingest
from vmfs.format.manifest import Consistency, Vm
from vmfs.repo.repository import Point, Repository

log = logging.getLogger(__name__)

OVF = "vm.ovf"
FACTS = "vm.json"
"""What the OVF does not say and a restore needs."""


@dataclass(slots=True, kw_only=True)
class Reading:
    """To be used once. `connections` are those to each disk. For `patience` seconds a host that does not
    answer is borne, and for `patience_to_begin` one that lets no transfer begin. `quiesced` tells that the
    engine makes no backup of the guest unless it has frozen its file systems.

    Afterwards, whether or not it raised an error: `begun` tells whether all was open, so that an error is not
    one of the beginning; `point` is what was committed.
    """

    repository: Repository
    engine: Engine
    vm: EngineVm
    choice: Choice
    connections: int
    patience: float
    patience_to_begin: float
    quiesced: bool
    audit: Audit | None
    progress: Callable[[Progress], None]
    begun: bool = False
    point: Point | None = None
    findings: list[Finding] = field(default_factory=list)

    def read_backup(self, backup: Backup, chain: Chain) -> Point:
        """From a backup that is ready: what changed since the chain's parent, and in full what cannot be
        read otherwise. Raises VmfsError."""
        # Not before the content was fixed: who asks for a time gets nothing from after it.
        fixed = datetime.now(UTC)
        disks = self.choice.disks
        why = {disk.id: full_reason(disk, disk.size, chain, backup.incremental) for disk in disks}
        artifacts = self._artifacts(backup.checkpoint)
        with opened_sources(
            self.engine,
            self.vm,
            disks,
            dirty=[key for key, reason in why.items() if reason is None and chain.parent is not None],
            backup_id=backup.id,
            host_id=backup.host_id,
            patience=self.patience,
            patience_to_begin=self.patience_to_begin,
        ) as opened:
            planned = [
                self._plan_by_chain(disk, opened[disk.id], chain, why[disk.id], backup) for disk in disks
            ]
            return self._ingest(planned, chain.parent, artifacts, fixed, self._consistency())

    def read_as_they_are(self, reason: str) -> Point:
        """Of a VM that is down, each disk in full by itself, for that reason: the engine locks them, so that
        it cannot be started. Raises VmfsError."""
        fixed = datetime.now(UTC)
        artifacts = self._artifacts(None)
        with opened_sources(
            self.engine,
            self.vm,
            self.choice.disks,
            dirty=(),
            patience=self.patience,
            patience_to_begin=self.patience_to_begin,
        ) as opened:
            planned = [self._plan(disk, opened[disk.id], reason) for disk in self.choice.disks]
            return self._ingest(planned, None, artifacts, fixed, "offline")

    def _plan_by_chain(
        self, disk: EngineDisk, opened: Opened, chain: Chain, why: str | None, backup: Backup
    ) -> PlannedDisk:
        source, parent = opened.source, chain.parent
        reason = why or opened.reason or full_reason(disk, source.size, chain, backup.incremental)
        base = parent.disk(disk.id) if parent and reason is None else None
        if parent and reason:
            # Raw disks always are.
            level = logging.INFO if disk.format == "raw" else logging.WARNING
            log.log(level, "disk %s is read in full: %s", source.name, reason)
        planned = self._plan(disk, opened, reason)
        return planned._replace(base=base, checkpoint=None if disk.format == "raw" else backup.checkpoint)

    def _plan(self, disk: EngineDisk, opened: Opened, reason: str | None) -> PlannedDisk:
        return PlannedDisk(
            alias=disk.alias,
            source=opened.source,
            full_reason=reason,
            id=disk.id,
            bus=disk.interface,
            boot_order=1 if disk.bootable else None,
            connections=min(self.connections, opened.source.max_readers),
        )

    def _ingest(
        self,
        planned: list[PlannedDisk],
        parent: Parent | None,
        artifacts: Mapping[str, bytes],
        fixed: datetime,
        consistency: Consistency,
    ) -> Point:
        self.begun = True
        self.point = ingest(
            self.repository,
            Vm(name=self.vm.name, id=self.vm.id, engine=self.engine.id, cluster=self.vm.cluster),
            planned,
            time=fixed,
            parent=parent.point if parent else None,
            artifacts=artifacts,
            consistency=consistency,
            progress=self.progress,
            audit=self.audit,
            audited=self.findings.append,
        )
        return self.point

    def _artifacts(self, checkpoint: str | None) -> dict[str, bytes]:
        left_out = self.choice.left_out
        told = {
            "version": 1,
            "engine": {"id": self.engine.id, "name": self.engine.name},
            "vm": asdict(self.vm),
            "checkpoint": checkpoint,
            "disks": [asdict(disk) for disk in self.choice.disks],
            "left_out": [{"alias": alias, "reason": reason} for alias, reason in left_out],
        }
        text = json.dumps(told, indent=2, sort_keys=True, ensure_ascii=False)
        return {OVF: vm_ovf(self.engine, self.vm), FACTS: text.encode(errors="replace")}

    def _consistency(self) -> Consistency:
        if not self.vm.running and not get_vm(self.engine, self.vm.id).running:
            return "offline"
        return "filesystem" if self.quiesced else "crash"
