"""From a volume group's metadata to spaces: which bytes of which physical volumes a logical volume is.

The types of segments and their keys are those of lib/raid, lib/striped, lib/mirror, lib/thin and lib/snapshot
of LVM2. What is not read here (caches that hold data of their own, VDO, integrity) is said so, and left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from vmfs.errors import VmfsError
from vmfs.volumes import raid
from vmfs.volumes.damage import Unmappable
from vmfs.volumes.lvm.group import MAX_BYTES, SECTOR, Group, LogicalVolume, Segment, number
from vmfs.volumes.lvm.images import in_sync
from vmfs.volumes.lvm.label import Warn
from vmfs.volumes.lvm.snapshot import open_snapshot
from vmfs.volumes.lvm.text import Scalar, TextError
from vmfs.volumes.lvm.thin import ThinPool
from vmfs.volumes.pieces import Joined, LaidSpace, Mirror, Part, Zeros

MAX_DEPTH = 12
"""Logical volumes within each other; a thin snapshot on a RAID 5 pool has four."""
MAX_PARTS = 1 << 18
"""Parts that a volume may come to, counting those of what lies below it."""

# How dm-raid translates LVM2's names (drivers/md/dm-raid.c of Linux): level and layout of md.
RAID_TYPES = {
    "raid4": (5, 4),
    "raid5": (5, 2),
    "raid5_la": (5, 0),
    "raid5_ra": (5, 1),
    "raid5_ls": (5, 2),
    "raid5_rs": (5, 3),
    "raid5_n": (5, 5),
    "raid6": (6, 8),
    "raid6_zr": (6, 8),
    "raid6_nr": (6, 9),
    "raid6_nc": (6, 10),
    "raid6_la_6": (6, 16),
    "raid6_ra_6": (6, 17),
    "raid6_ls_6": (6, 18),
    "raid6_rs_6": (6, 19),
    "raid6_n_6": (6, 5),
}
TOO_LARGE = "it is said to be larger than anything can be"
RAID_10 = ("raid10", "raid10_near")
NOT_READ = {
    "writecache": "a write cache lies before it, and the newest data may be there; caches are not read",
    "vdo": "it is deduplicated and compressed (VDO), which is not read",
    "vdo-pool": "it is deduplicated and compressed (VDO), which is not read",
    "integrity": "it carries checksums (dm-integrity), which is not read",
    "error": "it is marked as unreadable",
}
# What only serves other volumes, though LVM2 may show it. Left out without a word.
SERVING = frozenset(("thin-pool", "cache-pool", "vdo-pool", "snapshot"))


class _Snapshot(NamedTuple):
    origin: str
    store: str
    merging: bool
    chunk: int
    extents: int


class _Part(NamedTuple):
    """Where a segment, or one of its stripes, begins: in a physical or another logical volume."""

    name: str
    extent: int


class Mapper:
    """The logical volumes of one group. `physical` has a space for each physical volume that is there; `warn`
    takes what is worth knowing of volumes that could be put together all the same."""

    def __init__(self, group: Group, physical: Mapping[str, LaidSpace], warn: Warn) -> None:
        self._group = group
        self._warn = warn
        self._physical = physical
        self._known: dict[str, LaidSpace | Unmappable] = {}
        self._parts: dict[str, int] = {}
        self._on: dict[str, set[str]] = {}
        self._pools: dict[str, ThinPool] = {}
        self._walk: list[str] = []
        self._snapshots = _snapshots(group)
        self._stores = {snapshot.store: snapshot for snapshot in self._snapshots}
        self._merging = {snapshot.origin: snapshot for snapshot in self._snapshots if snapshot.merging}

    def visible(self) -> list[LogicalVolume]:
        """The volumes that a person would want to see. LVM does not mark snapshots as such."""
        return [
            volume
            for volume in self._group.logical.values()
            if (volume.visible or volume.name in self._stores)
            and not (volume.segments and volume.segments[0].type in SERVING)
            and not (volume.name in self._stores and self._stores[volume.name].merging)
        ]

    def volume(self, name: str) -> LaidSpace:
        """A logical volume as its user sees it: a snapshot's is not the store of what was copied, but the
        state it keeps. Raises Unmappable, and what reading raises."""
        snapshot = self._stores.get(name) or self._merging.get(name)
        if snapshot is None:
            return self._plain(name)
        size = snapshot.extents * self._group.extent
        if size > MAX_BYTES:
            raise Unmappable(TOO_LARGE)
        origin, store = self._plain(snapshot.origin), self._plain(snapshot.store)
        space = open_snapshot(origin, store, size)
        if snapshot.merging:
            # It may wait for the guest's next start, but from then on is all that the guest sees.
            self._warn(
                f"volume {name}: {snapshot.store} is being merged into it; shown is what comes of that"
            )
        return space

    def lies_on(self, name: str) -> frozenset[str]:
        """The names of the physical volumes that a volume, which has been put together, lies on."""
        snapshot = self._stores.get(name) or self._merging.get(name)
        names = (name,) if snapshot is None else (snapshot.origin, snapshot.store)
        return frozenset(physical for part in names for physical in self._on.get(part, ()))

    def _plain(self, name: str) -> LaidSpace:
        """The space of a logical volume's own segments."""
        known = self._known.get(name)
        if known is None:
            if name in self._walk:
                raise Unmappable("it lies upon itself")
            if len(self._walk) >= MAX_DEPTH:
                raise Unmappable(f"it lies upon more than {MAX_DEPTH} others")
            self._walk.append(name)
            try:
                known = self._build(name)
            except Unmappable as error:
                known = error
            except TextError as error:
                known = Unmappable(f"its metadata is damaged: {error}")
            finally:
                self._walk.pop()
            self._known[name] = known
        if isinstance(known, Unmappable):
            raise known
        return known

    def _build(self, name: str) -> LaidSpace:
        volume = self._group.logical.get(name)
        if volume is None:
            raise Unmappable(f"its part {name[:128]!r} is nowhere described")
        if volume.problem is not None:
            raise Unmappable(volume.problem)
        if not volume.segments:
            raise Unmappable("it has no segments")
        if volume.extents * self._group.extent > MAX_BYTES:
            raise Unmappable(TOO_LARGE)
        self._parts[name], self._on[name] = 0, set()
        parts = [self._segment(name, segment) for segment in volume.segments]
        return parts[0] if len(parts) == 1 else Joined(parts)

    def _segment(self, name: str, segment: Segment) -> LaidSpace:
        kind = segment.type
        size = segment.extents * self._group.extent
        if kind in NOT_READ:
            raise Unmappable(NOT_READ[kind])
        if kind == "cache":
            space = self._cached(name, segment)
        elif kind in ("striped", "linear"):
            space = self._striped(name, segment)
        elif kind == "mirror":
            space = self._mirror(name, segment)
        elif kind in RAID_TYPES or kind in RAID_10 or kind in ("raid0", "raid0_meta", "raid1"):
            space = self._raid(name, segment)
        elif kind == "thin":
            space = self._thin(name, segment)
        elif kind == "zero":
            space = Zeros(size)
        else:
            raise Unmappable(f"segments of type {kind[:40]!r} are not read")
        if space.size < size:
            raise Unmappable("its segments are shorter than they are said to be")
        return space if space.size == size else Part(space, 0, size)

    def _striped(self, name: str, segment: Segment) -> LaidSpace:
        parts = _parts(segment, "stripes")
        count = number(segment.facts, "stripe_count", raid.MAX_MEMBERS, 1)
        if len(parts) != count or segment.extents % count:
            raise TextError(f"a segment of {segment.extents} extents has {len(parts)} stripes of {count}")
        columns = [self._part(name, part, segment.extents // count) for part in parts]
        if count == 1:
            return columns[0]
        return raid.striped(columns, number(segment.facts, "stripe_size", 1 << 31, 1) * SECTOR)

    def _mirror(self, name: str, segment: Segment) -> LaidSpace:
        """The first leg is the one that all others are made equal to."""
        legs, problem = [], Unmappable("it has no legs")
        for part in _parts(segment, "mirrors"):
            try:
                legs.append(self._part(name, part, segment.extents))
            except Unmappable as error:
                problem = error
        if not legs:
            raise problem
        return Mirror(legs)

    def _raid(self, name: str, segment: Segment) -> LaidSpace:
        kind, facts = segment.type, segment.facts
        if any(facts.get(key) for key in ("reshape_count", "reshape_len", "data_offset", "new_data_offset")):
            raise Unmappable("it is being reshaped, which is not read")
        images, metas = _images(segment)
        columns: list[LaidSpace | None] = []
        problem = Unmappable("too many of its members are out of date")
        for image in images:
            try:
                columns.append(self._below(name, image))
            except Unmappable as error:
                problem = error
                columns.append(None)
        self._drop_stale(columns, metas)
        if kind == "raid1":
            legs = [column for column in columns if column is not None]
            if not legs:
                raise problem
            return Mirror(legs)
        chunk = number(facts, "stripe_size", 1 << 31, 1) * SECTOR
        if kind in RAID_10:
            copies = number(facts, "data_copies", 16, 1) if "data_copies" in facts else 2
            return raid.copied(columns, chunk, copies)
        present = [column for column in columns if column is not None]
        if kind in ("raid0", "raid0_meta"):
            if len(present) < len(columns):
                raise problem
            return raid.striped(present, chunk)
        level, layout = RAID_TYPES[kind]
        if len(columns) - len(present) > raid.redundancy(level):
            raise problem
        space = raid.parity(columns, chunk, level, layout)
        if len(present) < len(columns):
            self._warn(
                f"volume {name}: {len(columns) - len(present)} of its {len(columns)} members are missing or "
                "out of date; what they held is computed from the parity, wrongly where that was not in sync"
            )
        return space

    def _drop_stale(self, columns: list[LaidSpace | None], metas: list[str]) -> None:
        """A member that the array did without for a while is not read."""
        spaces: list[LaidSpace | None] = []
        for meta in metas:
            try:
                spaces.append(self._plain(meta))
            except Unmappable:
                spaces.append(None)
        good = in_sync(spaces)
        for index, column in enumerate(columns):
            if column is not None and index < len(good) and not good[index]:
                columns[index] = None

    def _cached(self, name: str, segment: Segment) -> LaidSpace:
        """What lies behind a cache that holds nothing of its own. Its mode is said of the cache, or where
        that is a single volume, of what is cached (lib/cache_segtype/cache.c)."""
        facts, origin = segment.facts, segment.facts.get("origin")
        pool = self._group.logical.get(str(facts.get("cache_pool")))
        told = [facts, *(one.facts for one in (pool.segments if pool else ()))]
        mode = next((one["cache_mode"] for one in told if "cache_mode" in one), None)
        if mode not in ("writethrough", "passthrough") or not isinstance(origin, str):
            raise Unmappable("a cache lies before it, and the newest data may be there; caches are not read")
        return self._below(name, origin)

    def _thin(self, name: str, segment: Segment) -> LaidSpace:
        size = segment.extents * self._group.extent
        pool_name = segment.facts.get("thin_pool")
        if not isinstance(pool_name, str):
            raise TextError("its thin pool is missing")
        pool = self._pool(name, pool_name)
        device = number(segment.facts, "device_id", (1 << 24) - 1)
        outside = segment.facts.get("external_origin")
        base: LaidSpace = Zeros(size)
        if isinstance(outside, str):
            origin = self._below(name, outside)
            short = size - origin.size
            base = Joined([origin, Zeros(short)]) if short > 0 else Part(origin, 0, size)
        return pool.volume(device, base)

    def _pool(self, name: str, pool_name: str) -> ThinPool:
        pool = self._pools.get(pool_name)
        if pool is None:
            volume = self._group.logical.get(pool_name)
            if volume is None or len(volume.segments) != 1 or volume.segments[0].type != "thin-pool":
                raise Unmappable(f"its thin pool {pool_name[:128]!r} is nowhere described")
            facts = volume.segments[0].facts
            metadata, data = facts.get("metadata"), facts.get("pool")
            if not isinstance(metadata, str) or not isinstance(data, str):
                raise TextError("its thin pool has no data or no metadata")
            try:
                pool = ThinPool(self._plain(metadata), self._plain(data))
            except VmfsError as error:
                raise Unmappable(f"its thin pool cannot be read: {error}") from error
            self._pools[pool_name] = pool
            self._on[pool_name] = self._on[metadata] | self._on[data]
        self._on[name] |= self._on[pool_name]
        return pool

    def _part(self, name: str, part: _Part, count: int) -> LaidSpace:
        """`count` extents of a physical or logical volume."""
        extent = self._group.extent
        ref = self._group.physical.get(part.name)
        if ref is None:
            below = self._below(name, part.name)
            if (part.extent + count) * extent > below.size:
                raise Unmappable(f"it reaches beyond the end of its part {part.name}")
            return Part(below, part.extent * extent, count * extent)
        self._count(name, 1)
        self._on[name].add(part.name)
        space = self._physical.get(part.name)
        if ref.missing:
            raise Unmappable(f"its physical volume {part.name} was away and is out of date, says LVM")
        if space is None:
            raise Unmappable(f"its physical volume {part.name} ({ref.uuid[:6]}…) is missing")
        start = ref.start + part.extent * extent
        if start + count * extent > space.size:
            raise Unmappable(f"it reaches beyond the end of the physical volume {part.name}")
        return Part(space, start, count * extent)

    def _below(self, name: str, part: str) -> LaidSpace:
        """The logical volume `part`, which `name` lies on."""
        space = self._plain(part)
        self._count(name, max(1, self._parts.get(part, 1)))
        self._on[name] |= self._on.get(part, set())
        return space

    def _count(self, name: str, parts: int) -> None:
        self._parts[name] += parts
        if self._parts[name] > MAX_PARTS:
            raise Unmappable(f"it has more than {MAX_PARTS} parts")


def _parts(segment: Segment, key: str) -> list[_Part]:
    """A list of names, each followed by the extent it begins at."""
    values: object = segment.facts.get(key)
    if not isinstance(values, list) or len(values) % 2 or len(values) > 2 * raid.MAX_MEMBERS:
        raise TextError(f"{key} is no list of places")
    found = []
    for name, extent in zip(values[::2], values[1::2], strict=True):
        if not isinstance(name, str) or not isinstance(extent, int) or not 0 <= extent < 1 << 48:
            raise TextError(f"{key} is no list of places")
        found.append(_Part(name, extent))
    return found


def _images(segment: Segment) -> tuple[list[str], list[str]]:
    """The names of an array's members, and of what keeps their states: none for a plain RAID 0."""
    plain = segment.facts.get("raid0_lvs")
    values: list[Scalar] = []
    if isinstance(plain, list):
        values = plain
    elif isinstance(pairs := segment.facts.get("raids"), list) and len(pairs) % 2 == 0:
        values = pairs
    names = [value for value in values if isinstance(value, str)]
    if not names or len(names) != len(values) or len(names) > 2 * raid.MAX_MEMBERS:
        raise TextError("the list of its members is damaged")
    return (names, []) if isinstance(plain, list) else (names[1::2], names[::2])


def _snapshots(group: Group) -> list[_Snapshot]:
    """LVM2 describes a snapshot as a volume of its own, snapshot0, that nobody sees."""
    found = []
    for volume in group.logical.values():
        if len(volume.segments) != 1 or volume.segments[0].type != "snapshot":
            continue
        facts = volume.segments[0].facts
        origin, store = facts.get("origin"), facts.get("cow_store")
        merging = facts.get("merging_store")
        if isinstance(merging, str):
            store = merging
        chunk = facts.get("chunk_size")
        if isinstance(origin, str) and isinstance(store, str) and isinstance(chunk, int):
            found.append(_Snapshot(origin, store, isinstance(merging, str), chunk, volume.extents))
    return found
