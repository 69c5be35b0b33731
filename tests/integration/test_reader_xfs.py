"""The reader of XFS against the kernel: the same file systems, everything compared."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile_helpers import forge_xfs
from kernel_tree_helpers import fill, format_image, kernel_mount, make_file_system, need_mkfs
from mount_helpers import MIB
from reader_helpers import check_errors, check_image, check_refused, fill_more, opened, reader_facts

from vmfs.volumes.files.worker.model import ReaderError
from vmfs.volumes.files.worker.xfs import XfsReader
from vmfs.volumes.files.worker.xfs.reader import DIRTY, LOG_ELSEWHERE

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root (loop mounts)"),
]
KINDS = {
    "defaults": (),
    "all features": ("-i", "nrext64=1,sparse=1", "-m", "rmapbt=1,reflink=1,bigtime=1,inobtcount=1"),
    "seconds of 32 bits": ("-m", "bigtime=0,reflink=0"),
    "blocks of 1 KiB": ("-b", "size=1024"),
    "blocks of 64 KiB": ("-b", "size=65536"),
    "a log in stripes": ("-l", "su=262144,size=64m"),
    "large directory blocks and inodes": ("-n", "size=16384", "-i", "size=1024"),
}


def fill_all(top: Path) -> None:
    fill(top)
    fill_more(top)
    for size in (20_000, 65_536):
        os.setxattr(top / f"attribute of {700}", f"user.{size}", os.urandom(size))
    os.setxattr(top, "trusted.of the root", b"x" * 3000)
    # The first lies at the very end of its block, where an entry with its value elsewhere would not fit.
    short = top / "short attributes"
    short.touch()
    for number in range(60):
        os.setxattr(short, f"user.{number}", b"1" * (number % 3))
    shutil.copyfile(top / "size 300000", top / "names" / "a copy")
    reflink = ["cp", "--reflink=auto", top / f"size {3 * MIB + 17}", top / "reflink"]
    subprocess.run(reflink, check=True)
    same = top / "names of one hash"
    same.mkdir()
    for name in names_of_one_hash(1500):
        (same / os.fsdecode(name)).touch()


def names_of_one_hash(count: int) -> Iterator[bytes]:
    """More than one leaf of a directory's index holds: the hash shifts each byte by seven bits less than the
    one before, so the lowest bit of one and the highest of the next cancel each other."""
    pairs = [4 * word + byte for word in range(4) for byte in range(3)]
    for number in range(count):
        name = bytearray(b"b" * 16)
        for bit, place in enumerate(pairs):
            if number >> bit & 1:
                name[place] ^= 0x01
                name[place + 1] ^= 0x80
        yield bytes(name)


@pytest.mark.parametrize("kind", KINDS)
def test_all_is_as_the_kernel_has_it(tmp_path: Path, kind: str) -> None:
    need_mkfs("xfs")
    image = tmp_path / "image"
    make_file_system("xfs", image, fill_all, 320 * MIB, "-L", "a label", *KINDS[kind])
    check_image(XfsReader, image, "a label")


def test_what_is_not_there_or_of_another_kind(tmp_path: Path) -> None:
    need_mkfs("xfs")
    image = tmp_path / "image"
    make_file_system("xfs", image, fill)
    with opened(XfsReader, image) as reader:
        root = reader.root().node
        file = reader.lookup(root, b"size 1").node
        many = reader.lookup(root, b"many").node
        check_errors(
            [
                (errno.ENOENT, lambda: reader.lookup(root, b"none")),
                (errno.ENOENT, lambda: reader.lookup(many, b"none")),
                (errno.ENOTDIR, lambda: reader.lookup(file, b"none")),
                (errno.ENOTDIR, lambda: list(reader.scan(file))),
                (errno.EINVAL, lambda: reader.read(root, 0, 1)),
                (errno.EINVAL, lambda: reader.readlink(root)),
                (errno.EIO, lambda: reader.stat(1 << 60)),
                (errno.EIO, lambda: reader.stat(0)),
            ]
        )


def test_a_dirty_log_is_said_so_and_a_clean_one_is_not(tmp_path: Path) -> None:
    need_mkfs("xfs")
    image, copy = tmp_path / "image", tmp_path / "copy"
    make_file_system("xfs", image, lambda top: (top / "old").write_bytes(b"old"))
    with kernel_mount(image) as top:
        for number in range(300):
            (top / f"new {number}").write_bytes(b"new")
        subprocess.run(["sync", "-f", top], check=True)
        (top / "newest").write_bytes(b"newest")
        descriptor = os.open(top / "newest", os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        shutil.copyfile(image, copy)
    with opened(XfsReader, copy) as reader:
        assert reader.warnings == (DIRTY,)
        assert reader.lookup(reader.root().node, b"old").size == 3
    with opened(XfsReader, image) as reader:
        assert reader.warnings == ()
        assert reader.lookup(reader.root().node, b"newest").size == 6
    # The log was replayed and is clean again.
    with kernel_mount(copy) as top:
        assert (top / "newest").read_bytes() == b"newest"
    with opened(XfsReader, copy) as reader:
        assert reader.warnings == ()
        assert len(list(reader.scan(reader.root().node))) == 302


def test_what_is_frozen_is_not_said_to_be_dirty(tmp_path: Path) -> None:
    """All is in place then, though the kernel leaves a log that asks to be replayed."""
    need_mkfs("xfs")
    image, copy = tmp_path / "image", tmp_path / "copy"

    def freeze(top: Path) -> None:
        for number in range(300):
            (top / f"new {number}").write_bytes(b"new" * number)
        subprocess.run(["fsfreeze", "-f", top], check=True)
        try:
            shutil.copyfile(image, copy)
        finally:
            subprocess.run(["fsfreeze", "-u", top], check=True)

    make_file_system("xfs", image, freeze)
    logged = subprocess.run(["xfs_logprint", "-t", copy], capture_output=True, text=True).stdout
    assert "<DIRTY>" in logged
    with opened(XfsReader, copy) as reader, opened(XfsReader, image) as thawed:
        assert reader.warnings == ()
        assert reader_facts(reader) == reader_facts(thawed)


def test_a_log_that_went_round_is_followed(tmp_path: Path) -> None:
    need_mkfs("xfs")
    image, copy = tmp_path / "image", tmp_path / "copy"

    def wear_out(top: Path) -> None:
        for number in range(4000):
            path = top / f"{number % 7}"
            path.touch()
            os.setxattr(path, "user.x", os.urandom(2000))
            if number % 50 == 0:
                subprocess.run(["sync", "-f", top], check=True)
        shutil.copyfile(image, copy)

    make_file_system("xfs", image, wear_out)
    with opened(XfsReader, image) as reader:
        assert reader.warnings == ()
        first = reader._device.read(reader._superblock.block_offset(reader._superblock.log_start), 8)
    # The number of the round in which the log's first block was written last.
    assert int.from_bytes(first[4:] if first[:4] == b"\xfe\xed\xba\xbe" else first[:4], "big") > 1
    with opened(XfsReader, copy) as reader:
        assert reader.warnings == (DIRTY,)


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("-n", "ftype=0"),
        ("-b", "size=1024", "-i", "size=256"),
        ("-b", "size=512", "-i", "size=256"),
        ("-b", "size=65536", "-i", "size=2048", "-l", "size=64m"),
    ],
)
def test_version_4(tmp_path: Path, options: tuple[str, ...]) -> None:
    """Kernels of today do not mount it: mkfs.xfs fills it from a list, xfs_db sets attributes."""
    need_mkfs("xfs")
    image = tmp_path / "image"
    contents = {f"size {size}": os.urandom(size) for size in (0, 1, 1023, 4096, 300_001)}
    links = {f"symlink {length}": b"t" * length for length in (1, 59, 150, 300, 917)}
    listing = ["/dev/null", "0 0", "d--755 0 0"]
    for number, (name, data) in enumerate(contents.items()):
        source = tmp_path / f"source {number}".replace(" ", "_")
        source.write_bytes(data)
        listing.append(f"{name.replace(' ', '_')} -u-640 {1_000_000} {number} {source}")
    for name, target in links.items():
        listing.append(f"{name.replace(' ', '_')} l--777 0 0 {target.decode()}")
    listing.append("device c--660 0 6 259 70000")
    for count in (3, 60, 3000):
        listing.append(f"directory_{count} d--711 5 6")
        listing += [f"{'x' * 20}_{number} p--600 0 0" for number in range(count)]
        listing.append("$")
    listing.append("$")
    (tmp_path / "list").write_text("\n".join(listing) + "\n")
    format_image("xfs", image, 320 * MIB, "-m", "crc=0", *options, "-p", tmp_path / "list")
    with opened(XfsReader, image) as reader:
        attributed = reader.lookup(reader.root().node, b"size_1").node
    lengths = (1, 300, 3000, 10_000, 65_536)
    for length in lengths:
        set_attribute = f"attr_set -u -v {length} length_{length}"
        inode = f"inode {attributed}"
        subprocess.run(["xfs_db", "-x", "-c", inode, "-c", set_attribute, image], check=True)
    with opened(XfsReader, image) as reader:
        found = reader_facts(reader)
        for number, (name, data) in enumerate(contents.items()):
            fact = found[name.replace(" ", "_").encode()]
            assert (fact.mode, fact.owner, fact.size) == (0o4640, (1_000_000, number), len(data))
            assert fact.content == hashlib.sha256(data).digest()
        for name, target in links.items():
            assert found[name.replace(" ", "_").encode()].content == target
        assert found[b"device"].device == os.makedev(259, 70_000)
        for count in (3, 60, 3000):
            name = b"directory_%d" % count
            names = {b"x" * 20 + b"_%d" % number for number in range(count)}
            node = reader.lookup(reader.root().node, name).node
            assert {entry.name for entry in reader.scan(node)} == names
            assert found[name].mode == 0o711
            for each in names:
                assert stat.S_ISFIFO(reader.lookup(node, each).mode)
        assert reader.xattrs(attributed) == {b"user.length_%d" % n: b"v" * n for n in lengths}


def test_a_log_elsewhere_and_files_on_a_realtime_device(tmp_path: Path) -> None:
    need_mkfs("xfs")
    image, log = tmp_path / "image", tmp_path / "log"
    with log.open("wb") as file:
        file.truncate(320 * MIB)
    (tmp_path / "file").write_bytes(b"x" * 10_000)
    (tmp_path / "list").write_text(f"/dev/null\n0 0\nd--755 0 0\nfile ---644 0 0 {tmp_path / 'file'}\n$\n")
    format_image("xfs", image, 320 * MIB, "-l", f"logdev={log},size=64m", "-p", tmp_path / "list")
    with opened(XfsReader, image) as reader:
        assert reader.warnings == (LOG_ELSEWHERE,)
        file = reader.lookup(reader.root().node, b"file").node
        assert reader.read(file, 0, 20_000) == b"x" * 10_000
        place = reader._superblock.inode_offset(file)
    raw = bytearray(image.read_bytes()[place : place + 512])
    raw[91] |= 1
    forge_xfs(raw)
    with image.open("r+b") as content:
        content.seek(place)
        content.write(raw)
    with opened(XfsReader, image) as reader:
        with pytest.raises(ReaderError, match="realtime device") as caught:
            reader.read(file, 0, 10)
        assert caught.value.errno == errno.EOPNOTSUPP


def test_names_where_case_is_ignored(tmp_path: Path) -> None:
    need_mkfs("xfs")
    image = tmp_path / "image"
    # The first letter, in Latin-1, has the same hash in both cases to kernels, but not to this mkfs.xfs.
    names = [b"\xe9_%d_%s" % (number, b"ABC" * 10) for number in range(2000)]
    listing = [b"/dev/null", b"0 0", b"d--755 0 0", *(b"%s p--600 0 0" % name for name in names), b"$", b""]
    (tmp_path / "list").write_bytes(b"\n".join(listing))
    format_image("xfs", image, 64 * MIB, "-m", "crc=0", "-n", "version=ci", "-p", tmp_path / "list")
    content = image.read_bytes()
    assert content.count(b"\xe9_77_ABC") == 1
    image.write_bytes(content.replace(b"\xe9_77_ABC", b"\xc9_77_ABC"))
    with opened(XfsReader, image) as reader:
        root = reader.root().node
        found = {entry.name: entry.stat for entry in reader.scan(root)}
        assert len(found) == len(names)
        for name, status in found.items():
            assert reader.lookup(root, name) == status


def test_pointers_to_parents_are_no_attributes(tmp_path: Path) -> None:
    """As mkfs.xfs of today makes them, with files whose ranges were exchanged."""
    need_mkfs("xfs")
    image = tmp_path / "image"
    format_image("xfs", image, 320 * MIB)
    set_features(image, 0x40 | 0x80)
    try:
        with kernel_mount(image) as top:
            fill_all(top)
    except AssertionError:
        pytest.skip("this kernel has no pointers to parents")
    check_image(XfsReader, image, "")


@pytest.mark.parametrize(("bit", "words"), [(0x200, "zones"), (0x4000_0000, "features 0x40000000")])
def test_what_is_not_known_is_refused(tmp_path: Path, bit: int, words: str) -> None:
    need_mkfs("xfs")
    image = tmp_path / "image"
    format_image("xfs", image)
    set_features(image, bit)
    with pytest.raises(ReaderError, match=words) as caught, opened(XfsReader, image):
        pass
    assert caught.value.errno == errno.EOPNOTSUPP


def set_features(image: Path, bits: int) -> None:
    """Of those without which the file system cannot be read."""
    with image.open("r+b") as file:
        sector = bytearray(file.read(512))
        features = int.from_bytes(sector[216:220], "big") | bits
        sector[216:220] = features.to_bytes(4, "big")
        forge_xfs(sector)
        file.seek(0)
        file.write(sector)


def test_one_damaged_inode_costs_only_itself(tmp_path: Path) -> None:
    need_mkfs("xfs")
    image = tmp_path / "image"
    make_file_system("xfs", image, lambda top: [(top / f"{n}").write_bytes(b"%d" % n) for n in range(20)])
    with opened(XfsReader, image) as reader:
        victim = reader.lookup(reader.root().node, b"7").node
        place = reader._superblock.inode_offset(victim)
    with image.open("r+b") as file:
        file.seek(place + 16)
        file.write(b"\xff")
    with opened(XfsReader, image) as reader:
        found = {entry.name: entry for entry in reader.scan(reader.root().node)}
        assert len(found) == 20
        assert found[b"7"].stat is None
        assert "checksum" in (found[b"7"].problem or "")
        assert all(entry.stat for name, entry in found.items() if name != b"7")


def test_what_is_no_xfs_is_refused(tmp_path: Path) -> None:
    check_refused(XfsReader, tmp_path / "image", b"XFSB")


def test_all_bits_of_modes(tmp_path: Path) -> None:
    need_mkfs("xfs")
    image = tmp_path / "image"
    make_file_system("xfs", image, fill)
    with opened(XfsReader, image) as reader:
        found = reader_facts(reader)
    kinds = {fact.kind for fact in found.values()}
    assert kinds == {
        stat.S_IFREG,
        stat.S_IFDIR,
        stat.S_IFLNK,
        stat.S_IFIFO,
        stat.S_IFSOCK,
        stat.S_IFCHR,
        stat.S_IFBLK,
    }
