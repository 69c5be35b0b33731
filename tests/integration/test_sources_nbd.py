"""NBD exports of real servers."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from qemu_helpers import NODE, NbdServer, StorageDaemon, create_image, needs_qemu, qemu_io, run
from source_helpers import opened as opened_by_spec
from source_helpers import read

from ingest.sources import BitmapError, Extent, SourceError
from ingest.sources.nbd import NbdSource

pytestmark = needs_qemu

MIB = 1 << 20


def opened(location: str, bitmap: str | None = None) -> closing[NbdSource]:
    return closing(NbdSource(location, bitmap=bitmap))


def test_dirty_and_zero(tmp_path: Path) -> None:
    """Data, zeroes and discards that a bitmap recorded are all told, and those that read as zeros as such."""
    path = create_image(tmp_path / "disk.qcow2", "qcow2", 256 * MIB)
    qemu_io(path, "qcow2", "write -P 1 0 32M")
    with StorageDaemon(tmp_path, path, "qcow2") as daemon:
        daemon.add_bitmap("b0")
        daemon.io(
            "write -P 2 1M 64k",
            "write -z 2M 128k",
            "discard 3M 64k",
            "write -P 3 200M 64k",
            "write -z 240M 1M",
        )
        daemon.io("write -z 4M 512", f"write -P 4 {256 * MIB - 512} 512")
        with opened(daemon.begin_backup(since="b0"), "changed") as source:
            extents = source.dirty_extents()
            assert extents is not None
            assert list(extents) == [
                Extent(1 * MIB, 65536, False),
                Extent(2 * MIB, 131072, True),
                Extent(3 * MIB, 65536, True),
                Extent(4 * MIB, 65536, False),
                Extent(200 * MIB, 65536, False),
                Extent(240 * MIB, MIB, True),
                Extent(256 * MIB - 65536, 65536, False),
            ]
            assert read(source, 4 * MIB, 1024) == bytes(512) + b"\1" * 512


def test_many_scattered_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More runs than are asked about at once."""
    monkeypatch.setattr("ingest.sources.nbd._MAX_GROUP", 250)
    path = create_image(tmp_path / "disk.qcow2", "qcow2", 1000 * 8192, "-o", "cluster_size=4096")
    with StorageDaemon(tmp_path, path, "qcow2") as daemon:
        daemon.add_bitmap("b0", granularity=4096)
        daemon.io(*(f"write {'-z' if n % 3 == 0 else '-P 7'} {n * 8192} 4096" for n in range(1000)))
        with opened(daemon.export_nbd(writable=True, bitmaps=["b0"]), "b0") as source:
            extents = source.dirty_extents()
            assert extents is not None
            assert list(extents) == [Extent(n * 8192, 4096, n % 3 == 0) for n in range(1000)]


def test_choice_of_bitmap(tmp_path: Path) -> None:
    path = create_image(tmp_path / "disk.qcow2", "qcow2", MIB)
    with StorageDaemon(tmp_path, path, "qcow2") as daemon:
        daemon.add_bitmap("first")
        daemon.io("write 0 64k")
        daemon.add_bitmap("second")
        daemon.io("write 128k 64k")
        uri = daemon.export_nbd(writable=True, bitmaps=["first", "second"])
        for name, count in (("first", 2), ("second", 1)):
            with opened(uri, name) as source:
                assert len(list(source.dirty_extents() or [])) == count
        with pytest.raises(BitmapError, match=r"no dirty bitmap 'third'; it has 'first', 'second'"):
            NbdSource(uri, bitmap="third")
        with pytest.raises(BitmapError, match=r"no dirty bitmap 'first'; it has none, so take a full backup"):
            NbdSource(daemon.export_nbd(), bitmap="first")


def test_unknown_export(tmp_path: Path) -> None:
    path = create_image(tmp_path / "disk.qcow2", "qcow2", MIB)
    with StorageDaemon(tmp_path, path, "qcow2") as daemon:
        uri = daemon.export_nbd(name="sda")
        daemon.export_nbd(name="sdb")
        for bitmap in (None, "b0"):
            with pytest.raises(SourceError, match=r"the server has no export 'sdx'; it has 'sd.', 'sd.'$"):
                NbdSource(uri.replace("sda?", "sdx?"), bitmap=bitmap)


def test_tls_required(tmp_path: Path) -> None:
    path = create_image(tmp_path / "disk.qcow2", "qcow2", MIB)
    (tmp_path / "keys.psk").write_text("vmfs:" + "5a" * 32 + "\n")
    with StorageDaemon(tmp_path, path, "qcow2") as daemon:
        daemon.qmp(
            "object-add", qom_type="tls-creds-psk", id="tls", endpoint="server", dir=os.fspath(tmp_path)
        )
        address = {"type": "unix", "data": {"path": os.fspath(daemon.folder / "tls")}}
        daemon.qmp("nbd-server-start", addr=address, tls_creds="tls")
        daemon.qmp("block-export-add", type="nbd", id="x", node_name=NODE, name="sda")
        with pytest.raises(SourceError, match=r"the server wants TLS, which is not supported"):
            NbdSource(f"nbd+unix:///sda?socket={daemon.folder}/tls")


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"cannot connect: No such file"):
        NbdSource(f"nbd+unix:///?socket={tmp_path}/missing")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        with pytest.raises(SourceError, match=r"cannot connect: Connection refused"):
            NbdSource(f"nbd://127.0.0.1:{listener.getsockname()[1]}/")
    with pytest.raises(SourceError, match=r"cannot connect"):
        NbdSource("nbd://" + "a" * 70 + ".invalid/")


def test_over_tcp_with_several_readers(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(os.urandom(16 * MIB))
    for _ in range(5):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        options = ["--format=raw", "--export-name=sda", "--bind=127.0.0.1", f"--port={port}"]
        process = subprocess.Popen(["qemu-nbd", "--read-only", "--persistent", "--shared=8", *options, path])
        try:
            source = wait_for(f"nbd://127.0.0.1:{port}/sda", process)
            if source is None:
                continue
            results: list[bytes] = [b""] * 4

            def work(index: int, source: NbdSource = source, results: list[bytes] = results) -> None:
                results[index] = read(source, index * 4 * MIB, 4 * MIB)

            threads = [threading.Thread(target=work, args=[index]) for index in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            source.close()
            assert b"".join(results) == path.read_bytes()
            return
        finally:
            process.kill()
            process.wait()
    pytest.fail("no free port")


def wait_for(uri: str, process: subprocess.Popen[bytes]) -> NbdSource | None:
    deadline = time.monotonic() + 20
    while process.poll() is None:
        try:
            return NbdSource(uri)
        except SourceError:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    return None


def test_server_of_one_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """qemu-nbd by default keeps a second client waiting: all share the first connection then."""
    monkeypatch.setattr("ingest.sources.nbd.SPARE_TIMEOUT", 0.5)
    path = create_image(tmp_path / "disk.qcow2", "qcow2", 8 * MIB)
    run("qemu-img", "bitmap", "--add", path, "b0")
    qemu_io(path, "qcow2", "write -P 5 0 1M", "write -z 2M 64k")
    with NbdServer("-r", "-f", "qcow2", "-B", "b0", path) as server, opened(server.uri(), "b0") as source:
        dirty = source.dirty_extents()
        assert dirty is not None
        assert list(dirty) == [Extent(0, MIB, False), Extent(2 * MIB, 65536, True)]
        first, second = source.reader(), source.reader()
        for reader in (first, second):
            buffer = bytearray(b"\xff" * 2 * MIB)
            reader.readinto(0, memoryview(buffer))
            assert buffer == b"\5" * MIB + bytes(MIB)
            reader.close()


def test_server_dies(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(MIB))
    with NbdServer("-r", "-e", "0", "-f", "raw", path) as server, opened(server.uri()) as source:
        reader = source.reader()
        reader.readinto(0, memoryview(bytearray(512)))
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
        with pytest.raises(
            SourceError, match=r"disk nbd\+unix.*: read at byte 4096: the (server closed|connection)"
        ):
            reader.readinto(4096, memoryview(bytearray(512)))
        with pytest.raises(SourceError, match=r"no block status at byte 0: the (server closed|connection)"):
            list(source.extents())
        reader.close()
        with pytest.raises(SourceError, match=r"disk nbd\+unix.*: "):
            read(source, 0, 512)


def test_server_hangs(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(MIB))
    with NbdServer("-r", "-e", "0", "-f", "raw", path) as server:
        source = NbdSource(server.uri(), timeout=0.3)
        reader = source.reader()
        server.process.send_signal(signal.SIGSTOP)
        with pytest.raises(
            SourceError, match=r"read at byte 512: the server did not answer within 0.3 seconds"
        ):
            reader.readinto(512, memoryview(bytearray(512)))
        reader.close()
        source.close()


def test_read_error_in_the_middle(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(os.urandom(8 * MIB))
    with (
        StorageDaemon(tmp_path, path, "raw", fail_at=5 * MIB) as daemon,
        opened(daemon.export_nbd()) as source,
    ):
        assert read(source, 0, 5 * MIB) == path.read_bytes()[: 5 * MIB]
        with pytest.raises(SourceError, match=rf"read error at byte {5 * MIB}: Input/output error"):
            read(source, 4 * MIB, 4 * MIB)


def test_long_socket_path(tmp_path: Path) -> None:
    path = create_image(tmp_path / "disk.qcow2", "qcow2", MIB)
    folder = tmp_path / ("d" * 100) / ("e" * 100)
    folder.mkdir(parents=True)
    with NbdServer("-f", "qcow2", path) as server:
        (folder / "s").symlink_to(server.path)
        with pytest.raises(
            SourceError, match=r"cannot connect: (Connection refused|Socket operation on non-socket)"
        ):
            NbdSource(f"nbd+unix:///?socket={path}")
        with opened(f"nbd+unix:///?socket={folder}/s") as source:
            assert source.size == MIB


def test_64_tib(tmp_path: Path) -> None:
    """Asked for in a few thousand questions, several at once."""
    path = create_image(tmp_path / "disk.qcow2", "qcow2", 64 << 40)
    run("qemu-img", "bitmap", "--add", path, "b0")
    qemu_io(
        path, "qcow2", f"write {32 << 40} 64k", f"write -z {48 << 40} 64k", f"write {(64 << 40) - 65536} 64k"
    )
    start = time.monotonic()
    with opened_by_spec(path, "b0") as source:
        assert list(source.extents()) == [
            Extent(0, 32 << 40, True),
            Extent(32 << 40, 65536, False),
            Extent((32 << 40) + 65536, (32 << 40) - 131072, True),
            Extent((64 << 40) - 65536, 65536, False),
        ]
        assert list(source.dirty_extents() or []) == [
            Extent(32 << 40, 65536, False),
            Extent(48 << 40, 65536, True),
            Extent((64 << 40) - 65536, 65536, False),
        ]
    assert time.monotonic() - start < 30
