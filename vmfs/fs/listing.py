"""The upper part of the tree: VMs and their restore points, as the catalog knows them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from vmfs.catalog import DamagedPoint, PointRow
from vmfs.fs.entries import Children, Entry, Role
from vmfs.fs.names import Wanted, of_time, unique

LATEST = b"latest"
DAMAGED = "damaged"
_SUFFIX = 6


@dataclass(frozen=True, slots=True)
class Listing:
    """One state of the repository. `children` by directory key; `changing` holds the entries that the next
    state may have with other attributes, by key; `allocated` and `size` are sums over all disks, bytes."""

    root: Entry
    children: dict[str, Children]
    changing: dict[str, Entry]
    size: int
    allocated: int
    files: int


def build(points: Sequence[PointRow], damaged: Iterable[DamagedPoint], started_ns: int) -> Listing:
    """The listing of those points; `started_ns` is the time of directories that no point gives one."""
    by_vm: dict[tuple[str, str], list[PointRow]] = defaultdict(list)
    for point in points:
        by_vm[point.engine or "", point.vm_id].append(point)
    # The VM that was here first keeps the plain name.
    vms = sorted(by_vm.items(), key=lambda item: min(row.id for row in item[1]))
    names = unique([Wanted(rows[-1].vm, "", vm_id[:8]) for (_, vm_id), rows in vms])

    children: dict[str, Children] = {}
    changing: dict[str, Entry] = {}
    top: dict[bytes, Entry] = {}
    for name, ((engine, vm_id), rows) in zip(names, vms, strict=True):
        key = f"vm/{engine}/{vm_id}"
        inside = _point_directories(key, rows)
        children[key] = inside
        top[name] = changing[key] = Entry(key, Role.VM, max(_ns(row.time) for row in rows))
        changing[f"{key}/latest"] = inside[LATEST]
    broken = {
        point.id.encode(): Entry(f"damaged/{point.id}", Role.POINT, started_ns, point=point.id)
        for point in sorted(damaged, key=lambda point: point.id)
    }
    if broken:
        # Nobody can say of which VM they are. A restore point must not vanish without a trace.
        name = unique([Wanted(DAMAGED, "", "points")], top)[0]
        children[DAMAGED] = broken
        top[name] = changing[DAMAGED] = Entry(DAMAGED, Role.DAMAGED, started_ns)
    root = Entry("", Role.ROOT, max([started_ns, *(entry.mtime_ns for entry in top.values())]))
    children[root.key] = top
    changing[root.key] = root
    disks = [disk for point in points for disk in point.disks]
    return Listing(
        root=root,
        children=children,
        changing=changing,
        size=sum(disk.size for disk in disks),
        allocated=sum(disk.allocated for disk in disks),
        files=len(points),
    )


def _point_directories(vm_key: str, rows: Sequence[PointRow]) -> dict[bytes, Entry]:
    """Points of one second are told apart by a suffix; the oldest keeps the plain name, so that a name does
    not change when another point comes."""
    ordered = sorted(rows, key=lambda row: (row.time, row.id))
    by_id = sorted(ordered, key=lambda row: row.id)
    names = dict(
        zip(
            (row.id for row in by_id),
            unique([Wanted(of_time(row.time), "", row.id[-_SUFFIX:].lower()) for row in by_id], (LATEST,)),
            strict=True,
        )
    )
    found = {names[row.id]: point_entry(row.id, row.time) for row in ordered}
    newest = ordered[-1]
    target = names[newest.id]
    found[LATEST] = Entry(f"{vm_key}/latest", Role.LATEST, _ns(newest.time), size=len(target), target=target)
    return found


def point_entry(point_id: str, time: datetime) -> Entry:
    return Entry(f"point/{point_id}", Role.POINT, _ns(time), point=point_id)


def _ns(time: datetime) -> int:
    return int(time.timestamp() * 1_000_000) * 1000
