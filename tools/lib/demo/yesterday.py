"""Single files: listed, compared and copied out of restore points by commands, and nothing is mounted."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import manifest

from .disk import PARTITIONS
from .one_disk import DISK, VM, OneDisk
from .stage import Stage
from .terminal import DemoError, run, tell, title


class Yesterday:
    """In the current folder, after the two backups of the first chapters."""

    def __init__(self, stage: Stage, disk: OneDisk) -> None:
        self.stage = stage
        self.recorded = disk.recorded
        self.deleted = disk.deleted

    def run(self) -> None:
        title("8. A file from yesterday: found and copied out by commands alone, nothing mounted")
        before, after = self.points()
        run("vmfs", "ls", self.stage.repository, before)
        run("vmfs", "diff", "--volumes", self.stage.repository, before, after)
        with self.stage.timed("a file from yesterday"):
            for part in PARTITIONS:
                self.rescue(before, f"{DISK}-p{part.number}", part.number)
        run("vmfs", "diff", "--files", self.stage.repository, before, after, f"{DISK}-p1:/odd")
        self.copy_tree(before)

    def points(self) -> tuple[str, str]:
        listed = run("vmfs", "points", self.stage.repository, "--vm", VM, show=False)
        ids = [line.split()[2] for line in listed.splitlines()[1:]]
        return ids[0], ids[1]

    def rescue(self, point: str, volume: str, number: int) -> None:
        """A file that is gone in the second restore point, out of the first."""
        deleted = self.deleted[number]
        rescued = Path(f"yesterday-{number}-{deleted.name}")
        run("vmfs", "cp", "-a", self.stage.repository, point, f"{volume}:/{deleted}", rescued)
        if manifest.digest(rescued) != self.recorded[0][number][str(deleted)].content:
            raise DemoError(f"{deleted}: its content is not what it was")
        tell(f"{rescued}: {os.path.getsize(rescued):,} bytes, as they were")

    def copy_tree(self, point: str) -> None:
        """One with awkward names, holes, links and owners; every one compared."""
        tree = Path("yesterday-odd")
        run("vmfs", "cp", "-a", self.stage.repository, point, f"{DISK}-p1:/odd", tree)
        found = manifest.record(tree)
        expected = {
            os.path.relpath(path, "odd"): entry
            for path, entry in self.recorded[0][1].items()
            if path == "odd" or path.startswith("odd/")
        }
        wrong = manifest.differences(expected, found)
        if wrong:
            raise DemoError(f"{tree}: {wrong[0]}")
        tell(
            f"{tree}: {manifest.count_files(found)} files with awkward names, holes, links: all as they were"
        )
        shutil.rmtree(tree)
