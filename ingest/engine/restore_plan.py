"""What a restore is to do, all of it decided and checked before anything is made."""

from __future__ import annotations

import json
import logging
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ingest.engine.errors import NotFoundError
from ingest.engine.marks import read_mark
from ingest.engine.ovf import Ovf, OvfDisk, OvfError, parse_ovf
from ingest.engine.session import Engine
from ingest.engine.sparse import BLOCK, CLUSTER
from ingest.engine.storage import (
    StorageDomain,
    check_space,
    choose_domain,
    data_domains,
    find_named,
    space_needed,
)
from ingest.engine.vms import EngineDisk, EngineVm, find_vm, get_disk, get_vm, list_vms, vm_disks
from vmfs.errors import IntegrityError, UsageError, VmfsError
from vmfs.format.manifest import Disk
from vmfs.repo.repository import Point, Repository

log = logging.getLogger(__name__)

OVF_NAME = "vm.ovf"
FACTS_NAME = "vm.json"
Form = Literal["cow", "raw"]
Allocation = Literal["sparse", "preallocated"]
_MAX_VM_NAME = 255
# The engine's own rule (ValidationUtils.NO_SPECIAL_CHARACTERS_WITH_DOT).
_VM_NAME = re.compile(r"[\w.+-]+")
_MAX_FACTS = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreOptions:
    """What the user asks for. Names of engine objects may be ids. `profiles` are vNIC profiles by the name of
    the old one, or for all NICs under the empty name. `into_disk` is the id of a disk, `attach_to` a VM; with
    neither, a VM is made."""

    name: str | None = None
    cluster: str | None = None
    storage_domain: str | None = None
    form: Form | None = None
    allocation: Allocation | None = None
    disks: Sequence[str] = ()
    into_disk: str | None = None
    attach_to: str | None = None
    keep_mac: bool = False
    keep_ids: bool = False
    profiles: Mapping[str, str] = field(default_factory=dict)
    start: bool = False
    keep_failed: bool = False
    connections: int = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskPlan:
    """A disk of the restore point and what it becomes. `id` is that of the new disk, or of the `target`, an
    existing disk whose content is replaced. `blank` when it reads as zeros before anything is written."""

    disk: Disk
    id: str
    name: str
    description: str
    form: Form
    sparse: bool
    incremental: bool
    wipe_after_delete: bool
    interface: str
    bootable: bool
    active: bool
    read_only: bool
    pass_discard: bool
    domain: StorageDomain | None
    blank: bool
    need: int
    target: EngineDisk | None = None

    @property
    def alias(self) -> str:
        return self.disk.alias

    @property
    def granule(self) -> int:
        """The smallest run of zeros (bytes) that is worth a hole."""
        return BLOCK if self.form == "raw" and self.sparse else CLUSTER


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`ovf` and `ovf_data` are None where no VM is made. `wanted_name` is what the new VM's name would be if
    it were not taken. `data_center_id` is None where the engine does not tell."""

    point: Point
    options: RestoreOptions
    disks: tuple[DiskPlan, ...]
    name: str = ""
    wanted_name: str = ""
    vm_id: str = ""
    cluster_id: str = ""
    cluster: str = ""
    data_center_id: str | None = None
    ovf: Ovf | None = None
    ovf_data: bytes | None = None
    attach_to: EngineVm | None = None


def make_plan(engine: Engine, repository: Repository, point: Point, options: RestoreOptions) -> Plan:
    """Raises UsageError for what cannot be, OvfError for an OVF that cannot be used, EngineError, and
    VmfsError where the space does not suffice."""
    disks = _chosen(point, options.disks)
    if options.into_disk is not None:
        return _plan_into(engine, repository, point, options, disks)
    if options.attach_to is not None:
        return _plan_attached(engine, repository, point, options, disks)
    return _plan_vm(engine, repository, point, options, disks)


def _plan_vm(
    engine: Engine, repository: Repository, point: Point, options: RestoreOptions, disks: list[Disk]
) -> Plan:
    data = _artifact(repository, point, OVF_NAME)
    if data is None:
        raise VmfsError(
            f"restore point {point.id} has no {OVF_NAME}, so no VM can be made of it; restore its disks with "
            "--attach-to or --into-disk"
        )
    ovf = parse_ovf(data)
    cluster = _find_cluster(engine, options.cluster, point.manifest.vm.cluster, ovf.cluster)
    center = cluster.data_center.id if cluster.data_center else None
    wanted = options.name or ovf.name
    if not _VM_NAME.fullmatch(wanted) or len(wanted) > _MAX_VM_NAME:
        raise UsageError(
            f"{wanted!a} cannot be the name of a VM; give --as NAME, of letters, digits, '.', '_', '-' "
            "and '+'"
        )
    name = free_name(wanted, {vm.name for vm in list_vms(engine)})
    if options.keep_ids and _exists(engine, ovf.vm_id):
        raise UsageError(f"the engine still has a VM of id {ovf.vm_id}; leave out --keep-ids")
    planned = _new_disks(engine, repository, point, options, disks, center, ovf)
    return Plan(
        point=point,
        options=options,
        disks=planned,
        name=name,
        wanted_name=wanted,
        vm_id=ovf.vm_id if options.keep_ids else str(uuid.uuid4()),
        cluster_id=cluster.id,
        cluster=cluster.name,
        data_center_id=center,
        ovf=ovf,
        ovf_data=data,
    )


def _plan_attached(
    engine: Engine, repository: Repository, point: Point, options: RestoreOptions, disks: list[Disk]
) -> Plan:
    assert options.attach_to is not None  # noqa: S101
    vm = find_vm(engine, options.attach_to)
    center = None
    if vm.cluster_id is not None:
        cluster = _find_cluster(engine, vm.cluster_id, None, None)
        center = cluster.data_center.id if cluster.data_center else None
    there = vm_disks(engine, vm)
    planned = _new_disks(engine, repository, point, options, disks, center, _ovf_if_usable(repository, point))
    if any(disk.bootable for disk in there):
        # A VM boots from one disk.
        planned = tuple(replace(disk, bootable=False) for disk in planned)
    return Plan(point=point, options=options, disks=planned, data_center_id=center, attach_to=vm)


def _plan_into(
    engine: Engine, repository: Repository, point: Point, options: RestoreOptions, disks: list[Disk]
) -> Plan:
    assert options.into_disk is not None  # noqa: S101
    if len(disks) != 1:
        known = ", ".join(repr(disk.alias) for disk in disks)
        raise UsageError(f"--into-disk takes one disk; choose it with --disk, one of {known}")
    (disk,) = disks
    target = _existing(engine, options.into_disk)
    what = f"disk {target.name} ({target.id})"
    if target.storage_type != "image" or target.content_type != "data":
        raise UsageError(f"{what} cannot be written to: it is {target.left_out or target.content_type}")
    if target.size < disk.size:
        raise UsageError(
            f"{what} has {target.size} bytes and {disk.alias} needs {disk.size}; extend it in the "
            "engine first"
        )
    if target.status != "ok":
        raise VmfsError(f"{what} is {target.status}; wait until the engine has it as ok")
    for vm in _users(engine, target):
        if vm.running:
            raise UsageError(f"{what} is attached to VM {vm.name}, which is {vm.status}; shut it down first")
    if target.size > disk.size:
        log.warning("%s is larger than %s; what is behind its end becomes zeros", what, disk.alias)
    planned = DiskPlan(
        disk=disk,
        id=target.id,
        name=target.name,
        description=target.description,
        form="cow" if target.format == "cow" else "raw",
        sparse=target.sparse,
        incremental=target.incremental,
        wipe_after_delete=target.wipe_after_delete,
        interface=target.interface or "virtio_scsi",
        bootable=target.bootable,
        active=target.active,
        read_only=target.read_only,
        pass_discard=False,
        domain=None,
        blank=False,
        need=0,
        target=target,
    )
    return Plan(point=point, options=options, disks=(planned,))


def _new_disks(
    engine: Engine,
    repository: Repository,
    point: Point,
    options: RestoreOptions,
    disks: list[Disk],
    center: str | None,
    ovf: Ovf | None,
) -> tuple[DiskPlan, ...]:
    domains = data_domains(engine, center)
    facts = _facts(repository, point)
    planned = tuple(
        _new_disk(disk, ovf.disk(disk.id) if ovf else None, facts.get(disk.id, {}), domains, options)
        for disk in disks
    )
    if options.keep_ids:
        for disk in planned:
            if _disk_exists(engine, disk.id):
                raise UsageError(
                    f"the engine still has a disk of id {disk.id} ({disk.alias}); leave out --keep-ids, or "
                    "restore into it with --into-disk"
                )
    check_space((disk.domain, disk.need) for disk in planned if disk.domain)
    return planned


def _new_disk(
    disk: Disk,
    told: OvfDisk | None,
    facts: Mapping[str, Any],
    domains: list[StorageDomain],
    options: RestoreOptions,
) -> DiskPlan:
    """`facts` are vm.json's; the OVF comes before them, and what the user asks for before both."""
    original = [told.storage_domain_id if told else None, _text(facts, "storage_domain_id")]
    domain = choose_domain(domains, options.storage_domain, [*original, _text(facts, "storage_domain")])
    form = options.form or (told and told.format) or _text(facts, "format") or "cow"
    was_sparse = told.sparse if told and told.sparse is not None else facts.get("sparse")
    sparse = options.allocation == "sparse" if options.allocation else was_sparse is not False
    if form == "raw" and domain.block and sparse:
        if options.allocation:
            raise UsageError(
                f"a raw disk on storage domain {domain.name} cannot be sparse; use --format cow, or "
                "--allocation preallocated"
            )
        sparse = False
    bus = (told and told.interface) or _text(facts, "interface") or disk.bus
    incremental = facts.get("incremental")
    description = (told and told.description) or _text(facts, "description") or ""
    return DiskPlan(
        disk=disk,
        id=disk.id.lower() if options.keep_ids else str(uuid.uuid4()),
        name=(told and told.alias) or _text(facts, "name") or disk.alias,
        description="" if read_mark(description) else description,
        form="raw" if form == "raw" else "cow",
        sparse=sparse,
        incremental=form != "raw" and incremental is not False,
        wipe_after_delete=told.wipe_after_delete if told else facts.get("wipe_after_delete") is True,
        interface=bus if bus in ("virtio", "virtio_scsi", "ide", "sata", "spapr_vscsi") else "virtio_scsi",
        bootable=told.bootable if told else (facts.get("bootable") is True or disk.boot_order == 1),
        active=facts.get("active") is not False,
        read_only=told.read_only if told else facts.get("read_only") is True,
        pass_discard=bool(told and told.pass_discard),
        domain=domain,
        # A logical volume holds what the storage held there before; an image file reads as zeros.
        blank=not domain.block or form != "raw",
        need=space_needed(disk.size, disk.allocated, form, sparse=sparse),
    )


def free_name(wanted: str, taken: set[str]) -> str:
    """The name, with a number behind it if it is taken."""
    name, number = wanted, 0
    while name in taken:
        number += 1
        suffix = f"-{number}"
        name = wanted[: _MAX_VM_NAME - len(suffix)] + suffix
    return name


def _chosen(point: Point, wanted: Sequence[str]) -> list[Disk]:
    """Disks by alias or id; all of them if none is named."""
    disks = point.manifest.disks
    chosen = []
    for word in wanted:
        found = point.manifest.disk(word) or next((disk for disk in disks if disk.id == word), None)
        if found is None:
            known = ", ".join(repr(disk.alias) for disk in disks) or "none"
            raise UsageError(f"restore point {point.id} has no disk {word!a}; it has {known}")
        if found not in chosen:
            chosen.append(found)
    return chosen or list(disks)


def _find_cluster(engine: Engine, wanted: str | None, *original: str | None) -> Any:
    found = engine.ask("clusters", lambda: engine.services().clusters_service().list(), repeat=True)
    if wanted is not None:
        return find_named("cluster", found, wanted)
    for told in original:
        for cluster in found:
            if told and told in (cluster.id, cluster.name):
                return cluster
    if len(found) == 1:
        return found[0]
    there = ", ".join(sorted(repr(cluster.name) for cluster in found)) or "none"
    told = next((name for name in original if name), None)
    raise UsageError(f"the engine has no cluster {told!a}; choose one with --cluster: there is {there}")


def _artifact(repository: Repository, point: Point, name: str) -> bytes | None:
    for artifact in point.manifest.artifacts:
        if artifact.name == name:
            return repository.read_artifact(artifact)
    return None


def _ovf_if_usable(repository: Repository, point: Point) -> Ovf | None:
    """For disks alone: an OVF that cannot be used is no reason to fail."""
    try:
        data = _artifact(repository, point, OVF_NAME)
        return parse_ovf(data) if data is not None else None
    except (OvfError, IntegrityError) as error:
        log.warning("%s; the disks are made by what else is known of them", error)
        return None


def _facts(repository: Repository, point: Point) -> dict[str, dict[str, Any]]:
    """What vm.json says of each disk, by id; what it does not is left out."""
    try:
        data = _artifact(repository, point, FACTS_NAME)
        if data is None or len(data) > _MAX_FACTS:
            return {}
        tree = json.loads(data)
        disks = tree.get("disks", [])
        return {disk["id"]: disk for disk in disks if isinstance(disk, dict) and "id" in disk}
    except (ValueError, AttributeError, TypeError, RecursionError, IntegrityError) as error:
        log.warning("%s of restore point %s cannot be used: %s", FACTS_NAME, point.id, error)
        return {}


def _text(facts: Mapping[str, Any], key: str) -> str | None:
    value = facts.get(key)
    return value if isinstance(value, str) and value.isprintable() and len(value) < 4096 else None


def _existing(engine: Engine, disk_id: str) -> EngineDisk:
    try:
        return get_disk(engine, disk_id)
    except NotFoundError:
        raise UsageError(f"the engine has no disk {disk_id!a}; give its id, as the engine shows it") from None


def _disk_exists(engine: Engine, disk_id: str) -> bool:
    try:
        get_disk(engine, disk_id)
    except NotFoundError:
        return False
    return True


def _exists(engine: Engine, vm_id: str) -> bool:
    try:
        get_vm(engine, vm_id)
    except NotFoundError:
        return False
    return True


def _users(engine: Engine, target: EngineDisk) -> list[EngineVm]:
    """The VMs that the disk is attached to."""
    service = engine.services().disks_service().disk_service(target.id)
    disk = engine.ask(f"disk {target.id}", lambda: service.get(), repeat=True)
    return [get_vm(engine, vm.id) for vm in disk.vms or ()]
