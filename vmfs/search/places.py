"""Where a guest has its volumes: what of a file list tells a path of the guest from one of a volume."""

from __future__ import annotations

import errno
from collections.abc import Collection, Mapping

from vmfs.errors import VmfsError
from vmfs.format.filelist import to_text
from vmfs.repo.filelists import Mount
from vmfs.repo.repository import Point, Repository
from vmfs.search.walk import Walk
from vmfs.volumes.files.client import FileSystem, GuestError, open_filesystem
from vmfs.volumes.guest import Guest
from vmfs.volumes.layout import FoundVolume, Layout, PointDisk, find_volumes

Marks = Mapping[str, Mapping[int, list[bytes]]]
"""By the key of a volume: the nodes of directories, and where the guest has each mounted."""


def layout_of(repository: Repository, point: Point) -> Layout:
    """The volumes of a point. Raises IntegrityError and StoreError."""
    return find_volumes(
        [PointDisk(disk.alias, repository.open_disk(disk), disk.block_size) for disk in point.manifest.disks]
    )


def losses(layout: Layout) -> list[VmfsError]:
    """Why volumes may be missing altogether: what is said of no volume."""
    said = [volume.problem for volume in layout.volumes]
    return [problem for problem in layout.problems if not any(problem is one for one in said)]


def open_volume(volume: FoundVolume) -> FileSystem:
    """Raises GuestError."""
    if volume.problem is not None:
        text = f"volume {volume.name}: what it holds cannot be read: {volume.problem}"
        raise GuestError(errno.EIO, text, volume.problem.exit_status) from volume.problem
    if volume.content is None:
        raise GuestError(errno.EOPNOTSUPP, f"volume {volume.name} holds no file system")
    return open_filesystem(volume.space, volume.content.type, name=volume.name)


def find_marks(layout: Layout, keys: Collection[str]) -> Marks:
    """For the volumes of those keys; others are not opened. Nothing where no root of a system is found."""

    def open_chosen(volume: FoundVolume) -> FileSystem:
        if volume.key not in keys:
            raise GuestError(errno.EAGAIN, "it is not looked at")
        return open_volume(volume)

    found: dict[str, dict[int, list[bytes]]] = {}
    try:
        with Guest(layout, open_chosen) as guest:
            for mounted in guest.mounts:
                root = mounted.tree.root
                if mounted is not guest.mounts[0] and mounted.tree is guest.mounts[0].tree:
                    covering = (file for file in mounted.tree.mounts.values() if file.path == mounted.target)
                    root = next(covering, root)
                marks = found.setdefault(mounted.volume.key, {})
                marks.setdefault(root.stat.node, []).append(mounted.target)
    except VmfsError:
        # Paths are then shown by volume: no reason to have no list.
        return {}
    return found


def mounts_of(walk: Walk, marks: Mapping[int, list[bytes]]) -> tuple[Mount, ...]:
    """The places of a volume that was walked."""
    return tuple(
        Mount(to_text(target), to_text(walk.prefixes[node]))
        for node, targets in marks.items()
        if node in walk.prefixes
        for target in targets
    )
