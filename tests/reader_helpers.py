"""What a reader of a file system gives, in the words of kernel_tree_helpers; and more that XFS and Btrfs
stumble over."""

from __future__ import annotations

import ctypes
import hashlib
import os
import stat
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest
from kernel_tree_helpers import Fact, facts, kernel_mount
from mount_helpers import MIB

from vmfs.volumes.files.worker.model import Device, Reader, ReaderError, Stat

PIECE = 300_001
"""Bytes that are read at a time: in no relation to any block."""
FALLOC_FL_KEEP_SIZE = 1
SECTOR = 512
"""Bytes that st_blocks counts in."""

R = TypeVar("R", bound=Reader)


class FileDevice:
    """An image as a Device, and as a Space."""

    def __init__(self, path: Path) -> None:
        self._content = path.open("rb")
        self.size = path.stat().st_size

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self._content.fileno(), max(0, min(length, self.size - offset)), offset)

    def extents(self, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int, bool]]:
        yield start, (self.size if end is None else end) - start, False

    def close(self) -> None:
        self._content.close()


@contextmanager
def opened(open_reader: Callable[[Device], R], image: Path) -> Iterator[R]:
    """A reader of the file system in an image."""
    device = FileDevice(image)
    try:
        yield open_reader(device)
    finally:
        device.close()


def check_image(open_reader: Callable[[Device], Reader], image: Path, label: str) -> None:
    """That a reader gives of an image what blkid and the kernel give."""
    with kernel_mount(image, "ro") as top, opened(open_reader, image) as reader:
        words = ["blkid", "-p", "-o", "value", "-s", "TYPE", "-s", "UUID", image]
        blkid = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
        assert {reader.type, reader.uuid} == set(blkid)
        assert (reader.label, reader.warnings) == (label, ())
        check_same(reader, top)


def check_errors(actions: Sequence[tuple[int, Callable[[], object]]]) -> None:
    """That each of these fails with its number."""
    for number, action in actions:
        with pytest.raises(ReaderError) as caught:
            action()
        assert caught.value.errno == number


def check_refused(open_reader: Callable[[Device], Reader], image: Path, magic: bytes) -> None:
    """That what is no such file system is refused; `magic` is what one begins with."""
    for content in (b"", magic[-8:], bytes(MIB), magic + bytes(MIB)):
        image.write_bytes(content)
        with pytest.raises(ReaderError), opened(open_reader, image):
            pass


def walk(reader: Reader, top: Stat) -> Iterator[tuple[bytes, Stat]]:
    """Every entry below and including `top`, by path; in the order of kernel_tree_helpers."""
    yield b"", top
    folders = [(b"", top)]
    while folders:
        path, folder = folders.pop()
        below = []
        for entry in sorted(reader.scan(folder.node), key=lambda entry: entry.name):
            assert entry.stat is not None, (path, entry)
            name = os.path.join(path, entry.name)
            yield name, entry.stat
            if stat.S_ISDIR(entry.stat.mode):
                below.append((name, entry.stat))
        folders += reversed(below)


def reader_facts(reader: Reader, top: Stat | None = None) -> dict[bytes, Fact]:
    """As `facts` has it of the kernel."""
    nodes: dict[int, str] = {}
    return {
        name: Fact(
            stat.S_IFMT(found.mode),
            stat.S_IMODE(found.mode),
            (found.uid, found.gid),
            found.mtime,
            found.links,
            found.size,
            found.device,
            nodes.setdefault(found.node, repr(name)),
            content(reader, found),
            tuple(sorted((os.fsdecode(key), value) for key, value in reader.xattrs(found.node).items())),
        )
        for name, found in walk(reader, top or reader.root())
    }


def content(reader: Reader, found: Stat) -> bytes:
    if stat.S_ISLNK(found.mode):
        return reader.readlink(found.node)
    if not stat.S_ISREG(found.mode):
        return b""
    digest = hashlib.sha256()
    for offset in range(0, found.size, PIECE):
        piece = reader.read(found.node, offset, PIECE)
        assert len(piece) == min(PIECE, found.size - offset)
        digest.update(piece)
    assert reader.read(found.node, found.size, PIECE) == b""
    return digest.digest()


def check_same(reader: Reader, top: Path, *, is_one_device: bool = True) -> None:
    """That a reader gives what the kernel gives of the same file system, mounted at `top`: entries, data,
    runs of data, other times, and each entry by name."""
    # First: what has been read counts as data to the kernel, preallocated or not.
    for name, entry in walk(reader, reader.root()):
        if stat.S_ISREG(entry.mode):
            path = os.path.join(os.fsencode(top), name)
            assert list(reader.extents(entry.node)) == runs_of_kernel(path), name
    wanted, found = facts(top), reader_facts(reader)
    assert found.keys() == wanted.keys()
    for name in wanted:
        if is_one_device:
            assert found[name] == wanted[name], name
        else:  # The inodes of subvolumes have the same numbers.
            assert found[name]._replace(same="") == wanted[name]._replace(same=""), name
    assert _links_of_reader(reader) == _links_of_kernel(top)
    for name, entry in walk(reader, reader.root()):
        path = os.path.join(os.fsencode(top), name)
        status = os.lstat(path)
        assert (entry.atime, entry.ctime) == (status.st_atime_ns, status.st_ctime_ns), name
        assert entry.allocated == status.st_blocks * SECTOR, name
        assert reader.stat(entry.node) == entry
    for name in list(wanted)[1 :: max(1, len(wanted) // 500)]:
        entry = reader.root()
        for part in name.split(b"/"):
            entry = reader.lookup(entry.node, part)
        assert entry.mtime == wanted[name].mtime
        assert stat.S_IFMT(entry.mode) == wanted[name].kind


def runs_of_kernel(path: bytes) -> list[tuple[int, int]]:
    """(offset, length) of the data of a file."""
    runs = []
    descriptor = os.open(path, os.O_RDONLY)
    try:
        end = 0
        size = os.fstat(descriptor).st_size
        while end < size:
            try:
                start = os.lseek(descriptor, end, os.SEEK_DATA)
            except OSError:  # ENXIO: a hole up to the end
                break
            end = os.lseek(descriptor, start, os.SEEK_HOLE)
            runs.append((start, end - start))
    finally:
        os.close(descriptor)
    return runs


def _links_of_reader(reader: Reader) -> set[frozenset[bytes]]:
    names = defaultdict(set)
    for name, entry in walk(reader, reader.root()):
        names[entry.node].add(name)
    return {frozenset(group) for group in names.values() if len(group) > 1}


def _links_of_kernel(top: Path) -> set[frozenset[bytes]]:
    names = defaultdict(set)
    start = os.fsencode(top)
    for folder, directories, files in os.walk(start):
        for name in directories + files:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            names[status.st_dev, status.st_ino].add(os.path.relpath(path, start))
    return {frozenset(group) for group in names.values() if len(group) > 1}


def fill_more(top: Path, largest_attribute: int = 16_000) -> None:
    """Many extents, preallocated ones, far times, a directory of 5,000 of which some go, large attributes."""
    with (top / "900 extents").open("wb") as file:
        for number in range(900):
            file.seek(number * 8192)
            file.write(bytes([number % 251]) * 4096)
            # Written one by one, for their places not to be chosen together.
            if number % 100 == 99:
                file.flush()
                os.fsync(file.fileno())
    for name, mode in (("preallocated", 0), ("preallocated after the end", FALLOC_FL_KEEP_SIZE)):
        with (top / name).open("wb") as file:
            file.write(b"data")
            file.flush()
            fallocate(file.fileno(), mode, 65536, 1 << 20)
            file.seek(1 << 17)
            file.write(b"in the middle")
    for number, seconds in enumerate((-315_619_200, 2_208_988_800, 7_258_118_400)):
        path = top / f"year {(1960, 2040, 2200)[number]}"
        path.touch()
        os.utime(path, ns=(seconds * 10**9 + 1, seconds * 10**9 + 999_999_999))
    many = top / "5000"
    many.mkdir()
    for number in range(5000):
        (many / f"entry-{number * 7919:x}-{'y' * (number % 40)}").touch()
    for name in list(many.iterdir())[::3]:
        name.unlink()
    # Btrfs takes what fits a node.
    for size in (700, 3000, largest_attribute):
        path = top / f"attribute of {size}"
        path.touch()
        os.setxattr(path, "user.long", bytes(range(256)) * (size // 256))
    attributes = top / "100 attributes"
    attributes.touch()
    for number in range(100):
        os.setxattr(attributes, f"user.{number:03}", b"%d" % number * 50)


def fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.fallocate(descriptor, mode, ctypes.c_int64(offset), ctypes.c_int64(length)):
        raise OSError(ctypes.get_errno(), "fallocate")
