"""Where a mount may go, what is mounted already, and unmounting."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vmfs.errors import UsageError, VmfsError

FUSE_DEVICE = Path("/dev/fuse")
SUBTYPE = "fuse.vmfs"
_MOUNTINFO = Path("/proc/self/mountinfo")
_FUSE_CONF = Path("/etc/fuse.conf")


@dataclass(frozen=True, slots=True)
class Mounted:
    """One line of the kernel's table. `device` is `major:minor`."""

    device: str
    path: str
    type: str
    source: str


def mounts() -> list[Mounted]:
    """What is mounted in this process's namespace, oldest first. Asks no file system anything."""
    found = []
    for line in _MOUNTINFO.read_text(errors="surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        fields, rest = before.split(" "), after.split(" ")
        if len(fields) >= 5 and len(rest) >= 2:
            found.append(Mounted(fields[2], _unescape(fields[4]), rest[0], _unescape(rest[1])))
    return found


def mounted_at(path: Path) -> Mounted | None:
    """What is mounted on top at that path."""
    wanted = os.fspath(path)
    return next((mount for mount in reversed(mounts()) if mount.path == wanted), None)


def resolve(path: Path) -> Path:
    """The path without links, as the kernel's table has it. Does not touch the directory itself: the mount
    on it may be dead, or be our own."""
    absolute = Path(os.path.abspath(path))
    if mounted_at(absolute) is None and absolute.is_symlink():
        return Path(os.path.realpath(absolute))
    return Path(os.path.realpath(absolute.parent)) / absolute.name


def check_fuse() -> None:
    """Raises VmfsError if this machine or this user cannot make FUSE mounts."""
    try:
        os.close(os.open(FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        raise VmfsError(
            f"FUSE is not available: {FUSE_DEVICE} is missing; run 'modprobe fuse', "
            "or give the container --device /dev/fuse"
        ) from None
    except OSError as error:
        raise VmfsError(
            f"FUSE is not available: {FUSE_DEVICE} cannot be opened ({os.strerror(error.errno or 0)})"
        ) from None
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        raise VmfsError("fusermount3 is missing, which users other than root need; install the package fuse3")


def check_allow_other() -> None:
    """Raises UsageError if this user may not share a mount with others."""
    if os.geteuid() == 0:
        return
    try:
        lines = _FUSE_CONF.read_text().splitlines()
    except OSError:
        lines = []
    if not any(line.strip() == "user_allow_other" for line in lines):
        raise UsageError(f"only root may share a mount, unless {_FUSE_CONF} has the line user_allow_other")


def check(mountpoint: Path, ours: Iterable[Path]) -> Path:
    """The resolved mountpoint, if a repository can be mounted there. `ours` are the directories that the
    mount itself needs: under the mountpoint, or around it, they would make it wait for itself for ever.
    Raises UsageError and VmfsError."""
    path = resolve(mountpoint)
    there = mounted_at(path)
    if there is not None:
        raise UsageError(
            f"{path}: already mounted ({there.source}); 'vmfs umount' it, or choose another place"
        )
    try:
        status = path.stat()
    except FileNotFoundError:
        raise UsageError(f"mountpoint {path} does not exist; make it with mkdir") from None
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            raise UsageError(f"{path} is the place of a mount that died; 'vmfs umount' it first") from None
        raise VmfsError(f"mountpoint {path}: {os.strerror(error.errno or 0)}") from None
    if not path.is_dir():
        raise UsageError(f"mountpoint {path} is not a directory; choose one that is")
    for directory in ours:
        _check_apart(path, status, directory)
    if os.geteuid() != 0 and not os.access(path, os.W_OK):
        raise UsageError(f"mountpoint {path} is not writable for you; choose a directory of your own")
    try:
        empty = not any(path.iterdir())
    except PermissionError:
        raise UsageError(
            f"mountpoint {path} is not readable for you; choose a directory of your own"
        ) from None
    if not empty:
        raise UsageError(f"mountpoint {path} is not empty; choose an empty directory")
    return path


def _check_apart(mountpoint: Path, status: os.stat_result, directory: Path) -> None:
    try:
        other = directory.stat()
    except OSError:
        return
    if os.path.samestat(status, other):
        raise UsageError(f"{mountpoint} is {directory} itself, which vmfs reads; choose another mountpoint")
    # By device and inode number, as either may be reached by a bind mount.
    if _is_below(mountpoint, other):
        raise UsageError(f"mountpoint {mountpoint} is inside {directory}; choose one outside")
    if _is_below(Path(os.path.realpath(directory)), status):
        raise UsageError(f"{directory} is inside the mountpoint {mountpoint}, which would hide it")


def _is_below(path: Path, ancestor: os.stat_result) -> bool:
    for parent in path.parents:
        try:
            if os.path.samestat(parent.stat(), ancestor):
                return True
        except OSError:
            continue
    return False


def unmount(mountpoint: Path, *, lazy: bool = False) -> None:
    """Unmount a vmfs mount. `lazy` takes it out of sight at once, and ends it with the last open file.
    Raises UsageError and VmfsError."""
    path = resolve(mountpoint)
    there = mounted_at(path)
    if there is None:
        raise UsageError(f"{path} is not mounted")
    if there.type not in (SUBTYPE, "fuse"):
        raise UsageError(f"{path} is a mount of {there.type} and not of vmfs; use umount")
    if os.geteuid() == 0:
        command = ["umount", *(["-l"] if lazy else []), "--", os.fspath(path)]
    else:
        command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", os.fspath(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except FileNotFoundError:
        raise VmfsError(f"{command[0]} is missing; install the package fuse3") from None
    if done.returncode == 0:
        return
    said = " ".join((done.stderr or done.stdout).split()).removesuffix(".")
    if "busy" in said:
        raise VmfsError(
            f"{path} is busy: a shell stands in it, a file is open or a loop device is on it (losetup -a, "
            "fuser -vm); end that, or use --lazy"
        )
    raise VmfsError(f"{path} cannot be unmounted: {said or f'{command[0]} failed'}")


def _unescape(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
