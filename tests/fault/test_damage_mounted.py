"""Damage seen through a real mount: EIO for exactly what is hit, and right bytes everywhere else."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from damage_helpers import Reads
from fault_helpers import (
    CHUNK,
    Contents,
    back_up,
    create_at,
    noise_chunk,
    open_at,
    text_chunk,
    unreadable_chunks,
    write_disk,
)
from mount_helpers import mounted, needs_fuse

from vmfs.format.keys import Kind
from vmfs.repo import names
from vmfs.repo.index import read_directory
from vmfs.repo.repository import Repository
from vmfs.repo.verify import verify

pytest_plugins = "fault_fixtures"


@pytest.fixture(scope="module")
def made(module_place: Path) -> tuple[Path, Contents]:
    """Three points of two VMs; maps of one and of two levels."""
    contents: dict[str, dict[str, bytes]] = {}
    base = [noise_chunk(number) for number in range(12)]
    far = [noise_chunk(90), *[bytes(CHUNK)] * 255, noise_chunk(91), text_chunk(92)]
    with create_at(module_place / "repository", module_place / "cache") as repository:
        for vm, chunks in (
            ("one", base),
            ("one", [*base[:4], *map(noise_chunk, range(40, 48))]),
            ("two", far),
        ):
            content = b"".join(chunks) + b"end." * 128
            disk = write_disk(module_place / "disk.raw", content)
            contents[back_up(repository, vm, {"root": disk}).id] = {"root": content}
    return module_place / "repository", contents


def in_packs(repository: Repository, kind: Kind) -> list[tuple[Path, int, int]]:
    """(pack, offset, length) of every blob of that kind."""
    found = []
    for name, size in repository.store.list(names.PACKS):
        for entry in read_directory(repository.store, name, size, repository.keys):
            if entry.kind is kind:
                found.append((Path(repository.store.url, name), entry.offset, entry.length))
    return sorted(found)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


def some_chunks(repository: Repository) -> None:
    for path, offset, length in random.Random(1).sample(in_packs(repository, Kind.DATA), 4):  # noqa: S311
        flip(path, offset + length // 2)


def one_header(repository: Repository) -> None:
    path, offset, _ = in_packs(repository, Kind.DATA)[5]
    flip(path, offset + 50)


def a_node(repository: Repository) -> None:
    path, offset, length = in_packs(repository, Kind.NODE)[0]
    flip(path, offset + length - 1)


def every_node(repository: Repository) -> None:
    for path, offset, length in in_packs(repository, Kind.NODE):
        flip(path, offset + length - 1)


def a_pack_cut_short(repository: Repository) -> None:
    path, offset, length = in_packs(repository, Kind.DATA)[3]
    os.truncate(path, offset + length // 2)


def a_pack_gone(repository: Repository) -> None:
    in_packs(repository, Kind.DATA)[0][0].unlink()


def the_epoch_gone(repository: Repository) -> None:
    shutil.rmtree(Path(repository.store.url, names.EPOCHS))


def the_index_gone(repository: Repository) -> None:
    shutil.rmtree(Path(repository.store.url, names.INDEX))


def all_at_once(repository: Repository) -> None:
    the_index_gone(repository)
    some_chunks(repository)
    a_node(repository)


CASES: list[Callable[[Repository], None]] = [
    some_chunks,
    one_header,
    a_node,
    every_node,
    a_pack_cut_short,
    a_pack_gone,
    the_epoch_gone,
    the_index_gone,
    all_at_once,
]


def read_mount(top: Path, contents: Contents) -> Reads:
    """Every chunk of every disk, by way of the kernel, in an order of no pattern."""
    seen: Reads = {}
    for described in top.glob("*/*/point.json"):
        if described.parent.is_symlink():
            continue
        point_id = json.loads(described.read_text())["id"]
        for path in (described.parent / "disks").iterdir():
            truth = contents[point_id][path.stem]
            assert path.stat().st_size == len(truth)
            fd = os.open(path, os.O_RDONLY)
            try:
                starts = list(range(0, len(truth), CHUNK))
                random.Random(len(seen)).shuffle(starts)  # noqa: S311
                bad = sorted(start // CHUNK for start in starts if is_unreadable(fd, start, truth))
            finally:
                os.close(fd)
            if bad:
                seen[point_id, path.stem] = bad
    return seen


def is_unreadable(fd: int, start: int, truth: bytes) -> bool:
    try:
        piece = os.pread(fd, CHUNK, start)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return True
    assert piece == truth[start : start + CHUNK], f"wrong bytes from {start}"
    return False


def read_library(repository: Repository, contents: Contents) -> Reads:
    seen: Reads = {}
    for point_id, disks in contents.items():
        for disk in repository.load_point(point_id).manifest.disks:
            if bad := unreadable_chunks(repository, disk, disks[disk.alias]):
                seen[point_id, disk.alias] = bad
    return seen


@needs_fuse
@pytest.mark.parametrize("damage", CASES, ids=lambda damage: damage.__name__)
def test_the_mount(made: tuple[Path, Contents], place: Path, damage: Callable[[Repository], None]) -> None:
    root, contents = made
    shutil.copytree(root, place / "repository")
    with open_at(place / "repository", place / "cache") as repository:
        damage(repository)
    with open_at(place / "repository", place / "cache") as repository:
        expected = read_library(repository, contents)
        hits = {(hit.point, hit.disk) for hit in verify(repository, data=1.0).hits}
        assert hits == expected.keys()
        assert bool(expected) is (damage is not the_index_gone)
        with mounted(repository, place / "mnt") as mount:
            assert read_mount(mount.path, contents) == expected
            # Again, now that the kernel and the process have met it once.
            assert read_mount(mount.path, contents) == expected
            assert "Traceback" not in mount.log


@needs_fuse
def test_damage_while_it_is_mounted(made: tuple[Path, Contents], place: Path) -> None:
    """What is in no cache yet is found damaged from then on; and right again once it is repaired."""
    root, contents = made
    shutil.copytree(root, place / "repository")
    with open_at(place / "repository", place / "cache") as repository:
        packs = {path for path, _, _ in in_packs(repository, Kind.DATA)}
        whole = {path: path.read_bytes() for path in packs}
        (point_id, *_) = (item for item in contents if repository.load_point(item).manifest.vm.name == "two")
        with mounted(repository, place / "mnt") as mount:
            (disk,) = mount.path.glob("two/latest/disks/root.raw")
            for path in packs:
                flip(path, 100)
            with open_at(place / "repository", place / "fresh") as again:
                assert read_library(again, contents)
            fd = os.open(disk, os.O_RDONLY)
            try:
                bad = [
                    start
                    for start in range(0, len(contents[point_id]["root"]), CHUNK)
                    if is_unreadable(fd, start, contents[point_id]["root"])
                ]
                assert len(bad) == 1
                for path, content in whole.items():
                    path.write_bytes(content)
                assert not is_unreadable(fd, bad[0], contents[point_id]["root"])
            finally:
                os.close(fd)
