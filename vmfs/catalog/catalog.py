"""The catalog of one repository, as the commands and the mount use it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import RLock
from typing import Self, TypeVar

from sqlalchemy import URL, Connection

from vmfs.catalog import files
from vmfs.catalog import sync as syncing
from vmfs.catalog.answers import point_rows, vm_rows
from vmfs.catalog.database import (
    BUSY_SECONDS,
    FAILURES,
    is_damage,
    one_line,
    open_database,
    parse_url,
    reopen_database,
    sqlite_url,
)
from vmfs.catalog.filesearch import FileQuery, FileRow, find_files
from vmfs.catalog.resolve import resolve, select_vms, unknown_vm
from vmfs.catalog.rows import DamagedPoint, PointRow, VmRow
from vmfs.catalog.sync import PointSource, Progress
from vmfs.repo.notes import DamagedNote
from vmfs.repo.repository import Repository

log = logging.getLogger(__name__)

T = TypeVar("T")


class Catalog:
    """What a person asks of a repository, answered without loading manifests.

    Disposable, and never a reason for a command to fail: a file that is damaged or of another schema is made
    anew, and one that is locked, read-only or unreachable is replaced by one in memory. Several processes may
    use one at once. Thread-safe.
    """

    def __init__(self, url: URL, repository_id: bytes, busy_seconds: float) -> None:
        self._url = url
        self._repository_id = repository_id
        self._busy_seconds = busy_seconds
        self._lock = RLock()
        self._source: PointSource | None = None
        self._files: Repository | None = None
        self._damaged: list[DamagedPoint] = []
        self._database = open_database(url, repository_id, busy_seconds)

    @classmethod
    def open(cls, url: str | URL | Path, repository_id: bytes, *, busy_seconds: float = BUSY_SECONDS) -> Self:
        """The catalog at a path (SQLite), or at a URL: `sqlite:///PATH`, `postgresql://…`.

        `busy_seconds` is how long to wait for another process that writes. Raises UsageError for what is no
        such URL. Call `sync` before asking anything.
        """
        return cls(parse_url(sqlite_url(url) if isinstance(url, Path) else url), repository_id, busy_seconds)

    def sync(self, repository: PointSource, *, progress: Progress | None = None) -> list[DamagedPoint]:
        """Take in the store's new points, forget those that are gone; all or nothing.

        Returns the points whose manifest cannot be read; they have no row, and are tried again by the next
        sync. Raises StoreError when the store cannot be listed.
        """
        with self._lock:
            self._source = repository
            try:
                self._damaged = syncing.sync(self._database, repository, progress)
            except FAILURES as error:
                self._recover(error)
                self._damaged = syncing.sync(self._database, repository, progress)
            return list(self._damaged)

    def sync_files(self, repository: Repository, *, progress: Progress | None = None) -> list[DamagedNote]:
        """Take in the file lists of the points that `sync` took in, and forget those that are gone.

        Returns the notes that cannot be read; they are tried again by the next sync. Raises StoreError.
        """
        with self._lock:
            self._files = repository
            return self._recovering(lambda: files.sync_files(self._database, repository, progress))

    def find_files(self, query: FileQuery, *, vm: str | None = None) -> list[FileRow]:
        """The versions of files that `query` describes, of one VM or of all, by VM and path. Call
        `sync_files` before. Raises UsageError when there is no such VM."""

        def ask(connection: Connection, repository: int) -> list[FileRow]:
            if vm is None:
                return find_files(connection, repository, query)
            keys = select_vms(connection, repository, vm)
            if not keys:
                raise unknown_vm(connection, repository, vm)
            return find_files(connection, repository, replace(query, vms=keys))

        return self._ask(ask)

    def unindexed(self) -> set[str]:
        """The ids of the points that have no file lists."""
        return self._ask(files.unindexed_points)

    def unlisted(self) -> list[files.UnlistedVolume]:
        """The volumes of indexed points that have no file list although they ought to."""
        return self._ask(files.unlisted_volumes)

    def file_versions(self) -> int:
        """How many rows there are of files; each is a version of one, however many points have it."""
        return self._ask(files.count_entries)

    @property
    def damaged(self) -> list[DamagedPoint]:
        """What the last sync could not read."""
        return list(self._damaged)

    def clear(self) -> None:
        """Forget every row of this repository; the next `sync` brings them back."""
        with self._lock:
            try:
                syncing.clear(self._database)
            except FAILURES as error:
                self._recover(error)

    def vms(self) -> list[VmRow]:
        """All VMs, by name."""
        return self._ask(vm_rows)

    def select_vms(self, name: str) -> list[VmRow]:
        """The VMs called `name`: their present name, else their id, else a former name. Usually one; VMs of
        two engines may share a name. Raises UsageError, with names like it, when there is none."""

        def ask(connection: Connection, repository: int) -> list[VmRow]:
            keys = select_vms(connection, repository, name)
            if not keys:
                raise unknown_vm(connection, repository, name)
            return vm_rows(connection, repository, keys)

        return self._ask(ask)

    def points(self, vm: str | None = None) -> list[PointRow]:
        """The restore points, oldest first: all, or those of the VMs that `select_vms` would give; none when
        there is no such VM."""
        return self._ask(lambda connection, repository: point_rows(connection, repository, vm, None))

    def point(self, point_id: str) -> PointRow | None:
        """The point of that full id."""
        found = self._ask(lambda connection, repository: point_rows(connection, repository, None, point_id))
        return found[0] if found else None

    def resolve(self, spec: str) -> str:
        """The id of the one point that `spec` means:

        - an id, or a prefix of 4 or more characters that only one id has; in any case;
        - `VM@latest`: the VM's newest point;
        - `VM@TIME`: its newest point at or before TIME, which is ISO 8601 in any detail, UTC unless it has a
          zone, or as the mount shows it: `web@2026-11-20`, `web@2026-11-20T100000Z`. TIME means the whole
          day, minute or second that it names: a bare date takes the newest point of that day, or before.

        VM is a name (split at the last '@', as a name may hold one), a VM id, or a former name. Raises
        UsageError naming up to five candidates when nothing, or more than one thing, is meant;
        IntegrityError when it is a point whose manifest is damaged.
        """
        with self._lock:
            return self._recovering(lambda: resolve(self._database, spec, self._damaged))

    def close(self) -> None:
        with self._lock:
            self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, question: Callable[[Connection, int], T]) -> T:
        def ask() -> T:
            with self._database.reading() as connection:
                return question(connection, self._database.repository)

        with self._lock:
            return self._recovering(ask)

    def _recovering(self, ask: Callable[[], T]) -> T:
        try:
            return ask()
        except FAILURES as error:
            self._recover(error)
            if self._source is not None:
                self._damaged = syncing.sync(self._database, self._source)
            if self._files is not None:
                files.sync_files(self._database, self._files)
            return ask()

    def _recover(self, error: Exception) -> None:
        """The database broke while it was open: the file is damaged or locked, the disk is full, another
        version has dropped the tables."""
        log.debug("catalog failed and is filled again: %s", one_line(error))
        self._database.close()
        self._database = reopen_database(
            self._url, self._repository_id, self._busy_seconds, damaged=is_damage(error)
        )
