"""Making the file lists of restore points: what did not change since an indexed point is taken over
unread."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import NamedTuple

from vmfs.errors import IntegrityError, ObjectMissingError, StoreError
from vmfs.format import filelist
from vmfs.format.filelist import Entry
from vmfs.format.keys import Kind
from vmfs.repo.filelists import KIND, FileLists, Ground, VolumeList, find_lists, read_lists, read_piece
from vmfs.repo.mapdiff import same_bytes
from vmfs.repo.notes import make_note, note_names
from vmfs.repo.repository import Point, Repository
from vmfs.repo.session import WriteSession
from vmfs.search.places import Marks, find_marks, layout_of, losses, mounts_of, open_volume
from vmfs.search.walk import Walk, printable_utf8
from vmfs.volumes.files.client import GuestError
from vmfs.volumes.guest import READABLE
from vmfs.volumes.layout import FoundVolume, Layout

log = logging.getLogger(__name__)

Progress = Callable[[str, str, int], None]
"""(point id, name of the volume, entries so far)"""

_MAX_GROUND = 4096
"""Extents kept of a volume; of one in more, the whole disks."""
_MAX_ALL_GROUND = 100_000
"""Of all volumes together."""
_MAX_PROBLEMS = 4000
"""Told one by one of a point."""
_WARNINGS, _SHOWN = 20, 500
"""How many of a file system are kept, and characters of each."""
_NO_FILES = frozenset(("swap", "LVM2_member", "linux_raid_member"))
"""What holds no files by nature; said of others that there is no reader for them."""
_ROOTS = ("/", "C:")


class Indexed(NamedTuple):
    """What was done for a point. `note` is its note of file lists: a new one, or, where `fresh` is False, the
    one that it had already. `walked` and `taken` are the names of the volumes that were read, and of those
    taken over from another point; `lost` says why others may not have been found."""

    point: str
    vm: str
    note: str
    fresh: bool
    lists: FileLists
    walked: tuple[str, ...] = ()
    taken: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()


class Indexer:
    """Indexes points of a repository, in one write session that begins when there is something to write. A
    context manager. Whatever was done for a point is kept when the next one fails."""

    def __init__(self, repository: Repository, *, progress: Progress = lambda *_: None) -> None:
        self._repository = repository
        self._progress = progress
        self._opened = ExitStack()
        self._session: WriteSession | None = None
        self._noted = {point_id for point_id, _ in note_names(repository)}
        """Points with notes of any kind."""

    def __enter__(self) -> Indexer:
        return self

    def __exit__(self, *error: object) -> None:
        self._opened.__exit__(*error)  # type: ignore[arg-type]

    def index(self, point_id: str, siblings: Sequence[str], *, again: bool = False) -> Indexed:
        """Make the file lists of a point, unless it has some; with `again`, also then, and nothing is taken
        over that could not be read in full. `siblings` are all points of its VM in the order of time. Raises
        IntegrityError when the point's manifest is damaged, StoreError when the store cannot be used, before
        anything is read for a list that could not be kept."""
        point = self._repository.load_point(point_id)
        vm = point.manifest.vm.name
        if not again and point_id in self._noted:
            known, damaged = find_lists(self._repository, point_id)
            for note in damaged:
                log.warning("a note of restore point %s is damaged: %s", point_id, note.message)
            if known is not None:
                return Indexed(point_id, vm, known.id, False, read_lists(known))
        session = self._writing()
        reference = self._reference(point_id, siblings, again=again)
        made = _PointIndexer(self._repository, session, point, reference, again, self._progress)
        lists = made.run()
        facts, blobs = lists.to_facts()
        note_id = session.commit_note(point_id, make_note(self._repository, KIND, facts, blobs))
        self._noted.add(point_id)
        return Indexed(
            point_id, vm, note_id, True, lists, tuple(made.walked), tuple(made.taken), tuple(made.lost)
        )

    def _writing(self) -> WriteSession:
        if self._session is None:
            try:
                session = self._repository.write_session()
            except StoreError as error:
                raise StoreError(f"{error}; 'vmfs find --walk' searches and writes nothing there") from error
            self._session = self._opened.enter_context(session)
        return self._session

    def _reference(
        self, point_id: str, siblings: Sequence[str], *, again: bool
    ) -> tuple[Point, FileLists] | None:
        """The nearest indexed point of the VM, one before if there is any."""
        at = siblings.index(point_id) if point_id in siblings else len(siblings)
        nearest = [*reversed(siblings[:at]), *siblings[at + 1 :]]
        for other in nearest if again is False else [point_id, *nearest]:
            if other not in self._noted:
                continue
            try:
                known, _ = find_lists(self._repository, other)
                if known is not None:
                    return self._repository.load_point(other), read_lists(known)
            except (IntegrityError, ObjectMissingError) as error:
                log.debug("restore point %s is not started from: %s", other, error)
        return None


class _PointIndexer:
    def __init__(
        self,
        repository: Repository,
        session: WriteSession,
        point: Point,
        reference: tuple[Point, FileLists] | None,
        again: bool,
        progress: Progress,
    ) -> None:
        self._repository = repository
        self._session = session
        self._point = point
        self._reference = reference
        self._again = again
        self._progress = progress
        self.walked: list[str] = []
        self.taken: list[str] = []
        self.lost: list[str] = []

    def run(self) -> FileLists:
        if (whole := self._whole_reference()) is not None:
            self.taken += (volume.name for volume in whole.volumes if volume.listed)
            return whole
        layout = layout_of(self._repository, self._point)
        self.lost += map(str, losses(layout))
        lists: dict[str, VolumeList] = {}
        changed: list[FoundVolume] = []
        for volume in layout.volumes:
            known = self._unchanged(volume)
            if known is None:
                changed.append(volume)
            else:
                lists[volume.key] = replace(known, name=volume.name)
                if known.listed:
                    self.taken.append(volume.name)
        marks = self._marks(layout, changed)
        for volume in changed:
            lists[volume.key] = self._walk(volume, marks.get(volume.key, {}))
        ordered = _bounded([lists[volume.key] for volume in layout.volumes])
        return FileLists(volumes=ordered, warnings=tuple(map(printable_utf8, layout.warnings)))

    def _whole_reference(self) -> FileLists | None:
        """The reference's lists, if no disk differs from its."""
        if self._reference is None:
            return None
        point, lists = self._reference
        mine, others = self._point.manifest.disks, point.manifest.disks
        same = [(disk.alias, disk.size, disk.root, disk.block_size) for disk in mine] == [
            (disk.alias, disk.size, disk.root, disk.block_size) for disk in others
        ]
        return lists if same and all(map(self._usable, lists.volumes)) else None

    def _unchanged(self, volume: FoundVolume) -> VolumeList | None:
        """The list of the reference's volume, if that has the same bytes."""
        if self._reference is None:
            return None
        point, lists = self._reference
        known = lists.volume(volume.key)
        if known is None or not self._usable(known) or known.ground != _ground(volume):
            return None
        mine, others = self._point.manifest.disks, point.manifest.disks
        try:
            for disk, offset, length in known.ground:
                if disk >= min(len(mine), len(others)):
                    return None
                if not same_bytes(self._repository.blobs, mine[disk], others[disk], offset, length):
                    return None
        except IntegrityError as error:
            log.debug("volume %s cannot be compared: %s", volume.name, error)
            return None
        return known

    def _usable(self, known: VolumeList) -> bool:
        """Whether that list can stand for the same bytes elsewhere; when asked to index again, only one that
        was made without any trouble."""
        if self._again and (known.error is not None or known.problem_count):
            return False
        kept = not known.pieces or all(map(self._session.keeps, known.pieces))
        return kept and not (self._again and any(map(self._lost, known.pieces)))

    def _lost(self, piece: bytes) -> bool:
        try:
            read_piece(self._repository, piece)
        except IntegrityError:
            return True
        return False

    def _store(self, run: Sequence[Entry]) -> list[bytes]:
        """The pieces for a run of entries: one, unless that is known to be stored and cannot be read. What is
        stored is not stored again, but the same entries in two pieces are."""
        data = filelist.encode(run)
        if self._again and len(run) > 1:
            known = self._repository.keys.blob_id(Kind.ARTIFACT, data)
            if self._repository.index.find(known) is not None and self._lost(known):
                middle = len(run) // 2
                return self._store(run[:middle]) + self._store(run[middle:])
        return [self._session.store_blob(Kind.ARTIFACT, data).id]

    def _marks(self, layout: Layout, changed: Sequence[FoundVolume]) -> Marks:
        """Where the guest has the volumes that are walked. A volume that did not change keeps its places, and
        is not opened for this; so where that is the root, all do."""
        keys = {volume.key for volume in changed}
        known = self._reference[1].volumes if self._reference else ()
        if any(mount.target in _ROOTS for old in known if old.key not in keys for mount in old.mounts):
            return {}
        return find_marks(layout, keys)

    def _walk(self, volume: FoundVolume, marks: Mapping[int, list[bytes]]) -> VolumeList:
        content = volume.content
        made = VolumeList(
            key=volume.key,
            name=volume.name,
            kind=volume.kind,
            type=content.type if content else None,
            label=printable_utf8(content.label) if content and content.label else None,
            uuid=printable_utf8(content.uuid) if content and content.uuid else None,
            ground=_ground(volume),
            walked=self._point.id,
        )
        if volume.problem is not None:
            return replace(made, error=printable_utf8(f"what it holds cannot be read: {volume.problem}"))
        if content is None or content.type in _NO_FILES:
            return made
        if content.type not in READABLE:
            return replace(made, error=f"there is no reader for {content.type}")
        self._progress(self._point.id, volume.name, 0)
        self.walked.append(volume.name)
        pieces: list[bytes] = []
        try:
            with open_volume(volume) as filesystem:
                walk = Walk(
                    filesystem,
                    frozenset(marks),
                    lambda entries: self._progress(self._point.id, volume.name, entries),
                )
                for run in filelist.cut(walk):
                    pieces += self._store(run)
                warnings = tuple(printable_utf8(text)[:_SHOWN] for text in filesystem.warnings[:_WARNINGS])
        except GuestError as error:
            return replace(made, error=printable_utf8(str(error)))
        known = self._reference[1].volume(volume.key) if self._reference else None
        return replace(
            made,
            pieces=tuple(pieces),
            entries=walk.entries,
            listed=True,
            problems=tuple(walk.problems),
            problem_count=walk.problem_count,
            warnings=warnings,
            mounts=mounts_of(walk, marks) or (known.mounts if known else ()),
        )


def _bounded(volumes: Sequence[VolumeList]) -> tuple[VolumeList, ...]:
    """The lists, with no more about all of them together than a note holds, however many there are."""
    problems, ground = _MAX_PROBLEMS, _MAX_ALL_GROUND
    bounded = []
    for volume in volumes:
        told = volume.problems[: max(0, problems)]
        problems -= len(told)
        ground -= len(volume.ground)
        lies_on = volume.ground if ground >= 0 else _whole_disks(volume.ground)
        bounded.append(replace(volume, problems=told, ground=lies_on))
    return tuple(bounded)


def _ground(volume: FoundVolume) -> tuple[Ground, ...]:
    footprint = volume.space.footprint()
    ground = tuple(Ground(part.disk, part.offset, part.length) for part in footprint)
    return ground if len(ground) <= _MAX_GROUND else _whole_disks(ground)


def _whole_disks(ground: Sequence[Ground]) -> tuple[Ground, ...]:
    """At least that, in few words: each disk up to the last byte of it that matters."""
    ends: dict[int, int] = {}
    for part in ground:
        ends[part.disk] = max(ends.get(part.disk, 0), part.offset + part.length)
    return tuple(Ground(disk, 0, end) for disk, end in sorted(ends.items()))
