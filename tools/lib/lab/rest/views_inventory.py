"""What the engine has beside VMs, as XML."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from lab.engine.core import USER, Engine
from lab.engine.model import (
    Cluster,
    Event,
    Host,
    Job,
    Network,
    StorageDomain,
    VnicProfile,
    now,
)
from lab.rest.views import BASE, link
from lab.rest.xml import element, leaf, reference


def api(engine: Engine) -> ET.Element:
    version = element("version", *(leaf(*part) for part in VERSION))
    product = element(
        "product_info",
        leaf("instance_id", engine.id),
        leaf("name", "oVirt Engine"),
        leaf("vendor", "ovirt.org"),
        version,
    )
    running = sum(vm.running for vm in engine.vms.values())
    summary = element(
        "summary",
        _count("hosts", len(engine.hosts), len(engine.hosts)),
        _count("storage_domains", len(engine.storage_domains), len(engine.storage_domains)),
        _count("users", 1, 1),
        _count("vms", running, len(engine.vms)),
    )
    links = (link(rel, f"{BASE}/{path}") for rel, path in ROOTS)
    return element("api", *links, product, summary, leaf("time", now()))


VERSION: tuple[tuple[str, str | int], ...] = (
    ("build", 6),
    ("full_version", "4.5.6-1.el9"),
    ("major", 4),
    ("minor", 5),
    ("revision", 0),
)
ROOTS = tuple(
    (name, name)
    for name in (
        "clusters",
        "datacenters",
        "disks",
        "events",
        "hosts",
        "imagetransfers",
        "jobs",
        "networks",
        "storagedomains",
        "vms",
        "vnicprofiles",
    )
)


def _count(tag: str, active: int, total: int) -> ET.Element:
    return element(tag, leaf("active", active), leaf("total", total))


def cluster(it: Cluster) -> ET.Element:
    return element(
        "cluster",
        leaf("name", it.name),
        leaf("description", f"The {it.name} cluster"),
        element("cpu", leaf("architecture", "x86_64")),
        reference("data_center", it.data_center_id, f"{BASE}/datacenters/{it.data_center_id}"),
        element("version", leaf("major", it.level[0]), leaf("minor", it.level[1])),
        id=it.id,
        href=f"{BASE}/clusters/{it.id}",
    )


def data_center(engine: Engine) -> ET.Element:
    return element(
        "data_center",
        leaf("name", "Default"),
        leaf("status", "up"),
        id=engine.data_center_id,
        href=f"{BASE}/datacenters/{engine.data_center_id}",
    )


def storage_domain(engine: Engine, it: StorageDomain) -> ET.Element:
    href = f"{BASE}/storagedomains/{it.id}"
    used = engine.used(it)
    return element(
        "storage_domain",
        link("disks", f"{href}/disks"),
        link("disksnapshots", f"{href}/disksnapshots"),
        leaf("name", it.name),
        leaf("available", it.capacity - used),
        leaf("block_size", 512),
        leaf("committed", used),
        leaf("master", True),
        leaf("status", "active"),
        element("storage", leaf("type", "nfs"), leaf("address", "storage.lab"), leaf("path", "/data")),
        leaf("storage_format", "v5"),
        leaf("type", "data"),
        leaf("used", used),
        element("data_centers", reference("data_center", engine.data_center_id)),
        id=it.id,
        href=href,
    )


def host(it: Host) -> ET.Element:
    return element(
        "host",
        leaf("name", it.name),
        leaf("address", "127.0.0.1"),
        leaf("status", "up"),
        leaf("type", "ovirt_node"),
        reference("cluster", it.cluster_ids[0], f"{BASE}/clusters/{it.cluster_ids[0]}"),
        id=it.id,
        href=f"{BASE}/hosts/{it.id}",
    )


def network(engine: Engine, it: Network) -> ET.Element:
    return element(
        "network",
        link("vnicprofiles", f"{BASE}/networks/{it.id}/vnicprofiles"),
        leaf("name", it.name),
        leaf("description", ""),
        leaf("mtu", 1500),
        element("usages", leaf("usage", "vm")),
        reference("data_center", engine.data_center_id),
        id=it.id,
        href=f"{BASE}/networks/{it.id}",
    )


def profile(it: VnicProfile) -> ET.Element:
    return element(
        "vnic_profile",
        leaf("name", it.name),
        element("pass_through", leaf("mode", "disabled")),
        leaf("port_mirroring", False),
        reference("network", it.network_id, f"{BASE}/networks/{it.network_id}"),
        id=it.id,
        href=f"{BASE}/vnicprofiles/{it.id}",
    )


def job(it: Job) -> ET.Element:
    return element(
        "job",
        leaf("description", it.description),
        leaf("auto_cleared", True),
        leaf("end_time", it.end),
        leaf("external", False),
        leaf("start_time", it.start),
        leaf("status", it.status),
        id=it.id,
        href=f"{BASE}/jobs/{it.id}",
    )


def event(it: Event) -> ET.Element:
    return element(
        "event",
        leaf("description", it.description),
        leaf("code", it.code),
        leaf("correlation_id", it.correlation_id),
        leaf("custom_id", -1 if it.custom_id is None else it.custom_id),
        leaf("index", it.id),
        leaf("origin", it.origin),
        leaf("severity", it.severity),
        leaf("time", it.time),
        reference("host", it.host_id, f"{BASE}/hosts/{it.host_id}"),
        element("user", leaf("name", USER)),
        reference("vm", it.vm_id, f"{BASE}/vms/{it.vm_id}"),
        id=str(it.id),
        href=f"{BASE}/events/{it.id}",
    )
