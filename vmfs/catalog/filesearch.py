"""Finding versions of files in the catalog."""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, and_, or_, select

from vmfs.catalog import fullsearch
from vmfs.catalog.filemodels import DirectoryModel, EntryModel, LineageModel, NameModel, VolumeModel
from vmfs.catalog.globs import Glob, compile_glob
from vmfs.catalog.models import PointModel, VmModel

_PAIRS = 50
"""Lists that a statement names one by one; of more, the rows are sorted out here."""


class PointRef(NamedTuple):
    """A restore point that has a file."""

    id: str
    time: datetime


@dataclass(frozen=True, slots=True)
class FileRow:
    """One version of a file: what it has in common over all of `points`, which are in the order of time.
    `path` is within the volume, with a slash first; `guest_path` is where the guest has it in the newest of
    those points, if that is known. Both are as `vmfs.format.filelist.to_text` has them. Times are nanoseconds
    since 1970."""

    vm: str
    vm_id: str
    volume: str
    volume_key: str
    path: str
    guest_path: str | None
    mode: int
    size: int
    mtime: int
    ctime: int
    points: tuple[PointRef, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileQuery:
    """What to look for. `path` is matched with the path in the volume and with that in the guest. `kinds` are
    bits of st_mode (S_IFMT). Sizes are bytes; times nanoseconds since 1970: `newer` and later, before
    `older`."""

    vms: Sequence[int] | None = None
    points: Collection[str] | None = None
    name: Glob | None = None
    path: Glob | None = None
    smallest: int | None = None
    largest: int | None = None
    newer: int | None = None
    older: int | None = None
    kinds: Collection[int] = field(default=())


class _Volume(NamedTuple):
    """A volume of one point. `mounts` are (target, prefix) with the longest prefix first."""

    point: PointRef
    name: str
    mounts: tuple[tuple[str, str], ...]


class _Lineage(NamedTuple):
    vm: str
    vm_id: str
    volume_key: str
    ordinals: list[int]
    volumes: list[_Volume]
    """In the order of `ordinals`."""


def find_files(connection: Connection, repository: int, query: FileQuery) -> list[FileRow]:
    """By VM, path, time of change and volume."""
    lineages = _lineages(connection, repository, query)
    if not lineages:
        return []
    conditions = _conditions(connection, repository, query, lineages)
    statement = (
        select(
            EntryModel.lineage,
            EntryModel.first,
            EntryModel.last,
            DirectoryModel.name,
            NameModel.name,
            EntryModel.mode,
            EntryModel.size,
            EntryModel.mtime,
            EntryModel.ctime,
        )
        .join(NameModel, NameModel.key == EntryModel.name)
        .join(DirectoryModel, DirectoryModel.key == EntryModel.directory)
        .where(*conditions)
    )
    found: dict[tuple[Any, ...], list[_Volume]] = defaultdict(list)
    for lineage, first, last, directory, name, mode, size, mtime, ctime in connection.execute(
        statement
    ).all():
        of = lineages.get(lineage)
        if of is None or not _wanted(query, name, mode):
            continue
        low, high = bisect_left(of.ordinals, first), bisect_right(of.ordinals, last)
        if low < high:
            path = f"/{directory}/{name}" if directory else f"/{name}"
            found[lineage, path, mode, size, mtime, ctime] += of.volumes[low:high]
    rows = (_row(lineages[key[0]], key, volumes, query.path) for key, volumes in found.items())
    return sorted((row for row in rows if row is not None), key=order_of)


def order_of(row: FileRow) -> tuple[Any, ...]:
    """By VM, path, time and volume."""
    return row.vm, row.guest_path or row.path, row.volume, row.points[0].time, row.mtime, row.vm_id


def _wanted(query: FileQuery, name: str, mode: int) -> bool:
    if query.kinds and mode & 0o170000 not in query.kinds:
        return False
    return query.name is None or query.name.matches(name)


def _row(
    lineage: _Lineage, key: tuple[Any, ...], volumes: Iterable[_Volume], path_glob: Glob | None
) -> FileRow | None:
    """None when no path of it matches."""
    _, path, mode, size, mtime, ctime = key
    ordered = sorted(volumes, key=lambda volume: (volume.point.time, volume.point.id))
    newest = ordered[-1]
    guest_path = guest_path_of(path, newest.mounts)
    if path_glob is not None:
        if not path_glob.matches(path):
            ordered = [
                volume
                for volume in ordered
                if (there := guest_path_of(path, volume.mounts)) is not None and path_glob.matches(there)
            ]
        if not ordered:
            return None
    points = tuple(dict.fromkeys(volume.point for volume in ordered))
    return FileRow(
        lineage.vm,
        lineage.vm_id,
        newest.name,
        lineage.volume_key,
        path,
        guest_path,
        mode,
        size,
        mtime,
        ctime,
        points,
    )


def guest_path_of(path: str, mounts: Iterable[tuple[str, str]]) -> str | None:
    """Where the guest has a path of a volume that is mounted so; the first that fits."""
    for target, prefix in mounts:
        inside = f"/{prefix}/" if prefix else "/"
        if path.startswith(inside):
            return f"{target.rstrip('/')}/{path[len(inside) :]}"
    return None


def _lineages(connection: Connection, repository: int, query: FileQuery) -> dict[int, _Lineage]:
    """What of each lineage is asked about."""
    statement = (
        select(
            LineageModel.key,
            VmModel.name,
            VmModel.id,
            LineageModel.volume,
            VolumeModel.ordinal,
            VolumeModel.point,
            PointModel.time,
            VolumeModel.name,
            VolumeModel.mounts,
        )
        .join(LineageModel, LineageModel.key == VolumeModel.lineage)
        .join(VmModel, VmModel.key == LineageModel.vm)
        .join(
            PointModel,
            and_(PointModel.repository == VolumeModel.repository, PointModel.id == VolumeModel.point),
        )
        .where(VolumeModel.repository == repository, VolumeModel.ordinal.is_not(None))
        .order_by(VolumeModel.ordinal)
    )
    if query.vms is not None:
        statement = statement.where(LineageModel.vm.in_(query.vms))
    found: dict[int, _Lineage] = {}
    parsed: dict[str, tuple[tuple[str, str], ...]] = {}
    for key, vm, vm_id, volume, ordinal, point, time, name, mounts in connection.execute(statement).all():
        if query.points is not None and point not in query.points:
            continue
        lineage = found.setdefault(key, _Lineage(vm, vm_id, volume, [], []))
        if mounts not in parsed:
            parsed[mounts] = _mounts(mounts)
        if ordinal is None:
            continue
        lineage.ordinals.append(ordinal)
        lineage.volumes.append(_Volume(PointRef(point, time), name, parsed[mounts]))
    return found


def _mounts(text: str) -> tuple[tuple[str, str], ...]:
    pairs = ((target, prefix) for target, prefix in json.loads(text))
    return tuple(sorted(pairs, key=lambda pair: -len(pair[1])))


def _conditions(
    connection: Connection, repository: int, query: FileQuery, lineages: dict[int, _Lineage]
) -> list[ColumnElement[bool]]:
    """What the database can sort out; the rest is done with the rows."""
    conditions: list[ColumnElement[bool]] = []
    pairs = {(key, ordinal) for key, lineage in lineages.items() for ordinal in lineage.ordinals}
    if len(pairs) <= _PAIRS:
        conditions.append(
            or_(
                *(
                    and_(EntryModel.lineage == key, EntryModel.first <= ordinal, EntryModel.last >= ordinal)
                    for key, ordinal in sorted(pairs)
                )
            )
        )
    else:
        conditions.append(EntryModel.lineage.in_(sorted(lineages)))
    for like in _name_patterns(query):
        names = fullsearch.names_like(connection, repository, like)
        if names is not None:
            conditions.append(EntryModel.name.in_(_keys_of(names)))
    if query.path is not None and (directories := _directories(repository, query.path, lineages)) is not None:
        conditions.append(EntryModel.directory.in_(directories))
    for column, low, high in (
        (EntryModel.size, query.smallest, None if query.largest is None else query.largest + 1),
        (EntryModel.mtime, query.newer, query.older),
    ):
        if low is not None:
            conditions.append(column >= low)
        if high is not None:
            conditions.append(column < high)
    return conditions


def _keys_of(condition: ColumnElement[bool]) -> Any:
    return select(NameModel.key).where(condition)


def _name_patterns(query: FileQuery) -> list[str]:
    patterns = [query.name.like] if query.name else []
    if query.path is not None:
        above, slash, last = query.path.pattern.rpartition("/")
        # A bracket may hold the slash, and a `**` reach into what is above.
        if slash and last and "**" not in last and "[" not in above:
            patterns.append(compile_glob(last).like)
    return patterns


def _directories(repository: int, path: Glob, lineages: dict[int, _Lineage]) -> Any:
    """The directories that paths of that literal beginning can be in, in a volume mounted anywhere."""
    literal = path.literal.rpartition("/")[0].strip("/")
    if not literal:
        return None
    beginnings = {literal}
    mounts = {mount for lineage in lineages.values() for volume in lineage.volumes for mount in volume.mounts}
    for target, prefix in mounts:
        below = target.strip("/")
        if not below or literal == below or literal.startswith(f"{below}/"):
            beginnings.add("/".join(filter(None, (prefix, literal[len(below) :].strip("/")))))
        elif below.startswith(f"{literal}/"):
            beginnings.add(prefix)
    if "" in beginnings:
        return None
    tests = []
    for beginning in sorted(beginnings):
        tests += [
            DirectoryModel.name == beginning,
            DirectoryModel.name.startswith(f"{beginning}/", autoescape=True),
        ]
    return select(DirectoryModel.key).where(DirectoryModel.repository == repository, or_(*tests))
