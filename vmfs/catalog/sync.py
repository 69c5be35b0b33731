"""Bringing the rows of one repository in line with the points in its store."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

from sqlalchemy import Connection, Select, delete, func, insert, select, update

from vmfs.catalog.database import Database
from vmfs.catalog.files import clear_files
from vmfs.catalog.models import ArtifactModel, Base, DiskModel, PointModel, VmModel
from vmfs.catalog.records import LoadedPoint, PointRecords, Record, VmIdentity, records_of
from vmfs.catalog.rows import DamagedPoint
from vmfs.errors import ObjectMissingError, VmfsError

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with (points loaded, points to load)."""

_BATCH = 500
"""Ids in one statement: every database takes that many parameters."""


class PointSource(Protocol):
    """The part of a repository that a sync needs."""

    def point_ids(self) -> list[str]: ...
    def load_point(self, point_id: str) -> LoadedPoint: ...


def sync(database: Database, source: PointSource, progress: Progress | None = None) -> list[DamagedPoint]:
    """Insert the points that are new in the store and delete those that are gone, in one transaction.

    Manifests are loaded before it begins, so that others wait for milliseconds. The rows are read before the
    store is listed: a row of then that the listing lacks is really gone, and is not a point that somebody
    else has committed and entered in between.
    """
    with database.reading() as connection:
        known = _ids(connection, database.repository)
    stored = source.point_ids()
    records, damaged = _load(source, [point_id for point_id in stored if point_id not in known], progress)
    gone = sorted(known.difference(stored))
    if records or gone:
        with database.writing() as connection:
            _delete(connection, database.repository, gone)
            # Another process may have entered some of them while we loaded and waited.
            entered = _ids(connection, database.repository)
            _insert(connection, database.repository, [r for r in records if r.point["id"] not in entered])
            _refresh_vms(connection, database.repository)
        log.debug("catalog: %d points entered, %d removed, %d damaged", len(records), len(gone), len(damaged))
    return damaged


def clear(database: Database) -> None:
    """Delete all rows of this repository."""
    with database.writing() as connection:
        connection.execute(delete(PointModel).where(PointModel.repository == database.repository))
        connection.execute(delete(VmModel).where(VmModel.repository == database.repository))
        clear_files(connection, database.repository)


def newest_points(repository: int) -> Select[Any]:
    """Each VM's newest point: columns vm, id, vm_name, vm_cluster."""
    place = func.row_number().over(
        partition_by=PointModel.vm, order_by=(PointModel.time.desc(), PointModel.id.desc())
    )
    ranked = (
        select(PointModel.vm, PointModel.id, PointModel.vm_name, PointModel.vm_cluster, place.label("place"))
        .where(PointModel.repository == repository)
        .subquery()
    )
    columns = ranked.c
    return select(columns.vm, columns.id, columns.vm_name, columns.vm_cluster).where(columns.place == 1)


def _ids(connection: Connection, repository: int) -> set[str]:
    return set(connection.scalars(select(PointModel.id).where(PointModel.repository == repository)))


def _load(
    source: PointSource, ids: Sequence[str], progress: Progress | None
) -> tuple[list[PointRecords], list[DamagedPoint]]:
    records, damaged = [], []
    for done, point_id in enumerate(ids):
        if progress is not None:
            progress(done, len(ids))
        try:
            records.append(records_of(source.load_point(point_id)))
        except ObjectMissingError:
            log.debug("point %s was removed while the store was listed", point_id)
        except VmfsError as error:
            damaged.append(DamagedPoint(point_id, str(error)))
    if progress is not None and ids:
        progress(len(ids), len(ids))
    return records, damaged


def _delete(connection: Connection, repository: int, ids: Sequence[str]) -> None:
    for batch in _batches(ids):
        connection.execute(
            delete(PointModel).where(PointModel.repository == repository, PointModel.id.in_(batch))
        )


def _insert(connection: Connection, repository: int, points: Sequence[PointRecords]) -> None:
    vms = _enter_vms(connection, repository, points)
    _insert_all(
        connection, PointModel, ({**p.point, "repository": repository, "vm": vms[p.vm]} for p in points)
    )
    for model, name in ((DiskModel, "disks"), (ArtifactModel, "artifacts")):
        _insert_all(
            connection, model, ({**r, "repository": repository} for p in points for r in getattr(p, name))
        )


def _enter_vms(
    connection: Connection, repository: int, points: Sequence[PointRecords]
) -> dict[VmIdentity, int]:
    vms = _vm_keys(connection, repository)
    missing = {p.vm: p.point for p in points if p.vm not in vms}
    if not missing:
        return vms
    _insert_all(
        connection,
        VmModel,
        (
            {
                "repository": repository,
                "engine": engine,
                "id": vm_id,
                "name": point["vm_name"],
                "cluster": point["vm_cluster"],
            }
            for (engine, vm_id), point in missing.items()
        ),
    )
    return _vm_keys(connection, repository)


def _vm_keys(connection: Connection, repository: int) -> dict[VmIdentity, int]:
    found = connection.execute(
        select(VmModel.engine, VmModel.id, VmModel.key).where(VmModel.repository == repository)
    )
    return {(engine, vm_id): key for engine, vm_id, key in found}


def _refresh_vms(connection: Connection, repository: int) -> None:
    """A VM is called what its newest point calls it, and is gone with its last point."""
    newest = {row.vm: (row.vm_name, row.vm_cluster) for row in connection.execute(newest_points(repository))}
    rows = connection.execute(
        select(VmModel.key, VmModel.name, VmModel.cluster).where(VmModel.repository == repository)
    ).all()
    for key, name, cluster in rows:
        if key not in newest:
            connection.execute(delete(VmModel).where(VmModel.key == key))
        elif newest[key] != (name, cluster):
            name, cluster = newest[key]
            connection.execute(update(VmModel).where(VmModel.key == key).values(name=name, cluster=cluster))


def _insert_all(connection: Connection, model: type[Base], records: Iterable[Record]) -> None:
    values = list(records)
    if values:
        connection.execute(insert(model), values)


def _batches(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), _BATCH):
        yield ids[start : start + _BATCH]
