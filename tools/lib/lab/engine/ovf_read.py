"""What an OVF tells of a VM that is to be made from it."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass

import defusedxml
from defusedxml.ElementTree import fromstring

from lab.engine.errors import bad_request
from lab.engine.ovf_names import (
    BIOSES,
    CPU,
    DISK,
    INTERFACES,
    MEMORY,
    MIB,
    NETWORK,
    NIC_TYPES,
    OVF,
    full_name,
)


@dataclass(frozen=True)
class OvfNic:
    id: str | None
    name: str
    mac: str | None
    profile: str | None
    network: str | None
    interface: str
    linked: bool
    plugged: bool


@dataclass(frozen=True)
class OvfDisk:
    """A disk that an OVF names; `plugged`: active."""

    id: str
    image_id: str
    alias: str
    interface: str
    boot: bool
    read_only: bool
    pass_discard: bool
    plugged: bool


@dataclass(frozen=True)
class OvfVm:
    """A VM as an OVF tells it; `memory` in bytes."""

    id: str | None
    name: str
    description: str
    comment: str
    memory: int
    sockets: int
    cores: int
    threads: int
    os: str
    time_zone: str
    bios: str
    nics: tuple[OvfNic, ...]
    disks: tuple[OvfDisk, ...]


def read_ovf(data: str) -> OvfVm:
    """Raises Refused (400) when it is no OVF of a VM, or hostile."""
    try:
        root: ET.Element = fromstring(data.strip(), forbid_dtd=True)
        return _read(root)
    except (ET.ParseError, defusedxml.DefusedXmlException, ValueError, LookupError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise bad_request(
            f"Cannot import VM. The OVF configuration could not be parsed. ({reason})"
        ) from None


def _read(root: ET.Element) -> OvfVm:
    if root.tag not in (full_name("ovf:Envelope"), f"{{{OVF.rstrip('/')}}}Envelope"):
        raise ValueError(f"the root element is {root.tag}")
    content = root.find("Content")
    if content is None:
        raise ValueError("no Content")
    sections = {_attribute(section, "type"): section for section in content.findall("Section")}
    system = sections["ovf:OperatingSystemSection_Type"]
    items = list(_items(sections["ovf:VirtualHardwareSection_Type"]))
    kinds = [(_child(item, "ResourceType"), item) for item in items]
    cpu = next(item for kind, item in kinds if kind == CPU)
    memory = next(item for kind, item in kinds if kind == MEMORY)
    plugged = {
        _child(item, "InstanceId"): _child(item, "IsPlugged") != "false"
        for kind, item in kinds
        if kind == DISK
    }
    bioses = {value: name for name, value in BIOSES.items()}
    return OvfVm(
        id=_attribute(system, "id"),
        name=content.findtext("Name", ""),
        description=content.findtext("Description") or "",
        comment=content.findtext("Comment") or "",
        memory=int(_child(memory, "VirtualQuantity") or 0) * MIB,
        sockets=int(_child(cpu, "num_of_sockets") or 1),
        cores=int(_child(cpu, "cpu_per_socket") or 1),
        threads=int(_child(cpu, "threads_per_cpu") or 1),
        os=system.findtext("Description") or "other",
        time_zone=content.findtext("TimeZone") or "Etc/GMT",
        bios=bioses.get(content.findtext("BiosType") or "", "q35_sea_bios"),
        nics=tuple(_read_nic(item) for kind, item in kinds if kind == NETWORK),
        disks=tuple(_read_disks(root, plugged)),
    )


def _read_disks(root: ET.Element, plugged: dict[str | None, bool]) -> Iterator[OvfDisk]:
    interfaces = {value: name for name, value in INTERFACES.items()}
    for section in root.findall("Section"):
        if _attribute(section, "type") != "ovf:DiskSection_Type":
            continue
        for found in section.findall("Disk"):
            disk_id, _, image_id = (_attribute(found, "fileRef") or "").partition("/")
            if not disk_id:
                raise ValueError("a Disk without fileRef")
            yield OvfDisk(
                id=disk_id,
                image_id=image_id,
                alias=_attribute(found, "disk-alias") or disk_id,
                interface=interfaces.get(_attribute(found, "disk-interface") or "", "virtio_scsi"),
                boot=_attribute(found, "boot") == "true",
                read_only=_attribute(found, "read-only") == "true",
                pass_discard=_attribute(found, "pass-discard") == "true",
                plugged=plugged.get(_attribute(found, "diskId"), True),
            )


def _read_nic(item: ET.Element) -> OvfNic:
    types = {value: name for name, value in NIC_TYPES.items()}
    return OvfNic(
        id=_child(item, "InstanceId"),
        name=_child(item, "Name") or "nic1",
        mac=_child(item, "MACAddress"),
        profile=_child(item, "OtherResourceType"),
        network=_child(item, "Connection"),
        interface=types.get(_child(item, "ResourceSubType") or "", "virtio"),
        linked=_child(item, "Linked") != "false",
        plugged=_child(item, "IsPlugged") != "false",
    )


def _items(hardware: ET.Element) -> Iterator[ET.Element]:
    yield from hardware.findall("Item")


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _attribute(found: ET.Element, name: str) -> str | None:
    """By its local name: engines before 4.2 had another namespace."""
    return next((value for key, value in found.attrib.items() if _local(key) == name), None)


def _child(found: ET.Element, name: str) -> str | None:
    text = next((child.text for child in found if _local(child.tag) == name), None)
    return (text or "").strip() or None
