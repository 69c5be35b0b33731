"""An OVF as ovirt-engine 4.5 writes it, shortened where nothing of ours looks."""

from __future__ import annotations

VM = "7a5e1d3c-0000-4000-8000-000000000001"
DISKS = ("d15c0000-0000-4000-8000-000000000001", "d15c0000-0000-4000-8000-000000000002")
IMAGES = ("1aa6e000-0000-4000-8000-000000000001", "1aa6e000-0000-4000-8000-000000000002")
BASE_IMAGE = "1aa6e000-0000-4000-8000-0000000000ba"
"""The image of the second disk below its active one: it has a snapshot."""
NICS = ("e7400000-0000-4000-8000-000000000001", "e7400000-0000-4000-8000-000000000002")
DOMAIN = "5d000000-0000-4000-8000-000000000001"
MACS = ("56:6f:6b:00:00:01", "56:6F:6B:00:00:02")
ACTIVE = "5a950000-0000-4000-8000-0000000000ac"
REGULAR = "5a950000-0000-4000-8000-000000000001"
CIM = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2"
NOBODY = "00000000-0000-0000-0000-000000000000"


def _file(disk: str, image: str) -> str:
    return (
        f'<File ovf:href="{disk}/{image}" ovf:id="{image}" ovf:size="6815744" ovf:description="Active VM" '
        'ovf:disk_storage_type="IMAGE" ovf:cinder_volume_type=""></File>'
    )


def _disk(disk: str, image: str, alias: str, snapshot: str, fmt: str, kind: str, *, boot: bool) -> str:
    return (
        f'<Disk ovf:diskId="{image}" ovf:size="1" ovf:actual_size="1" ovf:vm_snapshot_id="{snapshot}" '
        f'ovf:parentRef="" ovf:fileRef="{disk}/{image}" '
        'ovf:format="http://www.gnome.org/~markmc/qcow-image-format.html" '
        f'ovf:volume-format="{fmt}" ovf:volume-type="{kind}" ovf:disk-interface="VirtIO_SCSI" '
        f'ovf:read-only="false" ovf:shareable="false" ovf:boot="{str(boot).lower()}" '
        f'ovf:pass-discard="false" ovf:incremental-backup="true" ovf:disk-alias="{alias}" '
        'ovf:disk-description="it&apos;s &lt;mine&gt;" ovf:wipe-after-delete="false"></Disk>'
    )


def _drive(disk: str, image: str, alias: str, parent: str) -> str:
    return (
        f"<Item><rasd:Caption>{alias}</rasd:Caption><rasd:InstanceId>{image}</rasd:InstanceId>"
        "<rasd:ResourceType>17</rasd:ResourceType>"
        f"<rasd:HostResource>{disk}/{image}</rasd:HostResource><rasd:Parent>{parent}</rasd:Parent>"
        f"<rasd:Template>{NOBODY}</rasd:Template><rasd:ApplicationList></rasd:ApplicationList>"
        f"<rasd:StorageId>{DOMAIN}</rasd:StorageId><rasd:StoragePoolId>{NOBODY}</rasd:StoragePoolId>"
        "<Type>disk</Type><Device>disk</Device><rasd:Address>{type=drive}</rasd:Address>"
        "<BootOrder>1</BootOrder><IsPlugged>true</IsPlugged><IsReadOnly>false</IsReadOnly></Item>"
    )


def _nic(nic: str, name: str, mac: str, profile: str) -> str:
    return (
        "<Item><rasd:Caption>Ethernet adapter on ovirtmgmt</rasd:Caption>"
        f"<rasd:InstanceId>{nic}</rasd:InstanceId><rasd:ResourceType>10</rasd:ResourceType>"
        f"<rasd:OtherResourceType>{profile}</rasd:OtherResourceType>"
        "<rasd:ResourceSubType>3</rasd:ResourceSubType><rasd:Connection>ovirtmgmt</rasd:Connection>"
        f"<rasd:Linked>true</rasd:Linked><rasd:Name>{name}</rasd:Name>"
        f"<rasd:ElementName>{name}</rasd:ElementName>"
        f"<rasd:MACAddress>{mac}</rasd:MACAddress><rasd:speed>10000</rasd:speed><Type>interface</Type>"
        "<Device>bridge</Device><rasd:Address></rasd:Address><BootOrder>0</BootOrder>"
        "<IsPlugged>true</IsPlugged></Item>"
    )


def sample(*, snapshot: bool) -> bytes:
    """A VM with two disks and two NICs; the second disk, and the VM, with a snapshot if so."""
    older = snapshot
    return "".join(
        (
            '<?xml version="1.0" encoding="UTF-8"?>',
            '<ovf:Envelope xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1/" '
            f'xmlns:rasd="{CIM}/CIM_ResourceAllocationSettingData" '
            f'xmlns:vssd="{CIM}/CIM_VirtualSystemSettingData" '
            'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" ovf:version="4.5.4.0">',
            "<References>",
            _file(DISKS[0], IMAGES[0]),
            _file(DISKS[1], BASE_IMAGE) if older else "",
            _file(DISKS[1], IMAGES[1]),
            f'<Nic ovf:id="{NICS[0]}"/>',
            "</References>",
            '<NetworkSection><Info>List of networks</Info><Network ovf:name="ovirtmgmt"/></NetworkSection>',
            '<Section xsi:type="ovf:DiskSection_Type"><Info>List of Virtual Disks</Info>',
            _disk(DISKS[0], IMAGES[0], "root", ACTIVE, "COW", "Sparse", boot=True),
            _disk(DISKS[1], BASE_IMAGE, "data", REGULAR, "RAW", "Preallocated", boot=False) if older else "",
            _disk(DISKS[1], IMAGES[1], "data", ACTIVE, "COW", "Sparse", boot=False),
            "</Section>",
            '<Content ovf:id="out" xsi:type="ovf:VirtualSystem_Type"><Name>web</Name>',
            "<Description>Größe &amp; Ärger: 東京</Description><Comment></Comment><!-- a comment -->",
            "<CreationDate>2026/11/20 10:00:00</CreationDate><ClusterName>Default</ClusterName>",
            f'<TemplateName>Blank</TemplateName><Section ovf:id="{VM}" ovf:required="false" ',
            'xsi:type="ovf:OperatingSystemSection_Type"><Info>Guest Operating System</Info>',
            "<Description>rhel_8x64</Description></Section>",
            '<Section xsi:type="ovf:VirtualHardwareSection_Type"><Info>2 CPU, 1024 Memory</Info>',
            "<System><vssd:VirtualSystemType>ENGINE 4.5.4.0</vssd:VirtualSystemType></System>",
            "<Item><rasd:Caption>2 virtual cpu</rasd:Caption><rasd:InstanceId>1</rasd:InstanceId>"
            "<rasd:ResourceType>3</rasd:ResourceType></Item>",
            _drive(DISKS[0], IMAGES[0], "root", NOBODY),
            _drive(DISKS[1], BASE_IMAGE, "data", NOBODY) if older else "",
            _drive(DISKS[1], IMAGES[1], "data", BASE_IMAGE if older else NOBODY),
            _nic(NICS[0], "nic1", MACS[0], "ovirtmgmt"),
            _nic(NICS[1], "nic2", MACS[1], "backup"),
            "</Section>",
            '<Section xsi:type="ovf:SnapshotsSection_Type">',
            f'<Snapshot ovf:id="{REGULAR}"><Type>REGULAR</Type></Snapshot>' if older else "",
            f'<Snapshot ovf:id="{ACTIVE}"><Type>ACTIVE</Type></Snapshot>',
            "</Section></Content></ovf:Envelope>",
        )
    ).encode()


SAMPLE = sample(snapshot=True)
PLAIN = sample(snapshot=False)
