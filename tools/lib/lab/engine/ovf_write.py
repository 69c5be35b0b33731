"""The OVF that the engine gives of a VM, written from its state. The layout is that of OvfOvirtWriter in
https://github.com/oVirt/ovirt-engine."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from datetime import datetime
from typing import TYPE_CHECKING

from lab.engine.model import GIB, Disk, Nic, Vm, now
from lab.engine.ovf_names import (
    BIOSES,
    CPU,
    DISK,
    FORMATS,
    INTERFACES,
    MEMORY,
    MIB,
    NETWORK,
    NIC_TYPES,
    PREFIXES,
    USB,
    VERSION,
    full_name,
)

if TYPE_CHECKING:
    from lab.engine.core import Engine


class _Node:
    """A thin writer: names like `rasd:Caption`, attributes like {"ovf:id": …}."""

    def __init__(self, element: ET.Element) -> None:
        self.element = element

    def add(self, name: str, text: object = None, attributes: dict[str, object] | None = None) -> _Node:
        child = ET.SubElement(
            self.element,
            full_name(name),
            {full_name(key): _text(value) for key, value in (attributes or {}).items()},
        )
        if text is not None:
            child.text = _text(text)
        return _Node(child)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        return value.strftime("%Y/%m/%d %H:%M:%S")
    return str(value)


def _gib(size: int) -> int:
    return -(-size // GIB)


def write_ovf(engine: Engine, vm: Vm) -> str:
    """The configuration of a VM as the engine gives it with all_content=true."""
    for prefix, uri in PREFIXES.items():
        ET.register_namespace(prefix, uri)
    root = ET.Element(full_name("ovf:Envelope"), {full_name("ovf:version"): VERSION})
    top = _Node(root)
    disks = [engine.disks[disk_id] for disk_id in vm.attachments]
    files = top.add("References")
    for disk in disks:
        files.add(
            "File",
            attributes={
                "ovf:href": f"{disk.id}/{disk.image_id}",
                "ovf:id": disk.image_id,
                "ovf:size": engine.actual_size(disk),
                "ovf:description": "Active VM",
                "ovf:disk_storage_type": "IMAGE",
                "ovf:cinder_volume_type": "",
            },
        )
    networks = top.add("NetworkSection")
    networks.add("Info", "List of networks")
    for name in dict.fromkeys(name for nic in vm.nics if (name := _network_name(engine, nic))):
        networks.add("Network", attributes={"ovf:name": name})
    section = top.add("Section", attributes={"xsi:type": "ovf:DiskSection_Type"})
    section.add("Info", "List of Virtual Disks")
    for disk in disks:
        _write_disk(engine, section, vm, disk)
    content = top.add("Content", attributes={"ovf:id": "out", "xsi:type": "ovf:VirtualSystem_Type"})
    _write_general(engine, content, vm)
    system = content.add(
        "Section",
        attributes={"ovf:id": vm.id, "ovf:required": False, "xsi:type": "ovf:OperatingSystemSection_Type"},
    )
    system.add("Info", "Guest Operating System")
    system.add("Description", vm.os)
    _write_hardware(engine, content, vm, disks)
    # The DiskSection_Type of xsi:type is a name in a value, which the serializer does not see.
    return '<?xml version="1.0" encoding="UTF-8"?>' + ET.tostring(root, encoding="unicode")


def _write_disk(engine: Engine, section: _Node, vm: Vm, disk: Disk) -> None:
    attachment = vm.attachments[disk.id]
    volume, uri = FORMATS[engine.disk_format(disk)]
    section.add(
        "Disk",
        attributes={
            "ovf:diskId": disk.image_id,
            "ovf:size": _gib(disk.size),
            "ovf:actual_size": _gib(engine.actual_size(disk)),
            "ovf:vm_snapshot_id": vm.active_snapshot_id,
            "ovf:parentRef": f"{disk.id}/{disk.images[-2]}" if len(disk.images) > 1 else "",
            "ovf:fileRef": f"{disk.id}/{disk.image_id}",
            "ovf:format": uri,
            "ovf:volume-format": volume,
            "ovf:volume-type": "Sparse" if disk.sparse else "Preallocated",
            "ovf:disk-interface": INTERFACES[attachment.interface],
            "ovf:read-only": attachment.read_only,
            "ovf:shareable": disk.shareable,
            "ovf:boot": attachment.bootable,
            "ovf:pass-discard": attachment.pass_discard,
            "ovf:incremental-backup": disk.backup == "incremental",
            "ovf:disk-alias": disk.alias,
            "ovf:disk-description": disk.description,
            "ovf:wipe-after-delete": disk.wipe_after_delete,
        },
    )


def _write_general(engine: Engine, content: _Node, vm: Vm) -> None:
    cluster = engine.clusters[vm.cluster_id]
    general: dict[str, object] = {
        "Name": vm.name,
        "Description": vm.description,
        "Comment": vm.comment,
        "CreationDate": vm.creation,
        "ExportDate": now(),
        "DeleteProtected": False,
        "SsoMethod": "guest_agent",
        "IsSmartcardEnabled": False,
        "NumOfIoThreads": 1,
        "TimeZone": vm.time_zone,
        "default_boot_sequence": 0,
        "Generation": 1,
        "ClusterCompatibilityVersion": f"{cluster.level[0]}.{cluster.level[1]}",
        "VmType": 1,
        "ResumeBehavior": "AUTO_RESUME",
        "MinAllocatedMem": vm.memory // MIB,
        "IsStateless": False,
        "IsRunAndPause": False,
        "AutoStartup": False,
        "Priority": 1,
        "MigrationSupport": 0,
        "IsBootMenuEnabled": False,
        "IsSpiceFileTransferEnabled": True,
        "IsSpiceCopyPasteEnabled": True,
        "AllowConsoleReconnect": True,
        "ConsoleDisconnectAction": "LOCK_SCREEN",
        "ConsoleDisconnectActionDelay": 0,
        "CustomEmulatedMachine": "",
        "BiosType": BIOSES[vm.bios],
        "CustomCpuName": "",
        "PredefinedProperties": "",
        "UserDefinedProperties": "",
        "MaxMemorySizeMb": 4 * vm.memory // MIB,
        "MultiQueuesEnabled": True,
        "VirtioScsiMultiQueuesEnabled": False,
        "UseHostCpu": False,
        "BalloonEnabled": True,
        "CpuPinningPolicy": 0,
        "ClusterName": cluster.name,
        "TemplateId": vm.template_id,
        "TemplateName": vm.template_name,
        "IsInitilized": True,
        "Origin": 3,
        "quota_id": "",
        "DefaultDisplayType": 1,
        "TrustedService": False,
        "OriginalTemplateId": vm.template_id,
        "OriginalTemplateName": vm.template_name,
        "UseLatestVersion": False,
    }
    for name, value in general.items():
        content.add(name, value)


def _write_hardware(engine: Engine, content: _Node, vm: Vm, disks: list[Disk]) -> None:
    hardware = content.add("Section", attributes={"xsi:type": "ovf:VirtualHardwareSection_Type"})
    count = vm.sockets * vm.cores * vm.threads
    megabytes = vm.memory // MIB
    hardware.add("Info", f"{count} CPU, {megabytes} Memory")
    hardware.add("System").add("vssd:VirtualSystemType", f"ENGINE {VERSION}")
    cpu = hardware.add("Item")
    for name, value in (
        ("Caption", f"{count} virtual cpu"),
        ("Description", "Number of virtual CPU"),
        ("InstanceId", 1),
        ("ResourceType", CPU),
        ("num_of_sockets", vm.sockets),
        ("cpu_per_socket", vm.cores),
        ("threads_per_cpu", vm.threads),
        ("max_num_of_vcpus", 16 * count),
        ("VirtualQuantity", count),
    ):
        cpu.add(f"rasd:{name}", value)
    memory = hardware.add("Item")
    for name, value in (
        ("Caption", f"{megabytes} MB of memory"),
        ("Description", "Memory Size"),
        ("InstanceId", 2),
        ("ResourceType", MEMORY),
        ("AllocationUnits", "MegaBytes"),
        ("VirtualQuantity", megabytes),
    ):
        memory.add(f"rasd:{name}", value)
    for disk in disks:
        _write_disk_item(engine, hardware, vm, disk)
    for nic in vm.nics:
        _write_nic(engine, hardware, nic)
    usb = hardware.add("Item")
    for name, value in (
        ("Caption", "USB Controller"),
        ("InstanceId", 3),
        ("ResourceType", USB),
        ("UsbPolicy", "DISABLED"),
    ):
        usb.add(f"rasd:{name}", value)


def _write_disk_item(engine: Engine, hardware: _Node, vm: Vm, disk: Disk) -> None:
    attachment = vm.attachments[disk.id]
    item = hardware.add("Item")
    for name, value in (
        ("Caption", disk.alias),
        ("InstanceId", disk.image_id),
        ("ResourceType", DISK),
        ("HostResource", f"{disk.id}/{disk.image_id}"),
        ("Parent", disk.images[-2] if len(disk.images) > 1 else vm.template_id),
        ("Template", vm.template_id),
        ("ApplicationList", ""),
        ("StorageId", disk.storage_domain_id),
        ("StoragePoolId", engine.data_center_id),
        ("CreationDate", disk.creation),
        ("LastModified", disk.creation),
        ("last_modified_date", disk.creation),
    ):
        item.add(f"rasd:{name}", value)
    order = 1 if attachment.bootable else 0
    _write_device(item, "disk", "disk", order, attachment.active, attachment.read_only)


def _write_nic(engine: Engine, hardware: _Node, nic: Nic) -> None:
    item = hardware.add("Item")
    network = _network_name(engine, nic)
    profile = engine.profiles.get(nic.profile_id or "")
    for name, value in (
        ("Caption", f"Ethernet adapter on {network or '[No Network]'}"),
        ("InstanceId", nic.id),
        ("ResourceType", NETWORK),
        ("OtherResourceType", profile.name if profile else ""),
        ("ResourceSubType", NIC_TYPES.get(nic.interface, "3")),
        ("Connection", network or ""),
        ("Linked", nic.linked),
        ("Name", nic.name),
        ("ElementName", nic.name),
        ("MACAddress", nic.mac),
        ("speed", 10000),
    ):
        item.add(f"rasd:{name}", value)
    _write_device(item, "interface", "bridge", 0, nic.plugged, False)


def _write_device(item: _Node, kind: str, device: str, order: int, plugged: bool, read_only: bool) -> None:
    for name, value in (
        ("Type", kind),
        ("Device", device),
        ("rasd:Address", ""),
        ("BootOrder", order),
        ("IsPlugged", plugged),
        ("IsReadOnly", read_only),
        ("Alias", ""),
    ):
        item.add(name, value)


def _network_name(engine: Engine, nic: Nic) -> str | None:
    profile = engine.profiles.get(nic.profile_id or "")
    return engine.networks[profile.network_id].name if profile else None
