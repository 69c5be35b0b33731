"""Reading the rows: the queries behind `Catalog.vms` and `Catalog.points`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from sqlalchemy import Connection, func, select

from vmfs.catalog.models import ArtifactModel, DiskModel, PointModel, VmModel
from vmfs.catalog.resolve import select_vms
from vmfs.catalog.rows import ArtifactRow, DiskRow, PointRow, VmRow
from vmfs.catalog.sync import newest_points

RowT = TypeVar("RowT")


def vm_rows(connection: Connection, repository: int, keys: Sequence[int] | None = None) -> list[VmRow]:
    """All VMs, or those of the keys given, by name and then id."""
    newest = newest_points(repository).subquery()
    spans = (
        select(
            PointModel.vm,
            func.count().label("points"),
            func.min(PointModel.time).label("first"),
            func.max(PointModel.time).label("latest"),
        )
        .where(PointModel.repository == repository)
        .group_by(PointModel.vm)
        .subquery()
    )
    query = (
        select(VmModel, spans.c.points, spans.c.first, spans.c.latest, newest.c.id.label("latest_point"))
        .join(spans, spans.c.vm == VmModel.key)
        .join(newest, newest.c.vm == VmModel.key)
    )
    if keys is not None:
        query = query.where(VmModel.key.in_(keys))
    rows = [
        VmRow(
            row.name,
            row.id,
            row.engine or None,
            row.cluster,
            row.points,
            row.first,
            row.latest,
            row.latest_point,
        )
        for row in connection.execute(query)
    ]
    # Sorted here and not by the database: each has an order of its own for text.
    return sorted(rows, key=lambda vm: (vm.name, vm.id, vm.engine or ""))


def point_rows(
    connection: Connection, repository: int, vm: str | None, point_id: str | None
) -> list[PointRow]:
    """Points in the order of time: all, those of one VM, or the one of that id."""
    chosen = PointModel.repository == repository
    if vm is not None:
        chosen &= PointModel.vm.in_(select_vms(connection, repository, vm))
    elif point_id is not None:
        chosen &= PointModel.id == point_id
    whole = vm is None and point_id is None

    def parts(
        model: type[DiskModel] | type[ArtifactModel], columns: Sequence[Any], make: Callable[..., RowT]
    ) -> dict[str, list[RowT]]:
        query = select(model.point, *columns).where(model.repository == repository)
        if not whole:
            query = query.where(model.point.in_(select(PointModel.id).where(chosen)))
        found: dict[str, list[RowT]] = defaultdict(list)
        # Row by row through the cursor costs twice the time of all at once.
        for id_, *values in connection.execute(query.order_by(model.point, model.position)).all():
            found[id_].append(make(*values))
        return found

    disks = parts(DiskModel, _DISK_COLUMNS, DiskRow)
    artifacts = parts(ArtifactModel, _ARTIFACT_COLUMNS, ArtifactRow)
    points = (
        select(*_POINT_COLUMNS)
        .join(VmModel, VmModel.key == PointModel.vm)
        .where(chosen)
        .order_by(PointModel.time, PointModel.id)
    )
    return [
        PointRow(
            *(id_, name, vm_id, engine or None, time, consistency, parent, producer, signer),
            disks=tuple(disks.get(id_, ())),
            artifacts=tuple(artifacts.get(id_, ())),
        )
        for id_, name, vm_id, engine, time, consistency, parent, producer, signer in (
            connection.execute(points).all()
        )
    ]


_POINT_COLUMNS: tuple[Any, ...] = (
    PointModel.id,
    VmModel.name,
    VmModel.id,
    VmModel.engine,
    PointModel.time,
    PointModel.consistency,
    PointModel.parent,
    PointModel.producer,
    PointModel.signer,
)
_DISK_COLUMNS: tuple[Any, ...] = (
    DiskModel.id,
    DiskModel.alias,
    DiskModel.size,
    DiskModel.allocated,
    DiskModel.mode,
    DiskModel.full_reason,
    DiskModel.bytes_read,
    DiskModel.bytes_new,
    DiskModel.bytes_stored,
)
_ARTIFACT_COLUMNS: tuple[Any, ...] = (ArtifactModel.name, ArtifactModel.size)
