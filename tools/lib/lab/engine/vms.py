"""What is done to VMs: made, started, stopped, migrated, removed; their disks attached and detached."""

from __future__ import annotations

import contextlib

from lab.engine import backups, disks
from lab.engine.core import Engine
from lab.engine.errors import bad_request, conflict, disks_locked, not_found
from lab.engine.model import Attachment, Cluster, Disk, Nic, Vm, new_id
from lab.machine import Machine, MachineError


def add(engine: Engine, name: str, cluster: Cluster, *, vm_id: str | None = None, action: str = "add") -> Vm:
    """A new VM without disks, down. Raises Refused (409) when there is one of that name or id."""
    if any(vm.name == name for vm in engine.vms.values()):
        raise conflict(
            f"Cannot {action} VM. The VM name is already in use, please choose a unique name and try again."
        )
    if vm_id in engine.vms:
        raise conflict(f"Cannot {action} VM. VM with the same identifier already exists.")
    return force_add(engine, name, cluster, vm_id=vm_id)


def force_add(engine: Engine, name: str, cluster: Cluster, *, vm_id: str | None = None) -> Vm:
    """As `add`, whatever the others are called."""
    made_id = vm_id or new_id()
    machine = Machine(engine.folder / "machines" / new_id(), [])
    vm = Vm(made_id, name, cluster.id, machine)
    engine.vms[made_id] = vm
    return vm


def start(engine: Engine, vm: Vm) -> None:
    """Raises Refused."""
    if vm.running:
        raise conflict("Cannot run VM. VM is running.")
    if vm.status == "image_locked":
        raise conflict("Cannot run VM: VM is locked. Please try again in a few minutes.")
    backup = engine.running_backup(vm)
    if backup is not None:
        raise conflict("Cannot run VM. The VM is during a backup operation.")
    locked = [disk.alias for disk in _disks(engine, vm) if disk.status == "locked"]
    if locked:
        raise disks_locked("run VM", locked)
    illegal = [disk.alias for disk in _disks(engine, vm) if disk.status == "illegal"]
    if illegal:
        raise conflict(
            f"Cannot run VM. The following attached disks are in ILLEGAL status: {', '.join(illegal)} - "
            "please remove them and try again."
        )
    vm.status = "wait_for_launch"
    vm.host_id = next(host.id for host in engine.hosts.values() if vm.cluster_id in host.cluster_ids)
    engine.event(32, f"VM {vm.name} was started by admin@internal-authz.", vm=vm)

    def task() -> None:
        engine.step()
        try:
            vm.machine.start()
        except MachineError as error:
            with engine.lock:
                vm.status, vm.host_id = "down", None
                engine.event(119, f"VM {vm.name} is down with error. {error}.", "error", vm=vm)
            return
        _set(engine, vm, "powering_up")
        engine.step()
        _set(engine, vm, "up")

    engine.spawn(f"start-{vm.name}", task)


def stop(engine: Engine, vm: Vm, *, force: bool = False) -> None:
    """Power off or shut down: qemu ends cleanly, bitmaps are saved. Raises Refused."""
    if not force:
        engine.refuse_during_backup(vm, "stop")
    if not vm.running:
        raise conflict("Cannot stop VM. VM is not running.")
    vm.status = "powering_down"

    def task() -> None:
        engine.step()
        with contextlib.suppress(MachineError):
            vm.machine.stop()
        with engine.lock:
            vm.status, vm.host_id = "down", None
            engine.event(33, f"VM {vm.name} powered off by admin@internal-authz.", vm=vm)
        backups.machine_ended(engine, vm)

    engine.spawn(f"stop-{vm.name}", task)


def migrate(engine: Engine, vm: Vm) -> None:
    """To another host. Raises Refused."""
    engine.refuse_during_backup(vm, "migrate")
    if vm.status != "up":
        raise conflict("Cannot migrate VM. VM is not up.")
    others = [
        host for host in engine.hosts.values() if host.id != vm.host_id and vm.cluster_id in host.cluster_ids
    ]
    if not others:
        raise conflict("Cannot migrate VM. There is no host that satisfies current scheduling constraints.")
    vm.status = "migrating"

    def task() -> None:
        engine.step()
        with engine.lock:
            vm.status, vm.host_id = "up", others[0].id
            engine.event(63, f"Migration completed (VM: {vm.name}, Destination: {others[0].name}).", vm=vm)

    engine.spawn(f"migrate-{vm.name}", task)


def remove(engine: Engine, vm: Vm, *, keep_disks: bool = False) -> None:
    """Raises Refused."""
    engine.refuse_during_backup(vm, "remove")
    if vm.running:
        raise conflict("Cannot remove VM. VM is running.")
    if any(disk.status == "locked" for disk in _disks(engine, vm)):
        raise conflict("Cannot remove VM: VM is locked. Please try again in a few minutes.")
    vm.status = "image_locked"

    def task() -> None:
        engine.step()
        discard(engine, vm, keep_disks=keep_disks)

    engine.spawn(f"remove-{vm.name}", task)


def discard(engine: Engine, vm: Vm, *, keep_disks: bool = False) -> None:
    """Remove a VM that is down. Not under the engine's lock."""
    for disk in _disks(engine, vm):
        if keep_disks:
            to_shelf(engine, vm, disk)
        else:
            disks.discard(engine, disk)
    vm.machine.close()
    with engine.lock:
        engine.vms.pop(vm.id, None)
        engine.event(113, f"VM {vm.name} was successfully removed.")


def attach(engine: Engine, vm: Vm, disk: Disk, attachment: Attachment) -> None:
    """A disk that no VM has. Not under the engine's lock. Raises Refused."""
    with engine.lock:
        if disk.id in vm.attachments:
            raise conflict("Cannot attach Virtual Disk. The disk is already attached to VM.")
        if disk.status != "ok":
            raise conflict("Cannot attach Virtual Disk: Disk is locked. Please try again later.")
        if disk.shelf is None:
            raise conflict(f"Cannot attach Virtual Disk. The disk {disk.alias} is attached to another VM.")
        engine.refuse_during_backup(vm, "attach Virtual Disk to")
        shelf, disk.shelf, disk.status = disk.shelf, None, "locked"
    try:
        image = shelf.disks[disk.id]
        vm.machine.add_disk(image)
    except MachineError as error:
        with engine.lock:
            disk.shelf, disk.status = shelf, "ok"
        raise bad_request(f"General command validation failure: {error}") from None
    shelf.remove_disk(disk.id)
    shelf.close()
    with engine.lock:
        vm.attachments[disk.id] = attachment
        disk.status = "ok"
        engine.event(2016, f"Disk {disk.alias} was successfully attached to VM {vm.name} by admin.", vm=vm)
    engine.look_at(vm.machine)


def detach(engine: Engine, vm: Vm, disk_id: str) -> Disk:
    """The disk stays, on a shelf. Not under the engine's lock. Raises Refused."""
    with engine.lock:
        if disk_id not in vm.attachments:
            raise not_found(disk_id)
        disk = engine.disk(disk_id)
        engine.refuse_during_backup(vm, "detach Virtual Disk from")
        if disk.status == "locked":
            raise conflict("Cannot detach Virtual Disk: Disk is locked. Please try again later.")
        disk.status = "locked"
    try:
        to_shelf(engine, vm, disk)
    except MachineError as error:
        raise conflict(f"Cannot detach Virtual Disk. {error}") from None
    finally:
        with engine.lock:
            disk.status = "ok"
    engine.event(2018, f"Disk {disk.alias} was successfully detached from VM {vm.name} by admin.", vm=vm)
    return disk


def to_shelf(engine: Engine, vm: Vm, disk: Disk) -> None:
    """Take a disk out of a VM, whatever the rules say. Not under the engine's lock. Raises MachineError."""
    image = vm.machine.disks[disk.id]
    vm.machine.remove_disk(disk.id)
    shelf = disks.shelf(engine, image)
    with engine.lock:
        disk.shelf = shelf
        vm.attachments.pop(disk.id, None)
        disks.forget(vm, disk.id)
    engine.look_at(shelf)


def add_nic(
    engine: Engine,
    vm: Vm,
    name: str,
    *,
    mac: str | None = None,
    profile_id: str | None = None,
    interface: str = "virtio",
    plugged: bool = True,
    linked: bool = True,
    nic_id: str | None = None,
) -> Nic:
    """Raises Refused (409) when the MAC address is in use."""
    if mac is not None and (owner := mac_owner(engine, mac)) is not None:
        raise conflict(f"MAC Address {mac} is already in use by VM or snapshot: {owner.name}.")
    if any(nic.name == name for nic in vm.nics):
        raise conflict(f"Cannot add Interface. The network interface name is already in use: {name}")
    made = Nic(nic_id or new_id(), name, mac or engine.new_mac(), profile_id, interface, plugged, linked)
    vm.nics.append(made)
    return made


def mac_owner(engine: Engine, mac: str) -> Vm | None:
    """The VM whose plugged NIC has this MAC address."""
    wanted = mac.lower()
    return next(
        (vm for vm in engine.vms.values() for nic in vm.nics if nic.mac.lower() == wanted and nic.plugged),
        None,
    )


def _disks(engine: Engine, vm: Vm) -> list[Disk]:
    return [engine.disks[disk_id] for disk_id in vm.attachments if disk_id in engine.disks]


def _set(engine: Engine, vm: Vm, status: str) -> None:
    with engine.lock:
        vm.status = status
        engine.changed.notify_all()
