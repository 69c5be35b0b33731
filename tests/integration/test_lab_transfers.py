"""Image transfers of the lab's engine as the SDK and imageio's client see them; the disks are real ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import ovirtsdk4
import pytest
from lab_client_helpers import FINISHED, SdkClient, refusal, sdk_client, three_disks
from lab_helpers import MIB, Lab, Timing, needs_lab, running_lab
from ovirtsdk4 import types

pytestmark = needs_lab


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with running_lab(tmp_path_factory.mktemp("lab"), timing=Timing(monitor=0.05)) as lab:
        yield lab


@pytest.fixture
def sdk(lab: Lab) -> Iterator[SdkClient]:
    with sdk_client(lab) as client:
        yield client
    assert lab.leftovers() == []


@pytest.mark.parametrize("form", ["cow", "raw"])
def test_upload(sdk: SdkClient, lab: Lab, tmp_path: Path, form: str) -> None:
    """What is written is in the image, and zeros take no room."""
    disk = sdk.new_disk(8 * MIB, format=form)
    service = sdk.add_upload(disk)
    with sdk.client(service) as client:
        assert str(sdk.disks.disk_service(disk).get().status) == "locked"
        client.write(MIB, b"u" * MIB)
        client.zero(2 * MIB, 4 * MIB)
        client.flush()
        told = sdk.wait(service.get, lambda it: bool(it.transferred))
        assert told.image.id == disk
        assert told.proxy_url != told.transfer_url
    assert sdk.finish(service) == "finished_success"
    assert str(sdk.disks.disk_service(disk).get().status) == "ok"
    content = lab.content(disk, tmp_path / "content").read_bytes()
    assert content == bytes(MIB) + b"u" * MIB + bytes(6 * MIB)
    assert sdk.disks.disk_service(disk).get().actual_size < 2 * MIB
    stats = lab.transfer_stats()[-1]
    assert (stats["disk_id"], stats["transferred"]) == (disk, 5 * MIB)


def test_attach_what_was_uploaded(sdk: SdkClient, lab: Lab) -> None:
    """To a VM that runs; and it is detached again."""
    disk = sdk.new_disk(4 * MIB)
    service = sdk.add_upload(disk)
    with sdk.client(service) as client:
        client.write(0, b"uploaded")
    sdk.finish(service)
    vm = three_disks(lab)
    attachments = sdk.vm(vm).disk_attachments_service()
    attachments.add(
        types.DiskAttachment(
            disk=types.Disk(id=disk),
            interface=types.DiskInterface.VIRTIO_SCSI,
            bootable=False,
            active=True,
        )
    )
    assert vm.machine.read(disk, 0, 8) == b"uploaded"
    with refusal(409):
        sdk.add_upload(disk)
    attachments.attachment_service(disk).remove(detach_only=True)
    assert disk not in [each.id for each in attachments.list()]
    assert sdk.disks.disk_service(disk).get().provisioned_size == 4 * MIB


def test_into_a_disk_of_a_vm_that_is_down(sdk: SdkClient, lab: Lab) -> None:
    vm = three_disks(lab, up=False)
    service = sdk.add_upload(vm.disks["root"])
    with sdk.client(service) as client:
        client.write(0, b"restored")
        with refusal(409):
            sdk.vm(vm).start()
    assert sdk.finish(service) == "finished_success"
    vm.start()
    assert vm.machine.read(vm.disks["root"], 0, 8) == b"restored"


def test_cancelling_an_upload_removes_the_disk(sdk: SdkClient) -> None:
    disk = sdk.new_disk(MIB)
    service = sdk.add_upload(disk)
    sdk.until_phase(service, "transferring")
    assert sdk.finish(service, action="cancel") == "finished_failure"
    with pytest.raises(ovirtsdk4.NotFoundError):
        sdk.disks.disk_service(disk).get()


def test_pause_and_resume(sdk: SdkClient) -> None:
    disk = sdk.new_disk(MIB)
    service = sdk.add_upload(disk)
    sdk.until_phase(service, "transferring")
    with refusal(400):
        service.resume()
    service.pause()
    assert str(service.get().phase) == "paused_user"
    service.resume()
    with sdk.client(service) as client:
        client.write(0, b"x" * 512)
    assert sdk.finish(service) == "finished_success"


@pytest.mark.parametrize(
    ("direction", "policy", "phase"),
    [
        ("upload", "legacy", "paused_system"),
        ("upload", "cancel", "finished_failure"),
        ("download", "legacy", "finished_failure"),
        ("download", "pause", "paused_system"),
        ("download", "cancel", "finished_failure"),
    ],
)
def test_what_nobody_uses(sdk: SdkClient, direction: str, policy: str, phase: str) -> None:
    disk = sdk.new_disk(MIB)
    service = sdk.add_transfer(
        disk,
        direction=types.ImageTransferDirection(direction),
        timeout_policy=types.ImageTransferTimeoutPolicy(policy),
        inactivity_timeout=1,
    )
    assert str(sdk.until_phase(service, "paused_system", *FINISHED).phase) == phase
    if phase == "paused_system":
        sdk.finish(service, action="cancel")


def test_a_download_is_not_paused(sdk: SdkClient) -> None:
    service = sdk.add_transfer(sdk.new_disk(MIB))
    sdk.until_phase(service, "transferring")
    with refusal(400):
        service.pause()
    assert sdk.finish(service) == "finished_success"


def test_a_layer_below_a_snapshot(sdk: SdkClient, lab: Lab) -> None:
    """While the VM runs."""
    vm = three_disks(lab)
    vm.write("deep", 2 * MIB, b"changed")
    (layer,) = sdk.disks.disk_service(vm.disks["deep"]).disk_snapshots_service().list()
    service = sdk.add_transfer(None, snapshot=types.DiskSnapshot(id=layer.id))
    with sdk.client(service) as client:
        content = bytearray(7)
        client.read(2 * MIB, content)
    assert content == b"ddddddd"
    assert sdk.finish(service) == "finished_success"


def test_tickets_are_renewed(sdk: SdkClient, lab: Lab) -> None:
    """For as long as the transfer is used."""
    lab.timing.ticket_life, lab.timing.ticket_allowance = 2, 1.5
    try:
        service = sdk.add_transfer(sdk.new_disk(MIB))
        with sdk.client(service) as client:
            (transfer,) = lab.core.running_transfers()
            first = transfer.expires
            sdk.wait(lambda: transfer.expires, lambda expires: expires > first + 2)
            client.read(0, bytearray(512))
        assert sdk.finish(service) == "finished_success"
    finally:
        lab.timing.ticket_life, lab.timing.ticket_allowance = 300, 60


def test_what_has_ended_is_forgotten(sdk: SdkClient, lab: Lab) -> None:
    lab.timing.purge_failed = 0
    try:
        service = sdk.add_transfer(sdk.new_disk(MIB))
        sdk.until_phase(service, "transferring")
        service.cancel()
        with pytest.raises(ovirtsdk4.NotFoundError):
            sdk.until_phase(service, "never")
    finally:
        lab.timing.purge_failed = 1800


def test_bad_requests(sdk: SdkClient) -> None:
    with refusal(400):
        sdk.add_transfer("0d0d0d0d-0000-0000-0000-000000000001")
    disk = sdk.new_disk(MIB)
    service = sdk.add_upload(disk)
    with refusal(409):
        sdk.add_upload(disk)
    with refusal(409):
        sdk.disks.disk_service(disk).remove()
    sdk.until_phase(service, "transferring")
    sdk.finish(service)
    with refusal(400):
        sdk.new_disk(MIB, format="raw", backup=types.DiskBackup.INCREMENTAL)
    with refusal(409):
        sdk.new_disk(MIB, disk_id=disk)
