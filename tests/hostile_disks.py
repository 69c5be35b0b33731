"""Disks with a damaged file system in each partition, the last of which is sound; walking what a mount shows
of them, each call within a time; watching the workers that read them."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

from guest_mutations import BLOCK, mutate, used_blocks
from hostile_helpers import Forge, fill_small, forge_btrfs, forge_xfs, metadata_of, mutants
from hostile_images import (
    exfat_image,
    ext2_image,
    ext_image,
    fat_image,
    iso_image,
    ntfs_image,
    small_tree,
)
from kernel_tree_helpers import make_file_system
from mount_helpers import MIB, Mount

from vmfs.volumes.files.client import Limits
from vmfs.volumes.files.worker.btrfs import BtrfsReader
from vmfs.volumes.files.worker.xfs import XfsReader

Pieces = dict[int, bytes]
"""What is changed in an image: the bytes from each offset on."""
R = TypeVar("R")

SEED = 90_000
"""Other mutations than those of the tests that have no mount."""
LONGEST = 4 * Limits().seconds
"""Seconds for one call: it may wait for the one before it, and each of the two may first start a worker,
which has the limit's time to open the file system."""
PIECE = 128 << 10
"""Bytes that the kernel asks for at once: one request of a worker."""
MOST_ENTRIES = 500
"""Of one file system. One that leads in circles has no end."""


class Kind(NamedTuple):
    """`make` makes the image in an empty directory. Where all metadata has checksums, `forge` makes them
    right, and `reader` tells where metadata is."""

    make: Callable[[Path], Path]
    reader: Callable[..., XfsReader | BtrfsReader] | None = None
    forge: Forge | None = None


def _by_kernel(kind: str, *options: str) -> Callable[[Path], Path]:
    def fill(top: Path) -> None:
        small_tree(top, links=True)
        (top / "more").mkdir()
        fill_small(top / "more", 30)

    def make(folder: Path) -> Path:
        make_file_system(kind, folder / "image", fill, None, *options)
        return folder / "image"

    return make


KINDS = {
    "ext4": Kind(ext_image),
    "ext2": Kind(ext2_image),
    "xfs": Kind(_by_kernel("xfs"), XfsReader, forge_xfs),
    # What is damaged in one copy would be read from the other.
    "btrfs": Kind(_by_kernel("btrfs", "-m", "single"), BtrfsReader, forge_btrfs),
    "ntfs": Kind(ntfs_image),
    "fat32": Kind(lambda folder: fat_image(folder, 34, "-F", "32", "-s", "1")),
    "exfat": Kind(exfat_image),
    "iso9660": Kind(iso_image),
}


def damages(kind: Kind, image: bytes, count: int, seed: int = SEED) -> Iterator[Pieces]:
    """So many, the same for the same seed."""
    if kind.reader is not None and kind.forge is not None:
        metadata = metadata_of(kind.reader, image)
        yield from (damaged.pieces for _, damaged in mutants(image, metadata, count, kind.forge, seed))
        return
    used = used_blocks(image, b"MARKER")
    for number in range(count):
        changed = mutate(image, used, seed + number)
        places = [slice(block * BLOCK, (block + 1) * BLOCK) for block in used]
        yield {place.start: changed[place] for place in places if changed[place] != image[place]}


def write_disk(path: Path, images: Sequence[tuple[bytes, Pieces]]) -> None:
    """A GPT disk with a partition for each image (at most 128), changed by its pieces."""
    sizes = [-(-len(image) // MIB) * MIB for image, _ in images]
    starts = [MIB + sum(sizes[:number]) for number in range(len(sizes))]
    table = "".join(
        f"start={start // 512},size={size // 512}\n" for start, size in zip(starts, sizes, strict=True)
    )
    with path.open("wb") as file:
        file.truncate(starts[-1] + sizes[-1] + MIB)
    subprocess.run(["sfdisk", "-q", "--no-reread", path], input=f"label: gpt\n{table}", text=True, check=True)
    runs = {id(image): _data_of(image) for image, _ in images}
    with path.open("r+b", buffering=0) as file:
        for start, (image, pieces) in zip(starts, images, strict=True):
            for offset, data in [*runs[id(image)].items(), *pieces.items()]:
                os.pwrite(file.fileno(), data, start + offset)


def _data_of(image: bytes) -> Pieces:
    """All of it that is not zero."""
    pieces = {at: image[at : at + PIECE] for at in range(0, len(image), PIECE)}
    return {at: piece for at, piece in pieces.items() if piece.count(0) < len(piece)}


def content_of(top: Path, names: Sequence[str]) -> dict[str, bytes]:
    return {name: (top / name).read_bytes() for name in names}


@dataclass
class Calls:
    """Calls of the system on a mount's files, in any thread. `slowest` is in seconds."""

    errors: Counter[int] = field(default_factory=Counter)
    slowest: tuple[float, str] = (0.0, "")
    _running: dict[int, tuple[float, str]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def call(self, action: Callable[[bytes], R], path: bytes) -> R | None:
        """What it returns; None where it fails, which is counted by the error's number."""
        me, started = threading.get_ident(), time.monotonic()
        name = f"{getattr(action, '__name__', action)} {path!r}"
        with self._lock:
            self._running[me] = started, name
        try:
            return action(path)
        except OSError as error:
            with self._lock:
                self.errors[error.errno or 0] += 1
            return None
        finally:
            with self._lock:
                self.slowest = max(self.slowest, (time.monotonic() - started, name))
                del self._running[me]

    def overdue(self) -> str | None:
        """A call that takes longer than it may."""
        with self._lock:
            late = [name for started, name in self._running.values() if time.monotonic() - started > LONGEST]
        return late[0] if late else None

    @contextmanager
    def bounded(self, mount: Mount) -> Iterator[None]:
        """A call on this mount may take LONGEST seconds: else the mount is ended, and with it the call."""
        over = threading.Event()
        hung: list[str] = []

        def watch() -> None:
            while not over.wait(1):
                if (late := self.overdue()) is not None:
                    hung.append(late)
                    mount.process.kill()
                    return

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            assert not hung, f"longer than {LONGEST:g} s: {hung[0]}"


def walk(top: Path, calls: Calls) -> int:
    """Ask for everything in a tree, as far as it goes; how many entries there were, -1 where not even the top
    can be listed."""
    names = calls.call(os.listdir, os.fsencode(top))
    if names is None:
        return -1
    folders = [(os.fsencode(top), names)]
    seen: set[int] = set()
    count = 0
    while folders:
        folder, names = folders.pop()
        for name in names:
            count += 1
            if count > MOST_ENTRIES:
                return count
            path = os.path.join(folder, name)
            status = calls.call(os.lstat, path)
            if status is None or status.st_ino in seen:
                continue
            seen.add(status.st_ino)
            calls.call(_xattrs, path)
            if stat.S_ISLNK(status.st_mode):
                calls.call(os.readlink, path)
            elif stat.S_ISREG(status.st_mode):
                for offset in {0, max(0, status.st_size - PIECE)}:
                    calls.call(_reader_of(offset), path)
            elif stat.S_ISDIR(status.st_mode):
                folders.append((path, calls.call(os.listdir, path) or []))
    return count


def _xattrs(path: bytes) -> None:
    for name in os.listxattr(path, follow_symlinks=False):
        os.getxattr(path, name, follow_symlinks=False)


def _reader_of(offset: int) -> Callable[[bytes], None]:
    def read(path: bytes) -> None:
        with open(path, "rb", buffering=0) as file:
            os.pread(file.fileno(), PIECE, offset)

    return read


class Watch:
    """Looks all the while at the workers of this process and of those that it started."""

    def __init__(self) -> None:
        self.peak = 0
        """Bytes of memory that one of them had in use at some time."""
        self.most_space = 0
        """Bytes of address space, which is what is limited."""
        self.at_once: Counter[int] = Counter()
        """How many one process had at the same time, by its id."""
        self.seen: set[int] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.2):
            by_parent: Counter[int] = Counter()
            for worker, parent in workers():
                by_parent[parent] += 1
                self.seen.add(worker)
                with suppress(OSError, KeyError):
                    self.peak = max(self.peak, memory_of(worker))
                    self.most_space = max(self.most_space, memory_of(worker, "VmPeak"))
            self.at_once |= by_parent


def memory_of(process: int, which: str = "VmHWM") -> int:
    """Bytes that a process had in use at some time; or VmPeak, its address space. Raises OSError, and
    KeyError for a process at its end."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(dict(line.split(":", 1) for line in status.splitlines())[which].split()[0]) << 10


def workers() -> list[tuple[int, int]]:
    """The processes that parse file systems for this process or its children, and for which."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            with suppress(OSError):
                # The name before it may hold anything.
                parents[int(entry)] = int(
                    Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1]
                )
    me = os.getpid()
    found = []
    for process, parent in parents.items():
        if parent == me or parents.get(parent) == me:
            with suppress(OSError):
                if b"/worker/__main__.py" in Path(f"/proc/{process}/cmdline").read_bytes():
                    found.append((process, parent))
    return found


def kill(process: int) -> bool:
    """Whether it was there."""
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True
