"""Making the tables, and telling whether they are of this program's schema."""

from __future__ import annotations

import hashlib
import logging

from sqlalchemy import Connection, MetaData, insert, inspect, select

from vmfs.catalog import filemodels, fullsearch
from vmfs.catalog.models import TABLE_PREFIX, Base, SchemaModel

__all__ = ["SCHEMA_VERSION", "filemodels", "is_current", "make_schema"]

log = logging.getLogger(__name__)

MEANING = 2
"""Raise it when a column comes to mean something else; a changed column is noticed by itself."""


def is_current(connection: Connection) -> bool:
    if not inspect(connection).has_table(SchemaModel.__tablename__):
        return False
    columns = inspect(connection).get_columns(SchemaModel.__tablename__)
    if [column["name"] for column in columns] != ["version"]:
        return False
    return list(connection.scalars(select(SchemaModel.version))) == [SCHEMA_VERSION]


def make_schema(connection: Connection) -> None:
    """Drops what another version left, and nothing of anybody else's."""
    fullsearch.drop_index(connection)
    others = MetaData()
    others.reflect(connection, only=lambda name, _: name.startswith(TABLE_PREFIX))
    if others.tables:
        log.debug("catalog is of another version; it is made anew")
    others.drop_all(connection)
    Base.metadata.create_all(connection)
    fullsearch.make_index(connection)
    connection.execute(insert(SchemaModel).values(version=SCHEMA_VERSION))


def _schema_version() -> str:
    columns = [
        f"{column.table.name}.{column!r}" for table in Base.metadata.sorted_tables for column in table.columns
    ]
    return f"{MEANING}-{hashlib.sha256('|'.join(columns).encode()).hexdigest()[:16]}"


SCHEMA_VERSION = _schema_version()
