"""The lab's hosts: the real imageio daemon, tickets and certificates; and that nothing outlives the lab."""

from __future__ import annotations

import os
import select
import socket
import ssl
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from lab_machine_helpers import (
    DISK_SIZE,
    MIB,
    TOOLS_LIB,
    Authority,
    BackupExport,
    ImageioError,
    ImageioHost,
    Machine,
    Site,
    nothing,
    process,
)
from ovirt_imageio._internal import http
from ovirt_imageio.client import ImageioClient
from qemu_helpers import needs_qemu

pytestmark = needs_qemu
pytest_plugins = "lab_machine_fixtures"


@pytest.fixture
def export(machine: Machine) -> BackupExport:
    machine.write("cow", 0, b"x" * DISK_SIZE)
    return machine.begin_live_backup("backup", {"cow": None}, None, nothing)["cow"]


def test_a_tickets_life(site: Site, export: BackupExport) -> None:
    ticket = site.ticket(export)
    assert ticket in site.host.tickets
    assert site.host.get_ticket(ticket)["transferred"] == 0
    with site.client(ticket) as client:
        client.read(0, bytearray(MIB))
        client.read(MIB // 2, bytearray(MIB))
        state = site.host.get_ticket(ticket)
        assert state["transferred"] == 3 * MIB // 2  # what was read twice counts once
        assert state["connections"] == 1
        site.host.extend_ticket(ticket, 0)
        with pytest.raises(http.Error, match="expired"):
            client.read(0, bytearray(1))
        site.host.extend_ticket(ticket, 300)
        client.read(4 * MIB, bytearray(MIB))
    last = site.host.remove_ticket(ticket)
    assert last is not None
    assert last["transferred"] == 5 * MIB // 2
    assert site.host.seen[ticket]["transferred"] == 5 * MIB // 2
    assert ticket not in site.host.tickets
    assert site.host.remove_ticket(ticket) is None
    with pytest.raises(ImageioError) as refusal:
        site.host.get_ticket(ticket)
    assert refusal.value.status == 404


def test_a_busy_ticket_is_not_removed(site: Site, export: BackupExport) -> None:
    ticket = site.ticket(export)
    context = ssl.create_default_context(cafile=str(site.authority.ca_file))
    with (
        socket.create_connection(("127.0.0.1", site.host.port)) as raw,
        context.wrap_socket(raw, server_hostname="127.0.0.1") as client,
    ):
        client.sendall(f"GET /images/{ticket} HTTP/1.1\r\nHost: lab\r\n\r\n".encode())
        client.recv(1)  # of more than the socket's buffers hold: the daemon is stuck in the middle
        with pytest.raises(ImageioError) as refusal:
            site.host.remove_ticket(ticket)
        assert refusal.value.status == 409
        assert ticket in site.host.tickets
    site.host.remove_ticket(ticket)


def test_a_restarted_daemon_has_its_port_and_no_tickets(site: Site, export: BackupExport) -> None:
    ticket = site.ticket(export)
    with site.client(ticket) as client:
        client.read(0, bytearray(MIB))
    port = site.host.port
    site.host.restart()
    assert site.host.port == port
    assert site.host.tickets == []
    assert site.host.seen[ticket]["transferred"] == MIB
    with pytest.raises(http.Error, match="No such ticket"), site.client(ticket) as client:
        client.read(0, bytearray(MIB))
    site.download(export)
    site.host.stop()
    assert not site.host.running
    with pytest.raises(ImageioError, match="does not answer"):
        site.ticket(export)
    site.host.start()
    assert site.host.port == port


def test_certificates(site: Site, export: BackupExport, tmp_path: Path) -> None:
    foreign = Authority.create(tmp_path / "foreign")
    ticket = site.ticket(export)
    with pytest.raises(ssl.SSLCertVerificationError), site.client(ticket, ca_file=foreign.ca_file):
        pass
    try:
        site.host.restart(certificate=site.authority.issue("late", expired=True))
        ticket = site.ticket(export)
        with pytest.raises(ssl.SSLCertVerificationError, match="expired"), site.client(ticket):
            pass
    finally:
        site.host.restart(certificate=site.authority.issue("host"))
    site.download(export)
    for name in ("ca-key.pem", "host-key.pem"):
        assert stat.S_IMODE((site.authority.folder / name).stat().st_mode) == 0o600
    check = ["openssl", "verify", "-x509_strict", "-CAfile", site.authority.ca_file]
    subprocess.run([*check, site.authority.folder / "host.pem"], check=True, stdout=subprocess.DEVNULL)


def test_a_daemon_as_proxy(site: Site, export: BackupExport, tmp_path: Path) -> None:
    """The engine's own imageio: its tickets have the host's URL of the same transfer."""
    proxy = ImageioHost(tmp_path, site.authority.issue("proxy"), site.authority.ca_file)
    proxy.start()
    try:
        ticket = site.ticket(export)
        passed_on = {"url": f"{site.host.url}/images/{ticket}", "size": export.size, "ops": ["read"]}
        proxy.add_ticket({**passed_on, "uuid": ticket, "timeout": 300})
        with ImageioClient(f"{proxy.url}/images/{ticket}", cafile=str(site.authority.ca_file)) as client:
            data = bytearray(MIB)
            client.read(0, data)
        assert data == b"x" * MIB
        assert site.host.get_ticket(ticket)["transferred"] == MIB
        assert proxy.get_ticket(ticket)["transferred"] == MIB
        site.host.remove_ticket(ticket)
    finally:
        proxy.stop()


def test_a_daemon_that_cannot_start_says_why(site: Site, tmp_path: Path) -> None:
    host = ImageioHost(tmp_path, site.authority.issue("other"), site.authority.ca_file)
    host.port = site.host.port
    with pytest.raises(ImageioError, match="Address already in use"):
        host.start()
    host.close()


LAB = """
import sys
from pathlib import Path
from lab.imageio import ImageioHost
from lab.machine import Machine, create_image
from lab.pki import Authority
folder = Path(sys.argv[1])
pki = Authority.create(folder / "pki")
host = ImageioHost(folder / "host", pki.issue("host"), pki.ca_file)
host.start()
machine = Machine(folder / "machine", [create_image("disk", folder / "disk.qcow2", "cow", 1 << 20)])
machine.start()
machine.begin_hybrid_backup("b", {"disk": None}, "c", lambda: None)
print("up", flush=True)
sys.stdin.read()
"""


def test_nothing_outlives_a_lab_that_is_killed(tmp_path: Path) -> None:
    lab = subprocess.Popen(
        [sys.executable, "-c", LAB, tmp_path],
        env={**os.environ, "PYTHONPATH": str(TOOLS_LIB)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with lab:
        assert lab.stdout is not None
        assert lab.stdout.readline() == b"up\n"
        pids = [int(file.read_text().split()[0]) for file in tmp_path.rglob("*.pid")]
        watched = [os.pidfd_open(pid) for pid in pids]
        lab.kill()
        lab.wait()
    assert len(pids) == 3  # imageio, qemu, qemu-nbd
    for fd in watched:
        assert select.select([fd], [], [], 30)[0], "a process outlives the lab"
        os.close(fd)
    folders = [Path(os.readlink(link)) for link in tmp_path.rglob(process.SOCKETS)]
    assert len(folders) == 2
    assert all(folder.is_dir() for folder in folders)
    assert {f"folder {folder}" for folder in folders} <= set(process.sweep(tmp_path))
    assert not any(folder.exists() for folder in folders)
    assert list(tmp_path.rglob("*.pid")) == []


def test_sweep_ends_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no setpriv, children live on; and sockets whose lab has been deleted are found too."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    (tmp_path / "lab").mkdir()
    (tmp_path / "deleted").mkdir()
    child = process.Child(tmp_path / "lab", "sleeper", ["sleep", "1000"])
    orphan = process.socket_folder(tmp_path / "deleted")
    process.remove_socket_folder(tmp_path / "nothing there")
    (tmp_path / "deleted" / process.SOCKETS).unlink()
    done = process.sweep(tmp_path / "lab")
    assert done == [f"process {child.pid} (sleeper)", f"folder {orphan}"]
    child.wait()
    assert not child.running
    assert process.sweep(tmp_path / "lab") == []


@pytest.mark.parametrize("end", [Machine.close, Machine.kill, Machine.stop])
def test_a_machine_that_is_down_leaves_no_sockets_and_processes(
    machine: Machine, end: Callable[[Machine], None]
) -> None:
    machine.begin_hybrid_backup("b", {"cow": None}, "c", nothing)
    sockets = Path(os.readlink(machine.folder / process.SOCKETS))
    assert sockets.is_dir()
    end(machine)
    assert not sockets.exists()
    assert list(machine.folder.rglob("*.pid")) == []
    assert machine.backup is None
    machine.begin_cold_backup("b2", {"cow": None}, None, nothing)
    sockets = Path(os.readlink(machine.folder / process.SOCKETS))
    machine.end_backup("b2")
    assert not sockets.exists()
