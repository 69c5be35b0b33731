"""The first chapters: a disk backed up in full and by its changes, mounted, compared."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shlex
from collections.abc import Sequence
from pathlib import Path

import manifest
from qemu import StorageDaemon

from .disk import (
    DISK_SIZE,
    PARTITIONS,
    change,
    fill,
    make_disk,
    mounted,
    mounted_partition,
    scribble,
)
from .stage import Stage, compare, record
from .terminal import DemoError, mebibytes, run, tell, title

VM = "web1"
DISK = "disk"
BITMAP_BLOCK = 64 * 1024
CHUNK = 256 * 1024
"""At worst a single dirty block has its whole chunk read."""


class OneDisk:
    """The stages in their order, in the current folder."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.disk = Path("disk.raw")
        self.recorded: list[dict[int, manifest.Manifest]] = []
        self.deleted: dict[int, Path] = {}

    def run(self) -> None:
        self.make()
        self.back_up_in_full()
        self.back_up_changes()
        points = self.mount()
        self.restore(points)
        self.compare(points)

    def make(self) -> None:
        title("1. A disk: GPT, an ext4 and an XFS partition, full of this machine's own files")
        make_disk(self.disk)
        recorded = {}
        for part in PARTITIONS:
            with mounted_partition(self.disk, part, write=True) as root:
                fill(part, root)
            with mounted_partition(self.disk, part, write=False) as root:
                recorded[part.number] = record(part, root)
        self.recorded.append(recorded)

    def ingest(self, source: str, *options: str) -> None:
        run("vmfs-ingest", "image", self.stage.repository, "--vm", VM, f"{DISK}={source}", *options)

    def back_up_in_full(self) -> None:
        title("2. A repository, and a full backup from the raw file")
        passphrase = Path("passphrase")
        passphrase.write_text(secrets.token_urlsafe() + "\n")
        passphrase.chmod(0o600)
        os.environ["VMFS_PASSPHRASE_FILE"] = str(passphrase.resolve())
        os.environ["VMFS_CACHE_DIR"] = str(Path("cache").resolve())
        tell("$ export VMFS_PASSPHRASE_FILE=$PWD/passphrase VMFS_CACHE_DIR=$PWD/cache")
        run("vmfs", "init", self.stage.repository)
        with self.stage.timed("full backup"):
            self.ingest(str(self.disk), "--checkpoint", "day1")

    def back_up_changes(self) -> None:
        title("3. The disk in use: under a real qemu, which records what is written in a dirty bitmap")
        image = Path("disk.qcow2")
        run("qemu-img", "convert", "-O", "qcow2", self.disk, image)
        self.disk.unlink()
        with StorageDaemon(image, Path("qemu")) as qemu:
            tell("$ " + shlex.join(qemu.command) + " &")
            qemu.add_bitmap("day1")
            tell('QMP: block-dirty-bitmap-add "day1": from here on qemu notes what changes')
            recorded = {}
            for part in PARTITIONS:
                with mounted_partition(qemu.disk, part, write=True) as root:
                    self.deleted[part.number] = change(root, part)
                with mounted_partition(qemu.disk, part, write=False) as root:
                    recorded[part.number] = record(part, root)
            self.recorded.append(recorded)

            title("4. An incremental backup from the running qemu: only what changed is read")
            dirty = qemu.dirty_bytes("day1")
            uri = qemu.freeze("day1", "day2", DISK)
            tell(
                f'QMP: at one instant, the disk frozen, bitmap "day1" closed with {mebibytes(dirty)} '
                'dirty, bitmap "day2" begun. The guest goes on writing; the backup must not see that:'
            )
            for part in PARTITIONS:
                with mounted_partition(qemu.disk, part, write=True) as root:
                    scribble(root)
            with self.stage.timed("incremental backup"):
                self.ingest(uri, "--bitmap", "day1", "--checkpoint", "day2")
            qemu.thaw()
        run("vmfs", "points", self.stage.repository)
        self.check_bytes_read(dirty)

    def check_bytes_read(self, dirty: int) -> None:
        """The second point must have read what was dirty, and not the disk."""
        listed = json.loads(run("vmfs", "points", self.stage.repository, "--json", show=False))
        disks = [point["disks"][0] for point in listed["points"]]
        if len(disks) != 2:
            raise DemoError(f"two restore points were made, and {len(disks)} are listed")
        read = min(disk["bytes_read"] for disk in disks)
        tell(
            f"the disk is {mebibytes(DISK_SIZE)}; {mebibytes(dirty)} were dirty; the incremental read "
            f"{mebibytes(read)} (dirty blocks of 64 KiB rounded out to chunks of 256 KiB)"
        )
        if not 0 < read <= dirty * (CHUNK // BITMAP_BLOCK):
            raise DemoError(f"the incremental read {read} bytes for {dirty} dirty ones")

    def mount(self) -> list[Path]:
        title("5. The repository, mounted")
        self.stage.mount()
        run("ls", "-l", self.stage.mountpoint / VM)
        points = sorted(path for path in (self.stage.mountpoint / VM).iterdir() if not path.is_symlink())
        if len(points) != 2:
            raise DemoError(f"{self.stage.mountpoint / VM}: two restore points expected, {len(points)} found")
        run("ls", "-ls", points[1] / "disks", points[1] / "volumes")
        return points

    def restore(self, points: Sequence[Path]) -> None:
        title("6. Deleted files, copied out of the first restore point")
        for part in PARTITIONS:
            deleted = self.deleted[part.number]
            volume = points[0] / "volumes" / f"{DISK}-p{part.number}.raw"
            with mounted(volume, part, Path("old"), part.clone_options) as root:
                rescued = Path(f"rescued-{part.number}-{deleted.name}")
                run("cp", "--preserve", root / deleted, rescued)
                run("sha256sum", rescued)
                before = self.recorded[0][part.number][str(deleted)]
                if manifest.digest(rescued) != before.content:
                    raise DemoError(f"{deleted}: its content is not what it was")

    def compare(self, points: Sequence[Path]) -> None:
        title("7. Every file of both restore points, compared with what was recorded at that time")
        wrong = 0
        with (
            self.stage.timed("reading and comparing every file of both points"),
            contextlib.ExitStack() as mounts,
        ):
            roots = [
                [
                    mounts.enter_context(
                        mounted(
                            point / "volumes" / f"{DISK}-p{part.number}.raw",
                            part,
                            Path(f"day{day}-p{part.number}"),
                            part.clone_options,
                        )
                    )
                    for part in PARTITIONS
                ]
                for day, point in enumerate(points, 1)
            ]
            for day, (recorded, day_roots) in enumerate(zip(self.recorded, roots, strict=True), 1):
                for part, root in zip(PARTITIONS, day_roots, strict=True):
                    wrong += compare(f"day {day}, {part.file_system}", recorded[part.number], root)
        if wrong:
            raise DemoError(f"{wrong} files are not as they were")
