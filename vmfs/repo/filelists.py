"""The file lists of a restore point: the facts of its newest note of kind `files`, and the pieces that note
needs.

docs/format.md describes both. What a volume of another point has in common with this one's is in the same
pieces; of a volume that did not change, all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from blake3 import blake3

from vmfs.errors import ContentError, IntegrityError, VersionError
from vmfs.format import filelist
from vmfs.format.filelist import Entry
from vmfs.repo.notes import DamagedNote, StoredNote, list_notes
from vmfs.repo.repository import Repository

KIND = "files"
VERSION = 1
MAX_PROBLEMS = 1000
"""Told one by one for a volume; of more, only how many."""


class Ground(NamedTuple):
    """Bytes [offset, offset + length) of the point's disk number `disk`."""

    disk: int
    offset: int
    length: int


class Mount(NamedTuple):
    """The guest has the volume's directory `prefix` (no slash first or last; empty for its root) at
    `target`."""

    target: str
    prefix: str


class Problem(NamedTuple):
    """A path (`filelist.to_text`) that could not be read, wholly or in part, and why."""

    path: str
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeList:
    """The files of one volume. `key` and `name` are those of `vmfs.volumes.layout.FoundVolume`; `type` the
    file system's, as blkid has it. `ground` is all that the list was made from. `error` is why there is no
    list, where there ought to be one; a volume that holds no file system has neither. `walked` is the point
    whose volume was read for it: one that has the same bytes."""

    key: str
    name: str
    kind: str
    type: str | None = None
    label: str | None = None
    uuid: str | None = None
    mounts: tuple[Mount, ...] = ()
    ground: tuple[Ground, ...] = ()
    pieces: tuple[bytes, ...] = ()
    entries: int = 0
    listed: bool = False
    problems: tuple[Problem, ...] = ()
    problem_count: int = 0
    warnings: tuple[str, ...] = ()
    error: str | None = None
    walked: str

    @property
    def digest(self) -> bytes:
        """The same for equal lists, and for no others."""
        return blake3(b"".join(self.pieces)).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class FileLists:
    """What one note of kind `files` says. `warnings` are of the whole point."""

    volumes: tuple[VolumeList, ...]
    warnings: tuple[str, ...] = ()

    def volume(self, key: str) -> VolumeList | None:
        return next((volume for volume in self.volumes if volume.key == key), None)

    def to_facts(self) -> tuple[dict[str, Any], tuple[bytes, ...]]:
        """(the note's facts, its blobs)"""
        blobs: list[bytes] = []
        volumes = []
        for volume in self.volumes:
            volumes.append(
                {
                    "key": volume.key,
                    "name": volume.name,
                    "kind": volume.kind,
                    "type": volume.type,
                    "label": volume.label,
                    "uuid": volume.uuid,
                    "mounts": [list(mount) for mount in volume.mounts],
                    "ground": [list(ground) for ground in volume.ground],
                    "first": len(blobs),
                    "pieces": len(volume.pieces),
                    "entries": volume.entries,
                    "listed": volume.listed,
                    "problems": [list(problem) for problem in volume.problems],
                    "problem_count": volume.problem_count,
                    "warnings": list(volume.warnings),
                    "error": volume.error,
                    "walked": volume.walked,
                }
            )
            blobs += volume.pieces
        return {"version": VERSION, "volumes": volumes, "warnings": list(self.warnings)}, tuple(blobs)

    @staticmethod
    def from_facts(facts: Mapping[str, Any], blobs: tuple[bytes, ...]) -> FileLists:
        """Raises VersionError, ContentError."""
        if facts.get("version") != VERSION:
            raise VersionError("the file list is of a later program")
        try:
            lists = FileLists(
                volumes=tuple(_parse_volume(tree, blobs) for tree in _list(facts["volumes"])),
                warnings=tuple(map(_text, _list(facts["warnings"]))),
            )
            if len({volume.key for volume in lists.volumes}) != len(lists.volumes):
                raise ValueError("two volumes have one key")
        except (KeyError, TypeError, ValueError) as error:
            raise ContentError(f"a note of file lists makes no sense: {error}") from error
        return lists


def read_lists(note: StoredNote) -> FileLists:
    """Raises VersionError, ContentError."""
    return FileLists.from_facts(note.facts, note.note.blobs)


def find_lists(repository: Repository, point_id: str) -> tuple[StoredNote | None, list[DamagedNote]]:
    """The newest sound note of a point's file lists, and the notes that cannot be read."""
    notes = list_notes(repository, point_id, KIND)
    damaged = list(notes.damaged)
    for stored in reversed(notes.found):
        try:
            read_lists(stored)
        except IntegrityError as error:
            damaged.append(DamagedNote(stored.id, point_id, str(error)))
        else:
            return stored, damaged
    return None, damaged


def read_piece(repository: Repository, piece: bytes) -> list[Entry]:
    """The entries of one piece. Raises IntegrityError, StoreError."""
    return filelist.decode(repository.blobs.artifact(piece))


def read_entries(repository: Repository, volume: VolumeList) -> Iterator[Entry]:
    """All entries of a volume's list, each directory's together. Raises IntegrityError, StoreError."""
    for piece in volume.pieces:
        yield from read_piece(repository, piece)


def _parse_volume(tree: Mapping[str, Any], blobs: tuple[bytes, ...]) -> VolumeList:
    first, count = _number(tree["first"]), _number(tree["pieces"])
    if first + count > len(blobs):
        raise ValueError("a list's pieces are not among the note's blobs")
    return VolumeList(
        key=_text(tree["key"]),
        name=_text(tree["name"]),
        kind=_text(tree["kind"]),
        type=_optional(tree["type"]),
        label=_optional(tree["label"]),
        uuid=_optional(tree["uuid"]),
        mounts=tuple(
            Mount(_text(target), _text(prefix)) for target, prefix in map(_list, _list(tree["mounts"]))
        ),
        ground=tuple(Ground(*map(_number, _list(ground))) for ground in _list(tree["ground"])),
        pieces=blobs[first : first + count],
        entries=_number(tree["entries"]),
        listed=_flag(tree["listed"]),
        problems=tuple(
            Problem(_text(path), _text(problem)) for path, problem in map(_list, _list(tree["problems"]))
        ),
        problem_count=_number(tree["problem_count"]),
        warnings=tuple(map(_text, _list(tree["warnings"]))),
        error=_optional(tree["error"]),
        walked=_text(tree["walked"]),
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("a text is not a text")
    return value


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError("a list is none")
    return value


def _optional(value: object) -> str | None:
    return None if value is None else _text(value)


def _number(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("a number is none")
    return value


def _flag(value: object) -> bool:
    if type(value) is not bool:
        raise ValueError("a flag is none")
    return value
