"""What is done to disks: made, removed, resized. Their images are files on a storage domain."""

from __future__ import annotations

import uuid

from lab.engine.core import Engine
from lab.engine.errors import bad_request, conflict
from lab.engine.model import Disk, StorageDomain, Vm, new_id
from lab.machine import DiskImage, Format, Machine, MachineError, create_image


def shelf(engine: Engine, image: DiskImage) -> Machine:
    """What holds the image of a disk that no VM has."""
    return Machine(engine.folder / "shelves" / new_id(), [image])


def new(
    engine: Engine,
    *,
    alias: str,
    size: int,
    domain: StorageDomain,
    format: Format = "cow",
    sparse: bool = True,
    disk_id: str | None = None,
    description: str = "",
    backup: str | None = None,
    content_type: str = "data",
    shareable: bool = False,
    wipe_after_delete: bool = False,
    initial_size: int | None = None,
) -> Disk:
    """The record of a disk, locked; the image is made by `make_image`. Raises Refused."""
    if disk_id is not None:
        try:
            uuid.UUID(disk_id)
        except ValueError:
            raise bad_request(f"Invalid value '{disk_id}' for type UUID") from None
        if disk_id in engine.disks:
            raise conflict(
                f"Cannot add Virtual Disk. The selected disk ID: {disk_id} is already used by the following "
                f"existing disk: {engine.disks[disk_id].alias}."
            )
    if size <= 0 or size % 512:
        raise bad_request(f"Cannot add Virtual Disk. Disk size {size} is not valid.")
    if backup == "incremental" and format == "raw":
        raise bad_request(
            "Cannot add Virtual Disk. Incremental backup is not supported for RAW format disks."
        )
    needed = min(initial_size if initial_size is not None else 0, size) if sparse else size
    if domain.full or needed > domain.capacity - engine.used(domain):
        raise conflict(f"Cannot add Virtual Disk. Low disk space on Storage Domain {domain.name}.")
    disk = Disk(
        id=disk_id or new_id(),
        alias=alias,
        size=size,
        format=format,
        sparse=sparse,
        storage_domain_id=domain.id,
        images=[new_id()],
        description=description,
        backup=backup,
        content_type=content_type,
        status="locked",
        shareable=shareable,
        wipe_after_delete=wipe_after_delete,
    )
    engine.disks[disk.id] = disk
    return disk


def make_image(engine: Engine, disk: Disk) -> DiskImage:
    """The empty image of a new disk."""
    domain = engine.storage_domains[disk.storage_domain_id]
    path = domain.folder / disk.id / disk.image_id
    path.parent.mkdir(parents=True, exist_ok=True)
    form: Format = "raw" if disk.format == "raw" else "cow"
    return create_image(disk.id, path, form, disk.size)


def add(engine: Engine, disk: Disk) -> None:
    """Make the image of a new disk, beside."""
    engine.event(2020, f"Add-Disk operation of '{disk.alias}' was initiated by admin@internal-authz.")

    def task() -> None:
        engine.step()
        try:
            made = shelf(engine, make_image(engine, disk))
        except MachineError as error:
            with engine.lock:
                disk.status = "illegal"
                engine.event(2022, f"Add-Disk operation failed to complete: {error}", "error")
            return
        engine.look_at(made)
        with engine.lock:
            disk.shelf = made
            disk.status = "ok"
            engine.event(2021, f"The disk '{disk.alias}' was successfully added.")
        engine.faults.moment("disk-created", disk=disk.id)

    engine.spawn(f"add-disk-{disk.alias}", task)


def remove(engine: Engine, disk: Disk) -> None:
    """Raises Refused."""
    if disk.transfer_id is not None:
        raise conflict(f"Cannot remove Virtual Disk. Disk {disk.alias} is being transferred.")
    if disk.status == "locked":
        raise conflict("Cannot remove Virtual Disk: Disk is locked. Please try again later.")
    vm = engine.vm_of(disk.id)
    if vm is not None:
        engine.refuse_during_backup(vm, "remove", "Virtual Disk")
        if vm.running and vm.attachments[disk.id].active:
            raise conflict(
                f"Cannot remove Virtual Disk. At least one of the VMs is not down. The disk {disk.alias} is "
                f"plugged to non-Down VMs: {vm.name}"
            )
    disk.status = "locked"

    def task() -> None:
        engine.step()
        discard(engine, disk)
        engine.event(
            2014, f"Disk {disk.alias} was successfully removed from domain (User admin@internal-authz)."
        )

    engine.spawn(f"remove-disk-{disk.alias}", task)


def discard(engine: Engine, disk: Disk) -> None:
    """A disk and its files are gone, whatever the rules say. Not under the engine's lock."""
    vm = engine.vm_of(disk.id)
    if vm is not None:
        vm.machine.remove_disk(disk.id)
    elif disk.shelf is not None:
        disk.shelf.close()
    with engine.lock:
        if vm is not None:
            vm.attachments.pop(disk.id, None)
            forget(vm, disk.id)
        engine.disks.pop(disk.id, None)
        engine.changed.notify_all()
    for path in disk.files:
        path.unlink(missing_ok=True)


def forget(vm: Vm, disk_id: str) -> None:
    """A VM has a disk no more."""
    for checkpoint in vm.checkpoints:
        if disk_id in checkpoint.disks:
            checkpoint.disks.remove(disk_id)
    for snapshot in vm.snapshots:
        snapshot.disks.pop(disk_id, None)


def resize(engine: Engine, disk: Disk, size: int) -> None:
    """Larger only. Raises Refused."""
    if disk.status != "ok":
        raise conflict("Cannot edit Virtual Disk: Disk is locked. Please try again later.")
    vm = engine.vm_of(disk.id)
    if vm is not None:
        engine.refuse_during_backup(vm, "extend", "Virtual Disk")
    if size < disk.size:
        raise bad_request(
            "Cannot edit Virtual Disk. New disk size must be larger than the current disk size."
        )
    disk.status = "locked"

    def task() -> None:
        engine.step()
        force_resize(engine, disk, size)

    engine.spawn(f"resize-{disk.alias}", task)


def force_resize(engine: Engine, disk: Disk, size: int) -> None:
    machine = engine.machine_of(disk)
    try:
        machine.resize(disk.id, size)
    except MachineError as error:
        with engine.lock:
            disk.status = "ok"
            engine.event(98, f"Failed to extend size of the disk '{disk.alias}': {error}", "error")
        return
    with engine.lock:
        disk.size = size
        if disk.status == "locked" and disk.transfer_id is None:
            disk.status = "ok"
        engine.changed.notify_all()
