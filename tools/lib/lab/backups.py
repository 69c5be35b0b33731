"""The three ways in which a disk is exported as it is at one instant, with what changed since a checkpoint.

live    libvirt's pull backup: qemu saves what the guest is about to overwrite (`blockdev-backup`, sync none)
hybrid  a snapshot, and the frozen layer below it through qemu-nbd; the end commits the snapshot
cold    the machine is down: qemu-nbd on its images
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lab import qemu_img, snapshots
from lab.chain import Disk, Layer, holders, layer_bitmaps
from lab.daemon import Daemon
from lab.errors import MachineError
from lab.nbd_server import NbdServer
from lab.snapshots import Action, add_bitmap, merge_bitmaps

Instant = Callable[[Callable[[], None]], None]
"""Runs what it gets while the guest is frozen, and then what is to happen at the same instant."""


@dataclass(frozen=True)
class BackupExport:
    """One disk of a running backup, ready for an imageio ticket."""

    url: str
    """`nbd:unix:/path.sock:exportname=NAME`; empty when `error`."""
    bitmap: str | None
    """The exported dirty bitmap; None: none was asked for (full)."""
    size: int
    """Bytes."""
    error: str | None = None
    """Hybrid and cold backups: why there is no NBD server (such as a broken bitmap). In oVirt the backup is
    then ready, and the *transfer* fails with this (ovirt-engine#896)."""


@dataclass(frozen=True)
class Request:
    """What a backup is to be."""

    id: str
    disks: Sequence[tuple[Disk, str | None]]
    """With the checkpoint since which changes are wanted; None: full."""
    checkpoint: str | None
    """The new one, on those of the disks that are qcow2."""
    instant: Instant


@dataclass(frozen=True)
class Place:
    """Where a machine's helpers put their files."""

    folder: Path
    sockets: Path


class Backup(Protocol):
    """One that runs."""

    id: str
    exports: dict[str, BackupExport]

    def end(self, daemon: Daemon | None) -> None:
        """Ends it; leaves nothing."""

    def abandon(self) -> None:
        """qemu has died: removes what it can, without qemu."""

    def drop(self, disk: str, daemon: Daemon | None) -> None:
        """The disk's NBD server dies."""

    def leftovers(self) -> list[str]:
        """Files that it has."""


class LiveBackup:
    """libvirt's order of commands: see qemuBackupBegin in https://gitlab.com/libvirt/libvirt."""

    def __init__(self, place: Place, request: Request, daemon: Daemon) -> None:
        """Raises MachineError with qemu's message, and leaves nothing behind."""
        self.id = request.id
        self.exports: dict[str, BackupExport] = {}
        self._jobs: list[str] = []
        self._exports: dict[str, str] = {}
        self._nodes: list[str] = []
        self._files: list[Path] = []
        self._began: list[dict[str, Any]] = []
        """The bitmaps of the new checkpoint."""
        try:
            actions: list[Action] = []
            for disk, since in request.disks:
                actions += self._prepare(place, disk, since, request.checkpoint, daemon)

            def act() -> None:
                daemon.transaction(actions)
                self._began = [data for kind, data in actions if data.get("name") == request.checkpoint]

            request.instant(act)
            for (disk, since), node in zip(request.disks, self._nodes, strict=True):
                bitmap = None if since is None else _dirty_name(disk)
                name = f"disk-{disk.number}"
                self._exports[disk.id] = daemon.add_export(node, name, bitmaps=[bitmap] if bitmap else [])
                url = f"nbd:unix:{daemon.nbd_socket}:exportname={name}"
                self.exports[disk.id] = BackupExport(url, bitmap, disk.size)
        except BaseException:
            with contextlib.suppress(MachineError):  # qemu may have ended
                self.end(daemon)
                for began in self._began:
                    daemon.execute("block-dirty-bitmap-remove", node=began["node"], name=began["name"])
            self.abandon()
            raise

    def end(self, daemon: Daemon | None) -> None:
        if daemon is not None:
            for export in self._exports.values():
                daemon.remove_export(export)
            for job in self._jobs:
                daemon.cancel_job(job)
            for node in self._nodes:
                daemon.execute("blockdev-del", node_name=node)
        self.abandon()

    def abandon(self) -> None:
        for file in self._files:
            file.unlink(missing_ok=True)

    def drop(self, disk: str, daemon: Daemon | None) -> None:
        if daemon is not None:
            daemon.remove_export(self._exports[disk])

    def leftovers(self) -> list[str]:
        return [str(file) for file in self._files if file.exists()]

    def _prepare(
        self, place: Place, disk: Disk, since: str | None, checkpoint: str | None, daemon: Daemon
    ) -> list[Action]:
        """The scratch image that takes what is about to be overwritten; gives the disk's actions."""
        scratch = place.folder / f"scratch-{self.id}-disk{disk.number}.qcow2"
        qemu_img.create(scratch, "cow", disk.size)
        self._files.append(scratch)
        node = daemon.new_id(f"scratch{disk.number}")
        file = {"driver": "file", "filename": str(scratch), "discard": "unmap", "cache": {"no-flush": True}}
        options = {"driver": "qcow2", "file": file, "backing": disk.top.node, "read-only": False}
        daemon.execute("blockdev-add", node_name=node, **options)
        self._nodes.append(node)
        actions: list[Action] = []
        if checkpoint is not None and disk.top.format == "cow":
            actions.append(add_bitmap(disk.top.node, checkpoint))
        if since is not None:
            together = holders(disk.layers, layer_bitmaps(disk.layers, daemon), since) or [disk.top]
            dirty = _dirty_name(disk)
            actions.append(add_bitmap(node, dirty, persistent=False, disabled=True))
            actions.append(merge_bitmaps(node, dirty, [(layer.node, since) for layer in together]))
        job = daemon.new_id(f"backup{disk.number}")
        self._jobs.append(job)
        backup = {"job-id": job, "device": disk.top.node, "target": node, "sync": "none"}
        actions.append(("blockdev-backup", {**backup, "auto-finalize": True, "auto-dismiss": False}))
        return actions


class ServedBackup:
    """What hybrid and cold backups share: a qemu-nbd for each disk, on a throw-away qcow2 above the image.

    That overlay is vdsm's (`_create_overlay` in its storage/nbd.py): qemu-nbd exports a bitmap of one image,
    and that of a chain has to be merged into one.
    """

    def __init__(self, place: Place, request: Request) -> None:
        self.id = request.id
        self.exports: dict[str, BackupExport] = {}
        self._place = place
        self._servers: dict[str, NbdServer] = {}
        self._files: list[Path] = []

    def serve(self, disk: Disk, since: str | None, layers: Sequence[Layer], found: Sequence[Layer]) -> None:
        """Exports the chain of `layers`; `found`, those of them that hold the bitmap `since`."""
        image, fmt, bitmap = layers[-1].path, layers[-1].format, since
        try:
            if since is not None:
                bitmap = _dirty_name(disk)
                image = self._place.folder / f"overlay-{self.id}-disk{disk.number}.qcow2"
                self._files.append(image)
                qemu_img.create_overlay(image, layers[-1].path, fmt, disk.size)
                fmt = "cow"
                if not found:
                    raise MachineError(f"Bitmap does not exist: {since} in {layers[-1].path}")
                qemu_img.merge_bitmaps(image, bitmap, since, [layer.path for layer in found])
            name = f"nbd-disk{disk.number}"
            server = NbdServer(self._place.folder, self._place.sockets, name, image, fmt, bitmap=bitmap)
        except MachineError as error:
            self.exports[disk.id] = BackupExport("", None, disk.size, str(error))
            return
        self._servers[disk.id] = server
        self.exports[disk.id] = BackupExport(server.url, bitmap, disk.size)

    def end(self, daemon: Daemon | None) -> None:
        self.abandon()

    def abandon(self) -> None:
        for server in self._servers.values():
            server.close()
        self._servers.clear()
        for file in self._files:
            file.unlink(missing_ok=True)

    def drop(self, disk: str, daemon: Daemon | None) -> None:
        self._servers.pop(disk).close()

    def leftovers(self) -> list[str]:
        return [str(file) for file in self._files if file.exists()]


class HybridBackup(ServedBackup):
    """Its snapshot is the machine's to end: it is there after a crash, too."""

    def __init__(self, place: Place, request: Request, daemon: Daemon) -> None:
        """Raises MachineError when the snapshot fails, and leaves nothing behind."""
        super().__init__(place, request)
        disks = [disk for disk, _ in request.disks]
        snapshots.take(disks, place.folder, daemon, self.id, request.checkpoint, request.instant)
        try:
            for disk, since in request.disks:
                layers = disk.layers[:-1]
                found = [] if since is None else holders(layers, layer_bitmaps(layers, daemon), since)
                self.serve(disk, since, layers, found)
        except BaseException:
            self.abandon()
            raise


class ColdBackup(ServedBackup):
    """The machine cannot start meanwhile: qemu locks the images."""

    def __init__(self, place: Place, request: Request) -> None:
        """Raises MachineError when the checkpoint cannot be made, and leaves nothing behind."""
        super().__init__(place, request)
        made: list[Disk] = []
        name = request.checkpoint
        try:
            if name is not None:
                for disk, _ in request.disks:
                    if disk.top.format == "cow":
                        granularity = ("-g", str(qemu_img.GRANULARITY))
                        qemu_img.change_bitmap(disk.top.path, name, "--add", *granularity)
                        made.append(disk)
            request.instant(lambda: None)
            for disk, since in request.disks:
                layers = disk.layers
                found = [] if since is None else holders(layers, layer_bitmaps(layers, None), since)
                self.serve(disk, since, layers, found)
        except BaseException:
            self.abandon()
            if name is not None:
                for disk in made:
                    qemu_img.change_bitmap(disk.top.path, name, "--remove")
            raise


def _dirty_name(disk: Disk) -> str:
    return f"backup-disk{disk.number}"
