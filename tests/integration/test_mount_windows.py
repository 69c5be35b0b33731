"""files/ in real mounts, of NTFS, FAT, exFAT and ISO 9660: all that was written to them, though this kernel
may not know them. And of damaged file systems: whatever a disk holds, the mount and the commands live on."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from command_helpers import Site
from guest_mutations import mutate, used_blocks
from guest_tree_helpers import (
    SECOND,
    Seen,
    by_kernel,
    differences,
    mounted_exfat,
    mounted_ntfs,
    plain_tree,
    run,
)
from hostile_helpers import forge_btrfs, forge_xfs, metadata_of, mutants
from kernel_tree_helpers import RAW_OPTIONS, kernel_mount, make_file_system, need_mkfs, partitions_of
from mount_helpers import MIB, mounted, needs_fuse, needs_sfdisk
from recovery_helpers import vmfs

from vmfs.volumes.files.worker.btrfs import BtrfsReader
from vmfs.volumes.files.worker.xfs import XfsReader

TOOLS = ("mkntfs", "ntfs-3g", "mkfs.vfat", "mcopy", "mkfs.exfat", "mount.exfat-fuse", "losetup", "xorriso")
pytestmark = [
    needs_fuse,
    needs_sfdisk,
    pytest.mark.root,
    pytest.mark.skipif(not all(map(shutil.which, TOOLS)), reason="needs " + ", ".join(TOOLS)),
]
UTC = {"TZ": "UTC", "LC_ALL": "C.UTF-8"}


class Kept(NamedTuple):
    """What a file system keeps of a file: its times in so many nanoseconds; the modes that its files and
    directories have where it has none."""

    resolution: int
    file_mode: int | None = None
    folder_mode: int | None = None


KEPT = {
    "ntfs": Kept(100, 0o777, 0o777),
    "fat": Kept(2 * SECOND, 0o755, 0o755),
    # It could be hundredths of seconds, which exfat-fuse does not write.
    "exfat": Kept(SECOND, 0o755, 0o755),
    "iso": Kept(SECOND),
    "joliet": Kept(SECOND, 0o555, 0o555),
}


def make_tree(root: Path, *, emoji: bool = True) -> Path:
    """Every entry has a time of its own."""
    plain_tree(root, many=80, emoji=emoji)
    for number, name in enumerate(sorted(by_kernel(root))):
        when = 1_600_000_000 * SECOND + number * 86_413_234_567_899
        os.utime(root / os.fsdecode(name), ns=(when, when))
    return root


def unix_extras(root: Path) -> None:
    """What only file systems have that know owners and modes."""
    (root / "setuid").write_bytes(b"#!")
    os.chown(root / "setuid", 1_000_000, 2_000_000)
    (root / "setuid").chmod(0o6711)
    (root / "secret").mkdir(mode=0o700)
    os.mkfifo(root / "fifo", 0o640)
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    link(root)


def link(root: Path) -> None:
    for name, target in (("link", "deep/l00"), ("long link", "/".join(["z" * 50] * 18)), ("ünï", "/日本")):
        (root / name).symlink_to(target)
        os.utime(root / name, (1_500_000_001, 1_500_000_001), follow_symlinks=False)


def empty(path: Path, mebibytes: int) -> Path:
    path.touch()
    os.truncate(path, mebibytes * MIB)
    return path


def ntfs_image(path: Path, tree: Path) -> Path:
    run("mkntfs", "-q", "-F", "-L", "Übung", empty(path, 48))
    with mounted_ntfs(path, path.with_suffix(".mount")) as mount:
        run("cp", "-a", tree, mount / "tree")
        os.setxattr(mount / "tree" / "1 bytes", "user.stream", b"alternate" * 1000)
    return path


def fat_image(path: Path, tree: Path, mebibytes: int, *options: str) -> Path:
    run("mkfs.vfat", *options, "-n", "A LABEL", empty(path, mebibytes))
    run("mcopy", "-s", "-m", "-i", path, tree, "::/tree", **UTC)
    return path


def exfat_image(path: Path, tree: Path, mebibytes: int) -> Path:
    run("mkfs.exfat", "-L", "Übung", empty(path, mebibytes))
    with mounted_exfat(path, path.with_suffix(".mount")) as mount:
        run("cp", "-r", "--preserve=timestamps", tree, mount / "tree", **UTC)
    return path


def iso_image(path: Path, tree: Path, *options: str) -> Path:
    words = ("-quiet", "-V", "A_LABEL", *options, "-o", path, "-graft-points", f"/tree={tree}")
    run("xorriso", "-as", "mkisofs", *words)
    return path


def as_kept(seen: dict[bytes, Seen], kept: Kept) -> dict[bytes, Seen]:
    """A tree, as a file system has it to whom it was given."""
    found = {}
    for name, each in seen.items():
        mode = int(each.mode, 8)
        own = kept.folder_mode if stat.S_ISDIR(mode) else kept.file_mode
        if own is not None:
            mode = stat.S_IFMT(mode) | own
        time = each.mtime // kept.resolution * kept.resolution
        found[name] = each._replace(mode=oct(mode), mtime=time)
    return found


def test_every_file_is_as_it_was_written(tmp_path: Path) -> None:
    """A disk with partitions of NTFS, FAT32 and exFAT, and two disks that are ISOs without partitions."""
    tree = make_tree(tmp_path / "tree")
    no_emoji = make_tree(tmp_path / "no emoji", emoji=False)
    with_links = make_tree(tmp_path / "with links")
    link(with_links)
    os.link(with_links / "4097 bytes", with_links / "hard link")
    of_unix = make_tree(tmp_path / "of unix")
    unix_extras(of_unix)
    short = tmp_path / "short"
    (short / "Ünïcödé and Case").mkdir(parents=True)
    (short / "Ünïcödé and Case" / "日本 of Joliet.Text").write_bytes(os.urandom(70_000))
    disk = partitions_of(
        [
            ntfs_image(tmp_path / "ntfs", with_links),
            fat_image(tmp_path / "fat", no_emoji, 40, "-F", "32"),
            exfat_image(tmp_path / "exfat", tree, 32),
        ],
        tmp_path / "disk",
    )
    rock_ridge = iso_image(tmp_path / "iso", of_unix, "-R", "-J")
    joliet = iso_image(tmp_path / "joliet", short, "--norock", "-J")
    site = Site(tmp_path)
    site.init()
    site.ingest("win", f"vda={disk}", f"sr0={rock_ridge}", f"sr1={joliet}")

    sources = {"vda-p1": ("ntfs", with_links), "vda-p2": ("fat", no_emoji), "vda-p3": ("exfat", tree)}
    sources["sr0"] = ("iso", of_unix)
    with site.open() as repository, mounted(repository, tmp_path / "mnt") as mount:
        files = mount.path / "win" / "latest" / "files"
        assert set(os.listdir(files)) == {*sources, "sr1"}
        for volume, (kind, source) in sources.items():
            assert os.listdir(files / volume) == ["tree"]
            seen = by_kernel(files / volume / "tree")
            wanted = as_kept(by_kernel(source), KEPT[kind])
            assert differences(seen, wanted, "links", "xattrs") == [], volume
        ntfs = files / "vda-p1" / "tree"
        assert (ntfs / "hard link").samefile(ntfs / "4097 bytes")
        assert (ntfs / "hard link").stat().st_nlink == 2
        assert os.getxattr(ntfs / "1 bytes", "user.ads.stream") == b"alternate" * 1000
        # What Joliet alone does not have: modes and owners.
        seen = by_kernel(files / "sr1" / "tree")
        assert differences(seen, as_kept(by_kernel(short), KEPT["joliet"]), "links") == []
        assert "unexpected" not in mount.log

    chosen = {
        "vda-p1": "long link",
        "vda-p2": "4097 bytes",
        "vda-p3": "1123457 bytes",
        "sr0": "setuid",
        "sr1": "Ünïcödé and Case/日本 of Joliet.Text",
    }
    sources["sr1"] = ("joliet", short)
    paths = [f"{volume}:/tree/{name}" for volume, name in chosen.items()]
    (tmp_path / "copies").mkdir()
    done = vmfs(site, "cp", "-a", "win@latest", *paths, tmp_path / "copies")
    assert (done.status, done.err) == (0, "")
    copies = {path.name: path for path in (tmp_path / "copies").iterdir()}
    assert len(copies) == len(chosen)
    for volume, name in chosen.items():
        kind, source = sources[volume]
        (wanted,) = as_kept(by_kernel(source / name), KEPT[kind]).values()
        assert by_kernel(copies[Path(name).name])[b""] == wanted
    # cat follows the links of a guest.
    paths[0] = "vda-p1:/tree/link/f.txt"
    done = vmfs(site, "cat", "win@latest", *paths)
    assert (done.status, done.err) == (0, "")
    chosen["vda-p1"] = "deep/l00/f.txt"
    assert done.out.encode("latin-1") == b"".join(
        (sources[volume][1] / name).read_bytes() for volume, name in chosen.items()
    )


SEED = 5
OF_EACH = 3
SIZES = {"ext4": 8 * MIB, "xfs": 64 * MIB, "btrfs": 128 * MIB}
FORGED: dict[str, tuple[Callable[..., XfsReader | BtrfsReader], Callable[[bytearray], None]]] = {
    "xfs": (XfsReader, forge_xfs),
    "btrfs": (BtrfsReader, forge_btrfs),
}
"""Where all metadata has checksums, these are made right."""
BOOT_BLOCKS = {"ext4": 0, "fat": 1, "exfat": 12}
"""By which they are known, and which stay: else nothing of them would be read."""
READ_AT_ONCE = MIB
CONTENT = b"MARKER--" * 20_000
# What cannot be read; a name that is gone; a directory that is its own parent; what is not supported.
ALLOWED = {errno.EIO, errno.ENOENT, errno.ELOOP, errno.EOPNOTSUPP}


def marked_tree(root: Path) -> Path:
    """Whose data is told from metadata by what `damaged` leaves alone."""
    (root / "dir" / "below").mkdir(parents=True)
    for number in range(60):
        (root / "dir" / f"a longer name of a file {number}").write_bytes(b"MARKER" * number)
    (root / "file").write_bytes(CONTENT)
    with (root / "sparse").open("wb") as file:
        for at in range(0, 600_000, 16384):
            file.seek(at)
            file.write(b"MARKER--" * 64)
    return root


def unix_marked_tree(root: Path) -> None:
    marked_tree(root)
    (root / "link").symlink_to("dir/below")
    (root / "long link").symlink_to("x" * 300)
    os.link(root / "file", root / "dir" / "below" / "hard link")
    os.mkfifo(root / "fifo")
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    for size in (0, 20, 2000):
        os.setxattr(root / "file", f"user.{size}", b"x" * size)


def small_images(folder: Path) -> dict[str, Path]:
    images = {kind: folder / f"{kind}.image" for kind in SIZES}
    for kind, image in images.items():
        need_mkfs(kind)
        make_file_system(kind, image, unix_marked_tree, SIZES[kind])
    tree = marked_tree(folder / "marked")
    images["fat"] = fat_image(folder / "fat.image", tree, 4)
    images["exfat"] = exfat_image(folder / "exfat.image", tree, 4)
    return images


def damaged(kind: str, image: Path) -> list[bytes]:
    """Images with changes in their metadata, the same for each run."""
    data = image.read_bytes()
    if kind in FORGED:
        reader, forge = FORGED[kind]
        places = metadata_of(reader, data)
        return [each.read(0, each.size) for _, each in mutants(data, places, OF_EACH, forge, SEED)]
    used = [block for block in used_blocks(data, b"MARKER") if block >= BOOT_BLOCKS[kind]]
    return [mutate(data, used, SEED + number) for number in range(OF_EACH)]


def read_everything(top: Path) -> tuple[int, Counter[int]]:
    """Walk a tree and ask for everything: how many entries there were, and which errors."""
    met: Counter[int] = Counter()

    def attempt(action: Callable[[], object]) -> None:
        try:
            action()
        except OSError as error:
            note(error)

    def note(error: OSError) -> None:
        assert error.errno is not None
        met[error.errno] += 1

    count = 0
    for folder, folders, names in os.walk(os.fsencode(top), onerror=note):
        for name in folders + names:
            count += 1
            path = os.path.join(folder, name)
            attempt(lambda path=path: read_one(path))
            attempt(lambda path=path: read_attributes(path))
    return count, met


def read_attributes(path: bytes) -> None:
    for name in os.listxattr(path, follow_symlinks=False):
        os.getxattr(path, name, follow_symlinks=False)


def read_one(path: bytes) -> None:
    """Of what claims to be endless, only the ends."""
    status = os.lstat(path)
    if stat.S_ISLNK(status.st_mode):
        os.readlink(path)
    elif stat.S_ISREG(status.st_mode):
        with open(path, "rb", buffering=0) as file:
            for offset in {0, max(0, status.st_size - READ_AT_ONCE)}:
                os.pread(file.fileno(), READ_AT_ONCE, offset)


@pytest.mark.slow
def test_damaged_file_systems_harm_nobody(tmp_path: Path) -> None:
    """Many on one disk: each fails for itself, by errors, and the one that is good is read as if alone."""
    images = small_images(tmp_path)
    partitions = []
    for kind, image in images.items():
        for number, data in enumerate(damaged(kind, image)):
            partitions.append(tmp_path / f"{kind}.{number}")
            partitions[-1].write_bytes(data)
    with kernel_mount(images["ext4"], f"ro,{RAW_OPTIONS['ext4']}") as top:
        truth = by_kernel(top)
    disk = partitions_of([*partitions, images["ext4"]], tmp_path / "disk")
    good = f"vda-p{len(partitions) + 1}"
    site = Site(tmp_path)
    site.init()
    site.ingest("evil", f"vda={disk}")

    with site.open() as repository, mounted(repository, tmp_path / "mnt") as mount:
        files = mount.path / "evil" / "latest" / "files"
        volumes = sorted({*os.listdir(files)} - {good})
        assert len(volumes) > len(partitions) * 2 // 3
        found = {volume: read_everything(files / volume) for volume in [*volumes, good]}
        assert [volume for volume in volumes if not found[volume][1].keys() <= ALLOWED] == [], found
        # Else nothing was tested.
        assert sum(bool(met) for _, met in found.values()) >= 3, found
        assert sum(count > 50 for count, _ in found.values()) >= 5, found
        assert not found[good][1]
        assert differences(by_kernel(files / good), truth) == []
        assert mount.process.poll() is None
        assert "unexpected" not in mount.log
        assert "Traceback" not in mount.log

    tops = [f"{volume}:/" for volume in [*volumes, good]]
    done = [site.vmfs("ls", "-R", "evil@latest", top) for top in tops]
    for command, *argv in (
        ["find", "--walk", "--point", "evil@latest", "*"],
        ["index", "evil@latest"],
        ["tar", "evil@latest", *tops, "-o", str(tmp_path / "out.tar")],
    ):
        done.append(vmfs(site, command, *argv))
        assert done[-1].status == 1
    for each in done:
        assert each.status in (0, 1), each.err
        assert [line for line in each.err.splitlines() if not line.startswith("vmfs: ")] == []

    with tarfile.open(tmp_path / "out.tar") as archive:
        file = archive.extractfile(f"{good}/file")
        assert file is not None
        assert file.read() == CONTENT
