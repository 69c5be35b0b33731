"""A guest's files: through files/ of the mount, through the kernel's own loop mount of volumes/, and through
libguestfs, all three over the same mounted restore point."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import reads
from .contenders import Vmfs
from .process import BenchError, Mount, output, say
from .results import Results

MIB = 1 << 20
FIRST = MIB
FILES = 20_000
FILE_SIZE = 500 * MIB
# 20,000 inodes and 500 MiB, with room for the file system's own.
_VOLUME = 800 * MIB
_PIECE = 4 * MIB
_KERNEL, _GUESTFS = "kernel, volumes/", "guestmount, disks/"


class FilesSection:
    """Makes its own disk, as what is listed and copied is given."""

    def __init__(self, folder: Path, vmfs: Vmfs, rounds: int, results: Results) -> None:
        self._folder = folder
        self._vmfs = vmfs
        self._rounds = rounds
        self._results = results

    def run(self) -> None:
        self._folder.mkdir(parents=True)
        disk = self._folder / "disk.raw"
        make_disk(disk, self._folder)
        self._vmfs.create()
        self._vmfs.ingest(disk)
        disk.unlink()
        places = {"vmfs, files/": self._vmfs_files, _KERNEL: self._kernel}
        if shutil.which("guestmount") is None:
            say("libguestfs is left out: guestmount is not installed")
        else:
            places[_GUESTFS] = self._guestfs
        for number in range(self._rounds):
            order = list(places.items())
            shift = number % len(order)
            for name, place in order[shift:] + order[:shift]:
                # A new mount each time: nothing of the guest is in the page cache, all of the repository.
                mount, raw = self._vmfs.mount(disk)
                try:
                    reads.warm(self._vmfs.repository)
                    self._measure(name, contextmanager(place), raw)
                finally:
                    mount.close()

    def _measure(self, name: str, place: Callable[[Path], Any], raw: Path) -> None:
        begin = time.monotonic()
        with place(raw) as top:
            # For vmfs that starts the worker that reads the file system.
            os.listdir(top)
            self._results.add("files open", name, time.monotonic() - begin)
            begin = time.monotonic()
            listed = output(["find", top / "many", "-type", "f", "-printf", "%s %m %T@ %f\\n"])
            self._results.add("files list", name, time.monotonic() - begin)
            if listed.count("\n") != FILES:
                raise BenchError(f"{name}: {listed.count(chr(10))} files are listed, and there are {FILES}")
            copy = self._folder / "copy"
            begin = time.monotonic()
            output(["cp", top / "large", copy])
            self._results.add("files copy", name, FILE_SIZE / (time.monotonic() - begin))
            if copy.stat().st_size != FILE_SIZE:
                raise BenchError(f"{name}: the copy has another size")
            copy.unlink()

    @staticmethod
    def _vmfs_files(raw: Path) -> Iterator[Path]:
        yield raw.parent.parent / "files" / "disk-p1"

    def _kernel(self, raw: Path) -> Iterator[Path]:
        top = self._folder / "kernel"
        top.mkdir(exist_ok=True)
        output(["mount", "-o", "ro,loop,noload", raw.parent.parent / "volumes" / "disk-p1.raw", top])
        try:
            yield top
        finally:
            output(["umount", top])

    def _guestfs(self, raw: Path) -> Iterator[Path]:
        top = self._folder / "guestfs"
        command = ["guestmount", "--no-fork", "--ro", "--format=raw", "-a", str(raw), "-m", "/dev/sda1"]
        # Without libvirt, and without KVM where it is there but runs no guests.
        environment = {"LIBGUESTFS_BACKEND": "direct"}
        if not os.access("/dev/kvm", os.W_OK) or "VMFS_BENCH_TCG" in os.environ:
            environment["LIBGUESTFS_BACKEND_SETTINGS"] = "force_tcg"
        mount = Mount([*command, top], top, environment, self._folder / "guestfs.log")
        try:
            yield top
        finally:
            mount.close()


def make_disk(disk: Path, folder: Path) -> None:
    """A GPT disk with one ext4 volume: 20,000 files of a line each in one directory, and one of 500 MiB, half
    of which compresses."""
    say(f"making a disk with {FILES:,} files, and one of {FILE_SIZE // MIB} MiB")
    with disk.open("wb") as file:
        file.truncate(FIRST + _VOLUME + MIB)
    subprocess.run(
        ["sfdisk", "-q", disk],
        input=f"label: gpt\nstart={FIRST // 512},size={_VOLUME // 512}\n",
        text=True,
        check=True,
    )
    options = f"offset={FIRST},lazy_itable_init=0,lazy_journal_init=0,nodiscard"
    output(["mkfs.ext4", "-q", "-F", "-E", options, disk, f"{_VOLUME // 1024}k"])
    top = folder / "made"
    top.mkdir()
    output(["mount", "-o", f"loop,offset={FIRST},sizelimit={_VOLUME}", disk, top])
    try:
        (top / "many").mkdir()
        for number in range(FILES):
            (top / "many" / f"file {number}").write_text(f"{number}\n")
        line = b"a line that is in this file very often\n"
        with (top / "large").open("wb") as file:
            for _ in range(FILE_SIZE // _PIECE):
                file.write(os.urandom(_PIECE // 2))
                file.write((line * (_PIECE // 2 // len(line) + 1))[: _PIECE // 2])
    finally:
        output(["umount", top])
        top.rmdir()
