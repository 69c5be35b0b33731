"""Faults of the engine, its sessions and its certificates."""

from __future__ import annotations

import ssl
import time

import ovirtsdk4
import pytest
from lab_client_helpers import refusal
from lab_fault_bench import Bench, case, remove_snapshot


@case("engine-restart")
def _(on: Bench) -> None:
    on.break_("engine-restart", at="backup-ready", seconds=0.5)
    service = on.sdk.add_backup(on.vm)
    with pytest.raises(ovirtsdk4.Error):
        on.sdk.until_phase(service, "succeeded")
    assert on.lab.core.wait(lambda: on.lab.core.running_backup(on.vm.record) is not None, 10)
    _until_it_answers(on)
    on.sdk.until_phase(service, "ready")
    service.finalize()
    on.sdk.until_phase(service, "succeeded")


def _until_it_answers(on: Bench) -> None:
    def answers() -> bool:
        try:
            return on.sdk.system.get() is not None
        except ovirtsdk4.Error:
            return False

    on.sdk.wait(answers, bool)


@case("backup-unmonitored")
def _(on: Bench) -> None:
    for legacy in (True, False):
        service = on.sdk.add_backup(on.vm, legacy=legacy)
        on.sdk.until_phase(service, "ready")
        on.break_("backup-unmonitored")
        assert str(service.get().phase) == "failed"
        assert on.sdk.event_codes()[:2] == [10792, 10814]
    remove_snapshot(on)


@case("sso-expired")
def _(on: Bench) -> None:
    on.break_("sso-expired")
    assert on.lab.sso.sessions == 0
    assert on.sdk.system.get()
    assert on.lab.sso.sessions == 1


@case("password-changed")
def _(on: Bench) -> None:
    on.break_("password-changed")
    with pytest.raises(ovirtsdk4.AuthError):
        on.sdk.system.get()
    on.lab.faults.mend("password-changed")
    assert on.sdk.system.get()


@case("connection-hangs")
def _(on: Bench) -> None:
    on.lab.faults.break_("connection-hangs", path="/clusters", seconds=0.5)
    assert on.sdk.vms.list()
    begin = time.monotonic()
    # libcurl sends a GET again when a connection that it had used before is closed without an answer.
    assert on.sdk.system.clusters_service().list()
    assert time.monotonic() - begin > 0.4


@case("connection-dropped")
def _(on: Bench) -> None:
    on.lab.faults.break_("connection-dropped", method="POST")
    with refusal(None):
        on.sdk.add_backup(on.vm)
    assert on.sdk.vm(on.vm).backups_service().list() == []


@case("answer-lost")
def _(on: Bench) -> None:
    on.lab.faults.break_("answer-lost", method="POST", path="/backups$")
    with refusal(None):
        on.sdk.add_backup(on.vm)
    (made,) = on.sdk.vm(on.vm).backups_service().list()
    service = on.sdk.vm(on.vm).backups_service().backup_service(made.id)
    on.sdk.until_phase(service, "ready")
    service.finalize()
    on.sdk.until_phase(service, "succeeded")


@case("unavailable")
def _(on: Bench) -> None:
    on.lab.faults.break_("unavailable")
    with pytest.raises(ovirtsdk4.Error):
        on.sdk.system.get()
    assert on.sdk.system.get()


def _certificate(on: Bench, port: int) -> None:
    """Raises ssl.SSLError when it is not good."""
    import socket

    context = ssl.create_default_context(cafile=on.lab.ca_file)
    with socket.create_connection(("127.0.0.1", port)) as plain:
        context.wrap_socket(plain, server_hostname="localhost").close()


@case("certificate-expired")
def _(on: Bench) -> None:
    on.break_("certificate-expired")
    with pytest.raises(ssl.SSLError, match="expired"):
        _certificate(on, on.lab.server.port)
    on.lab.faults.mend()
    _certificate(on, on.lab.server.port)


@case("certificate-foreign")
def _(on: Bench) -> None:
    on.break_("certificate-foreign")
    with pytest.raises(ssl.SSLError, match=r"self-signed|issuer|certificate signature"):
        _certificate(on, on.lab.server.port)


@case("imageio-certificate-expired")
def _(on: Bench) -> None:
    on.break_("imageio-certificate-expired")
    with pytest.raises(ssl.SSLError, match="expired"):
        _certificate(on, on.lab.hosts[0].imageio.port)
    on.lab.faults.mend()
    _certificate(on, on.lab.hosts[0].imageio.port)
