"""A disk's image files, base first, and the block nodes that qemu has for them."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab import qemu_img
from lab.daemon import Daemon
from lab.errors import MachineError
from lab.qemu_img import DRIVERS, Bitmap, Format
from lab.writer import GuestDisk


@dataclass(frozen=True)
class DiskImage:
    """A disk as it is given to a Machine: an image file that exists (see create_image), with its backing
    files below it when there is more than one path."""

    id: str
    paths: tuple[Path, ...]
    """The image files, base first, the active one last. Layers above the base are qcow2."""
    format: Format
    """Of the base."""
    size: int
    """Virtual size in bytes."""


@dataclass
class Layer:
    """One image file of a disk."""

    path: Path
    format: Format
    node: str = ""
    """Its block node while the machine runs."""
    snapshot: str | None = None
    """Id of the snapshot that froze it."""
    shadow: Path | None = None
    """What the guest had written when a user's snapshot froze this layer."""


@dataclass
class Disk:
    """A disk of a machine: a chain of layers."""

    id: str
    number: int
    """Within the machine; never used again."""
    layers: list[Layer]
    guest: GuestDisk
    export: str = ""
    """Id of the guest's own export while the machine runs."""
    _made: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def top(self) -> Layer:
        """The layer that the guest writes to."""
        return self.layers[-1]

    @property
    def size(self) -> int:
        """Virtual size in bytes."""
        return self.guest.size

    def image(self) -> DiskImage:
        paths = tuple(layer.path for layer in self.layers)
        return DiskImage(self.id, paths, self.layers[0].format, self.size)

    def new_path(self, folder: Path) -> Path:
        """For another layer."""
        return folder / f"disk{self.number}-layer{next(self._made)}.qcow2"

    def open(self, daemon: Daemon, nbd_socket: Path) -> None:
        """Block nodes for all layers, and the guest's export. Raises MachineError and undoes it all."""
        try:
            below: str | None = None
            for layer in self.layers:
                node = daemon.new_id(f"disk{self.number}")
                options = node_options(layer, node, below, read_only=layer is not self.top)
                daemon.execute("blockdev-add", **options)
                layer.node = below = node
            self.connect(daemon, nbd_socket)
        except BaseException:
            self.close(daemon)
            raise

    def connect(self, daemon: Daemon, nbd_socket: Path) -> None:
        """(Re)makes the guest's export, of the size that the disk has now. The export follows the disk
        through snapshots and commits, but not when it grows."""
        self.disconnect(daemon)
        name = f"guest-{self.number}"
        self.export = daemon.add_export(self.top.node, name, writable=True)
        self.guest.connect(nbd_socket, name)

    def disconnect(self, daemon: Daemon) -> None:
        self.guest.disconnect()
        if self.export:
            daemon.remove_export(self.export)
            self.export = ""

    def close(self, daemon: Daemon) -> None:
        """Undoes `open`, as far as it came."""
        self.disconnect(daemon)
        for layer in reversed(self.layers):
            if layer.node:
                daemon.execute("blockdev-del", node_name=layer.node)
                layer.node = ""

    def forget(self) -> None:
        """qemu has ended."""
        self.guest.disconnect()
        self.export = ""
        for layer in self.layers:
            layer.node = ""


def node_options(layer: Layer, node: str, below: str | None, *, read_only: bool) -> dict[str, Any]:
    """For blockdev-add and blockdev-reopen.

    `no-flush`: what qemu has written survives its death in the kernel's memory, and the lab need not survive
    the machine's; so a guest's flush costs no fsync.
    """
    file = {
        "driver": "file",
        "filename": str(layer.path),
        "discard": "unmap",
        "cache": {"no-flush": True},
    }
    options: dict[str, Any] = {
        "driver": DRIVERS[layer.format],
        "node-name": node,
        "read-only": read_only,
        "discard": "unmap",
        "file": file,
    }
    if layer.format == "cow":
        options["backing"] = below
    return options


def layer_bitmaps(layers: Sequence[Layer], daemon: Daemon | None) -> list[list[Bitmap]]:
    """The bitmaps of each layer: as qemu knows them while the machine runs, else as the files tell."""
    if daemon is None:
        return [qemu_img.bitmaps(layer.path, layer.format) for layer in layers]
    found = daemon.bitmaps()
    return [found.get(layer.node, []) for layer in layers]


def holders(layers: Sequence[Layer], bitmaps: Sequence[Sequence[Bitmap]], name: str) -> list[Layer]:
    """The layers, top first, whose bitmaps of that name are together what changed since the checkpoint: from
    the top without a gap."""
    found = []
    for layer, present in zip(reversed(layers), reversed(bitmaps), strict=True):
        if not any(bitmap.name == name for bitmap in present):
            break
        found.append(layer)
    return found


def checkpoint_valid(layers: Sequence[Layer], bitmaps: Sequence[Sequence[Bitmap]], name: str) -> bool:
    """libvirt's rule: there from the top without a gap, each of them recording, persistent, consistent."""
    together = holders(layers, bitmaps, name)
    everywhere = [bitmap for present in bitmaps for bitmap in present if bitmap.name == name]
    return bool(together) and len(everywhere) == len(together) and all(b.usable for b in everywhere)


@contextlib.contextmanager
def writable(disk: Disk, layer: Layer, daemon: Daemon) -> Iterator[None]:
    """qemu keeps the layers below the top read-only, bitmaps too: inside it this one can be changed."""
    number = disk.layers.index(layer)
    if layer is disk.top or layer.format == "raw":
        yield
        return
    below = disk.layers[number - 1].node if number else None

    def reopen(*, read_only: bool) -> None:
        options = node_options(layer, layer.node, below, read_only=read_only)
        daemon.execute("blockdev-reopen", options=[options])

    reopen(read_only=False)
    try:
        yield
    finally:
        reopen(read_only=True)


def remove_bitmap(disk: Disk, name: str, daemon: Daemon | None) -> None:
    """From every layer that has it, consistent or not. Raises MachineError."""
    for layer, present in zip(disk.layers, layer_bitmaps(disk.layers, daemon), strict=True):
        if not any(bitmap.name == name for bitmap in present):
            continue
        if daemon is None:
            qemu_img.change_bitmap(layer.path, name, "--remove")
        else:
            with writable(disk, layer, daemon):
                daemon.execute("block-dirty-bitmap-remove", node=layer.node, name=name)


def create_image(id: str, path: Path, format: Format, size: int) -> DiskImage:
    """A new empty image of `size` bytes at `path`. Raises MachineError."""
    if size <= 0 or size % 512:
        raise MachineError(f"{path}: a disk's size is a multiple of 512 bytes, not {size}")
    qemu_img.create(path, format, size)
    return DiskImage(id, (path,), format, size)
