"""vmfs boot: start a VM straight from a restore point."""

from __future__ import annotations

import argparse
import logging
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from vmfs import __version__
from vmfs.boot.accel import Accel, kvm_works
from vmfs.boot.command import BUSES, Guest, find_qemu, known_bus
from vmfs.boot.machine import Attached, Machine, read_machine
from vmfs.boot.overlay import open_folder, written
from vmfs.boot.run import Check, Vm, VmDisk
from vmfs.cli import common
from vmfs.cli.serve import exports, find_disks, hold_lease, scratch_directory
from vmfs.cli.tables import printable
from vmfs.errors import UsageError, VmfsError
from vmfs.format.manifest import Disk
from vmfs.repo.notes import add_note
from vmfs.repo.repository import Point, Repository

log = logging.getLogger(__name__)

_DEFAULT_MEMORY = 2048
_SHOWN = 15
"""Lines of the console that are shown of a VM that did not come up."""
_KEPT = 64 << 10
"""Characters of the console that the note keeps."""


def register(subparsers: Any) -> None:
    parser = common.add_repository_command(
        subparsers,
        "boot",
        run,
        help="start a VM straight from a restore point",
        description="Start the VM of a restore point with qemu, at once: its disks are read from the "
        "repository "
        "as they are needed, and what the VM writes goes to an overlay that is gone in the end. Its serial "
        "console is on the terminal; Ctrl-A X ends it. Memory, processors and firmware are those of the "
        "configuration kept with the point, where there is one. The network is off.",
        epilog="With --check it is a test of the backup: exit status 0 when the text came, else 1.",
    )
    parser.add_argument(
        "point",
        nargs="*",
        metavar="POINT",
        help="a restore point: an id, a prefix, VM@latest, VM@TIME; POINT:DISK is only that disk",
    )
    parser.add_argument("--memory", type=common.parse_size, metavar="SIZE", help="memory, as 2G")
    parser.add_argument("--cpus", type=_count, metavar="N", help="number of processors")
    parser.add_argument("--firmware", choices=("bios", "uefi"), help="kind of firmware; default bios")
    parser.add_argument("--machine", choices=("pc", "q35"), help="kind of machine; default by the firmware")
    parser.add_argument("--bus", choices=BUSES, help="attach all disks to this bus; default as they were")
    parser.add_argument(
        "--net",
        choices=("none", "user"),
        default="none",
        help="network: none, or user, which lets the VM out to the world and nobody in; default none",
    )
    parser.add_argument(
        "--display", default="none", metavar="KIND", help="qemu's -display, as gtk or vnc=:1; default none"
    )
    parser.add_argument(
        "--accel", choices=("auto", "kvm", "tcg"), default="auto", help="default kvm where it works, else tcg"
    )
    parser.add_argument(
        "--scratch", metavar="DIR", help="where the overlay goes; default $TMPDIR or /var/tmp"
    )
    parser.add_argument(
        "--keep",
        metavar="NAME",
        help="keep what the VM writes in DIR/NAME, and go on from there the next time",
    )
    parser.add_argument(
        "--check",
        metavar="REGEX",
        help="wait for this text on the serial console, power off, and keep the evidence",
    )
    parser.add_argument(
        "--timeout", type=_seconds, default=300, metavar="SECONDS", help="for --check: how long; default 300"
    )
    parser.add_argument(
        "--shutdown-timeout",
        type=_seconds,
        default=60,
        metavar="SECONDS",
        help="for --check: how long the VM may take to power off before it is cut off; default 60",
    )
    parser.add_argument(
        "--no-note", action="store_true", help="for --check: keep no evidence in the repository"
    )
    parser.add_argument(
        "--qemu-args", metavar="TEXT", default="", help="more arguments for qemu, as a shell reads them"
    )


def run(args: argparse.Namespace) -> int:
    specs = common.take_repository(args, args.point)
    if len(specs) != 1:
        raise UsageError("vmfs boot takes a repository and one POINT")
    pattern = _pattern(args)
    if args.json and pattern is None:
        raise UsageError("--json prints the outcome of a check; give --check REGEX")
    scratch = scratch_directory(args.scratch)
    if args.keep is not None and args.scratch is None:
        raise UsageError("--keep takes the directory that it is kept in: give --scratch DIR")
    qemu = find_qemu()
    with ExitStack() as stack:
        repository = stack.enter_context(common.open_repository(args))
        with common.open_catalog(repository, args) as catalog:
            point, disks = find_disks(catalog, repository, specs[0])
        hold_lease(repository, stack)
        machine = _machine(repository, point)
        guest = _guest(args, point, machine, _accel(args, qemu))
        folder = open_folder(scratch, args.keep, point.id, stack)
        disks = _in_order(disks, machine)
        attached = [
            VmDisk(
                point.manifest.disks.index(disk),
                disk,
                args.bus or known_bus(disk.bus or _attached(machine, disk).bus),
            )
            for disk in disks
        ]
        vm = Vm(qemu, guest, exports(repository, point, disks), attached, folder, terminal=pattern is None)
        if pattern is None:
            if not args.quiet:
                print(f"Starting {_described(point, guest)}; Ctrl-A X ends it.", file=sys.stderr)
            with vm:
                vm.wait()
            return 0
        with vm:
            check = vm.check(pattern, args.timeout, args.shutdown_timeout)
        facts = _evidence(args, point, guest, check, qemu=qemu, size=written(folder))
        note = None if args.no_note else _keep(repository, point, facts)
    _report(args, point, facts, note)
    return 0 if check.matched is not None else 1


def _machine(repository: Repository, point: Point) -> Machine:
    artifacts = {item.name: item for item in point.manifest.artifacts}
    sizes = {name: item.size for name, item in artifacts.items()}
    try:
        return read_machine(sizes, lambda name: repository.read_artifact(artifacts[name]))
    except VmfsError as error:
        log.warning("the configuration of the VM cannot be read: %s", error)
        return Machine()


def _attached(machine: Machine, disk: Disk) -> Attached:
    return machine.disks.get(disk.alias, Attached(None, None))


def _in_order(disks: tuple[Disk, ...], machine: Machine) -> tuple[Disk, ...]:
    """To boot from: what the point itself says comes before what was kept with it."""
    if any(disk.boot_order is not None for disk in disks):
        return disks
    return tuple(sorted(disks, key=lambda disk: _attached(machine, disk).order or 1 << 62))


def _guest(args: argparse.Namespace, point: Point, machine: Machine, accel: Accel) -> Guest:
    firmware = args.firmware or machine.firmware or "bios"
    chipset = args.machine or machine.chipset or ("q35" if firmware == "uefi" else "pc")
    try:
        extra = tuple(shlex.split(args.qemu_args))
    except ValueError as error:
        raise UsageError(f"--qemu-args: {error}") from None
    return Guest(
        name=point.manifest.vm.name,
        memory=_memory(args, machine),
        cpus=args.cpus or min(machine.cpus or 1, os.cpu_count() or 1),
        firmware=firmware,
        chipset=chipset,
        accel=accel,
        network=args.net,
        display=args.display,
        keep=args.keep is not None,
        extra=extra,
    )


def _memory(args: argparse.Namespace, machine: Machine) -> int:
    """MiB. A backup of a large machine may well be tested on a small one."""
    if args.memory is not None:
        if args.memory < 1 << 20:
            raise UsageError("--memory is bytes, or a size as 2G; 1M is the least")
        return int(args.memory) >> 20
    most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 21
    wanted = machine.memory or _DEFAULT_MEMORY
    if machine.memory is not None and machine.memory > most:
        log.warning("the VM had %d MiB of memory; it gets %d, half of this machine's", machine.memory, most)
    return min(wanted, most)


def _accel(args: argparse.Namespace, qemu: str) -> Accel:
    accel: Accel = args.accel if args.accel != "auto" else "kvm" if kvm_works(qemu) else "tcg"
    if args.accel == "auto" and accel == "tcg":
        log.info("KVM does not run guests here: qemu emulates the processor, which is slow")
    return accel


def _evidence(
    args: argparse.Namespace, point: Point, guest: Guest, check: Check, *, qemu: str, size: int
) -> dict[str, Any]:
    """What the note says; whole numbers only."""
    return {
        "version": 1,
        "passed": check.matched is not None,
        "check": args.check,
        "matched": check.matched,
        "milliseconds": round(check.seconds * 1000),
        "timeout_seconds": args.timeout,
        "ending": check.ending,
        "shutdown_milliseconds": round(check.shutdown_seconds * 1000),
        "bytes_written": size,
        "disks": [disk.alias for disk in point.manifest.disks],
        "machine": {
            "type": guest.chipset,
            "firmware": guest.firmware,
            "memory_mib": guest.memory,
            "cpus": guest.cpus,
            "accel": guest.accel,
            "network": guest.network,
        },
        "host": {
            "vmfs": __version__,
            "qemu": _qemu_version(qemu),
            "kernel": platform.release(),
            "name": platform.node(),
        },
        "console": check.console[-_KEPT:],
    }


def _qemu_version(qemu: str) -> str:
    done = subprocess.run([qemu, "--version"], capture_output=True, text=True, errors="replace")
    found = re.search(r"version (\S+)", done.stdout)
    return found[1] if found else "unknown"


def _keep(repository: Repository, point: Point, facts: Mapping[str, Any]) -> str | None:
    try:
        return add_note(repository, point.id, "boot", facts)
    except VmfsError as error:
        # Whoever may only read can test all the same.
        log.warning("the evidence is not kept: %s", error)
        return None


def _report(args: argparse.Namespace, point: Point, facts: Mapping[str, Any], note: str | None) -> None:
    if args.json:
        common.print_json({"point": point.id, "vm": point.manifest.vm.name, "note": note, **facts})
        return
    if args.quiet and facts["passed"]:
        return
    name = printable(point.manifest.vm.name)
    seconds = facts["milliseconds"] / 1000
    if facts["passed"]:
        print(f"{name} of {point.id} came up in {seconds:.1f} s: {printable(facts['matched'])}")
    elif facts["ending"] == "itself":
        print(f"{name} of {point.id} ended after {seconds:.1f} s without saying {printable(args.check)!r}")
    else:
        print(f"{name} of {point.id} did not say {printable(args.check)!r} within {seconds:.0f} s")
    if not facts["passed"]:
        lines = facts["console"].splitlines()[-_SHOWN:] or ["(nothing: is its console on the serial port?)"]
        print("\n".join(f"  {printable(line)}" for line in lines))
    ending = {"acpi": "It powered off", "quit": "It was cut off", "itself": "It ended by itself"}
    kept = f" The evidence is note {note}." if note else ""
    print(f"{ending[facts['ending']]}; it wrote {common.format_size(facts['bytes_written'])}.{kept}")


def _described(point: Point, guest: Guest) -> str:
    return (
        f"{printable(point.manifest.vm.name)} of {point.id} ({guest.memory} MiB, {guest.cpus} CPU, "
        f"{guest.firmware}, {guest.accel}, network {guest.network})"
    )


def _pattern(args: argparse.Namespace) -> re.Pattern[str] | None:
    try:
        return None if args.check is None else re.compile(args.check)
    except re.error as error:
        raise UsageError(f"--check {args.check!r} is no regular expression: {error}") from None


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 0 < int(text) <= 1024):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of processors")
    return int(text)


def _seconds(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 0 < int(text) <= 86400):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds, 1 to 86400")
    return int(text)
