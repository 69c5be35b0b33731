"""The tables of the files in restore points. A name, a directory and a version of a file are one row each,
however many points have them: what the lists of a hundred points have in common must not be there a hundred
times.

The lists of one volume of one VM are a *lineage*, and are numbered as they are entered. An entry has the
first and the last number of the lists it is in without a gap; `OPEN` as the last means up to the newest, so
that a list that adds nothing costs no row."""

from __future__ import annotations

from sqlalchemy import BigInteger, ForeignKey, Index, Integer, LargeBinary, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from vmfs.catalog.models import Base, RepositoryModel, VmModel, of_point

OPEN = (1 << 31) - 1


class NoteModel(Base):
    """A note that was looked at. `used` tells the one that the point's volumes are from."""

    __tablename__ = "vmfs_note"
    __table_args__ = (of_point(), {"sqlite_with_rowid": False})

    repository: Mapped[int] = mapped_column(primary_key=True)
    point: Mapped[str] = mapped_column(String(26), primary_key=True)
    id: Mapped[str] = mapped_column(primary_key=True)
    used: Mapped[bool]


class LineageModel(Base):
    """A volume of a VM, by its key. `newest` is the number of the newest list, 0 before the first, and
    `pieces` are that list's blob ids, one after another: what the next list is compared with."""

    __tablename__ = "vmfs_lineage"
    __table_args__ = (UniqueConstraint("vm", "volume"),)

    key: Mapped[int] = mapped_column(Integer, primary_key=True)
    repository: Mapped[int] = mapped_column(ForeignKey(RepositoryModel.key, ondelete="CASCADE"))
    vm: Mapped[int] = mapped_column(ForeignKey(VmModel.key, ondelete="CASCADE"))
    volume: Mapped[str]
    newest: Mapped[int]
    pieces: Mapped[bytes] = mapped_column(LargeBinary)


class VolumeModel(Base):
    """A volume of an indexed point. `ordinal` is the number of its list, null where it has none: `error` is
    why, if it ought to have one. `mounts` is JSON, a list of [target, prefix]."""

    __tablename__ = "vmfs_volume"
    __table_args__ = (
        of_point(),
        Index("vmfs_volume_by_list", "lineage", "ordinal"),
        {"sqlite_with_rowid": False},
    )

    repository: Mapped[int] = mapped_column(primary_key=True)
    point: Mapped[str] = mapped_column(String(26), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    lineage: Mapped[int] = mapped_column(ForeignKey(LineageModel.key, ondelete="CASCADE"))
    ordinal: Mapped[int | None]
    digest: Mapped[bytes | None] = mapped_column(LargeBinary(32))
    name: Mapped[str]
    type: Mapped[str | None]
    mounts: Mapped[str]
    problems: Mapped[int] = mapped_column(BigInteger)
    error: Mapped[str | None]


class NameModel(Base):
    """A name of files, as `vmfs.format.filelist.to_text` has it. Hashed in PostgreSQL, whose other indexes
    take no long names."""

    __tablename__ = "vmfs_name"
    __table_args__ = (Index("vmfs_name_by_name", "name", postgresql_using="hash"),)

    key: Mapped[int] = mapped_column(Integer, primary_key=True)
    repository: Mapped[int] = mapped_column(ForeignKey(RepositoryModel.key, ondelete="CASCADE"))
    name: Mapped[str]


class DirectoryModel(Base):
    """A directory's path within its volume, without a slash first or last."""

    __tablename__ = "vmfs_directory"
    __table_args__ = (Index("vmfs_directory_by_name", "name", postgresql_using="hash"),)

    key: Mapped[int] = mapped_column(Integer, primary_key=True)
    repository: Mapped[int] = mapped_column(ForeignKey(RepositoryModel.key, ondelete="CASCADE"))
    name: Mapped[str]


class EntryModel(Base):
    """A version of a file in lists `first` to `last` of its lineage. Times are nanoseconds since 1970. What
    is in `name` and `directory` is removed with the repository only, so nothing checks them for each row."""

    __tablename__ = "vmfs_entry"
    __table_args__ = (
        Index("vmfs_entry_by_name", "name", "directory"),
        Index("vmfs_entry_by_directory", "directory"),
    )

    key: Mapped[int] = mapped_column(Integer, primary_key=True)
    lineage: Mapped[int] = mapped_column(ForeignKey(LineageModel.key, ondelete="CASCADE"))
    first: Mapped[int]
    last: Mapped[int]
    directory: Mapped[int]
    name: Mapped[int]
    mode: Mapped[int] = mapped_column(BigInteger)
    size: Mapped[int] = mapped_column(BigInteger)
    mtime: Mapped[int] = mapped_column(BigInteger)
    ctime: Mapped[int] = mapped_column(BigInteger)
