"""What the catalog answers with: plain frozen records, detached from the database."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class VmRow:
    """One VM. `name` and `cluster` are those of its newest point: a VM may have been renamed. `first` and
    `latest` are the times of its oldest and newest point, UTC."""

    name: str
    id: str
    engine: str | None
    cluster: str | None
    points: int
    first: datetime
    latest: datetime
    latest_point: str


@dataclass(frozen=True, slots=True)
class DiskRow:
    """One disk of a point; sizes in bytes, as in `vmfs.format.manifest.Disk`."""

    id: str
    alias: str
    size: int
    allocated: int
    mode: str
    full_reason: str | None
    bytes_read: int
    bytes_new: int
    bytes_stored: int


@dataclass(frozen=True, slots=True)
class ArtifactRow:
    """A small file kept with a point; `size` in bytes."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class PointRow:
    """One restore point. `vm` is the present name of its VM; `time` is UTC; `signer` is the Ed25519 public
    key of whoever wrote it."""

    id: str
    vm: str
    vm_id: str
    engine: str | None
    time: datetime
    consistency: str
    parent: str | None
    producer: str
    signer: bytes
    disks: tuple[DiskRow, ...]
    artifacts: tuple[ArtifactRow, ...]


@dataclass(frozen=True, slots=True)
class DamagedPoint:
    """A point that is in the store and whose manifest cannot be read; `message` says why."""

    id: str
    message: str
