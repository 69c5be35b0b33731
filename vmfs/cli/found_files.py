"""How versions of files are printed: what `vmfs find` and `vmfs history` share."""

from __future__ import annotations

import logging
import os
import stat
from datetime import UTC, datetime, timedelta
from typing import Any

from vmfs.catalog.catalog import Catalog
from vmfs.catalog.filesearch import FileRow
from vmfs.catalog.models import EPOCH
from vmfs.catalog.resolve import show_time
from vmfs.cli.common import format_size
from vmfs.format.filelist import to_bytes
from vmfs.repo.repository import Repository

log = logging.getLogger(__name__)

_LETTERS = {stat.S_IFREG: "f", stat.S_IFDIR: "d", stat.S_IFLNK: "l"}


HEADER = ("FIRST", "LAST", ">POINTS", "T", ">SIZE", "MODIFIED")
"""Of the cells of `cells_of`, as tables.format_table has it."""


def cells_of(row: FileRow) -> tuple[str, ...]:
    """The first and the last restore point that have the version, how many have it, and what it is."""
    return (
        show_time(row.points[0].time),
        show_time(row.points[-1].time),
        str(len(row.points)),
        kind_letter(row.mode),
        format_size(row.size),
        shown_time(row.mtime),
    )


def sync_files(repository: Repository, catalog: Catalog) -> None:
    """Bring the catalog's files up to date; what of them cannot be read is warned of."""
    for note in catalog.sync_files(repository):
        log.warning(
            "file list of restore point %s is damaged, make it again with 'vmfs index --again': %s",
            note.point,
            note.message,
        )


def shown_time(nanoseconds: int) -> str:
    """`2026-11-20T10:00:00Z`; a hostile time may have no such name."""
    try:
        time = EPOCH + timedelta(seconds=nanoseconds // 1_000_000_000)
    except OverflowError:
        return f"{nanoseconds} ns"
    return f"{time:%Y-%m-%dT%H:%M:%SZ}"


def kind_letter(mode: int) -> str:
    return _LETTERS.get(stat.S_IFMT(mode), "o" if mode else "?")


def shown_path(row: FileRow) -> str:
    """The path in the guest, or VOLUME:PATH, as other commands take it. Bytes that are no UTF-8 are escapes
    as of `vmfs ls`, which a shell takes between $''."""
    return to_bytes(row.guest_path or f"{row.volume}:{row.path}").decode(errors="backslashreplace")


def text_of(name: str) -> str:
    """A name of the catalog, for output: bytes that are no UTF-8 are surrogates, which the output escapes."""
    return os.fsdecode(to_bytes(name))


def facts_of(row: FileRow) -> dict[str, Any]:
    return {
        "vm": row.vm,
        "vm_id": row.vm_id,
        "volume": row.volume,
        "volume_key": row.volume_key,
        "path": text_of(row.path),
        "guest_path": None if row.guest_path is None else text_of(row.guest_path),
        "type": kind_letter(row.mode),
        "mode": f"{row.mode & 0o7777:04o}",
        "size": row.size,
        "mtime": shown_time(row.mtime),
        "mtime_ns": row.mtime,
        "ctime_ns": row.ctime,
        "points": [{"id": point.id, "time": point.time.isoformat()} for point in row.points],
    }


def nanoseconds(time: datetime) -> int:
    return (time.astimezone(UTC) - EPOCH) // timedelta(microseconds=1) * 1000
