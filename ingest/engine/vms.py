"""VMs of an engine: finding one, its disks, its configuration."""

from __future__ import annotations

import re
import unicodedata
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from ingest.engine.errors import EngineError, NotFoundError
from ingest.engine.session import Engine
from ingest.engine.values import text_of
from vmfs.errors import UsageError
from vmfs.format.manifest import MAX_NAME

_INACTIVE = "deactivated in the VM, and then the engine cannot back it up"
_EXCLUDED = re.compile(r"(?<!\w)backup=0(?!\w)")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineVm:
    """`status` is the engine's word: up, down, paused, … `level` is the compatibility level of the cluster,
    (4, 7), None when the user may not see it."""

    id: str
    name: str
    status: str
    cluster_id: str | None
    cluster: str | None
    level: tuple[int, int] | None
    description: str = ""

    @property
    def running(self) -> bool:
        """Whether the VM has a QEMU process, so that a backup sees a guest at work."""
        return self.status not in ("down", "image_locked")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineDisk:
    """A disk attached to a VM.

    `alias` is unique within the VM and fit for a file name; `name` is the engine's own. `size` is the virtual
    size in bytes. `format` is `cow` or `raw`. `incremental` tells whether the engine has it enabled for
    incremental backup. `left_out` says why a disk is not backed up (a LUN, shareable, deactivated, tagged
    `backup=0` in its description), None when it is.
    """

    id: str
    alias: str
    name: str
    size: int
    format: str
    sparse: bool
    incremental: bool
    storage_type: str
    storage_domain_id: str | None
    storage_domain: str | None
    interface: str | None
    bootable: bool
    active: bool
    read_only: bool
    shareable: bool
    wipe_after_delete: bool
    status: str
    content_type: str
    image_id: str | None
    description: str
    left_out: str | None


def list_vms(engine: Engine) -> list[EngineVm]:
    """All VMs that the user may see, by name."""
    clusters = _clusters(engine)
    found = engine.ask("VMs", lambda: engine.services().vms_service().list(), repeat=True)
    return sorted((_vm(vm, clusters) for vm in found), key=lambda vm: (vm.name, vm.id))


def find_vm(engine: Engine, name_or_id: str) -> EngineVm:
    """Raises UsageError when there is none, or several of that name (naming their ids and clusters)."""
    if _is_id(name_or_id):
        try:
            return get_vm(engine, name_or_id.lower())
        except NotFoundError:
            pass  # A VM may be called like an id.
    named = [vm for vm in _search(engine, name_or_id) if vm.name == name_or_id]
    if not named:
        raise UsageError(
            f"engine {engine.name} has no VM {name_or_id!a} that the user may see; "
            f"list them with: vmfs-ingest vms --engine {engine.name}"
        )
    if len(named) > 1:
        ids = ", ".join(f"{vm.id} (cluster {vm.cluster or vm.cluster_id})" for vm in named)
        raise UsageError(
            f"engine {engine.name} has {len(named)} VMs called {name_or_id!a}; give the id: {ids}"
        )
    return named[0]


def get_vm(engine: Engine, vm_id: str) -> EngineVm:
    """Raises NotFoundError."""
    service = engine.services().vms_service().vm_service(vm_id)
    vm = engine.ask(f"VM {vm_id}", lambda: service.get(), repeat=True)
    return _vm(vm, _clusters(engine))


def vm_disks(engine: Engine, vm: EngineVm) -> list[EngineDisk]:
    """All its disks, those left out as well, the bootable one first, then by alias."""
    services = engine.services()
    attachments = services.vms_service().vm_service(vm.id).disk_attachments_service()
    found = []
    for attachment in engine.ask(f"VM {vm.name}: disks", lambda: attachments.list(), repeat=True):
        disk = get_disk(engine, attachment.disk.id if attachment.disk else attachment.id)
        found.append(
            replace(
                disk,
                interface=text_of(attachment.interface),
                bootable=bool(attachment.bootable),
                active=attachment.active is not False,
                read_only=bool(attachment.read_only),
                left_out=disk.left_out or (_INACTIVE if attachment.active is False else None),
            )
        )
    found.sort(key=lambda disk: (not disk.bootable, disk.name, disk.id))
    return _with_own_aliases(found)


def get_disk(engine: Engine, disk_id: str) -> EngineDisk:
    """A disk, attached or not: what belongs to its attachment has its default. Raises NotFoundError."""
    service = engine.services().disks_service().disk_service(disk_id)
    disk = engine.ask(f"disk {disk_id}", lambda: service.get(), repeat=True)
    return _disk(disk)


def vm_ovf(engine: Engine, vm: EngineVm) -> bytes:
    """The VM's configuration as OVF, as the engine gives it. Raises EngineError when it gives none."""
    service = engine.services().vms_service().vm_service(vm.id)
    found = engine.ask(f"VM {vm.name}: configuration", lambda: service.get(all_content=True), repeat=True)
    configuration = found.initialization and found.initialization.configuration
    if configuration is None or not configuration.data:
        raise EngineError(f"VM {vm.name}: engine {engine.name} gave no configuration (OVF) of it")
    data: str = configuration.data
    return data.encode()


def _search(engine: Engine, name: str) -> Iterable[EngineVm]:
    """VMs whose name may be that: the engine's search knows no exact match of all names."""
    service = engine.services().vms_service()
    if re.fullmatch(r"[\w.-]+", name, re.ASCII):
        found = engine.ask(
            f"VM {name}", lambda: service.list(search=f"name={name}", case_sensitive=True), repeat=True
        )
    else:
        found = engine.ask("VMs", lambda: service.list(), repeat=True)
    if not any(vm.name == name for vm in found):
        return []
    clusters = _clusters(engine)
    return [_vm(vm, clusters) for vm in found]


def _clusters(engine: Engine) -> dict[str, Any]:
    try:
        found = engine.ask("clusters", lambda: engine.services().clusters_service().list(), repeat=True)
    except EngineError as error:
        if error.code not in (403, 404):
            raise
        return {}
    return {cluster.id: cluster for cluster in found}


def _vm(vm: Any, clusters: dict[str, Any]) -> EngineVm:
    cluster = clusters.get(vm.cluster.id) if vm.cluster else None
    version = (vm.custom_compatibility_version or (cluster and cluster.version)) or None
    level = None
    if version is not None and version.major is not None and version.minor is not None:
        level = (version.major, version.minor)
    return EngineVm(
        id=vm.id,
        name=vm.name or vm.id,
        status=text_of(vm.status) or "unknown",
        cluster_id=vm.cluster.id if vm.cluster else None,
        cluster=cluster.name if cluster else (vm.cluster.name if vm.cluster else None),
        level=level,
        description=vm.description or "",
    )


def _disk(disk: Any) -> EngineDisk:
    name = disk.alias or disk.name or disk.id
    domain = next(iter(disk.storage_domains or ()), None) or disk.storage_domain
    description = disk.description or ""
    storage_type = text_of(disk.storage_type) or "image"
    content = text_of(disk.content_type) or "data"
    shareable = bool(disk.shareable)
    return EngineDisk(
        id=disk.id,
        alias=name,
        name=name,
        size=disk.provisioned_size or 0,
        format=text_of(disk.format) or "raw",
        sparse=bool(disk.sparse),
        incremental=text_of(disk.backup) == "incremental",
        storage_type=storage_type,
        storage_domain_id=domain.id if domain else None,
        storage_domain=domain.name if domain else None,
        interface=None,
        bootable=bool(disk.bootable),
        active=True,
        read_only=bool(disk.read_only),
        shareable=shareable,
        wipe_after_delete=bool(disk.wipe_after_delete),
        status=text_of(disk.status) or "ok",
        content_type=content,
        image_id=disk.image_id,
        description=description,
        left_out=_left_out(storage_type, content, shareable, description),
    )


def _left_out(storage_type: str, content: str, shareable: bool, description: str) -> str | None:
    if _EXCLUDED.search(description):
        return "its description says backup=0"
    if storage_type == "lun":
        return "a LUN, which the engine cannot back up"
    if storage_type != "image":
        return f"on {storage_type} storage, which the engine cannot back up"
    if shareable:
        return "shareable, which the engine cannot back up"
    if content != "data":
        return f"it holds {content}, not data of the VM"
    return None


def _with_own_aliases(disks: list[EngineDisk]) -> list[EngineDisk]:
    """With aliases that are file names and differ: equal ones get the beginning of the disk's id."""
    wished = [_file_name(disk.name) or f"disk-{disk.id[:8]}" for disk in disks]
    aliases: list[str] = []
    for disk, wish in zip(disks, wished, strict=True):
        alias = wish
        if wished.count(wish) > 1 or alias in aliases:
            alias = f"{_cut(wish, MAX_NAME - 37)}-{disk.id[:8]}"
            if alias in aliases or alias in wished:
                alias = f"{_cut(wish, MAX_NAME - 37)}-{disk.id}"
        aliases.append(alias)
    return [replace(disk, alias=alias) for disk, alias in zip(disks, aliases, strict=True)]


def _file_name(name: str) -> str:
    kept = "".join("_" if _unfit(char) else char for char in name)
    kept = _cut(kept.strip(), MAX_NAME)
    return "" if kept in (".", "..") else kept


def _unfit(char: str) -> bool:
    return char == "/" or (char != " " and unicodedata.category(char)[0] in "CZ")


def _cut(text: str, size: int) -> str:
    """At most `size` bytes of UTF-8."""
    return text.encode(errors="replace")[:size].decode(errors="ignore")


def _is_id(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False
