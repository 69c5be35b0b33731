"""Inode numbers and attributes of guests' files, and volumes that lie in pieces."""

from __future__ import annotations

import stat
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from volume_helpers import MemoryDisk

from vmfs.fs.content import DiskContent, PiecesContent, SpaceContent
from vmfs.fs.entries import Entry, Role
from vmfs.fs.guests import numbers
from vmfs.fs.guests.attributes import of_guest, of_unreadable
from vmfs.fs.guests.handlers import scan_of
from vmfs.fs.guests.numbers import OutOfNumbersError, Volume, Volumes, is_guest
from vmfs.fs.inodes import Inodes
from vmfs.fs.layouts import volume_names
from vmfs.volumes.files.worker.model import Found, Stat
from vmfs.volumes.layout import FoundVolume
from vmfs.volumes.model import Volume as Partition
from vmfs.volumes.pieces import WholeDisk

NODES = st.integers(0, (1 << 44) - 1) | st.builds(
    lambda tree, inode: tree << 40 | inode, st.integers(0, 300), st.integers(0, 1 << 39)
)


@given(st.lists(NODES, unique=True, max_size=50), st.integers(0, (1 << 12) - 1))
def test_numbers_tell_the_node(nodes: Sequence[int], slot: int) -> None:
    volume = Volume(slot, "key", "point", 3)
    found = [volume.number(node) for node in nodes]
    assert len(set(found)) == len(nodes)
    assert [volume.node(number) for number in found] == list(nodes)
    assert all(is_guest(number) and number < 1 << 63 for number in found)
    assert volume.unreadable() not in found
    assert volume.node(volume.unreadable()) is None


def test_numbers_are_never_those_of_the_mount_itself() -> None:
    assert not any(is_guest(number) for number in (1, (1 << 62) - 1))
    inodes = Inodes(Entry("", Role.ROOT, 0))
    assert not any(is_guest(inodes.number(Entry(str(key), Role.POINT, 0))) for key in range(1000))


def test_a_volume_has_room_for_a_thousand_subvolumes() -> None:
    volume = Volume(0, "key", "point", 0)
    given_numbers = {volume.number(tree << 40 | 256) for tree in range(1000, 2023)}
    assert len(given_numbers) == 1023
    with pytest.raises(OutOfNumbersError, match="too many"):
        volume.number(5000 << 40)
    with pytest.raises(OutOfNumbersError):
        volume.number(-1)
    # What has a number keeps it.
    assert volume.number(1000 << 40 | 256) in given_numbers
    with pytest.raises(KeyError):
        Volume(0, "other", "point", 0).node(volume.number(1000 << 40))


def test_a_volume_is_found_by_its_numbers() -> None:
    volumes = Volumes()
    one, two = volumes.get("one", "p", 0), volumes.get("two", "p", 1)
    assert volumes.get("one", "p", 0) is one
    assert volumes.find(one.number(7)) is one
    assert volumes.find(two.number(7)) is two
    # In the next mount too, whoever comes first.
    again = Volumes()
    assert again.get("two", "p", 1).number(9) == two.number(9)
    assert again.get("one", "p", 0).number(9) == one.number(9)
    with pytest.raises(KeyError):
        Volumes().find(one.number(7))


def test_slots_are_given_to_others_when_the_kernel_has_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numbers, "_SLOTS", 8)
    volumes = Volumes()
    held = [volumes.get(str(number), "p", number) for number in range(8)]
    for volume in held:
        volume.held = 2
    with pytest.raises(OutOfNumbersError, match="in use"):
        volumes.get("ninth", "p", 9)
    volumes.forget(held[3].number(5), 2)
    assert held[3].held == 0
    ninth = volumes.get("ninth", "p", 9)
    assert ninth.slot == held[3].slot
    assert volumes.find(ninth.number(1)) is ninth
    assert len(volumes) == 8
    volumes.forget(12345, 1)


STATS = st.builds(
    Stat,
    node=st.integers(0, 1 << 64),
    mode=st.integers(0, 1 << 20),
    uid=st.integers(-5, 1 << 40),
    gid=st.integers(-5, 1 << 40),
    links=st.integers(-5, 1 << 40),
    size=st.integers(-(1 << 70), 1 << 70),
    mtime=st.integers(-(1 << 80), 1 << 80),
    atime=st.integers(-(1 << 80), 1 << 80),
    ctime=st.integers(-(1 << 80), 1 << 80),
    device=st.integers(0, 1 << 70),
)


@given(STATS)
def test_any_attributes_can_be_answered(status: Stat) -> None:
    found = of_guest(1 << 62, status)
    assert stat.S_IFMT(found.st_mode) != 0
    assert found.st_size >= 0
    assert found.st_blocks >= 0


def test_attributes_are_the_guests() -> None:
    status = Stat(5, stat.S_IFCHR | 0o4751, 1_000_000, 70_000, 3, 77, -(10**18) + 5, 2, 3, 0x0801)
    found = of_guest(99, status)
    assert (found.st_ino, found.st_mode, found.st_uid, found.st_gid) == (99, status.mode, 1_000_000, 70_000)
    assert (found.st_nlink, found.st_size, found.st_blocks, found.st_rdev) == (3, 77, 1, 0x0801)
    assert (found.st_mtime_ns, found.st_atime_ns, found.st_ctime_ns) == (-(10**18) + 5, 2, 3)
    assert of_unreadable(7).attr_timeout == 0


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.integers(0, 300), st.integers(0, 300))
def test_pieces_are_read_as_one(sizes: Sequence[int], offset: int, length: int) -> None:
    data = bytes(range(256)) * 2
    disk = MemoryDisk(data)
    pieces = [
        DiskContent("disk", disk, (number * 37) % 200, size)  # type: ignore[arg-type]
        for number, size in enumerate(sizes)
    ]
    whole = b"".join(data[piece.start : piece.start + piece.size] for piece in pieces)
    content = PiecesContent(pieces, SpaceContent("volume", MemoryDisk(whole)))
    assert content.size == len(whole)
    parts = content.within(offset, length)
    found = b"".join(pieces[number].read(start, count) for number, start, count in parts)
    assert found == whole[offset : offset + length] == content.read(offset, length)
    assert all(count > 0 for _, _, count in parts)


class Forged:
    """A file system whose worker is not to be trusted."""

    name = "x"

    def __init__(self, names: Sequence[bytes]) -> None:
        self._names = names

    def scan(self, node: int) -> list[Found]:
        return [Found(name, None, "unreadable") for name in self._names]


@given(st.lists(st.binary(max_size=1030) | st.sampled_from([b"", b".", b"..", b"a/b", b"a\0b", b"good"])))
def test_names_that_the_kernel_would_choke_on_are_left_out(names: Sequence[bytes]) -> None:
    found = [entry.name for entry in scan_of(Forged(names), 1)]  # type: ignore[arg-type]
    assert found == [
        name
        for name in names
        if 0 < len(name) <= 1024 and not {b"/", b"\0"} & {name[at : at + 1] for at in range(len(name))}
        if name not in (b".", b"..")
    ]


def test_names_of_volumes() -> None:
    space = WholeDisk(MemoryDisk(bytes(512)), 0)

    def found(key: str, name: str, partition: str | None = None) -> FoundVolume:
        table = Partition(name=partition, number=1, start=0, length=1, type="") if partition else None
        return FoundVolume(key=key, name=name, kind="disk", space=space, partition=table)

    long = "x" * 255
    names = volume_names(
        [found("0/p1", f"{long}-p1", "p1"), found("lvm/a/b", "vg-root"), found("1", long), found("2", "a/b")]
    )
    assert names == [b"x" * 248 + b"-p1", b"vg-root", b"x" * 251, b"a_b"]
