"""Storage domains: which are there for a cluster, what is free on them, and what a disk will take."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ingest.engine.session import Engine
from ingest.engine.sparse import CLUSTER
from vmfs.errors import UsageError, VmfsError

_BLOCK_TYPES = ("iscsi", "fcp")
_TABLE = 8
"""Bytes of an entry in a qcow2 image's L1 and L2 tables; 2 in its refcount blocks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageDomain:
    """`available` in bytes, None when the engine does not say. `block` when its disks are logical volumes,
    which are never sparse by themselves and do not begin as zeros."""

    id: str
    name: str
    available: int | None
    block: bool


def data_domains(engine: Engine, data_center_id: str | None) -> list[StorageDomain]:
    """The data domains of a data center (of all, for None) that can be used now, by name."""
    found = engine.ask(
        "storage domains", lambda: engine.services().storage_domains_service().list(), repeat=True
    )
    return sorted(
        (_domain(item) for item in found if _usable(item, data_center_id)), key=lambda item: item.name
    )


def choose_domain(
    domains: Iterable[StorageDomain], wanted: str | None, original: Iterable[str | None]
) -> StorageDomain:
    """The domain called `wanted` (a name or an id); without that the first of the `original` ones (ids or
    names) that is there; without any, the one with most space. Raises UsageError."""
    known = {item.id: item for item in domains}
    if wanted is not None:
        named: StorageDomain = find_named("storage domain", list(known.values()), wanted)
        return named
    for told in original:
        for item in known.values():
            if told and told in (item.id, item.name):
                return item
    if not known:
        raise UsageError(
            "the engine has no active storage domain that the user may see; see its status there"
        )
    return max(known.values(), key=lambda item: (item.available or 0, item.name))


def find_named(what: str, items: list[Any], wanted: str) -> Any:
    """The one of that id or name. Raises UsageError naming what there is."""
    named = [item for item in items if wanted.lower() == item.id.lower()]
    named = named or [item for item in items if item.name == wanted]
    if len(named) == 1:
        return named[0]
    if named:
        ids = ", ".join(sorted(item.id for item in named))
        raise UsageError(f"{len(named)} {what}s are called {wanted!a}; give the id: {ids}")
    there = ", ".join(sorted(repr(item.name) for item in items)[:10]) or "none"
    raise UsageError(f"the engine has no {what} {wanted!a} for this; there is {there}")


def space_needed(size: int, allocated: int, form: str, *, sparse: bool) -> int:
    """Bytes that a disk of `size` bytes with `allocated` bytes of data takes."""
    if not sparse:
        return size
    data = min(allocated, size)
    if form == "raw":
        return data
    clusters = -(-size // CLUSTER)
    tables = -(-clusters * _TABLE // CLUSTER) * CLUSTER
    refcounts = -(-(data // CLUSTER + 1) * 2 // CLUSTER) * CLUSTER
    return data + tables + refcounts + 4 * CLUSTER


def check_space(needs: Iterable[tuple[StorageDomain, int]]) -> None:
    """`needs` are bytes on domains. Raises VmfsError for a domain that has less."""
    sums: dict[str, int] = {}
    by_id: dict[str, StorageDomain] = {}
    for domain, need in needs:
        by_id[domain.id] = domain
        sums[domain.id] = sums.get(domain.id, 0) + need
    for domain_id, need in sums.items():
        domain = by_id[domain_id]
        if domain.available is not None and need > domain.available:
            raise VmfsError(
                f"storage domain {domain.name} has {_size(domain.available)} free, and the restore needs "
                f"{_size(need)}; free some, or choose another with --storage-domain"
            )


def _usable(item: Any, data_center_id: str | None) -> bool:
    if item.type is not None and item.type.value != "data":
        return False
    # The list tells the status of a domain only in some versions.
    if item.status is not None and item.status.value != "active":
        return False
    centers = [center.id for center in item.data_centers or ()]
    return data_center_id is None or not centers or data_center_id in centers


def _domain(item: Any) -> StorageDomain:
    kind = item.storage.type.value if item.storage and item.storage.type else ""
    return StorageDomain(
        id=item.id, name=item.name or item.id, available=item.available, block=kind in _BLOCK_TYPES
    )


def _size(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
