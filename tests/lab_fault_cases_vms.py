"""What happens to VMs and storage."""

from __future__ import annotations

import pytest
from defusedxml.ElementTree import fromstring
from lab_client_helpers import refusal
from lab_fault_bench import Bench, case
from lab_helpers import MIB
from ovirt_imageio._internal import http as imageio_http
from ovirtsdk4 import types


@case("power-off-hard")
def _(on: Bench) -> None:
    since = on.sdk.checkpoint(on.vm)
    on.break_("power-off-hard")
    assert on.vm.machine.running
    assert not on.vm.machine.checkpoint_valid(since, on.root)
    service = on.sdk.add_backup(on.vm)
    on.sdk.until_phase(service, "ready")
    on.break_("power-off-hard", up=False)
    assert not on.vm.machine.running
    on.sdk.until_phase(service, "failed")


@case("snapshot-restored")
def _(on: Bench) -> None:
    on.vm.snapshot()
    on.vm.write("root", 0, b"later")
    on.sdk.checkpoint(on.vm)
    on.break_("snapshot-restored")
    assert on.vm.machine.read(on.root, 0, 5) == bytes(5)
    assert on.sdk.vm(on.vm).checkpoints_service().list() == []


@case("vm-removed")
def _(on: Bench) -> None:
    on.break_("vm-removed", at="reading")
    with on.transfer() as (service, client):
        with pytest.raises((imageio_http.Error, OSError)):
            client.read(0, bytearray(MIB))
        on.sdk.until_phase(service, "finished_failure")
        assert on.sdk.vms.list(search=f"name={on.vm.name}") == []
        with refusal(404):
            on.sdk.disks.disk_service(on.root).get()


@case("vm-migrated")
def _(on: Bench) -> None:
    before = on.sdk.vm(on.vm).get().host.id
    service = on.sdk.add_backup(on.vm)
    on.sdk.until_phase(service, "ready")
    on.break_("vm-migrated")
    assert on.sdk.vm(on.vm).get().host.id != before
    on.sdk.until_phase(service, "failed")


@case("disk-added")
def _(on: Bench) -> None:
    on.break_("disk-added", size=MIB)
    assert len(on.sdk.vm(on.vm).disk_attachments_service().list()) == 3
    assert on.ends() == "ready"


@case("disk-removed")
def _(on: Bench) -> None:
    on.break_("disk-removed")
    (left,) = on.sdk.vm(on.vm).disk_attachments_service().list()
    assert left.id == on.root


@case("disk-resized")
def _(on: Bench) -> None:
    on.break_("disk-resized", disk="root", size=4 * MIB)
    assert on.sdk.disks.disk_service(on.root).get().provisioned_size == 4 * MIB
    on.vm.write("root", 3 * MIB, b"new")


@case("snapshot-taken")
def _(on: Bench) -> None:
    on.break_("snapshot-taken")
    assert len(on.sdk.vm(on.vm).snapshots_service().list()) == 2


@case("snapshot-removed")
def _(on: Bench) -> None:
    on.vm.snapshot()
    on.break_("snapshot-removed")
    assert len(on.sdk.vm(on.vm).snapshots_service().list()) == 1


@case("name-not-unique")
def _(on: Bench) -> None:
    on.break_("name-not-unique")
    assert len(on.sdk.vms.list(search=f"name={on.vm.name}")) == 2
    on.lab.faults.mend()
    assert len(on.sdk.vms.list(search=f"name={on.vm.name}")) == 1


@case("mac-in-use")
def _(on: Bench) -> None:
    on.break_("mac-in-use")
    macs = [each.mac.address for vm in on.sdk.vms.list() for each in on.sdk.vm(vm.id).nics_service().list()]
    assert len(macs) == len(set(macs)) + 1


@case("ovf-hostile")
def _(on: Bench) -> None:
    for form in ("bomb", "external", "broken", "huge", "names"):
        on.break_("ovf-hostile", form=form)
        told = on.sdk.vm(on.vm).get(all_content=True).initialization.configuration.data
        if form in ("bomb", "external", "broken"):
            with pytest.raises(Exception, match=r"Entit|unbound prefix"):
                fromstring(told)
        on.lab.faults.mend()
    assert on.vm.name in on.sdk.vm(on.vm).get(all_content=True).initialization.configuration.data


@case("import-fails")
def _(on: Bench) -> None:
    asked = types.Vm(name="new", cluster=types.Cluster(name="Default"), template=types.Template(name="Blank"))
    on.lab.faults.break_("import-fails")
    with refusal(500):
        on.sdk.vms.add(asked)
    made = on.sdk.vms.add(asked)
    on.sdk.vm(made.id).remove()
    on.sdk.wait(lambda: on.sdk.vms.list(search="name=new"), lambda found: not found)


@case("storage-domain-full")
def _(on: Bench) -> None:
    on.break_("storage-domain-full")
    with refusal(409):
        on.sdk.new_disk(MIB)
    (domain,) = on.sdk.system.storage_domains_service().list(search="name=data")
    assert domain.available == 0
    on.lab.faults.mend()
    on.sdk.disks.disk_service(on.sdk.new_disk(MIB)).remove()
