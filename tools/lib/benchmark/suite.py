"""What is measured, and in which order: the contenders take turns within each round."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qemu import StorageDaemon

from . import image as images
from . import reads
from .contenders import Constant, Contender, Vmfs, copy_image, read_image, touch
from .process import BenchError, Mount, output, peak_rss, say
from .results import Results

MIB = 1 << 20
REGION = 128 * MIB
RANDOM_SECONDS = 5.0
READERS = 4


@dataclass
class Suite:
    """`base` is the image as it was made; `disk` a copy of it, which the peers back up and which changes."""

    base: Path
    disk: Path
    work: Path
    python: Path
    vmfs: Vmfs
    peers: Sequence[Contender]
    rounds: int
    results: Results
    changed: list[int] = field(default_factory=list)
    """Where the disk is not as it was in the first backup."""

    @property
    def all(self) -> Sequence[Contender]:
        return [self.vmfs, *self.peers]

    def turns(self, number: int) -> Sequence[Contender]:
        """The contenders in another order each round, so that none always runs after the same other."""
        order = list(self.all)
        shift = number % len(order)
        return order[shift:] + order[:shift]

    def prepare(self) -> None:
        say("copying the image")
        output(["cp", "--sparse=always", self.base, self.disk])
        # Or whoever comes first shares the disk with what is still being written.
        os.sync()

    # Backing up.

    def full(self, rounds: int) -> None:
        """Full ingests, each into a new repository; the last is kept for what follows."""
        for number in range(rounds):
            reads.warm(self.disk)
            self.results.add_cost("full", "dd", copy_image(self.disk, self.work / "floor"))
            self.results.add("image read", "dd", read_image(self.disk).seconds)
            for contender in self.turns(number):
                contender.create()
                os.sync()
                reads.warm(self.disk)
                self.results.add_cost("full", contender.name, contender.ingest(self.disk))
                self.results.add("repository", contender.name, contender.size())

    def again(self) -> None:
        """Ingests of the same disk once more, with a new modification time and without."""
        for number in range(self.rounds):
            for contender in self.turns(number):
                reads.warm(self.disk)
                touch(self.disk)
                self.results.add_cost("again, touched", contender.name, contender.ingest(self.disk))
                if contender is not self.vmfs:
                    self.results.add_cost("again, known", contender.name, contender.ingest(self.disk))

    def incremental(self) -> None:
        """Scattered changes: by dirty bitmap from a running qemu for vmfs, by reading all for the peers."""
        overlay = self.work / "overlay.qcow2"
        images.make_overlay(overlay, self.base)
        # Contents equal to the disk's at this point of the chain; the bitmap begins here.
        self.vmfs.ingest_disk(str(self.disk), "--checkpoint", "bitmap0")
        with StorageDaemon(overlay, self.work / "qemu") as qemu:
            qemu.add_bitmap("bitmap0")
            step = 0
            for number in range(self.rounds):
                step = self._by_bitmap(qemu, "again, known", step)
                for measure, fraction in (("0.1 %", 0.001), ("1 %", 0.01)):
                    writes = images.changes(self.base, fraction, f"{measure} {number}")
                    images.apply(qemu.disk, writes)
                    images.apply(self.disk, writes)
                    self.changed += [offset for offset, _ in writes]
                    for contender in self.turns(number):
                        before = contender.size()
                        if contender is self.vmfs:
                            step = self._by_bitmap(qemu, measure, step)
                        else:
                            reads.warm(self.disk)
                            self.results.add_cost(measure, contender.name, contender.ingest(self.disk))
                        self.results.add(f"{measure}, grown", contender.name, contender.size() - before)
        overlay.unlink()

    def doubled(self) -> None:
        """The same 1 % of changes as before, on a disk of twice the size: its cost should be the same."""
        overlay = self.work / "overlay.qcow2"
        for number in range(self.rounds):
            images.make_overlay(overlay, self.base)
            output(["qemu-img", "resize", "-q", overlay, str(2 * self.base.stat().st_size)])
            vm = f"doubled{number}"
            self.vmfs.ingest_disk(str(overlay), "--format", "qcow2", "--checkpoint", "bitmap0", vm=vm)
            with StorageDaemon(overlay, self.work / "qemu") as qemu:
                qemu.add_bitmap("bitmap0")
                images.apply(qemu.disk, images.changes(self.base, 0.01, f"doubled {number}"))
                self._by_bitmap(qemu, "1 % doubled", 0, vm=vm)
            overlay.unlink()

    def _by_bitmap(self, qemu: StorageDaemon, measure: str, step: int, vm: str = "bench") -> int:
        """An incremental of what the running bitmap says. Gives the number of the next bitmap."""
        old, new = f"bitmap{step}", f"bitmap{step + 1}"
        uri = qemu.freeze(old, new, "disk")
        try:
            cost, disk = self.vmfs.ingest_disk(uri, "--bitmap", old, "--checkpoint", new, vm=vm)
        finally:
            qemu.thaw()
        self.results.add_cost(measure, self.vmfs.name, cost)
        if disk["mode"] != "incremental":
            raise BenchError(f"vmfs did not take an incremental: {disk['full_reason']}")
        self.results.add(f"{measure}, read", self.vmfs.name, disk["bytes_read"])
        return step + 1

    # Reading.

    def mounts(self) -> None:
        """Reads of all the mounts side by side: of each region every contender reads the same bytes once."""
        regions = images.data_regions(self.base, REGION)
        rounds = max(self.rounds, 3)
        if len(regions) < 2 * (1 + READERS) * rounds + 1:
            raise BenchError("the image has too little data for reading regions not read before")
        with contextlib.ExitStack() as stack:
            mounted: list[tuple[str, Mount, Path]] = []
            for contender in self.all:
                mount, path = contender.mount(self.disk)
                stack.callback(mount.close)
                path.stat()
                self.results.add("mount", contender.name, mount.seconds)
                mounted.append((contender.name, mount, path))
                # The disk below is not what is compared: what it is to read is in memory for all.
                reads.warm(contender.repository)
            constant = Constant(self.work / "constant", self.python)
            mount, path = constant.mount(self.disk)
            stack.callback(mount.close)
            # The same read-ahead as vmfs asks for: otherwise the ratio of the two would say little.
            ahead = reads.read_ahead(mounted[0][1].mountpoint).read_text()
            reads.read_ahead(mount.mountpoint).write_text(ahead)
            mounted.append((constant.name, mount, path))
            self._check(mounted[: len(self.all)], regions[-1])
            for number in range(rounds):
                shift = number % len(mounted)
                fresh = [regions[part :: 2 * rounds] for part in (2 * number, 2 * number + 1)]
                for name, _, path in mounted[shift:] + mounted[:shift]:
                    self._sequential(name, "direct", path, fresh[0])
                    self._sequential(name, "buffered", path, fresh[1])
                    rate = reads.random_reads(path, regions, REGION, RANDOM_SECONDS, f"random {number}")
                    self.results.add("random", name, rate)
            for name, mount, _ in mounted:
                self.results.add("mount memory", name, peak_rss(mount.pid))

    def _sequential(self, name: str, kind: str, path: Path, regions: Sequence[int]) -> None:
        """One region by one reader, the others by one each at once."""
        direct = kind == "direct"
        self.results.add(kind, name, reads.sequential(path, regions[0], REGION, direct=direct))
        rate = reads.together(path, regions[1 : 1 + READERS], REGION, direct=direct)
        self.results.add(f"{kind}, together", name, rate)

    def _check(self, mounted: Sequence[tuple[str, Mount, Path]], region: int) -> None:
        """A fast mount that shows wrong bytes would be no use."""
        offsets = [region + MIB * number for number in range(0, REGION // MIB, 8)] + self.changed[-100:]
        for name, _, path in mounted:
            if (offset := reads.differs(path, self.disk, offsets, 64 * 1024)) is not None:
                raise BenchError(f"{name}: the mounted disk is not the disk, at byte {offset}")

    def clean(self) -> None:
        for name in (*(contender.name for contender in self.all), "constant", "floor"):
            shutil.rmtree(self.work / name, ignore_errors=True)
        self.disk.unlink(missing_ok=True)
