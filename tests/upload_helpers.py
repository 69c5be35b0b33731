"""Uploads without an engine: a real imageio daemon over TLS, and a real qemu-nbd that writes the image."""

from __future__ import annotations

import random
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from qemu_helpers import NbdServer, create_image, run

from vmfs.errors import VmfsError
from vmfs.format.keys import Kind
from vmfs.format.manifest import Disk, Manifest, Vm
from vmfs.repo.diskmap import EMPTY
from vmfs.repo.reader import DiskReader
from vmfs.repo.repository import Repository

sys.path.append(str(Path(__file__).parents[1] / "tools/lib"))
from lab.imageio import ImageioHost
from lab.pki import Authority

KIB, MIB = 1 << 10, 1 << 20


class EndedError(VmfsError):
    """The transfer takes no data."""


class Upload:
    """A transfer to one image, with a ticket of its own on the daemon, and what an engine would do to it."""

    def __init__(self, host: ImageioHost, image: Path, fmt: str, size: int, *, ca_file: Path) -> None:
        self.host = host
        self.image = image
        self.disk_id = str(uuid.uuid4())
        self.ca_file = ca_file
        self.size = size
        self.proxy_url: str | None = None
        self.resumes = 0
        self._format = fmt
        self._server: NbdServer | None = None
        self._ticket = ""
        self.direct: str | None = None
        """Instead of the daemon's URL."""
        self.begin()

    @property
    def url(self) -> str:
        return f"{self.direct or self.host.url}/images/{self._ticket}"

    def begin(self) -> None:
        self._ticket = str(uuid.uuid4())
        self._server = NbdServer(
            *("-t", "-e", "8", "-f", self._format, "-x", "sda", "--discard", "unmap", self.image)
        )
        ticket = {
            "uuid": self._ticket,
            "size": self.size,
            "url": f"nbd:unix:{self._server.path}:exportname=sda",
            "timeout": 300,
            "inactivity_timeout": 60,
            "ops": ["write"],
            "sparse": True,
            "transfer_id": self.disk_id,
        }
        self.host.add_ticket(ticket)

    def pause(self) -> None:
        """As the engine does: no ticket, no NBD server."""
        self.host.remove_ticket(self._ticket)
        self.lose_nbd()

    def lose_nbd(self) -> None:
        if self._server:
            self._server.close()
            self._server = None

    def revive(self) -> None:
        if self._server is None or self._ticket not in self.host.tickets:
            self.resume()

    def resume(self) -> None:
        self.lose_nbd()
        if not self.host.running:
            self.host.start()
        self.resumes += 1
        self.begin()

    def finish(self) -> None:
        """Ticket removed, the image closed as qemu closes it."""
        if self.host.running:
            self.host.remove_ticket(self._ticket)
        if self._server:
            self._server.process.terminate()
            self._server.process.wait(20)
            self._server.close()
            self._server = None

    def content(self, raw: Path) -> bytes:
        """What the finished image holds."""
        run("qemu-img", "convert", "-f", self._format, "-O", "raw", self.image, raw)
        return raw.read_bytes()


@contextmanager
def imageio(folder: Path) -> Iterator[tuple[ImageioHost, Authority]]:
    authority = Authority.create(folder / "ca")
    host = ImageioHost(folder / "host", authority.issue("host"), authority.ca_file, remove_timeout=1)
    host.start()
    try:
        yield host, authority
    finally:
        host.stop()


def content(seed: int, size: int, data: list[tuple[int, int]]) -> bytes:
    """A disk with bytes that compress badly at these (offset, length), zeros elsewhere."""
    made = bytearray(size)
    chance = random.Random(seed)  # noqa: S311
    for offset, length in data:
        # No zero bytes: what is data stays data at every granule.
        made[offset : offset + length] = chance.randbytes(length).replace(b"\0", b"\1")
    return bytes(made)


def store(repository: Repository, disks: dict[str, bytes]) -> dict[str, DiskReader]:
    """A restore point of these disks; readers of them."""
    taken = []
    size = repository.chunk_size
    with repository.write_session() as session:
        for alias, data in disks.items():
            writer = session.map_writer(len(data), EMPTY)
            for index in range(-(-len(data) // size)):
                chunk = data[index * size : (index + 1) * size].ljust(size, b"\0")
                if chunk.strip(b"\0"):
                    writer.set(index, session.store_blob(Kind.DATA, chunk).id)
            written = writer.finish()
            taken.append(
                Disk(
                    id=str(uuid.uuid4()),
                    alias=alias,
                    size=len(data),
                    root=written.root,
                    allocated=written.allocated,
                )
            )
        session.commit(
            Manifest(
                vm=Vm(name="web", id="web"), time=datetime.now(UTC), consistency="offline", disks=tuple(taken)
            )
        )
    return {disk.alias: repository.open_disk(disk) for disk in taken}


def new_image(folder: Path, fmt: str, size: int) -> Path:
    return create_image(folder / f"target.{fmt}", fmt, size)
