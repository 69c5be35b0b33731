"""File systems made by the kernel, with a tree that has all that readers stumble over; what a tree holds."""

from __future__ import annotations

import hashlib
import os
import socket
import stat
import struct
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from mount_helpers import MIB, mount_loop

MKFS = {
    "ext4": ("mkfs.ext4", "-q", "-F", "-b", "4096"),
    "xfs": ("mkfs.xfs", "-q", "-f"),
    "btrfs": ("mkfs.btrfs", "-q", "-f"),
}
SIZES = {"ext4": 64 * MIB, "xfs": 64 * MIB, "btrfs": 128 * MIB}
# For the kernel to leave the journal alone.
RAW_OPTIONS = {"ext4": "noload", "xfs": "norecovery,nouuid", "btrfs": "rescue=nologreplay"}
FIRST = MIB
"""Where the partition of `partition_of` begins."""
SECOND = 10**9
_CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")
# Version 2: owner rwx, user 1000 r, group r, mask r, others none.
_ACL = struct.pack(
    "<I" + "HHI" * 5,
    2,
    *(1, 7, 0xFFFFFFFF),
    *(2, 4, 1000),
    *(4, 4, 0xFFFFFFFF),
    *(16, 4, 0xFFFFFFFF),
    *(32, 0, 0xFFFFFFFF),
)
# Of XFS (bigtime) and ext4; one that any of them can hold is taken when all are filled the same.
_TIMES = (0, -(10**9), 2_200_000_000, 1_700_000_000)


class Fact(NamedTuple):
    """What is known of an entry of a tree. `same` is the first path of the same inode; `content` a digest, or
    the target of a symlink."""

    kind: int
    mode: int
    owner: tuple[int, int]
    mtime: int
    links: int
    size: int
    device: int
    same: str
    content: bytes
    xattrs: tuple[tuple[str, bytes], ...]


def facts(top: Path) -> dict[bytes, Fact]:
    """Every entry of a tree, by path; `top` itself under the empty name."""
    inodes: dict[int, str] = {}
    found = {}
    for path in _walk(os.fsencode(top)):
        name = os.path.relpath(path, os.fsencode(top)) if path != os.fsencode(top) else b""
        status = os.lstat(path)
        kind = stat.S_IFMT(status.st_mode)
        found[name] = Fact(
            kind,
            stat.S_IMODE(status.st_mode),
            (status.st_uid, status.st_gid),
            status.st_mtime_ns,
            status.st_nlink,
            status.st_size,
            status.st_rdev,
            inodes.setdefault(status.st_ino, repr(name)),
            _content(path, kind),
            _xattrs(path),
        )
    return found


def _walk(top: bytes) -> Iterator[bytes]:
    yield top
    for folder, directories, files in os.walk(top):
        directories.sort()
        for name in sorted(directories + files):
            yield os.path.join(folder, name)


def _content(path: bytes, kind: int) -> bytes:
    if kind == stat.S_IFLNK:
        return os.readlink(path)
    if kind == stat.S_IFREG:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    return b""


def _xattrs(path: bytes) -> tuple[tuple[str, bytes], ...]:
    # XFS shows its ACLs under another name too.
    names = [name for name in os.listxattr(path, follow_symlinks=False) if "SGI_ACL" not in name]
    return tuple(sorted((name, os.getxattr(path, name, follow_symlinks=False)) for name in names))


def fill(top: Path) -> None:
    """The tree: sizes around blocks, holes, many pieces, odd names, all kinds of files, links, owners, modes,
    times, extended attributes."""
    for size in (0, 1, 59, 4095, 4096, 4097, 300_000, 3 * MIB + 17):
        _write(top / f"size {size}", os.urandom(size))
    with (top / "sparse").open("wb") as file:
        for offset in (0, 5 * MIB, 9 * MIB + 4096):
            file.seek(offset)
            file.write(os.urandom(8192))
        file.truncate(12 * MIB + 5)
    with (top / "fragments").open("wb") as file:
        for number in range(200):
            file.seek(number * 12288)
            file.write(bytes([number]) * 4096)
    folder = top / "names"
    folder.mkdir()
    for name in ("ünïcode ☃".encode(), b"latin\xe9", b"new\nline", b"x" * 255, b" ", b"-rf", b"...", b'"\\'):
        _write(folder / os.fsdecode(name), name)
    many = top / "many"
    many.mkdir()
    for number in range(1500):
        _write(many / f"a file of a name that takes some room {number}", b"%d" % number)
    deep = top
    for number in range(25):
        deep = deep / f"level {number}"
        deep.mkdir()
    _write(deep / "bottom", b"deep")
    os.link(deep / "bottom", top / "hard link")
    os.link(deep / "bottom", many / "another")
    for length in (1, 3, 59, 60, 61, 300, 917):
        os.symlink("t" * length, top / f"symlink {length}")
    os.symlink("size 1", top / "relative")
    os.symlink(b"\xff\xfe", os.fsencode(top / "latin symlink"))
    os.mkfifo(top / "fifo", 0o640)
    os.mknod(top / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(top / "block", stat.S_IFBLK | 0o660, os.makedev(259, 70_000))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.fspath(top / "socket"))
    for mode in (0o000, 0o4755, 0o2711, 0o1777, 0o600):
        path = top / f"mode {mode:o}"
        _write(path, b"%o" % mode)
        os.chown(path, 1_000_000, 65534)
        path.chmod(mode)
    secret = top / "secret"
    secret.mkdir(mode=0o700)
    _write(secret / "key", b"of nobody's business")
    (secret / "key").chmod(0)
    with_attributes = top / "xattrs"
    _write(with_attributes, b"x")
    os.setxattr(with_attributes, "user.short", b"value")
    os.setxattr(with_attributes, "user.long", bytes(range(256)) * 3)
    os.setxattr(with_attributes, "user.empty", b"")
    os.setxattr(with_attributes, "security.capability", _CAPABILITY)
    os.setxattr(with_attributes, "trusted.of root", b"\0\1")
    os.setxattr(many, "user.of a directory", b"1")
    acl = top / "acl"
    _write(acl, b"x")
    os.setxattr(acl, "system.posix_acl_access", _ACL)
    for number, seconds in enumerate(_TIMES):
        path = top / f"time {number}"
        _write(path, b"")
        os.utime(path, ns=(seconds * SECOND + 123_456_789, seconds * SECOND + 987_654_321))


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def need_mkfs(kind: str) -> None:
    program = MKFS[kind][0]
    if subprocess.run(["which", program], capture_output=True, check=False).returncode != 0:
        pytest.skip(f"needs {program}")


def format_image(kind: str, path: Path, size: int | None = None, *options: str | Path) -> None:
    """A new file system in the file `path`."""
    with path.open("wb") as file:
        file.truncate(size or SIZES[kind])
    # mkfs.xfs makes no small ones but for its own tests.
    environment = {**os.environ, "TEST_DIR": "1", "TEST_DEV": "1", "QA_CHECK_FS": "1"}
    command = [*MKFS[kind], *options, path]
    made = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert made.returncode == 0, made.stderr


def make_file_system(
    kind: str, path: Path, work: Callable[[Path], object], size: int | None = None, *options: str
) -> None:
    """A new file system in the file `path`, in whose mount `work` was done."""
    format_image(kind, path, size, *options)
    with kernel_mount(path) as top:
        work(top)


@contextmanager
def kernel_mount(image: Path, options: str = "") -> Iterator[Path]:
    """The file system in an image or volume, mounted by the kernel."""
    top = Path(subprocess.run(["mktemp", "-d"], check=True, capture_output=True, text=True).stdout.strip())
    mount_loop(image, top, *filter(None, (options,)))
    try:
        yield top
    finally:
        # Who else has the mount, in a namespace of its own, would put off what unmounting writes.
        # What was shut down cannot be synced.
        subprocess.run(["sync", "-f", top], check=False, capture_output=True)
        subprocess.run(["umount", top], check=True)
        top.rmdir()


def partition_of(image: Path, path: Path) -> Path:
    """A disk of one partition, which holds the image."""
    return partitions_of([image], path)


def partitions_of(images: Sequence[Path], path: Path) -> Path:
    """A disk of as many partitions, each of which holds an image of whole MiB."""
    sizes = [image.stat().st_size for image in images]
    with path.open("wb") as file:
        file.truncate(FIRST + sum(sizes) + MIB)
    starts = [FIRST + sum(sizes[:number]) for number in range(len(sizes))]
    table = zip(starts, sizes, strict=True)
    subprocess.run(
        ["sfdisk", "-q", "--no-reread", path],
        input="label: gpt\n" + "".join(f"start={start // 512},size={size // 512}\n" for start, size in table),
        text=True,
        check=True,
    )
    for image, start in zip(images, starts, strict=True):
        place = ("bs=1M", f"seek={start // MIB}", "conv=notrunc,sparse")
        subprocess.run(["dd", f"if={image}", f"of={path}", *place], check=True, capture_output=True)
    return path
