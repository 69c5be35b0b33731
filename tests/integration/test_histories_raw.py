"""Histories of raw disks, from the file or over NBD: no bitmap, so each point reads all that is no hole."""

from __future__ import annotations

import os
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest
from history_helpers import (
    CHUNK,
    History,
    Model,
    Op,
    Step,
    histories,
    history,
    history_settings,
    live_through,
)
from hypothesis import given, settings
from qemu_helpers import NbdServer, needs_qemu


def apply(path: Path, ops: list[Op]) -> None:
    with path.open("r+b") as file:
        for op in ops:
            if op.kind == "discard":
                command = ["fallocate", "--punch-hole", "-o", str(op.offset), "-l", str(op.length), path]
                subprocess.run(command, check=True)
            else:
                os.pwrite(file.fileno(), bytes([op.byte]) * op.length, op.offset)


def data_chunks(path: Path) -> set[int]:
    """Numbers of the chunks that are no hole."""
    found: set[int] = set()
    with path.open("rb") as file:
        end = 0
        while True:
            try:
                start = os.lseek(file.fileno(), end, os.SEEK_DATA)
            except OSError:
                return found
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            found.update(range(start // CHUNK, -(-end // CHUNK)))


class Guest:
    def __init__(self, taken: History) -> None:
        self.taken = taken
        self.models: dict[str, Model] = {}

    def path(self, alias: str) -> Path:
        return self.taken.folder / f"{alias}.raw"

    def add(self, alias: str, size: int) -> None:
        self.models[alias] = Model(bytearray(size))
        self.path(alias).touch()
        os.truncate(self.path(alias), size)

    def live(self, step: Step) -> None:
        """The second disk gets the strokes the other way round."""
        for number, alias in enumerate(("a", "b")):
            if alias not in self.models:
                self.add(alias, step.resize or 3 * CHUNK)
            model = self.models[alias]
            if step.resize:
                size = step.resize if alias == "a" else max(512, step.resize // 2 // 512 * 512)
                model.resize(size)
                os.truncate(self.path(alias), size)
            ops = model.ops(step.strokes[::-1] if number else step.strokes)
            ops = [op._replace(byte=0 if op.kind == "zero" else op.byte) for op in ops]
            model.apply(ops)
            apply(self.path(alias), ops)

    def back_up(self, step: Step) -> None:
        with ExitStack() as stack:
            models = {alias: self.models[alias] for alias in ("a", "b")[: 1 + step.second]}
            disks = [str(self.path(alias)) for alias in models]
            if step.other == 1:
                server = stack.enter_context(NbdServer("-r", "-f", "raw", "-e", "0", "-x", "one", disks[0]))
                disks[0] = f"a={server.uri('one')}"
            point = self.taken.ingest(models, *disks)
            for disk in point.manifest.disks:
                assert (disk.mode, disk.full_reason) == ("full", None)
                data = data_chunks(self.path(disk.alias))
                assert disk.bytes_read == models[disk.alias].chunk_bytes(data)
        assert point.manifest.parent is None


@needs_qemu
@settings(history_settings, max_examples=4)
@given(histories())
def test_raw_disks(steps: list[Step]) -> None:
    with history() as taken:
        guest = Guest(taken)
        live_through(guest, steps)
        taken.check_all()


@pytest.mark.parametrize("size", [512, CHUNK - 512, CHUNK, 256 * CHUNK + 512])
def test_a_disk_of_zeros(size: int) -> None:
    """Holes, and zeros that were written: the same map, which has no node."""
    with history() as taken:
        hole, zeros = Model(bytearray(size)), Model(bytearray(size))
        path = taken.folder / "a.raw"
        path.touch()
        os.truncate(path, size)
        first = taken.ingest({"a": hole}, path)
        path.write_bytes(zeros.content)
        second = taken.ingest({"a": zeros}, path)
        assert [point.manifest.disks[0].root for point in (first, second)] == [None, None]
        assert [point.manifest.disks[0].bytes_read for point in (first, second)] == [0, size]
