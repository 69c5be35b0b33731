"""What kind of machine a VM was, from the configuration kept with its restore point.

The configuration may be years old, or hostile: its size is bounded, no entity of its XML is resolved, and of
what it says only numbers and words from lists are used. What cannot be understood is left out, and the
default stands."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal, NamedTuple
from xml.etree.ElementTree import Element

import defusedxml.ElementTree
from defusedxml.common import DefusedXmlException

Firmware = Literal["bios", "uefi"]
Chipset = Literal["pc", "q35"]

_LARGEST = 4 << 20
"""Bytes; an artifact that is larger is no configuration."""
_MOST_MEMORY = 1 << 24
_MOST_CPUS = 1024
_UNITS = {"b": 0, "bytes": 0, "k": 10, "kib": 10, "kb": 10, "m": 20, "mib": 20, "g": 30, "gib": 30}
# BiosType of an engine's OVF: the numbers of businessentities.BiosType of ovirt-engine 4.4 and later.
_BIOS_TYPES: Mapping[str, tuple[Chipset, Firmware]] = {
    "0": ("pc", "bios"),
    "1": ("q35", "bios"),
    "2": ("q35", "uefi"),
    "3": ("q35", "uefi"),
}
# ResourceType of an item of an OVF (CIM_ResourceAllocationSettingData).
_CPU, _MEMORY = "3", "4"


class Attached(NamedTuple):
    """How a disk was attached: libvirt's word for the bus, and its place in the boot order."""

    bus: str | None
    order: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Each None where nothing is known. `memory` in MiB. `disks` are by what their alias may be: the guest's
    name of a disk (`vda`), or that of its image without the suffix."""

    memory: int | None = None
    cpus: int | None = None
    firmware: Firmware | None = None
    chipset: Chipset | None = None
    source: str | None = None
    disks: Mapping[str, Attached] = field(default_factory=dict)


def read_machine(names: Mapping[str, int], read: Callable[[str], bytes]) -> Machine:
    """`names` are the artifacts and their sizes; `read` gives one. The first that says anything counts."""
    for name in sorted(names, key=_rank):
        parse = _parser(name)
        if parse is None or names[name] > _LARGEST:
            continue
        found = parse_machine(name, read(name))
        if found is not None:
            return found
    return Machine()


def parse_machine(name: str, data: bytes) -> Machine | None:
    """None when that is no configuration that we know. Never raises for what it says."""
    parse = _parser(name)
    try:
        return parse(name, data) if parse else None
    except (DefusedXmlException, SyntaxError, ValueError, RecursionError, LookupError):
        return None


def _rank(name: str) -> tuple[bool, bool, str]:
    return (not name.endswith(".ovf"), not name.endswith(".xml"), name)


def _parser(name: str) -> Callable[[str, bytes], Machine | None] | None:
    lower = name.lower()
    if lower.endswith((".ovf", ".xml")):
        return _xml
    return _json if lower == "vm.json" else None


def _xml(name: str, data: bytes) -> Machine | None:
    root = defusedxml.ElementTree.fromstring(data, forbid_dtd=True)
    kind = _local(root.tag)
    if kind == "Envelope":
        return _ovf(name, root)
    if kind == "domain":
        return _domain(name, root)
    return None


def _ovf(name: str, root: Element) -> Machine:
    """The engine's dialect, and the standard's: they agree on processors and memory."""
    memory = cpus = None
    for item in _all(root, "Item"):
        kind = _text(item, "ResourceType")
        quantity = _number(_text(item, "VirtualQuantity"))
        if kind == _CPU:
            cpus = quantity
        elif kind == _MEMORY and quantity is not None:
            unit = _text(item, "AllocationUnits").lower()
            # `byte * 2^20`, `MegaBytes`
            memory = quantity << 10 if "30" in unit or "giga" in unit else quantity
    chipset, firmware = _BIOS_TYPES.get(_text(root, "BiosType"), (None, None))
    for config in _all(root, "Config"):
        values = list(config.attrib.values())
        if "firmware" in values and "efi" in values:
            firmware = "uefi"
    return Machine(
        memory=_bounded(memory, _MOST_MEMORY),
        cpus=_bounded(cpus, _MOST_CPUS),
        firmware=firmware,
        chipset=chipset,
        source=name,
    )


def _domain(name: str, root: Element) -> Machine:
    """libvirt's domain XML (libvirt.org/formatdomain.html)."""
    memory = None
    found = root.find("memory")
    if found is not None and (amount := _number(found.text or "")) is not None:
        shift = _UNITS.get(found.get("unit", "KiB").lower(), 10)
        memory = (amount << shift) >> 20
    firmware: Firmware | None = None
    chipset: Chipset | None = None
    system = root.find("os")
    if system is not None:
        loader = system.find("loader")
        efi = system.get("firmware") == "efi" or (loader is not None and loader.get("type") == "pflash")
        firmware = "uefi" if efi else "bios"
        kind = system.find("type")
        machine = kind.get("machine", "") if kind is not None else ""
        chipset = "q35" if "q35" in machine else "pc" if machine.startswith("pc") else None
    return Machine(
        memory=_bounded(memory, _MOST_MEMORY),
        cpus=_bounded(_number(root.findtext("vcpu") or ""), _MOST_CPUS),
        firmware=firmware,
        chipset=chipset,
        source=name,
        disks=dict(_attached(root)),
    )


def _attached(domain: Element) -> Iterator[tuple[str, Attached]]:
    for disk in domain.iterfind("devices/disk"):
        target, boot = disk.find("target"), disk.find("boot")
        if target is None or disk.get("device", "disk") != "disk":
            continue
        attached = Attached(target.get("bus"), None if boot is None else _number(boot.get("order", "")))
        source = disk.find("source")
        places = [] if source is None else [source.get(kind, "") for kind in ("file", "dev", "volume")]
        for name in (*(PurePosixPath(place).stem for place in places), target.get("dev", "")):
            if name:
                yield name, attached


def _json(name: str, data: bytes) -> Machine | None:
    """vm.json: `memory` in bytes and `cpus` where they are said."""
    told = json.loads(data)
    vm: Any = told.get("vm") if isinstance(told, dict) else None
    if not isinstance(vm, dict):
        return None
    memory, cpus = vm.get("memory"), vm.get("cpus")
    if type(memory) is not int and type(cpus) is not int:
        return None
    return Machine(
        memory=_bounded(memory >> 20 if type(memory) is int else None, _MOST_MEMORY),
        cpus=_bounded(cpus if type(cpus) is int else None, _MOST_CPUS),
        source=name,
    )


def _bounded(value: int | None, most: int) -> int | None:
    return value if value is not None and 0 < value <= most else None


def _number(text: str) -> int | None:
    text = text.strip()
    return int(text) if re.fullmatch("[0-9]{1,12}", text) else None


def _all(root: Element, name: str) -> Iterator[Element]:
    return (element for element in root.iter() if _local(element.tag) == name)


def _text(root: Element, name: str) -> str:
    return next(((element.text or "").strip() for element in _all(root, name)), "")


def _local(tag: object) -> str:
    return str(tag).rpartition("}")[2]
