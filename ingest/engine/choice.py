"""Which disks of a VM are backed up."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ingest.engine.vms import EngineDisk, EngineVm
from vmfs.errors import UsageError, VmfsError

log = logging.getLogger(__name__)


class Choice(NamedTuple):
    """`left_out` are pairs of an alias and a reason."""

    disks: list[EngineDisk]
    left_out: list[tuple[str, str]]


def choose_disks(vm: EngineVm, disks: Sequence[EngineDisk], wanted: Iterable[str]) -> Choice:
    """All disks that can be backed up and are not tagged otherwise; or the `wanted` ones, by alias, name or
    id, whatever their tag. Raises UsageError for one that the VM has not, VmfsError for what cannot be."""
    named = {disk.id for name in wanted for disk in [_find(vm, disks, name)]}
    choice = Choice([], [])
    for disk in disks:
        problem = _problem(vm, disk)
        if named:
            if disk.id not in named:
                continue
            if problem:
                raise VmfsError(f"disk {disk.alias} of VM {vm.name} cannot be backed up: {problem}")
            choice.disks.append(disk)
        elif problem:
            log.warning("VM %s: disk %s is left out: %s", vm.name, disk.alias, problem)
            choice.left_out.append((disk.alias, problem))
        elif disk.left_out:
            log.info("VM %s: disk %s is left out: %s", vm.name, disk.alias, disk.left_out)
            choice.left_out.append((disk.alias, disk.left_out))
        else:
            choice.disks.append(disk)
    if not choice.disks:
        raise VmfsError(f"VM {vm.name} has no disk to back up" + _listed(choice.left_out))
    return choice


def _problem(vm: EngineVm, disk: EngineDisk) -> str | None:
    """Why the engine could not back it up."""
    if disk.storage_type == "lun":
        return "it is a LUN; back it up where it is stored"
    if disk.storage_type != "image":
        return f"it is on {disk.storage_type} storage; back it up where it is stored"
    if disk.shareable:
        return "it is shareable, so the engine cannot back it up"
    if disk.content_type != "data":
        return f"it holds {disk.content_type}, not data of the VM"
    if disk.status == "illegal":
        return "the engine says that it is illegal; see its events, and repair or remove the disk"
    if vm.running and not disk.active:
        return "it is not active while the VM runs; activate it, or stop the VM"
    return None


def _find(vm: EngineVm, disks: Sequence[EngineDisk], name: str) -> EngineDisk:
    for key in ("id", "alias", "name"):
        found = [disk for disk in disks if getattr(disk, key) == name]
        if len(found) > 1:
            ids = ", ".join(f"{disk.id} ({disk.alias})" for disk in found)
            raise UsageError(f"VM {vm.name} has {len(found)} disks called {name!a}; give the id: {ids}")
        if found:
            return found[0]
    known = ", ".join(disk.alias for disk in disks) or "none"
    raise UsageError(f"VM {vm.name} has no disk {name!a}; it has {known}")


def _listed(left_out: list[tuple[str, str]]) -> str:
    return ": " + "; ".join(f"{alias}: {reason}" for alias, reason in left_out) if left_out else ""
