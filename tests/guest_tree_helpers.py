"""A tree of files with all that a guest's file system may hold, and what is seen of it: through the kernel,
and through a worker."""

from __future__ import annotations

import hashlib
import os
import random
import socket
import stat
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from mount_helpers import mount_loop

from vmfs.volumes.files.client import FileSystem

PIECE = 1 << 20
SMALL = 100_001
"""Bytes of a read that goes to the worker."""
SECOND = 1_000_000_000


class FileSpace:
    """A file as a volume."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)
        self.size = os.fstat(self._descriptor).st_size

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self._descriptor, length, offset)

    def extents(self, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int, bool]]:
        yield start, (self.size if end is None else end) - start, False

    def __del__(self) -> None:
        os.close(self._descriptor)


class BytesSpace:
    """Bytes as a volume."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)

    def read(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length]

    def extents(self, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int, bool]]:
        yield start, (self.size if end is None else end) - start, False


class Seen(NamedTuple):
    """Of one name. `content` is the digest of a file, the target of a link, the numbers of a device."""

    mode: str
    uid: int
    gid: int
    links: int
    mtime: int
    content: object
    xattrs: dict[bytes, bytes]


def run(*words: str | Path, **environment: str) -> str:
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert done.returncode == 0, f"{' '.join(map(str, words))}: {done.stdout}{done.stderr}"
    return done.stdout


@contextmanager
def mounted(image: Path, place: Path, *options: str) -> Iterator[Path]:
    """By the kernel, through a loop device."""
    place.mkdir(exist_ok=True)
    mount_loop(image, place, *options)
    try:
        yield place
    finally:
        run("umount", place)


@contextmanager
def mounted_ntfs(image: Path, place: Path, *options: str) -> Iterator[Path]:
    """By ntfs-3g, with alternate data streams as extended attributes."""
    place.mkdir(exist_ok=True)
    run("ntfs-3g", "-o", ",".join(("streams_interface=xattr", *options)), image, place)
    try:
        yield place
    finally:
        _unmount_fuse(place)


@contextmanager
def mounted_exfat(image: Path, place: Path) -> Iterator[Path]:
    """By exfat-fuse, which wants a block device."""
    place.mkdir(exist_ok=True)
    device = run("losetup", "--find", "--show", image).strip()
    try:
        run("mount.exfat-fuse", device, place)
        try:
            yield place
        finally:
            _unmount_fuse(place)
    finally:
        run("losetup", "--detach", device)


def _unmount_fuse(place: Path) -> None:
    """Done when its process has written all, which is after the mount is gone."""
    source = run("findmnt", "-n", "-o", "SOURCE", place).strip()
    run("umount", place)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and _is_open(source):
        time.sleep(0.01)


def _is_open(source: str) -> bool:
    target = os.path.realpath(source)
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if os.readlink(link) == target:
                return True
    return False


def plain_tree(root: Path, *, many: int = 400, emoji: bool = True) -> None:
    """What all file systems of all kinds can hold. mtools has characters beyond U+FFFF wrong: `emoji`."""
    rng = random.Random(7)  # noqa: S311
    root.mkdir(exist_ok=True)
    for size in (0, 1, 4095, 4096, 4097, 1_048_576, 1_123_457):
        (root / f"{size} bytes").write_bytes(rng.randbytes(size))
    names = root / "names"
    names.mkdir()
    for name in (
        "ünïcödé_日本語.txt",
        "emoji_😀.txt",
        "n" * 250,
        "UPPER.TXT",
        "Mixed Case.Text",
        "a.b.c",
        "lower.txt",
    ):
        if emoji or max(name) < "\U00010000":
            (names / name).write_text(name)
    deep = root / "deep"
    for level in range(25):
        deep.mkdir()
        (deep / "f.txt").write_text(f"level {level}")
        deep = deep / f"l{level:02}"
    crowd = root / "many"
    crowd.mkdir()
    for number in range(many):
        (crowd / f"a-rather-long-file-name-to-fill-directory-blocks-{number:06}.dat").write_bytes(
            b"%d" % number
        )


def unix_tree(root: Path, *, block: int, wide_times: bool = True, preallocate: bool = True) -> None:
    """What ext file systems hold besides. `block`: their block size in bytes."""
    plain_tree(root, many=3000)
    names = root / "names"
    for raw in (b"caf\xe9", b"new\nline", b"x" * 255, b"\xff\xfe"):
        (names / os.fsdecode(raw)).write_bytes(raw)
    for length in (3, 59, 60, 917):
        (root / f"link of {length}").symlink_to("/".join(["y" * 99] * 10)[:length])
    os.link(root / "4097 bytes", root / "hard link")
    os.mkfifo(root / "fifo")
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(root / "block", stat.S_IFBLK | 0o600, os.makedev(259, 300))
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(root)  # The name of a socket may be no longer than 107 bytes.
        try:
            listener.bind("socket")
        finally:
            os.chdir(here)
    (root / "setuid").write_bytes(b"#!")
    os.chown(root / "setuid", 1_000_000, 2_000_000)
    (root / "setuid").chmod(0o6711)
    (root / "sticky").mkdir()
    (root / "sticky").chmod(0o3777)
    _sparse(root, block)
    if preallocate:
        _preallocated(root)
    _attributes(root, block)
    for year, seconds in (
        (1960, -315_619_200),
        (2030, 1_893_456_000),
        (2040, 2_208_988_800),
        (2200, 7_258_118_400),
    ):
        if wide_times or -(1 << 31) <= seconds < 1 << 31:
            (root / f"of {year}").write_bytes(b"t")
            os.utime(root / f"of {year}", ns=(seconds * SECOND, seconds * SECOND + 123_456_789))


def _sparse(root: Path, block: int) -> None:
    with (root / "sparse").open("wb") as file:
        for at in (0, 1_048_581, 40 << 20):
            file.seek(at)
            file.write(b"data" * 2000)
        file.truncate(50 << 20)
    with (root / "900 extents").open("wb") as file:
        for number in range(900):
            file.seek(number * 2 * block)
            file.write(bytes([number % 255 + 1]) * block)


def _preallocated(root: Path) -> None:
    (root / "preallocated").write_bytes(b"z" * 10_000)
    run("fallocate", "--keep-size", "--length", "300000", root / "preallocated")
    run("fallocate", "--length", "200000", root / "unwritten")
    with (root / "unwritten").open("r+b") as file:
        file.seek(100_000)
        file.write(b"written")


def _attributes(root: Path, block: int) -> None:
    path = root / "attributes"
    path.write_bytes(b"x")
    path.chmod(0o640)
    os.setxattr(path, "user.small", b"v")
    os.setxattr(path, "user.empty", b"")
    os.setxattr(path, "user.medium", bytes(range(250)) * 2 + b"\0")
    os.setxattr(path, "trusted.t", b"tt\0bin")
    if block >= 4096:
        os.setxattr(path, "user.big", b"b" * 3000)
    # VFS_CAP_REVISION_2 with cap_net_raw, effective; an ACL for user 1000 (linux/posix_acl_xattr.h).
    os.setxattr(root / "1 bytes", "security.capability", struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0))
    entries = [(1, 6, -1), (2, 4, 1000), (4, 4, -1), (16, 4, -1), (32, 0, -1)]
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    os.setxattr(root / "4095 bytes", "system.posix_acl_access", acl)


def by_kernel(root: Path, *, skip: tuple[bytes, ...] = (b"lost+found",)) -> dict[bytes, Seen]:
    """The tree as the kernel shows it."""
    top = os.fsencode(root)
    found: dict[bytes, Seen] = {}
    pending = [b""]
    while pending:
        name = pending.pop()
        path = os.path.join(top, name) if name else top
        status = os.lstat(path)
        content: object = None
        if stat.S_ISREG(status.st_mode):
            content = status.st_size, hashlib.sha256(Path(os.fsdecode(path)).read_bytes()).hexdigest()
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
            content = status.st_rdev
        elif stat.S_ISDIR(status.st_mode):
            pending += [os.path.join(name, each) for each in os.listdir(path) if each not in skip]
        xattrs = {}
        with suppress(OSError):  # exfat-fuse has none.
            for key in os.listxattr(path, follow_symlinks=False):
                xattrs[os.fsencode(key)] = os.getxattr(path, key, follow_symlinks=False)
        found[name] = Seen(
            oct(status.st_mode),
            status.st_uid,
            status.st_gid,
            status.st_nlink,
            status.st_mtime_ns,
            content,
            xattrs,
        )
    return found


def by_worker(
    filesystem: FileSystem, *, skip: tuple[bytes, ...] = (b"lost+found",), attributes: bool = True
) -> dict[bytes, Seen]:
    """The tree as a worker shows it. Each entry must be readable, and be found by its name."""
    found: dict[bytes, Seen] = {}
    pending = [(b"", filesystem.root())]
    while pending:
        name, status = pending.pop()
        content: object = None
        if stat.S_ISREG(status.mode):
            content = status.size, digest(filesystem, status.node)
        elif stat.S_ISLNK(status.mode):
            content = filesystem.readlink(status.node)
            assert status.size == len(content)
        elif stat.S_ISCHR(status.mode) or stat.S_ISBLK(status.mode):
            content = status.device
        elif stat.S_ISDIR(status.mode):
            for entry in filesystem.scan(status.node):
                if entry.name in skip:
                    continue
                assert entry.stat is not None, entry
                assert len(pending) % 100 or filesystem.lookup(status.node, entry.name) == entry.stat
                pending.append((os.path.join(name, entry.name), entry.stat))
        found[name] = Seen(
            oct(status.mode),
            status.uid,
            status.gid,
            status.links,
            status.mtime,
            content,
            filesystem.xattrs(status.node) if attributes else {},
        )
    return found


def digest(filesystem: FileSystem, node: int) -> str:
    """Of a whole file, whose runs must hold all that is not zero. What the worker reads is what lies at the
    places that it names."""
    size = filesystem.stat(node).size
    data = b"".join(filesystem.read(node, offset, SMALL) for offset in range(0, size, SMALL))
    assert filesystem.read(node, 0, size) == data
    if (runs := filesystem.runs(node)) is not None:
        assert filesystem._gather(runs, 0, size) == data
    covered = bytearray(size)
    last = 0
    for offset, length in filesystem.extents(node):
        assert offset >= last
        assert 0 < length <= size - offset
        covered[offset : offset + length] = data[offset : offset + length]
        last = offset + length
    assert covered == data
    return hashlib.sha256(data).hexdigest()


def differences(seen: dict[bytes, Seen], wanted: dict[bytes, Seen], *leaving: str) -> list[str]:
    """What is not as it should be, in words; `leaving` out fields."""
    lines = [f"missing: {name!r}" for name in wanted.keys() - seen.keys()]
    lines += [f"extra: {name!r}" for name in seen.keys() - wanted.keys()]
    for name in seen.keys() & wanted.keys():
        for field in Seen._fields:
            one, other = getattr(seen[name], field), getattr(wanted[name], field)
            if field not in leaving and one != other:
                lines.append(f"{name!r}: {field} is {one!r}, not {other!r}")
    return sorted(lines)
