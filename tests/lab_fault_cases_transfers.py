"""Faults of image transfers."""

from __future__ import annotations

import time
from contextlib import suppress

import pytest
from lab_client_helpers import refusal
from lab_fault_bench import Bench, case
from lab_helpers import MIB
from ovirt_imageio._internal import http as imageio_http


@case("inactivity")
def _(on: Bench) -> None:
    on.break_("inactivity")
    with on.transfer() as (service, client):
        # It happens at this read, which may be answered before the end or not.
        with suppress(imageio_http.Error, OSError):
            client.read(0, bytearray(512))
        on.sdk.until_phase(service, "finished_failure")
        with pytest.raises((imageio_http.Error, OSError)):
            client.read(0, bytearray(512))
        assert 1072 in on.sdk.event_codes()[:3]


@case("transfer-paused")
def _(on: Bench) -> None:
    on.lab.faults.break_("transfer-paused")
    with on.transfer(upload=True) as (service, client):
        client.write(0, b"a" * MIB)
        on.sdk.until_phase(service, "paused_system")
        service.resume()
        on.sdk.until_phase(service, "transferring")
        assert on.sdk.finish(service) == "finished_success"


@case("ticket-not-renewed")
def _(on: Bench) -> None:
    on.lab.faults.break_("ticket-not-renewed", life=1)
    with on.transfer() as (service, client):
        with pytest.raises(imageio_http.Error, match="expired"):
            on.sdk.wait(lambda: client.read(0, bytearray(512)), lambda _: False)
        service.extend()
        client.read(0, bytearray(512))
        assert on.sdk.finish(service) == "finished_success"


@case("ticket-expired")
def _(on: Bench) -> None:
    on.break_("ticket-expired")
    with on.transfer() as (service, client):
        with pytest.raises(imageio_http.Error, match="expired"):
            client.read(0, bytearray(512))
        service.extend()
        client.read(0, bytearray(512))
        on.sdk.finish(service)


@case("transfer-purged")
def _(on: Bench) -> None:
    on.lab.faults.break_("transfer-purged")
    service = on.sdk.add_upload(on.sdk.new_disk(MIB))
    on.sdk.until_phase(service, "transferring")
    with refusal(404):
        service.finalize()
        on.sdk.until_phase(service, "never")


@case("engine-finalizes-download")
def _(on: Bench) -> None:
    on.lab.faults.break_("engine-finalizes-download")
    backup = on.sdk.add_backup(on.vm)
    on.sdk.until_phase(backup, "ready")
    service = on.sdk.add_transfer(on.root, backup=backup.get().id)
    with on.sdk.client(service) as client:
        client.read(0, bytearray(2 * MIB))
    with refusal(404):
        service.finalize()
    on.lab.core.wait(lambda: not on.lab.core.running_transfers(), 10)
    backup.finalize()
    on.sdk.until_phase(backup, "succeeded")


@case("upload-verification")
def _(on: Bench) -> None:
    disk = on.sdk.new_disk(MIB)
    on.lab.faults.break_("upload-verification")
    service = on.sdk.add_upload(disk)
    on.sdk.until_phase(service, "transferring")
    assert on.sdk.finish(service) == "finished_failure"
    assert str(on.sdk.disks.disk_service(disk).get().status) == "illegal"
    on.sdk.disks.disk_service(disk).remove()
    on.lab.core.wait(lambda: disk not in on.lab.core.disks, 10)


@case("ticket-busy")
def _(on: Bench) -> None:
    on.lab.faults.break_("ticket-busy", seconds=0.5)
    with on.transfer() as (service, _):
        service.finalize()
        on.sdk.until_phase(service, "finalizing_success")
        on.sdk.until_phase(service, "finished_success")


@case("slow-extents")
def _(on: Bench) -> None:
    on.lab.faults.break_("slow-extents", seconds=0.5)
    with on.transfer() as (service, client):
        begin = time.monotonic()
        assert sum(each.length for each in client.extents("zero")) == 2 * MIB
        assert time.monotonic() - begin > 0.4
        on.sdk.finish(service)


@case("connection-closed")
def _(on: Bench) -> None:
    """imageio's client asks again by itself, once."""
    on.lab.faults.break_("connection-closed")
    with on.transfer() as (service, client):
        content = bytearray(MIB)
        try:
            client.read(MIB, content)
        except OSError:
            client.read(MIB, content)
        assert content == b"r" * MIB
        on.sdk.finish(service)


@case("nbd-dead")
def _(on: Bench) -> None:
    on.lab.faults.break_("nbd-dead")
    with on.transfer() as (service, client):
        with pytest.raises(imageio_http.Error, match="Server failed"):
            client.read(0, bytearray(MIB))
        on.sdk.finish(service)


@case("direct-unreachable")
def _(on: Bench) -> None:
    """The client falls back on the proxy."""
    on.lab.faults.break_("direct-unreachable")
    with on.transfer() as (service, client):
        content = bytearray(MIB)
        client.read(MIB, content)
        assert content == b"r" * MIB
        on.sdk.finish(service)


@case("all-unreachable")
def _(on: Bench) -> None:
    on.lab.faults.break_("all-unreachable")
    service = on.sdk.add_upload(on.sdk.new_disk(MIB))
    with pytest.raises(ConnectionRefusedError), on.sdk.client(service):
        pass
    on.sdk.finish(service, action="cancel")


@case("upload-no-space")
def _(on: Bench) -> None:
    on.lab.faults.break_("upload-no-space")
    with on.transfer(upload=True) as (service, client):
        with pytest.raises(imageio_http.Error, match="Server failed"):
            client.write(0, b"a" * MIB)
        on.sdk.finish(service, action="cancel")


@case("imageio-restart")
def _(on: Bench) -> None:
    on.lab.faults.break_("imageio-restart", at="reading")
    with on.transfer() as (service, client):
        with pytest.raises((imageio_http.Error, OSError)):
            client.read(0, bytearray(MIB))
        on.sdk.until_phase(service, "finished_failure")
        assert 1065 in on.sdk.event_codes()[:3]


@case("imageio-down")
def _(on: Bench) -> None:
    """The engine cannot make tickets."""
    on.break_("imageio-down")
    service = on.sdk.add_upload(on.sdk.new_disk(MIB))
    on.sdk.until_phase(service, "paused_system")
    on.sdk.finish(service, action="cancel")
    on.lab.faults.mend("imageio-down")
    assert all(host.imageio.running for host in on.lab.hosts)
