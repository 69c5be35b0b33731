"""What the cases of the lab's faults are tried on: one function for each fault, which makes it happen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

from lab_client_helpers import SdkClient
from lab_helpers import MIB, DiskRecipe, Lab

_numbers = count(1)


class Bench:
    """The lab, a client of its engine, and a VM with the disks `root` (qcow2) and `raw`."""

    def __init__(self, lab: Lab, sdk: SdkClient, cluster: str) -> None:
        self.lab = lab
        self.sdk = sdk
        recipes = [
            DiskRecipe("root", 2 * MIB, bootable=True, chunks=[(MIB, b"r" * MIB)]),
            DiskRecipe("raw", MIB, format="raw"),
        ]
        self.vm = lab.create_vm(f"vm{next(_numbers)}", recipes, cluster=cluster)

    @property
    def root(self) -> str:
        return self.vm.disks["root"]

    def break_(self, name: str, **options: Any) -> None:
        self.lab.faults.break_(name, **{"vm": self.vm.id, **options})

    def ends(self, **options: Any) -> str:
        """The phase that a new backup comes to: ready (it is ended then) or failed."""
        service = self.sdk.add_backup(self.vm, **options)
        phase = str(self.sdk.until_phase(service, "ready", "failed").phase)
        if phase == "ready":
            service.finalize()
            self.sdk.until_phase(service, "succeeded", "failed")
        return phase

    def last_backup(self) -> Any:
        return self.sdk.vm(self.vm).backups_service().list()[-1]

    @contextmanager
    def transfer(self, *, upload: bool = False) -> Iterator[tuple[Any, Any]]:
        """The service of a transfer of `root`, and an imageio client of it."""
        if upload:
            disk = self.sdk.new_disk(MIB)
            service = self.sdk.add_upload(disk)
            with self.sdk.client(service) as client:
                yield service, client
            self.sdk.until_phase(service, "finished_success", "finished_failure", "paused_system")
            if str(service.get().phase) == "paused_system":
                self.sdk.finish(service, action="cancel")
            return
        backup = self.sdk.add_backup(self.vm)
        self.sdk.until_phase(backup, "ready", "failed")
        service = self.sdk.add_transfer(self.root, backup=backup.get().id)
        with self.sdk.client(service) as client:
            yield service, client
        self.sdk.until_phase(service, "finished_success", "finished_failure")
        if self.vm.id in self.lab.core.vms and str(backup.get().phase) == "ready":
            backup.finalize()
            self.sdk.until_phase(backup, "succeeded", "failed")


CASES: dict[str, Callable[[Bench], None]] = {}


def case(name: str) -> Callable[[Callable[[Bench], None]], Callable[[Bench], None]]:
    def register(function: Callable[[Bench], None]) -> Callable[[Bench], None]:
        CASES[name] = function
        return function

    return register


def remove_snapshot(on: Bench) -> None:
    """The one that a backup left."""
    snapshots = on.sdk.vm(on.vm).snapshots_service()
    (left,) = (each for each in snapshots.list() if each.description == "Auto-generated for Backup VM")
    snapshots.snapshot_service(left.id).remove()
    on.sdk.wait(snapshots.list, lambda found: len(found) == 1)
