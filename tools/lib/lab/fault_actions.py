"""The faults that are done to the lab, and how each is mended."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from lab.engine import backups, disks, snapshots, transfer_watch, vms
from lab.engine.model import Checkpoint, Disk, Nic, Snapshot, Transfer, Vm, new_id
from lab.faults import UnknownFaultError
from lab.imageio import ImageioError
from lab.machine import MachineError

if TYPE_CHECKING:
    from lab.lab import Lab

Facts = Mapping[str, Any]
Undo = Callable[[], None]
MIB = 1 << 20

BOMB = (
    '<?xml version="1.0"?><!DOCTYPE bomb [<!ENTITY a "aaaaaaaaaa">'
    + "".join(
        f'<!ENTITY {after} "{f"&{before};" * 10}">'
        for before, after in zip("abcdefgh", "bcdefghi", strict=True)
    )
    + "]><bomb>&i;</bomb>"
)
HOSTILE = {
    "bomb": BOMB,
    "external": (
        '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>'
        '<ovf:Envelope xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1/"><Content><Name>&e;</Name></Content>'
        "</ovf:Envelope>"
    ),
    "broken": "<ovf:Envelope><Content>",
    "huge": "<Envelope>" + "<a>" * 100_000 + "</a>" * 100_000 + "</Envelope>",
    "names": (
        '<ovf:Envelope xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1/"><Content><Name>../../etc/passwd\n</Name>'
        "</Content></ovf:Envelope>"
    ),
}
"""An OVF that is meant to do harm to who reads it."""


def install(lab: Lab) -> None:
    """Make the actions known to the lab's faults."""
    lab.faults.actions.update(Actions(lab).all())


class Actions:
    """Each takes the facts of the moment it happens at and the options it was armed with; what it gives
    undoes it."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.core = lab.core

    def all(self) -> dict[str, Callable[[Facts], Undo | None]]:
        return {
            "bitmap-broken": self.break_bitmap,
            "checkpoint-unknown": self.forget_checkpoint,
            "checkpoint-invalid": self.invalidate_checkpoint,
            "hosted-engine": self.make_hosted_engine,
            "engine-restart": self.restart_engine,
            "backup-unmonitored": self.restart_unmonitored,
            "snapshot-restored": self.restore_snapshot,
            "power-off-hard": self.kill_vm,
            "inactivity": self.make_inactive,
            "transfer-paused": self.pause_transfer,
            "ticket-expired": self.expire_ticket,
            "nbd-dead": self.kill_nbd,
            "sso-expired": self.end_sessions,
            "password-changed": self.change_password,
            "imageio-restart": self.restart_imageio,
            "imageio-down": self.kill_imageio,
            "vm-removed": self.remove_vm,
            "vm-migrated": self.migrate_vm,
            "disk-added": self.add_disk,
            "disk-removed": self.remove_disk,
            "disk-resized": self.resize_disk,
            "snapshot-taken": self.take_snapshot,
            "snapshot-removed": self.remove_snapshot,
            "name-not-unique": self.make_twin,
            "storage-domain-full": self.fill_domain,
            "certificate-expired": self.expire_certificate,
            "certificate-foreign": self.forge_certificate,
            "imageio-certificate-expired": self.expire_imageio_certificate,
            "mac-in-use": self.take_mac,
            "ovf-hostile": self.spoil_ovf,
        }

    # What is meant.

    def _vm(self, facts: Facts) -> Vm:
        """By id or name; the lab's first one, when it is not said."""
        wanted = facts.get("vm")
        with self.core.lock:
            for vm in self.core.vms.values():
                if wanted is None or wanted in (vm.id, vm.name):
                    return vm
        raise UnknownFaultError(f"{wanted}: no such VM in the lab")

    def _disk(self, facts: Facts, vm: Vm, default: int) -> Disk:
        """By id or alias; the VM's disk of that number, when it is not said."""
        wanted = facts.get("disk")
        with self.core.lock:
            found = [self.core.disks[disk_id] for disk_id in vm.attachments]
        if wanted is None and found:
            return found[default]
        for disk in found:
            if wanted in (disk.id, disk.alias):
                return disk
        raise UnknownFaultError(f"{wanted}: VM {vm.name} has no such disk")

    def _checkpoint(self, facts: Facts, vm: Vm) -> Checkpoint:
        wanted = facts.get("checkpoint")
        for checkpoint in reversed(vm.checkpoints):
            if wanted in (None, checkpoint.id):
                return checkpoint
        raise UnknownFaultError(f"VM {vm.name} has no checkpoint {wanted or ''}".rstrip())

    def _transfer(self, facts: Facts) -> Transfer:
        """That of the moment; the newest that runs."""
        wanted = facts.get("transfer")
        with self.core.lock:
            for transfer in reversed(self.core.running_transfers()):
                if wanted in (None, transfer.id):
                    return transfer
        raise UnknownFaultError("no image transfer is running")

    def _end_backup(self, vm: Vm) -> None:
        backup = self.core.running_backup(vm)
        if backup is not None:
            backups.abort(self.core, vm, backup)

    # Checkpoints.

    def break_bitmap(self, facts: Facts) -> None:
        """The engine does not know: a real bitmap is gone from the image."""
        vm = self._vm(facts)
        vm.machine.remove_checkpoint(self._checkpoint(facts, vm).id)

    def forget_checkpoint(self, facts: Facts) -> None:
        vm = self._vm(facts)
        with self.core.lock:
            snapshots.forget_checkpoint(vm, self._checkpoint(facts, vm))

    def invalidate_checkpoint(self, facts: Facts) -> None:
        vm = self._vm(facts)
        self._checkpoint(facts, vm).state = "invalid"

    # The engine.

    def make_hosted_engine(self, facts: Facts) -> Undo:
        vm = self._vm(facts)
        vm.hosted_engine = True
        return lambda: setattr(vm, "hosted_engine", False)

    def restart_engine(self, facts: Facts) -> None:
        self.lab.restart_engine(downtime=_seconds(facts))

    def restart_unmonitored(self, facts: Facts) -> None:
        self.lab.restart_engine(unmonitored=True, downtime=_seconds(facts))

    def end_sessions(self, facts: Facts) -> None:
        self.lab.sso.end_all()

    def change_password(self, facts: Facts) -> Undo:
        self.lab.sso.password += "!"
        self.lab.sso.end_all()
        return lambda: setattr(self.lab.sso, "password", self.lab.password)

    def expire_certificate(self, facts: Facts) -> Undo:
        return self._use_certificate(lambda: self.lab.authority.issue("engine-expired", expired=True))

    def forge_certificate(self, facts: Facts) -> Undo:
        foreign = self.lab.authority.create(self.lab.folder / "pki-foreign", "foreign")
        return self._use_certificate(lambda: foreign.issue("engine"))

    def _use_certificate(self, make: Callable[[], Any]) -> Undo:
        server = self.lab.server
        server.stop()
        server.use(make())
        server.start()

        def undo() -> None:
            server.stop()
            server.use(self.lab.certificate)
            server.start()

        return undo

    # imageio.

    def restart_imageio(self, facts: Facts) -> None:
        for host in self.lab.hosts:
            host.imageio.restart()
        self.lab.proxy.restart()

    def kill_imageio(self, facts: Facts) -> Undo:
        for host in self.lab.hosts:
            host.imageio.kill()

        def undo() -> None:
            for host in self.lab.hosts:
                host.imageio.start()

        return undo

    def expire_imageio_certificate(self, facts: Facts) -> Undo:
        expired = self.lab.authority.issue("imageio-expired", expired=True)
        for host in self.lab.hosts:
            host.imageio.restart(certificate=expired)

        def undo() -> None:
            for host in self.lab.hosts:
                host.imageio.restart(certificate=self.lab.authority.issue(host.name))

        return undo

    def make_inactive(self, facts: Facts) -> None:
        """Where that ends the transfer, not before imageio refuses: else all might have been read by then."""
        transfer = self._transfer(facts)
        host, ticket = self.core.hosts[transfer.host_id or ""], transfer.ticket_id
        transfer_watch.inactive(self.core, transfer)
        if ticket is None or transfer.phase == "paused_system":
            return
        with contextlib.suppress(ImageioError):
            while not host.imageio.get_ticket(ticket)["canceled"]:
                self.core.pause(0.01)

    def pause_transfer(self, facts: Facts) -> None:
        transfer = self._transfer(facts)
        with self.core.lock:
            if transfer.phase == "transferring":
                transfer.phase = "paused_system"

    def expire_ticket(self, facts: Facts) -> None:
        """Whoever extends the transfer gets it back."""
        transfer = self._transfer(facts)
        transfer.no_renewal = True
        host = self.core.hosts[transfer.host_id or ""]
        if transfer.ticket_id is not None:
            host.imageio.extend_ticket(transfer.ticket_id, 0)

    def kill_nbd(self, facts: Facts) -> None:
        transfer = self._transfer(facts)
        disk = self.core.disk(transfer.disk_id)
        machine = self.core.machine_of(disk)
        if transfer.backup_id is not None:
            machine.drop_export(transfer.backup_id, disk.id)
        elif transfer.id in self.core.servers:
            self.core.servers[transfer.id].close()
        else:
            machine.close_export(disk.id)

    # VMs.

    def kill_vm(self, facts: Facts) -> None:
        vm = self._vm(facts)
        was_up = vm.status == "up"
        with self.core.lock:
            vm.status = "not_responding"
        vm.machine.kill()
        backups.machine_ended(self.core, vm)
        with self.core.lock:
            vm.status, vm.host_id = "down", None
            self.core.event(
                119,
                f"VM {vm.name} is down with error. Exit message: Lost connection with qemu process.",
                "error",
                vm=vm,
            )
        if was_up and _is_true(facts.get("up", True)):
            self._start(vm)

    def _start(self, vm: Vm) -> None:
        with self.core.lock:
            vms.start(self.core, vm)
        self.core.wait(lambda: vm.status == "up", 60)

    def _stop(self, vm: Vm) -> bool:
        """Gives whether it ran."""
        if not vm.running:
            return False
        self._end_backup(vm)
        with self.core.lock:
            vms.stop(self.core, vm, force=True)
        self.core.wait(lambda: vm.status == "down", 60)
        return True

    def remove_vm(self, facts: Facts) -> None:
        vm = self._vm(facts)
        self._end_backup(vm)
        with self.core.lock:
            vm.status = "image_locked"
        with contextlib.suppress(MachineError):
            vm.machine.stop()
        vms.discard(self.core, vm)

    def migrate_vm(self, facts: Facts) -> None:
        vm = self._vm(facts)
        self._end_backup(vm)
        with self.core.lock:
            others = [host.id for host in self.core.hosts.values() if host.id != vm.host_id]
            if vm.host_id is not None and others:
                vm.host_id = others[0]
            self.core.event(63, f"Migration completed (VM: {vm.name}).", vm=vm)

    def add_disk(self, facts: Facts) -> None:
        from lab.lab import DiskRecipe, LabVm

        vm = self._vm(facts)
        number = len(vm.attachments) + 1
        recipe = DiskRecipe(
            str(facts.get("alias", f"added{number}")),
            int(facts.get("size", 64 * MIB)),
            format=str(facts.get("format", "cow")),
        )
        self.lab.add_disk(LabVm(self.lab, vm.id, vm.name), recipe)

    def remove_disk(self, facts: Facts) -> None:
        vm = self._vm(facts)
        self._end_backup(vm)
        disks.discard(self.core, self._disk(facts, vm, -1))

    def resize_disk(self, facts: Facts) -> None:
        vm = self._vm(facts)
        disk = self._disk(facts, vm, 0)
        self._end_backup(vm)
        disks.force_resize(self.core, disk, int(facts.get("size", disk.size + 64 * MIB)))

    def take_snapshot(self, facts: Facts) -> None:
        made = Snapshot(new_id(), str(facts.get("description", "by hand")), {})
        made.machine_id = made.id
        snapshots.take(self.core, self._vm(facts), made)

    def _oldest(self, vm: Vm) -> Snapshot:
        if not vm.snapshots:
            raise UnknownFaultError(f"VM {vm.name} has no snapshot")
        return vm.snapshots[0]

    def remove_snapshot(self, facts: Facts) -> None:
        vm = self._vm(facts)
        snapshots.discard(self.core, vm, self._oldest(vm))

    def restore_snapshot(self, facts: Facts) -> None:
        vm = self._vm(facts)
        snapshot = self._oldest(vm)
        ran = self._stop(vm)
        snapshots.revert(self.core, vm, snapshot)
        if ran:
            self._start(vm)

    def make_twin(self, facts: Facts) -> Undo:
        vm = self._vm(facts)
        with self.core.lock:
            others = [each for each in self.core.clusters.values() if each.id != vm.cluster_id]
            twin = vms.force_add(self.core, vm.name, others[0])

        def undo() -> None:
            with self.core.lock:
                self.core.vms.pop(twin.id, None)
            twin.machine.close()

        return undo

    def take_mac(self, facts: Facts) -> Undo:
        mac = facts.get("mac")
        if mac is None:
            mac = self._vm(facts).nics[0].mac
        with self.core.lock:
            thief = vms.force_add(self.core, f"thief-{str(mac).replace(':', '')}", self.lab.cluster())
            thief.nics.append(Nic(new_id(), "nic1", str(mac), None))

        def undo() -> None:
            with self.core.lock:
                self.core.vms.pop(thief.id, None)
            thief.machine.close()

        return undo

    def spoil_ovf(self, facts: Facts) -> Undo:
        vm = self._vm(facts)
        form = str(facts.get("form", "bomb"))
        if form not in HOSTILE:
            raise UnknownFaultError(f"{form}: no such form; one of {', '.join(HOSTILE)}")
        vm.ovf = HOSTILE[form]
        return lambda: setattr(vm, "ovf", None)

    def fill_domain(self, facts: Facts) -> Undo:
        domain = self.lab.domain(str(facts.get("domain", "data")))
        domain.full = True
        return lambda: setattr(domain, "full", False)


def _seconds(facts: Facts) -> float | None:
    return None if facts.get("seconds") is None else float(facts["seconds"])


def _is_true(value: object) -> bool:
    return str(value).lower() not in ("false", "no", "0")
