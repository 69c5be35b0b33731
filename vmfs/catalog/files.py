"""Bringing the rows of files in line with the notes in the store, one restore point after another."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from sqlalchemy import Connection, delete, func, insert, select, update

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
from vmfs.catalog.lineage import Lineage, Texts, clean
from vmfs.catalog.models import PointModel
from vmfs.catalog.records import Record
from vmfs.errors import IntegrityError, ObjectMissingError
from vmfs.repo.filelists import KIND, FileLists, VolumeList, read_lists
from vmfs.repo.notes import DamagedNote, note_names, read_note
from vmfs.repo.repository import Repository

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with (notes taken in, notes to take in)."""


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
        Texts(connection, repository, NameModel),
        Texts(connection, repository, DirectoryModel),
    )
    for position, volume in enumerate(used.lists.volumes):
        lineage = Lineage(connection, repository, vm, volume.key)
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
    lineage: Lineage,
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
        "name": clean(volume.name),
        "type": clean(volume.type),
        "mounts": json.dumps([list(mount) for mount in volume.mounts]),
        "problems": volume.problem_count,
        "error": clean(error),
    }


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
