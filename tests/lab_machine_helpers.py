"""A machine of the lab and one imageio daemon, without an engine."""

from __future__ import annotations

import random
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ovirt_imageio.client import ImageioClient

sys.path.append(str(Path(__file__).parents[1] / "tools/lib"))

from lab import process
from lab.daemon import Daemon
from lab.imageio import ImageioError, ImageioHost
from lab.machine import BackupExport, Machine, MachineError, create_image
from lab.pki import Authority
from lab.qmp import QmpError

__all__ = [
    "DISK_SIZE",
    "GRAIN",
    "KIB",
    "MIB",
    "TOOLS_LIB",
    "Authority",
    "BackupExport",
    "Backups",
    "Begin",
    "Daemon",
    "ImageioError",
    "ImageioHost",
    "Machine",
    "MachineError",
    "QmpError",
    "Site",
    "Writer",
    "begin",
    "create_image",
    "fill",
    "nothing",
    "process",
    "same_as_shadow",
]

TOOLS_LIB = Path(__file__).parents[1] / "tools/lib"

MIB = 1 << 20
KIB = 1 << 10
GRAIN = 64 * KIB
"""What one bit of a dirty bitmap stands for."""
DISK_SIZE = 16 * MIB
"""Of the fixtures' machine."""

Begin = Callable[[str, Mapping[str, str | None], str | None, Callable[[], None]], dict[str, BackupExport]]


class Site:
    """A host, and what it takes to download from it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority.create(folder / "pki")
        self.host = ImageioHost(
            folder / "host", self.authority.issue("host"), self.authority.ca_file, remove_timeout=1
        )
        self.host.start()

    def ticket(self, export: BackupExport, *, ops: tuple[str, ...] = ("read",), timeout: int = 300) -> str:
        """A new one for the export; gives its id."""
        ticket = str(uuid.uuid4())
        self.host.add_ticket(
            {
                "uuid": ticket,
                "size": export.size,
                "url": export.url,
                "timeout": timeout,
                "inactivity_timeout": 60,
                "ops": list(ops),
                "sparse": True,
                "dirty": export.bitmap is not None,
                "transfer_id": ticket,
            }
        )
        return ticket

    @contextmanager
    def client(self, ticket: str, *, ca_file: Path | None = None) -> Iterator[ImageioClient]:
        trusted = str(ca_file or self.authority.ca_file)
        with ImageioClient(f"{self.host.url}/images/{ticket}", cafile=trusted) as client:
            yield client

    def download(self, export: BackupExport, parent: bytes | None = None) -> tuple[bytes, int]:
        """The disk at the backup's instant: whole, or the changed extents laid over `parent`. With the bytes
        that the daemon says were transferred."""
        assert export.error is None, export.error
        ticket = self.ticket(export)
        changed_only = export.bitmap is not None
        content = bytearray(export.size)
        if changed_only:
            assert parent is not None
            content[: len(parent)] = parent
        with self.client(ticket) as client:
            for extent in client.extents("dirty" if changed_only else "zero"):
                if changed_only and not extent.dirty:
                    continue
                data = bytearray(extent.length)
                if not extent.zero:
                    assert client.read(extent.start, data) == extent.length
                content[extent.start : extent.start + extent.length] = data
        state = self.host.remove_ticket(ticket)
        assert state is not None
        return bytes(content), int(state["transferred"])


class Backups:
    """Backups of a machine one after the other, each compared with what the guest had written."""

    def __init__(self, site: Site, machine: Machine) -> None:
        self.site = site
        self.machine = machine
        self.held: dict[str, bytes] = {}
        """What each disk held at its last backup."""
        self.transferred: dict[str, int] = {}

    def take(
        self,
        begin: Begin,
        name: str,
        disks: Mapping[str, str | None],
        checkpoint: str | None = None,
        *,
        parents: Mapping[str, bytes] | None = None,
    ) -> None:
        """`parents`: to lay changes over, instead of the last backups."""
        target = self.site.folder / "recorded.raw"

        def record() -> None:
            for disk in disks:
                self.machine.record(disk, target.with_name(f"recorded-{name}-{disk}.raw"))

        exports = begin(name, disks, checkpoint, record)
        assert set(exports) == set(disks)
        for disk, since in disks.items():
            assert (exports[disk].bitmap is None) == (since is None)
            parent = (self.held if parents is None else parents).get(disk)
            content, self.transferred[disk] = self.site.download(exports[disk], parent)
            recorded = target.with_name(f"recorded-{name}-{disk}.raw").read_bytes()
            assert content == recorded, f"{name} {disk}: {differing(content, recorded)}"
            self.held[disk] = content
        self.machine.end_backup(name)
        assert self.machine.leftovers() == []


class Writer:
    """A guest that never stops writing to some disks, from one thread for each; within the first `span`
    bytes."""

    def __init__(self, machine: Machine, disks: Mapping[str, int], *, seed: int = 1) -> None:
        self.machine = machine
        self.errors: list[BaseException] = []
        self.writes = 0
        self._stop = threading.Event()
        self._wrote = threading.Condition()
        self._threads = [
            threading.Thread(target=self._run, args=(disk, span, random.Random(f"{seed} {disk}")))  # noqa: S311
            for disk, span in disks.items()
        ]

    def __enter__(self) -> Writer:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_writes(self, count: int) -> None:
        """Till that many more writes are done; or the writer has failed."""
        with self._wrote:
            goal = self.writes + count
            assert self._wrote.wait_for(lambda: self.writes >= goal or self.errors, 120)

    def _run(self, disk: str, span: int, dice: random.Random) -> None:
        try:
            while not self._stop.is_set():
                scribble(self.machine, disk, span, dice)
                with self._wrote:
                    self.writes += 1
                    self._wrote.notify_all()
        except BaseException as error:
            with self._wrote:
                self.errors.append(error)
                self._wrote.notify_all()


def scribble(machine: Machine, disk: str, span: int, dice: random.Random) -> None:
    """One guest write of some kind."""
    length = dice.choice((512, 4096, 4096, 40960, 3 * GRAIN))
    offset = dice.randrange((span - length) // 512 + 1) * 512
    kind = dice.random()
    if kind < 0.1:
        machine.zero(disk, offset, length)
    elif kind < 0.2:
        machine.discard(disk, offset, length)
    else:
        machine.write(disk, offset, dice.randbytes(length))


def fill(machine: Machine, disk: str, span: int, *, seed: int = 0, writes: int = 40) -> None:
    """Some content."""
    dice = random.Random(seed)  # noqa: S311
    for _ in range(writes):
        scribble(machine, disk, span, dice)


def same_as_shadow(machine: Machine, disk: str) -> bool:
    """What the running guest reads is what it wrote."""
    return machine.read(disk, 0, machine.disks[disk].size) == machine.shadow(disk).read_bytes()


def differing(one: bytes, other: bytes) -> str:
    """For a failed test: where two contents differ."""
    if len(one) != len(other):
        return f"{len(one)} and {len(other)} bytes"
    places = [at for at in range(0, len(one), 4096) if one[at : at + 4096] != other[at : at + 4096]]
    return f"{len(places)} pages differ: {places[:8]}"


def begin(machine: Machine, mode: str) -> Begin:
    return {
        "live": machine.begin_live_backup,
        "hybrid": machine.begin_hybrid_backup,
        "cold": machine.begin_cold_backup,
    }[mode]


def nothing() -> None:
    """What happens at the instant of a backup whose content is of no interest."""
