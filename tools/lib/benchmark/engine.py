"""The engine section: backup and restore of a VM of the lab, beside the plain imageio client library.

All of them move the same disk over TLS, with four connections, through the same imageio daemon, in turns.
What is compared is the time that the data take: for vmfs that from the moment the engine has opened the image
transfer to the one at which vmfs asks for its end, so with all that the repository takes up to the commit;
for the library that inside its call. What else a command does (deriving a key from the passphrase, the
engine's phases) is in the time of the whole command.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from lab.lab import DiskRecipe, Lab, LabVm

from ingest.engine import transfers
from ingest.engine.backups import running_backup
from ingest.engine.session import Engine
from ingest.engine.settings import EngineSettings
from ingest.engine.vms import find_vm

from .contenders import Vmfs
from .process import BenchError, Cost, output, run, say
from .results import Results

VM = "bench"
LIBRARY = "imageio client"
FLOOR = "bare loop"
_SECONDS = 60.0


@dataclass
class EngineSection:
    """`image` is the raw disk of the VM; lab, repository and files are made in `work`."""

    image: Path
    work: Path
    vmfs: Vmfs
    rounds: int
    results: Results
    _data: int = field(default=0, init=False)
    """Bytes of data on the disk, as imageio's extents tell."""

    def run(self) -> None:
        """Raises BenchError."""
        self.work.mkdir()
        with Lab(self.work / "lab", hosts=1) as lab:
            say("engine: filling the disk of a VM")
            size = self.image.stat().st_size
            vm = lab.create_vm(VM, [DiskRecipe("bench_disk", size, source=self.image)])
            _keep_no_records(vm)
            settings = EngineSettings(
                name="lab",
                url=lab.url,
                username=lab.username,
                password=lab.password,
                ca_file=str(lab.ca_file),
            )
            with Engine.connect(settings) as engine:
                turns = _Turns(self, lab, vm, engine)
                for number in range(self.rounds):
                    turns.reads(number)
                    turns.writes(number)
            if lab.problems or lab.leftovers():
                raise BenchError(f"engine: {[*lab.problems, *lab.leftovers()]}")

    def add(self, measure: str, name: str, seconds: float) -> None:
        self.results.add(measure, name, self._data / seconds)

    def take_data(self, moved: int) -> None:
        """How much there is to move, known from the first who has moved it."""
        if not self._data:
            self._data = moved
            self.results.facts["disk of the VM"] = (
                f"{self.image.stat().st_size / (1 << 30):.1f} GiB, {moved / (1 << 30):.2f} GiB of it data"
            )


@dataclass
class _Turns:
    """One of each, in another order each round."""

    section: EngineSection
    lab: Lab
    vm: LabVm
    engine: Engine

    @property
    def _login(self) -> list[str | Path]:
        lab = self.lab
        return [
            *("--engine", lab.url, "--username", lab.username),
            *("--password-file", lab.password_file, "--ca-file", lab.ca_file),
        ]

    def reads(self, number: int) -> None:
        # The first counts the data.
        todo = [self._floor_read, self._download, self._backup]
        for read in (*todo[number % 3 :], *todo[: number % 3]):
            os.sync()
            read(number)

    def writes(self, number: int) -> None:
        todo = [self._floor_write, self._upload, self._restore]
        for write in (*todo[number % 3 :], *todo[: number % 3]):
            os.sync()
            write(number)

    # vmfs.

    def _backup(self, _: int) -> None:
        vmfs = self.section.vmfs
        vmfs.create()
        os.sync()
        with _Watch(self.lab, "download") as watch:
            cost, answer = self._command("backup", "--vm", VM, "--full")
        if answer["disks"][0]["mode"] != "full":
            raise BenchError("engine: the backup was not full")
        self._take("engine backup", watch, cost)

    def _restore(self, number: int) -> None:
        with _Watch(self.lab, "upload") as watch:
            cost, answer = self._command("restore", f"{VM}@latest", "--as", "restored")
        self._take("engine restore", watch, cost)
        restored = self.lab.vm(answer["vm"]["name"])
        self._check(next(iter(restored.disks.values())), number)
        self._remove(restored)

    def _command(self, command: str, *arguments: str) -> tuple[Cost, dict[str, Any]]:
        vmfs = self.section.vmfs
        told = vmfs.folder / "engine.json"
        line = [vmfs.ingest_command, command, vmfs.repository, *arguments, *self._login, "--json"]
        cost = run([*line, "--connections", "4"], vmfs.env, vmfs.log, told)
        return cost, json.loads(told.read_text())

    def _take(self, measure: str, watch: _Watch, cost: Cost) -> None:
        self.section.add(measure, self.section.vmfs.name, watch.seconds)
        self.section.results.add_cost(f"{measure}, command", self.section.vmfs.name, cost)

    # The library.

    def _download(self, _: int) -> None:
        self._read("download", LIBRARY)

    def _floor_read(self, _: int) -> None:
        self._read("read", FLOOR)

    def _upload(self, number: int) -> None:
        self._write("upload", LIBRARY, number)

    def _floor_write(self, number: int) -> None:
        self._write("write", FLOOR, number)

    def _read(self, action: str, name: str) -> None:
        file = self.section.work / "downloaded.raw"
        disk_id = next(iter(self.vm.disks.values()))
        found = find_vm(self.engine, VM)
        with (
            running_backup(self.engine, found, [disk_id], description="benchmark") as backup,
            transfers.download(
                self.engine, disk_id=disk_id, backup_id=backup.id, host_id=backup.host_id
            ) as transfer,
        ):
            cost, moved = self._library(action, transfer.url, file)
        self.section.take_data(moved)
        self.section.add("engine backup", name, cost)
        file.unlink(missing_ok=True)

    def _write(self, action: str, name: str, number: int) -> None:
        made = self.lab.create_vm("uploaded", [DiskRecipe("uploaded_disk", self._size)], up=False)
        disk_id = next(iter(made.disks.values()))
        with transfers.upload(self.engine, disk_id=disk_id) as transfer:
            cost, _ = self._library(action, transfer.url, self.section.image)
        self.section.add("engine restore", name, cost)
        if action == "upload":
            self._check(disk_id, number)
        self._remove(made)

    def _library(self, action: str, url: str, file: Path) -> tuple[float, int]:
        """Seconds and bytes."""
        told = self.section.work / "library.json"
        line: list[str | Path] = [sys.executable, "-m", "benchmark.library"]
        run([*line, action, url, self.lab.ca_file, file], log=self.section.work / "library.log", answer=told)
        answer = json.loads(told.read_text())
        return answer["seconds"], answer["bytes"]

    # Around them.

    @property
    def _size(self) -> int:
        return self.section.image.stat().st_size

    def _check(self, disk_id: str, number: int) -> None:
        """A fast upload of wrong bytes would be no use; once is enough."""
        if number:
            return
        content = self.lab.content(disk_id, self.section.work / "content.raw")
        output(["cmp", content, self.section.image])
        content.unlink()

    def _remove(self, vm: LabVm) -> None:
        service = self.engine.services().vms_service().vm_service(vm.id)
        self.engine.ask(f"VM {vm.name}", lambda: service.remove(), repeat=False)
        if not self.lab.core.wait(lambda: vm.id not in self.lab.core.vms, _SECONDS):
            raise BenchError(f"engine: VM {vm.name} is not removed")


class _Watch:
    """How long the engine's next image transfer is open for data, in seconds."""

    def __init__(self, lab: Lab, direction: str) -> None:
        self._core = lab.core
        self._direction = direction
        self._known = set(lab.core.transfers)
        self._ended = False
        self._thread = threading.Thread(target=self._look)
        self.seconds = 0.0

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._core.lock:
            self._ended = True
            self._core.changed.notify_all()
        self._thread.join()

    def _look(self) -> None:
        if self._wait(self._open):
            begin = monotonic()
            self._wait(lambda: not self._open())
            self.seconds = monotonic() - begin

    def _wait(self, condition: Callable[[], bool]) -> bool:
        self._core.wait(lambda: self._ended or condition(), 3600)
        return not self._ended

    def _open(self) -> bool:
        return any(
            each.direction == self._direction and each.phase == "transferring"
            for key, each in self._core.transfers.items()
            if key not in self._known
        )


def _keep_no_records(vm: LabVm) -> None:
    """For its tests the lab copies what the disks hold at the instant of each backup; gigabytes here, whose
    write-back would share the disk with what is measured."""

    def record(disk_id: str, target: Path) -> None:
        """Nothing."""

    vm.machine.record = record  # type: ignore[method-assign]
