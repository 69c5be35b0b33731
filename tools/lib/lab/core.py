"""What a machine is before anybody backs it up: qemu, its disks, and what the guest does with them."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lab import qemu_img
from lab.backups import Backup, Place
from lab.chain import Disk, DiskImage, Layer
from lab.daemon import Daemon
from lab.errors import MachineError
from lab.nbd_server import NbdServer
from lab.process import remove_socket_folder, socket_folder
from lab.qemu_img import Format
from lab.writer import Gate, GuestDisk


class Core:
    """The part of Machine that runs: see there."""

    def __init__(self, folder: Path, disks: Sequence[DiskImage]) -> None:
        """`folder` is the machine's own: shadows, scratch files, overlays, logs. Starts nothing."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._lock = threading.RLock()
        self._gate = Gate()
        self._numbers = itertools.count(1)
        self._daemon: Daemon | None = None
        self._backup: Backup | None = None
        self._exports: dict[str, NbdServer] = {}
        self._snapshots: list[str] = []
        self._place: Place | None = None
        self._disks: dict[str, Disk] = {}
        for disk in disks:
            self.add_disk(disk)

    @property
    def running(self) -> bool:
        daemon = self._daemon
        return daemon is not None and daemon.running

    @property
    def pid(self) -> int | None:
        """Of qemu, while it runs."""
        daemon = self._daemon
        return daemon.pid if daemon is not None and daemon.running else None

    @property
    def disks(self) -> dict[str, DiskImage]:
        """The disks as they are now, by id: paths, format of the base, size."""
        return {disk.id: disk.image() for disk in list(self._disks.values())}

    def active_format(self, disk_id: str) -> Format:
        """Of the top layer: what oVirt tells as the disk's format (a raw disk with a snapshot is `cow`)."""
        return self._disk(disk_id).top.format

    def start(self) -> None:
        """Does nothing when it runs."""
        with self._lock:
            if self._alive() is not None:
                return
            daemon = Daemon(self.folder, self._places().sockets)
            opened: list[Disk] = []
            try:
                for disk in self._disks.values():
                    disk.open(daemon, daemon.nbd_socket)
                    opened.append(disk)
            except MachineError:
                for disk in opened:
                    disk.forget()
                daemon.quit()
                self._tidy()
                raise
            self._daemon = daemon

    def stop(self) -> None:
        """A clean end: bitmaps are saved. Does nothing when it is down."""
        with self._lock:
            daemon = self._alive()
            if daemon is None:
                return
            with self._gate.closed():
                for disk in self._disks.values():
                    disk.disconnect(daemon)
                daemon.quit()
                self._forget()
            self._tidy()

    def kill(self) -> None:
        """SIGKILL: bitmaps become inconsistent, backups are gone (the snapshot of a hybrid one stays). May be
        called while another method runs, which then raises MachineError."""
        daemon = self._daemon
        if daemon is not None:
            daemon.kill()
        with self._lock:
            if self._daemon is daemon and daemon is not None:
                self._bury(daemon)

    def close(self) -> None:
        """As kill, and ends every other process of the machine too; only files are left."""
        self.kill()
        with self._lock:
            if self._backup is not None:
                self._backup.abandon()
                self._backup = None
            for disk_id in list(self._exports):
                self._exports.pop(disk_id).close()
            self._tidy()

    # -- disks

    def add_disk(self, disk: DiskImage) -> None:
        with self._lock:
            if disk.id in self._disks:
                raise MachineError(f"{disk.id}: the machine has this disk")
            number = next(self._numbers)
            layers = [Layer(path.absolute(), "cow") for path in disk.paths]
            layers[0].format = disk.format
            shadow = self.folder / f"shadow-disk{number}.raw"
            fill_shadow(layers[-1], shadow)
            added = Disk(disk.id, number, layers, GuestDisk(self._gate, shadow))
            daemon = self._alive()
            if daemon is not None:
                added.open(daemon, daemon.nbd_socket)
            self._disks[disk.id] = added

    def remove_disk(self, disk_id: str) -> None:
        """Detaches it; the image files stay."""
        with self._lock:
            disk = self._disk(disk_id)
            self._idle(disk)
            daemon = self._alive()
            if daemon is not None:
                disk.close(daemon)
            del self._disks[disk_id]
            disk.guest.shadow.unlink()

    def resize(self, disk_id: str, size: int) -> None:
        """To `size` bytes, larger only."""
        with self._lock:
            disk = self._disk(disk_id)
            if size < disk.size or size % 512:
                raise MachineError(f"{disk_id}: cannot be resized from {disk.size} to {size} bytes")
            self._idle(disk)
            daemon = self._alive()
            if daemon is None:
                image = ("-q", "-f", qemu_img.DRIVERS[disk.top.format], disk.top.path, str(size))
                qemu_img.qemu_img("resize", *image)
                disk.guest.resize(size)
                return
            with self._gate.closed():
                disk.disconnect(daemon)  # an NBD export forbids it
                try:
                    daemon.execute("block_resize", node_name=disk.top.node, size=size)
                    disk.guest.resize(size)
                finally:
                    disk.connect(daemon, daemon.nbd_socket)

    # -- the guest

    def write(self, disk_id: str, offset: int, data: bytes) -> None:
        """When it returns, the write survives a kill. Of one that was under way at a kill nobody knows how
        much was done; the shadow takes it from the disk at the next start."""
        self._disk(disk_id).guest.write(offset, data)

    def zero(self, disk_id: str, offset: int, length: int) -> None:
        self._disk(disk_id).guest.zero(offset, length)

    def discard(self, disk_id: str, offset: int, length: int) -> None:
        self._disk(disk_id).guest.discard(offset, length)

    def read(self, disk_id: str, offset: int, length: int) -> bytes:
        return self._disk(disk_id).guest.read(offset, length)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """No guest write is in flight inside it; writers wait. The thread that froze it may write."""
        with self._gate.closed():
            yield

    def record(self, disk_id: str, target: Path) -> None:
        """A sparse copy of what the guest wrote until now; of a consistent set inside frozen()."""
        self._disk(disk_id).guest.record(target)

    def shadow(self, disk_id: str) -> Path:
        """The file that `record` copies. Read only."""
        return self._disk(disk_id).guest.shadow

    # -- inside; all need the lock

    def _disk(self, disk_id: str) -> Disk:
        try:
            return self._disks[disk_id]
        except KeyError:
            raise MachineError(f"{disk_id}: the machine has no such disk") from None

    def _places(self) -> Place:
        if self._place is None:
            self._place = Place(self.folder, socket_folder(self.folder))
        return self._place

    def _alive(self) -> Daemon | None:
        """The daemon, when it runs; one that died by itself is buried first."""
        with self._lock:
            daemon = self._daemon
            if daemon is None:
                return None
            if not daemon.running:
                self._bury(daemon)
                return None
            daemon.forget_events()
            return daemon

    def _needed(self) -> Daemon:
        daemon = self._alive()
        if daemon is None:
            raise MachineError("the machine is down")
        return daemon

    def _down(self) -> None:
        if self._alive() is not None:
            raise MachineError("the machine is running")

    def _bury(self, daemon: Daemon) -> None:
        daemon.reap()
        self._forget()
        if self._backup is not None:
            self._backup.abandon()
            self._backup = None
        self._tidy()

    def _tidy(self) -> None:
        """Call it when something has ended: without a process there are no sockets."""
        if self._daemon is None and self._backup is None and not self._exports:
            remove_socket_folder(self.folder)
            self._place = None

    def _forget(self) -> None:
        self._daemon = None
        for disk in self._disks.values():
            disk.forget()

    def _idle(self, disk: Disk) -> None:
        if self._backup is not None and disk.id in self._backup.exports:
            raise MachineError(f"{disk.id}: it is in backup {self._backup.id}")
        if disk.id in self._exports:
            raise MachineError(f"{disk.id}: it is exported")


def fill_shadow(layer: Layer, shadow: Path) -> None:
    """What the chain below and with `layer` holds, as a sparse raw file."""
    image = ("-f", qemu_img.DRIVERS[layer.format], layer.path)
    qemu_img.qemu_img("convert", "-q", "-O", "raw", *image, shadow)
