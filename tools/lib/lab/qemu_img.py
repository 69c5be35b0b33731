"""Image files: qemu-img, and what it tells of them."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lab.errors import MachineError

Format = Literal["cow", "raw"]
"""As oVirt names image formats: `cow` is qcow2."""
DRIVERS: Mapping[Format, str] = {"cow": "qcow2", "raw": "raw"}
GRANULARITY = 65536
"""Bytes for each bit of a bitmap; qemu's default, and libvirt's."""


@dataclass(frozen=True)
class Bitmap:
    """A dirty bitmap of one layer of a disk: a checkpoint's share there."""

    name: str
    recording: bool
    persistent: bool
    inconsistent: bool

    @property
    def usable(self) -> bool:
        return self.recording and self.persistent and not self.inconsistent


def qemu_img(*arguments: str | os.PathLike[str]) -> str:
    """Its output. Raises MachineError with its message."""
    command = ["qemu-img", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if result.returncode:
        message = result.stderr.strip().removeprefix("qemu-img: ")
        raise MachineError(f"qemu-img {arguments[0]}: {message}")
    return result.stdout


def create(path: Path, fmt: Format, size: int) -> None:
    """An empty image of `size` bytes."""
    qemu_img("create", "-q", "-f", DRIVERS[fmt], path, str(size))


def create_overlay(path: Path, base: Path, fmt: Format, size: int) -> None:
    """A qcow2 on top of `base`, of `size` bytes. Touches nothing of `base`, which may be in use."""
    backing = ["-u", "-b", os.fspath(base.absolute()), "-F", DRIVERS[fmt]]
    qemu_img("create", "-q", "-f", "qcow2", *backing, path, str(size))


def bitmaps(path: Path, fmt: Format) -> list[Bitmap]:
    """Of one layer that no process has open for writing. `inconsistent` is told as whoever opens it next will
    see it."""
    if fmt == "raw":
        return []
    info: dict[str, Any] = json.loads(qemu_img("info", "-U", "--output=json", "-f", "qcow2", path))
    found = info.get("format-specific", {}).get("data", {}).get("bitmaps", [])
    return [Bitmap(b["name"], "auto" in b["flags"], True, "in-use" in b["flags"]) for b in found]


def change_bitmap(path: Path, name: str, *actions: str) -> None:
    """Runs `qemu-img bitmap` on a qcow2 that is not in use: `--add`, `--remove`, …"""
    qemu_img("bitmap", "-f", "qcow2", *actions, path, name)


def merge_bitmaps(target: Path, name: str, source: str, layers: Sequence[Path]) -> None:
    """Adds a bitmap to `target` that holds what the bitmaps `source` of the layers hold."""
    change_bitmap(target, name, "--add", "-g", str(GRANULARITY))
    for layer in layers:
        change_bitmap(target, name, "--merge", source, "-b", os.fspath(layer), "-F", "qcow2")


def virtual_size(path: Path, fmt: Format) -> int:
    """Bytes, as the image says."""
    info = json.loads(qemu_img("info", "-U", "--output=json", "-f", DRIVERS[fmt], path))
    return int(info["virtual-size"])
