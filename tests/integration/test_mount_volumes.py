"""volumes/ in real mounts: logical volumes over several disks, in pieces and in stripes, and bare disks."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path

import pytest
from granular_images import GuestImage, SeenFile
from kernel_tree_helpers import RAW_OPTIONS, facts, fill, kernel_mount, make_file_system, need_mkfs
from mount_helpers import MIB, add_point, command, damage, mounted, needs_fuse, run
from volume_helpers import group_text, linear, physical_volume, uuid_of, volume_text

from vmfs.repo import names
from vmfs.repo.repository import Repository

pytest_plugins = "granular_fixtures"
pytestmark = [needs_fuse, pytest.mark.root]

_EXTENT = MIB
_START = MIB
_STRIPE = 64 << 10


def group_over_two_disks(tmp_path: Path) -> tuple[dict[str, bytes | Path], dict[str, bytes]]:
    """The disks, and the logical volumes on them: ext4 in three pieces, XFS in stripes over both."""
    for kind in ("ext4", "xfs"):
        need_mkfs(kind)
        make_file_system(kind, tmp_path / f"{kind}.image", fill)
    pieces, striped = (tmp_path / "ext4.image").read_bytes(), (tmp_path / "xfs.image").read_bytes()
    extents = len(pieces) // _EXTENT
    half = len(striped) // _EXTENT // 2
    text = group_text(
        {"pv0": (uuid_of("a"), _START // 512, 400), "pv1": (uuid_of("b"), _START // 512, 400)},
        volume_text(
            "root",
            [(0, 20, linear("pv0", 10)), (20, 30, linear("pv1", 0)), (50, extents - 50, linear("pv0", 40))],
        )
        + "\n"
        + volume_text(
            "data",
            [
                (
                    0,
                    2 * half,
                    'type = "striped" stripe_count = 2 stripe_size = 128 '
                    'stripes = [ "pv0", 100, "pv1", 100 ]',
                )
            ],
            number=1,
        ),
        extent_sectors=_EXTENT // 512,
    )
    disks = [physical_volume(uuid_of(letter), 200 * MIB, text) for letter in "ab"]

    def put(disk: int, extent: int, data: bytes) -> None:
        at = _START + extent * _EXTENT
        disks[disk][at : at + len(data)] = data

    put(0, 10, pieces[: 20 * _EXTENT])
    put(1, 0, pieces[20 * _EXTENT : 50 * _EXTENT])
    put(0, 40, pieces[50 * _EXTENT :])
    columns = [bytearray(), bytearray()]
    for number, start in enumerate(range(0, len(striped), _STRIPE)):
        columns[number % 2] += striped[start : start + _STRIPE]
    put(0, 100, bytes(columns[0]))
    put(1, 100, bytes(columns[1]))
    return (
        {"sda": bytes(disks[0]), "sdb": bytes(disks[1])},
        {"vg-root": pieces, "vg-data": striped},
    )


def test_logical_volumes_over_two_disks(repository: Repository, tmp_path: Path) -> None:
    disks, volumes = group_over_two_disks(tmp_path)
    truth = {}
    for name, kind in (("vg-root", "ext4"), ("vg-data", "xfs")):
        with kernel_mount(tmp_path / f"{kind}.image", f"ro,{RAW_OPTIONS[kind]}") as top:
            truth[name] = facts(top)
    add_point(repository, disks)
    with mounted(repository, tmp_path / "mnt") as mount:
        point = mount.path / "web" / "latest"
        assert set(os.listdir(point / "files")) == set(volumes)
        for name, content in volumes.items():
            raw = point / "volumes" / f"{name}.raw"
            assert raw.stat().st_size == len(content)
            assert raw.read_bytes() == content
            # Across the seams too.
            with raw.open("rb") as file:
                for at in (20 * _EXTENT - 5, 50 * _EXTENT - 5, _STRIPE - 5, len(content) - 5):
                    assert os.pread(file.fileno(), 10, at) == content[at : at + 10]
            assert facts(point / "files" / name) == truth[name]
            kind = "ext4" if name == "vg-root" else "xfs"
            with kernel_mount(raw, f"ro,{RAW_OPTIONS[kind]}") as top:
                assert facts(top) == truth[name]
        told = {
            volume["name"]: volume for volume in json.loads((point / "point.json").read_bytes())["volumes"]
        }
        assert told["vg-root"]["kind"] == "lvm"
        assert told["vg-root"]["type"] == "ext4"
        assert len(told["vg-data"]["on"]) == 2
        assert told["vg-data"]["files"] == "files/vg-data"
        assert "unexpected" not in mount.log
    shown = run(*command(repository, "show", repository.store.url, "web@latest"))
    assert "vg-root" in shown.stdout
    assert "LVM2_member" in shown.stdout


def test_a_bad_chunk_below_a_logical_volume(repository: Repository, tmp_path: Path) -> None:
    """EIO for what lies on it, and the rest of the volume can be read."""
    disks, volumes = group_over_two_disks(tmp_path)
    point = add_point(repository, disks)
    size = repository.chunk_size
    # In the second piece of the one volume, which lies on the second disk: any chunk that holds something.
    first = _START // size
    ids = repository.open_disk(point.manifest.disks[1]).chunk_ids(first, 30 * _EXTENT // size)
    chunk, blob_id = next((number, found) for number, found in enumerate(ids) if found is not None)
    content = volumes["vg-root"]
    bad = [20 * _EXTENT + number * size for number, found in enumerate(ids) if found == blob_id]
    assert chunk * size + 20 * _EXTENT == bad[0]
    location = repository.index.find(blob_id)
    assert location is not None
    damage(repository, names.pack(location.pack), location.offset + 300)
    with mounted(repository, tmp_path / "mnt") as mount:
        raw = mount.path / "web" / "latest" / "volumes" / "vg-root.raw"
        descriptor = os.open(raw, os.O_RDONLY)
        try:
            for at in range(0, len(content), size):
                if at in bad:
                    with pytest.raises(OSError, match="Input/output error"):
                        os.pread(descriptor, size, at)
                else:
                    assert os.pread(descriptor, size, at) == content[at : at + size], at
        finally:
            os.close(descriptor)
        assert "volume vg-root" in mount.log


def test_a_bare_disk_and_one_of_nothing(repository: Repository, tmp_path: Path) -> None:
    """A file system without a partition table is a volume; noise is none."""
    need_mkfs("ext4")
    make_file_system("ext4", tmp_path / "image", fill)
    add_point(repository, {"sda": tmp_path / "image", "sdb": os.urandom(2 * MIB)})
    with mounted(repository, tmp_path / "mnt") as mount:
        point = mount.path / "web" / "latest"
        assert os.listdir(point / "volumes") == ["sda.raw"]
        assert os.listdir(point / "files") == ["sda"]
        assert (point / "volumes" / "sda.raw").read_bytes() == (tmp_path / "image").read_bytes()
        assert (point / "files" / "sda" / "hard link").read_bytes() == b"deep"
        assert os.listdir(point / "disks") == ["sda.raw", "sdb.raw"]


def test_a_damaged_file_system_is_named_once_and_well(repository: Repository, tmp_path: Path) -> None:
    """In the mount, where there are many points, and in the commands, where there is one."""
    need_mkfs("ext4")
    make_file_system("ext4", tmp_path / "image", fill)
    content = bytearray((tmp_path / "image").read_bytes())
    content[1024 + 24 : 1024 + 28] = b"\xff" * 4
    point = add_point(repository, {"sda": bytes(content)})
    with mounted(repository, tmp_path / "mnt") as mount:
        with pytest.raises(OSError, match="Input/output error"):
            os.listdir(mount.path / "web" / "latest" / "files" / "sda")
        lines = [line for line in mount.log.splitlines() if "sda" in line]
        assert lines
        assert all(f"volume sda of point {point.id}: " in line for line in lines)
        assert all(line.count("sda") == 1 for line in lines), lines
    shown = run(*command(repository, "show", repository.store.url, "web@latest")).stdout.splitlines()
    (said,) = [line for line in shown if line.startswith("sda: ")]
    assert "volume sda" not in said
    listed = run(*command(repository, "ls", repository.store.url, "web@latest", "/")).stderr
    assert "volume sda: " in listed
    assert "sda: volume sda" not in listed


@pytest.mark.slow
def test_all_that_a_kernel_made_on_two_disks(
    guest_image: GuestImage, repository: Repository, tmp_path: Path
) -> None:
    """LVM2 and md of every kind: each volume is a file equal to what the kernel saw, and its files are in
    files/."""
    add_point(repository, {path.stem: path for path in guest_image.disks})
    with mounted(repository, tmp_path / "mnt") as mount:
        point = mount.path / "web" / "latest"
        digests = {}
        for raw in (point / "volumes").iterdir():
            with raw.open("rb") as file:
                digests[raw.stem] = hashlib.file_digest(file, "sha256").hexdigest()
        names = {name: name.replace("/", "-") for name in guest_image.volumes if name.startswith("vg-")}
        assert len(names) > 10
        for name, stem in names.items():
            if "/disk/" not in name:
                assert digests[stem] == guest_image.volumes[name], name
        assert set(guest_image.volumes.values()) <= set(digests.values())
        for tree, seen in guest_image.trees.items():
            stem = tree.replace("/", "-") if "vg" in tree else f"first-p{tree[2:]}"
            assert seen_below(point / "files" / stem) == seen, tree
            raw = point / "volumes" / f"{stem}.raw"
            with raw.open("rb") as file:
                kind = "xfs" if file.read(4) == b"XFSB" else "ext4"
            with kernel_mount(raw, f"ro,{RAW_OPTIONS[kind]}") as top:
                assert seen_below(top) == seen, tree
        assert "unexpected" not in mount.log
        assert "Traceback" not in mount.log


def seen_below(top: Path) -> dict[str, SeenFile]:
    found = {}
    for path in top.rglob("*"):
        status = path.lstat()
        found[str(path.relative_to(top))] = SeenFile(
            mode=status.st_mode,
            uid=status.st_uid,
            gid=status.st_gid,
            size=status.st_size,
            mtime=status.st_mtime_ns,
            links=status.st_nlink,
            device=(os.major(status.st_rdev), os.minor(status.st_rdev)),
            target=os.readlink(path) if path.is_symlink() else "",
            sha256=hashlib.sha256(path.read_bytes()).hexdigest() if stat.S_ISREG(status.st_mode) else "",
        )
    return found
