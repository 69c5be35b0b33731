"""Routes of VMs' snapshots and checkpoints."""

from __future__ import annotations

from lab.engine import snapshots
from lab.engine.errors import bad_request, conflict
from lab.engine.model import Snapshot
from lab.rest import views
from lab.rest.api import Answer, Call, route
from lab.rest.xml import element, entity_id, flag, text


def _done() -> Answer:
    return 200, views.action()


@route("GET", "vms/{}/snapshots")
def list_snapshots(call: Call, vm_id: str) -> Answer:
    vm = call.engine.vm(vm_id)
    elements = [views.active_snapshot(vm), *(views.snapshot(each, vm) for each in vm.snapshots)]
    return 200, views.collection("snapshots", call.limited(elements))


@route("GET", "vms/{}/snapshots/{}")
def show_snapshot(call: Call, vm_id: str, snapshot_id: str) -> Answer:
    vm = call.engine.vm(vm_id)
    if snapshot_id == vm.active_snapshot_id:
        return 200, views.active_snapshot(vm)
    return 200, views.snapshot(snapshots.find(vm, snapshot_id), vm)


@route("GET", "vms/{}/snapshots/{}/disks")
def list_snapshot_disks(call: Call, vm_id: str, snapshot_id: str) -> Answer:
    """The disks as they were: each with the image of that time."""
    engine = call.engine
    vm = engine.vm(vm_id)
    if snapshot_id == vm.active_snapshot_id:
        images = {disk_id: engine.disk(disk_id).image_id for disk_id in vm.attachments}
    else:
        images = snapshots.find(vm, snapshot_id).disks
    made = []
    for disk_id, image_id in images.items():
        disk = engine.disks.get(disk_id)
        if disk is None:
            continue
        shown = views.disk(engine, disk)
        for tag, value in (("image_id", image_id), ("format", _layer_format(call, disk_id, image_id))):
            found_child = shown.find(tag)
            if found_child is not None:
                found_child.text = value
        shown.append(element("snapshot", id=snapshot_id))
        made.append(shown)
    return 200, views.collection("disks", made)


def _layer_format(call: Call, disk_id: str, image_id: str) -> str:
    disk = call.engine.disk(disk_id)
    return disk.format if disk.images and disk.images[0] == image_id else "cow"


@route("POST", "vms/{}/snapshots")
def add_snapshot(call: Call, vm_id: str) -> Answer:
    vm, body = call.engine.vm(vm_id), call.needed_body()
    description = text(body, "description")
    if description is None:
        raise bad_request("Snapshot [description] required for add")
    memory = flag(body, "persist_memorystate", True)
    made: Snapshot = snapshots.add(call.engine, vm, description, persist_memory=memory)
    return 201, views.snapshot(made, vm)


@route("DELETE", "vms/{}/snapshots/{}")
def remove_snapshot(call: Call, vm_id: str, snapshot_id: str) -> Answer:
    vm = call.engine.vm(vm_id)
    snapshots.remove(call.engine, vm, snapshots.find(vm, snapshot_id))
    return _done()


@route("POST", "vms/{}/snapshots/{}/restore")
def restore_snapshot(call: Call, vm_id: str, snapshot_id: str) -> Answer:
    vm = call.engine.vm(vm_id)
    snapshots.restore(call.engine, vm, snapshots.find(vm, snapshot_id))
    return _done()


@route("POST", "vms/{}/previewsnapshot")
def preview_snapshot(call: Call, vm_id: str) -> Answer:
    vm = call.engine.vm(vm_id)
    snapshot = snapshots.find(vm, entity_id(call.needed_body(), "snapshot") or "")
    if vm.running:
        raise conflict("Cannot preview Snapshot. VM is running.")
    call.engine.refuse_during_backup(vm, "preview", "Snapshot")
    vm.preview, snapshot.status = snapshot.id, "in_preview"
    return _done()


@route("POST", "vms/{}/commitsnapshot")
def commit_snapshot(call: Call, vm_id: str) -> Answer:
    vm = call.engine.vm(vm_id)
    if vm.preview is None:
        raise conflict("Cannot restore Snapshot. VM is not previewing a Snapshot.")
    snapshots.restore(call.engine, vm, snapshots.find(vm, vm.preview))
    return _done()


@route("POST", "vms/{}/undosnapshot")
def undo_snapshot(call: Call, vm_id: str) -> Answer:
    vm = call.engine.vm(vm_id)
    if vm.preview is None:
        raise conflict("Cannot restore Snapshot. VM is not previewing a Snapshot.")
    snapshots.find(vm, vm.preview).status = "ok"
    vm.preview = None
    return _done()


# Checkpoints.


@route("GET", "vms/{}/checkpoints")
def list_checkpoints(call: Call, vm_id: str) -> Answer:
    vm = call.engine.vm(vm_id)
    return 200, views.collection("checkpoints", [views.checkpoint(each, vm) for each in vm.checkpoints])


@route("GET", "vms/{}/checkpoints/{}")
def show_checkpoint(call: Call, vm_id: str, checkpoint_id: str) -> Answer:
    vm = call.engine.vm(vm_id)
    return 200, views.checkpoint(snapshots.find_checkpoint(vm, checkpoint_id), vm)


@route("GET", "vms/{}/checkpoints/{}/disks")
def list_checkpoint_disks(call: Call, vm_id: str, checkpoint_id: str) -> Answer:
    engine = call.engine
    checkpoint = snapshots.find_checkpoint(engine.vm(vm_id), checkpoint_id)
    disks = [engine.disks[disk_id] for disk_id in checkpoint.disks if disk_id in engine.disks]
    return 200, views.collection("disks", [views.disk(engine, each) for each in disks])


@route("DELETE", "vms/{}/checkpoints/{}", locked=False)
def remove_checkpoint(call: Call, vm_id: str, checkpoint_id: str) -> Answer:
    with call.engine.lock:
        vm = call.engine.vm(vm_id)
        checkpoint = snapshots.find_checkpoint(vm, checkpoint_id)
    snapshots.remove_checkpoint(call.engine, vm, checkpoint)
    return _done()
