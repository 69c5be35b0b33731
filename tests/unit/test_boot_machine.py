"""What kind of machine a VM was, from configurations of several kinds, most of them hostile."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmfs.boot.machine import Attached, Machine, parse_machine, read_machine

DOMAIN = """<domain type='kvm'><name>x</name><memory unit='GiB'>4</memory><vcpu placement='static'>3</vcpu>
<os firmware='efi'><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os></domain>"""
OVF = """<?xml version='1.0'?><ovf:Envelope xmlns:ovf='http://schemas.dmtf.org/ovf/envelope/1/'
 xmlns:rasd='http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData'>
<Content><BiosType>{bios}</BiosType><Section>
<Item><rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>4</rasd:VirtualQuantity></Item>
<Item><rasd:ResourceType>4</rasd:ResourceType><rasd:AllocationUnits>MegaBytes</rasd:AllocationUnits>
<rasd:VirtualQuantity>{memory}</rasd:VirtualQuantity></Item></Section></Content></ovf:Envelope>"""


def test_a_domain_of_libvirt() -> None:
    assert parse_machine("domain.xml", DOMAIN.encode()) == Machine(
        memory=4096, cpus=3, firmware="uefi", chipset="q35", source="domain.xml"
    )


def test_a_domain_tells_how_its_disks_were_attached() -> None:
    disks = """<domain><devices>
    <disk device='cdrom'><target dev='hda' bus='ide'/></disk>
    <disk type='file' device='disk'><source file='/srv/db.data.qcow2'/><target dev='vda' bus='virtio'/></disk>
    <disk><source dev='/dev/vg/system'/><target dev='sda' bus='scsi'/><boot order='1'/></disk>
    <disk><boot order='1'/></disk></devices></domain>"""
    found = parse_machine("domain.xml", disks.encode())
    assert found is not None
    assert found.disks == {
        "db.data": Attached("virtio", None),
        "vda": Attached("virtio", None),
        "system": Attached("scsi", 1),
        "sda": Attached("scsi", 1),
    }


@pytest.mark.parametrize(
    ("bios", "chipset", "firmware"),
    [("0", "pc", "bios"), ("1", "q35", "bios"), ("2", "q35", "uefi"), ("99", None, None)],
)
def test_an_ovf_of_an_engine(bios: str, chipset: str | None, firmware: str | None) -> None:
    found = parse_machine("vm.ovf", OVF.format(bios=bios, memory=2048).encode())
    assert found is not None
    assert (found.memory, found.cpus, found.chipset, found.firmware) == (2048, 4, chipset, firmware)


@pytest.mark.parametrize("memory", ["-5", "1e9", "99999999999999999999999", "0", "", "٣", "999999999999"])
def test_numbers_that_cannot_be_are_left_out(memory: str) -> None:
    found = parse_machine("vm.ovf", OVF.format(bios=1, memory=memory).encode())
    assert found is not None
    assert found.memory is None
    assert found.cpus == 4


@pytest.mark.parametrize(
    "text",
    [
        "<!DOCTYPE d [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;&a;&a;'>]><domain><vcpu>&b;</vcpu></domain>",
        "<!DOCTYPE d [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><domain><vcpu>&x;</vcpu></domain>",
        "<domain>" * 200_000,
        "<other/>",
        "",
        "\0",
    ],
)
def test_hostile_xml_says_nothing(text: str) -> None:
    assert parse_machine("domain.xml", text.encode()) is None


def test_deep_xml_is_read_and_done_with() -> None:
    deep = "<a>" * 100_000 + "</a>" * 100_000
    found = parse_machine("domain.xml", f"<domain><vcpu>2</vcpu>{deep}</domain>".encode())
    assert found is None or found.cpus == 2


@given(st.binary(max_size=300), st.sampled_from(["vm.ovf", "domain.xml", "vm.json", "other"]))
def test_no_bytes_raise(data: bytes, name: str) -> None:
    parse_machine(name, data)


@given(
    st.recursive(
        st.none() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_no_json_raises(tree: object) -> None:
    parse_machine("vm.json", json.dumps({"vm": {"memory": tree, "cpus": tree}}).encode())


def test_the_ovf_counts_and_what_is_too_large_is_not_read() -> None:
    contents = {"vm.json": b'{"vm": {"cpus": 7}}', "vm.ovf": OVF.format(bios=1, memory=100).encode()}
    sizes = {name: len(content) for name, content in contents.items()}
    assert read_machine(sizes, contents.__getitem__).cpus == 4
    assert read_machine({**sizes, "vm.ovf": 1 << 30}, contents.__getitem__).cpus == 7
    assert read_machine({}, contents.__getitem__) == Machine()
