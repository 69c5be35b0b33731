"""vmfs serve nbd: clients of others see the disks as they were, holes included, and nothing is written."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from command_helpers import Site
from serve_helpers import CHUNK, block_status, fingerprint, processes, run, serve

from ingest.nbd.address import Address
from ingest.nbd.connection import Connection

TIB = 1 << 40


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A VM of two disks, one of them of 4 TiB."""
    site = Site(tmp_path_factory.mktemp("serve"))
    site.init()
    noise = random.Random(4)  # noqa: S311
    with open(site.root / "system", "wb") as file:
        file.truncate(24 << 20)
        for chunk in (0, 1, 2, 40, 41, 100, 383):
            file.seek(chunk * CHUNK)
            file.write(noise.randbytes(CHUNK // 2) + b"text" * (CHUNK // 8))
    with open(site.root / "data", "wb") as file:
        file.truncate(4 * TIB)
        for offset in (0, 2 * TIB, 4 * TIB - 4096):
            file.seek(offset)
            file.write(noise.randbytes(4096))
    site.ingest("web", site.root / "system", site.root / "data")
    return site


@pytest.fixture
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for sockets, whose paths must be short."""
    return tmp_path_factory.mktemp("s")


def nbd(uri: str) -> Connection:
    return Connection.open(Address.parse(uri), timeout=30, handshake_timeout=30)


def test_a_disk_is_the_same_by_every_client(site: Site, short: Path, tmp_path: Path) -> None:
    before = fingerprint(site.repository)
    original = (site.root / "system").read_bytes()
    with serve(site, "web@latest", "--socket", short / "nbd", uris=2) as served:
        uri = served.uris[0]
        assert uri == f"nbd+unix:///system?socket={short}/nbd"
        run("nbdcopy", uri, tmp_path / "copied")
        assert (tmp_path / "copied").read_bytes() == original
        run("nbdcopy", "--connections=1", "--requests=1", uri, tmp_path / "slowly")
        assert (tmp_path / "slowly").read_bytes() == original
        assert "identical" in run("qemu-img", "compare", "-f", "raw", "-F", "raw", uri, site.root / "system")
        connection = nbd(uri)
        buffer = bytearray(3 * CHUNK)
        connection.readinto(39 * CHUNK + 5, memoryview(buffer))
        connection.close()
        assert bytes(buffer) == original[39 * CHUNK + 5 : 42 * CHUNK + 5]
    assert fingerprint(site.repository) == before


def test_clients_see_holes_where_the_map_has_none_of_it(site: Site, short: Path) -> None:
    with serve(site, "web@latest:system", "--socket", short / "nbd") as served:
        found = block_status(served.uris[0])
    data = [(start, length) for start, length, zero in found if not zero]
    assert data == [
        (0, 3 * CHUNK),
        (40 * CHUNK, 2 * CHUNK),
        (100 * CHUNK, CHUNK),
        (383 * CHUNK, CHUNK),
    ]
    assert sum(length for _, length, _ in found) == 24 << 20


def test_four_tib_hold(site: Site, short: Path, tmp_path: Path) -> None:
    """The size, holes in pieces of the protocol's 32 bits, reads on both sides of 2 TiB and at the end."""
    with serve(site, "web@latest:data", "--socket", short / "nbd") as served:
        uri = served.uris[0]
        assert run("nbdinfo", "--size", uri).strip() == str(4 * TIB)
        data = [(start, length) for start, length, zero in block_status(uri) if not zero]
        assert data == [(0, CHUNK), (2 * TIB, CHUNK), (4 * TIB - CHUNK, CHUNK)]
        mapped = run("qemu-img", "map", "--output=json", uri)
        assert f'"start": {4 * TIB - CHUNK}' in mapped
        connection = nbd(uri)
        with open(site.root / "data", "rb") as file:
            for offset in (0, 2 * TIB - 4096, 2 * TIB, 4 * TIB - 8192):
                buffer = bytearray(8192)
                connection.readinto(offset, memoryview(buffer))
                assert bytes(buffer) == os.pread(file.fileno(), 8192, offset)
        connection.close()
        # Only what is there is copied.
        run("nbdcopy", uri, tmp_path / "copied")
    assert (tmp_path / "copied").stat().st_blocks * 512 < 4 << 20


def test_all_disks_are_exports_and_the_first_is_the_default(site: Site, short: Path) -> None:
    with serve(site, "web@latest", "--socket", short / "nbd", uris=2) as served:
        listed = run("nbdinfo", "--list", f"nbd+unix:///?socket={short}/nbd")
        assert 'export="system"' in listed
        assert 'export="data"' in listed
        assert run("nbdinfo", "--size", f"nbd+unix:///?socket={short}/nbd").strip() == str(24 << 20)
        refused = subprocess.run(
            ["nbdinfo", f"nbd+unix:///other?socket={short}/nbd"], capture_output=True, text=True
        )
        assert refused.returncode != 0
        assert len(served.uris) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_and_nothing_is_left(
    site: Site, short: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(short))
    with (
        serve(site, "web@latest:system", "--socket", short / "nbd") as served,
        socket.socket(socket.AF_UNIX) as client,
    ):
        # A client in the middle of something is no reason to stay.
        client.connect(str(short / "nbd"))
        assert processes(rf"^nbdkit .*{short}/nbd")
        status, said = served.end(number)
    assert (status, said) == (0, "")
    assert list(short.iterdir()) == []
    assert processes(rf"^nbdkit .*{short}/nbd") == []


def test_nbdkit_ends_with_a_killed_vmfs(site: Site, short: Path) -> None:
    with serve(site, "web@latest:system", "--socket", short / "nbd") as served:
        served.end(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while processes(rf"^nbdkit .*{short}/nbd"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # The socket is still there, and is in nobody's way.
    with serve(site, "web@latest:system", "--socket", short / "nbd") as served:
        assert run("nbdinfo", "--size", served.uris[0])


def test_writes_go_to_an_overlay_that_ends_with_the_server(site: Site, short: Path) -> None:
    before = fingerprint(site.repository)
    pattern = ("-f", "raw", "-c", "read -P 0x5a 1M 64k")
    with serve(site, "web@latest:system", "--socket", short / "nbd", "--scratch", short) as served:
        run("qemu-io", "-f", "raw", "-c", "write -P 0x5a 1M 64k", "-c", "flush", served.uris[0])
        assert "Pattern verification failed" not in run("qemu-io", *pattern, served.uris[0])
    with serve(site, "web@latest:system", "--socket", short / "nbd", "--writable") as served:
        done = subprocess.run(["qemu-io", *pattern, served.uris[0]], capture_output=True, text=True)
        assert "Pattern verification failed" in done.stdout + done.stderr
    assert fingerprint(site.repository) == before
    assert list(short.iterdir()) == []


def test_a_read_only_export_takes_no_writes(site: Site, short: Path) -> None:
    with serve(site, "web@latest:system", "--socket", short / "nbd") as served:
        done = subprocess.run(
            ["qemu-io", "-f", "raw", "-c", "write 0 4k", served.uris[0]], capture_output=True, text=True
        )
        assert done.returncode != 0
        assert "Permission denied" in done.stderr


def test_tls_with_keys_lets_in_only_who_has_one(site: Site, short: Path) -> None:
    keys = short / "keys"
    keys.write_text("alice:" + "0123456789abcdef" * 4 + "\n")
    with serve(site, "web@latest:system", "--socket", short / "nbd", "--tls-psk", keys) as served:
        assert served.uris[0].startswith("nbds+unix:")
        plain = subprocess.run(
            ["nbdinfo", f"nbd+unix:///system?socket={short}/nbd"], capture_output=True, text=True
        )
        assert plain.returncode != 0
        uri = f"nbds+unix://alice@/system?socket={short}/nbd&tls-psk-file={keys}"
        assert run("nbdinfo", "--size", uri).strip() == str(24 << 20)


def test_it_listens_at_a_port(site: Site) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with serve(site, "web@latest:system", "--listen", f"127.0.0.1:{port}") as served:
        assert served.uris == [f"nbd://127.0.0.1:{port}/system"]
        assert run("nbdinfo", "--size", served.uris[0]).strip() == str(24 << 20)
        taken = site.vmfs("serve nbd", "web@latest:system", "--listen", f"127.0.0.1:{port}")
    assert taken.status == 2
    assert "in use" in taken.err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["web@latest", "--writable"], "takes one disk"),
        (["web@latest", "--listen", "0.0.0.0"], "--tls off"),
        (["web@latest", "--listen", "host:99999"], "is no address"),
        (["web@latest:system", "--tls", "require"], "--tls-certificates"),
        (["web@latest:other"], "has no disk"),
        (["web@latest:system", "--socket", "/nowhere/nbd"], "is no directory"),
        (["web@latest:system", "--socket", "/etc/passwd"], "no socket"),
        (["web@latest:system", "--scratch", "/nowhere"], "choose another --scratch"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(site: Site, argv: list[str], said: str) -> None:
    done = site.vmfs("serve nbd", *argv)
    assert done.status == 2
    assert said in done.err
    assert done.err.count("\n") == 1


def test_all_that_nbdkit_says_of_why_it_does_not_start_is_passed_on(site: Site, tmp_path: Path) -> None:
    words = ("--listen", "localhost", "--tls-certificates", tmp_path)
    done = site.vmfs("serve nbd", "web@latest:system", *words)
    assert done.status == 1
    assert "nbdkit did not start: --tls=require but could not load TLS certificates" in done.err
    assert done.err.count("\n") == 1


def test_a_missing_nbdkit_is_named(site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    done = site.vmfs("serve nbd", "web@latest:system")
    assert done.status == 2
    assert "apt-get install nbdkit nbdkit-plugin-python" in done.err


def test_a_socket_that_is_in_use_is_left_alone(site: Site, short: Path) -> None:
    with serve(site, "web@latest:system", "--socket", short / "nbd") as served:
        done = site.vmfs("serve nbd", "web@latest:system", "--socket", short / "nbd")
        assert done.status == 2
        assert "somebody listens" in done.err
        assert run("nbdinfo", "--size", served.uris[0])


def test_damage_is_an_error_of_that_read_alone(site: Site, short: Path, tmp_path: Path) -> None:
    """One bit of one chunk: its reads fail, and vmfs says which chunk; all others go on."""
    copy = Site(tmp_path)
    shutil.copytree(site.repository, copy.repository)
    copy.write_passphrase()
    largest = max((copy.repository / "packs").rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.chmod(0o600)
    largest.write_bytes(content)
    original = (site.root / "system").read_bytes()
    failed = 0
    with serve(copy, "web@latest:system", "--socket", short / "nbd") as served:
        connection = nbd(served.uris[0])
        for chunk in (0, 1, 2, 40, 41, 100, 383):
            buffer = bytearray(CHUNK)
            try:
                connection.readinto(chunk * CHUNK, memoryview(buffer))
            except Exception:
                failed += 1
            else:
                assert bytes(buffer) == original[chunk * CHUNK : (chunk + 1) * CHUNK]
        connection.close()
        status, said = served.end()
    assert status == 0
    assert failed == 1
    assert "disk bytes from" in said
