"""An initramfs: a cpio archive in the format "newc" (kernel: Documentation/driver-api/early-userspace)."""

from __future__ import annotations

import stat
from dataclasses import dataclass, field

_TRAILER = "TRAILER!!!"


@dataclass
class Archive:
    """Files by path, without a leading slash; directories appear by themselves. All belong to root, and times
    are 0: the same files make the same bytes."""

    _entries: dict[str, tuple[int, bytes]] = field(default_factory=dict)

    def file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        self._add(path, stat.S_IFREG | mode, content)

    def link(self, path: str, target: str) -> None:
        self._add(path, stat.S_IFLNK | 0o777, target.encode())

    def directory(self, path: str, mode: int = 0o755) -> None:
        self._add(path, stat.S_IFDIR | mode, b"")

    def _add(self, path: str, mode: int, content: bytes) -> None:
        parent = path.rpartition("/")[0]
        if parent and parent not in self._entries:
            self.directory(parent)
        self._entries[path] = (mode, content)

    def to_bytes(self) -> bytes:
        pieces = [
            _entry(number, path, mode, content)
            for number, (path, (mode, content)) in enumerate(self._entries.items(), 1)
        ]
        return b"".join([*pieces, _entry(0, _TRAILER, 0, b"")])


def _entry(inode: int, path: str, mode: int, content: bytes) -> bytes:
    name = path.encode() + b"\0"
    # ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
    numbers = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name), 0)
    head = b"070701" + b"".join(b"%08x" % number for number in numbers) + name
    return _padded(head) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
