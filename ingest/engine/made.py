"""What a restore has made in the engine, so that a failed one can take it back."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from ovirtsdk4 import types

from ingest.engine.cleanup import of_dead_runs, remove_disk
from ingest.engine.errors import EngineError, NotFoundError
from ingest.engine.marks import Mark
from ingest.engine.restore_plan import DiskPlan
from ingest.engine.session import Engine
from ingest.engine.values import found_by
from ingest.engine.vms import get_disk
from vmfs.errors import VmfsError

log = logging.getLogger(__name__)

_CREATE_LIMIT = 6 * 3600.0
"""Seconds. A preallocated disk is written while it is made."""
_REMOVE_LIMIT = 300.0
_RESTORED = "restored"
"""The description of a disk whose own is not known any more."""


class Made:
    """The disks and the VM that this restore has made, or may have."""

    def __init__(self, engine: Engine, mark: Mark) -> None:
        self._engine = engine
        self._mark = mark
        self._disks: dict[str, DiskPlan] = {}
        self._vm_id: str | None = None

    def create_disk(self, plan: DiskPlan) -> None:
        """A new disk, ready to be written to, with our mark as its description. Raises EngineError."""
        assert plan.domain is not None  # noqa: S101
        service = self._engine.services().disks_service()
        what = f"disk {plan.alias}"
        wished = types.Disk(
            id=plan.id,
            name=plan.name,
            description=str(self._mark),
            content_type=types.DiskContentType.DATA,
            format=types.DiskFormat.COW if plan.form == "cow" else types.DiskFormat.RAW,
            sparse=plan.sparse,
            provisioned_size=plan.disk.size,
            initial_size=min(plan.need, plan.disk.size) if plan.sparse and plan.form == "cow" else None,
            backup=types.DiskBackup.INCREMENTAL if plan.incremental else types.DiskBackup.NONE,
            wipe_after_delete=plan.wipe_after_delete,
            storage_domains=[types.StorageDomain(id=plan.domain.id)],
        )
        self._disks[plan.id] = plan
        one = service.disk_service(plan.id)

        def find() -> Any:
            # With the ids of the original, it may be that of another restore.
            found = found_by(one)
            return found if found is not None and found.description == str(self._mark) else None

        self._engine.create(what, lambda: service.add(wished), find)
        made = self._engine.wait(
            what, lambda: one.get(), lambda disk: _status(disk) != "locked", limit=_CREATE_LIMIT
        )
        if _status(made) != "ok":
            raise EngineError(f"{what}: the engine made it as {_status(made)}; see its events")

    def remove_disk(self, disk_id: str) -> None:
        """It is to be made once more. Raises EngineError."""
        self._remove_disk(self._engine, disk_id)

    def expect_vm(self, vm_id: str) -> None:
        """A VM of that id is being made."""
        self._vm_id = vm_id

    def describe(self) -> None:
        """Gives the disks the description that they are to keep. Until then they are ours to remove; so where
        that fails, the user must know."""
        for disk_id, plan in self._disks.items():
            self._describe(disk_id, plan.description)

    def take_back(self, error: BaseException, *, keep: bool) -> None:
        """After `error`: removes all that was made, or with `keep` says what it is. Raises nothing."""
        if keep:
            kept = [f"disk {disk_id} ({plan.alias})" for disk_id, plan in self._disks.items()]
            kept += [f"VM {self._vm_id}"] if self._vm_id else []
            if kept:
                log.warning("kept of the failed restore: %s", ", ".join(kept))
            for disk_id in self._disks:
                self._describe(disk_id, "of a failed restore")
            return
        engine = self._engine.for_the_end(error)
        try:
            if self._vm_id is not None:
                _remove_vm(engine, self._vm_id)
        except VmfsError as problem:
            log.warning("VM %s is left of the failed restore; remove it: %s", self._vm_id, problem)
        for disk_id, plan in self._disks.items():
            try:
                self._remove_disk(engine, disk_id)
            except VmfsError as problem:
                log.warning(
                    "disk %s (%s) is left of the failed restore; the next restore removes it: %s",
                    disk_id,
                    plan.alias,
                    problem,
                )

    def _remove_disk(self, engine: Engine, disk_id: str) -> None:
        """Also one that the engine is still making, or is removing itself. One of the same id that is not
        ours stays."""

        def status() -> str:
            try:
                disk = get_disk(engine, disk_id)
            except NotFoundError:
                return "gone"
            return disk.status if disk.description == str(self._mark) else "another's"

        end = engine.wait(f"disk {disk_id}", status, lambda now: now != "locked", limit=_REMOVE_LIMIT)
        if end not in ("gone", "another's"):
            remove_disk(engine, disk_id)

    def _describe(self, disk_id: str, text: str) -> None:
        service = self._engine.services().disks_service().disk_service(disk_id)
        try:
            self._engine.ask(
                f"disk {disk_id}", lambda: service.update(types.Disk(description=text)), repeat=True
            )
        except NotFoundError:
            return
        except EngineError as error:
            log.warning(
                "change the description of disk %s by hand, or a later restore may take it for one that was "
                "not finished: %s",
                disk_id,
                error,
            )


def adopt_disks(engine: Engine, *, repository: str, alive: Callable[[str], bool]) -> None:
    """Takes our mark off disks that a restore, killed at its very end, has left attached to a VM: they are in
    use, and must not be removed if they are detached one day. `repository` begins the repository's id, 8 hex
    digits; `alive` tells of the id of a run whether it is going on."""
    service = engine.services().disks_service()

    def attached() -> list[Any]:
        found = engine.ask("disks", lambda: service.list(search="description=vmfs*"), repeat=True)
        return [disk for disk in found if disk.vms]

    for disk in of_dead_runs(attached, repository=repository, alive=alive):
        one = service.disk_service(disk.id)
        try:
            engine.ask(
                f"disk {disk.id}",
                lambda: one.update(types.Disk(description=_RESTORED)),  # noqa: B023
                repeat=True,
            )
        except EngineError as error:
            log.warning("the description of disk %s is still that of a restore: %s", disk.id, error)


def _remove_vm(engine: Engine, vm_id: str) -> None:
    """Without its disks. A VM that is still being made is waited for."""
    service = engine.services().vms_service().vm_service(vm_id)
    what = f"VM {vm_id}"

    def status() -> str:
        found = found_by(service)
        return "gone" if found is None else _status(found)

    if engine.wait(what, status, lambda now: now != "image_locked", limit=_REMOVE_LIMIT) == "gone":
        return
    try:
        engine.ask(what, lambda: service.remove(detach_only=True), repeat=True)
    except NotFoundError:
        return
    engine.wait(what, status, lambda now: now == "gone", limit=_REMOVE_LIMIT)


def _status(found: Any) -> str:
    return str(found.status.value) if found.status else "ok"
