"""VMs of the lab's engine as the SDK sees them: states, disks, snapshots, and what an OVF makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from defusedxml.ElementTree import fromstring
from lab_client_helpers import SdkClient, refusal, sdk_client, three_disks
from lab_helpers import MIB, Lab, needs_lab, running_lab
from ovirtsdk4 import types

pytestmark = needs_lab


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with running_lab(tmp_path_factory.mktemp("lab")) as lab:
        yield lab


@pytest.fixture
def sdk(lab: Lab) -> Iterator[SdkClient]:
    with sdk_client(lab) as client:
        yield client
    assert lab.leftovers() == []


def ovf_of(sdk: SdkClient, vm_id: str) -> str:
    found = sdk.vm(vm_id).get(all_content=True).initialization.configuration
    assert found.type == types.ConfigurationType.OVF
    return str(found.data)


def import_vm(sdk: SdkClient, ovf: str, name: str, **options: Any) -> Any:
    configuration = types.Configuration(data=ovf, type=types.ConfigurationType.OVF)
    asked = types.Vm(
        name=name,
        cluster=types.Cluster(name="Default"),
        initialization=types.Initialization(configuration=configuration),
    )
    return sdk.vms.add(asked, **options)


def test_finding_vms(sdk: SdkClient, lab: Lab) -> None:
    vm = three_disks(lab, up=False)
    assert [found.id for found in sdk.vms.list(search=f"name={vm.name}")] == [vm.id]
    assert [found.id for found in sdk.vms.list(search=f"name={vm.name[:-1]}* and id={vm.id}")] == [vm.id]
    assert sdk.vms.list(search="name=nobody") == []
    assert len(sdk.vms.list(max=1)) == 1
    with refusal(404):
        sdk.vm("00000000-0000-0000-0000-000000000001").get()


def test_a_vms_disks(sdk: SdkClient, lab: Lab) -> None:
    vm = three_disks(lab, up=False)
    found = sdk.vm(vm).get(follow="disk_attachments.disk").disk_attachments
    assert [each.bootable for each in found] == [True, False, False]
    assert {each.disk.alias: str(each.disk.format) for each in found} == {
        "root": "cow",
        "raw": "raw",
        "deep": "cow",
    }
    first = sdk.connection.follow_link(sdk.vm(vm).disk_attachments_service().list()[0].disk)
    assert (first.id, first.provisioned_size, str(first.status)) == (vm.disks["root"], 4 * MIB, "ok")
    assert MIB <= first.actual_size < 2 * MIB


def test_start_migrate_stop(sdk: SdkClient, lab: Lab) -> None:
    vm = three_disks(lab, up=False)
    service = sdk.vm(vm)
    service.start()
    with refusal(409):
        service.start()
    up = sdk.wait(service.get, lambda it: it.status == types.VmStatus.UP)
    service.migrate()
    moved = sdk.wait(service.get, lambda it: it.status == types.VmStatus.UP)
    assert moved.host.id != up.host.id
    service.stop()
    assert sdk.wait(service.get, lambda it: it.status == types.VmStatus.DOWN).host is None


def test_the_ovf(sdk: SdkClient, lab: Lab) -> None:
    vm = three_disks(lab, up=False)
    ovf = ovf_of(sdk, vm.id)
    root = fromstring(ovf)
    uri = "{http://schemas.dmtf.org/ovf/envelope/1/}"
    assert root.tag == uri + "Envelope"
    assert root.findtext("Content/Name") == vm.name
    files = [file.get(uri + "href", "").split("/")[0] for file in root.findall("References/File")]
    assert files == list(vm.disks.values())
    disks = root.findall("Section/Disk")
    assert [disk.get(uri + "volume-format") for disk in disks] == ["COW", "RAW", "COW"]
    assert [disk.get(uri + "boot") for disk in disks] == ["true", "false", "false"]
    listed = sdk.vms.list(search=f"name={vm.name}", all_content=True)
    assert vm.name in listed[0].initialization.configuration.data
    assert sdk.vm(vm).get().initialization is None


def test_a_vm_made_again_from_its_ovf(sdk: SdkClient, lab: Lab) -> None:
    """Detached disks are attached again, by their ids."""
    vm = three_disks(lab, up=False)
    before, nic = ovf_of(sdk, vm.id), sdk.vm(vm).nics_service().list()[0]
    with refusal(409):
        import_vm(sdk, before, vm.name)
    with refusal(409):  # the id
        import_vm(sdk, before, vm.name + "-2")
    sdk.vm(vm).remove(detach_only=True)
    sdk.wait(lambda: sdk.vms.list(search=f"name={vm.name}"), lambda found: not found)
    made = import_vm(sdk, before, vm.name)
    assert made.id == vm.id
    assert without_times(ovf_of(sdk, made.id)) == without_times(before)
    assert sdk.vm(vm).nics_service().list()[0].mac.address == nic.mac.address
    vm.start()
    assert vm.machine.read(vm.disks["root"], MIB, 3) == b"rrr"


def without_times(ovf: str) -> list[tuple[str, dict[str, str], str]]:
    times = ("CreationDate", "ExportDate")
    return [
        (node.tag, node.attrib, node.text or "")
        for node in fromstring(ovf).iter()
        if node.tag not in times and not any("vm_snapshot_id" in key for key in node.attrib)
    ]


def test_a_second_vm_from_an_ovf(sdk: SdkClient, lab: Lab) -> None:
    """A clone gets ids and MAC addresses of its own; one that is not gets its NIC unplugged."""
    vm = three_disks(lab, up=False)
    ovf = ovf_of(sdk, vm.id)
    clone = import_vm(sdk, ovf, vm.name + "-clone", clone=True)
    nics = [sdk.vm(each).nics_service().list()[0] for each in (vm.id, clone.id)]
    assert nics[0].mac.address != nics[1].mac.address
    assert nics[1].plugged
    assert sdk.vm(clone.id).disk_attachments_service().list() == []
    assert sdk.event_codes()[0] == 175  # disks could not be attached
    kept = import_vm(sdk, ovf.replace(vm.id, "0d0d0d0d-0000-0000-0000-000000000001"), vm.name + "-kept")
    nic = sdk.vm(kept.id).nics_service().list()[0]
    assert (nic.mac.address, nic.plugged) == (nics[0].mac.address, False)
    assert 838 in sdk.event_codes()[:3]


def test_an_ovf_that_is_none(sdk: SdkClient) -> None:
    for bad in ("<a/>", "not XML", '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'):
        with refusal(400):
            import_vm(sdk, bad, "bad")
    assert sdk.vms.list(search="name=bad") == []


def test_snapshots(sdk: SdkClient, lab: Lab) -> None:
    """Restoring one takes the disks back, and all checkpoints with it."""
    vm = three_disks(lab)
    service = sdk.vm(vm).snapshots_service()
    added = service.add(types.Snapshot(description="mine", persist_memorystate=False))
    one = service.snapshot_service(added.id)
    sdk.wait(one.get, lambda it: it.snapshot_status == types.SnapshotStatus.OK)
    assert [str(each.snapshot_type) for each in service.list()] == ["active", "regular", "regular"]
    vm.write("root", 0, b"later")
    sdk.checkpoint(vm)
    assert len(sdk.vm(vm).checkpoints_service().list()) == 1
    layers = sdk.disks.disk_service(vm.disks["root"]).disk_snapshots_service().list()
    assert [layer.snapshot.id for layer in layers] == [added.id]
    with refusal(409):
        one.restore()
    vm.stop()
    one.restore()
    sdk.wait(sdk.vm(vm).get, lambda it: it.status == types.VmStatus.DOWN)
    assert sdk.vm(vm).checkpoints_service().list() == []
    vm.start()
    assert vm.machine.read(vm.disks["root"], 0, 5) == bytes(5)
    one.remove()
    sdk.wait(service.list, lambda found: added.id not in [each.id for each in found])
