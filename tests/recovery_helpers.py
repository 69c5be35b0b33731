"""Guests to recover files from: disks with file systems that the kernel made, and what it says is in them."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from command_helpers import Done, Site, program, unmeasured

MIB = 1 << 20
NOBODY = 65534
TOOLS = ("losetup", "sfdisk", "mkfs.ext4", "mkfs.xfs", "mkfs.vfat", "setfattr", "setfacl", "setcap")
can_make_guests = os.geteuid() == 0 and all(map(shutil.which, TOOLS))
needs_guests = pytest.mark.skipif(
    not can_make_guests, reason="needs root, loop mounts and " + ", ".join(TOOLS)
)


class Filled(NamedTuple):
    """A partition of a guest's disk: MiB long, made by the command `make`, which gets the device, and mounted
    in the guest at `target`, with `options`."""

    size: int
    make: Sequence[str]
    target: str
    options: str = ""


class Truth(NamedTuple):
    """What the kernel says of a file. `content` is a digest, a link's target, or a device's number."""

    mode: int
    uid: int
    gid: int
    links: int
    size: int
    mtime: int
    content: str
    xattrs: dict[str, bytes]


def run(*words: object, stdin: bytes | None = None) -> bytes:
    done = subprocess.run(list(map(str, words)), input=stdin, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def make_disk(path: Path, partitions: Sequence[Filled], ids: str = "linux") -> None:
    """A GPT disk with empty file systems."""
    size = sum(part.size for part in partitions) + 2
    with path.open("wb") as file:
        file.truncate(size * MIB)
    table = "label: gpt\n" + "".join(f"size={part.size}M, type={ids}\n" for part in partitions)
    run("sfdisk", "-q", path, stdin=table.encode())
    # mkfs.xfs makes none as small as this unless it believes that it is being tested.
    environment = {**os.environ, "TEST_DIR": "1", "TEST_DEV": "1", "QA_CHECK_FS": "1"}
    for start, part in _placed(partitions):
        with _loop(path, start, part.size * MIB) as device:
            subprocess.run([*part.make, device], check=True, capture_output=True, env=environment)


def _placed(partitions: Sequence[Filled]) -> Iterator[tuple[int, Filled]]:
    at = MIB
    for part in partitions:
        yield at, part
        at += part.size * MIB


@contextmanager
def _loop(path: Path, start: int, size: int) -> Iterator[str]:
    words = ["losetup", "--find", "--show", "--offset", start, "--sizelimit", size, path]
    device = run(*words).decode().strip()
    try:
        yield device
    finally:
        run("losetup", "--detach", device)


@contextmanager
def mounted(path: Path, partitions: Sequence[Filled], at: Path, *, read_only: bool = False) -> Iterator[Path]:
    """The guest's file systems by the kernel, as the guest has them, under `at`."""
    at.mkdir(exist_ok=True)
    done: list[Path] = []
    devices = []
    try:
        for start, part in _placed(partitions):
            place = at / part.target.lstrip("/")
            place.mkdir(exist_ok=True, parents=True)
            loop = _loop(path, start, part.size * MIB)
            devices.append(loop)
            options = ",".join(filter(None, ("ro" if read_only else "rw", part.options)))
            run("mount", "-o", options, loop.__enter__(), place)
            done.append(place)
        yield at
    finally:
        for place in reversed(done):
            run("umount", place)
        for loop in reversed(devices):
            loop.__exit__(None, None, None)


def fill(root: Path) -> None:
    """Files of all kinds, with names, times and attributes of all kinds."""
    top = os.fsencode(root)
    for folder in ("etc", "usr/bin", "var/log", "odd/deep/" + "/".join("abcdefghij"), "odd/big"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "etc/os-release").write_text("ID=test\n")
    (root / "etc/hostname").write_text("web01\n")
    (root / "usr/bin/tool").write_bytes(os.urandom(100_000))
    (root / "usr/bin/tool").chmod(0o4755)
    run("setcap", "cap_net_raw+ep", shutil.copy(root / "usr/bin/tool", root / "usr/bin/capable"))
    os.chown(root / "etc/hostname", 1_000_000, 12)
    odd = root / "odd"
    for size in (0, 1, 4095, 4096, 4097, 3_000_000):
        (odd / f"size-{size}").write_bytes(os.urandom(size))
    with (odd / "sparse").open("wb") as file:
        file.truncate(50 * MIB)
        file.seek(20 * MIB + 5)
        file.write(b"an island")
    with (odd / "hole at the end").open("wb") as file:
        file.write(b"x" * 5000)
        file.truncate(9 * MIB)
    (odd / "forbidden").write_text("nobody may read this\n")
    (odd / "forbidden").chmod(0)
    for name in (
        b"new\nline",
        b"latin-1 \xe9",
        "naïve 名前 🐟".encode(),
        b"n" * 255,
        b"..hidden",
        b"-rf",
        b"a=b;$(c)",
    ):
        Path(os.fsdecode(top + b"/odd/" + name)).write_bytes(name)
    os.link(odd / "size-4097", odd / "deep/hard link")
    os.link(odd / "size-4097", root / "var/hard link")
    os.symlink("/etc/hostname", odd / "absolute")
    os.symlink("../../../../../../etc/hostname", odd / "upwards")
    os.symlink("/etc/shadow", odd / "shadow")
    os.symlink("nowhere/" + "x" * 200, odd / "dangling")
    os.symlink("/home/joe", root / "var/joe")
    os.symlink("loop2", odd / "loop1")
    os.symlink("loop1", odd / "loop2")
    os.mkfifo(odd / "fifo", 0o640)
    os.mknod(odd / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(odd / "disk", stat.S_IFBLK | 0o660, os.makedev(8, 300))
    run("setfattr", "-n", "user.color", "-v", "blue", odd / "size-1")
    run("setfattr", "-n", "user.bytes", "-v", "0x00ff0a3d", odd / "size-1")
    run("setfattr", "-n", "trusted.secret", "-v", "x", odd / "size-1")
    run("setfacl", "-m", "u:1234:rw,g:77:r", odd / "size-4096")
    run("setfacl", "-d", "-m", "u:1234:rwx", odd / "deep")
    for number in range(1500):
        (odd / "big" / f"file {number:04}").write_bytes(b"%d" % number)
    os.utime(odd / "size-0", ns=(-(10**9) * 86400, -(10**9) * 86400 + 1))
    os.utime(odd / "size-1", ns=(1, 4_102_444_800 * 10**9 + 123_456_789))
    os.utime(odd / "deep", ns=(5 * 10**9, 1_000_000_000_123_456_789))
    os.utime(odd / "absolute", ns=(0, 1_234_567_890_987_654_321), follow_symlinks=False)


def truth(root: Path) -> dict[bytes, Truth]:
    """Everything below `root`, as the kernel shows it, by relative path."""
    found = {}
    top = os.fsencode(root)
    for folder, folders, names in os.walk(top):
        for name in (b"", *folders, *names):
            path = os.path.join(folder, name) if name else folder
            found[os.path.relpath(path, top)] = _truth(path)
    return found


def _truth(path: bytes) -> Truth:
    facts = os.lstat(path)
    content = ""
    if stat.S_ISREG(facts.st_mode):
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    elif stat.S_ISLNK(facts.st_mode):
        content = os.fsdecode(os.readlink(path))
    elif stat.S_ISCHR(facts.st_mode) or stat.S_ISBLK(facts.st_mode):
        content = str(facts.st_rdev)
    names = os.listxattr(path, follow_symlinks=False)
    xattrs = {name: os.getxattr(path, name, follow_symlinks=False) for name in names}
    is_directory = stat.S_ISDIR(facts.st_mode)
    return Truth(
        facts.st_mode,
        facts.st_uid,
        facts.st_gid,
        0 if is_directory else facts.st_nlink,
        0 if is_directory else facts.st_size,
        facts.st_mtime_ns,
        content,
        xattrs,
    )


# A mount namespace in which $1, the interpreter, is not hidden in $2, for root alone; then another user.
AS_NOBODY = """
set -e
if [ -n "$2" ]; then
    mount --bind "$1" "$3"
    mount -t tmpfs -o mode=755 none "$2"
    mkdir -p "$1"
    mount --move "$3" "$1"
fi
shift 3
exec setpriv --reuid=65534 --regid=65534 --clear-groups "$@"
"""


def _as_nobody(words: list[object], scratch: Path) -> list[object]:
    interpreter = Path(sys.base_prefix).resolve()
    hidden = [path for path in interpreter.parents if not path.stat().st_mode & stat.S_IXOTH]
    script = ["unshare", "--mount", "sh", "-c", AS_NOBODY, "sh"]
    return [*script, interpreter, hidden[-1] if hidden else "", scratch, *words]


def _nobodys_environment(home: Path) -> dict[str, str]:
    """That of a user who has a home and has set nothing else; and who may not write what was measured to
    where it belongs."""
    places = ("VMFS_CACHE_DIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")
    kept = {name: value for name, value in unmeasured().items() if name not in places}
    return {**kept, "HOME": str(home)}


def vmfs(site: Site, command: str, *argv: object, nobody: Path | None = None) -> Done:
    """The installed command; what it writes to standard output are bytes in `out` as Latin-1. With `nobody`,
    by that user, who has this directory for a home, with the cache at its place there."""
    words = [program("vmfs"), *command.split(), site.repository, *argv]
    if nobody:
        scratch = nobody / "interpreter"
        scratch.mkdir(exist_ok=True)
        words = _as_nobody([*words, "--passphrase-file", site.passphrase], scratch)
    else:
        words += site.options()
    done = subprocess.run(
        [os.fsencode(str(word)) for word in words],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        check=False,
        env=_nobodys_environment(nobody) if nobody else None,
    )
    return Done(done.returncode, done.stdout.decode("latin-1"), done.stderr.decode(errors="replace"))
