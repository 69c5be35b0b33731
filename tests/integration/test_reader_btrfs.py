"""The reader of Btrfs against the kernel: the same file systems, everything compared."""

from __future__ import annotations

import errno
import os
import random
import shutil
import stat
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import google_crc32c
import pytest
from hostile_helpers import forge_btrfs
from kernel_tree_helpers import SIZES, fill, format_image, kernel_mount, make_file_system, need_mkfs
from mount_helpers import MIB
from reader_helpers import (
    check_errors,
    check_image,
    check_refused,
    check_same,
    fill_more,
    opened,
    reader_facts,
)

from vmfs.volumes.files.worker.btrfs import BtrfsReader
from vmfs.volumes.files.worker.btrfs.reader import LOG
from vmfs.volumes.files.worker.btrfs.superblock import PLACES
from vmfs.volumes.files.worker.model import Device, ReaderError

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root (loop mounts)"),
]
KINDS = {
    "defaults": (),
    "data twice, small nodes": ("-m", "dup", "-d", "dup", "-n", "4096"),
    "single, xxhash": ("-m", "single", "-d", "single", "--csum", "xxhash"),
    "mixed groups, sha256": ("--mixed", "--csum", "sha256"),
    "nodes of 64 KiB, blake2b": ("-n", "65536", "--csum", "blake2"),
    "explicit holes": ("-O", "^no-holes", "-R", "^free-space-tree"),
}
SIZE = 256 * MIB
COMPRESSIONS = ("zlib:1", "zlib:9", "lzo", "zstd:1", "zstd:15")


def btrfs(*arguments: str | Path) -> None:
    subprocess.run(["btrfs", *arguments], check=True, capture_output=True)


def fill_all(top: Path) -> None:
    fill(top)
    limit = 3000 if _node_size(top) < 16384 else 16_000
    fill_more(top, largest_attribute=limit)
    subprocess.run(["cp", "--reflink=always", top / f"size {3 * MIB + 17}", top / "reflink"], check=True)
    with (top / "reflink").open("r+b") as file:
        file.seek(MIB)
        file.write(b"no longer shared" * 500)
    for name in names_of_one_hash():
        (top / name).write_text(name)
        os.setxattr(top / "xattrs", f"user.{name}", name.encode())
    # So many names of one file that not all fit in one reference to its directory.
    (top / "of many names").touch()
    for number in range(400):
        os.link(top / "of many names", top / "names" / f"{'n' * 150}{number}")


@cache
def names_of_one_hash() -> frozenset[str]:
    """Two, at least: such entries of a directory, and attributes, share an item."""
    generator = random.Random(5)  # noqa: S311
    seen: dict[int, str] = {}
    names = set()
    for _ in range(150_000):
        name = f"{generator.getrandbits(64):016x}"
        other = seen.setdefault(google_crc32c.value(name.encode()), name)
        if other != name:
            names |= {name, other}
    assert names
    return frozenset(names)


def _node_size(top: Path) -> int:
    found = subprocess.run(
        ["btrfs", "filesystem", "show", top], capture_output=True, text=True, check=True
    ).stdout
    uuid = found.split("uuid: ")[1].split()[0]
    return int(Path(f"/sys/fs/btrfs/{uuid}/nodesize").read_text())


@pytest.mark.parametrize("kind", KINDS)
def test_all_is_as_the_kernel_has_it(tmp_path: Path, kind: str) -> None:
    need_mkfs("btrfs")
    image = tmp_path / "image"
    make_file_system("btrfs", image, fill_all, SIZE, "-L", "a label", *KINDS[kind])
    check_image(BtrfsReader, image, "a label")
    with opened(BtrfsReader, image) as reader:
        for name in names_of_one_hash():
            found = reader.lookup(reader.root().node, name.encode())
            assert reader.read(found.node, 0, 100) == name.encode()


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_compression(tmp_path: Path, compression: str) -> None:
    need_mkfs("btrfs")
    image = tmp_path / "image"
    format_image("btrfs", image, SIZE)
    generator = random.Random(4)  # noqa: S311
    with kernel_mount(image, f"compress-force={compression}") as top:
        # Inline; one sector; an extent that ends within a sector; many extents; text, zeros, a mix.
        for size in (10, 1500, 4096, 5000, 131_072, 131_073, MIB + 17):
            words = [b"%d words" % generator.randrange(1 << generator.randrange(1, 40)) for _ in range(4000)]
            text = b" ".join(generator.choices(words, k=size // 9 + 1))[:size]
            (top / f"text {size}").write_bytes(text)
            (top / f"zeros {size}").write_bytes(bytes(size))
            mix = b"".join(
                generator.choice((os.urandom(900), bytes(777), text[:3000])) for _ in range(size // 900 + 1)
            )
            (top / f"mix {size}").write_bytes(mix[:size])
        subprocess.run(["sync", "-f", top], check=True)
        with (top / f"text {MIB + 17}").open("r+b") as file:
            for offset in range(5000, MIB, 100_001):
                file.seek(offset)
                file.write(b"over" * 1000)
        subprocess.run(
            ["cp", "--reflink=always", top / f"mix {MIB + 17}", top / "reflink of a mix"], check=True
        )
        (top / "program").write_bytes(Path("/bin/sh").resolve().read_bytes())
    used = subprocess.run(
        ["btrfs", "inspect-internal", "dump-tree", "-t", "5", image],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    number = {"zlib": 1, "lzo": 2, "zstd": 3}[compression.split(":")[0]]
    assert f"extent compression {number}" in used
    assert "inline extent data" in used
    with kernel_mount(image, "ro") as top, opened(BtrfsReader, image) as reader:
        check_same(reader, top)
        # From within, in pieces of any size.
        found = reader.lookup(reader.root().node, b"program")
        wanted = (top / "program").read_bytes()
        for _ in range(200):
            offset, length = generator.randrange(len(wanted)), generator.randrange(1, 200_000)
            assert reader.read(found.node, offset, length) == wanted[offset : offset + length]


def test_subvolumes_and_snapshots(tmp_path: Path) -> None:
    need_mkfs("btrfs")
    image = tmp_path / "image"
    format_image("btrfs", image, SIZE)
    with kernel_mount(image) as top:
        btrfs("subvolume", "create", top / "one")
        (top / "one" / "file").write_bytes(b"first")
        os.link(top / "one" / "file", top / "one" / "again")
        (top / "one" / "folder").mkdir()
        btrfs("subvolume", "create", top / "one" / "folder" / "nested")
        (top / "one" / "folder" / "nested" / "deep").write_bytes(b"deep")
        btrfs("subvolume", "create", top / "one" / "folder" / "nested" / "deeper")
        btrfs("subvolume", "create", top / "one" / "folder" / "other")
        os.chown(top / "one" / "folder" / "nested" / "deeper", 5, 6)
        btrfs("subvolume", "snapshot", "-r", top / "one", top / "snapshot")
        (top / "one" / "file").write_bytes(b"second, longer")
        btrfs("subvolume", "create", top / "gone")
        (top / "gone" / "x").touch()
        btrfs("subvolume", "delete", "-c", top / "gone")
        (top / "one" / "folder" / "nested").rename(top / "one" / "renamed")
        identity = subprocess.run(
            ["btrfs", "inspect-internal", "rootid", top / "one"], capture_output=True, text=True, check=True
        )
        btrfs("subvolume", "set-default", identity.stdout.strip(), top)
    with kernel_mount(image, "ro,subvolid=5") as top, opened(BtrfsReader, image) as reader:
        folder = reader.lookup(reader.lookup(reader.root().node, b"snapshot").node, b"folder").node
        placeholders = [reader.lookup(folder, name) for name in (b"nested", b"other")]
        # Not one directory in two places.
        assert placeholders[0].node != placeholders[1].node
        for placeholder in placeholders:
            assert stat.S_ISDIR(placeholder.mode)
            assert list(reader.scan(placeholder.node)) == []
            assert reader.xattrs(placeholder.node) == {}
            assert reader.stat(placeholder.node) == placeholder
        # These have the time at which they are looked at.
        found = reader_facts(reader)
        found.pop(b"snapshot/folder/nested")
        found.pop(b"snapshot/folder/other")
        # The numbers of inodes are those of each subvolume.
        for name, fact in found.items():
            status = os.lstat(os.path.join(os.fsencode(top), name))
            wanted = (stat.S_IFMT(status.st_mode), (status.st_uid, status.st_gid), status.st_mtime_ns)
            assert (fact.kind, fact.owner, fact.mtime) == wanted, name
            assert (fact.links, fact.size) == (status.st_nlink, status.st_size), name
        assert set(found) == {
            b"",
            b"one",
            b"one/file",
            b"one/again",
            b"one/folder",
            b"one/folder/other",
            b"one/renamed",
            b"one/renamed/deep",
            b"one/renamed/deeper",
            b"snapshot",
            b"snapshot/file",
            b"snapshot/again",
            b"snapshot/folder",
        }
        assert found[b"one/again"].same == found[b"one/file"].same
        assert found[b"snapshot/again"].same == found[b"snapshot/file"].same
        assert found[b"snapshot/file"].same != found[b"one/file"].same
        for path, content in ((b"one", b"second, longer"), (b"snapshot", b"first")):
            file = reader.lookup(reader.lookup(reader.root().node, path).node, b"file")
            assert reader.read(file.node, 0, 100) == content
        assert reader.default_subvolume == int(identity.stdout)
        # What guests' fstab needs: the root of a subvolume by its number.
        assert reader.lookup(reader.root().node, b"one").node == reader.default_subvolume << 40 | 256
    with opened(BtrfsReader, image) as reader, pytest.raises(ReaderError) as caught:
        reader.stat(9999 << 40 | 256)
    assert caught.value.errno == errno.ENOENT


def test_a_log_of_syncs_is_said_so(tmp_path: Path) -> None:
    need_mkfs("btrfs")
    image, copy = tmp_path / "image", tmp_path / "copy"
    make_file_system("btrfs", image, lambda top: (top / "old").write_bytes(b"old"))
    with kernel_mount(image, "commit=300") as top:
        descriptor = os.open(top / "synced", os.O_WRONLY | os.O_CREAT)
        os.write(descriptor, b"synced")
        os.fsync(descriptor)
        os.close(descriptor)
        shutil.copyfile(image, copy)
    with opened(BtrfsReader, copy) as reader:
        assert reader.warnings == (LOG,)
        assert reader.lookup(reader.root().node, b"old").size == 3
    with opened(BtrfsReader, image) as reader:
        assert reader.warnings == ()
        assert reader.lookup(reader.root().node, b"synced").size == 6


def test_mirrors(tmp_path: Path) -> None:
    """Of the superblock, of nodes and of data: the other copy is taken when one is wrong, or unreadable."""
    need_mkfs("btrfs")
    image = tmp_path / "image"
    format_image("btrfs", image, SIZE, "-m", "dup", "-d", "dup")
    with kernel_mount(image) as top:
        fill(top)
    with opened(BtrfsReader, image) as reader:
        wanted = reader_facts(reader)
        first = [
            (chunk.copies[0], min(chunk.length, 16 * MIB))
            for chunk in reader._chunks._chunks
            if len(chunk.copies) == 2
        ]
    first.append((PLACES[0], 4096))

    def unreadable(device: Device) -> BtrfsReader:
        return BtrfsReader(Unreadable(device, first))

    with opened(unreadable, image) as reader:
        assert reader_facts(reader) == wanted
    with image.open("r+b") as file:
        for start, length in first:
            file.seek(start + 100)
            file.write(os.urandom(length - 100))
    with opened(BtrfsReader, image) as reader:
        assert reader_facts(reader) == wanted


class Unreadable:
    """A device of which some pieces (offset, length) cannot be read."""

    def __init__(self, device: Device, pieces: Sequence[tuple[int, int]]) -> None:
        self.size = device.size
        self._device = device
        self._pieces = pieces

    def read(self, offset: int, length: int) -> bytes:
        if any(start < offset + length and offset < start + size for start, size in self._pieces):
            raise OSError(errno.EIO, "of the test")
        return self._device.read(offset, length)


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_data_that_changed_are_not_given(tmp_path: Path, compression: str) -> None:
    need_mkfs("btrfs")
    image = tmp_path / "image"
    format_image("btrfs", image, SIZE, "-d", "single")
    content = os.urandom(1000) * 500
    with kernel_mount(image, f"compress-force={compression}") as top:
        (top / "file").write_bytes(content)
        (top / "unsummed").touch()
        subprocess.run(["chattr", "+C", top / "unsummed"], check=True)
        (top / "unsummed").write_bytes(b"y" * 10_000)
    with opened(BtrfsReader, image) as reader:
        file = reader.lookup(reader.root().node, b"file").node
        unsummed = reader.lookup(reader.root().node, b"unsummed").node
        found = reader.stat(file)
        extents = [extent for extent in reader._extents(found, 0) if extent.address]
        victim = extents[1 if compression == "zstd" else 0]
        places, _ = reader._chunks.places(victim.address, 1)
    start = victim.start
    with image.open("r+b") as raw:
        raw.seek(places[0] + 200)
        raw.write(b"changed")
    with opened(BtrfsReader, image) as reader:
        with pytest.raises(ReaderError, match="checksum") as caught:
            reader.read(file, start + 10, 10)
        assert caught.value.errno == errno.EIO
        after = start + (128 << 10)
        assert reader.read(file, after, 10_000) == content[after : after + 10_000]
        assert reader.read(unsummed, 0, 10_000) == b"y" * 10_000


@pytest.mark.parametrize("profile", ["raid1", "raid0", "single"])
def test_one_device_of_two(tmp_path: Path, profile: str) -> None:
    need_mkfs("btrfs")
    images = [tmp_path / "first", tmp_path / "second"]
    for image in images:
        with image.open("wb") as file:
            file.truncate(256 * MIB)
    options = ["-m", "raid1", "-d", profile]
    loops = [
        subprocess.run(
            ["losetup", "-f", "--show", image], capture_output=True, text=True, check=True
        ).stdout.strip()
        for image in images
    ]
    try:
        subprocess.run(["mkfs.btrfs", "-q", "-f", *options, *loops], check=True, capture_output=True)
        with kernel_mount(Path(loops[0]), f"device={loops[1]}") as top:
            fill(top)
            (top / "large").write_bytes(os.urandom(60 * MIB))
        if profile == "raid1":
            with kernel_mount(Path(loops[0]), f"ro,device={loops[1]}") as top:
                for image in images:
                    with opened(BtrfsReader, image) as reader:
                        assert "2 devices" in reader.warnings[0]
                        check_same(reader, top)
        else:
            refusals = []
            for image in images:
                try:
                    with opened(BtrfsReader, image):
                        pass
                except ReaderError as error:
                    refusals.append(error)
            assert refusals
            for refusal in refusals:
                assert refusal.errno == errno.EOPNOTSUPP
                assert "device" in str(refusal)
    finally:
        for loop in loops:
            subprocess.run(["losetup", "-d", loop], check=True)


def test_what_is_not_there_or_of_another_kind(tmp_path: Path) -> None:
    need_mkfs("btrfs")
    image = tmp_path / "image"
    make_file_system("btrfs", image, fill)
    with opened(BtrfsReader, image) as reader:
        root = reader.root().node
        file = reader.lookup(root, b"size 1").node
        check_errors(
            [
                (errno.ENOENT, lambda: reader.lookup(root, b"none")),
                (errno.ENOTDIR, lambda: reader.lookup(file, b"none")),
                (errno.ENOTDIR, lambda: list(reader.scan(file))),
                (errno.EINVAL, lambda: reader.read(root, 0, 1)),
                (errno.EINVAL, lambda: reader.readlink(root)),
                (errno.ENOENT, lambda: reader.stat(root + 999_999)),
                (errno.ENOENT, lambda: reader.stat(0)),
                (errno.ENOENT, lambda: reader.stat((1 << 64) - 1)),
            ]
        )


def test_what_is_no_btrfs_is_refused(tmp_path: Path) -> None:
    check_refused(BtrfsReader, tmp_path / "image", bytes(65536 + 64) + b"_BHRfS_M")


@pytest.mark.parametrize(("bit", "words"), [(0x4000, "tree of stripes"), (1 << 40, "features 0x10000000000")])
def test_what_is_not_known_is_refused(tmp_path: Path, bit: int, words: str) -> None:
    need_mkfs("btrfs")
    image = tmp_path / "image"
    format_image("btrfs", image)
    with image.open("r+b") as file:
        for place in (place for place in PLACES if place < SIZES["btrfs"]):
            file.seek(place)
            raw = bytearray(file.read(4096))
            features = int.from_bytes(raw[188:196], "little") | bit
            raw[188:196] = features.to_bytes(8, "little")
            forge_btrfs(raw)
            file.seek(place)
            file.write(raw)
    with pytest.raises(ReaderError, match=words) as caught, opened(BtrfsReader, image):
        pass
    assert caught.value.errno == errno.EOPNOTSUPP
