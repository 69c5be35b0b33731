"""The engine's state, its lock, its tasks and its events. What it does is in the modules beside this one."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from lab.engine.errors import conflict, not_found
from lab.engine.model import (
    FINISHED_BACKUP,
    FINISHED_TRANSFER,
    Backup,
    Cluster,
    Disk,
    Event,
    Host,
    Job,
    Network,
    StorageDomain,
    Timing,
    Transfer,
    Vm,
    VnicProfile,
    new_id,
    now,
)
from lab.faults import Faults
from lab.imageio import ImageioHost
from lab.machine import Machine
from lab.nbd_server import NbdServer
from lab.process import socket_folder

USER = "admin@internal-authz"


class Stopped(Exception):
    """The lab is ending: tasks end with this, wherever they are."""


class Engine:
    """The engine. Everything in it is read and changed under `lock`; machines are used outside of it, by
    tasks, as they take their time."""

    def __init__(
        self,
        folder: Path,
        hosts: Sequence[Host],
        proxy: ImageioHost | None,
        clusters: Sequence[Cluster],
        timing: Timing,
        faults: Faults,
    ) -> None:
        self.folder = folder
        self.id = new_id()
        self.timing = timing
        self.faults = faults
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.proxy = proxy
        self.data_center_id = clusters[0].data_center_id
        self.clusters = {cluster.id: cluster for cluster in clusters}
        self.hosts = {host.id: host for host in hosts}
        self.storage_domains: dict[str, StorageDomain] = {}
        self.networks: dict[str, Network] = {}
        self.profiles: dict[str, VnicProfile] = {}
        self.vms: dict[str, Vm] = {}
        self.disks: dict[str, Disk] = {}
        self.backups: dict[str, Backup] = {}
        self.transfers: dict[str, Transfer] = {}
        self.jobs: dict[str, Job] = {}
        self.events: list[Event] = []
        self.records: dict[str, dict[str, dict[str, Path]]] = {}
        """What each disk held at the instant of a backup: VM id, backup id, disk id."""
        self.problems: list[str] = []
        """What the lab itself did wrong: tracebacks of tasks."""
        self.forgotten: dict[str, Transfer] = {}
        """Transfers that the engine has purged: the lab still knows what they moved."""
        self.servers: dict[str, NbdServer] = {}
        """What serves layers of disks, by transfer."""
        self.route: Callable[[Transfer, str, str | None], tuple[str, str | None]] = _straight
        """What clients are told for the URLs of imageio and of its proxy: faults change them (lab.gate)."""
        self._stop = threading.Event()
        self._tasks: set[threading.Thread] = set()
        self._watches: set[threading.Thread] = set()
        self._sockets: Path | None = None
        self._macs = iter(range(1, 1 << 24))

    # Tasks.

    def spawn(self, name: str, task: Callable[[], None], *, for_ever: bool = False) -> None:
        """Run `task` beside. What it raises is a problem of the lab, and fails the tests. `for_ever`: it ends
        with the lab."""

        def run() -> None:
            try:
                task()
            except Stopped:
                pass
            except Exception:
                if not self._stop.is_set():
                    self.problems.append(f"{name}: {traceback.format_exc()}")
                    sys.stderr.write(f"lab: {name}: {traceback.format_exc()}")
            finally:
                with self.lock:
                    self._tasks.discard(threading.current_thread())
                    self.changed.notify_all()

        with self.lock:
            if self._stop.is_set():
                return
            thread = threading.Thread(target=run, name=f"engine-{name}", daemon=True)
            self._tasks.add(thread)
            if for_ever:
                self._watches.add(thread)
        thread.start()

    def pause(self, seconds: float) -> None:
        """For tasks: let time pass. Raises Stopped when the lab ends."""
        if self._stop.wait(seconds):
            raise Stopped

    def step(self) -> None:
        """The time between two phases."""
        self.pause(self.timing.step)

    def stop(self, seconds: float = 30) -> None:
        """No task runs after it (if they end within `seconds`)."""
        self._stop.set()
        end = time.monotonic() + seconds
        with self.lock:
            tasks = list(self._tasks)
            self.changed.notify_all()
        for thread in tasks:
            if thread is not threading.current_thread():
                thread.join(max(0.0, end - time.monotonic()))

    def wait(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Wait for what tasks do; `condition` is asked under the lock."""
        with self.lock:
            return self.changed.wait_for(condition, seconds)

    @property
    def idle(self) -> bool:
        """Nothing that clients asked for is still being done."""
        with self.lock:
            return self._tasks <= self._watches

    @property
    def stopping(self) -> bool:
        return self._stop.is_set()

    # Events and jobs.

    def event(
        self,
        code: int,
        description: str,
        severity: str = "normal",
        *,
        vm: Vm | None = None,
        host_id: str | None = None,
        correlation_id: str | None = None,
        origin: str = "oVirt",
        custom_id: int | None = None,
    ) -> Event:
        with self.lock:
            made = Event(
                id=len(self.events) + 1,
                code=code,
                description=description,
                severity=severity,
                vm_id=vm.id if vm else None,
                host_id=host_id,
                correlation_id=correlation_id,
                origin=origin,
                custom_id=custom_id,
            )
            self.events.append(made)
            self.changed.notify_all()
            return made

    @contextmanager
    def job(self, description: str, correlation_id: str | None) -> Iterator[Job]:
        """A job for the time of the block; it has failed when the block raises."""
        made = Job(new_id(), description, correlation_id)
        with self.lock:
            self.jobs[made.id] = made
        try:
            yield made
        except BaseException:
            made.status = "failed"
            raise
        finally:
            if made.status == "started":
                made.status = "finished"
            made.end = now()

    # Look-ups: all of them raise Refused (404).

    def vm(self, vm_id: str) -> Vm:
        return _get(self.vms, vm_id)

    def disk(self, disk_id: str) -> Disk:
        return _get(self.disks, disk_id)

    def backup(self, backup_id: str) -> Backup:
        return _get(self.backups, backup_id)

    def transfer(self, transfer_id: str) -> Transfer:
        return _get(self.transfers, transfer_id)

    def cluster(self, cluster_id: str) -> Cluster:
        return _get(self.clusters, cluster_id)

    def storage_domain(self, domain_id: str) -> StorageDomain:
        return _get(self.storage_domains, domain_id)

    def host(self, host_id: str) -> Host:
        return _get(self.hosts, host_id)

    # Facts.

    def vm_of(self, disk_id: str) -> Vm | None:
        """The VM that a disk is attached to."""
        return next((vm for vm in self.vms.values() if disk_id in vm.attachments), None)

    def machine_of(self, disk: Disk) -> Machine:
        """What has the disk's image: the machine of its VM, or a shelf."""
        vm = self.vm_of(disk.id)
        machine = vm.machine if vm is not None else disk.shelf
        if machine is None:
            raise conflict(f"Disk {disk.alias} has no image.")
        return machine

    def disk_format(self, disk: Disk) -> str:
        """Of the active layer: a raw disk with a snapshot is `cow`."""
        return "cow" if len(disk.images) > 1 else disk.format

    def sockets(self) -> Path:
        """A folder with a short path, for the sockets of `servers`."""
        with self.lock:
            if self._sockets is None:
                folder = self.folder / "servers"
                folder.mkdir(exist_ok=True)
                self._sockets = socket_folder(folder)
            return self._sockets

    def look_at(self, machine: Machine) -> None:
        """Note which files the disks of a machine are in. Not under the lock: a machine that is busy is
        waited for, and the engine goes on answering."""
        images = machine.disks
        with self.lock:
            for disk_id, image in images.items():
                if disk_id in self.disks:
                    self.disks[disk_id].files = image.paths

    def actual_size(self, disk: Disk) -> int:
        """What its layers take on the storage domain."""
        total = 0
        for path in disk.files:
            try:
                total += path.stat().st_blocks * 512
            except FileNotFoundError:
                continue
        return total

    def used(self, domain: StorageDomain) -> int:
        """Bytes taken on a storage domain; all of them when a fault says it is full."""
        if domain.full:
            return domain.capacity
        return sum(
            self.actual_size(disk) for disk in self.disks.values() if disk.storage_domain_id == domain.id
        )

    def running_backup(self, vm: Vm) -> Backup | None:
        return next(
            (
                backup
                for backup in self.backups.values()
                if backup.vm_id == vm.id and backup.phase not in FINISHED_BACKUP
            ),
            None,
        )

    def refuse_during_backup(self, vm: Vm, action: str, kind: str = "VM") -> None:
        """Raises Refused (409) while a backup of the VM runs."""
        if self.running_backup(vm) is not None:
            raise conflict(f"Cannot {action} {kind}. The VM is during a backup operation.")

    def running_transfers(self) -> list[Transfer]:
        return [each for each in self.transfers.values() if each.phase not in FINISHED_TRANSFER]

    def new_mac(self) -> str:
        """The next free one of the pool 56:6f:4d:00:00:00 and up."""
        used = {nic.mac.lower() for vm in self.vms.values() for nic in vm.nics}
        for number in self._macs:
            mac = "56:6f:4d:" + ":".join(f"{number >> shift & 255:02x}" for shift in (16, 8, 0))
            if mac not in used:
                return mac
        raise conflict("Not enough MAC addresses left in MAC Address Pool.")


def _straight(transfer: Transfer, direct: str, proxy: str | None) -> tuple[str, str | None]:
    return direct, proxy


T = TypeVar("T")


def _get(found: dict[str, T], key: str) -> T:
    if key not in found:
        raise not_found(key)
    return found[key]
