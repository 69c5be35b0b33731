"""What the chapters share: the repository and its mount, the times, and comparing files."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import manifest

from .disk import Partition
from .terminal import mebibytes, run, tell, title


class Stage:
    """In the current folder. `stack` undoes what is left behind."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.stack = stack
        self.repository = Path("repo")
        self.mountpoint = Path("mnt")
        self.times: list[tuple[str, float]] = []

    @contextlib.contextmanager
    def timed(self, what: str) -> Iterator[None]:
        begin = time.monotonic()
        yield
        self.times.append((what, time.monotonic() - begin))

    def mount(self) -> None:
        """The repository, till the end."""
        self.mountpoint.mkdir()
        with self.timed("mount"):
            run("vmfs", "mount", self.repository, self.mountpoint)
            self.stack.callback(self.unmount)

    def unmount(self) -> None:
        if os.path.ismount(self.mountpoint):
            run("vmfs", "umount", self.mountpoint)

    def summary(self) -> None:
        title("Summary")
        run("vmfs", "stats", self.repository)
        for what, seconds in self.times:
            tell(f"{seconds:8.1f} s  {what}")


def record(part: Partition, root: Path) -> manifest.Manifest:
    """What is in a file system."""
    found = manifest.record(root)
    tell(
        f"recorded {part.file_system}: {manifest.count_files(found):,} files, "
        f"{mebibytes(manifest.content_bytes(found))}: content, mode, owner, time and links of each"
    )
    return found


def compare(what: str, recorded: manifest.Manifest, root: Path) -> int:
    """Say whether the files are as they were recorded; the number of those that are not."""
    found = manifest.record(root)
    lines = manifest.differences(recorded, found)
    tell(
        f"{what}: {manifest.count_files(found):,} files, {mebibytes(manifest.content_bytes(found))}: "
        + ("all as they were" if not lines else f"{len(lines)} DIFFERENT")
    )
    for line in lines[:10]:
        tell(f"  {line}")
    return len(lines)
