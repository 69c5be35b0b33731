"""From a manifest to the rows that stand for it.

A manifest comes from whoever holds the key, and may hold text that a database does not take. So everything is
checked here, before one point could make a whole sync fail.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Protocol

from vmfs.errors import ContentError
from vmfs.format.manifest import Manifest

Record = dict[str, Any]
VmIdentity = tuple[str, str]
"""(engine or "", id)"""

ULID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")
_LARGEST = (1 << 63) - 1


class LoadedPoint(Protocol):
    """What `load_point` of a repository gives."""

    @property
    def id(self) -> str: ...
    @property
    def manifest(self) -> Manifest: ...
    @property
    def signer(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class PointRecords:
    """The rows of one point, still without the keys of its repository and VM."""

    vm: VmIdentity
    point: Record
    disks: list[Record] = field(default_factory=list)
    artifacts: list[Record] = field(default_factory=list)


def records_of(point: LoadedPoint) -> PointRecords:
    """Raises ContentError when a field is of a kind or size that no writer of ours makes."""
    if not ULID.fullmatch(point.id):
        raise ContentError(f"point {point.id!a} is no ULID")
    manifest = point.manifest
    vm = manifest.vm
    identity = (_text("engine", vm.engine or ""), _text("VM id", vm.id))
    record: Record = {
        "id": point.id,
        "vm_name": vm.name,
        "vm_cluster": _optional("cluster", vm.cluster),
        "time": manifest.time,
        "consistency": manifest.consistency,
        "parent": _optional("parent", manifest.parent),
        "producer": _text("producer", manifest.producer),
        "signer": point.signer,
    }
    return PointRecords(
        identity,
        record,
        [
            {
                "point": point.id,
                "position": position,
                "id": _text("disk id", disk.id),
                "alias": disk.alias,
                "size": _count("size", disk.size),
                "allocated": _count("allocated", disk.allocated),
                "mode": disk.mode,
                "full_reason": _optional("full_reason", disk.full_reason),
                "bytes_read": _count("bytes_read", disk.bytes_read),
                "bytes_new": _count("bytes_new", disk.bytes_new),
                "bytes_stored": _count("bytes_stored", disk.bytes_stored),
            }
            for position, disk in enumerate(manifest.disks)
        ],
        [
            {
                "point": point.id,
                "position": position,
                "name": artifact.name,
                "size": _count("size", artifact.size),
            }
            for position, artifact in enumerate(manifest.artifacts)
        ],
    )


def _text(what: str, value: object) -> str:
    """PostgreSQL takes no NUL, and no database takes half a surrogate pair."""
    if not isinstance(value, str):
        raise ContentError(f"manifest makes no sense: {what} is not text")
    if value.isascii() and value.isprintable():
        return value
    return value.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")


def _optional(what: str, value: object) -> str | None:
    return None if value is None else _text(what, value)


def _count(what: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _LARGEST:
        raise ContentError(f"manifest makes no sense: {what} is not a count of bytes")
    return value
