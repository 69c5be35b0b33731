"""OvirtSource against the real imageio daemon over TLS, with a real qemu-nbd behind it."""

from __future__ import annotations

import os
import random
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from qemu_helpers import NbdServer, create_image, needs_qemu, qemu_io, run
from source_helpers import read, reading

from ingest.pipeline import PlannedDisk, ingest
from ingest.sources.base import BitmapError, Extent, SourceError
from ingest.sources.imageio import Extents, Image, ImageExtent, _parse
from ingest.sources.ovirt import OvirtSource, crossed
from vmfs.errors import VmfsError
from vmfs.format.manifest import Vm
from vmfs.repo.repository import Repository

sys.path.append(str(Path(__file__).parents[2] / "tools/lib"))
import itertools

from lab.imageio import ImageioHost
from lab.pki import Authority

pytestmark = [needs_qemu, pytest.mark.usefixtures("measured")]

KIB, MIB = 1 << 10, 1 << 20
SIZE = 64 * MIB


@dataclass(frozen=True)
class Site:
    """A host with its daemon, and the authority that both ends trust."""

    host: ImageioHost
    authority: Authority
    folder: Path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("imageio")
    authority = Authority.create(folder / "ca")
    host = ImageioHost(folder / "host", authority.issue("host"), authority.ca_file, remove_timeout=1)
    host.start()
    try:
        yield Site(host, authority, folder)
    finally:
        host.close()


class EndedError(VmfsError):
    """The transfer is over."""


@dataclass
class Transfer:
    """What an engine's transfer is to a client; `renewed` counts, `on_renew` is what renewing does."""

    site: Site
    server: NbdServer
    ticket: dict[str, Any]
    direct: str | None = None
    proxy: str | None = None
    renewed: int = 0
    on_renew: Callable[[], None] = field(default=lambda: None)

    @property
    def url(self) -> str:
        return f"{self.direct or self.site.host.url}/images/{self.ticket['uuid']}"

    @property
    def proxy_url(self) -> str | None:
        return self.proxy and f"{self.proxy}/images/{self.ticket['uuid']}"

    @property
    def transferred(self) -> int:
        return int(self.site.host.get_ticket(self.ticket["uuid"])["transferred"])

    def renew(self) -> None:
        self.renewed += 1
        self.on_renew()

    def add(self) -> None:
        self.site.host.add_ticket(self.ticket)

    def source(self, *, dirty: bool = False, patience: float = 20, **changed: Any) -> closing[OvirtSource]:
        options: dict[str, Any] = {"ca_file": str(self.site.authority.ca_file), "patience": patience}
        image = Image("web/root", self, **{**options, **changed})
        return closing(OvirtSource(image, dirty=dirty))


@contextmanager
def transfer(
    site: Site, image: Path, fmt: str, size: int, *, bitmap: str | None = None
) -> Iterator[Transfer]:
    options = ["-t", "-e", "8", "-f", fmt, "-x", "sda", "-A", "-r", *(["-B", bitmap] if bitmap else [])]
    with NbdServer(*options, image) as server:
        ticket = {
            "uuid": str(uuid.uuid4()),
            "size": size,
            "url": f"nbd:unix:{server.path}:exportname=sda",
            "timeout": 300,
            "inactivity_timeout": 60,
            "ops": ["read"],
            "sparse": True,
            "dirty": bitmap is not None,
            "transfer_id": str(uuid.uuid4()),
        }
        opened = Transfer(site, server, ticket)
        opened.add()
        try:
            yield opened
        finally:
            if site.host.running:
                site.host.remove_ticket(ticket["uuid"])


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """3 MiB of 7 at 1 MiB, 1 MiB of 9 at 20 MiB; since bitmap `chk1` 512 KiB of zeros at 20 MiB and 64 KiB of
    5 at 30 MiB."""
    path = create_image(tmp_path / "disk.qcow2", "qcow2", SIZE)
    qemu_io(path, "qcow2", "write -P 7 1M 3M", "write -P 9 20M 1M")
    run("qemu-img", "bitmap", "--add", path, "chk1")
    qemu_io(path, "qcow2", "write -z 20M 512k", "write -P 5 30M 64k")
    return path


@pytest.fixture
def opened(site: Site, image: Path) -> Iterator[Transfer]:
    with transfer(site, image, "qcow2", SIZE, bitmap="chk1") as found:
        yield found


def test_extents_and_bytes(opened: Transfer) -> None:
    with opened.source(dirty=True) as source:
        assert (source.size, source.block_size, source.max_readers) == (SIZE, 512, 8)
        assert list(source.dirty_extents() or ()) == [
            Extent(20 * MIB, 512 * KIB, True),
            Extent(30 * MIB, 64 * KIB, False),
        ]
        assert [extent for extent in source.extents() if not extent.zero] == [
            Extent(1 * MIB, 3 * MIB, False),
            Extent(20 * MIB + 512 * KIB, 512 * KIB, False),
            Extent(30 * MIB, 64 * KIB, False),
        ]
        assert opened.transferred == 0
        assert read(source, 0, 2 * MIB) == bytes(MIB) + b"\7" * MIB
        assert opened.transferred == 2 * MIB, "reading asks for nothing else"
        assert read(source, SIZE - 512, 512) == bytes(512)
        with pytest.raises(SourceError, match="ends at byte 67108864, before 67109376"):
            read(source, SIZE - 512, 1024)
    with opened.source() as source:
        assert source.dirty_extents() is None


def test_a_ticket_that_does_not_tell_what_changed(site: Site, image: Path) -> None:
    with (
        transfer(site, image, "qcow2", SIZE) as opened,
        pytest.raises(BitmapError, match=r"disk web/root: extents .*does not support dirty"),
    ):
        opened.source(dirty=True)


def test_a_ticket_with_a_bitmap_that_is_not_exported(site: Site, image: Path) -> None:
    with transfer(site, image, "qcow2", SIZE) as opened:
        opened.ticket["dirty"] = True
        opened.add()
        with pytest.raises(BitmapError, match="disk web/root"):
            opened.source(dirty=True)


def test_a_ticket_that_expired(opened: Transfer) -> None:
    """403, and good again once the transfer is extended."""
    with opened.source() as source, reading(source, 512) as opening:
        assert opening.read(MIB) == b"\7" * 512
        opened.site.host.extend_ticket(opened.ticket["uuid"], 0)
        opened.on_renew = lambda: opened.site.host.extend_ticket(opened.ticket["uuid"], 300)
        assert (opening.read(2 * MIB), opened.renewed) == (b"\7" * 512, 1)


def test_a_ticket_that_expired_before_the_start(opened: Transfer) -> None:
    opened.site.host.extend_ticket(opened.ticket["uuid"], 0)
    opened.on_renew = lambda: opened.site.host.extend_ticket(opened.ticket["uuid"], 300)
    with opened.source(dirty=True) as source:
        assert opened.renewed == 1
        assert len(list(source.dirty_extents() or ())) == 2


def test_a_transfer_that_was_cancelled(opened: Transfer) -> None:
    """What the engine says of it goes up as it is, with the disk named."""

    def end() -> None:
        raise EndedError("the engine has ended the transfer")

    with opened.source() as source, reading(source, 512) as opening:
        opened.site.host.remove_ticket(opened.ticket["uuid"])
        opened.on_renew = end
        with pytest.raises(EndedError, match="disk web/root: the engine has ended the transfer"):
            opening.read(0)


def test_a_refusal_that_stays(opened: Transfer) -> None:
    opened.site.host.remove_ticket(opened.ticket["uuid"])
    with pytest.raises(
        SourceError, match=r"disk web/root: connection: 403 .*No such ticket.*; run the backup"
    ):
        opened.source(patience=1)
    assert opened.renewed > 1


def test_a_daemon_that_is_restarted(opened: Transfer) -> None:
    """It has lost the ticket, which the engine gives it again."""
    with opened.source() as source, reading(source, MIB) as opening:
        opening.read(MIB)
        opened.site.host.restart()
        opened.on_renew = opened.add
        assert (opening.read(2 * MIB), opened.renewed) == (b"\7" * MIB, 1)


def test_a_daemon_that_is_away_for_a_while(opened: Transfer) -> None:
    host = opened.site.host
    with opened.source() as source:
        host.kill()

        def come_back() -> None:
            host.start()
            opened.add()

        # Only after the reader has seen that there is nobody.
        back = threading.Timer(0.5, come_back)
        back.start()
        try:
            # A ticket may be missed when the daemon is up and has none yet.
            assert read(source, MIB, 512) == b"\7" * 512
        finally:
            back.join()


def test_the_process_that_reads_is_killed(opened: Transfer) -> None:
    """There is another at once."""
    with opened.source() as source, reading(source, MIB) as opening:
        assert opening.read(MIB) == b"\7" * MIB
        (process,) = _children("fetching.py")
        os.kill(process, signal.SIGKILL)
        assert opening.read(2 * MIB) == b"\7" * MIB
        (another,) = _children("fetching.py")
        assert another != process
    assert not _children("fetching.py")


def _children(program: str) -> list[int]:
    """Processes of ours that run it."""
    tasks = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    children = [int(child) for task in tasks for child in task.read_text().split()]
    return [child for child in children if program in Path(f"/proc/{child}/cmdline").read_text()]


def test_a_daemon_that_stays_away(opened: Transfer) -> None:
    host = opened.site.host
    with opened.source(patience=1) as source:
        host.kill()
        try:
            with pytest.raises(SourceError, match=r"web/root: read at byte 0: Connection refused; run"):
                read(source, 0, 512)
        finally:
            host.start()
            opened.add()


def test_a_dead_nbd_server(opened: Transfer) -> None:
    with opened.source() as source:
        opened.server.process.kill()
        opened.server.process.wait()
        began = time.monotonic()
        with pytest.raises(SourceError, match=r"disk web/root: read at byte 0: 500 .*; run the backup again"):
            read(source, 0, 512)
        assert time.monotonic() - began < 10, "it stays dead"
        assert opened.renewed, "the engine may know why"


def test_the_proxy(opened: Transfer, caplog: pytest.LogCaptureFixture) -> None:
    """Where nobody listens on the host; told once."""
    opened.proxy = opened.site.host.url
    with socket.create_server(("127.0.0.1", 0)) as taken:
        opened.direct = f"https://127.0.0.1:{taken.getsockname()[1]}"
    with opened.source(dirty=True) as source:
        assert read(source, MIB, 512) == b"\7" * 512
        assert read(source, 2 * MIB, 512) == b"\7" * 512
    (warning,) = caplog.records
    assert "cannot be reached (Connection refused); reading through the engine's proxy" in warning.message


def test_the_host_before_the_proxy(opened: Transfer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        opened.proxy = f"https://127.0.0.1:{taken.getsockname()[1]}"
    with opened.source() as source:
        assert read(source, MIB, 512) == b"\7" * 512


def test_a_foreign_authority(opened: Transfer, tmp_path: Path) -> None:
    other = Authority.create(tmp_path / "other")
    with pytest.raises(
        SourceError, match=r"certificate of the host's imageio cannot be trusted: .*; check ca_"
    ):
        opened.source(ca_file=str(other.ca_file))
    with opened.source(ca_file=None, insecure=True) as source:
        assert read(source, MIB, 512) == b"\7" * 512


def test_an_expired_certificate(opened: Transfer) -> None:
    site = opened.site
    site.host.restart(certificate=site.authority.issue("late", expired=True))
    try:
        with pytest.raises(SourceError, match="cannot be trusted: certificate has expired; check"):
            opened.source()
    finally:
        site.host.restart(certificate=site.authority.issue("host"))
        opened.add()


class Relay:
    """A TCP connection's middle, that can go silent or cut."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self._listener.getsockname()[1]}"
        self._sockets: list[socket.socket] = []
        self._open = threading.Event()
        self._open.set()
        self.connections = 0
        self.silenced = threading.Event()
        """Something is waiting in vain."""
        threading.Thread(target=self._accept, daemon=True).start()

    def silence(self) -> None:
        self._open.clear()

    def cut(self) -> None:
        while self._sockets:
            one = self._sockets.pop()
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
            finally:
                one.close()

    def close(self) -> None:
        self._listener.close()
        self._open.set()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            server = socket.create_connection(("127.0.0.1", self._port))
            self._sockets += [client, server]
            for a, b in ((client, server), (server, client)):
                threading.Thread(target=self._forward, args=(a, b), daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(64 << 10):
                if not self._open.is_set():
                    self.silenced.set()
                    self._open.wait()
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            return


@pytest.fixture
def relay(opened: Transfer) -> Iterator[Relay]:
    relay = Relay(opened.site.host.port)
    opened.direct = relay.url
    try:
        yield relay
    finally:
        relay.close()


def test_connections_that_are_cut(opened: Transfer, relay: Relay) -> None:
    """As idle ones are: nothing is said, and the bytes are right."""
    with opened.source() as source, reading(source, MIB) as opening:
        for offset in (1, 2, 3):
            assert opening.read(offset * MIB) == b"\7" * MIB
            relay.cut()
    assert opened.renewed == 0


def test_an_interruption_ends_a_wait(opened: Transfer, relay: Relay) -> None:
    """Of a server that has gone silent; nobody waits for its time limit."""
    with opened.source() as source, reading(source, 512) as opening:
        opening.read(0)
        relay.silence()
        failures: list[BaseException] = []

        def wait() -> None:
            try:
                opening.read(0)
            except SourceError as error:
                failures.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        assert relay.silenced.wait(20)
        source.interrupt()
        thread.join(20)
        assert not thread.is_alive()
        assert "stopped" in str(failures[0])


@pytest.mark.slow
def test_extents_that_take_longer_than_a_minute(opened: Transfer) -> None:
    """The client library gives up after 60 seconds (oVirt/ovirt-imageio#215)."""
    process = opened.server.process
    process.send_signal(signal.SIGSTOP)
    on = threading.Timer(65, lambda: process.send_signal(signal.SIGCONT))
    on.start()
    try:
        # The connection itself waits for the NBD server as well: the daemon opens it with the first request.
        with opened.source(dirty=True, patience=200) as source:
            assert len(list(source.dirty_extents() or ())) == 2
    finally:
        process.send_signal(signal.SIGCONT)
        on.cancel()


def test_a_backup(site: Site, repository: Repository, tmp_path: Path) -> None:
    """Full and incremental through the pipeline: two disks at once, four connections each; what is read is
    the dirty extents rounded out to chunks."""
    chunk = repository.chunk_size
    contents: dict[str, bytearray] = {}
    images = {}
    for number, alias in enumerate(("root", "data")):
        content = bytearray(SIZE)
        content[MIB : 9 * MIB] = random.Random(number).randbytes(8 * MIB)  # noqa: S311
        raw = tmp_path / f"{alias}.raw"
        raw.write_bytes(content)
        images[alias] = tmp_path / f"{alias}.qcow2"
        run("qemu-img", "convert", "-O", "qcow2", raw, images[alias])
        run("qemu-img", "bitmap", "--add", images[alias], "chk1")
        contents[alias] = content
    vm = Vm(name="web", id="web")
    points = []
    for bitmap in (None, "chk1"):
        with ExitStack() as stack:
            transfers = {
                alias: stack.enter_context(transfer(site, path, "qcow2", SIZE, bitmap=bitmap))
                for alias, path in images.items()
            }
            planned = []
            for alias, opened in transfers.items():
                source = stack.enter_context(opened.source(dirty=bitmap is not None))
                base = points[0].manifest.disk(alias) if points else None
                planned.append(PlannedDisk(alias, source, base, connections=4))
            points.append(ingest(repository, vm, planned, parent=points[0] if points else None, workers=4))
            for disk in points[-1].manifest.disks:
                assert transfers[disk.alias].transferred == disk.bytes_read
        if bitmap is None:
            for alias, path in images.items():
                qemu_io(
                    path, "qcow2", f"write -P 3 {chunk - 512} 1024", "write -z 2M 1M", "write -P 4 40M 64k"
                )
                contents[alias][chunk - 512 : chunk + 512] = b"\3" * 1024
                contents[alias][2 * MIB : 3 * MIB] = bytes(MIB)
                contents[alias][40 * MIB : 40 * MIB + 64 * KIB] = b"\4" * 64 * KIB
    full, incremental = points
    for disk in full.manifest.disks:
        assert (disk.mode, disk.bytes_read) == ("full", 8 * MIB)
    for disk in incremental.manifest.disks:
        assert (disk.mode, disk.bytes_read) == ("incremental", 3 * chunk)
        assert repository.open_disk(disk).read(0, SIZE) == contents[disk.alias]


def extents_as_json(extents: list[ImageExtent]) -> bytes:
    def item(extent: ImageExtent) -> str:
        zero = "" if extent.zero is None else f', "zero": {str(extent.zero).lower()}'
        dirty = str(extent.dirty).lower()
        return f'{{"start": {extent.start}, "length": {extent.length}, "dirty": {dirty}{zero}}}'

    return f"[{', '.join(map(item, extents))}]\n".encode()


@st.composite
def layouts(draw: st.DrawFn, size: int | None = None) -> list[ImageExtent]:
    cuts = draw(st.sets(st.integers(1, (size or 1000) - 1), max_size=30))
    edges = [0, *sorted(cuts), size or 1000]
    flags = st.booleans()
    return [ImageExtent(a, b - a, draw(flags), draw(flags)) for a, b in itertools.pairwise(edges)]


@given(layouts(), st.integers(1, 400))
def test_a_list_that_arrives_in_pieces(extents: list[ImageExtent], step: int) -> None:
    text = extents_as_json(extents)
    pieces = [text[at : at + step] for at in range(0, len(text), step)]
    assert list(_parse(iter(pieces))) == extents
    # Nothing that is cut short passes for whole.
    with pytest.raises(Exception, match=r"cut short|makes no sense"):
        list(_parse(iter([text[: len(text) - 2]])))


@given(layouts())
def test_extents_are_kept_as_they_are(extents: list[ImageExtent]) -> None:
    def flat(some: Any) -> list[tuple[bool, bool]]:
        return [(dirty, zero) for _, length, dirty, zero in some for _ in range(length)]

    assert flat(Extents(extents)) == flat(extents)
    with pytest.raises(ValueError, match="impossible"):
        Extents([extents[0], *extents])


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(layouts(), layouts())
def test_changed_extents_of_old_servers(changed: list[ImageExtent], whole: list[ImageExtent]) -> None:
    """Which do not tell zeros: crossed with the extents that do."""
    only = [extent._replace(zero=None) for extent in changed if extent.dirty]
    zeros = [extent.zero for extent in whole for _ in range(extent.length)]
    told: dict[int, bool] = {}
    end = 0
    for start, length, zero in crossed(only, whole):
        assert start >= end
        end = start + length
        told.update(dict.fromkeys(range(start, end), zero))
    assert told == {at: zeros[at] for e in only for at in range(e.start, e.start + e.length)}
