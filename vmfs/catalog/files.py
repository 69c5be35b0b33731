"""Bringing the rows of files in line with the notes in the store, one restore point after another."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from vmfs.catalog import fullsearch
from vmfs.catalog.database import Database
from vmfs.catalog.filemodels import (
    OPEN,
    DirectoryModel,
    EntryModel,
    LineageModel,
    NameModel,
    NoteModel,
    VolumeModel,
)
from vmfs.catalog.models import PointModel
from vmfs.catalog.records import Record
from vmfs.errors import IntegrityError, ObjectMissingError
from vmfs.format.filelist import Entry, to_text
from vmfs.format.note import ID_SIZE
from vmfs.repo.filelists import KIND, FileLists, VolumeList, read_lists, read_piece
from vmfs.repo.notes import DamagedNote, note_names, read_note
from vmfs.repo.repository import Repository

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with (notes taken in, notes to take in)."""

_BATCH = 500
"""Values in one statement: every database takes that many parameters."""
_ROWS = 20_000
"""Entries that are inserted at a time: bounds the memory."""
_KNOWN = 500_000
"""Names whose keys are remembered while lists are entered."""


class UnlistedVolume(NamedTuple):
    """A volume of an indexed point whose files are not known; `error` says why."""

    point: str
    volume: str
    error: str


class _Note(NamedTuple):
    point: str
    id: str
    lists: FileLists | None


def sync_files(
    database: Database, repository: Repository, progress: Progress | None = None
) -> list[DamagedNote]:
    """Take in the file lists of the points that the catalog knows, and forget those whose notes are gone.
    Each point is a transaction of its own. Returns the notes and lists that cannot be read; they are tried
    again by the next sync. Raises StoreError."""
    with database.reading() as connection:
        known = _notes(connection, database.repository)
        points = _points(connection, database.repository)
    stored = note_names(repository)
    gone = known.keys() - set(stored)
    touched = {point for point, _ in gone}
    damaged: list[DamagedNote] = []
    if gone:
        with database.writing() as connection:
            _forget(connection, database.repository, gone)
        # The one that was used may be gone and an older one stay.
        known = {key: used for key, used in known.items() if key not in gone and key[0] not in touched}
    new: dict[str, list[str]] = {}
    for point, note_id in stored:
        if point in points and (point, note_id) not in known:
            new.setdefault(point, []).append(note_id)
    for done, point in enumerate(sorted(new, key=lambda point: points[point])):
        if progress is not None:
            progress(done, len(new))
        notes = _load(repository, point, new[point], damaged)
        if notes:
            with database.writing() as connection:
                _enter(connection, database.repository, repository, notes, damaged)
    if progress is not None and new:
        progress(len(new), len(new))
    if gone or new:
        with database.writing() as connection:
            _collect(connection, database.repository)
    return damaged


def clear_files(connection: Connection, repository: int) -> None:
    """All that is not gone with the points and the VMs."""
    for model in (NameModel, DirectoryModel):
        connection.execute(delete(model).where(model.repository == repository))
    fullsearch.remake(connection)


def _notes(connection: Connection, repository: int) -> dict[tuple[str, str], bool]:
    rows = connection.execute(
        select(NoteModel.point, NoteModel.id, NoteModel.used).where(NoteModel.repository == repository)
    )
    return {(point, note_id): used for point, note_id, used in rows.all()}


def _points(connection: Connection, repository: int) -> dict[str, int]:
    """Every point's place in the order of time."""
    query = (
        select(PointModel.id)
        .where(PointModel.repository == repository)
        .order_by(PointModel.time, PointModel.id)
    )
    return {point: place for place, point in enumerate(connection.scalars(query))}


def _load(
    repository: Repository, point: str, note_ids: Iterable[str], damaged: list[DamagedNote]
) -> list[_Note]:
    """Those of one point that can be read, oldest first."""
    found = []
    for note_id in sorted(note_ids):
        try:
            note = read_note(repository, point, note_id)
            found.append(_Note(point, note_id, read_lists(note) if note.kind == KIND else None))
        except ObjectMissingError:
            continue
        except IntegrityError as error:
            damaged.append(DamagedNote(note_id, point, str(error)))
    return found


def _forget(connection: Connection, repository: int, gone: Iterable[tuple[str, str]]) -> None:
    """The points' other notes are forgotten as well, to be looked at again."""
    for point in {point for point, _ in gone}:
        for model in (NoteModel, VolumeModel):
            connection.execute(delete(model).where(model.repository == repository, model.point == point))


def _enter(
    connection: Connection,
    repository: int,
    source: Repository,
    notes: Sequence[_Note],
    damaged: list[DamagedNote],
) -> None:
    """Notes of one point. The newest that has lists, of these and of those entered before, is the one
    used."""
    point = notes[0].point
    vm = connection.scalar(
        select(PointModel.vm).where(PointModel.repository == repository, PointModel.id == point)
    )
    known = {note_id: used for (of, note_id), used in _notes(connection, repository).items() if of == point}
    notes = [note for note in notes if note.id not in known]
    if vm is None or not notes:
        # The point was removed meanwhile, or another process was quicker.
        return
    with_lists = [note for note in notes if note.lists is not None]
    used = with_lists[-1] if with_lists else None
    if used and used.id < max((note_id for note_id, was in known.items() if was), default=""):
        used = None
    rows = [{"repository": repository, "point": point, "id": note.id, "used": note is used} for note in notes]
    connection.execute(insert(NoteModel), rows)
    if used is None or used.lists is None:
        return
    of_point = (NoteModel.repository == repository, NoteModel.point == point)
    connection.execute(update(NoteModel).where(*of_point, NoteModel.id != used.id).values(used=False))
    connection.execute(
        delete(VolumeModel).where(VolumeModel.repository == repository, VolumeModel.point == point)
    )
    names, directories = (
        _Texts(connection, repository, NameModel),
        _Texts(connection, repository, DirectoryModel),
    )
    for position, volume in enumerate(used.lists.volumes):
        lineage = _Lineage(connection, repository, vm, volume.key)
        ordinal, error = None, volume.error
        if volume.listed:
            try:
                with connection.begin_nested():
                    ordinal = lineage.enter(source, volume, names, directories)
            except IntegrityError as problem:
                names.forget()
                directories.forget()
                error = f"its file list is damaged: {problem}"
                damaged.append(DamagedNote(used.id, point, f"volume {volume.name}: {error}"))
        connection.execute(
            insert(VolumeModel), [_row(repository, point, position, volume, lineage, ordinal, error)]
        )


def _row(
    repository: int,
    point: str,
    position: int,
    volume: VolumeList,
    lineage: _Lineage,
    ordinal: int | None,
    error: str | None,
) -> Record:
    return {
        "repository": repository,
        "point": point,
        "position": position,
        "lineage": lineage.key,
        "ordinal": ordinal,
        "digest": volume.digest if ordinal is not None else None,
        "name": _clean(volume.name),
        "type": _clean(volume.type),
        "mounts": json.dumps([list(mount) for mount in volume.mounts]),
        "problems": volume.problem_count,
        "error": _clean(error),
    }


def _clean(text: str | None) -> str | None:
    """PostgreSQL takes no NUL."""
    return None if text is None else text.replace("\0", "\N{REPLACEMENT CHARACTER}")


class _Lineage:
    """The lists of one volume of one VM, made if there were none."""

    def __init__(self, connection: Connection, repository: int, vm: int, volume: str) -> None:
        self._connection = connection
        volume = _clean(volume) or ""
        query = select(LineageModel.key, LineageModel.newest, LineageModel.pieces).where(
            LineageModel.vm == vm, LineageModel.volume == volume
        )
        row = connection.execute(query).first()
        if row is None:
            values = {"repository": repository, "vm": vm, "volume": volume, "newest": 0, "pieces": b""}
            connection.execute(insert(LineageModel), [values])
            row = connection.execute(query).one()
        self.key, self._newest, pieces = row
        self._pieces = [pieces[at : at + ID_SIZE] for at in range(0, len(pieces), ID_SIZE)]

    def enter(self, source: Repository, volume: VolumeList, names: _Texts, directories: _Texts) -> int:
        """The number of that list, which is a new one unless there is one like it. Raises IntegrityError."""
        known = self._connection.scalar(
            select(VolumeModel.ordinal)
            .where(VolumeModel.lineage == self.key, VolumeModel.digest == volume.digest)
            .limit(1)
        )
        if known is not None:
            return known
        ordinal = self._newest + 1
        if not self._newest or volume.pieces != tuple(self._pieces):
            old = self._only_before(source, volume)
            fresh = volume.pieces if old is None else _without(volume.pieces, self._pieces)
            old = set() if old is None else old
            rows: list[Entry] = []
            for piece in fresh:
                entries = read_piece(source, piece)
                rows += (entry for entry in entries if entry not in old)
                old.difference_update(entries)
                if len(rows) >= _ROWS:
                    self._insert(rows, ordinal, names, directories)
                    rows = []
            self._insert(rows, ordinal, names, directories)
            self._close(old, names, directories)
        self._connection.execute(
            update(LineageModel)
            .where(LineageModel.key == self.key)
            .values(newest=ordinal, pieces=b"".join(volume.pieces))
        )
        self._newest, self._pieces = ordinal, list(volume.pieces)
        return ordinal

    def _only_before(self, source: Repository, volume: VolumeList) -> set[Entry] | None:
        """What stands in the pieces that only the newest list has. Where they can no longer be read,
        everything open is closed, and None says that all of the list is new."""
        try:
            found: set[Entry] = set()
            for piece in _without(self._pieces, volume.pieces):
                found.update(read_piece(source, piece))
            return found
        except IntegrityError as error:
            log.debug("a file list is entered in full: %s", error)
        self._connection.execute(
            update(EntryModel)
            .where(EntryModel.lineage == self.key, EntryModel.last == OPEN)
            .values(last=self._newest)
        )
        return None

    def _insert(self, rows: Sequence[Entry], ordinal: int, names: _Texts, directories: _Texts) -> None:
        if not rows:
            return
        name_keys = names.keys([entry.name for entry in rows])
        directory_keys = directories.keys([entry.directory for entry in rows])
        self._connection.execute(
            insert(EntryModel),
            [
                {
                    "lineage": self.key,
                    "first": ordinal,
                    "last": OPEN,
                    "directory": directory_keys[entry.directory],
                    "name": name_keys[entry.name],
                    "mode": entry.mode,
                    "size": entry.size,
                    "mtime": entry.mtime,
                    "ctime": entry.ctime,
                }
                for entry in rows
            ],
        )

    def _close(self, gone: Collection[Entry], names: _Texts, directories: _Texts) -> None:
        """These are not in the list that comes, or not as they were."""
        if not gone:
            return
        directory_keys = directories.keys([entry.directory for entry in gone])
        name_keys = names.keys([entry.name for entry in gone])
        self._connection.execute(
            update(EntryModel)
            .where(
                EntryModel.lineage == self.key,
                EntryModel.name == bindparam("of_name"),
                EntryModel.directory == bindparam("of_directory"),
                EntryModel.last == OPEN,
                EntryModel.first <= self._newest,
            )
            .values(last=self._newest),
            [
                {"of_name": name_keys[entry.name], "of_directory": directory_keys[entry.directory]}
                for entry in gone
            ],
        )


class _Texts:
    """The keys of names, or of directories; those that are new are entered."""

    def __init__(
        self, connection: Connection, repository: int, model: type[NameModel] | type[DirectoryModel]
    ) -> None:
        self._connection = connection
        self._repository = repository
        self._model = model
        self._known: dict[bytes, int] = {}

    def forget(self) -> None:
        self._known.clear()

    def keys(self, wanted: Iterable[bytes]) -> dict[bytes, int]:
        """By name."""
        if len(self._known) > _KNOWN:
            self._known.clear()
        missing = {to_text(name): name for name in wanted if name not in self._known}
        if missing:
            self._look_up(missing)
            if new := [text for text, name in missing.items() if name not in self._known]:
                self._connection.execute(
                    insert(self._model), [{"repository": self._repository, "name": text} for text in new]
                )
                self._look_up({text: missing[text] for text in new})
                if self._model is NameModel:
                    entered = [(self._known[missing[text]], text) for text in new]
                    fullsearch.enter(self._connection, entered)
        return self._known

    def _look_up(self, texts: dict[str, bytes]) -> None:
        for batch in _batches(list(texts)):
            query = select(self._model.name, self._model.key).where(
                self._model.name.in_(batch), self._model.repository == self._repository
            )
            self._known.update((texts[text], key) for text, key in self._connection.execute(query).all())


def _collect(connection: Connection, repository: int) -> None:
    """Remove the entries that no point has any more, but for those that the next list is compared with."""
    lineages = select(LineageModel.key).where(LineageModel.repository == repository)
    live = (
        select(VolumeModel.ordinal)
        .where(
            VolumeModel.lineage == EntryModel.lineage,
            VolumeModel.ordinal.between(EntryModel.first, EntryModel.last),
        )
        .exists()
    )
    connection.execute(
        delete(EntryModel).where(EntryModel.lineage.in_(lineages), EntryModel.last != OPEN, ~live)
    )


def _without(pieces: Iterable[bytes], others: Iterable[bytes]) -> list[bytes]:
    left_out = set(others)
    return [piece for piece in pieces if piece not in left_out]


def _batches(values: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(values), _BATCH):
        yield values[start : start + _BATCH]


def unindexed_points(connection: Connection, repository: int) -> set[str]:
    """The points that have no file lists here."""
    indexed = select(NoteModel.point).where(NoteModel.repository == repository, NoteModel.used)
    query = select(PointModel.id).where(PointModel.repository == repository, PointModel.id.not_in(indexed))
    return set(connection.scalars(query))


def unlisted_volumes(connection: Connection, repository: int) -> list[UnlistedVolume]:
    """By point."""
    query = (
        select(VolumeModel.point, VolumeModel.name, VolumeModel.error)
        .where(VolumeModel.repository == repository, VolumeModel.error.is_not(None))
        .order_by(VolumeModel.point, VolumeModel.position)
    )
    return [
        UnlistedVolume(point, name, error or "") for point, name, error in connection.execute(query).all()
    ]


def count_entries(connection: Connection, repository: int) -> int:
    """Rows of versions of files."""
    lineages = select(LineageModel.key).where(LineageModel.repository == repository)
    found = connection.scalar(
        select(func.count()).select_from(EntryModel).where(EntryModel.lineage.in_(lineages))
    )
    return found or 0
