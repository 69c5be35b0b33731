"""Image transfers: what clients ask for.

Phases and policies are those of TransferDiskImageCommand in https://github.com/oVirt/ovirt-engine.
"""

from __future__ import annotations

from lab.engine.core import Engine
from lab.engine.errors import bad_request, conflict, disks_locked, not_found
from lab.engine.model import FINISHED_TRANSFER, Backup, Disk, Transfer, new_id
from lab.engine.transfer_life import NAMES, end, open_transfer, renew, set_phase


def begin(
    engine: Engine,
    *,
    disk_id: str | None,
    snapshot_image: str | None,
    direction: str,
    backup_id: str | None,
    host_id: str | None,
    form: str | None,
    inactivity: int | None,
    policy: str,
    shallow: bool,
) -> Transfer:
    """Accept a transfer, or raise Refused. Under the engine's lock."""
    if direction not in NAMES:
        raise bad_request(f"Invalid value '{direction}' for enum type ImageTransferDirection")
    if policy not in ("legacy", "pause", "cancel"):
        raise bad_request(f"Invalid value '{policy}' for enum type ImageTransferTimeoutPolicy")
    if snapshot_image is not None and disk_id is None:
        disk_id = next((each.id for each in engine.disks.values() if snapshot_image in each.images), None)
    if disk_id is None:
        raise bad_request("ImageTransfer [disk.id|snapshot.id] required for add")
    if disk_id not in engine.disks:
        raise bad_request("Cannot transfer Virtual Disk. The specified disk does not exist.")
    disk = engine.disk(disk_id)
    if disk.status == "illegal":
        raise conflict(
            "Cannot transfer Virtual Disk. The following attached disks are in ILLEGAL status: "
            f"{disk.alias} - please remove them and try again."
        )
    if backup_id is not None:
        _check_backup(engine, disk, backup_id, direction, form)
    else:
        _check_disk(engine, disk, snapshot_image)
    if form not in (None, "raw") and backup_id is None:
        raise bad_request(
            "Cannot transfer Virtual Disk. The lab transfers the guest's data only: format raw."
        )
    if shallow and len(disk.images) > 1:
        raise bad_request("Cannot transfer Virtual Disk. The lab does not transfer single layers.")
    vm = engine.vm_of(disk.id)
    transfer = Transfer(
        id=new_id(),
        disk_id=disk.id,
        direction=direction,
        backup_id=backup_id,
        snapshot_image=snapshot_image,
        shallow=shallow,
        wanted_host=host_id,
        timeout_policy=policy,
        inactivity_timeout=int(engine.timing.inactivity) if inactivity is None else inactivity,
        vm_id=vm.id if vm else None,
    )
    engine.transfers[transfer.id] = transfer
    if backup_id is None and snapshot_image is None:
        disk.status = "locked"
        disk.transfer_id = transfer.id
    engine.event(
        1031, f"Image {NAMES[direction]} with disk {disk.alias} was initiated by admin@internal-authz."
    )
    engine.spawn(f"transfer-{disk.alias}", lambda: open_transfer(engine, transfer, disk))
    return transfer


def _check_backup(engine: Engine, disk: Disk, backup_id: str, direction: str, form: str | None) -> None:
    backup = engine.backups.get(backup_id)
    if backup is None:
        raise bad_request("Cannot transfer Virtual Disk. The specified VM backup does not exist.")
    if backup.phase != "ready" or backup.stopped:
        raise conflict(
            "Cannot transfer Virtual Disk. The VM backup is not in READY phase, backup phase is "
            f"{backup.phase.upper()}."
        )
    if form != "raw":
        raise bad_request(
            "Cannot transfer Virtual Disk. The specified format is not applicable for VM backup."
        )
    if disk.id not in backup.disks or direction != "download":
        raise bad_request(f"Cannot transfer Virtual Disk. Disk {disk.id} is not in the backup.")


def _check_disk(engine: Engine, disk: Disk, snapshot_image: str | None) -> None:
    vm = engine.vm_of(disk.id)
    if disk.transfer_id is not None:
        raise conflict(f"Cannot transfer Virtual Disk. Disk {disk.alias} is being transferred.")
    active = snapshot_image is None or snapshot_image == disk.image_id
    if active and vm is not None and vm.running and vm.attachments[disk.id].active:
        raise conflict(
            f"Cannot transfer Virtual Disk. The disk {disk.alias} is plugged to non-Down VMs: {vm.name}"
        )
    if disk.status == "locked":
        raise disks_locked("transfer Virtual Disk", [disk.alias])


def finalize(engine: Engine, transfer: Transfer) -> None:
    """Under the engine's lock. One that has finished stays as it is."""
    if transfer.phase in FINISHED_TRANSFER or transfer.phase.startswith(("finalizing", "cancelled")):
        return
    spoiled = transfer.direction == "download" and (
        engine.faults.take("engine-finalizes-download", disk=transfer.disk_id) is not None
    )
    if spoiled:
        end(engine, transfer, "finalizing_success")
        engine.transfers.pop(transfer.id, None)
        engine.forgotten[transfer.id] = transfer
        raise not_found(transfer.id)
    end(engine, transfer, "finalizing_success")


def cancel(engine: Engine, transfer: Transfer) -> None:
    """Under the engine's lock. The disk of an upload is removed."""
    if transfer.phase in FINISHED_TRANSFER or transfer.phase.startswith(("finalizing", "cancelled")):
        return
    end(engine, transfer, "cancelled_user")


def pause(engine: Engine, transfer: Transfer) -> None:
    """Under the engine's lock. Raises Refused (400) for a download."""
    if transfer.direction == "download":
        raise bad_request("Cannot transfer Virtual Disk. Image download cannot be paused.")
    if transfer.phase == "transferring":
        transfer.phase = "paused_user"
        engine.event(1073, "Image transfer was paused by user (admin@internal-authz).")


def resume(engine: Engine, transfer: Transfer) -> None:
    """Under the engine's lock. Raises Refused (400) for one that is not paused."""
    if not transfer.phase.startswith("paused"):
        raise bad_request(
            "Cannot transfer Virtual Disk. The image transfer is not paused, it cannot be resumed."
        )
    transfer.phase = "resuming"
    engine.event(1074, "Image transfer was resumed by user (admin@internal-authz).")

    def task() -> None:
        engine.step()
        renew(engine, transfer)
        if transfer.phase == "resuming":
            set_phase(engine, transfer, "transferring")

    engine.spawn("resume-transfer", task)


def extend(engine: Engine, transfer: Transfer) -> None:
    """Not under the engine's lock."""
    if transfer.phase in FINISHED_TRANSFER:
        return
    renew(engine, transfer)


def backup_ended(engine: Engine, backup: Backup) -> None:
    """Its transfers are cancelled. Not under the engine's lock; waits until they have ended."""
    with engine.lock:
        mine = [
            each
            for each in engine.transfers.values()
            if each.backup_id == backup.id and each.phase not in FINISHED_TRANSFER
        ]
        for transfer in mine:
            if not transfer.phase.startswith(("finalizing", "cancelled")):
                end(engine, transfer, "cancelled_system")
    engine.wait(lambda: all(each.phase in FINISHED_TRANSFER for each in mine), 60)
