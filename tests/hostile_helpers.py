"""Images of file systems with damaged and forged metadata, and what a reader makes of them."""

from __future__ import annotations

import os
import random
import signal
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import FrameType

import google_crc32c

from vmfs.volumes.files.worker.model import Device, Reader, ReaderError

Forge = Callable[[bytearray], None]
"""Makes the checksum of a changed piece of metadata right."""

SECONDS = 20.0
"""For one image, on a busy machine; they take some hundredths."""
MAX_ENTRIES = 3000
MAX_READ = 1 << 20
# What counts, sizes and places are set to.
LARGE = (0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF, 1 << 40, 0, 1)
# Where XFS has its checksums, by magic at the start of a piece, or at byte 8
XFS_CHECKSUMS = {b"XFSB": 224, b"BMA3": 64, b"XDB3": 4, b"XDD3": 4, b"XARM": 12, b"XSLM": 12}
XFS_INDEX_MAGIC = (b"\x3e\xbe", b"\x3d\xf1", b"\x3d\xff", b"\x3b\xee")


class Image:
    """A device in memory: an image with some pieces replaced. Takes down what is read."""

    def __init__(self, base: bytes, pieces: dict[int, bytes] | None = None) -> None:
        self.size = len(base)
        self.reads: set[tuple[int, int]] = set()
        self._base = base
        self.pieces = pieces or {}

    def read(self, offset: int, length: int) -> bytes:
        assert offset >= 0, "a read from before the start"
        assert length <= 1 << 30, f"a read of {length} bytes"
        self.reads.add((offset, length))
        data = self._base[offset : offset + length]
        for start, piece in self.pieces.items():
            if start < offset + length and offset < start + len(piece):
                changed = bytearray(data)
                first, last = max(start, offset), min(start + len(piece), offset + len(data))
                changed[first - offset : last - offset] = piece[first - start : last - start]
                data = bytes(changed)
        return data

    def extents(self, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int, bool]]:
        yield start, (self.size if end is None else end) - start, False


def metadata_of(open_reader: Callable[[Device], Reader], base: bytes) -> list[list[tuple[int, int]]]:
    """Offset and length of what is read for all but the data of files: what is read to open it, and what is
    read after that, by length."""
    image = Image(base)
    reader = open_reader(image)
    groups = [sorted(image.reads)]
    image.reads.clear()
    exercise(reader, with_data=False)
    lengths = sorted({length for _, length in image.reads})
    return groups + [sorted(read for read in image.reads if read[1] == length) for length in lengths]


def mutants(
    base: bytes, groups: list[list[tuple[int, int]]], count: int, forge: Forge, seed: int
) -> Iterator[tuple[int, Image]]:
    """Images with one to three changed pieces of metadata, and their numbers; the same for the same seed."""
    for number in range(count):
        generator = random.Random(seed * 1_000_003 + number)  # noqa: S311
        pieces: dict[int, bytes] = {}
        for _ in range(generator.choice((1, 1, 1, 2, 3))):
            # Little of what is read to open it is looked at: a log.
            places = generator.choice(groups[1:] if generator.random() < 0.9 else groups)
            offset, length = generator.choice(places)
            piece = bytearray(base[offset : offset + length])
            _change(generator, piece, base, places)
            if generator.random() < 0.8:
                forge(piece)
            pieces[offset] = bytes(piece)
        yield number, Image(base, pieces)


def _change(generator: random.Random, piece: bytearray, base: bytes, places: list[tuple[int, int]]) -> None:
    kind = generator.randrange(6)
    if kind <= 1:
        for _ in range(generator.choice((1, 2, 8))):
            piece[generator.randrange(len(piece))] ^= 1 << generator.randrange(8)
    elif kind <= 3:
        # A field of one to eight bytes; most lie near the start.
        size = generator.choice((1, 2, 4, 8))
        reach = len(piece) if generator.random() < 0.4 else min(len(piece), 256)
        at = generator.randrange(max(1, reach - size)) // size * size
        value = generator.choice(LARGE) & (1 << 8 * size) - 1
        piece[at : at + size] = value.to_bytes(size, generator.choice(("big", "little")))
    elif kind == 4:
        # What another piece says: pointers that lead back, one inode in the place of another.
        offset, length = generator.choice(places)
        other = base[offset : offset + length]
        start = generator.choice((0, 8, 64, 101))
        end = generator.choice((start + 8, start + 64, len(piece)))
        part = other[start:end][: max(0, len(piece) - start)]
        piece[start : start + len(part)] = part
    else:
        start = generator.randrange(len(piece))
        end = min(len(piece), start + generator.choice((4, 32, 512)))
        piece[start:end] = generator.choice((bytes(end - start), b"\xff" * (end - start)))


def exercise(reader: Reader, *, with_data: bool = True) -> int:
    """All of a reader's methods on all that it has, within limits; how many entries could be read. Raises
    what is no ReaderError."""
    folders = [reader.root()]
    seen = {folders[0].node}
    good = 0
    while folders and good < MAX_ENTRIES:
        folder = folders.pop()
        name = b""
        try:
            for entry in islice(reader.scan(folder.node), MAX_ENTRIES):
                name = entry.name
                found = entry.stat
                if found is None:
                    assert entry.problem
                    continue
                good += 1
                _methods(reader, found.node, with_data)
                if stat.S_ISDIR(found.mode) and found.node not in seen:
                    seen.add(found.node)
                    folders.append(found)
            reader.lookup(folder.node, name)
            reader.lookup(folder.node, b"not there")
        except ReaderError as error:
            _check(error)
    return good


def _methods(reader: Reader, node: int, with_data: bool) -> None:
    found = reader.stat(node)
    assert 0 <= found.size < 1 << 63
    actions: list[Callable[[], object]] = [lambda: reader.xattrs(node)]
    if stat.S_ISLNK(found.mode):
        actions.append(lambda: reader.readlink(node))
    if stat.S_ISREG(found.mode):
        actions.append(lambda: [None for _ in islice(reader.extents(node), MAX_ENTRIES)])
        if with_data:
            actions.append(lambda: _read(reader, node, 0, min(found.size, MAX_READ)))
            actions.append(lambda: _read(reader, node, max(0, found.size - 5000), min(found.size, 5000)))
    for action in actions:
        try:
            action()
        except ReaderError as error:
            _check(error)


def _read(reader: Reader, node: int, offset: int, length: int) -> None:
    assert len(reader.read(node, offset, length)) == length


def _check(error: ReaderError) -> None:
    assert error.errno > 0
    text = str(error)
    assert text
    assert "\n" not in text


@contextmanager
def time_limit(number: int) -> Iterator[None]:
    """Ends what hangs on an image."""

    def ring(signal_number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"image {number} takes longer than {SECONDS} seconds")

    previous = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def survive(open_reader: Callable[[Device], Reader], images: Iterator[tuple[int, Image]]) -> tuple[int, int]:
    """How many images could be opened, and how many not. Raises what is no ReaderError, with the number of
    the image."""
    opened = refused = 0
    for number, image in images:
        try:
            with time_limit(number):
                exercise(open_reader(image))
            opened += 1
        except ReaderError as error:
            _check(error)
            refused += 1
        except Exception as error:
            error.add_note(f"image {number}")
            raise
    return opened, refused


def fill_small(top: Path, many: int = 350) -> None:
    """A bit of everything, in few files: each image is read as a whole."""
    for size in (0, 700, 5000, 40_000):
        (top / f"size {size}").write_bytes(os.urandom(size))
    with (top / "fragments").open("wb") as file:
        for number in range(300):
            file.seek(number * 8192)
            file.write(b"x" * 4096)
            if number % 30 == 0:
                file.flush()
                os.fsync(file.fileno())
    for length in (5, 300, 900):
        (top / f"symlink {length}").symlink_to("t" * length)
    for count in (4, 40, many):
        folder = top / f"{count} names"
        folder.mkdir()
        for number in range(count):
            os.link(top / "size 0", folder / f"{'name' * 20} {number}")
    for size in (20, 900, 3400):
        os.setxattr(top / "size 700", f"user.{size}", os.urandom(size))
    for number in range(90):
        os.setxattr(top / "size 5000", f"user.{number}", b"%d" % number * 40)
    os.mknod(top / "device", 0o20600, os.makedev(1, 3))


def forge_xfs(piece: bytearray) -> None:
    places = [(0, XFS_CHECKSUMS.get(bytes(piece[:4])))]
    if piece[:2] == b"IN":
        places = [(0, 100)]
    elif piece[8:10] in XFS_INDEX_MAGIC:
        places = [(0, 12)]
    for _, place in places:
        if place is not None and len(piece) >= place + 4:
            piece[place : place + 4] = bytes(4)
            piece[place : place + 4] = struct.pack("<I", google_crc32c.value(bytes(piece)))


def forge_btrfs(piece: bytearray) -> None:
    piece[:4] = struct.pack("<I", google_crc32c.value(bytes(piece[32:])))
