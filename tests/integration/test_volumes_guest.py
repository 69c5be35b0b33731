"""LVM2 and md as a real kernel has written them: each volume equals what the kernel itself saw."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from itertools import chain, combinations
from pathlib import Path

import pytest
from granular_images import GuestImage, SeenFile
from volume_helpers import FileDisk, sha256

from vmfs.volumes.files.client import open_filesystem
from vmfs.volumes.layout import FoundVolume, Layout, PointDisk, find_volumes
from vmfs.volumes.lvm import assembly
from vmfs.volumes.lvm.mapping import Mapper
from vmfs.volumes.pieces import LaidSpace

pytest_plugins = "granular_fixtures"
pytestmark = pytest.mark.slow


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def look(paths: Sequence[Path], opened: ExitStack) -> Layout:
    spaces = [opened.enter_context(closing(FileDisk(path))) for path in paths]
    return find_volumes([PointDisk(path.stem, space, 512) for path, space in zip(paths, spaces, strict=True)])


def seen_as(volume: FoundVolume) -> str:
    """The name that the guest has for it."""
    if volume.kind == "lvm":
        return f"{volume.group}/{volume.logical}"
    if volume.kind == "md":
        # Version 0.90 has no names.
        return "md/0.90" if volume.key[3:11] == volume.name[3:] else volume.name.replace("-", "/", 1)
    if volume.key.startswith("lvm/"):
        return "vg-one/disk/" + volume.key.rsplit("p", 1)[-1]
    return volume.key.replace("/p", "/")


def test_every_volume_equals_what_the_kernel_saw(guest_image: GuestImage, opened: ExitStack) -> None:
    layout = look(guest_image.disks, opened)
    (warning,) = layout.warnings
    assert warning.endswith("first-p9 is out of date or not in sync; it is not used")
    volumes = {seen_as(volume): volume for volume in layout.volumes}
    assert len(volumes) == len(layout.volumes)
    assert len(guest_image.volumes) > 35
    assert {name: sha256(volumes[name].space) for name in guest_image.volumes} == guest_image.volumes
    # And nothing that the guest did not have, but for the partitions that it was not asked about.
    assert {name for name in set(volumes) - set(guest_image.volumes) if "/" not in name[2:]} == set(
        volumes
    ) - set(guest_image.volumes)
    # The leg that was lost is not looked at.
    assert len(volumes["vg-one/r1"].space.footprint()) == 2
    for volume in layout.volumes:
        end = 0
        for start, length, zero in volume.space.extents():
            assert start == end
            end += length
            for offset in range(start, end if zero else start, 1 << 20):
                assert not any(volume.space.read(offset, min(1 << 20, end - offset)))
        assert end == volume.space.size


def test_pieces_lead_to_the_same_bytes(guest_image: GuestImage, opened: ExitStack) -> None:
    layout = look(guest_image.disks, opened)
    disks = [opened.enter_context(closing(FileDisk(path))) for path in guest_image.disks]
    plain = {
        "vg-one-lin": [1],
        "vg-one-multi": [3],
        "vg-one-r1": [1, 1],
        "md-row": [2],
        "vg-two-inner": [1, 1],
        "vg-one-disk-p2": [1],
    }
    for volume in layout.volumes:
        copies = volume.space.copies()
        if volume.name in plain:
            assert [len(pieces) for pieces in copies] == plain[volume.name]
        for piece in chain.from_iterable(copies):
            assert volume.space.read(piece.start, piece.length) == disks[piece.disk].read(
                piece.offset, piece.length
            )
    assert all(
        volume.space.copies() == ()
        for volume in layout.volumes
        if volume.name in ("vg-one-r5", "vg-one-thin1")
    )


def test_probed_as_blkid_says(guest_image: GuestImage, opened: ExitStack) -> None:
    found = {}
    for volume in look(guest_image.disks, opened).volumes:
        name = f"/dev/{seen_as(volume)}"
        for disk, letter in (("0", "a"), ("1", "b")):
            name = name.replace(f"/dev/{disk}/", f"/dev/vd{letter}")
        found[name.replace("/dev/md/mirror", "/dev/md11")] = volume.content and tuple(volume.content)
    assert len(guest_image.blkid) == 35
    assert {name: found[name] for name in guest_image.blkid} == guest_image.blkid


def test_one_disk_alone(guest_image: GuestImage, opened: ExitStack) -> None:
    """Volumes that lie wholly on it are there, mirrors too, and what can be computed from parity; of the
    others it is said what they lack."""
    layout = look(guest_image.disks[:1], opened)
    volumes = {seen_as(volume): volume for volume in layout.volumes if volume.kind != "partition"}
    names = ["lin", "gap", "str2", "str3", "mir", "r1", "r0", "r0m", "r10", "r4", "disk", "snapped", "snap"]
    names += ["r5", "r5la", "r5ra", "r5rs", "r5n", "r6", "r6nr", "r6nc", "r6n_6", "r6ls_6", "r6ra_6"]
    # LVM keeps a pool's metadata away from its data, here on the second disk.
    arrays = {"vg-two/inner", "md/mirror", "md/near", "md/five", "md/0.90"}
    expected = {f"vg-one/{name}" for name in names} | arrays
    assert set(volumes) == expected
    # The leg that this array lost: alone, it cannot know.
    del volumes["md/0.90"]
    assert {name: sha256(volume.space) for name, volume in volumes.items()} == {
        name: guest_image.volumes[name] for name in volumes
    }
    said = "\n".join(layout.warnings)
    for name in ("multi", "thin1", "thinsnap"):
        assert f"volume group vg-one: volume {name} is left out: its physical volume" in said
    for name in ("zones", "row", "old", "far", "offset"):
        assert f"array md-{name} is left out: " in said
    assert "volume group vg-one: volume r6: 2 of its 5 members are missing or out of date; what they" in said
    assert "array md-five: 1 of its 3 members are missing or out of date; what they held is" in said


@pytest.mark.parametrize("lost", [*((n,) for n in range(5)), *combinations(range(5), 2)])
def test_whatever_members_are_lost_their_content_is_computed(
    guest_image: GuestImage, opened: ExitStack, monkeypatch: pytest.MonkeyPatch, lost: Sequence[int]
) -> None:
    """From the parity that the kernel has written, in every layout."""

    class Losing(Mapper):
        def _drop_stale(self, columns: list[LaidSpace | None], metas: list[str]) -> None:
            for number in lost:
                if number < len(columns):
                    columns[number] = None

    monkeypatch.setattr(assembly, "Mapper", Losing)
    found = {
        volume.logical: sha256(volume.space)
        for volume in look(guest_image.disks, opened).volumes
        if volume.logical and volume.logical.startswith(("r4", "r5", "r6"))
    }
    # Six are RAID 6; of the others, RAID 4 has three members, and RAID 5 four.
    assert sum(name.startswith("r6") for name in found) == 6
    for name, members in (("r4", 3), ("r5", 4), ("r5la", 4), ("r5ra", 4), ("r5rs", 4), ("r5n", 4)):
        assert (name in found) is (sum(number < members for number in lost) < 2)
    assert found == {name: guest_image.volumes[f"vg-one/{name}"] for name in found}


def test_the_other_disk_alone(guest_image: GuestImage, opened: ExitStack) -> None:
    """A mirror is read from its second leg."""
    layout = look(guest_image.disks[1:], opened)
    volumes = {seen_as(volume): volume for volume in layout.volumes}
    for name in ("md/mirror", "md/0.90", "md/near", "vg-two/inner"):
        assert sha256(volumes[name].space) == guest_image.volumes[name]


TREES = ("0/2", "vg-one/lin", "vg-one/multi", "vg-one/thin1", "vg-one/thinsnap")


@pytest.mark.parametrize("tree", TREES)
def test_every_file_in_the_volumes_is_as_the_kernel_saw_it(
    guest_image: GuestImage, opened: ExitStack, tree: str
) -> None:
    """ext4 on a partition and on a logical volume, XFS over three pieces, ext4 in a thin volume and its
    snapshot."""
    volumes = {seen_as(volume): volume for volume in look(guest_image.disks, opened).volumes}
    volume = volumes[tree]
    assert volume.content is not None
    files = opened.enter_context(open_filesystem(volume.space, volume.content.type, name=volume.name))
    found: dict[str, SeenFile] = {}
    waiting = [("", files.root().node)]
    while waiting:
        base, directory = waiting.pop()
        for entry in files.scan(directory):
            assert entry.stat is not None, entry.problem
            known = entry.stat
            path = f"{base}{entry.name.decode()}"
            target = digest = ""
            if stat.S_ISDIR(known.mode):
                waiting.append((f"{path}/", known.node))
            elif stat.S_ISLNK(known.mode):
                target = files.readlink(known.node).decode()
            elif stat.S_ISREG(known.mode):
                digest = hashlib.sha256(files.read(known.node, 0, known.size)).hexdigest()
            found[path] = SeenFile(
                mode=known.mode,
                uid=known.uid,
                gid=known.gid,
                size=known.size,
                mtime=known.mtime,
                links=known.links,
                device=(os.major(known.device), os.minor(known.device)),
                target=target,
                sha256=digest,
            )
    assert found == guest_image.trees[tree]
