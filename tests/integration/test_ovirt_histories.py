"""A VM of three disks, backed up in full and then twenty times by what changed, while its guest never stops
writing: every point is what the disks held at that instant."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from command_helpers import Site, call
from lab_helpers import DEFAULT, LEGACY, MIB, DiskRecipe, Lab, LabVm, login_options, needs_lab
from mount_helpers import mounted

pytest_plugins = "engine_fixtures"
pytestmark = needs_lab

CHUNK = 64 << 10
"""Of the repository, and the granularity of dirty bitmaps: an extent rounded out to chunks is as it is."""
POINTS = 21
ROOT, RAW, SNAPPED = "root", "raw", "snapped"
SIZES = {ROOT: 24 * MIB, RAW: 8 * MIB, SNAPPED: 16 * MIB}

Write = tuple[str, int, int]
"""Disk alias, offset and length in bytes."""


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = Site(tmp_path)
    made.init()
    return made


def make_vm(lab: Lab, name: str, cluster: str) -> LabVm:
    """Disks in qcow2, raw, and qcow2 with snapshots of the user's."""
    noise = random.Random(name).randbytes  # noqa: S311
    recipes = [
        DiskRecipe(ROOT, SIZES[ROOT], bootable=True, chunks=[(0, noise(3 * MIB)), (20 * MIB, noise(MIB))]),
        DiskRecipe(RAW, SIZES[RAW], "raw", chunks=[(MIB, noise(MIB))]),
        DiskRecipe(SNAPPED, SIZES[SNAPPED], snapshots=2, chunks=[(5 * MIB, noise(2 * MIB))]),
    ]
    return lab.create_vm(name, recipes, cluster=cluster)


class Guest:
    """What runs in the VM."""

    def __init__(self, vm: LabVm, seed: object) -> None:
        self._vm = vm
        self._random = random.Random(str(seed))  # noqa: S311
        self.log: list[Write] = []
        self._steps = threading.Semaphore(0)

    def step(self) -> None:
        """Write, zero or discard some blocks."""
        alias = self._random.choice((ROOT, ROOT, RAW, SNAPPED))
        length = self._random.choice((512, 4096, 65536, 300 << 10))
        offset = self._random.randrange(0, SIZES[alias] - length, 512)
        disk = self._vm.disks[alias]
        # Before it is done: the log may tell of more than there is, never of less.
        self.log.append((alias, offset, length))
        kind = self._random.random()
        if kind < 0.7:
            self._vm.machine.write(disk, offset, self._random.randbytes(length))
        elif kind < 0.85:
            self._vm.machine.zero(disk, offset, length)
        else:
            self._vm.machine.discard(disk, offset, length)

    @contextmanager
    def working(self) -> Iterator[None]:
        """All the time, in a thread of its own; what goes wrong there fails the test."""
        over = threading.Event()
        failed: list[BaseException] = []

        def work() -> None:
            try:
                while not over.is_set():
                    self.step()
                    self._steps.release()
                    over.wait(0.002)
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
        assert not failed, failed

    def wait_for_writes(self, count: int) -> None:
        """Until so many more were made."""
        for _ in range(count):
            assert self._steps.acquire(timeout=60), "the guest does not write any more"


def back_up(lab: Lab, site: Site, vm: LabVm, *options: object) -> tuple[dict[str, Any], str]:
    """What the command tells, and the engine's id of the backup."""
    before = lab.backup_records(vm).keys()
    words = ["backup", site.repository, *site.options(), *login_options(lab), "--vm", vm.name, "--json"]
    facts = call("vmfs-ingest", *words, *options).json()
    (made,) = lab.backup_records(vm).keys() - before
    return facts, made


def differing(found: Path, expected: Path) -> list[int]:
    """Numbers of the MiB in which two files differ; -1 for their sizes."""
    if found.stat().st_size != expected.stat().st_size:
        return [-1]
    with found.open("rb") as one, expected.open("rb") as other:
        pieces: Callable[[Any], Iterator[bytes]] = lambda file: iter(lambda: file.read(MIB), b"")  # noqa: E731
        return [
            number
            for number, pair in enumerate(zip(pieces(one), pieces(other), strict=True))
            if pair[0] != pair[1]
        ]


def chunks_of(writes: list[Write], alias: str) -> set[int]:
    return {
        number
        for name, offset, length in writes
        if name == alias
        for number in range(offset // CHUNK, -(-(offset + length) // CHUNK))
    }


def transferred(lab: Lab, backup: str, disk: str) -> int:
    """Bytes, as imageio's daemon has counted them."""
    return sum(
        int(item["transferred"])
        for item in lab.transfer_stats()
        if item["backup_id"] == backup and item["disk_id"] == disk
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cluster", "mode"), [(DEFAULT, "hybrid"), (DEFAULT, "live"), (LEGACY, "auto")], ids=lambda text: text
)
def test_a_guest_that_never_stops_writing(
    lab: Lab, site: Site, cluster: str, mode: str, tmp_path: Path
) -> None:
    vm = make_vm(lab, f"busy-{cluster}-{mode}", cluster)
    guest = Guest(vm, mode)
    points: list[tuple[dict[str, Any], str]] = []
    marks: list[int] = []
    with guest.working():
        for number in range(POINTS):
            guest.wait_for_writes(20)
            marks.append(len(guest.log))
            facts, backup = back_up(lab, site, vm, "--mode", mode)
            points.append((facts, backup))
            disks = {disk["alias"]: disk for disk in facts["disks"]}
            # QEMU keeps no persistent dirty bitmap of a raw image.
            expected = {ROOT: "incremental", RAW: "full", SNAPPED: "incremental"} if number else {}
            assert {name: disk["mode"] for name, disk in disks.items()} == {
                name: expected.get(name, "full") for name in SIZES
            }
            if number:
                assert facts["parent"] == points[-2][0]["id"]
                assert disks[RAW]["full_reason"]
                for alias in (ROOT, SNAPPED):
                    dirty = chunks_of(guest.log[marks[-2] :], alias)
                    assert transferred(lab, backup, vm.disks[alias]) <= len(dirty) * CHUNK
            assert lab.leftovers() == []
    records = lab.backup_records(vm)
    with site.open() as repository, mounted(repository, tmp_path / "mnt") as mount:
        folders = sorted(path for path in (mount.path / vm.name).iterdir() if not path.is_symlink())
        assert len(folders) == POINTS
        for folder, (_, backup) in zip(folders, points, strict=True):
            for alias, disk in vm.disks.items():
                assert differing(folder / "disks" / f"{alias}.raw", records[backup][disk]) == []
    assert site.vmfs("verify", "--data", "--json").json()["sound"]


@pytest.mark.parametrize("mode", ["hybrid", "live"])
def test_an_incremental_reads_what_changed_and_no_more(lab: Lab, site: Site, mode: str) -> None:
    """Held to the daemon's own counters."""
    vm = make_vm(lab, f"quiet-{mode}", DEFAULT)
    back_up(lab, site, vm, "--mode", mode)
    writes: list[Write] = [(ROOT, 0, 512), (ROOT, 5 * MIB + 1024, 4096), (SNAPPED, 9 * MIB - 512, 1024)]
    for alias, offset, length in writes:
        vm.write(alias, offset, b"\xa5" * length)
    # Changed and zeros: known without being read.
    vm.machine.zero(vm.disks[ROOT], 8 * MIB, MIB)
    facts, backup = back_up(lab, site, vm, "--mode", mode)
    for disk in facts["disks"]:
        if disk["alias"] != RAW:
            wanted = len(chunks_of(writes, disk["alias"])) * CHUNK
            assert disk["mode"] == "incremental"
            assert transferred(lab, backup, disk["id"]) == disk["bytes_read"] == wanted
    facts, backup = back_up(lab, site, vm, "--mode", mode)
    for alias in (ROOT, SNAPPED):
        assert transferred(lab, backup, vm.disks[alias]) == 0, "nothing has changed, and something was read"


@pytest.mark.parametrize("mode", ["hybrid", "live"])
def test_an_audit_reads_its_sample_besides(lab: Lab, site: Site, mode: str) -> None:
    vm = make_vm(lab, f"audited-{mode}", DEFAULT)
    back_up(lab, site, vm, "--mode", mode)
    vm.write(ROOT, MIB, b"\x5a" * CHUNK)
    facts, backup = back_up(lab, site, vm, "--mode", mode, "--audit", 25)
    for disk in facts["disks"]:
        if disk["mode"] != "incremental":
            continue
        audit = disk["audit"]
        assert audit["mismatch"] is None
        dirty = CHUNK if disk["alias"] == ROOT else 0
        unchanged = disk["size"] - dirty
        assert abs(audit["compared"] - unchanged / 4) <= CHUNK
        assert transferred(lab, backup, disk["id"]) <= dirty + audit["compared"]
    assert {disk["alias"] for disk in facts["disks"] if disk["audit"]} == {ROOT, SNAPPED}
