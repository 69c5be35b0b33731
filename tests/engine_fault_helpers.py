"""Backups by the real command of VMs of the lab while things go wrong, and what must be true after each.

Whatever happened, nothing of ours is left in the engine, and a restore point that there is holds, byte for
byte, what the lab recorded at the instant of the backup.
"""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from command_helpers import Done, Site, call
from engine_helpers import check_clean, connected
from lab_helpers import MIB, DiskRecipe, Lab, LabVm, running_lab

from ingest.engine.run import Options, Outcome, back_up_vm
from vmfs.catalog.catalog import Catalog
from vmfs.repo.repository import Repository

__all__ = [
    "HYBRID",
    "LIVE",
    "MODES",
    "SIZE",
    "Admit",
    "Clinic",
    "Held",
    "Patient",
    "Taken",
    "check_content",
    "clinic_in",
    "once",
    "until",
]

SIZE = 24 * MIB
"""Of a disk. Half of it is data, in several requests to imageio."""
LIVE, HYBRID = "live", "hybrid"
MODES = pytest.mark.parametrize("mode", [LIVE, HYBRID])
_CONFLICT = re.compile(r"POST \S*/backups\S* -> 409")
"""A request for a backup that is refused, in the log of the lab."""
_NUMBERS = count(1)


@dataclass(frozen=True)
class Taken:
    """A backup that succeeded. `facts` is what it printed, `said` what it said besides, `backups` how many of
    the engine's it took."""

    facts: dict[str, Any]
    said: str
    backups: int

    @property
    def id(self) -> str:
        return str(self.facts["id"])

    @property
    def modes(self) -> dict[str, str]:
        """full or incremental, by alias."""
        return {disk["alias"]: disk["mode"] for disk in self.facts["disks"]}

    @property
    def reasons(self) -> dict[str, str]:
        """Why a disk was read in full although there are earlier points, by alias."""
        return {disk["alias"]: disk["full_reason"] for disk in self.facts["disks"] if disk["full_reason"]}

    @property
    def incremental(self) -> bool:
        """All disks that can be."""
        return set(self.modes.values()) == {"incremental"}

    @property
    def full(self) -> bool:
        return set(self.modes.values()) == {"full"}


@dataclass
class Clinic:
    """A lab, and a repository for the VMs in it."""

    lab: Lab
    site: Site

    @property
    def engine(self) -> list[object]:
        """Options of the commands."""
        lab = self.lab
        login = ["--username", lab.username, "--password-file", lab.password_file]
        return ["--engine", lab.url, *login, "--ca-file", lab.ca_file]

    def command(self, name: str, *arguments: object) -> Done:
        """A command of vmfs-ingest that uses the repository and the engine."""
        done = call("vmfs-ingest", name, self.site.repository, *arguments, *self.engine, *self.site.options())
        assert "Traceback" not in done.err
        return done

    def admit(self, *formats: str, cluster: str = "Default", up: bool = True, **recipe: Any) -> Patient:
        """A new VM with disks called a, b, … of these formats, one of `cow` by default."""
        name = f"vm{next(_NUMBERS)}"
        chosen = random.Random(name)  # noqa: S311
        recipes = [
            DiskRecipe(
                alias,
                recipe.get("size", SIZE),
                format=form,
                bootable=alias == "a",
                chunks=[(MIB, chosen.randbytes(recipe.get("size", SIZE) // 2))],
                snapshots=recipe.get("snapshots", 0),
            )
            for alias, form in zip("abcdef", formats or ("cow",), strict=False)
        ]
        return Patient(self, self.lab.create_vm(name, recipes, cluster=cluster, up=up))

    def check_clean(self) -> None:
        check_clean(self.lab)

    def until_refused(self, *, after: int) -> None:
        """Wait until a request for a backup is refused; the first `after` lines of the lab's log are not
        looked at."""
        until(lambda: any(map(_CONFLICT.match, self.lab.api.log[after:])))

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """There are the same VMs and disks afterwards."""
        before = set(self.lab.core.vms), set(self.lab.core.disks)
        yield
        assert (set(self.lab.core.vms), set(self.lab.core.disks)) == before

    @contextmanager
    def broken(self, name: str, *, used: int = 1, mended: bool = True, **options: Any) -> Iterator[None]:
        """A fault is armed, or happens, if it waits for no moment. At the end it has happened at least `used`
        times, and is `mended`."""
        faults = self.lab.faults
        before = faults.used[name]
        faults.break_(name, **options)
        try:
            yield
        finally:
            if mended:
                faults.mend(name)
        assert faults.used[name] >= before + used, f"{name} has not happened"


@dataclass
class Patient:
    """A VM of the lab that is backed up. `mode` is the --mode of its backups."""

    clinic: Clinic
    vm: LabVm
    mode: str = "auto"
    chained: bool = False
    """Whether the next backup can be incremental, for all that is known."""
    _changes: Iterator[int] = field(default_factory=lambda: count(1))

    @property
    def lab(self) -> Lab:
        return self.clinic.lab

    def write(self) -> None:
        """The guest changes a little of each disk: new data, and what was data is zeros."""
        number = next(self._changes)
        chosen = random.Random(number)  # noqa: S311
        for disk_id, image in self.vm.machine.disks.items():
            places = image.size // MIB
            data = chosen.randbytes(100_000)
            self.vm.machine.write(disk_id, chosen.randrange(places) * MIB + 4096, data)
            self.vm.machine.zero(disk_id, chosen.randrange(places) * MIB, 300 * 1024)

    def records(self) -> dict[str, dict[str, Path]]:
        return self.lab.backup_records(self.vm)

    def broken(self, name: str, **options: Any) -> Any:
        """A fault of this VM's."""
        return self.clinic.broken(name, vm=self.vm.id, **options)

    def run(self, *arguments: object) -> Done:
        name = ["--vm", self.vm.id, "--mode", self.mode]
        return self.clinic.command("backup", *name, "--json", *arguments)

    def backup(self, *arguments: object, clean: bool = True) -> Taken:
        """It succeeds, the point is right, and nothing is left in the engine."""
        before = set(self.records())
        done = self.run(*arguments)
        taken = Taken(done.json(), done.err, len(set(self.records()) - before))
        self.check(taken.id)
        if clean:
            self.clinic.check_clean()
        self.chained = True
        return taken

    def make_chain(self) -> None:
        """There is a point to begin from, and then the guest writes."""
        if not self.chained:
            self.backup()
        self.chained = False
        self.write()

    def full_then_write(self, *arguments: object) -> Taken:
        """The first point of the VM, and then the guest changes something."""
        taken = self.backup(*arguments)
        assert taken.full
        assert not taken.reasons
        self.write()
        return taken

    def check_chain(self) -> None:
        """The guest writes, and the next backup tells just that."""
        self.write()
        assert self.backup().incremental

    def fail(self, *arguments: object, status: int = 1, clean: bool = True) -> str:
        """It fails: there is no new point. Gives what it said last, one line."""
        before = self.points()
        done = self.run(*arguments)
        assert (done.status, done.out) == (status, ""), done.err
        assert self.points() == before
        last = done.err.splitlines()[-1]
        assert last.startswith("vmfs-ingest: ")
        if clean:
            self.clinic.check_clean()
        return last

    def points(self) -> list[str]:
        """Ids of its restore points."""
        with self.clinic.site.open() as repository:
            ids = repository.point_ids()
            return [each for each in ids if repository.load_point(each).manifest.vm.id == self.vm.id]

    def check(self, point_id: str, backup: str | None = None) -> None:
        """The point holds what the lab recorded at that backup: the VM's last. Records are needed once."""
        records = self.records()
        record = records[backup or list(records)[-1]]
        with self.clinic.site.open() as repository:
            check_content(repository, point_id, record)
        for path in record.values():
            path.unlink()

    def check_restored(self, point_id: str, alias: str, disk_id: str) -> None:
        """A disk of the engine holds what the point has of that disk of the patient's."""
        content = self.lab.content(disk_id, self.lab.folder / "restored.raw")
        with self.clinic.site.open() as repository:
            check_content(repository, point_id, {self.vm.disks[alias]: content})

    def attempt(
        self,
        *,
        patience: float = 30.0,
        engine_patience: float = 60.0,
        timeout: float = 60.0,
        progress: Callable[[Any], None] = lambda _: None,
        cache: Path | None = None,
        **options: Any,
    ) -> Outcome:
        """A backup by the library, which can be told to be less patient (seconds). Raises what that does."""
        with (
            self.clinic.site.open(cache) as repository,
            Catalog.open(repository.cache_dir / "catalog.sqlite", repository.id) as catalog,
            connected(self.lab, patience=engine_patience, timeout=timeout) as engine,
        ):
            catalog.sync(repository)
            chosen = Options(mode=self.mode, patience=patience, **options)  # type: ignore[arg-type]
            outcome = back_up_vm(repository, catalog, engine, self.vm.id, chosen, progress=progress)
            catalog.sync(repository)
        return outcome

    def discharge(self) -> None:
        """Its processes end. What the lab recorded of it goes as well, for it takes space."""
        with suppress(Exception):
            self.lab.faults.break_("vm-removed", vm=self.vm.id)
        for record in self.records().values():
            for path in record.values():
                path.unlink(missing_ok=True)


Admit = Callable[..., Patient]
"""As Clinic.admit, and the mode of its backups."""


class Held:
    """Another backup of the patient's VM, as another process makes it, which is held while it reads: until
    `finish`, or the end of the block."""

    def __init__(self, patient: Patient) -> None:
        self._patient = patient
        self._reading, self._go = threading.Event(), threading.Event()
        self._pool = ThreadPoolExecutor(1)

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *_: object) -> None:
        self._go.set()
        self._pool.shutdown()

    def start(self) -> None:
        """Returns when it reads."""
        cache = self._patient.clinic.site.root / "cache2"
        self._outcome = self._pool.submit(self._patient.attempt, cache=cache, progress=self._hold)
        assert self._reading.wait(60)

    def finish(self) -> Outcome:
        """Lets it go, and waits for its end."""
        self._go.set()
        return self._outcome.result()

    def _hold(self, _: object) -> None:
        self._reading.set()
        assert self._go.wait(60)


def check_content(repository: Repository, point_id: str, record: Mapping[str, Path]) -> None:
    """`record` is a file by disk id."""
    disks = repository.load_point(point_id).manifest.disks
    assert {disk.id for disk in disks} == set(record)
    for disk in disks:
        truth = record[disk.id].read_bytes()
        assert disk.size == len(truth)
        kept = repository.open_disk(disk).read(0, disk.size)
        # Not by assert itself, which would show both.
        if kept != truth:
            at = next(at for at, (one, other) in enumerate(zip(kept, truth, strict=True)) if one != other)
            pytest.fail(f"disk {disk.alias} of {point_id} ({disk.mode}) differs at byte {at}")


@contextmanager
def clinic_in(folder: Path, **options: Any) -> Iterator[Clinic]:
    """In `folder`, which is removed by its owner."""
    site = Site(folder / "site")
    site.root.mkdir()
    site.init()
    with running_lab(folder / "lab", **options) as lab:
        yield Clinic(lab, site)


def once(
    monkeypatch: pytest.MonkeyPatch,
    owner: object,
    name: str,
    *,
    before: Callable[[], object] = lambda: None,
    after: Callable[[], object] = lambda: None,
) -> None:
    """The next call of that function, and no later one, has this done before it and after it."""
    function = getattr(owner, name)

    def call(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(owner, name, function)
        before()
        found = function(*arguments, **options)
        after()
        return found

    monkeypatch.setattr(owner, name, call)


def until(condition: Callable[[], bool], *, limit: float = 60.0) -> None:
    """Wait for something that another thread or process does; fails after `limit` seconds."""
    pause = threading.Event()
    for _ in range(int(limit / 0.02)):
        if condition():
            return
        pause.wait(0.02)
    pytest.fail(f"this did not happen in {limit:g} s")
