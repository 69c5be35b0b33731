"""Checking notes: that each can be read, and that the blobs it needs can.

A note that is damaged takes nothing from its point: what it said is lost, and the point is as whole as
before."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

from vmfs.errors import IntegrityError, ObjectMissingError
from vmfs.repo import names
from vmfs.repo.filelists import KIND, read_lists, read_piece
from vmfs.repo.notes import StoredNote, read_note
from vmfs.repo.repository import Repository


class NoteProblem(NamedTuple):
    """`lost` is the note of which a blob is lost; else the object itself is damaged. `error` says how."""

    name: str
    error: IntegrityError
    lost: StoredNote | None = None


def check_notes(
    repository: Repository, points: Collection[str], bad: Collection[bytes]
) -> Iterator[NoteProblem]:
    """Every note, and the blobs of those whose point is one of `points`: a note without a point is garbage.
    `bad` are blobs that are known to be damaged. Nothing is lost with a file list that a newer one stands
    for. Raises StoreError."""
    listed: set[str] = set()
    """Points with a list that can be read."""
    sound: set[bytes] = set()
    broken: dict[bytes, IntegrityError] = {}
    for name, _ in sorted(repository.store.list(names.NOTES), reverse=True):
        ids = names.note_ids(name)
        if ids is None:
            wrong = IntegrityError("is no name of a note; give it back its own, or remove it")
            yield NoteProblem(name, wrong)
            continue
        try:
            note = read_note(repository, *ids)
            if note.kind == KIND:
                read_lists(note)
        except ObjectMissingError:
            continue
        except IntegrityError as error:
            yield NoteProblem(name, error)
            continue
        if note.point not in points or (note.kind == KIND and note.point in listed):
            continue
        for blob_id in note.note.blobs:
            if blob_id not in sound and blob_id not in broken:
                try:
                    if blob_id in bad:
                        raise IntegrityError("found damaged before")
                    _read(repository, note, blob_id)
                    sound.add(blob_id)
                except IntegrityError as error:
                    broken[blob_id] = error
            if blob_id in broken:
                # One is enough: the note must be made again.
                yield NoteProblem(name, broken[blob_id], note)
                break
        else:
            if note.kind == KIND:
                listed.add(note.point)


def _read(repository: Repository, note: StoredNote, blob_id: bytes) -> None:
    if note.kind == KIND:
        read_piece(repository, blob_id)
    else:
        repository.blobs.artifact(blob_id)
