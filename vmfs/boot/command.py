"""qemu's command line for a VM."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vmfs.boot.accel import CPU, Accel
from vmfs.boot.machine import Chipset, Firmware
from vmfs.errors import UsageError

BUSES = ("virtio", "virtio_scsi", "sata", "ide", "nvme")
_BUS_NAMES = {
    "scsi": "virtio_scsi",
    "virtio-scsi": "virtio_scsi",
    "virtio-blk": "virtio",
    "spapr_vscsi": "virtio_scsi",
}
_MOST_IDE = 4
# Code and variables of the UEFI firmware, where the distributions put them.
_FIRMWARE = (
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BootDisk:
    """`overlay` is a qcow2 file over the export `export` at the Unix socket `socket`. `sector` in bytes."""

    overlay: Path
    export: str
    socket: Path
    bus: str
    serial: str
    sector: int = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """`memory` in MiB. `network` is none, or user: qemu's own, which lets the guest out and nobody in."""

    name: str
    memory: int
    cpus: int
    firmware: Firmware
    chipset: Chipset
    accel: Accel
    network: str = "none"
    display: str = "none"
    keep: bool = False
    extra: tuple[str, ...] = ()


def find_qemu() -> str:
    """Raises UsageError."""
    found = shutil.which("qemu-system-x86_64") or shutil.which("qemu-kvm", path="/usr/libexec:/usr/bin")
    if found is None or shutil.which("qemu-img") is None:
        raise UsageError(
            "qemu is missing; install it: apt-get install qemu-system-x86 qemu-utils, or dnf install "
            "qemu-kvm qemu-img"
        )
    return found


def known_bus(name: str | None) -> str:
    """The bus of that name in a restore point; `virtio` for none, and for those that qemu has not."""
    lower = (name or "").lower()
    lower = _BUS_NAMES.get(lower, lower)
    return lower if lower in BUSES else "virtio"


def qemu_command(
    qemu: str, guest: Guest, disks: Sequence[BootDisk], *, serial: Sequence[str], monitor: Path, folder: Path
) -> list[str]:
    """The firmware tries the disks in their order. `serial` are the arguments for the console, `monitor`
    where the QMP socket is to be; `folder` is for the firmware's variables. Raises UsageError for what this
    qemu cannot do."""
    machine = guest.chipset
    command = [qemu, "-nodefaults", "-no-user-config", "-name", _value(guest.name)]
    # Whatever breaks out of a guest finds no program to start, and no privilege to gain.
    command += ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]
    command += ["-machine", machine, "-accel", guest.accel, "-cpu", CPU[guest.accel]]
    command += ["-m", str(guest.memory), "-smp", str(guest.cpus)]
    command += ["-display", guest.display, "-device", "VGA", "-device", "virtio-rng-pci"]
    command += ["-qmp", f"unix:{_value(str(monitor))},server=on,wait=off", *serial]
    if guest.firmware == "uefi":
        command += _uefi(folder)
    if guest.network == "none":
        command += ["-nic", "none"]
    else:
        command += ["-nic", "user,model=virtio-net-pci"]
    command += _disks(guest, disks)
    return [*command, *guest.extra]


def _uefi(folder: Path) -> list[str]:
    for code, variables in _FIRMWARE:
        if Path(code).is_file() and Path(variables).is_file():
            own = folder / "uefi-variables"
            if not own.exists():
                shutil.copyfile(variables, own)
            return [
                "-drive",
                f"if=pflash,format=raw,unit=0,readonly=on,file={code}",
                "-drive",
                f"if=pflash,format=raw,unit=1,file={_value(str(own))}",
            ]
    raise UsageError(
        "the UEFI firmware is missing; install it: apt-get install ovmf, or dnf install edk2-ovmf"
    )


def _disks(guest: Guest, disks: Sequence[BootDisk]) -> list[str]:
    command: list[str] = []
    buses = [disk.bus for disk in disks]
    if "virtio_scsi" in buses:
        command += ["-device", "virtio-scsi-pci,id=scsi"]
    if "sata" in buses:
        command += ["-device", "ich9-ahci,id=ahci"]
    if buses.count("ide") > _MOST_IDE or buses.count("sata") > 6:
        raise UsageError("there are more disks than ports of that bus; give --bus virtio")
    used: dict[str, int] = {}
    for number, disk in enumerate(disks):
        node = f"disk{number}"
        command += ["-blockdev", json.dumps(_node(node, disk, keep=guest.keep))]
        port = used.get(disk.bus, 0)
        used[disk.bus] = port + 1
        device: dict[str, object] = {"drive": node, "bootindex": number + 1, "serial": disk.serial}
        if disk.sector != 512:
            device |= {"logical_block_size": disk.sector, "physical_block_size": disk.sector}
        device |= _device(guest.chipset, disk.bus, port)
        command += ["-device", json.dumps(device)]
    return command


def _device(chipset: Chipset, bus: str, port: int) -> dict[str, object]:
    if bus == "virtio_scsi":
        return {"driver": "scsi-hd", "bus": "scsi.0"}
    if bus == "sata":
        return {"driver": "ide-hd", "bus": f"ahci.{port}"}
    if bus == "ide":
        # The ports of q35's own controller take one device each, those of pc two.
        if chipset == "q35":
            return {"driver": "ide-hd", "bus": f"ide.{port}"}
        return {"driver": "ide-hd", "bus": f"ide.{port // 2}", "unit": port % 2}
    return {"driver": "nvme" if bus == "nvme" else "virtio-blk-pci"}


def _node(name: str, disk: BootDisk, *, keep: bool) -> dict[str, object]:
    return {
        "driver": "qcow2",
        "node-name": name,
        "discard": "unmap",
        # What is thrown away in the end need not survive a power cut.
        "cache": {"direct": False, "no-flush": not keep},
        "file": {
            "driver": "file",
            "filename": str(disk.overlay),
            "cache": {"direct": False, "no-flush": not keep},
        },
        "backing": {
            "driver": "nbd",
            "read-only": True,
            "server": {"type": "unix", "path": str(disk.socket)},
            "export": disk.export,
        },
    }


def _value(text: str) -> str:
    """In qemu's lists of options a comma is written twice."""
    return text.replace(",", ",,")
