"""The command tools/lab."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lab.control import ControlError, ask
from lab.faults import FAULTS, MOMENTS
from lab.guest import can_mount
from lab.imageio import ImageioError
from lab.machine import MachineError
from lab.process import sweep
from lab.ready import default_folder
from lab.serve import CONTROL, FACTS, Service

START_SECONDS = 120
LOG = "lab.log"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        return int(options.act(options))
    except (ControlError, MachineError, ImageioError) as error:
        sys.stderr.write(f"lab: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tools/lab",
        description="An oVirt engine to try vmfs on: the engine is simulated; qemu and imageio are real.",
    )
    parser.add_argument(
        "--dir", type=Path, default=default_folder(), help="where it is (default: %(default)s)"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    up = commands.add_parser("up", help="start it in the background, with a few VMs")
    up.set_defaults(act=_up)

    serve = commands.add_parser("serve", help="the same in the foreground")
    serve.set_defaults(act=_serve)

    status = commands.add_parser("status", help="show its VMs, what is broken, and what clients left behind")
    status.add_argument("--json", action="store_true")
    status.set_defaults(act=_status)

    write = commands.add_parser("write", help="let the guest of a VM write to its disks")
    write.add_argument("vm", metavar="VM")
    write.set_defaults(act=_write)

    broken = commands.add_parser("break", help="let something go wrong")
    broken.add_argument("kind", metavar="KIND", nargs="?")
    broken.add_argument(
        "options", metavar="OPTION=VALUE", nargs="*", help="vm=NAME, disk=ALIAS, seconds=N, …"
    )
    broken.add_argument("--list", action="store_true", help="what can go wrong, and when")
    broken.add_argument("--at", metavar="MOMENT", help="not at once, but when this happens next")
    broken.add_argument("--skip", type=int, default=0, metavar="N", help="let it pass N times first")
    broken.add_argument("--times", type=int, default=1, metavar="N", help="0: until it is mended")
    broken.set_defaults(act=_break)

    mend = commands.add_parser("mend", help="let it not go wrong any more")
    mend.add_argument("kind", metavar="KIND", nargs="?", help="default: everything")
    mend.set_defaults(act=_mend)

    down = commands.add_parser("down", help="end it, and remove all that it made")
    down.set_defaults(act=_down)
    return parser


def _ask(where: argparse.Namespace, /, **request: Any) -> dict[str, Any]:
    return ask(where.dir / CONTROL, request)


def _runs(folder: Path) -> bool:
    try:
        ask(folder / CONTROL, {"command": "status"})
    except ControlError:
        return False
    return True


def _prepare(folder: Path) -> None:
    """An empty folder for a lab. Raises ControlError."""
    if _runs(folder):
        raise ControlError(f"a lab is running in {folder}; end it first: tools/lab down")
    if folder.exists():
        if any(folder.iterdir()) and not (folder / "pki").is_dir():
            raise ControlError(f"{folder}: not empty, and not a lab's; choose another folder with --dir")
        sweep(folder)
        shutil.rmtree(folder)
    folder.mkdir(parents=True, mode=0o700)


def _serve(options: argparse.Namespace) -> int:
    if not options.dir.is_dir() or any(path.name != LOG for path in options.dir.iterdir()):
        _prepare(options.dir)
    Service(options.dir.absolute()).run()
    return 0


def _up(options: argparse.Namespace) -> int:
    folder = options.dir.absolute()
    _prepare(folder)
    with (folder / LOG).open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "lab", "--dir", str(folder), "serve"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    end = time.monotonic() + START_SECONDS
    while not (folder / FACTS).exists():
        if process.poll() is not None:
            last = (folder / LOG).read_text(errors="replace").strip().splitlines()[-1:]
            raise ControlError(f"it did not start: {last[0] if last else 'see ' + str(folder / LOG)}")
        if time.monotonic() > end:
            process.terminate()
            raise ControlError(f"it was not ready after {START_SECONDS} seconds; see {folder / LOG}")
        time.sleep(0.05)
    _show_facts(json.loads((folder / FACTS).read_text()))
    if not can_mount():
        _tell("Without root there is no VM with file systems: start the lab as root to have one.")
    return 0


def _tell(line: str = "") -> None:
    sys.stdout.write(line + "\n")


def _show_facts(facts: dict[str, Any]) -> None:
    _tell("The lab is up. For vmfs.toml:")
    _tell()
    _tell("    [engine.lab]")
    for name in ("url", "username", "password_file", "ca_file"):
        _tell(f"    {name} = {json.dumps(facts[name])}")
    _tell()
    for name, what in facts["vms"].items():
        _tell(f"VM {name:8}{what}")


def _status(options: argparse.Namespace) -> int:
    status = _ask(options, command="status")
    if options.json:
        _tell(json.dumps(status, indent=2))
        return 0
    _show_facts(status["facts"])
    for vm in status["vms"]:
        _tell()
        _tell(f"{vm['name']} ({vm['id']}): {vm['status']}, cluster {vm['cluster']}")
        for alias, disk_id in vm["disks"].items():
            _tell(f"    disk {alias} ({disk_id})")
        for name in ("checkpoints", "snapshots"):
            if vm[name]:
                _tell(f"    {name}: {', '.join(vm[name])}")
    for fault in status["faults"]:
        _tell(f"broken: {fault['name']}" + (f" at {fault['at']}" if fault["at"] else ""))
    for left in status["leftovers"]:
        _tell(f"left behind: {left}")
    for problem in status["problems"]:
        _tell(f"the lab's own fault: {problem}")
    return 0


def _write(options: argparse.Namespace) -> int:
    written = _ask(options, command="write", vm=options.vm)["written"]
    _tell(f"the guest of {options.vm} wrote {written:,} bytes")
    return 0


def _break(options: argparse.Namespace) -> int:
    if options.list or options.kind is None:
        for fault in FAULTS.values():
            number = f"{fault.behaviour:2}" if fault.behaviour else "  "
            _tell(f"{number} {fault.name:28}{fault.what}")
        _tell()
        _tell("Moments for --at:")
        for name, when in MOMENTS.items():
            _tell(f"   {name:28}{when}")
        return 0
    chosen: dict[str, str] = {}
    for option in options.options:
        name, equals, value = option.partition("=")
        if not equals:
            raise ControlError(f"{option}: write OPTION=VALUE, such as vm=web")
        chosen[name] = value
    _ask(
        options,
        command="break",
        kind=options.kind,
        options=chosen,
        at=options.at,
        skip=options.skip,
        times=options.times,
    )
    return 0


def _mend(options: argparse.Namespace) -> int:
    _ask(options, command="mend", kind=options.kind)
    return 0


def _down(options: argparse.Namespace) -> int:
    folder = options.dir.absolute()
    try:
        pid = int(_ask(options, command="status")["facts"]["pid"])
        _ask(options, command="down")
    except ControlError:
        if not (folder / "pki").is_dir():
            raise
        pid = 0
    end = time.monotonic() + START_SECONDS
    while pid and _exists(pid):
        if time.monotonic() > end:
            raise ControlError(f"process {pid} does not end; see {folder / LOG}")
        time.sleep(0.05)
    sweep(folder)
    shutil.rmtree(folder)
    return 0


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
