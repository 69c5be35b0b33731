"""Which members of an LVM2 RAID volume are in sync, by the superblocks of dm-raid.

struct dm_raid_superblock of drivers/md/dm-raid.c of Linux: magic, features, number of devices, position,
events, failed devices, how far this one is recovered (sectors), …; little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from vmfs.errors import VmfsError
from vmfs.volumes.pieces import LaidSpace

SUPERBLOCK = struct.Struct("<4sIIIQQQ")
MAGIC = b"DmRd"
RECOVERED = (1 << 64) - 1


class _State(NamedTuple):
    events: int
    failed: int
    recovered: int


def in_sync(metas: Sequence[LaidSpace | None]) -> list[bool]:
    """For each member whether its content counts. One that says nothing counts unless the others call it
    failed: a new array has no superblocks yet."""
    states = [_state(meta) for meta in metas]
    events = [state.events for state in states if state is not None]
    if not events:
        return [True] * len(metas)
    newest = max(events)
    failed = next(state.failed for state in states if state is not None and state.events == newest)
    # The driver takes a member that is one event behind: it was cut off while the others were written.
    return [
        not failed >> index & 1
        and (state is None or (state.events + 1 >= newest and state.recovered == RECOVERED))
        for index, state in enumerate(states)
    ]


def _state(meta: LaidSpace | None) -> _State | None:
    try:
        block = b"" if meta is None else meta.read(0, SUPERBLOCK.size)
    except VmfsError:
        return None
    if len(block) < SUPERBLOCK.size:
        return None
    magic, _, _, _, events, failed, recovered = SUPERBLOCK.unpack(block)
    return _State(events, failed, recovered) if magic == MAGIC else None
