"""Routes of disks and their layers."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from lab.engine import disks
from lab.engine.core import Engine
from lab.engine.errors import bad_request, not_found
from lab.engine.model import Disk, StorageDomain
from lab.machine import Format
from lab.rest import views
from lab.rest.api import Answer, Call, route
from lab.rest.routes_inventory import found
from lab.rest.xml import flag, number, text


@route("GET", "disks")
def list_disks(call: Call) -> Answer:
    matching = found(
        call,
        call.engine.disks.values(),
        lambda each: {
            "name": each.alias,
            "alias": each.alias,
            "id": each.id,
            "status": each.status,
            "description": each.description,
        },
    )
    return 200, views.collection("disks", call.limited([views.disk(call.engine, each) for each in matching]))


@route("GET", "disks/{}")
def show_disk(call: Call, disk_id: str) -> Answer:
    return 200, views.disk(call.engine, call.engine.disk(disk_id))


@route("POST", "disks")
def add_disk(call: Call) -> Answer:
    disk = disk_from(call.engine, call.needed_body())
    disks.add(call.engine, disk)
    return 202, views.disk(call.engine, disk)


def disk_from(engine: Engine, body: ET.Element) -> Disk:
    """The record of the disk that a request describes. Raises Refused."""
    size = number(body, "provisioned_size")
    if size is None:
        raise bad_request("Disk [provisioned_size] required for add")
    form = text(body, "format")
    if form is None:
        raise bad_request("Disk [format] required for add")
    if form not in ("cow", "raw"):
        raise bad_request(f"Invalid value '{form}' for enum type DiskFormat")
    chosen: Format = "raw" if form == "raw" else "cow"
    backup = text(body, "backup")
    return disks.new(
        engine,
        alias=text(body, "name") or text(body, "alias") or "",
        size=size,
        domain=_domain(engine, body),
        format=chosen,
        sparse=flag(body, "sparse", chosen == "cow"),
        disk_id=body.get("id"),
        description=text(body, "description") or "",
        backup=backup if backup != "none" else None,
        content_type=text(body, "content_type") or "data",
        shareable=flag(body, "shareable", False),
        wipe_after_delete=flag(body, "wipe_after_delete", False),
        initial_size=number(body, "initial_size"),
    )


def _domain(engine: Engine, body: ET.Element) -> StorageDomain:
    told = body.find("storage_domains/storage_domain")
    if told is None:
        raise bad_request("Disk [storageDomains.storageDomains[0].id|name] required for add")
    if told.get("id") is not None:
        return engine.storage_domain(str(told.get("id")))
    name = text(told, "name")
    for domain in engine.storage_domains.values():
        if domain.name == name:
            return domain
    raise bad_request(f"Entity not found: storage domain {name}")


@route("PUT", "disks/{}")
def change_disk(call: Call, disk_id: str) -> Answer:
    disk, body = call.engine.disk(disk_id), call.needed_body()
    disk.alias = text(body, "name") or disk.alias
    if body.find("description") is not None:
        disk.description = text(body, "description") or ""
    size = number(body, "provisioned_size")
    if size is not None and size != disk.size:
        disks.resize(call.engine, disk, size)
    return 200, views.disk(call.engine, disk)


@route("DELETE", "disks/{}")
def remove_disk(call: Call, disk_id: str) -> Answer:
    disks.remove(call.engine, call.engine.disk(disk_id))
    return 200, views.action()


@route("GET", "disks/{}/disksnapshots")
def list_layers(call: Call, disk_id: str) -> Answer:
    disk = call.engine.disk(disk_id)
    layers = _layers(call.engine, disk)
    if not call.request.flag("include_active"):
        layers = layers[:-1]
    return 200, views.collection("disk_snapshots", layers)


@route("GET", "storagedomains/{}/disks")
def list_domain_disks(call: Call, domain_id: str) -> Answer:
    call.engine.storage_domain(domain_id)
    here = [each for each in call.engine.disks.values() if each.storage_domain_id == domain_id]
    return 200, views.collection("disks", [views.disk(call.engine, each) for each in here])


@route("GET", "storagedomains/{}/disksnapshots")
def list_domain_layers(call: Call, domain_id: str) -> Answer:
    call.engine.storage_domain(domain_id)
    made: list[ET.Element] = []
    for disk in call.engine.disks.values():
        if disk.storage_domain_id == domain_id:
            layers = _layers(call.engine, disk)
            made += layers if call.request.flag("include_active") else layers[:-1]
    return 200, views.collection("disk_snapshots", made)


@route("GET", "storagedomains/{}/disksnapshots/{}")
def show_layer(call: Call, domain_id: str, image_id: str) -> Answer:
    for disk in call.engine.disks.values():
        if disk.storage_domain_id == domain_id and image_id in disk.images:
            return 200, _layers(call.engine, disk)[disk.images.index(image_id)]
    raise not_found(image_id)


def _layers(engine: Engine, disk: Disk) -> list[ET.Element]:
    """Base first."""
    vm = engine.vm_of(disk.id)
    owners: dict[str, str] = {}
    if vm is not None:
        for snapshot in vm.snapshots:
            if disk.id in snapshot.disks:
                owners[snapshot.disks[disk.id]] = snapshot.id
        owners[disk.image_id] = vm.active_snapshot_id
    return [views.disk_snapshot(disk, layer, owners.get(image)) for layer, image in enumerate(disk.images)]
