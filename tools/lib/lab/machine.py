"""One simulated VM: a real qemu-storage-daemon with its disks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from lab import chain, snapshots, sparse
from lab.backups import Backup, BackupExport, ColdBackup, HybridBackup, LiveBackup, Request
from lab.chain import DiskImage, Layer, create_image
from lab.core import Core, fill_shadow
from lab.errors import MachineError
from lab.nbd_server import NbdServer
from lab.qemu_img import Format
from lab.writer import GuestDisk

__all__ = ["BackupExport", "DiskImage", "Format", "Machine", "MachineError", "create_image"]


class Machine(Core):
    """Thread-safe; every method blocks until it is done. All of them raise MachineError.

    Guest I/O (write, zero, discard, read: see Core) needs a running machine and goes on while backups begin
    and end; everything else is one at a time, but `kill`.
    """

    def stop(self) -> None:
        """As Core.stop; ends a running backup first."""
        with self._lock:
            if self.running and self._backup is not None:
                self.end_backup(self._backup.id)
            super().stop()

    def begin_live_backup(
        self,
        backup_id: str,
        disks: Mapping[str, str | None],
        checkpoint: str | None,
        at_freeze: Callable[[], None],
    ) -> dict[str, BackupExport]:
        """libvirt's pull backup. `disks`: checkpoint since which changes are wanted, None for full.
        `checkpoint`: the new one, made on the qcow2 disks among them. Raises MachineError with qemu's message
        when a bitmap is missing or broken; nothing is left behind then, and at_freeze was not called."""
        with self._lock:
            request = self._request(backup_id, disks, checkpoint, at_freeze)
            return self._began(LiveBackup(self._places(), request, self._needed()))

    def begin_hybrid_backup(
        self,
        backup_id: str,
        disks: Mapping[str, str | None],
        checkpoint: str | None,
        at_freeze: Callable[[], None],
    ) -> dict[str, BackupExport]:
        """A snapshot, of the backup's id, whose base is exported through qemu-nbd. A broken bitmap shows in
        BackupExport.error."""
        with self._lock:
            request = self._request(backup_id, disks, checkpoint, at_freeze)
            daemon = self._needed()
            try:
                with self._taking(backup_id):
                    backup = HybridBackup(self._places(), request, daemon)
            except BaseException:
                with contextlib.suppress(MachineError):  # when qemu has ended, the snapshot stays
                    self.end_backup(backup_id)
                raise
            return self._began(backup)

    def begin_cold_backup(
        self,
        backup_id: str,
        disks: Mapping[str, str | None],
        checkpoint: str | None,
        at_freeze: Callable[[], None],
    ) -> dict[str, BackupExport]:
        """Of a machine that is down: through qemu-nbd. A broken bitmap shows in BackupExport.error."""
        with self._lock:
            self._down()
            request = self._request(backup_id, disks, checkpoint, at_freeze)
            return self._began(ColdBackup(self._places(), request))

    def end_backup(self, backup_id: str, *, merge: bool = True) -> None:
        """Ends the backup of that id, however it began; clients that are connected lose their connection.
        Hybrid: commits the snapshot, as long as it takes, also when a kill ended the backup before; not
        `merge`: leaves the snapshot. Does nothing when all is ended."""
        with self._lock:
            daemon = self._alive()
            if self._backup is not None and self._backup.id == backup_id:
                self._backup.end(daemon)
                self._backup = None
            if merge and backup_id in self._snapshots:
                self.remove_snapshot(backup_id)
            self._tidy()

    @property
    def backup(self) -> str | None:
        """The id of the running backup."""
        backup = self._backup
        if backup is None or (self._daemon is not None and not self._daemon.running):
            return None
        return backup.id

    def drop_export(self, backup_id: str, disk_id: str) -> None:
        """A fault: the NBD server of this disk dies, the backup stays."""
        with self._lock:
            daemon = self._alive()
            if self._backup is None or self._backup.id != backup_id:
                raise MachineError(f"{backup_id}: no such backup runs")
            if disk_id not in self._backup.exports:
                raise MachineError(f"{disk_id}: not in backup {backup_id}")
            self._backup.drop(disk_id, daemon)

    # -- snapshots and checkpoints

    def snapshot(self, snapshot_id: str) -> None:
        """Of all disks; running or not."""
        with self._lock:
            disks = list(self._disks.values())

            def keep() -> None:
                for disk in disks:
                    layer = disk.layers[-2]
                    layer.shadow = self.folder / f"shadow-disk{disk.number}-{snapshot_id}.raw"
                    disk.guest.record(layer.shadow)

            with self._taking(snapshot_id):
                instant = self._instant(keep)
                snapshots.take(disks, self.folder, self._alive(), snapshot_id, None, instant)

    def remove_snapshot(self, snapshot_id: str) -> None:
        """Commits the layer above it; running or not. The checkpoints stay."""
        with self._lock:
            self._known(snapshot_id)
            daemon = self._alive()
            for disk in self._disks.values():
                for layer in disk.layers[:-1]:
                    if layer.snapshot == snapshot_id:
                        snapshots.commit(disk, layer, daemon, self.frozen)
                        break
            self._snapshots.remove(snapshot_id)

    def revert_snapshot(self, snapshot_id: str) -> None:
        """The disks hold what they held then (machine down; disks added later stay as they are); later
        snapshots and all checkpoints are gone. The snapshot itself stays."""
        with self._lock:
            self._down()
            self._known(snapshot_id)
            if self._backup is not None:
                raise MachineError(f"backup {self._backup.id} runs")
            for disk in self._disks.values():
                for layer in disk.layers[:-1]:
                    if layer.snapshot == snapshot_id:
                        snapshots.revert(disk, layer, self.folder)
                        _refill(disk.guest, layer)
                        break
            del self._snapshots[self._snapshots.index(snapshot_id) + 1 :]

    @property
    def snapshots(self) -> list[str]:
        """Oldest first; those of hybrid backups (named as the backup) as well."""
        return list(self._snapshots)

    def checkpoint_valid(self, checkpoint: str, disk_id: str) -> bool:
        """Whether an incremental backup since it can work: the bitmap is there, recording, consistent."""
        with self._lock:
            layers = self._disk(disk_id).layers
            return chain.checkpoint_valid(layers, chain.layer_bitmaps(layers, self._alive()), checkpoint)

    def checkpoints(self, disk_id: str) -> list[str]:
        """All bitmaps of the disk, valid or not."""
        with self._lock:
            found = chain.layer_bitmaps(self._disk(disk_id).layers, self._alive())
            return sorted({bitmap.name for layer in found for bitmap in layer})

    def remove_checkpoint(self, checkpoint: str) -> None:
        """Its bitmap from all disks and layers, inconsistent or not. Nothing happens when there is none."""
        with self._lock:
            for disk in self._disks.values():
                chain.remove_bitmap(disk, checkpoint, self._alive())

    # -- images of a machine that is down

    def export_image(self, disk_id: str, *, writable: bool) -> str:
        """The NBD URL of a disk of a machine that is down (uploads: writable)."""
        with self._lock:
            self._down()
            disk = self._disk(disk_id)
            if disk_id in self._exports:
                raise MachineError(f"{disk_id}: it is exported already")
            place = self._places()
            top = disk.top
            name = f"image-disk{disk.number}"
            server = NbdServer(place.folder, place.sockets, name, top.path, top.format, writable=writable)
            self._exports[disk_id] = server
            return server.url

    def close_export(self, disk_id: str) -> None:
        """Ends export_image; clients lose their connection. What was uploaded is then what `record` gives.
        Does nothing when there is none."""
        with self._lock:
            server = self._exports.pop(disk_id, None)
            if server is None:
                return
            server.close()
            self._tidy()
            disk = self._disk(disk_id)
            disk.guest.replace_shadow(lambda shadow: fill_shadow(disk.top, shadow))

    def leftovers(self) -> list[str]:
        """What a finished backup should not leave: backups, exports, scratch files, jobs. [] when clean."""
        with self._lock:
            daemon = self._alive()
            found = [f"export of disk {disk_id}" for disk_id in self._exports]
            if self._backup is not None:
                found.append(f"backup {self._backup.id}")
            if daemon is not None:
                found += [f"job {job}" for job in daemon.jobs()]
                own = {disk.export for disk in self._disks.values()}
                found += [f"export {export}" for export in daemon.exports() if export not in own]
            for pattern in ("scratch-*", "overlay-*"):
                found += [str(file) for file in sorted(self.folder.glob(pattern))]
            return found

    # -- inside; all need the lock

    @contextmanager
    def _taking(self, snapshot_id: str) -> Iterator[None]:
        """Inside it a snapshot is taken. Should what comes after it fail, the snapshot is listed, for it is
        there."""
        if snapshot_id in self._snapshots:
            raise MachineError(f"{snapshot_id}: there is a snapshot of this id")
        self._snapshots.append(snapshot_id)
        try:
            yield
        except BaseException:
            layers = (layer for disk in self._disks.values() for layer in disk.layers)
            if all(layer.snapshot != snapshot_id for layer in layers):
                self._snapshots.remove(snapshot_id)
            raise

    def _known(self, snapshot_id: str) -> None:
        if snapshot_id not in self._snapshots:
            raise MachineError(f"{snapshot_id}: no such snapshot")

    def _instant(self, at_freeze: Callable[[], None]) -> Callable[[Callable[[], None]], None]:
        def instant(act: Callable[[], None]) -> None:
            with self._gate.closed():
                act()
                at_freeze()

        return instant

    def _request(
        self,
        backup_id: str,
        disks: Mapping[str, str | None],
        checkpoint: str | None,
        at_freeze: Callable[[], None],
    ) -> Request:
        if self._backup is not None:
            raise MachineError(f"backup {self._backup.id} runs")
        chosen = [(self._disk(disk_id), since) for disk_id, since in disks.items()]
        return Request(backup_id, chosen, checkpoint, self._instant(at_freeze))

    def _began(self, backup: Backup) -> dict[str, BackupExport]:
        self._backup = backup
        return dict(backup.exports)


def _refill(guest: GuestDisk, layer: Layer) -> None:
    """The disk is again as it was when `layer` was frozen."""
    kept = layer.shadow
    if kept is not None:
        guest.replace_shadow(lambda shadow: sparse.copy(kept, shadow))
    else:  # the snapshot of a hybrid backup keeps no shadow
        guest.replace_shadow(lambda shadow: fill_shadow(layer, shadow))
