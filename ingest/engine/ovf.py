"""The engine's OVF of a VM: what a restore must know of it, and the few values that a restore changes.

It is the engine's own dialect, not the standard's: what is read here is what OvfOvirtWriter of ovirt-engine
4.4 to 4.5 writes, and what is changed is what its OvfOvirtReader goes by. A disk has an id, and each of its
images (one for each snapshot, and the active one) has an id of its own; a VM that is imported attaches the
disks of the ids that the OVF names. An OVF comes out of the repository, so it may be years old, and whoever
wrote it may have been hostile: see `ingest.engine.xmlspans` for the limits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from ingest.engine.xmlspans import Document, Element, XmlError
from vmfs.errors import VmfsError

NO_ID = "00000000-0000-0000-0000-000000000000"
MAX_DISKS = 500
MAX_NICS = 500
_MAX_NAME = 255
_UUID = re.compile(r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}")
_MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")
_DISK, _NETWORK = "17", "10"
"""ResourceType of an Item."""
_FORMAT_URLS = {
    # The engine's own, and the wrong way round; it reads `volume-format`.
    "raw": "http://www.vmware.com/specifications/vmdk.html#sparse",
    "cow": "http://www.gnome.org/~markmc/qcow-image-format.html",
}
_INTERFACES = {
    "ide": "ide",
    "sata": "sata",
    "virtio": "virtio",
    "virtio_scsi": "virtio_scsi",
    "spapr_vscsi": "spapr_vscsi",
}


class OvfError(VmfsError):
    """The kept OVF cannot be used; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OvfDisk:
    """A disk and its active image. `format` is `cow` or `raw`, `interface` the REST API's word for the bus;
    None where the OVF does not say. A LUN has no image of the engine's."""

    id: str
    image_id: str
    alias: str
    description: str
    format: str | None
    sparse: bool | None
    interface: str | None
    bootable: bool
    read_only: bool
    shareable: bool
    wipe_after_delete: bool
    pass_discard: bool
    lun: bool
    storage_domain_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OvfNic:
    """`mac` is in lower case, None where the OVF has none. `network` and `profile` are names, may be
    empty."""

    id: str
    name: str
    mac: str | None
    network: str
    profile: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ovf:
    name: str
    vm_id: str
    cluster: str | None
    disks: tuple[OvfDisk, ...]
    nics: tuple[OvfNic, ...]

    def disk(self, disk_id: str) -> OvfDisk | None:
        return next((disk for disk in self.disks if disk.id == disk_id.lower()), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDisk:
    """What a disk of the OVF has become. None leaves what the OVF says."""

    id: str
    image_id: str | None = None
    alias: str | None = None
    format: str | None = None
    sparse: bool | None = None
    storage_domain_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewNic:
    """What becomes of a NIC. None leaves what the OVF says; an empty `mac` lets the engine choose one."""

    id: str | None = None
    mac: str | None = None
    network: str | None = None
    profile: str | None = None
    unplugged: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What to change in an OVF. `disks` are by the OVF's ids; a disk that is not among them is taken out, and
    so are all snapshots: nothing restores them. A NIC that is not among `nics` stays as it is."""

    name: str | None = None
    vm_id: str | None = None
    cluster: str | None = None
    disks: Mapping[str, NewDisk] = field(default_factory=dict)
    nics: Mapping[str, NewNic] = field(default_factory=dict)


def parse_ovf(data: bytes) -> Ovf:
    """Raises OvfError."""
    return _Reader(data).ovf


def rewrite_ovf(data: bytes, changes: Changes) -> bytes:
    """The OVF with these changes, and otherwise byte for byte as it was. Raises OvfError."""
    return _Writer(_Reader(data), changes).to_bytes()


@dataclass(slots=True)
class _Image:
    """The places of one image in the OVF."""

    disk_id: str
    image_id: str
    file: Element
    disk: Element | None = None
    item: Element | None = None


class _Reader:
    """Finds and checks everything that this module knows of."""

    def __init__(self, data: bytes) -> None:
        try:
            self.document = Document(data)
        except XmlError as error:
            raise OvfError(f"the kept OVF cannot be used: {error}") from None
        root = self.document.root
        if root.name != "Envelope":
            raise OvfError(f"the kept OVF cannot be used: it begins with {root.name[:40]!a}, not an Envelope")
        self.root = root
        self.content = _needed(root, "Content")
        self.system = self._section(self.content, "OperatingSystemSection")
        self.hardware = self._section(self.content, "VirtualHardwareSection")
        self.snapshots = [
            section
            for section in self.content.all("Section")
            if _type(section).endswith("SnapshotsSection_Type")
        ]
        self.references = _needed(root, "References")
        self.disk_section = self._section(root, "DiskSection")
        self.items = self.hardware.all("Item")
        self.images = self._images()
        self.active = self._active()
        self.nic_items = self._nic_items()
        self.ovf = Ovf(
            name=_name("VM", self.content.text_of("Name")),
            vm_id=_uuid("VM", self.system.attributes.get("id", "")),
            cluster=_optional_name("cluster", self.content.text_of("ClusterName")),
            disks=tuple(_disk(image) for image in self.active.values()),
            nics=tuple(_nic(nic_id, item) for nic_id, item in self.nic_items.items()),
        )

    @staticmethod
    def _section(parent: Element, kind: str) -> Element:
        for section in parent.all("Section"):
            if _type(section).endswith(f"{kind}_Type"):
                return section
        raise OvfError(f"the kept OVF cannot be used: it has no {kind}")

    def _images(self) -> dict[str, _Image]:
        """By image id, in the order of the references."""
        images: dict[str, _Image] = {}
        for file in self.references.all("File"):
            image_id = _uuid("image", file.attributes.get("id", ""))
            # A LUN has no image: its file is named by the disk's own id.
            lun = file.attributes.get("disk_storage_type", "").upper() == "LUN"
            href = file.attributes.get("href", "")
            disk_id = image_id if lun else _uuid("disk", href.partition("/")[0])
            if image_id in images:
                raise OvfError(f"the kept OVF cannot be used: it has image {image_id} twice")
            images[image_id] = _Image(disk_id, image_id, file)
        if len(images) > MAX_DISKS * 10:
            raise OvfError(f"the kept OVF cannot be used: it has {len(images)} images")
        for disk in self.disk_section.all("Disk"):
            image_id = _uuid("image", disk.attributes.get("diskId", ""))
            if image_id not in images:
                raise OvfError(f"the kept OVF cannot be used: image {image_id} is in no reference")
            images[image_id].disk = disk
        for item in self.items:
            if item.text_of("ResourceType") == _DISK:
                image_id = _uuid("image", item.text_of("InstanceId"))
                if image_id in images:
                    images[image_id].item = item
        return images

    def _active(self) -> dict[str, _Image]:
        """Of each disk the image that is no other's parent, by the disk's id."""
        parents = {
            image.item.text_of("Parent").lower() for image in self.images.values() if image.item is not None
        }
        active: dict[str, _Image] = {}
        for image in self.images.values():
            if image.disk is None:
                raise OvfError(f"the kept OVF cannot be used: image {image.image_id} is no disk's")
            if image.disk_id not in active or image.image_id not in parents:
                active[image.disk_id] = image
        if len(active) > MAX_DISKS:
            raise OvfError(f"the kept OVF cannot be used: it has {len(active)} disks")
        return active

    def _nic_items(self) -> dict[str, Element]:
        nics: dict[str, Element] = {}
        for item in self.items:
            if item.text_of("ResourceType") == _NETWORK:
                nic_id = _uuid("NIC", item.text_of("InstanceId"))
                if nic_id in nics:
                    raise OvfError(f"the kept OVF cannot be used: it has NIC {nic_id} twice")
                nics[nic_id] = item
        if len(nics) > MAX_NICS:
            raise OvfError(f"the kept OVF cannot be used: it has {len(nics)} NICs")
        return nics


class _Writer:
    def __init__(self, read: _Reader, changes: Changes) -> None:
        self._document = document = read.document
        self._ovf = read.ovf
        unknown = changes.disks.keys() - {disk.id for disk in read.ovf.disks}
        if unknown:
            raise OvfError(f"the kept OVF knows no disk {min(unknown)}")
        if changes.name is not None:
            document.set_text(read.content.first("Name"), changes.name)
        if changes.vm_id is not None:
            document.set_attribute(read.system, "id", changes.vm_id)
        if changes.cluster is not None:
            document.set_text(read.content.first("ClusterName"), changes.cluster)
        for image in read.images.values():
            new = changes.disks.get(image.disk_id)
            if new is None or read.active[image.disk_id] is not image:
                self._remove(image)
            else:
                self._set_disk(image, new)
        for section in read.snapshots:
            for snapshot in section.all("Snapshot"):
                if snapshot.text_of("Type") not in ("", "ACTIVE"):
                    document.remove(snapshot)
        references = {nic.attributes.get("id", "").lower(): nic for nic in read.references.all("Nic")}
        for nic_id, nic in changes.nics.items():
            self._set_nic(read.nic_items[nic_id], references.get(nic_id), nic)

    def to_bytes(self) -> bytes:
        return self._document.to_bytes()

    def _remove(self, image: _Image) -> None:
        for place in (image.file, image.disk, image.item):
            if place is not None:
                self._document.remove(place)

    def _set_disk(self, image: _Image, new: NewDisk) -> None:
        set_text, set_attribute = self._document.set_text, self._document.set_attribute
        assert image.disk is not None  # noqa: S101
        image_id = new.image_id or image.image_id
        place = f"{new.id}/{image_id}"
        set_attribute(image.file, "href", place)
        set_attribute(image.file, "id", image_id)
        set_attribute(image.disk, "diskId", image_id)
        set_attribute(image.disk, "fileRef", place)
        set_attribute(image.disk, "parentRef", "")
        if new.alias is not None:
            set_attribute(image.disk, "disk-alias", new.alias)
        if new.format is not None:
            set_attribute(image.disk, "volume-format", new.format.upper())
            if image.disk.attributes.get("volume-format", "").lower() != new.format:
                set_attribute(image.disk, "format", _FORMAT_URLS[new.format])
        if new.sparse is not None:
            set_attribute(image.disk, "volume-type", "Sparse" if new.sparse else "Preallocated")
        if (item := image.item) is None:
            return
        set_text(item.first("InstanceId"), image_id)
        set_text(item.first("HostResource"), place)
        for name in ("Parent", "Template"):
            if item.text_of(name):
                set_text(item.first(name), NO_ID)
        if new.alias is not None:
            set_text(item.first("Caption"), new.alias)
        if new.storage_domain_id is not None:
            set_text(item.first("StorageId"), new.storage_domain_id)

    def _set_nic(self, item: Element, reference: Element | None, new: NewNic) -> None:
        set_text = self._document.set_text
        if new.id is not None:
            set_text(item.first("InstanceId"), new.id)
            if reference is not None:
                self._document.set_attribute(reference, "id", new.id)
        if new.mac is not None:
            set_text(item.first("MACAddress"), new.mac)
        if new.profile is not None:
            set_text(item.first("OtherResourceType"), new.profile)
        if new.network is not None:
            set_text(item.first("Connection"), new.network)
        if new.unplugged:
            set_text(item.first("IsPlugged"), "false")


def _disk(image: _Image) -> OvfDisk:
    assert image.disk is not None  # noqa: S101
    said = image.disk.attributes
    form = said.get("volume-format", "").lower()
    kind = said.get("volume-type", "").lower()
    domain = image.item.text_of("StorageId") if image.item is not None else ""
    return OvfDisk(
        id=image.disk_id,
        image_id=image.image_id,
        alias=_optional_name("disk alias", said.get("disk-alias", "")) or "",
        description=said.get("disk-description", "")[:4000],
        format=form if form in _FORMAT_URLS else None,
        sparse={"sparse": True, "preallocated": False}.get(kind),
        interface=_INTERFACES.get(said.get("disk-interface", "").lower()),
        bootable=_is_true(said.get("boot")),
        read_only=_is_true(said.get("read-only")),
        shareable=_is_true(said.get("shareable")),
        wipe_after_delete=_is_true(said.get("wipe-after-delete")),
        pass_discard=_is_true(said.get("pass-discard")),
        lun=image.file.attributes.get("disk_storage_type", "").upper() == "LUN",
        storage_domain_id=domain.lower() if _UUID.fullmatch(domain) else None,
    )


def _nic(nic_id: str, item: Element) -> OvfNic:
    mac = item.text_of("MACAddress")
    if mac and not _MAC.fullmatch(mac):
        raise OvfError(f"the kept OVF cannot be used: {mac[:40]!a} is no MAC address")
    return OvfNic(
        id=nic_id,
        name=_name("NIC", item.text_of("Name") or item.text_of("ElementName") or "nic"),
        mac=mac.lower() or None,
        network=_optional_name("network", item.text_of("Connection")) or "",
        profile=_optional_name("vNIC profile", item.text_of("OtherResourceType")) or "",
    )


def _type(section: Element) -> str:
    return section.attributes.get("type", "")


def _needed(parent: Element, name: str) -> Element:
    found = parent.first(name)
    if found is None:
        raise OvfError(f"the kept OVF cannot be used: it has no {name}")
    return found


def _uuid(what: str, text: str) -> str:
    if not _UUID.fullmatch(text):
        raise OvfError(f"the kept OVF cannot be used: {text[:40]!a} is no id of a {what}")
    return text.lower()


def _name(what: str, text: str) -> str:
    if not text:
        raise OvfError(f"the kept OVF cannot be used: a {what} has no name")
    if len(text) > _MAX_NAME or not text.isprintable():
        raise OvfError(f"the kept OVF cannot be used: {text[:40]!a} is no name of a {what}")
    return text


def _optional_name(what: str, text: str) -> str | None:
    return _name(what, text) if text else None


def _is_true(text: str | None) -> bool:
    return (text or "").lower() == "true"
