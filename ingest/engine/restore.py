"""Restoring: disks made and uploaded, and a VM made of them; or what was made taken back."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from ingest.engine.cleanup import clean_up_disks
from ingest.engine.errors import EngineError, TransferError
from ingest.engine.made import Made, adopt_disks
from ingest.engine.marks import make_mark, short_id
from ingest.engine.newvm import attach_disks, detach_disks, import_vm, plan_network, start_vm
from ingest.engine.restore_plan import DiskPlan, RestoreOptions, make_plan
from ingest.engine.runs import Run, is_alive
from ingest.engine.session import Engine
from ingest.engine.storage import data_domains
from ingest.engine.transfers import upload
from ingest.engine.upload import TransferLostError, Uploaded, UploadError, upload_disk
from vmfs.errors import VmfsError
from vmfs.repo.repository import Point, Repository

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called with the alias of a disk, the bytes of its data that are done, and all of them."""
_UPLOADS = 3
"""How often a disk is begun, where the engine has ended the transfer in the middle."""
_TRANSFERS = 4
"""How many transfers in a row may bring an upload no further."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoredDisk:
    """Sizes in bytes: `sent` of data, `zeroed` without sending."""

    alias: str
    id: str
    name: str
    size: int
    format: str
    storage_domain: str | None
    sent: int
    zeroed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """`vm_id` is None where the content of a disk was replaced. `wanted_name` differs from `vm_name` if that
    was taken."""

    vm_id: str | None
    vm_name: str | None
    wanted_name: str | None
    started: bool
    disks: tuple[RestoredDisk, ...]
    warnings: tuple[str, ...]


def restore(
    engine: Engine,
    repository: Repository,
    point: Point,
    options: RestoreOptions,
    *,
    progress: Progress = lambda alias, done, total: None,
) -> Restored:
    """Raises VmfsError; KeyboardInterrupt passes through. Either way nothing is left of what was made, unless
    `options.keep_failed`; of an existing disk that was written to, the content is undefined then."""
    with ExitStack() as held:
        run = held.enter_context(Run())
        _hold_lease(repository, held)
        _clean_up(engine, repository)
        plan = make_plan(engine, repository, point, options)
        nics, warnings = plan_network(engine, plan) if plan.ovf else ({}, [])
        for warning in warnings:
            log.warning("%s", warning)
        made = Made(engine, make_mark(run.id, repository.id))
        attached: tuple[DiskPlan, ...] = ()
        try:
            disks = [_restore_disk(engine, repository, disk, made, options, progress) for disk in plan.disks]
            if plan.ovf:
                made.expect_vm(plan.vm_id)
                import_vm(engine, plan, nics)
            elif plan.attach_to:
                attached = plan.disks
                attach_disks(engine, plan.attach_to.id, plan.attach_to.name, plan.disks)
        except BaseException as error:
            if plan.attach_to and attached and not options.keep_failed:
                detach_disks(engine.for_the_end(error), plan.attach_to.id, attached)
            made.take_back(error, keep=options.keep_failed)
            raise
        made.describe()
        if plan.ovf and options.start:
            start_vm(engine, plan.vm_id, plan.name)
    vm = plan.attach_to
    return Restored(
        vm_id=plan.vm_id or (vm.id if vm else None),
        vm_name=plan.name or (vm.name if vm else None),
        wanted_name=plan.wanted_name or None,
        started=bool(plan.ovf) and options.start,
        disks=tuple(disks),
        warnings=tuple(warnings),
    )


def _restore_disk(
    engine: Engine,
    repository: Repository,
    plan: DiskPlan,
    made: Made,
    options: RestoreOptions,
    progress: Progress,
) -> RestoredDisk:
    for left in reversed(range(_UPLOADS)):
        if plan.target is None:
            made.create_disk(plan)
        try:
            done = _upload(engine, repository, plan, options, progress)
            break
        except TransferError as error:
            # The engine ends an upload that it takes for abandoned, and removes a new disk with it.
            if not left:
                raise
            log.warning("%s; beginning again", error)
            if plan.target is None:
                made.remove_disk(plan.id)
    return RestoredDisk(
        alias=plan.alias,
        id=plan.id,
        name=plan.name,
        size=plan.disk.size,
        format=plan.form,
        storage_domain=plan.domain.name if plan.domain else None,
        sent=done.sent,
        zeroed=done.zeroed,
    )


def _upload(
    engine: Engine, repository: Repository, plan: DiskPlan, options: RestoreOptions, progress: Progress
) -> Uploaded:
    """By one transfer, or by another that goes on where the first had to end."""
    total = min(plan.disk.allocated, plan.disk.size)
    progress(plan.alias, 0, total)
    done = Uploaded()
    stuck = 0
    while True:
        before = done.flushed
        with upload(engine, disk_id=plan.id, keep_disk=plan.target is not None) as transfer:
            try:
                return upload_disk(
                    repository.open_disk(plan.disk),
                    transfer,
                    blank=plan.blank,
                    granule=plan.granule,
                    ca_file=engine.settings.ca_file,
                    insecure=engine.settings.insecure,
                    connections=options.connections,
                    zeros_after=plan.target.size - plan.disk.size if plan.target else 0,
                    patience=engine.patience,
                    progress=lambda now: progress(plan.alias, now, total),
                    done=done,
                )
            except TransferLostError as error:
                # A daemon that is restarted has forgotten its tickets, and the engine does not give them to
                # it again; nor does it notice that an NBD server has died. The transfer is ended as if all
                # had gone well, so that the disk stays.
                stuck = stuck + 1 if done.flushed == before else 0
                if stuck >= _TRANSFERS:
                    raise _explained(engine, plan, done, error) from error
                log.warning("%s; going on with another transfer", error)


def _explained(engine: Engine, plan: DiskPlan, done: Uploaded, error: UploadError) -> UploadError:
    """imageio does not tell its clients that there is no space left."""
    domain_id = plan.domain.id if plan.domain else plan.target and plan.target.storage_domain_id
    try:
        domains = [domain for domain in data_domains(engine, None) if domain.id == domain_id]
    except EngineError:
        return error
    left = max(0, plan.disk.allocated - done.data)
    for domain in domains:
        if domain.available is not None and domain.available < left:
            return UploadError(
                f"{error}; storage domain {domain.name} has {domain.available} bytes free and the disk needs "
                f"{left} more: free some, or choose another with --storage-domain"
            )
    return error


def _clean_up(engine: Engine, repository: Repository) -> None:
    """What restores from this repository have left that were killed."""

    def alive(run_id: str) -> bool:
        return is_alive(repository, run_id)

    clean_up_disks(engine, repository=short_id(repository.id), alive=alive)
    adopt_disks(engine, repository=short_id(repository.id), alive=alive)


def _hold_lease(repository: Repository, held: ExitStack) -> None:
    try:
        held.enter_context(repository.lease("mount"))
    except VmfsError as error:
        # Whoever reads needs no permission to write; without a lease, prune cannot know of it.
        log.info("restoring without a lease: %s", error)
