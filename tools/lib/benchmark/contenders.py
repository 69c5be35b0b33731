"""Those who are measured. Each backs up one disk image to its own repository, and mounts it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from .process import BenchError, Cost, Mount, output, run, tree_size

PASSPHRASE = "only a benchmark"  # noqa: S105 - it guards copies of this machine's own programs, for minutes


class Contender(Protocol):
    """A backup program with one repository in one folder."""

    name: str
    repository: Path

    def version(self) -> str: ...

    def create(self) -> None:
        """Make the repository anew, empty."""

    def ingest(self, image: Path) -> Cost:
        """Back up the image, reading all of it if the program does not know better."""

    def size(self) -> int:
        """Bytes the repository takes."""

    def mount(self, image: Path) -> tuple[Mount, Path]:
        """Mount the repository. Gives the mount, and where in it the last backup of the image is."""


class _Program:
    """What the contenders share: a folder with the repository, the cache and the log."""

    name = ""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repository = folder / "repository"
        self.log = folder / "log"
        self._runs = 0

    def create(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self._runs = 0
        self._initialise()

    def _initialise(self) -> None:
        raise NotImplementedError

    def size(self) -> int:
        """Bytes the repository takes."""
        return tree_size(self.repository)


class Vmfs(_Program):
    """This project, by its own commands."""

    name = "vmfs"

    def __init__(self, folder: Path, binaries: Path) -> None:
        super().__init__(folder)
        self._vmfs = binaries / "vmfs"
        self.ingest_command = binaries / "vmfs-ingest"
        self._passphrase = folder / "passphrase"
        self.env = {"VMFS_PASSPHRASE_FILE": str(self._passphrase), "VMFS_CACHE_DIR": str(folder / "cache")}

    def version(self) -> str:
        return output([self._vmfs, "--version"]).strip()

    def _initialise(self) -> None:
        self._passphrase.write_text(PASSPHRASE + "\n")
        self._passphrase.chmod(0o600)
        run([self._vmfs, "init", self.repository], self.env, self.log)

    def ingest(self, image: Path) -> Cost:
        cost, _ = self.ingest_disk(str(image), "--checkpoint", "0")
        return cost

    def ingest_disk(self, source: str, *options: str, vm: str = "bench") -> tuple[Cost, dict[str, Any]]:
        """Back up a disk with more of the command's options. Gives also what it tells of the disk."""
        arguments = ["--vm", vm, f"disk={source}", "--json", *options]
        answer = self.folder / "answer.json"
        cost = run([self.ingest_command, "image", self.repository, *arguments], self.env, self.log, answer)
        disk: dict[str, Any] = json.loads(answer.read_text())["disks"][0]
        return cost, disk

    def points(self) -> Any:
        """What `vmfs points --json` tells."""
        return json.loads(output([self._vmfs, "points", self.repository, "--json"], self.env))

    def mount(self, image: Path) -> tuple[Mount, Path]:
        mountpoint = self.folder / "mnt"
        command: list[str | Path] = [self._vmfs, "mount", "--foreground", self.repository, mountpoint]
        mount = Mount(command, mountpoint, self.env, self.log)
        return mount, mountpoint / "bench" / "latest" / "disks" / "disk.raw"


class Restic(_Program):
    """restic: always encrypted; the compression it has by default (zstd)."""

    name = "restic"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._env = {"RESTIC_PASSWORD": PASSPHRASE, "RESTIC_CACHE_DIR": str(folder / "cache")}

    def version(self) -> str:
        return output(["restic", "version"]).split(" compiled")[0]

    def _initialise(self) -> None:
        run(["restic", "-r", self.repository, "init"], self._env, self.log)

    def ingest(self, image: Path) -> Cost:
        return run(["restic", "-r", self.repository, "-q", "backup", image], self._env, self.log)

    def mount(self, image: Path) -> tuple[Mount, Path]:
        mountpoint = self.folder / "mnt"
        mount = Mount(["restic", "-r", self.repository, "mount", mountpoint], mountpoint, self._env, self.log)
        return mount, mountpoint / "snapshots" / "latest" / str(image).lstrip("/")


class Borg(_Program):
    """borg: repokey-blake2 and lz4, and otherwise what it does by default."""

    name = "borg"

    def __init__(self, folder: Path, options: Sequence[str] = ()) -> None:
        super().__init__(folder)
        self._options = list(options)
        self._env = {
            "BORG_PASSPHRASE": PASSPHRASE,
            "BORG_BASE_DIR": str(folder / "base"),
            "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
        }

    def version(self) -> str:
        return output(["borg", "--version"]).strip()

    def _initialise(self) -> None:
        run(["borg", "init", "--encryption", "repokey-blake2", self.repository], self._env, self.log)

    def ingest(self, image: Path) -> Cost:
        self._runs += 1
        archive = f"{self.repository}::point{self._runs}"
        command = ["borg", "create", "--compression", "lz4", *self._options, archive, str(image)]
        return run(command, self._env, self.log)

    def mount(self, image: Path) -> tuple[Mount, Path]:
        mountpoint = self.folder / "mnt"
        archive = f"{self.repository}::point{self._runs}"
        mount = Mount(["borg", "mount", "-f", archive, mountpoint], mountpoint, self._env, self.log)
        return mount, mountpoint / str(image).lstrip("/")

    def mount_all(self) -> Mount:
        """Every archive, each a folder."""
        mountpoint = self.folder / "mnt"
        return Mount(["borg", "mount", "-f", self.repository, mountpoint], mountpoint, self._env, self.log)


class Constant:
    """Not a backup program: the mount that answers each read with the same bytes."""

    name = "constant bytes"

    def __init__(self, folder: Path, python: Path) -> None:
        self.folder = folder
        self._python = python

    def mount(self, image: Path) -> tuple[Mount, Path]:
        self.folder.mkdir(parents=True, exist_ok=True)
        mountpoint = self.folder / "mnt"
        script = Path(__file__).with_name("constfs.py")
        command: list[str | Path] = [self._python, script, mountpoint, str(image.stat().st_size)]
        return Mount(command, mountpoint, None, self.folder / "log"), mountpoint / "disk.raw"


def copy_image(image: Path, folder: Path) -> Cost:
    """The floor of writing: the image's data to a file in `folder`, durable at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "copy.raw"
    try:
        return run(["dd", f"if={image}", f"of={target}", "bs=1M", "conv=sparse,fsync", "status=none"])
    finally:
        target.unlink(missing_ok=True)


def read_image(image: Path) -> Cost:
    """The floor of reading: all of the image, once. dd and not cat: cat may copy within the kernel."""
    return run(["dd", f"if={image}", "of=/dev/null", "bs=1M", "status=none"])


def touch(image: Path) -> None:
    """A new modification time, as a disk in use always has: else the peers do not look inside at all."""
    os.utime(image)


def need(program: str) -> None:
    """Raises BenchError when a program is not installed."""
    if shutil.which(program) is None:
        raise BenchError(f"{program}: not installed; run this tool as root, or `apt install {program}`")
