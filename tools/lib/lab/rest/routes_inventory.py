"""Routes that only show: the API itself, clusters, storage domains, hosts, networks, jobs, events."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from lab.engine.errors import not_found
from lab.engine.model import Host, StorageDomain
from lab.rest import views, views_inventory
from lab.rest.api import Answer, Call, route
from lab.rest.search import matches
from lab.rest.xml import element, entity_id, number, text

T = TypeVar("T")


def found(call: Call, objects: Iterable[T], facts: Callable[[T], Mapping[str, str | None]]) -> list[T]:
    """Those that the search of the request finds."""
    search = call.request.query.get("search")
    sensitive = call.request.query.get("case_sensitive", "true") != "false"
    return [each for each in objects if matches(search, facts(each), case_sensitive=sensitive)]


def _listed(call: Call, tag: str, elements: list[ET.Element]) -> Answer:
    return 200, views.collection(tag, call.limited(elements))


@route("GET", "")
def show_api(call: Call) -> Answer:
    return 200, views_inventory.api(call.engine)


@route("GET", "clusters")
def list_clusters(call: Call) -> Answer:
    clusters = found(call, call.engine.clusters.values(), lambda each: {"name": each.name, "id": each.id})
    return _listed(call, "clusters", [views_inventory.cluster(each) for each in clusters])


@route("GET", "clusters/{}")
def show_cluster(call: Call, cluster_id: str) -> Answer:
    return 200, views_inventory.cluster(call.engine.cluster(cluster_id))


@route("GET", "clusters/{}/networks")
def list_cluster_networks(call: Call, cluster_id: str) -> Answer:
    call.engine.cluster(cluster_id)
    return list_networks(call)


@route("GET", "datacenters")
def list_data_centers(call: Call) -> Answer:
    names = " ".join(domain.name for domain in call.engine.storage_domains.values())
    centers = found(call, [call.engine], lambda each: {"name": "Default", "storage.name": names})
    return _listed(call, "data_centers", [views_inventory.data_center(each) for each in centers])


@route("GET", "datacenters/{}")
def show_data_center(call: Call, center_id: str) -> Answer:
    if center_id != call.engine.data_center_id:
        raise not_found(center_id)
    return 200, views_inventory.data_center(call.engine)


def _domain_facts(domain: StorageDomain) -> dict[str, str | None]:
    return {"name": domain.name, "id": domain.id, "status": "active", "type": "data"}


@route("GET", "storagedomains")
def list_domains(call: Call) -> Answer:
    domains = found(call, call.engine.storage_domains.values(), _domain_facts)
    return _listed(
        call, "storage_domains", [views_inventory.storage_domain(call.engine, each) for each in domains]
    )


@route("GET", "storagedomains/{}")
def show_domain(call: Call, domain_id: str) -> Answer:
    return 200, views_inventory.storage_domain(call.engine, call.engine.storage_domain(domain_id))


def _host_facts(host: Host) -> dict[str, str | None]:
    return {"name": host.name, "id": host.id, "status": "up", "hw_id": "", "datacenter": "Default"}


@route("GET", "hosts")
def list_hosts(call: Call) -> Answer:
    hosts = found(call, call.engine.hosts.values(), _host_facts)
    return _listed(call, "hosts", [views_inventory.host(each) for each in hosts])


@route("GET", "hosts/{}")
def show_host(call: Call, host_id: str) -> Answer:
    return 200, views_inventory.host(call.engine.host(host_id))


@route("GET", "networks")
def list_networks(call: Call) -> Answer:
    networks = found(call, call.engine.networks.values(), lambda each: {"name": each.name, "id": each.id})
    return _listed(call, "networks", [views_inventory.network(call.engine, each) for each in networks])


@route("GET", "networks/{}")
def show_network(call: Call, network_id: str) -> Answer:
    if network_id not in call.engine.networks:
        raise not_found(network_id)
    return 200, views_inventory.network(call.engine, call.engine.networks[network_id])


@route("GET", "networks/{}/vnicprofiles")
def list_network_profiles(call: Call, network_id: str) -> Answer:
    profiles = [each for each in call.engine.profiles.values() if each.network_id == network_id]
    return _listed(call, "vnic_profiles", [views_inventory.profile(each) for each in profiles])


@route("GET", "vnicprofiles")
def list_profiles(call: Call) -> Answer:
    profiles = found(call, call.engine.profiles.values(), lambda each: {"name": each.name, "id": each.id})
    return _listed(call, "vnic_profiles", [views_inventory.profile(each) for each in profiles])


@route("GET", "vnicprofiles/{}")
def show_profile(call: Call, profile_id: str) -> Answer:
    if profile_id not in call.engine.profiles:
        raise not_found(profile_id)
    return 200, views_inventory.profile(call.engine.profiles[profile_id])


@route("GET", "jobs")
def list_jobs(call: Call) -> Answer:
    jobs = found(
        call,
        call.engine.jobs.values(),
        lambda each: {"correlation_id": each.correlation_id, "status": each.status, "id": each.id},
    )
    return _listed(call, "jobs", [views_inventory.job(each) for each in jobs])


@route("GET", "jobs/{}")
def show_job(call: Call, job_id: str) -> Answer:
    if job_id not in call.engine.jobs:
        raise not_found(job_id)
    return 200, views_inventory.job(call.engine.jobs[job_id])


@route("GET", "events")
def list_events(call: Call) -> Answer:
    """Newest first; with `from`, those after that one, oldest first."""
    after = call.request.query.get("from")
    events = found(
        call,
        call.engine.events,
        lambda each: {
            "message": each.description,
            "type": str(each.code),
            "correlation_id": each.correlation_id,
            "severity": each.severity,
            "vm.id": each.vm_id,
        },
    )
    if after is not None:
        events = [each for each in events if each.id > int(after)]
    else:
        events.reverse()
    return _listed(call, "events", [views_inventory.event(each) for each in events])


@route("GET", "events/{}")
def show_event(call: Call, event_id: str) -> Answer:
    for each in call.engine.events:
        if str(each.id) == event_id:
            return 200, views_inventory.event(each)
    raise not_found(event_id)


@route("POST", "events")
def add_event(call: Call) -> Answer:
    """External events: what a backup program tells."""
    body = call.needed_body()
    vm_id = entity_id(body, "vm")
    codes = {"normal": 9801, "warning": 9802, "error": 9803, "alert": 9804}
    severity = text(body, "severity") or "normal"
    made = call.engine.event(
        codes.get(severity, 9801),
        text(body, "description") or "",
        severity,
        vm=call.engine.vm(vm_id) if vm_id else None,
        correlation_id=call.correlation_id,
        origin=text(body, "origin") or "oVirt",
        custom_id=number(body, "custom_id"),
    )
    return 201, views_inventory.event(made)


@route("GET", "datacenters/{}/storagedomains")
def list_center_domains(call: Call, center_id: str) -> Answer:
    return list_domains(call)


@route("GET", "imagetransfers/{}/image")
def show_transfer_image(call: Call, transfer_id: str) -> Answer:
    transfer = call.engine.transfer(transfer_id)
    return 200, element("image", id=transfer.disk_id)
