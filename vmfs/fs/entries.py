"""What the directories of the mount hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto


class Role(Enum):
    ROOT = auto()
    DAMAGED = auto()
    VM = auto()
    LATEST = auto()
    POINT = auto()
    DISKS = auto()
    VOLUMES = auto()
    FILES = auto()
    FILESYSTEM = auto()
    POINT_JSON = auto()
    ARTIFACT = auto()
    DISK = auto()
    VOLUME = auto()


DIRECTORIES = frozenset(
    (
        Role.ROOT,
        Role.DAMAGED,
        Role.VM,
        Role.POINT,
        Role.DISKS,
        Role.VOLUMES,
        Role.FILES,
        Role.FILESYSTEM,
    )
)
# What a refresh may change. All else is as immutable as the point it belongs to.
CHANGING = frozenset((Role.ROOT, Role.DAMAGED, Role.VM, Role.LATEST))
# What is known of these without looking into them is not all; the kernel is to ask each time.
SETTLING = frozenset((Role.POINT_JSON, Role.FILESYSTEM))


@dataclass(frozen=True, slots=True)
class Entry:
    """One file, directory or link. Its name is its directory's business.

    `key` tells it from all others and is the same in every mount of the repository. `size` is bytes;
    `allocated`, bytes, is how many of them are not known to be zero. `point` is a point id; `index` the
    number of the disk or artifact in its manifest, or of the volume among the point's.
    """

    key: str
    role: Role
    mtime_ns: int
    size: int = 0
    allocated: int = 0
    point: str = ""
    index: int = 0
    target: bytes = b""

    @property
    def is_directory(self) -> bool:
        return self.role in DIRECTORIES


Children = Mapping[bytes, Entry]
NO_CHILDREN: Children = {}
