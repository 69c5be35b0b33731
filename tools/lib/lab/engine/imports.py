"""A VM made from an OVF: its disks are attached if they exist, its NICs keep their MAC addresses."""

from __future__ import annotations

from lab.engine import vms
from lab.engine.core import Engine
from lab.engine.errors import Refused, bad_request
from lab.engine.model import Attachment, Cluster, Nic, Vm, new_id
from lab.engine.ovf_read import OvfNic, read_ovf


def import_vm(
    engine: Engine,
    data: str,
    cluster: Cluster,
    *,
    name: str | None,
    description: str | None = None,
    new_ids: bool,
) -> Vm:
    """`new_ids`: the VM and its NICs get other ids and MAC addresses. Not under the engine's lock. Raises
    Refused: 400 for an OVF that cannot be parsed, 409 when the name or the id is in use."""
    told = read_ovf(data)
    with engine.lock:
        chosen = name or told.name
        if not chosen:
            raise bad_request("Cannot import VM. The VM has no name.")
        vm = vms.add(engine, chosen, cluster, vm_id=None if new_ids else told.id, action="import")
        vm.status = "image_locked"
        vm.description = told.description if description is None else description
        vm.comment, vm.os, vm.bios = told.comment, told.os, told.bios
        vm.memory, vm.time_zone = told.memory, told.time_zone
        vm.sockets, vm.cores, vm.threads = told.sockets, told.cores, told.threads
        for nic in told.nics:
            _add_nic(engine, vm, nic, new_ids=new_ids)
    failed = []
    for disk in told.disks:
        attachment = Attachment(
            disk.id, disk.interface, disk.boot, disk.plugged, disk.read_only, disk.pass_discard
        )
        try:
            vms.attach(engine, vm, engine.disk(disk.id), attachment)
        except Refused:
            failed.append(disk.alias)
    with engine.lock:
        vm.status = "down"
        if failed:
            engine.event(
                175,
                f"VM {vm.name} has been imported from the given configuration but the following disk(s) "
                f"failed to attach: {','.join(failed)}.",
                "warning",
                vm=vm,
            )
        else:
            engine.event(
                174, f"VM {vm.name} has been successfully imported from the given configuration.", vm=vm
            )
    return vm


def _add_nic(engine: Engine, vm: Vm, told: OvfNic, *, new_ids: bool) -> None:
    profile_id = next(
        (
            profile.id
            for profile in engine.profiles.values()
            if profile.name == told.profile and engine.networks[profile.network_id].name == told.network
        ),
        None,
    )
    taken = {nic.id for other in engine.vms.values() for nic in other.nics}
    nic_id = told.id if told.id and told.id not in taken and not new_ids else new_id()
    mac = told.mac if told.mac and not new_ids else engine.new_mac()
    plugged = told.plugged
    if not new_ids and vms.mac_owner(engine, mac) is not None and plugged:
        plugged = False
        engine.event(
            838,
            f"Network Interface {told.name} has MAC address {mac} which is in use, therefore it is being "
            f"unplugged from VM {vm.name}.",
            "warning",
            vm=vm,
        )
    vm.nics.append(Nic(nic_id, told.name, mac, profile_id, told.interface, plugged, told.linked))
