"""A VM from a kept OVF."""

from __future__ import annotations

import logging
from typing import Any

from ovirtsdk4 import types

from ingest.engine.errors import EngineError, NotFoundError
from ingest.engine.networks import find_profile, lost_profiles, macs_in_use, plan_nics, profiles, unplug
from ingest.engine.ovf import Changes, NewDisk, NewNic, rewrite_ovf
from ingest.engine.restore_plan import DiskPlan, Plan
from ingest.engine.session import Engine
from ingest.engine.values import found_by
from ingest.engine.vms import get_disk

log = logging.getLogger(__name__)

_IMPORT_LIMIT = 1800.0
_START_LIMIT = 600.0
"""Seconds."""


def plan_network(engine: Engine, plan: Plan) -> tuple[dict[str, NewNic], list[str]]:
    """What becomes of the NICs of the new VM, and warnings. Raises UsageError for a vNIC profile that there
    is not."""
    assert plan.ovf is not None  # noqa: S101
    known = profiles(engine, plan.data_center_id)
    mapping = {old: find_profile(known, new) for old, new in plan.options.profiles.items()}
    in_use = macs_in_use(engine) if plan.options.keep_mac else {}
    nics, warnings = plan_nics(
        plan.ovf, mapping, in_use, keep_mac=plan.options.keep_mac, keep_ids=plan.options.keep_ids
    )
    return nics, warnings + lost_profiles(plan.ovf, known, nics)


def import_vm(engine: Engine, plan: Plan, nics: dict[str, NewNic]) -> None:
    """Makes the VM of the plan, with its disks, which are there already. Raises EngineError."""
    assert plan.ovf is not None  # noqa: S101
    assert plan.ovf_data is not None  # noqa: S101
    disks = {}
    for disk in plan.disks:
        if plan.ovf.disk(disk.disk.id):
            disks[disk.disk.id.lower()] = NewDisk(
                id=disk.id,
                image_id=get_disk(engine, disk.id).image_id,
                format=disk.form,
                sparse=disk.sparse,
                storage_domain_id=disk.domain.id if disk.domain else None,
            )
    ovf = rewrite_ovf(
        plan.ovf_data,
        Changes(name=plan.name, vm_id=plan.vm_id, cluster=plan.cluster, disks=disks, nics=nics),
    )
    wished = types.Vm(
        name=plan.name,
        cluster=types.Cluster(id=plan.cluster_id),
        initialization=types.Initialization(
            configuration=types.Configuration(type=types.ConfigurationType.OVF, data=ovf.decode())
        ),
    )
    service = engine.services().vms_service()
    one = service.vm_service(plan.vm_id)
    what = f"VM {plan.name}"
    engine.create(what, lambda: service.add(wished), lambda: found_by(one))
    engine.wait(
        what, lambda: one.get(), lambda vm: _status(vm) not in ("image_locked", ""), limit=_IMPORT_LIMIT
    )
    macs = {nic.mac for nic in plan.ovf.nics if nic.mac and nics[nic.id].unplugged}
    if macs:
        unplug(engine, plan.vm_id, macs)
    attach_disks(engine, plan.vm_id, plan.name, plan.disks)


def attach_disks(engine: Engine, vm_id: str, vm_name: str, disks: tuple[DiskPlan, ...]) -> None:
    """Those that the VM does not have yet: after an import none, if all were in the OVF. Raises
    EngineError."""
    service = engine.services().vms_service().vm_service(vm_id).disk_attachments_service()

    def attached() -> dict[str, Any]:
        return {(item.disk.id if item.disk else item.id): item for item in service.list()}

    what = f"VM {vm_name}: disks"
    there = engine.ask(what, attached, repeat=True)
    for disk in disks:
        if disk.id in there:
            continue
        wished = types.DiskAttachment(
            active=disk.active,
            bootable=disk.bootable,
            interface=types.DiskInterface(disk.interface),
            read_only=disk.read_only,
            pass_discard=disk.pass_discard,
            disk=types.Disk(id=disk.id),
        )
        engine.create(
            f"VM {vm_name}: disk {disk.alias}",
            lambda: service.add(wished),  # noqa: B023
            lambda: attached().get(disk.id),  # noqa: B023
        )


def detach_disks(engine: Engine, vm_id: str, disks: tuple[DiskPlan, ...]) -> None:
    """Best effort, after a failure."""
    service = engine.services().vms_service().vm_service(vm_id).disk_attachments_service()
    for disk in disks:
        one = service.attachment_service(disk.id)
        try:
            engine.ask(f"disk {disk.alias}", lambda: one.remove(detach_only=True), repeat=True)  # noqa: B023
        except NotFoundError:
            continue
        except EngineError as error:
            log.warning("%s", error)


def start_vm(engine: Engine, vm_id: str, name: str) -> None:
    """Powers it on and waits until it runs. Raises EngineError."""
    service = engine.services().vms_service().vm_service(vm_id)
    what = f"VM {name}: start"

    def start() -> Any:
        return service.start() if _status(service.get()) == "down" else None

    engine.ask(what, start, repeat=True)
    ended = engine.wait(
        what,
        lambda: service.get(),
        lambda vm: _status(vm) in ("up", "powering_up", "paused", "down"),
        limit=_START_LIMIT,
    )
    if _status(ended) not in ("up", "powering_up"):
        raise EngineError(f"VM {name} was restored, and does not start; see the engine's events")


def _status(vm: Any) -> str:
    return str(vm.status.value) if vm.status else ""
