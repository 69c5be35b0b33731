"""Notes: what is learnt about a restore point after its commit, kept in the store beside it.

A note is never changed; a later one of its kind stands for it. A damaged note is told of and nothing more:
the point is as whole as before, and what the note said can be learnt again. Large contents are artifact blobs
that the note names (`WriteSession.commit_note`), so that notes share what they have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from vmfs import __version__
from vmfs.errors import ContentError, IntegrityError, ObjectMissingError
from vmfs.format import note
from vmfs.format.note import Note
from vmfs.repo import names
from vmfs.repo.repository import Repository


@dataclass(frozen=True, slots=True)
class StoredNote:
    """A note as read back: its id (a ULID, so that ids sort by age), the point it is of, what it says, and
    the Ed25519 public key of the key slot that signed it."""

    id: str
    point: str
    note: Note
    signer: bytes

    @property
    def kind(self) -> str:
        return self.note.kind

    @property
    def time(self) -> datetime:
        return self.note.time

    @property
    def facts(self) -> Mapping[str, Any]:
        return self.note.facts


class DamagedNote(NamedTuple):
    """A note that is in the store and cannot be read; `message` says why."""

    id: str
    point: str
    message: str


class Notes(NamedTuple):
    """Oldest first."""

    found: tuple[StoredNote, ...]
    damaged: tuple[DamagedNote, ...]


def add_note(repository: Repository, point_id: str, kind: str, facts: Mapping[str, Any]) -> str:
    """Keep a note with a restore point; its id. On return it is durable.

    `kind` is a word such as `boot`; `facts` a JSON object of text, whole numbers, true, false, null, lists
    and objects, 16 MiB at most. Raises UsageError for facts that cannot be kept, ObjectMissingError when
    there is no such point, StoreError when the store cannot be written."""
    made = make_note(repository, kind, facts)
    made.to_bytes()
    repository.load_point(point_id)
    with repository.write_session() as session:
        return session.commit_note(point_id, made)


def make_note(
    repository: Repository, kind: str, facts: Mapping[str, Any], blobs: tuple[bytes, ...] = ()
) -> Note:
    """A note of now, to be committed by a write session."""
    now = repository.store.now()
    return Note(kind=kind, time=now, facts=facts, blobs=blobs, producer=f"vmfs {__version__}")


def list_notes(repository: Repository, point_id: str, kind: str | None = None) -> Notes:
    """The notes of a point, or those of one kind, oldest first. What cannot be read is in `damaged`, whatever
    its kind may have been. Raises StoreError when the store cannot be listed."""
    found: list[StoredNote] = []
    damaged: list[DamagedNote] = []
    for note_id in sorted(_ids_of(repository, point_id)):
        try:
            stored = read_note(repository, point_id, note_id)
        except ObjectMissingError:
            continue
        except IntegrityError as error:
            damaged.append(DamagedNote(note_id, point_id, str(error)))
        else:
            if kind is None or stored.kind == kind:
                found.append(stored)
    return Notes(tuple(found), tuple(damaged))


def read_note(repository: Repository, point_id: str, note_id: str) -> StoredNote:
    """Raises ObjectMissingError, IntegrityError."""
    name = names.note(point_id, note_id)
    try:
        signer, content = note.decode(name, repository.store.get(name), repository.keys)
    except ContentError as error:
        raise ContentError(f"{name}: {error}") from error
    return StoredNote(note_id, point_id, content, signer)


def note_names(repository: Repository) -> list[tuple[str, str]]:
    """(point id, note id) of every note, by point and age. The point may be gone: then the note is
    garbage."""
    found = (names.note_ids(name) for name, _ in repository.store.list(names.NOTES))
    return sorted(ids for ids in found if ids is not None)


def _ids_of(repository: Repository, point_id: str) -> Iterator[str]:
    for name, _ in repository.store.list(f"{names.NOTES}/{point_id}"):
        if (ids := names.note_ids(name)) is not None:
            yield ids[1]
