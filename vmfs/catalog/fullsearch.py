"""Quick search for parts of names: a trigram index beside the table of names, by the means of each database.
Where there is none, because the database was built or is run without, names are looked through one by one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, column, inspect, select, table, text
from sqlalchemy.exc import DBAPIError

from vmfs.catalog.filemodels import NameModel
from vmfs.catalog.models import TABLE_PREFIX

log = logging.getLogger(__name__)

SEARCH_TABLE = f"{TABLE_PREFIX}name_search"
_SHORTEST = 3
"""Of what a trigram index is any good for."""


def make_index(connection: Connection) -> None:
    """Beside tables that have just been made."""
    statements = (
        [
            "CREATE EXTENSION IF NOT EXISTS pg_trgm",
            "CREATE INDEX vmfs_name_trigrams ON vmfs_name USING gin (name gin_trgm_ops)",
        ]
        if connection.dialect.name == "postgresql"
        else [
            # With the content in the table of names, and of each trigram only the rows it is in.
            f"CREATE VIRTUAL TABLE {SEARCH_TABLE} USING fts5(name, content='vmfs_name', content_rowid='key', "
            "tokenize='trigram', detail='none', columnsize=0)"
        ]
    )
    try:
        with connection.begin_nested():
            for statement in statements:
                connection.execute(text(statement))
    except DBAPIError as error:
        log.debug("no quick search for parts of names: %s", error.orig)


def drop_index(connection: Connection) -> None:
    """Before the tables are dropped: the tables that SQLite keeps it in must not be dropped one by one."""
    if connection.dialect.name == "sqlite":
        connection.execute(text(f"DROP TABLE IF EXISTS {SEARCH_TABLE}"))


def enter(connection: Connection, names: Sequence[tuple[int, str]]) -> None:
    """Names (key, name) that were added to the table."""
    if names and _has_table(connection):
        connection.execute(
            text(f"INSERT INTO {SEARCH_TABLE}(rowid, name) VALUES (:key, :name)"),
            [{"key": key, "name": name} for key, name in names],
        )


def remake(connection: Connection) -> None:
    """After names were removed."""
    if _has_table(connection):
        connection.execute(text(f"INSERT INTO {SEARCH_TABLE}({SEARCH_TABLE}) VALUES ('rebuild')"))


def names_like(connection: Connection, repository: int, like: str) -> ColumnElement[bool] | None:
    """A condition on `NameModel.key` that all names of that LIKE pattern meet, and others may; None when it
    would sort out nothing. `_` and `%` stand for anything; there is no way to write them."""
    if not like.strip("%"):
        return None
    longest = max(map(len, like.replace("_", "%").split("%")))
    if longest >= _SHORTEST and _has_table(connection):
        search: Any = table(SEARCH_TABLE, column("rowid"), column("name"))
        return NameModel.key.in_(select(search.c.rowid).where(search.c.name.like(like)))
    matching = select(NameModel.key).where(NameModel.repository == repository, NameModel.name.ilike(like))
    return NameModel.key.in_(matching)


def _has_table(connection: Connection) -> bool:
    return connection.dialect.name == "sqlite" and inspect(connection).has_table(SEARCH_TABLE)
