"""The vocabulary of oVirt's OVF."""

from __future__ import annotations

OVF = "http://schemas.dmtf.org/ovf/envelope/1/"
RASD = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
VSSD = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData"
XSI = "http://www.w3.org/2001/XMLSchema-instance"
PREFIXES = {"ovf": OVF, "rasd": RASD, "vssd": VSSD, "xsi": XSI}
VERSION = "4.5.6.0"
MIB = 1 << 20

CPU, MEMORY, NETWORK, DISK, USB = "3", "4", "10", "17", "23"
"""Resource types."""
INTERFACES = {"virtio_scsi": "VirtIO_SCSI", "virtio": "VirtIO", "ide": "IDE", "sata": "SATA"}
NIC_TYPES = {"rtl8139": "1", "e1000": "2", "virtio": "3"}
BIOSES = {"i440fx_sea_bios": "0", "q35_sea_bios": "1", "q35_ovmf": "2", "q35_secure_boot": "3"}
FORMATS = {
    "raw": ("RAW", "http://www.vmware.com/specifications/vmdk.html#sparse"),
    "cow": ("COW", "http://www.gnome.org/~markmc/qcow-image-format.html"),
}


def full_name(name: str) -> str:
    prefix, colon, local = name.partition(":")
    return f"{{{PREFIXES[prefix]}}}{local}" if colon else name
