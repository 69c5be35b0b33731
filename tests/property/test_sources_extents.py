"""Extents against a model, for random histories of writes, zeroes and discards: on real files, through a real
qemu-nbd, and by dirty bitmaps of a real qemu."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qemu_helpers import StorageDaemon, create_image, needs_qemu, qemu_io
from source_helpers import opened

from ingest.sources import DiskSource, Extent

SIZE = 2 * 1024 * 1024 + 512
"""Bytes; the last granule and the last cluster of a disk of this size are cut."""
GRANULE = 65536
SECTOR = 512

Operation = tuple[str, int, int, int]
"""What is done, offset, length, the byte that is written."""


@st.composite
def operations(draw: st.DrawFn) -> Operation:
    kind = draw(st.sampled_from(["write", "write", "zero", "unmap", "discard"]))
    # What a discard does to a part of a cluster is qemu's to choose.
    unit = GRANULE if kind == "discard" else draw(st.sampled_from([SECTOR, 4096, GRANULE]))
    first = draw(st.integers(0, SIZE // unit - 1))
    count = draw(st.integers(1, max(1, min(SIZE // unit - first, 4 * GRANULE // unit))))
    return kind, first * unit, count * unit, draw(st.integers(1, 255))


histories = st.lists(operations(), max_size=8)


def without_discards(history: list[Operation]) -> list[Operation]:
    """qemu ignores discards during a backup, and in other formats than qcow2 they keep the bytes or not."""
    return [operation for operation in history if operation[0] != "discard"]


def apply(model: bytearray, operation: Operation) -> str:
    """Does it to the model; the same as a command of qemu-io."""
    kind, offset, length, value = operation
    model[offset : offset + length] = bytes([value if kind == "write" else 0]) * length
    return {
        "write": f"write -P {value} {offset} {length}",
        "zero": f"write -z {offset} {length}",
        "unmap": f"write -zu {offset} {length}",
        "discard": f"discard {offset} {length}",
    }[kind]


def apply_extents(source: DiskSource, extents: Iterable[Extent], image: bytearray) -> None:
    """What a backup does: zeros without reading, the rest read."""
    reader = source.reader()
    try:
        for start, length, zero in extents:
            if zero:
                image[start : start + length] = bytes(length)
            else:
                with memoryview(image) as view:
                    reader.readinto(start, view[start : start + length])
    finally:
        reader.close()


def check_whole(source: DiskSource, model: bytes) -> None:
    extents = list(source.extents())
    position = 0
    for before, extent in zip([None, *extents], extents, strict=False):
        assert extent.start == position
        assert extent.length > 0
        assert before is None or before.zero != extent.zero
        position += extent.length
    assert position == source.size == len(model)
    image = bytearray(b"\xff" * len(model))
    apply_extents(source, extents, image)
    assert image == model


def check_changes(source: DiskSource, old: bytes, model: bytes, granules: set[int]) -> None:
    """The dirty extents are the granules written to, no fewer and no more, and make the new of the old."""
    dirty = source.dirty_extents()
    assert dirty is not None
    extents = list(dirty)
    position = 0
    seen = set()
    for start, length, _ in extents:
        assert start >= position
        assert length > 0
        position = start + length
        seen.update(range(start // GRANULE, -(-position // GRANULE)))
    assert position <= len(model)
    assert seen == granules
    image = bytearray(old)
    apply_extents(source, extents, image)
    assert image == model


def touched(history: Iterable[Operation]) -> set[int]:
    return {
        granule
        for _, offset, length, _ in history
        for granule in range(offset // GRANULE, -(-(offset + length) // GRANULE))
    }


@settings(max_examples=60, deadline=None)
@given(histories, st.integers(1, 64))
def test_raw_file(history: list[Operation], blocks: int) -> None:
    size = SIZE + blocks * SECTOR
    model = bytearray(size)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "disk.raw")
        with path.open("wb") as file:
            file.truncate(size)
            for operation in history:
                apply(model, operation)
                _, offset, length, _ = operation
                file.seek(offset)
                file.write(model[offset : offset + length])
        with opened(path) as source:
            check_whole(source, bytes(model))
            written = touched(history)
            if supports_holes(Path(folder)):
                data = [extent for extent in source.extents() if not extent.zero]
                assert {
                    granule
                    for start, length, _ in data
                    for granule in range(start // GRANULE, -(-(start + length) // GRANULE))
                } <= written


def supports_holes(folder: Path) -> bool:
    with tempfile.TemporaryFile(dir=folder) as file:
        file.truncate(2 * GRANULE)
        file.seek(GRANULE)
        file.write(b"x")
        file.flush()
        return os.lseek(file.fileno(), 0, os.SEEK_DATA) == GRANULE


@needs_qemu
@pytest.mark.parametrize("fmt", ["qcow2", "vmdk", "vdi", "vhdx"])
@settings(max_examples=8, deadline=None)
@given(history=histories)
def test_image_file(fmt: str, history: list[Operation]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = create_image(Path(folder, f"disk.{fmt}"), fmt, SIZE)
        model = bytearray(SIZE)
        commands = [apply(model, item) for item in (history if fmt == "qcow2" else without_discards(history))]
        if commands:
            qemu_io(path, fmt, *commands)
        with opened(path) as source:
            model.extend(bytes(source.size - SIZE))
            check_whole(source, bytes(model))


@needs_qemu
@settings(max_examples=12, deadline=None)
@given(st.lists(histories, min_size=2, max_size=4), histories.map(without_discards))
def test_dirty_bitmaps(rounds: list[list[Operation]], during: list[Operation]) -> None:
    """Rounds of guest writes with a backup after each, the first in full; writes during a backup belong to
    the next. At last qemu ends, and the image itself has the bitmap."""
    with tempfile.TemporaryDirectory() as folder:
        path = create_image(Path(folder, "disk.qcow2"), "qcow2", SIZE)
        model = bytearray(SIZE)
        old = bytes(model)
        pending: list[Operation] = []
        with StorageDaemon(Path(folder), path, "qcow2") as daemon:
            for number, history in enumerate(rounds):
                pending += history
                write(daemon, model, history)
                frozen = bytes(model)
                since = f"check{number - 1}" if number else None
                uri = daemon.begin_backup(since=since, checkpoint=f"check{number}")
                write(daemon, model, during)
                with opened(uri, "changed" if since else None) as source:
                    check_whole(source, frozen)
                    if since:
                        check_changes(source, old, frozen, touched(pending))
                daemon.end_backup()
                old = frozen
                pending = list(during)
        with opened(path, f"check{len(rounds) - 1}") as source:
            check_whole(source, bytes(model))
            check_changes(source, old, bytes(model), touched(pending))


def write(daemon: StorageDaemon, model: bytearray, history: list[Operation]) -> None:
    commands = [apply(model, operation) for operation in history]
    if commands:
        daemon.io(*commands)
