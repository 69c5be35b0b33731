"""Whether KVM runs guests here. That /dev/kvm opens does not tell: inside some virtual machines it does,
and no guest starts, or one that starts hangs."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

Accel = Literal["kvm", "tcg"]

_SECONDS = 5
CPU: Mapping[Accel, str] = {"kvm": "host", "tcg": "max"}
"""What qemu's guests have for a processor: all that the machine has, or all that qemu can do."""
_SIZE = 64 << 10
_RESET = 0xFFF0
# Where the processor begins: mov al, 0x2a; out 0xf4, al; hlt.
_CODE = bytes([0xB0, 0x2A, 0xE6, 0xF4, 0xF4])
# isa-debug-exit ends qemu with this for the value 0x2a.
_STATUS = (0x2A << 1) | 1


def kvm_works(qemu: str) -> bool:
    """Whether a guest of three instructions comes to its end under KVM. Takes some tenths of a second where
    it does, `_SECONDS` where it hangs. The processor is the one that a guest gets: some hosts refuse just
    that."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    return trial(qemu, "kvm")


def trial(qemu: str, accel: Accel) -> bool:
    with tempfile.TemporaryDirectory(prefix="vmfs-kvm-") as name:
        bios = Path(name) / "bios"
        bios.write_bytes(bytes(_RESET) + _CODE.ljust(_SIZE - _RESET, b"\xf4"))
        command = [
            qemu,
            "-accel",
            accel,
            "-cpu",
            CPU[accel],
            "-machine",
            "pc",
            "-m",
            "16",
            "-nodefaults",
            "-no-user-config",
        ]
        command += ["-display", "none", "-bios", str(bios), "-device", "isa-debug-exit,iobase=0xf4,iosize=1"]
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=_SECONDS,
            )
        except (OSError, subprocess.TimeoutExpired):
            return False
    return done.returncode == _STATUS
