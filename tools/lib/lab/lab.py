"""The lab as a whole: the engine's server, the hosts' imageio daemons, and VMs to work with."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lab.engine import backups, disks, transfer_life, transfer_watch, vms
from lab.engine.core import Engine, Stopped
from lab.engine.errors import Refused
from lab.engine.model import (
    AUTO_SNAPSHOT,
    FINISHED_BACKUP,
    FINISHED_TRANSFER,
    GIB,
    Attachment,
    Cluster,
    Disk,
    Host,
    Network,
    StorageDomain,
    Timing,
    Vm,
    VnicProfile,
    new_id,
)
from lab.fault_actions import install
from lab.faults import Faults
from lab.gate import Gates
from lab.imageio import ImageioHost
from lab.machine import Machine
from lab.pki import Authority
from lab.rest import routes
from lab.rest.api import Api
from lab.rest.server import HttpsServer
from lab.rest.sso import SingleSignOn
from lab.vm import DiskRecipe, LabVm, fill

USERNAME = "admin@internal"
CAPACITY = 1 << 40
"""Of a storage domain, bytes. Nothing is allocated."""
DEFAULT, LEGACY = "Default", "Legacy"
"""Clusters: of level 4.7 (hybrid backups unless `legacy=true`) and 4.6 (live ones only)."""


class Lab:
    """Runs from `start` (or entering it) to `close`. Its files are in `folder`."""

    def __init__(self, folder: Path, *, hosts: int = 2, timing: Timing | None = None) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.timing = timing or Timing()
        self.username = USERNAME
        self.password = secrets.token_urlsafe(12)
        self.password_file = folder / "password"
        self.password_file.touch(mode=0o600)
        self.password_file.write_text(self.password + "\n")
        self.authority = Authority.create(folder / "pki")
        self.ca_file = self.authority.ca_file
        self.faults = Faults()
        center = new_id()
        clusters = [Cluster(new_id(), DEFAULT, (4, 7), center), Cluster(new_id(), LEGACY, (4, 6), center)]
        ids = tuple(cluster.id for cluster in clusters)
        self.hosts: list[Host] = []
        for number in range(1, hosts + 1):
            name = f"host{number}"
            self.hosts.append(Host(new_id(), name, ids, self._daemon(name)))
        self.proxy = self._daemon("proxy")
        self.core = Engine(folder, self.hosts, self.proxy, clusters, self.timing, self.faults)
        for name in ("data", "data2"):
            domain = StorageDomain(new_id(), name, folder / "storage" / name, CAPACITY)
            domain.folder.mkdir(parents=True, exist_ok=True)
            self.core.storage_domains[domain.id] = domain
        for name in ("ovirtmgmt", "backup"):
            network = Network(new_id(), name)
            profile = VnicProfile(new_id(), name, network.id)
            self.core.networks[network.id] = network
            self.core.profiles[profile.id] = profile
        self.sso = SingleSignOn(USERNAME, self.password, self.timing)
        routes.load()
        self.api = Api(self.core, self.sso, self.ca_file)
        self.certificate = self.authority.issue("engine")
        self.server = HttpsServer(self.certificate, self.api.handle)
        self.gates = Gates(self.faults, self.authority.issue("gate"), self.ca_file)
        self.core.route = self.gates.route
        install(self)

    def _daemon(self, name: str) -> ImageioHost:
        certificate = self.authority.issue(name)
        return ImageioHost(self.folder / "hosts" / name, certificate, self.ca_file, remove_timeout=2)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        try:
            for host in self.hosts:
                host.imageio.start()
            self.proxy.start()
            self.server.start()
            transfer_watch.monitor(self.core)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Everything that runs ends; the files stay."""
        self.server.stop()
        self.gates.close()
        self.core.stop()
        for vm in list(self.core.vms.values()):
            vm.machine.close()
        for disk in list(self.core.disks.values()):
            if disk.shelf is not None:
                disk.shelf.close()
        transfer_life.close_servers(self.core)
        for host in self.hosts:
            host.imageio.close()
        self.proxy.close()

    # What a client needs.

    @property
    def url(self) -> str:
        """Of the REST API."""
        return f"https://127.0.0.1:{self.server.port}/ovirt-engine/api"

    @property
    def engine(self) -> dict[str, Any]:
        """The table for vmfs.toml."""
        return {
            "url": self.url,
            "username": self.username,
            "password_file": str(self.password_file),
            "ca_file": str(self.ca_file),
        }

    # VMs.

    def cluster(self, name: str = DEFAULT) -> Cluster:
        return next(each for each in self.core.clusters.values() if each.name == name)

    def domain(self, name: str = "data") -> StorageDomain:
        return next(each for each in self.core.storage_domains.values() if each.name == name)

    def create_vm(
        self,
        name: str,
        disks: Sequence[DiskRecipe],
        *,
        up: bool = True,
        cluster: str = DEFAULT,
        description: str = "",
    ) -> LabVm:
        """A VM with these disks and one NIC. Waits until it is up."""
        with self.core.lock:
            vm = vms.add(self.core, name, self.cluster(cluster))
            vm.description = description
            profile = next(iter(self.core.profiles))
            vms.add_nic(self.core, vm, "nic1", profile_id=profile)
        made = LabVm(self, vm.id, vm.name)
        depth = max((recipe.snapshots for recipe in disks), default=0)
        for level in range(depth, -1, -1):
            for recipe in disks:
                if recipe.snapshots == level:
                    made.disks[recipe.alias] = self._add_disk(vm, recipe).id
            if level:
                made.snapshot(f"snapshot {depth - level + 1}")
        made.disks = {recipe.alias: made.disks[recipe.alias] for recipe in disks}
        with self.core.lock:
            vm.attachments = {disk_id: vm.attachments[disk_id] for disk_id in made.disks.values()}
        if up:
            made.start()
        return made

    def _add_disk(self, vm: Vm, recipe: DiskRecipe) -> Disk:
        with self.core.lock:
            disk = disks.new(
                self.core,
                alias=recipe.alias,
                size=recipe.size,
                domain=self.domain(),
                format="raw" if recipe.format == "raw" else "cow",
                sparse=recipe.sparse,
                description=recipe.description,
                backup="incremental" if recipe.format == "cow" else None,
            )
        image = disks.make_image(self.core, disk)
        fill(image, recipe)
        vm.machine.add_disk(image)
        with self.core.lock:
            disk.status = "ok"
            vm.attachments[disk.id] = Attachment(disk.id, recipe.interface, recipe.bootable)
        self.core.look_at(vm.machine)
        return disk

    def add_disk(self, vm: LabVm, recipe: DiskRecipe) -> str:
        """To a VM that may be running. Gives the disk's id."""
        disk = self._add_disk(vm.record, recipe)
        vm.disks[recipe.alias] = disk.id
        return disk.id

    def vm(self, name: str) -> LabVm:
        """By name. Raises LookupError."""
        for vm in self.core.vms.values():
            if vm.name == name:
                named = {self.core.disks[disk_id].alias: disk_id for disk_id in vm.attachments}
                return LabVm(self, vm.id, vm.name, named)
        raise LookupError(f"{name}: no such VM in the lab")

    def machine_of(self, vm_id: str) -> Machine:
        """Of any VM, also of one that a client made."""
        return self.core.vm(vm_id).machine

    def content(self, disk_id: str, target: Path) -> Path:
        """What a disk holds now, as a sparse raw file, whether or not a VM has it."""
        machine = self.core.machine_of(self.core.disk(disk_id))
        with machine.frozen():
            machine.record(disk_id, target)
        return target

    # What it has seen.

    def backup_records(self, vm: LabVm | str) -> dict[str, dict[str, Path]]:
        """What each disk held at the instant of each backup: {backup id: {disk id: sparse raw file}}."""
        vm_id = vm if isinstance(vm, str) else vm.id
        return {backup: dict(found) for backup, found in self.core.records.get(vm_id, {}).items()}

    def transfer_stats(self) -> list[dict[str, Any]]:
        """Every image transfer there ever was, oldest first: what the daemon itself counted."""
        return transfer_watch.stats(self.core)

    def leftovers(self) -> list[str]:
        """What a client that has finished should not leave. [] when clean. Waits for what is ending."""
        self.core.wait(lambda: self.core.idle, 30)
        return self._leftovers()

    def _leftovers(self) -> list[str]:
        found: list[str] = []
        with self.core.lock:
            for backup in self.core.backups.values():
                if backup.phase not in FINISHED_BACKUP:
                    found.append(f"backup {backup.id} is {backup.phase}")
            for transfer in self.core.transfers.values():
                if transfer.phase not in FINISHED_TRANSFER:
                    found.append(f"transfer {transfer.id} is {transfer.phase}")
            for disk in self.core.disks.values():
                if disk.status != "ok":
                    found.append(f"disk {disk.alias} ({disk.id}) is {disk.status}")
            machines = []
            for vm in self.core.vms.values():
                found += [
                    f"snapshot {snapshot.id} of VM {vm.name}: {snapshot.description}"
                    for snapshot in vm.snapshots
                    if snapshot.description == AUTO_SNAPSHOT
                ]
                machines.append((vm.name, vm.machine))
        for host in (*self.hosts, None):
            daemon = host.imageio if host else self.proxy
            found += [f"ticket {ticket} on {host.name if host else 'the proxy'}" for ticket in daemon.tickets]
        for name, machine in machines:
            found += [f"VM {name}: {left}" for left in machine.leftovers()]
        return found

    @property
    def problems(self) -> list[str]:
        """What the lab itself did wrong: a test with any has not tested what it says."""
        return self.core.problems

    # Bad days.

    def restart_engine(self, *, unmonitored: bool = False, downtime: float | None = None) -> None:
        """No answers for `downtime` seconds, and no session is left. `unmonitored`: backups that ran are
        marked as failed."""
        self.server.stop()
        self.sso.end_all()
        if unmonitored:
            backups.fail_unmonitored(self.core)
        try:
            self.core.pause(self.timing.restart if downtime is None else downtime)
        except Stopped:
            return
        self.server.start()

    def kill_imageio(self, host: int = 0, *, restart: bool = True) -> None:
        """SIGKILL to the daemon of a host: all its tickets are gone."""
        self.hosts[host].imageio.kill()
        if restart:
            self.hosts[host].imageio.start()


__all__ = ["DEFAULT", "GIB", "LEGACY", "DiskRecipe", "Lab", "LabVm", "Refused"]
