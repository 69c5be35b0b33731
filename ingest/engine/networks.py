"""NICs of a VM that is restored: their MAC addresses and vNIC profiles."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ovirtsdk4 import types

from ingest.engine.errors import EngineError
from ingest.engine.ovf import NewNic, Ovf, OvfNic
from ingest.engine.session import Engine
from vmfs.errors import UsageError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A vNIC profile with the name of its network."""

    id: str
    name: str
    network: str


def profiles(engine: Engine, data_center_id: str | None) -> list[Profile]:
    services = engine.services()
    found = engine.ask("networks", lambda: services.networks_service().list(), repeat=True)
    networks = {
        item.id: item.name
        for item in found
        if data_center_id is None or item.data_center is None or item.data_center.id == data_center_id
    }
    there = engine.ask("vNIC profiles", lambda: services.vnic_profiles_service().list(), repeat=True)
    return [
        Profile(id=item.id, name=item.name, network=networks[item.network.id])
        for item in there
        if item.network and item.network.id in networks
    ]


def parse_mapping(words: Sequence[str]) -> dict[str, str]:
    """Of `PROFILE` (for all NICs, under the empty name) and `OLD=PROFILE`. Raises UsageError."""
    mapping: dict[str, str] = {}
    for word in words:
        old, equals, new = word.rpartition("=")
        if not new or (equals and not old):
            raise UsageError(f"{word!a} is no vNIC profile; write PROFILE, NETWORK/PROFILE or OLD=PROFILE")
        if old in mapping:
            raise UsageError(f"two vNIC profiles are given for {old or 'all NICs'}; leave one out")
        mapping[old] = new
    return mapping


def find_profile(known: Sequence[Profile], wanted: str) -> Profile:
    """By id, NETWORK/PROFILE or PROFILE. Raises UsageError naming what there is."""
    found = [item for item in known if wanted.lower() == item.id.lower()]
    found = found or [item for item in known if wanted == f"{item.network}/{item.name}"]
    found = found or [item for item in known if wanted == item.name]
    if len(found) == 1:
        return found[0]
    names = ", ".join(sorted(f"{item.network}/{item.name}" for item in (found or known))[:10]) or "none"
    if found:
        raise UsageError(f"{len(found)} vNIC profiles are called {wanted!a}; write one of {names}")
    raise UsageError(f"the engine has no vNIC profile {wanted!a} for this cluster; there is {names}")


def macs_in_use(engine: Engine) -> dict[str, str]:
    """The MAC addresses of all VMs that the user may see, in lower case, each with the name of its VM."""
    found = engine.ask(
        "MAC addresses", lambda: engine.services().vms_service().list(follow="nics"), repeat=True
    )
    return {
        nic.mac.address.lower(): vm.name
        for vm in found
        for nic in vm.nics or ()
        if nic.mac and nic.mac.address
    }


def plan_nics(
    ovf: Ovf, mapping: Mapping[str, Profile], in_use: Mapping[str, str], *, keep_mac: bool, keep_ids: bool
) -> tuple[dict[str, NewNic], list[str]]:
    """What becomes of each NIC, and warnings. `mapping` gives profiles by the name of the old one (`PROFILE`
    or `NETWORK/PROFILE`), or for all under the empty name."""
    planned: dict[str, NewNic] = {}
    warnings = []
    for nic in ovf.nics:
        profile = mapping.get(f"{nic.network}/{nic.profile}") or mapping.get(nic.profile) or mapping.get("")
        user = in_use.get(nic.mac or "") if keep_mac else None
        if user is not None:
            warnings.append(
                f"NIC {nic.name} stays unplugged: its MAC address {nic.mac} is in use by VM {user}; "
                "change one of them before you plug it in"
            )
        planned[nic.id] = NewNic(
            id=None if keep_ids else str(uuid.uuid4()),
            mac=None if keep_mac else "",
            network=profile.network if profile else None,
            profile=profile.name if profile else None,
            unplugged=user is not None,
        )
    return planned, warnings


def lost_profiles(ovf: Ovf, known: Sequence[Profile], planned: Mapping[str, NewNic]) -> list[str]:
    """A warning for each NIC whose vNIC profile the engine does not have."""
    there = {(item.network, item.name) for item in known}

    def is_lost(nic: OvfNic) -> bool:
        return (
            bool(nic.profile) and planned[nic.id].profile is None and (nic.network, nic.profile) not in there
        )

    return [
        f"NIC {nic.name} will have no network: the engine has no vNIC profile {nic.network}/{nic.profile}; "
        "choose one with --vnic-profile"
        for nic in ovf.nics
        if is_lost(nic)
    ]


def unplug(engine: Engine, vm_id: str, macs: set[str]) -> None:
    """Unplugs the VM's NICs of these MAC addresses: engines do that themselves when they import a VM, but not
    in all versions. Raises EngineError."""
    service = engine.services().vms_service().vm_service(vm_id).nics_service()
    what = f"VM {vm_id}: NICs"
    nics: list[Any] = engine.ask(what, lambda: service.list(), repeat=True)
    for nic in nics:
        if nic.plugged and nic.mac and nic.mac.address and nic.mac.address.lower() in macs:
            one = service.nic_service(nic.id)
            try:
                engine.ask(what, lambda: one.update(types.Nic(plugged=False)), repeat=True)  # noqa: B023
            except EngineError as error:
                log.warning("NIC %s of the VM is plugged in with a MAC address in use: %s", nic.name, error)
