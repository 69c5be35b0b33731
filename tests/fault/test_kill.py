"""kill -9 at random moments of an ingest, two hundred times on one repository."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from blake3 import blake3
from command_helpers import program
from conftest import COST, SECRET
from fault_helpers import CHUNK, check_sound, open_at, temporary_files, text_chunk, write_disk
from fault_process_helpers import Zygote

from vmfs.repo import names
from vmfs.repo.index import read_directory
from vmfs.repo.repository import Repository

pytest_plugins = "fault_fixtures"

KILLS = 200
SCRIPT_KILLS = 12
CHUNKS = 128
CHANGED = 32
PACK = 256 << 10


class Victim:
    """A repository, what is known to be in it, and the disk to back up next."""

    def __init__(self, place: Path, zygote: Zygote) -> None:
        self.place = place
        self.root = place / "repository"
        self.choose = random.Random(20261120)  # noqa: S311
        self.points: dict[str, bytes] = {}
        """Digest of the disk, by point id."""
        self.blobs: set[bytes] = set()
        self.packs: set[str] = set()
        self._zygote = zygote
        self._chunks = [text_chunk(number) for number in range(CHUNKS)]
        self._passphrase = place / "passphrase"
        self._passphrase.write_bytes(SECRET.secret + b"\n")
        status, text = zygote.run(
            "vmfs", "init", self.root, *self._secret, "--chunk-size", "64K", "--kdf-cost", str(COST)
        )
        assert status == 0, text
        self.change_disk()

    @property
    def _secret(self) -> tuple[str, str]:
        return "--passphrase-file", str(self._passphrase)

    @property
    def arguments(self) -> list[str]:
        disk = str(self.place / "disk.raw")
        return ["image", str(self.root), "--vm", "vm", disk, *self._secret, "--json"]

    def change_disk(self) -> None:
        for number in self.choose.sample(range(CHUNKS), CHANGED):
            self._chunks[number] = self.choose.randbytes(CHUNK)
        content = b"".join(self._chunks)
        self.digest = blake3(content).digest()
        write_disk(self.place / "disk.raw", content)

    def ingest(self) -> int:
        """A whole run; how many bytes it stored."""
        status, text = self._zygote.run("vmfs-ingest", *self.arguments)
        assert status == 0, text
        facts = json.loads(text)
        self.points[facts["id"]] = self.digest
        return int(facts["disks"][0]["bytes_stored"])

    def kill_after(self, delay: float) -> bool:
        """Whether the run was still going on after so many seconds."""
        run = self._zygote.start("vmfs-ingest", *self.arguments)
        time.sleep(delay)
        run.kill(signal.SIGKILL)
        status = run.wait()
        assert status in (0, -signal.SIGKILL), run.text
        return status != 0

    def kill_script_after(self, delay: float) -> bool:
        """The same with the installed program."""
        process = subprocess.Popen([program("vmfs-ingest"), *self.arguments], stdout=subprocess.DEVNULL)
        time.sleep(delay)
        process.kill()
        return process.wait() != 0

    def open(self) -> Repository:
        return open_at(self.root, self.place / "cache")

    def check_after_kill(self) -> int:
        """All points are there, none is half there, some are read; bytes in packs of the dead run."""
        with self.open() as repository:
            ids = repository.point_ids()
            new = set(ids) - set(self.points)
            assert set(self.points) <= set(ids)
            assert len(new) <= 1
            # A run may be killed after its commit.
            self.points |= dict.fromkeys(new, self.digest)
            for point_id in {*new, *ids[-1:], *self.choose.sample(ids, min(2, len(ids)))}:
                self.check_point(repository, point_id)
            return self.take_in_packs(repository)

    def check_point(self, repository: Repository, point_id: str) -> None:
        (disk,) = repository.load_point(point_id).manifest.disks
        content = repository.open_disk(disk).read(0, disk.size)
        assert blake3(content).digest() == self.points[point_id]

    def take_in_packs(self, repository: Repository) -> int:
        """Look into the packs that are new since the last time: nothing may be there twice. Their bytes."""
        total = 0
        for name, size in list(repository.store.list(names.PACKS)):
            if name in self.packs:
                continue
            self.packs.add(name)
            ids = {entry.id for entry in read_directory(repository.store, name, size, repository.keys)}
            assert not ids & self.blobs, "stored again although it was durable"
            self.blobs |= ids
            total += size
        return total

    def check_after_ingest(self) -> None:
        with self.open() as repository:
            assert repository.point_ids() == sorted(self.points)
            self.check_point(repository, max(self.points))
            self.take_in_packs(repository)
            assert not list(repository.store.list(names.LEASES))
        assert not temporary_files(self.root)

    def check_all(self) -> None:
        """Every point, byte by byte; with a cache of nothing as well."""
        for cache in (self.place / "cache", self.place / "fresh"):
            with open_at(self.root, cache) as repository:
                assert repository.point_ids() == sorted(self.points)
                for point_id in self.points:
                    self.check_point(repository, point_id)
        shutil.rmtree(self.place / "fresh")


@pytest.mark.slow
def test_two_hundred_kills(place: Path) -> None:
    with Zygote(place, PACK) as zygote:
        victim = Victim(place, zygote)
        victim.ingest()
        victim.change_disk()
        began = time.monotonic()
        whole = victim.ingest()
        duration = time.monotonic() - began
        victim.change_disk()
        victim.check_after_ingest()
        kills = resumed = committed = 0
        for number in range(2 * KILLS):
            points = len(victim.points)
            kills += victim.kill_after(victim.choose.uniform(0, duration))
            durable = victim.check_after_kill()
            committed += len(victim.points) > points
            if number % 3:
                began = time.monotonic()
                stored = victim.ingest()
                # As long as they take now: the machine may have other work than a minute ago.
                duration = time.monotonic() - began
                victim.check_after_ingest()
                assert stored < whole * 1.01
                if durable > PACK:
                    assert stored < whole
                    resumed += 1
                victim.change_disk()
            if number % 50 == 49:
                victim.check_all()
            if kills == KILLS:
                break
        assert kills == KILLS
        for _ in range(SCRIPT_KILLS):
            victim.kill_script_after(victim.choose.uniform(0.1, 1.2))
            victim.check_after_kill()
        victim.ingest()
        victim.check_after_ingest()
        victim.check_all()
        with victim.open() as repository:
            check_sound(repository)
        # The kills hit what they were meant to hit.
        assert resumed > KILLS // 20
        assert committed < KILLS // 2
