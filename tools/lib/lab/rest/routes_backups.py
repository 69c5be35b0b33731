"""Routes of backups and image transfers."""

from __future__ import annotations

import uuid

from lab.engine import backups, transfers
from lab.engine.errors import bad_request, not_found
from lab.engine.model import Backup, Transfer
from lab.rest import views
from lab.rest.api import Answer, Call, route
from lab.rest.xml import entity_id, flag, number, text


def _backup(call: Call, vm_id: str, backup_id: str) -> Backup:
    call.engine.vm(vm_id)
    backup = call.engine.backup(backup_id)
    if backup.vm_id != vm_id:
        raise not_found(backup_id)
    return backup


def _show(call: Call, backup: Backup) -> Answer:
    """`to_checkpoint_id` is there once the host has made the checkpoint, unless a fault hides it."""
    checkpoint = backup.to_checkpoint
    if checkpoint is not None and backup.hidden_checkpoint:
        checkpoint = None
        if backup.hidden_checkpoint > 0:
            backup.hidden_checkpoint -= 1
    return 200, views.backup(backup, checkpoint)


@route("GET", "vms/{}/backups")
def list_backups(call: Call, vm_id: str) -> Answer:
    call.engine.vm(vm_id)
    mine = [each for each in call.engine.backups.values() if each.vm_id == vm_id]
    return 200, views.collection("backups", [_show(call, each)[1] for each in mine])


@route("GET", "vms/{}/backups/{}")
def show_backup(call: Call, vm_id: str, backup_id: str) -> Answer:
    return _show(call, _backup(call, vm_id, backup_id))


@route("GET", "vms/{}/backups/{}/disks")
def list_backup_disks(call: Call, vm_id: str, backup_id: str) -> Answer:
    engine = call.engine
    backup = _backup(call, vm_id, backup_id)
    return 200, views.collection(
        "disks",
        [
            views.disk(engine, engine.disks[disk_id], backup_mode=mode)
            for disk_id, mode in backup.disks.items()
            if disk_id in engine.disks
        ],
    )


@route("GET", "vms/{}/backups/{}/disks/{}")
def show_backup_disk(call: Call, vm_id: str, backup_id: str, disk_id: str) -> Answer:
    backup = _backup(call, vm_id, backup_id)
    if disk_id not in backup.disks:
        raise not_found(disk_id)
    return 200, views.disk(call.engine, call.engine.disk(disk_id), backup_mode=backup.disks[disk_id])


@route("POST", "vms/{}/backups")
def add_backup(call: Call, vm_id: str) -> Answer:
    engine, body = call.engine, call.needed_body()
    vm = engine.vm(vm_id)
    backup_id = body.get("id")
    if backup_id is not None:
        try:
            uuid.UUID(backup_id)
        except ValueError:
            raise bad_request(f"Invalid value '{backup_id}' for type UUID") from None
    made = backups.begin(
        engine,
        vm,
        [str(disk.get("id")) for disk in body.findall("disks/disk")],
        backup_id=backup_id,
        description=text(body, "description"),
        from_checkpoint=text(body, "from_checkpoint_id"),
        legacy=call.request.flag("legacy"),
        require_consistency=call.request.flag("require_consistency"),
        correlation_id=call.correlation_id,
    )
    return 201, views.backup(made, None)


@route("POST", "vms/{}/backups/{}/finalize")
def finalize_backup(call: Call, vm_id: str, backup_id: str) -> Answer:
    backups.finalize(call.engine, _backup(call, vm_id, backup_id))
    return 200, views.action()


@route("GET", "imagetransfers")
def list_transfers(call: Call) -> Answer:
    return 200, views.collection(
        "image_transfers", [views.transfer(it) for it in call.engine.transfers.values()]
    )


@route("GET", "imagetransfers/{}")
def show_transfer(call: Call, transfer_id: str) -> Answer:
    return 200, views.transfer(call.engine.transfer(transfer_id))


@route("POST", "imagetransfers")
def add_transfer(call: Call) -> Answer:
    body = call.needed_body()
    image = entity_id(body, "snapshot")
    disk_id = entity_id(body, "disk") or entity_id(body, "image")
    made: Transfer = transfers.begin(
        call.engine,
        disk_id=disk_id,
        snapshot_image=image,
        direction=text(body, "direction") or "upload",
        backup_id=entity_id(body, "backup"),
        host_id=entity_id(body, "host"),
        form=text(body, "format"),
        inactivity=number(body, "inactivity_timeout"),
        policy=text(body, "timeout_policy") or "legacy",
        shallow=flag(body, "shallow", False),
    )
    return 201, views.transfer(made)


@route("POST", "imagetransfers/{}/finalize")
def finalize_transfer(call: Call, transfer_id: str) -> Answer:
    transfers.finalize(call.engine, call.engine.transfer(transfer_id))
    return 200, views.action()


@route("POST", "imagetransfers/{}/cancel")
def cancel_transfer(call: Call, transfer_id: str) -> Answer:
    transfers.cancel(call.engine, call.engine.transfer(transfer_id))
    return 200, views.action()


@route("POST", "imagetransfers/{}/pause")
def pause_transfer(call: Call, transfer_id: str) -> Answer:
    transfers.pause(call.engine, call.engine.transfer(transfer_id))
    return 200, views.action()


@route("POST", "imagetransfers/{}/resume")
def resume_transfer(call: Call, transfer_id: str) -> Answer:
    transfers.resume(call.engine, call.engine.transfer(transfer_id))
    return 200, views.action()


@route("POST", "imagetransfers/{}/extend", locked=False)
def extend_transfer(call: Call, transfer_id: str) -> Answer:
    with call.engine.lock:
        transfer = call.engine.transfer(transfer_id)
    transfers.extend(call.engine, transfer)
    return 200, views.action()
