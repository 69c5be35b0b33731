"""The files of one volume of one VM through time, as rows: which entries came with a list, and which went."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Sequence

from sqlalchemy import Connection, bindparam, insert, select, update

from vmfs.catalog import fullsearch
from vmfs.catalog.filemodels import OPEN, DirectoryModel, EntryModel, LineageModel, NameModel, VolumeModel
from vmfs.errors import IntegrityError
from vmfs.format.filelist import Entry, to_text
from vmfs.format.note import ID_SIZE
from vmfs.repo.filelists import VolumeList, read_piece
from vmfs.repo.repository import Repository

log = logging.getLogger(__name__)

_BATCH = 500
"""Values in one statement: every database takes that many parameters."""
_ROWS = 20_000
"""Entries that are inserted at a time: bounds the memory."""
_KNOWN = 500_000
"""Names whose keys are remembered while lists are entered."""


class Lineage:
    """The lists of one volume of one VM, made if there were none."""

    def __init__(self, connection: Connection, repository: int, vm: int, volume: str) -> None:
        self._connection = connection
        volume = clean(volume) or ""
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

    def enter(self, source: Repository, volume: VolumeList, names: Texts, directories: Texts) -> int:
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

    def _insert(self, rows: Sequence[Entry], ordinal: int, names: Texts, directories: Texts) -> None:
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

    def _close(self, gone: Collection[Entry], names: Texts, directories: Texts) -> None:
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


class Texts:
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


def _without(pieces: Iterable[bytes], others: Iterable[bytes]) -> list[bytes]:
    left_out = set(others)
    return [piece for piece in pieces if piece not in left_out]


def _batches(values: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(values), _BATCH):
        yield values[start : start + _BATCH]


def clean(text: str | None) -> str | None:
    """PostgreSQL takes no NUL."""
    return None if text is None else text.replace("\0", "\N{REPLACEMENT CHARACTER}")
