"""What is in a directory tree: every file's content, mode, owner, times and links, for comparing two."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Entry:
    """One file, folder, link or device."""

    mode: int
    owner: tuple[int, int]
    links: int
    mtime_ns: int
    size: int
    content: str
    """SHA-256 of a file, the target of a symbolic link, the number of a device; else empty."""


Manifest = Mapping[str, Entry]


def record(root: Path) -> Manifest:
    """Read everything below `root`. Times of access are not looked at: reading changes them."""
    entries: dict[str, Entry] = {}
    for folder, folders, names in os.walk(os.fsencode(root), onerror=_raise):
        for name in (b"", *folders, *names):
            path = os.path.join(folder, name) if name else folder
            entries[os.fsdecode(os.path.relpath(path, os.fsencode(root)))] = _entry(path)
    return entries


def differences(before: Manifest, after: Manifest) -> list[str]:
    """A line for each entry that is not the same in both."""
    lines = []
    for path in sorted(before.keys() | after.keys()):
        if path not in after:
            lines.append(f"{path}: missing")
        elif path not in before:
            lines.append(f"{path}: was not there")
        elif before[path] != after[path]:
            lines.append(f"{path}: was {before[path]}, is {after[path]}")
    return lines


def content_bytes(manifest: Manifest) -> int:
    """Bytes of all the regular files."""
    return sum(entry.size for entry in manifest.values() if stat.S_ISREG(entry.mode))


def count_files(manifest: Manifest) -> int:
    return sum(1 for entry in manifest.values() if not stat.S_ISDIR(entry.mode))


def digest(path: Path | bytes) -> str:
    """SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _raise(error: OSError) -> None:
    raise error


def _entry(path: bytes) -> Entry:
    status = os.lstat(path)
    content = ""
    if stat.S_ISREG(status.st_mode):
        content = digest(path)
    elif stat.S_ISLNK(status.st_mode):
        content = os.fsdecode(os.readlink(path))
    elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
        content = str(status.st_rdev)
    # A folder's size is its file system's own affair, and may differ with how it came to be.
    size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
    owner = (status.st_uid, status.st_gid)
    return Entry(status.st_mode, owner, status.st_nlink, status.st_mtime_ns, size, content)
