"""The tables. One database may serve several repositories, so every row is keyed by its repository.

There are no migrations: a catalog of another schema is dropped and filled again from the store. Nothing here
grows with the size of a disk: a row per chunk is what other backup databases drown in.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sqlalchemy import (
    BigInteger,
    Dialect,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

TABLE_PREFIX = "vmfs_"
"""Of every table of ours, so that a rebuild drops nothing else of a shared database."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def to_microseconds(time: datetime) -> int:
    """Microseconds since 1970, UTC."""
    return (time - EPOCH) // _MICROSECOND


def from_microseconds(value: int) -> datetime:
    return EPOCH + value * _MICROSECOND


class UtcTime(TypeDecorator[datetime]):
    """An aware time, kept as microseconds: the same order and precision in every database."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        return None if value is None else to_microseconds(value)

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:
        return None if value is None else from_microseconds(value)


class Base(DeclarativeBase):
    type_annotation_map = {str: Text, datetime: UtcTime}  # noqa: RUF012 - SQLAlchemy's own idiom


class SchemaModel(Base):
    """One row: which schema the other tables are of."""

    __tablename__ = "vmfs_schema"

    version: Mapped[str] = mapped_column(primary_key=True)


class RepositoryModel(Base):
    """A repository. Its row is also the lock that lets one sync at a time write."""

    __tablename__ = "vmfs_repository"

    key: Mapped[int] = mapped_column(Integer, primary_key=True)
    id: Mapped[bytes] = mapped_column(LargeBinary(16), unique=True)


class VmModel(Base):
    """A VM: what its engine calls the same machine, whatever its name. `engine` is empty when there is
    none: a NULL would make every row unique. `name` and `cluster` are the newest point's."""

    __tablename__ = "vmfs_vm"
    __table_args__ = (UniqueConstraint("repository", "engine", "id"),)

    key: Mapped[int] = mapped_column(Integer, primary_key=True)
    repository: Mapped[int] = mapped_column(ForeignKey(RepositoryModel.key, ondelete="CASCADE"))
    engine: Mapped[str]
    id: Mapped[str]
    name: Mapped[str]
    cluster: Mapped[str | None]


class PointModel(Base):
    """A restore point. `vm_name` and `vm_cluster` are what the VM had at that time."""

    __tablename__ = "vmfs_point"
    __table_args__ = (Index("vmfs_point_by_vm", "vm", "time"), {"sqlite_with_rowid": False})

    repository: Mapped[int] = mapped_column(
        ForeignKey(RepositoryModel.key, ondelete="CASCADE"), primary_key=True
    )
    id: Mapped[str] = mapped_column(String(26), primary_key=True)
    vm: Mapped[int] = mapped_column(ForeignKey(VmModel.key, ondelete="CASCADE"))
    vm_name: Mapped[str]
    vm_cluster: Mapped[str | None]
    time: Mapped[datetime]
    consistency: Mapped[str]
    parent: Mapped[str | None]
    producer: Mapped[str]
    signer: Mapped[bytes] = mapped_column(LargeBinary(32))


def of_point() -> ForeignKeyConstraint:
    return ForeignKeyConstraint(
        ["repository", "point"], [PointModel.repository, PointModel.id], ondelete="CASCADE"
    )


class DiskModel(Base):
    """A disk of a point. Sizes are bytes."""

    __tablename__ = "vmfs_disk"
    __table_args__ = (of_point(), {"sqlite_with_rowid": False})

    repository: Mapped[int] = mapped_column(primary_key=True)
    point: Mapped[str] = mapped_column(String(26), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[str]
    alias: Mapped[str]
    size: Mapped[int] = mapped_column(BigInteger)
    allocated: Mapped[int] = mapped_column(BigInteger)
    mode: Mapped[str]
    full_reason: Mapped[str | None]
    bytes_read: Mapped[int] = mapped_column(BigInteger)
    bytes_new: Mapped[int] = mapped_column(BigInteger)
    bytes_stored: Mapped[int] = mapped_column(BigInteger)


class ArtifactModel(Base):
    """A small file of a point. `size` is bytes."""

    __tablename__ = "vmfs_artifact"
    __table_args__ = (of_point(), {"sqlite_with_rowid": False})

    repository: Mapped[int] = mapped_column(primary_key=True)
    point: Mapped[str] = mapped_column(String(26), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    size: Mapped[int] = mapped_column(BigInteger)
