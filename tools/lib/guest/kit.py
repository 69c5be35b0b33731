"""Run a script as root in a small Linux guest with disks: device-mapper, md, file systems of a real kernel.

    output = kit.run("pvcreate /dev/vda && vgcreate vg /dev/vda", [Path("disk.raw")])

The guest is Debian's cloud kernel under TCG, so it needs no KVM, no root and no module of the machine's own.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from guest import initramfs
from guest.cpio import Archive
from guest.errors import GuestError
from guest.packages import CACHE, kernel_version, locked, unpacked

__all__ = ["GuestError", "initial_files", "kernel", "run"]

_QUIET = "console=ttyS0 quiet loglevel=3 panic=-1 random.trust_cpu=on mitigations=off nokaslr"
_SHOWN = 3000
"""Of a failed guest's output, the last that many characters are told."""


def run(
    script: str,
    disks: Sequence[Path],
    *,
    seconds: float = 180,
    memory: int = 768,
    files: Mapping[str, bytes] | None = None,
) -> str:
    """What the shell script (busybox's `sh`) printed, standard output and error; it has the disks (raw files,
    changed in place) as /dev/vda, /dev/vdb, … and is killed after `seconds`. `memory` in MiB. `files` appear
    in the guest by their paths (`/data/tree.tar`).

    Raises GuestError, with the end of the output, when the script's status is not 0 (`set -e` is yours to
    say), when the guest does not end in time, or when apt cannot give the packages.
    """
    extra = Archive()
    extra.file("script", script.encode())
    for path, content in (files or {}).items():
        extra.file(path.lstrip("/"), content)
    base = initial_files()
    with tempfile.TemporaryDirectory(prefix="guest-") as name:
        folder = Path(name)
        # The kernel unpacks one archive after the other.
        initrd = folder / "initrd"
        initrd.write_bytes(base.read_bytes() + extra.to_bytes())
        console, output = folder / "console", folder / "output"
        command = ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-machine", "pc", "-cpu", "max"]
        command += ["-m", str(memory), "-smp", "2", "-nodefaults", "-no-user-config", "-display", "none"]
        command += ["-no-reboot", "-kernel", str(kernel()), "-initrd", str(initrd), "-append", _QUIET]
        command += ["-serial", f"file:{console}", "-serial", f"file:{output}"]
        command += ["-device", "virtio-rng-pci"]
        for number, disk in enumerate(disks):
            path = str(disk.absolute()).replace(",", ",,")
            drive = f"file={path},format=raw,if=none,id=d{number},cache=unsafe,discard=unmap"
            command += ["-drive", drive, "-device", f"virtio-blk-pci,drive=d{number},serial=disk{number}"]
        trouble = _run(command, seconds)
        told, said = _text(console), _text(output)
        ended = re.search(r"guest: script ended with status (\d+)", told)
        if trouble is None and ended is not None and ended[1] == "0":
            return said
        if ended is not None:
            trouble = f"the script in the guest ended with status {ended[1]}"
        shown = f"{said[-_SHOWN:]}\n-- console:\n{told[-_SHOWN:]}"
        raise GuestError(f"{trouble or 'the guest ended before its script'}; it printed:\n{shown}")


def kernel() -> Path:
    """The kernel's image, as a boot loader takes it."""
    root = unpacked()
    return root / "boot" / f"vmlinuz-{kernel_version(root)}"


def initial_files() -> Path:
    """The initramfs, made if it is not there yet."""
    root = unpacked()
    source = Path(initramfs.__file__).read_bytes()
    path = CACHE / f"initramfs-{hashlib.sha256(root.name.encode() + source).hexdigest()[:12]}.cpio"
    with locked(CACHE):
        if not path.is_file():
            content = initramfs.build(root)
            for stale in CACHE.glob("initramfs-*"):
                stale.unlink()
            fresh = path.with_suffix(".new")
            fresh.write_bytes(content)
            fresh.rename(path)
    return path


def _run(command: list[str], seconds: float) -> str | None:
    """What went wrong with qemu itself."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
            env={**os.environ, "LC_ALL": "C"},
        )
    except FileNotFoundError:
        raise GuestError("there is no qemu-system-x86_64; install the package qemu-system-x86") from None
    except subprocess.TimeoutExpired:
        return f"the guest did not end within {seconds:g} s"
    if done.returncode != 0:
        return f"qemu ended with status {done.returncode}: {done.stderr.decode(errors='replace').strip()}"
    return None


def _text(path: Path) -> str:
    return path.read_bytes().decode(errors="replace") if path.exists() else ""
