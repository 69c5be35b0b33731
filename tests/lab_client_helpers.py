"""A client of the lab's engine that is not ours: the SDK and imageio's client, and nothing between."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any, TypeVar

import ovirtsdk4
import pytest
from lab_helpers import MIB, DiskRecipe, Lab, LabVm
from ovirt_imageio.client import ImageioClient
from ovirtsdk4 import types

T = TypeVar("T")
SECONDS = 60.0
GRAIN = 64 << 10
"""What a bit of a dirty bitmap stands for."""
FINISHED = ("finished_success", "finished_failure")
_numbers = count(1)


class SdkClient:
    """Asks the engine through one connection of the SDK."""

    def __init__(self, lab: Lab, connection: Any) -> None:
        self.lab = lab
        self.connection = connection
        self.system = connection.system_service()
        self.vms = self.system.vms_service()
        self.disks = self.system.disks_service()
        self.transfers = self.system.image_transfers_service()

    def vm(self, vm: LabVm | str) -> Any:
        return self.vms.vm_service(vm if isinstance(vm, str) else vm.id)

    def wait(self, ask: Callable[[], T], until: Callable[[T], bool]) -> T:
        """What `ask` gives, once it is so."""
        end = time.monotonic() + SECONDS
        while not until(answer := ask()):
            assert time.monotonic() < end, answer
            time.sleep(0.01)
        return answer

    # Backups.

    def add_backup(
        self, vm: LabVm, *, since: str | None = None, legacy: bool = False, disks: Sequence[str] = ()
    ) -> Any:
        """Its service."""
        asked = types.Backup(
            disks=[types.Disk(id=disk) for disk in disks or vm.disks.values()], from_checkpoint_id=since
        )
        service = self.vm(vm).backups_service()
        return service.backup_service(service.add(asked, query={"legacy": "true"} if legacy else None).id)

    def until_phase(self, service: Any, *phases: str) -> Any:
        """Wait for a backup or a transfer."""
        return self.wait(service.get, lambda it: str(it.phase) in phases)

    @contextmanager
    def backup(self, vm: LabVm, **options: Any) -> Iterator[Any]:
        """One that is ready, ended afterwards."""
        service = self.add_backup(vm, **options)
        try:
            yield self.until_phase(service, "ready", "failed")
        finally:
            service.finalize()
            last = self.until_phase(service, "succeeded", "failed")
        assert str(last.phase) == "succeeded"

    def checkpoint(self, vm: LabVm, **options: Any) -> str:
        with self.backup(vm, **options) as backup:
            pass
        assert backup.to_checkpoint_id
        return str(backup.to_checkpoint_id)

    def modes(self, vm: LabVm, backup: Any) -> dict[str, str]:
        """Backup mode by alias."""
        listed = self.vm(vm).backups_service().backup_service(backup.id).disks_service().list()
        return {disk.alias: str(disk.backup_mode) for disk in listed}

    def event_codes(self) -> list[int]:
        """Newest first."""
        return [event.code for event in self.system.events_service().list()]

    # Transfers.

    def add_transfer(self, disk: str | None, *, backup: str | None = None, **options: Any) -> Any:
        """A download of a backup's disk, or what `options` say. Its service."""
        wanted: dict[str, Any] = {
            "disk": types.Disk(id=disk) if disk else None,
            "direction": types.ImageTransferDirection.DOWNLOAD,
            "format": types.DiskFormat.RAW,
            "backup": types.Backup(id=backup) if backup else None,
        }
        added = self.transfers.add(types.ImageTransfer(**{**wanted, **options}))
        return self.transfers.image_transfer_service(added.id)

    def add_upload(self, disk: str, **options: Any) -> Any:
        return self.add_transfer(disk, direction=types.ImageTransferDirection.UPLOAD, **options)

    @contextmanager
    def client(self, service: Any) -> Iterator[ImageioClient]:
        """Of imageio, once the transfer is ready."""
        transfer = self.until_phase(service, "transferring", *FINISHED, "paused_system")
        assert str(transfer.phase) == "transferring"
        with ImageioClient(
            transfer.transfer_url, str(self.lab.ca_file), proxy_url=transfer.proxy_url
        ) as client:
            yield client

    def finish(self, service: Any, *, action: str = "finalize") -> str:
        """The last phase."""
        getattr(service, action)()
        return str(self.until_phase(service, *FINISHED).phase)

    def read(self, vm: LabVm, backup: Any, alias: str) -> bytes:
        """All of a disk of a backup."""
        service = self.add_transfer(vm.disks[alias], backup=backup.id)
        with self.client(service) as client:
            content = bytearray(client.size())
            client.read(0, content)
        assert self.finish(service) == "finished_success"
        return bytes(content)

    def dirty(self, vm: LabVm, backup: Any, alias: str) -> list[tuple[int, int]]:
        """(offset, length) of what the engine says has changed, whether data or zeros."""
        service = self.add_transfer(vm.disks[alias], backup=backup.id)
        with self.client(service) as client:
            found: list[tuple[int, int]] = []
            for each in client.extents("dirty"):
                if each.dirty and found and sum(found[-1]) == each.start:
                    found[-1] = (found[-1][0], found[-1][1] + each.length)
                elif each.dirty:
                    found.append((each.start, each.length))
        assert self.finish(service) == "finished_success"
        return found

    def new_disk(self, size: int, *, format: str = "cow", disk_id: str | None = None, **options: Any) -> str:
        """Created; its id."""
        added = self.disks.add(
            types.Disk(
                id=disk_id,
                name="new",
                format=types.DiskFormat(format),
                provisioned_size=size,
                sparse=True,
                storage_domains=[types.StorageDomain(name="data")],
                **options,
            )
        )
        service = self.disks.disk_service(added.id)
        self.wait(service.get, lambda disk: disk.status == types.DiskStatus.OK)
        return str(added.id)


@contextmanager
def sdk_client(lab: Lab) -> Iterator[SdkClient]:
    connection = ovirtsdk4.Connection(
        url=lab.url, username=lab.username, password=lab.password, ca_file=str(lab.ca_file), timeout=120
    )
    try:
        yield SdkClient(lab, connection)
    finally:
        connection.close(logout=False)


def refusal(status: int) -> Any:
    """The block raises what the SDK makes of this status."""
    return pytest.raises(ovirtsdk4.Error, check=lambda error: error.code == status)


def three_disks(lab: Lab, **options: Any) -> LabVm:
    """With a qcow2 disk `root`, a raw disk `raw`, and `deep`, a qcow2 on a snapshot."""
    recipes = [
        DiskRecipe("root", 4 * MIB, bootable=True, chunks=[(MIB, b"r" * MIB)]),
        DiskRecipe("raw", 2 * MIB, format="raw", chunks=[(0, b"w" * GRAIN)]),
        DiskRecipe("deep", 4 * MIB, snapshots=1, chunks=[(2 * MIB, b"d" * MIB)]),
    ]
    return lab.create_vm(f"vm{next(_numbers)}", recipes, **options)
