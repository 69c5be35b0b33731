"""The engine's chapters: a VM backed up while it runs, by its changes, lost, and restored."""

from __future__ import annotations

import hashlib
import json
import os
import ssl
import time
from pathlib import Path
from typing import Any, NamedTuple

import manifest
from lab import guest

from ingest.engine.session import Engine
from ingest.engine.settings import EngineSettings
from ingest.engine.vms import find_vm, get_vm, list_vms

from .disk import Partition, mounted, mounted_partition
from .stage import Stage, compare, record
from .terminal import DemoError, mebibytes, run, tell, title

VM = "web"
DISK = "web_system"
LAB_COMMAND = Path(__file__).parents[2] / "lab"
PARTITIONS = tuple(
    Partition(
        number,
        part.start,
        part.length,
        part.file_system,
        (),
        "ro,loop,nouuid" if part.file_system == "xfs" else "ro,loop",
    )
    for number, part in enumerate(guest.PARTITIONS, 1)
)
APPEAR_SECONDS = 60


class Recorded(NamedTuple):
    """A disk as it was, and what was in its file systems, by partition."""

    disk: Path
    files: dict[int, manifest.Manifest]


class EngineVm:
    """The stages in their order, in the current folder; the repository is there, and mounted."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.folder = Path("lab").absolute()
        self.facts: dict[str, Any] = {}
        self.recorded: list[Recorded] = []

    def run(self) -> None:
        self.start()
        self.back_up()
        self.compare()
        self.lose()
        self.restore()
        run(LAB_COMMAND, "down")

    def start(self) -> None:
        title("9. An oVirt engine: its API is simulated; qemu, dirty bitmaps and imageio over TLS are real")
        os.environ["VMFS_LAB_DIR"] = str(self.folder)
        os.environ["VMFS_CONFIG"] = str(Path("vmfs.toml").absolute())
        tell("$ export VMFS_LAB_DIR=$PWD/lab VMFS_CONFIG=$PWD/vmfs.toml")
        self.stage.stack.callback(self.stop)
        with self.stage.timed("an engine and its VMs started"):
            run(LAB_COMMAND, "up")
        self.facts = json.loads(run(LAB_COMMAND, "status", "--json", show=False))["facts"]
        certificate = ssl.PEM_cert_to_DER_cert(Path(self.facts["ca_file"]).read_text())
        fingerprint = hashlib.sha256(certificate).digest().hex(":").upper()
        tell(f"on the engine's machine, its CA has the fingerprint {fingerprint}")
        login = ("--username", self.facts["username"], "--password-file", self.facts["password_file"])
        run(
            *("vmfs-ingest", "engine", "trust", self.facts["url"], "--name", "lab"),
            *(*login, "--fingerprint", fingerprint),
        )
        run("vmfs-ingest", "vms")

    def stop(self) -> None:
        """Whatever has happened; that must not be hidden."""
        if self.folder.exists():
            try:
                run(LAB_COMMAND, "down")
            except DemoError as error:
                tell(str(error))

    def back_up(self) -> None:
        title("10. The VM, which runs, backed up in full and, when its guest has worked, by its changes")
        with self.stage.timed("full backup of a running VM"):
            self.take()
        run(LAB_COMMAND, "write", VM)
        with self.stage.timed("incremental backup of a running VM"):
            self.take("--audit", "10")
        run("vmfs", "points", self.stage.repository, "--vm", VM)
        self.check_modes()

    def take(self, *options: str) -> None:
        run("vmfs-ingest", "backup", self.stage.repository, "--engine", "lab", "--vm", VM, *options)
        self.recorded.append(self.record())

    def record(self) -> Recorded:
        """What the lab itself has kept of the disk at the instant of the last backup."""
        disks = sorted(self.folder.glob("records/*/*.raw"), key=lambda path: path.stat().st_mtime_ns)
        return Recorded(disks[-1], files_of(disks[-1]))

    def check_modes(self) -> None:
        listed = json.loads(run("vmfs", "points", self.stage.repository, "--vm", VM, "--json", show=False))
        disks = [point["disks"][0] for point in listed["points"]]
        modes = [disk["mode"] for disk in disks]
        if modes != ["full", "incremental"]:
            raise DemoError(f"a full and an incremental backup were to be made, and are {modes}")
        if disks[1]["bytes_read"] > disks[0]["bytes_read"] // 2:
            raise DemoError(f"the incremental read {mebibytes(disks[1]['bytes_read'])}")

    def compare(self) -> None:
        title("11. Its files in the mount, compared with what the lab kept of its disk at those instants")
        points = self.wait_for_points(len(self.recorded))
        run("ls", "-ls", points[-1], points[-1] / "disks", points[-1] / "volumes")
        wrong = 0
        for number, (point, recorded) in enumerate(zip(points, self.recorded, strict=True), 1):
            for part in PARTITIONS:
                volume = point / "volumes" / f"{DISK}-p{part.number}.raw"
                mountpoint = Path(f"{VM}{number}-p{part.number}")
                with mounted(volume, part, mountpoint, part.clone_options) as root:
                    what = f"backup {number}, {part.file_system}"
                    wrong += compare(what, recorded.files[part.number], root)
        if wrong:
            raise DemoError(f"{wrong} files are not as they were")

    def wait_for_points(self, count: int) -> list[Path]:
        """The mount shows new points by itself, soon."""
        end = time.monotonic() + APPEAR_SECONDS
        folder = self.stage.mountpoint / VM
        while True:
            found = (
                sorted(path for path in folder.iterdir() if not path.is_symlink()) if folder.is_dir() else []
            )
            if len(found) == count:
                return found
            if time.monotonic() > end:
                raise DemoError(f"{folder}: {count} restore points expected, {len(found)} found")
            time.sleep(0.1)

    def lose(self) -> None:
        title("12. The VM is lost, with its disk, and restored")
        with Engine.connect(self.settings()) as engine:
            vm = find_vm(engine, VM)
            service = engine.services().vms_service().vm_service(vm.id)
            engine.ask("stopping", service.stop, repeat=False)
            engine.wait("stopping", lambda: get_vm(engine, vm.id).status, lambda now: now == "down", limit=60)
            engine.ask("removing", service.remove, repeat=False)
            engine.wait("removing", lambda: list_vms(engine), lambda vms: vm not in vms, limit=60)
        tell("the engine: VM stopped and removed")
        run("vmfs-ingest", "vms")

    def settings(self) -> EngineSettings:
        return EngineSettings(
            name="lab",
            url=self.facts["url"],
            username=self.facts["username"],
            password=Path(self.facts["password_file"]).read_text().strip(),
            ca_file=self.facts["ca_file"],
        )

    def restore(self) -> None:
        with self.stage.timed("restore of the VM"):
            run("vmfs-ingest", "restore", self.stage.repository, f"{VM}@latest", "--engine", "lab", "--start")
        run("vmfs-ingest", "vms")
        disk_id = json.loads(run("vmfs-ingest", "vms", "--vm", VM, "--json", show=False))["disks"][0]["id"]
        (image,) = self.folder.glob(f"storage/*/{disk_id}/*")
        restored = Path("restored.raw")
        # The restored VM has it open.
        run("qemu-img", "convert", "-U", "-O", "raw", image, restored)
        run("cmp", restored, self.recorded[-1].disk)
        wrong = 0
        for part in PARTITIONS:
            with mounted_partition(restored, part, write=False) as root:
                what = f"restored, {part.file_system}"
                wrong += compare(what, self.recorded[-1].files[part.number], root)
        if wrong:
            raise DemoError(f"{wrong} files are not as they were")
        status = json.loads(run(LAB_COMMAND, "status", "--json", show=False))
        if status["leftovers"] or status["problems"]:
            raise DemoError(f"the engine is left with {status['leftovers']}, {status['problems']}")
        tell("the engine has no backup, transfer, ticket, locked disk or snapshot left of all this")


def files_of(disk: Path) -> dict[int, manifest.Manifest]:
    found = {}
    for part in PARTITIONS:
        with mounted_partition(disk, part, write=False) as root:
            found[part.number] = record(part, root)
    return found
