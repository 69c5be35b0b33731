"""The POINT of the commands: from what a person writes to the id of one restore point."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from datetime import datetime

from sqlalchemy import BigInteger, Connection, select, type_coerce

from vmfs.catalog.database import Database
from vmfs.catalog.models import PointModel, VmModel
from vmfs.catalog.rows import DamagedPoint
from vmfs.catalog.timespan import end_of
from vmfs.errors import IntegrityError, UsageError

SHORTEST_PREFIX = 4
SHOWN = 5
ID_LENGTH = 26
_ID = re.compile(r"[0-9A-HJKMNP-TV-Z]{1,26}")


def show_time(time: datetime) -> str:
    """As the mount shows it, and as VM@TIME takes it: `2026-11-20T100000Z`."""
    return f"{time:%Y-%m-%dT%H%M%SZ}"


def resolve(database: Database, spec: str, damaged: Sequence[DamagedPoint]) -> str:
    """See `Catalog.resolve`."""
    with database.reading() as connection:
        # A VM name may hold an '@', a time never does.
        vm, at, when = spec.rpartition("@")
        if at:
            return _by_time(connection, database.repository, vm, when)
        return _by_id(connection, database.repository, spec, damaged)


def select_vms(connection: Connection, repository: int, vm: str) -> list[int]:
    """The keys of the VMs called `vm`: by present name, else by id, else by a name of one of its points."""
    if not _can_be_stored(vm):
        return []
    of_repository = select(VmModel.key).where(VmModel.repository == repository)
    for query in (
        of_repository.where(VmModel.name == vm),
        of_repository.where(VmModel.id == vm),
        select(PointModel.vm).distinct().where(PointModel.repository == repository, PointModel.vm_name == vm),
    ):
        if found := list(connection.scalars(query)):
            return sorted(found)
    return []


def unknown_vm(connection: Connection, repository: int, vm: str) -> UsageError:
    names = sorted(set(connection.scalars(select(VmModel.name).where(VmModel.repository == repository))))
    if not names:
        return UsageError(f"there is no VM {vm!r}: the repository has no restore points yet")
    close = difflib.get_close_matches(vm, names, SHOWN, 0.5) or names
    return UsageError(f"there is no VM {vm!r} in the repository; there is {_some(map(repr, close))}")


def _by_time(connection: Connection, repository: int, vm: str, when: str) -> str:
    bound = None if when.lower() == "latest" else end_of(when)
    key = _one_vm(connection, repository, vm)
    query = (
        select(PointModel.id)
        .where(PointModel.vm == key)
        .order_by(PointModel.time.desc(), PointModel.id.desc())
        .limit(1)
    )
    if bound is not None:
        query = query.where(type_coerce(PointModel.time, BigInteger) < bound)
    found = connection.scalar(query)
    if found is None:
        times = connection.scalars(
            select(PointModel.time).where(PointModel.vm == key).order_by(PointModel.time).limit(SHOWN + 1)
        )
        raise UsageError(f"VM {vm!r} has no point at or before {when}; it has {_some(map(show_time, times))}")
    return found


def _one_vm(connection: Connection, repository: int, vm: str) -> int:
    keys = select_vms(connection, repository, vm)
    if not keys:
        raise unknown_vm(connection, repository, vm)
    if len(keys) > 1:
        ids = sorted(connection.scalars(select(VmModel.id).where(VmModel.key.in_(keys))))
        raise UsageError(f"{len(keys)} VMs are called {vm!r}; name one by its id: {_some(ids)}")
    return keys[0]


def _by_id(connection: Connection, repository: int, spec: str, damaged: Sequence[DamagedPoint]) -> str:
    prefix = spec.upper()
    if not _ID.fullmatch(prefix) or len(prefix) < SHORTEST_PREFIX:
        if select_vms(connection, repository, spec):
            raise UsageError(f"{spec!r} is a VM, not a point; write {spec}@latest or {spec}@TIME")
        raise UsageError(
            f"{spec!a} is no point; write an id, its first {SHORTEST_PREFIX} or more characters, "
            "VM@latest or VM@TIME"
        )
    query = (
        select(PointModel.id, VmModel.name, PointModel.time)
        .join(VmModel, VmModel.key == PointModel.vm)
        .where(PointModel.repository == repository)
        .order_by(PointModel.id)
    )
    found = connection.execute(query.where(PointModel.id.startswith(prefix)).limit(SHOWN + 1)).all()
    broken = [point for point in damaged if point.id.startswith(prefix)]
    if len(found) == 1 and not broken:
        point_id: str = found[0][0]
        return point_id
    if len(broken) == 1 and not found:
        raise IntegrityError(f"point {broken[0].id} is damaged: {broken[0].message}")
    if found or broken:
        shown = [f"{i} ({vm}@{show_time(time)})" for i, vm, time in found]
        shown += [f"{point.id} (damaged)" for point in broken]
        raise UsageError(f"{spec!r} begins more than one id; write more of it: {_some(shown)}")
    if select_vms(connection, repository, spec):
        raise UsageError(f"{spec!r} is a VM, not a point; write {spec}@latest or {spec}@TIME")
    ids = list(connection.scalars(select(PointModel.id).where(PointModel.repository == repository)))
    if not ids:
        raise UsageError(f"there is no point {spec!r}: the repository has no restore points yet")
    close = (
        difflib.get_close_matches(prefix.ljust(ID_LENGTH), ids[-1000:], SHOWN, 0.7) or sorted(ids)[-SHOWN:]
    )
    raise UsageError(f"there is no point {spec!r} in the repository; there is {_some(close)}")


def _can_be_stored(name: str) -> bool:
    """Whether a database takes the text: an argument may hold bytes that are no UTF-8."""
    try:
        return b"\0" not in name.encode()
    except UnicodeEncodeError:
        return False


def _some(candidates: Iterable[str]) -> str:
    shown = list(candidates)
    more = ", …" if len(shown) > SHOWN else ""
    return ", ".join(shown[:SHOWN]) + more
