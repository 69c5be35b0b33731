"""Routes of VMs, their disk attachments, NICs, snapshots and checkpoints."""

from __future__ import annotations

from lab.engine import disks as disk_actions
from lab.engine import imports, vms
from lab.engine.errors import bad_request, conflict, not_found
from lab.engine.model import Attachment, Cluster, Vm
from lab.rest import views
from lab.rest.api import Answer, Call, route
from lab.rest.routes_inventory import found
from lab.rest.routes_storage import disk_from
from lab.rest.xml import entity_id, flag, number, text


def _done() -> Answer:
    return 200, views.action()


@route("GET", "vms")
def list_vms(call: Call) -> Answer:
    engine = call.engine

    def facts(vm: Vm) -> dict[str, str | None]:
        return {
            "name": vm.name,
            "id": vm.id,
            "status": vm.status,
            "cluster": engine.clusters[vm.cluster_id].name,
            "description": vm.description,
        }

    matching = sorted(found(call, engine.vms.values(), facts), key=lambda vm: vm.name)
    elements = [
        views.vm(engine, each, all_content=call.all_content(), follow=call.follow) for each in matching
    ]
    return 200, views.collection("vms", call.limited(elements))


@route("GET", "vms/{}")
def show_vm(call: Call, vm_id: str) -> Answer:
    vm = call.engine.vm(vm_id)
    return 200, views.vm(call.engine, vm, all_content=call.all_content(), follow=call.follow)


@route("POST", "vms", locked=False)
def add_vm(call: Call) -> Answer:
    """From scratch, or from an OVF."""
    engine, body = call.engine, call.needed_body()
    cluster = _cluster(call)
    name = text(body, "name")
    data = text(body, "initialization/configuration/data")
    if data is not None:
        if text(body, "initialization/configuration/type") not in ("ovf", "ova"):
            raise bad_request("Vm [initialization.configuration.type] required for add")
        new_ids = call.request.flag("clone") or flag(body, "initialization/regenerate_ids", False)
        made = imports.import_vm(
            engine, data, cluster, name=name, description=text(body, "description"), new_ids=new_ids
        )
        with engine.lock:
            return 201, views.vm(engine, made)
    if name is None:
        raise bad_request("Vm [name] required for add")
    with engine.lock:
        made = vms.add(engine, name, cluster)
        made.description = text(body, "description") or ""
        made.memory = number(body, "memory") or made.memory
        made.sockets = number(body, "cpu/topology/sockets") or made.sockets
        made.cores = number(body, "cpu/topology/cores") or made.cores
        return 201, views.vm(engine, made)


def _cluster(call: Call) -> Cluster:
    body = call.needed_body()
    cluster_id, name = entity_id(body, "cluster"), text(body, "cluster/name")
    if cluster_id is None and name is None:
        raise bad_request("Vm [cluster.id|name] required for add")
    for cluster in call.engine.clusters.values():
        if cluster_id == cluster.id or (cluster_id is None and cluster.name == name):
            return cluster
    raise not_found(cluster_id or f"clusters: name={name}")


@route("PUT", "vms/{}")
def change_vm(call: Call, vm_id: str) -> Answer:
    vm, body = call.engine.vm(vm_id), call.needed_body()
    name = text(body, "name")
    if name is not None and name != vm.name:
        if any(other.name == name for other in call.engine.vms.values()):
            raise conflict(
                "Cannot edit VM. The VM name is already in use, please choose a unique name and try again."
            )
        vm.name = name
    if body.find("description") is not None:
        vm.description = text(body, "description") or ""
    if body.find("comment") is not None:
        vm.comment = text(body, "comment") or ""
    vm.memory = number(body, "memory") or vm.memory
    return 200, views.vm(call.engine, vm)


@route("DELETE", "vms/{}")
def remove_vm(call: Call, vm_id: str) -> Answer:
    keep = call.request.flag("detach_only")
    vms.remove(call.engine, call.engine.vm(vm_id), keep_disks=keep)
    return _done()


@route("POST", "vms/{}/start")
def start_vm(call: Call, vm_id: str) -> Answer:
    vms.start(call.engine, call.engine.vm(vm_id))
    return _done()


@route("POST", "vms/{}/stop")
def stop_vm(call: Call, vm_id: str) -> Answer:
    vms.stop(
        call.engine,
        call.engine.vm(vm_id),
        force=flag(call.body, "force", False) or call.request.flag("force"),
    )
    return _done()


@route("POST", "vms/{}/shutdown")
def shut_down_vm(call: Call, vm_id: str) -> Answer:
    return stop_vm(call, vm_id)


@route("POST", "vms/{}/migrate")
def migrate_vm(call: Call, vm_id: str) -> Answer:
    vms.migrate(call.engine, call.engine.vm(vm_id))
    return _done()


# Disk attachments.


@route("GET", "vms/{}/diskattachments")
def list_attachments(call: Call, vm_id: str) -> Answer:
    return 200, views.attachments(call.engine, call.engine.vm(vm_id), follow=call.follow)


@route("GET", "vms/{}/diskattachments/{}")
def show_attachment(call: Call, vm_id: str, disk_id: str) -> Answer:
    vm = call.engine.vm(vm_id)
    if disk_id not in vm.attachments:
        raise not_found(disk_id)
    return 200, views.attachment(call.engine, vm, vm.attachments[disk_id], follow=call.follow)


@route("POST", "vms/{}/diskattachments", locked=False)
def attach_disk(call: Call, vm_id: str) -> Answer:
    """A disk that exists, or a new one."""
    engine, body = call.engine, call.needed_body()
    with engine.lock:
        vm = engine.vm(vm_id)
        for needed in ("interface", "bootable"):
            if text(body, needed) is None:
                raise bad_request(f"DiskAttachment [{needed}] required for add")
        inner = body.find("disk")
        if inner is None:
            raise bad_request("DiskAttachment [disk] required for add")
        disk_id = inner.get("id")
        new = disk_id is None or (disk_id not in engine.disks and inner.find("provisioned_size") is not None)
        disk = disk_from(engine, inner) if new else engine.disk(str(disk_id))
    if new:
        made = disk_actions.shelf(engine, disk_actions.make_image(engine, disk))
        with engine.lock:
            disk.shelf, disk.status = made, "ok"
    attachment = Attachment(
        disk.id,
        text(body, "interface") or "virtio_scsi",
        flag(body, "bootable", False),
        flag(body, "active", False),
        flag(body, "read_only", False),
        flag(body, "pass_discard", False),
    )
    if attachment.bootable and any(each.bootable for each in vm.attachments.values()):
        raise conflict(f"Cannot attach Virtual Disk. VM {vm.name} already has a bootable disk.")
    vms.attach(engine, vm, disk, attachment)
    with engine.lock:
        return 201, views.attachment(engine, vm, attachment)


@route("DELETE", "vms/{}/diskattachments/{}", locked=False)
def detach_disk(call: Call, vm_id: str, disk_id: str) -> Answer:
    engine = call.engine
    with engine.lock:
        vm = engine.vm(vm_id)
        attachment = vm.attachments.get(disk_id)
        if attachment is None:
            raise not_found(disk_id)
        if vm.running and attachment.active and not call.request.flag("detach_only"):
            raise conflict("Cannot remove Virtual Disk. At least one of the VMs is not down.")
    disk = vms.detach(engine, vm, disk_id)
    if not call.request.flag("detach_only"):
        with engine.lock:
            disk_actions.remove(engine, disk)
    return _done()


@route("PUT", "vms/{}/diskattachments/{}")
def change_attachment(call: Call, vm_id: str, disk_id: str) -> Answer:
    vm = call.engine.vm(vm_id)
    attachment = vm.attachments.get(disk_id)
    if attachment is None:
        raise not_found(disk_id)
    attachment.active = flag(call.body, "active", attachment.active)
    attachment.bootable = flag(call.body, "bootable", attachment.bootable)
    attachment.interface = text(call.body, "interface") or attachment.interface
    size = number(call.body, "disk/provisioned_size")
    if size is not None:
        disk_actions.resize(call.engine, call.engine.disk(disk_id), size)
    return 200, views.attachment(call.engine, vm, attachment)


# NICs.


@route("GET", "vms/{}/nics")
def list_nics(call: Call, vm_id: str) -> Answer:
    vm = call.engine.vm(vm_id)
    return 200, views.collection("nics", [views.nic(each, vm) for each in vm.nics])


@route("GET", "vms/{}/nics/{}")
def show_nic(call: Call, vm_id: str, nic_id: str) -> Answer:
    vm = call.engine.vm(vm_id)
    for each in vm.nics:
        if each.id == nic_id:
            return 200, views.nic(each, vm)
    raise not_found(nic_id)


@route("POST", "vms/{}/nics")
def add_nic(call: Call, vm_id: str) -> Answer:
    vm, body = call.engine.vm(vm_id), call.needed_body()
    name = text(body, "name")
    if name is None:
        raise bad_request("Nic [name] required for add")
    made = vms.add_nic(
        call.engine,
        vm,
        name,
        mac=text(body, "mac/address"),
        profile_id=_profile(call, entity_id(body, "vnic_profile")),
        interface=text(body, "interface") or "virtio",
        plugged=flag(body, "plugged", True),
        linked=flag(body, "linked", True),
    )
    return 201, views.nic(made, vm)


@route("PUT", "vms/{}/nics/{}")
def change_nic(call: Call, vm_id: str, nic_id: str) -> Answer:
    vm, body = call.engine.vm(vm_id), call.needed_body()
    for each in vm.nics:
        if each.id != nic_id:
            continue
        mac = text(body, "mac/address") or each.mac
        plugged = flag(body, "plugged", each.plugged)
        owner = vms.mac_owner(call.engine, mac)
        changes = mac.lower() != each.mac.lower() or (plugged and not each.plugged)
        if changes and owner is not None and (owner is not vm or mac.lower() != each.mac.lower()):
            raise conflict(f"MAC Address {mac} is already in use by VM or snapshot: {owner.name}.")
        each.mac, each.plugged = mac, plugged
        each.linked = flag(body, "linked", each.linked)
        each.name = text(body, "name") or each.name
        if body.find("vnic_profile") is not None:
            each.profile_id = _profile(call, entity_id(body, "vnic_profile"))
        return 200, views.nic(each, vm)
    raise not_found(nic_id)


@route("DELETE", "vms/{}/nics/{}")
def remove_nic(call: Call, vm_id: str, nic_id: str) -> Answer:
    vm = call.engine.vm(vm_id)
    for each in vm.nics:
        if each.id == nic_id:
            vm.nics.remove(each)
            return _done()
    raise not_found(nic_id)


def _profile(call: Call, profile_id: str | None) -> str | None:
    if profile_id is not None and profile_id not in call.engine.profiles:
        raise not_found(profile_id)
    return profile_id
