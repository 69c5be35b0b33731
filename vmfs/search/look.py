"""Looking through a restore point that has no file list."""

from __future__ import annotations

import stat
from collections.abc import Iterator

from vmfs.catalog.filesearch import FileQuery, FileRow, PointRef, guest_path_of
from vmfs.catalog.globs import Glob
from vmfs.errors import VmfsError
from vmfs.format.filelist import Entry, to_bytes, to_text
from vmfs.repo.repository import Point, Repository
from vmfs.search.places import find_marks, layout_of, losses, mounts_of, open_volume
from vmfs.search.walk import Walk
from vmfs.volumes.files.client import GuestError
from vmfs.volumes.guest import READABLE
from vmfs.volumes.tree import show


def look(repository: Repository, point: Point, query: FileQuery) -> Iterator[FileRow | VmfsError]:
    """The files of one point that `query` describes, by walking its file systems. What cannot be read comes
    as an error between them. Raises IntegrityError and StoreError where nothing can be."""
    layout = layout_of(repository, point)
    readable = [
        volume
        for volume in layout.volumes
        if volume.problem or (volume.content and volume.content.type in READABLE)
    ]
    marks = find_marks(layout, [volume.key for volume in readable])
    yield from losses(layout)
    reference = PointRef(point.id, point.manifest.time)
    vm = point.manifest.vm
    for volume in readable:
        try:
            with open_volume(volume) as filesystem:
                walk = Walk(filesystem, frozenset(marks.get(volume.key, {})))
                found = [entry for entry in walk if _wanted(entry, query)]
        except GuestError as error:
            yield error
            continue
        for problem in walk.problems:
            yield VmfsError(f"{volume.name}:{show(to_bytes(problem.path))}: {problem.problem}")
        mounts = sorted(mounts_of(walk, marks.get(volume.key, {})), key=lambda mount: -len(mount.prefix))
        for entry in found:
            path = f"/{to_text(entry.path)}"
            there = guest_path_of(path, mounts)
            if query.path is not None and not any(map(query.path.matches, filter(None, (path, there)))):
                continue
            yield FileRow(
                *(vm.name, vm.id, volume.name, volume.key, path, there),
                *(entry.mode, entry.size, entry.mtime, entry.ctime),
                points=(reference,),
            )


def _wanted(entry: Entry, query: FileQuery) -> bool:
    """All but the path."""
    return (
        (not query.kinds or stat.S_IFMT(entry.mode) in query.kinds)
        and _between(entry.size, query.smallest, None if query.largest is None else query.largest + 1)
        and _between(entry.mtime, query.newer, query.older)
        and _named(entry.name, query.name)
    )


def _named(name: bytes, glob: Glob | None) -> bool:
    return glob is None or glob.matches(to_text(name))


def _between(value: int, low: int | None, high: int | None) -> bool:
    return (low is None or value >= low) and (high is None or value < high)
