"""The engine's objects as XML."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence

from lab.engine.core import Engine
from lab.engine.model import (
    Attachment,
    Backup,
    Checkpoint,
    Disk,
    Nic,
    Snapshot,
    Transfer,
    Vm,
)
from lab.engine.ovf_write import write_ovf
from lab.rest.xml import element, leaf, reference

BASE = "/ovirt-engine/api"


def collection(tag: str, children: Iterable[ET.Element]) -> ET.Element:
    return element(tag, *children)


def link(rel: str, href: str) -> ET.Element:
    return element("link", rel=rel, href=href)


def fault(detail: str, reason: str) -> ET.Element:
    return element("fault", leaf("detail", detail), leaf("reason", reason))


def action(status: str = "complete", problem: ET.Element | None = None) -> ET.Element:
    return element("action", leaf("status", status), problem)


def vm(engine: Engine, it: Vm, *, all_content: bool = False, follow: Sequence[str] = ()) -> ET.Element:
    href = f"{BASE}/vms/{it.id}"
    parts = ("diskattachments", "nics", "snapshots", "backups", "checkpoints")
    links = [link(part, f"{href}/{part}") for part in parts]
    made = element(
        "vm",
        *links,
        leaf("name", it.name),
        leaf("description", it.description),
        leaf("comment", it.comment),
        leaf("status", it.status),
        leaf("memory", it.memory),
        leaf("origin", "ovirt"),
        leaf("type", "server"),
        leaf("creation_time", it.creation),
        element("bios", leaf("type", it.bios)),
        element(
            "cpu",
            leaf("architecture", "x86_64"),
            element(
                "topology",
                leaf("cores", it.cores),
                leaf("sockets", it.sockets),
                leaf("threads", it.threads),
            ),
        ),
        element("os", element("boot", element("devices", leaf("device", "hd"))), leaf("type", it.os)),
        element("time_zone", leaf("name", it.time_zone)),
        reference("cluster", it.cluster_id, f"{BASE}/clusters/{it.cluster_id}"),
        reference("host", it.host_id, f"{BASE}/hosts/{it.host_id}") if it.running else None,
        reference("template", it.template_id, f"{BASE}/templates/{it.template_id}"),
        id=it.id,
        href=href,
    )
    if all_content:
        data = it.ovf if it.ovf is not None else write_ovf(engine, it)
        configuration = element("configuration", leaf("data", data), leaf("type", "ovf"))
        made.append(element("initialization", configuration))
    if any(path.split(".")[0] == "disk_attachments" for path in follow):
        deep = "disk_attachments.disk" in follow
        made.append(attachments(engine, it, follow=("disk",) if deep else ()))
    if any(path.split(".")[0] == "nics" for path in follow):
        made.append(collection("nics", (nic(each, it) for each in it.nics)))
    return made


def attachments(engine: Engine, it: Vm, *, follow: Sequence[str] = ()) -> ET.Element:
    return collection(
        "disk_attachments", (attachment(engine, it, each, follow=follow) for each in it.attachments.values())
    )


def attachment(engine: Engine, owner: Vm, it: Attachment, *, follow: Sequence[str] = ()) -> ET.Element:
    inner = (
        disk(engine, engine.disk(it.disk_id))
        if "disk" in follow
        else reference("disk", it.disk_id, f"{BASE}/disks/{it.disk_id}")
    )
    return element(
        "disk_attachment",
        leaf("active", it.active),
        leaf("bootable", it.bootable),
        leaf("interface", it.interface),
        leaf("pass_discard", it.pass_discard),
        leaf("read_only", it.read_only),
        leaf("uses_scsi_reservation", False),
        inner,
        reference("vm", owner.id, f"{BASE}/vms/{owner.id}"),
        id=it.disk_id,
        href=f"{BASE}/vms/{owner.id}/diskattachments/{it.disk_id}",
    )


def nic(it: Nic, owner: Vm) -> ET.Element:
    profile = it.profile_id
    return element(
        "nic",
        leaf("name", it.name),
        leaf("interface", it.interface),
        leaf("linked", it.linked),
        element("mac", leaf("address", it.mac)),
        leaf("plugged", it.plugged),
        leaf("synced", True),
        reference("vm", owner.id, f"{BASE}/vms/{owner.id}"),
        reference("vnic_profile", profile, f"{BASE}/vnicprofiles/{profile}"),
        id=it.id,
        href=f"{BASE}/vms/{owner.id}/nics/{it.id}",
    )


def disk(engine: Engine, it: Disk, *, backup_mode: str | None = None, tag: str = "disk") -> ET.Element:
    href = f"{BASE}/disks/{it.id}"
    form = engine.disk_format(it)
    actual = engine.actual_size(it)
    domain = it.storage_domain_id
    owner = engine.vm_of(it.id)
    domains = reference("storage_domain", domain, f"{BASE}/storagedomains/{domain}")
    return element(
        tag,
        link("disksnapshots", f"{href}/disksnapshots"),
        leaf("name", it.alias),
        leaf("description", it.description),
        leaf("actual_size", actual),
        leaf("alias", it.alias),
        leaf("backup", it.backup or "none"),
        leaf("backup_mode", backup_mode),
        leaf("content_type", it.content_type),
        leaf("format", form),
        leaf("image_id", it.image_id),
        leaf("propagate_errors", False),
        leaf("provisioned_size", it.size),
        leaf("qcow_version", "qcow2_v3") if form == "cow" else None,
        leaf("shareable", it.shareable),
        leaf("sparse", it.sparse),
        leaf("status", it.status),
        leaf("storage_type", "image"),
        leaf("total_size", actual),
        leaf("wipe_after_delete", it.wipe_after_delete),
        element("storage_domains", domains),
        element("vms", reference("vm", owner.id, f"{BASE}/vms/{owner.id}")) if owner else None,
        id=it.id,
        href=href,
    )


def backup(it: Backup, checkpoint: str | None) -> ET.Element:
    """`checkpoint`: what is told as the new one."""
    href = f"{BASE}/vms/{it.vm_id}/backups/{it.id}"
    return element(
        "backup",
        element("actions", link("finalize", f"{href}/finalize")),
        link("disks", f"{href}/disks"),
        leaf("description", it.description),
        leaf("creation_date", it.creation),
        leaf("from_checkpoint_id", it.from_checkpoint),
        leaf("modification_date", it.modified),
        leaf("phase", it.phase),
        leaf("to_checkpoint_id", checkpoint),
        reference("host", it.host_id, f"{BASE}/hosts/{it.host_id}"),
        reference("snapshot", it.snapshot_id, f"{BASE}/vms/{it.vm_id}/snapshots/{it.snapshot_id}"),
        reference("vm", it.vm_id, f"{BASE}/vms/{it.vm_id}"),
        id=it.id,
        href=href,
    )


def checkpoint(it: Checkpoint, owner: Vm) -> ET.Element:
    href = f"{BASE}/vms/{owner.id}/checkpoints/{it.id}"
    return element(
        "checkpoint",
        link("disks", f"{href}/disks"),
        leaf("description", it.description or None),
        leaf("creation_date", it.creation),
        leaf("parent_id", it.parent_id),
        leaf("state", it.state),
        reference("vm", owner.id, f"{BASE}/vms/{owner.id}"),
        id=it.id,
        href=href,
    )


def snapshot(it: Snapshot, owner: Vm) -> ET.Element:
    href = f"{BASE}/vms/{owner.id}/snapshots/{it.id}"
    return element(
        "snapshot",
        link("disks", f"{href}/disks"),
        leaf("description", it.description),
        leaf("date", it.date),
        leaf("persist_memorystate", it.persist_memory),
        leaf("snapshot_status", it.status),
        leaf("snapshot_type", "preview" if it.status == "in_preview" else "regular"),
        reference("vm", owner.id, f"{BASE}/vms/{owner.id}"),
        id=it.id,
        href=href,
    )


def active_snapshot(owner: Vm) -> ET.Element:
    """The engine lists the VM as it is now as one more snapshot."""
    return element(
        "snapshot",
        leaf("description", "Active VM"),
        leaf("date", owner.creation),
        leaf("persist_memorystate", False),
        leaf("snapshot_status", "ok"),
        leaf("snapshot_type", "active"),
        reference("vm", owner.id, f"{BASE}/vms/{owner.id}"),
        id=owner.active_snapshot_id,
        href=f"{BASE}/vms/{owner.id}/snapshots/{owner.active_snapshot_id}",
    )


def disk_snapshot(it: Disk, layer: int, snapshot_id: str | None) -> ET.Element:
    """One layer of a disk; `layer` counts from the base."""
    files = it.files
    size = files[layer].stat().st_blocks * 512 if layer < len(files) and files[layer].exists() else 0
    domain = it.storage_domain_id
    image = it.images[layer]
    return element(
        "disk_snapshot",
        leaf("alias", it.alias),
        leaf("actual_size", size),
        leaf("active", layer == len(it.images) - 1),
        leaf("format", "cow" if layer else it.format),
        leaf("image_id", image),
        leaf("provisioned_size", it.size),
        leaf("sparse", it.sparse),
        leaf("status", it.status),
        leaf("storage_type", "image"),
        element("storage_domains", reference("storage_domain", domain)),
        reference("disk", it.id, f"{BASE}/disks/{it.id}"),
        reference("parent", it.images[layer - 1]) if layer else None,
        reference("snapshot", snapshot_id),
        id=image,
        href=f"{BASE}/storagedomains/{domain}/disksnapshots/{image}",
    )


def transfer(it: Transfer) -> ET.Element:
    href = f"{BASE}/imagetransfers/{it.id}"
    verbs = ("cancel", "extend", "finalize", "pause", "resume")
    return element(
        "image_transfer",
        element("actions", *(link(verb, f"{href}/{verb}") for verb in verbs)),
        leaf("active", it.active),
        leaf("direction", it.direction),
        leaf("format", it.format),
        leaf("inactivity_timeout", it.inactivity_timeout),
        leaf("phase", it.phase),
        leaf("proxy_url", it.proxy_url),
        leaf("shallow", it.shallow),
        leaf("timeout_policy", it.timeout_policy),
        leaf("transfer_url", it.transfer_url),
        leaf("transferred", it.transferred),
        reference("host", it.host_id, f"{BASE}/hosts/{it.host_id}"),
        reference("image", it.disk_id),
        id=it.id,
        href=href,
    )
