"""The demonstration behind tools/demo: a disk backed up in full and by its changes, mounted, compared."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import copying
import manifest
from qemu import QemuError, StorageDaemon

MIB = 1 << 20
SECTOR = 512
VM = "web1"
DISK = "disk"
FREE_SPACE_NEEDED = 3 << 30
RELEASE_SECONDS = 30
BITMAP_BLOCK = 64 * 1024
CHUNK = 256 * 1024
"""At worst a single dirty block has its whole chunk read."""


class DemoError(Exception):
    """The demonstration failed. One line for the user."""


class Partition(NamedTuple):
    """A partition of the demo's disk. Bytes."""

    number: int
    start: int
    length: int
    file_system: str
    sources: tuple[str, ...]
    """Where its files are copied from."""
    clone_options: str
    """Mount options for a restore point's copy of the file system, in a file."""


PARTITIONS = (
    Partition(1, 1 * MIB, 480 * MIB, "ext4", ("/usr/lib", "/usr/libexec"), "ro,loop"),
    # XFS refuses two file systems with one UUID, and the same disk at two points in time is just that.
    Partition(2, 481 * MIB, 542 * MIB, "xfs", ("/usr/share", "/usr/bin", "/usr/sbin"), "ro,loop,nouuid"),
)
DISK_SIZE = 1024 * MIB
FILES_PER_PARTITION = 280 * MIB


# What the reader sees.


def title(text: str) -> None:
    sys.stdout.write(f"\n\033[1m== {text}\033[0m\n" if sys.stdout.isatty() else f"\n== {text}\n")
    sys.stdout.flush()


def tell(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def run(*argv: str | Path, quiet: bool = False, show: bool = True) -> str:
    """Run a command as a reader would type it, and show what it prints. Raises DemoError when it fails."""
    arguments = [str(argument) for argument in argv]
    if show:
        tell("$ " + shlex.join(arguments))
    result = subprocess.run(
        arguments,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        raise DemoError(f"{arguments[0]}: exit status {result.returncode}: {result.stdout.strip()}")
    if not quiet and show and result.stdout.strip():
        tell(result.stdout.rstrip())
    return result.stdout


def mebibytes(count: int) -> str:
    return f"{count / MIB:,.1f} MiB"


# The disk.


def make_disk(disk: Path) -> None:
    """A GPT disk with empty file systems."""
    run("truncate", "-s", str(DISK_SIZE), disk)
    table = "label: gpt\n" + "".join(
        f"start={part.start // SECTOR}, size={part.length // SECTOR}, type=linux\n" for part in PARTITIONS
    )
    tell(f"$ sfdisk {disk} <<< {shlex.quote(table)}")
    subprocess.run(["sfdisk", "--quiet", str(disk)], input=table, text=True, check=True)
    for part in PARTITIONS:
        with loop_device(disk, part) as device:
            run(f"mkfs.{part.file_system}", "-q", device)


@contextlib.contextmanager
def loop_device(disk: Path, part: Partition, *options: str) -> Iterator[str]:
    """A partition of a disk as a block device. Not by `mount -o loop`, which could take up the read-only
    device of the mount before, if the kernel has not let go of it yet."""
    place = ("--offset", str(part.start), "--sizelimit", str(part.length))
    device = run("losetup", "--find", "--show", *options, *place, disk).strip()
    try:
        yield device
    finally:
        run("losetup", "--detach", device)
        wait_for_release(disk)


def wait_for_release(file: Path) -> None:
    """The kernel lets go of a loop device when nobody has it open any more, and only then is all of it
    written: whoever looks at every device or has a mount namespace of his own can put that off."""
    end = time.monotonic() + RELEASE_SECONDS
    while run("losetup", "--noheadings", "--associated", file, show=False).strip():
        if time.monotonic() > end:
            raise DemoError(f"{file}: its loop device is still in use after {RELEASE_SECONDS} seconds")
        time.sleep(0.05)


@contextlib.contextmanager
def mounted(device: str | Path, part: Partition, mountpoint: Path, options: str) -> Iterator[Path]:
    """A file system, by the kernel."""
    mountpoint.mkdir(parents=True, exist_ok=True)
    run("mount", "-t", part.file_system, "-o", options, device, mountpoint)
    try:
        yield mountpoint
    finally:
        run("umount", mountpoint)
        if "loop" in options.split(","):
            wait_for_release(Path(device))


@contextlib.contextmanager
def mounted_partition(disk: Path, part: Partition, *, write: bool) -> Iterator[Path]:
    """A file system of a whole disk."""
    with (
        loop_device(disk, part, *(() if write else ("--read-only",))) as device,
        mounted(device, part, Path(f"p{part.number}"), "rw" if write else "ro") as root,
    ):
        yield root


def fill(part: Partition, root: Path) -> None:
    """Copy files of this machine, the same ones every time, and make some of the awkward kinds."""
    chosen = list(choose(part.sources, FILES_PER_PARTITION))
    tell(f"copying {len(chosen):,} files and links from {', '.join(part.sources)}")
    if not copying.copy_files(chosen, root):
        raise DemoError("copying files failed")
    odd = root / "odd"
    odd.mkdir()
    (odd / "empty").touch()
    (odd / ("long name " * 20).strip()).write_text("a file with a long name\n")
    (odd / "naïve 名前 \n newline").write_text("a file with an awkward name\n")
    os.link(odd / "empty", odd / "hard link")
    (odd / "dangling").symlink_to("nowhere/at/all")
    with (odd / "sparse").open("wb") as file:
        file.truncate(50 * MIB)
        file.seek(20 * MIB)
        file.write(b"an island")
    os.chown(odd / "empty", 1234, 4321)
    (odd / "empty").chmod(0o6711)


def choose(sources: Sequence[str], budget: int) -> Iterator[str]:
    """Files below `sources`, relative to /, whose contents fit in `budget` bytes."""
    for source in sources:
        for folder, folders, names in os.walk(source):
            folders.sort()
            for name in sorted(names):
                path = os.path.join(folder, name)
                if os.path.islink(path):
                    yield path.lstrip("/")
                elif os.path.isfile(path) and (size := os.path.getsize(path)) <= min(budget, 16 * MIB):
                    # What a file takes on disk is more than what is in it.
                    budget -= size + 4096
                    yield path.lstrip("/")
            if budget < 64 * 1024:
                return


def change(root: Path, part: Partition) -> Path:
    """What a day does to a disk. Gives a file that is deleted, relative to `root`."""
    order = random.Random(part.number)  # noqa: S311 - the same choice every time is what is wanted
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    sizes = {path: path.stat().st_size for path in files}
    large = sorted(files, key=lambda path: (-sizes[path], str(path)))
    deleted = large[3]
    small = [path for path in files if path not in large[:20] and "odd" not in path.parts]
    order.shuffle(small)
    deletions, appended, moved = small[:40], small[40:60], small[60:70]
    for path in (deleted, *deletions):
        path.unlink()
    for path in appended:
        with path.open("ab") as file:
            file.write(b"appended\n" * 100)
    with large[0].open("r+b") as file:  # in place, in the middle
        file.seek(sizes[large[0]] // 2)
        file.write(order.randbytes(300_000))
    with large[1].open("r+b") as file:  # data becomes zeros: that must come back as zeros
        file.write(bytes(512 * 1024))
    os.truncate(large[2], sizes[large[2]] // 3)
    new = root / "new"
    new.mkdir()
    for number in range(20):
        (new / f"report-{number}.bin").write_bytes(order.randbytes(100_000))
    for path in moved:
        path.rename(new / f"moved-{path.name}")
    (root / "odd" / "empty").chmod(0o600)
    (root / "odd" / "dangling").unlink()
    (root / "odd" / "dangling").symlink_to("somewhere/else")
    tell(
        f"{part.file_system}: {len(deletions) + 1} files deleted, {len(appended)} appended to, 3 large ones "
        f"changed in the middle, {len(moved)} moved, 20 made"
    )
    return deleted.relative_to(root)


def scribble(root: Path) -> None:
    """What the guest does while its backup is taken: nothing of it may be in the restore point."""
    (root / "too late.bin").write_bytes(os.urandom(5 * MIB))
    for number in range(0, 20, 2):
        (root / "new" / f"report-{number}.bin").write_bytes(b"overwritten during the backup" * 3000)
    (root / "new" / "report-1.bin").unlink()


# The story.


class Demo:
    """The stages in their order, in the current folder. `stack` undoes what each leaves behind."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.stack = stack
        self.disk = Path("disk.raw")
        self.repository = Path("repo")
        self.mountpoint = Path("mnt")
        self.times: list[tuple[str, float]] = []
        self.recorded: list[dict[int, manifest.Manifest]] = []
        self.deleted: dict[int, Path] = {}

    @contextlib.contextmanager
    def timed(self, what: str) -> Iterator[None]:
        begin = time.monotonic()
        yield
        self.times.append((what, time.monotonic() - begin))

    def make(self) -> None:
        title("1. A disk: GPT, an ext4 and an XFS partition, full of this machine's own files")
        make_disk(self.disk)
        recorded = {}
        for part in PARTITIONS:
            with mounted_partition(self.disk, part, write=True) as root:
                fill(part, root)
            with mounted_partition(self.disk, part, write=False) as root:
                recorded[part.number] = self.record(part, root)
        self.recorded.append(recorded)

    def record(self, part: Partition, root: Path) -> manifest.Manifest:
        found = manifest.record(root)
        tell(
            f"recorded {part.file_system}: {manifest.count_files(found):,} files, "
            f"{mebibytes(manifest.content_bytes(found))}: content, mode, owner, time and links of each"
        )
        return found

    def ingest(self, source: str, *options: str) -> None:
        run("vmfs-ingest", "image", self.repository, "--vm", VM, f"{DISK}={source}", *options)

    def back_up_in_full(self) -> None:
        title("2. A repository, and a full backup from the raw file")
        passphrase = Path("passphrase")
        passphrase.write_text(secrets.token_urlsafe() + "\n")
        passphrase.chmod(0o600)
        os.environ["VMFS_PASSPHRASE_FILE"] = str(passphrase.resolve())
        os.environ["VMFS_CACHE_DIR"] = str(Path("cache").resolve())
        tell("$ export VMFS_PASSPHRASE_FILE=$PWD/passphrase VMFS_CACHE_DIR=$PWD/cache")
        run("vmfs", "init", self.repository)
        with self.timed("full backup"):
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
                    recorded[part.number] = self.record(part, root)
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
            with self.timed("incremental backup"):
                self.ingest(uri, "--bitmap", "day1", "--checkpoint", "day2")
            qemu.thaw()
        run("vmfs", "points", self.repository)
        self.check_bytes_read(dirty)

    def check_bytes_read(self, dirty: int) -> None:
        """The second point must have read what was dirty, and not the disk."""
        listed = json.loads(run("vmfs", "points", self.repository, "--json", show=False))
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
        self.mountpoint.mkdir()
        with self.timed("mount"):
            run("vmfs", "mount", self.repository, self.mountpoint)
            self.stack.callback(self.unmount)
        run("ls", "-l", self.mountpoint / VM)
        points = sorted(path for path in (self.mountpoint / VM).iterdir() if not path.is_symlink())
        if len(points) != 2:
            raise DemoError(f"{self.mountpoint / VM}: two restore points expected, {len(points)} found")
        run("ls", "-ls", points[1] / "disks", points[1] / "volumes")
        return points

    def unmount(self) -> None:
        if os.path.ismount(self.mountpoint):
            run("vmfs", "umount", self.mountpoint)

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
        with self.timed("reading and comparing every file of both points"), contextlib.ExitStack() as mounts:
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
                    found = manifest.record(root)
                    lines = manifest.differences(recorded[part.number], found)
                    wrong += len(lines)
                    tell(
                        f"day {day}, {part.file_system}: {manifest.count_files(found):,} files, "
                        f"{mebibytes(manifest.content_bytes(found))}: "
                        + ("all as they were" if not lines else f"{len(lines)} DIFFERENT")
                    )
                    for line in lines[:10]:
                        tell(f"  {line}")
        if wrong:
            raise DemoError(f"{wrong} files are not as they were")

    def summary(self) -> None:
        title("Summary")
        run("vmfs", "stats", self.repository)
        for what, seconds in self.times:
            tell(f"{seconds:8.1f} s  {what}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools/demo", description="Back up a disk, mount the backup.")
    parser.add_argument("--keep", action="store_true", help="leave the disks and the repository in place")
    arguments = parser.parse_args()
    # A demo that is stopped cleans up as one that ends.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: sys.exit(128 + received))
    begin = time.monotonic()
    folder = os.environ.get("TMPDIR", "/var/tmp")  # noqa: S108 - the folder in it is made safely
    if shutil.disk_usage(folder).free < FREE_SPACE_NEEDED:
        tell(f"demo: {folder} has less than 3 GiB free; set TMPDIR to a folder that has more")
        return 1
    work = Path(tempfile.mkdtemp(prefix="vmfs-demo.", dir=folder))
    try:
        with contextlib.ExitStack() as stack:
            tell(f"$ cd {work}")
            os.chdir(work)
            stack.callback(os.chdir, "/")
            demo = Demo(stack)
            demo.make()
            demo.back_up_in_full()
            demo.back_up_changes()
            points = demo.mount()
            demo.restore(points)
            demo.compare(points)
            demo.summary()
    except (DemoError, QemuError, subprocess.CalledProcessError) as error:
        tell(f"\ndemo FAILED: {error}")
        return 1
    except KeyboardInterrupt:
        tell("\ndemo: stopped")
        return 128 + signal.SIGINT
    finally:
        if arguments.keep:
            tell(f"left in place: {work}")
        elif str(work) in Path("/proc/self/mounts").read_text():
            tell(f"demo: something in {work} is still mounted, so it is left in place")
        else:
            shutil.rmtree(work)
    tell(f"\nEvery file is as it was, in {time.monotonic() - begin:.0f} seconds.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
