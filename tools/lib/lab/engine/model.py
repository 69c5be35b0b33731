"""What the engine knows. Sizes are bytes, times are UTC, ids are UUIDs as text.

These objects are changed in place, under the lock of engine.core.Engine.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lab.imageio import ImageioHost
    from lab.machine import BackupExport, Machine

BLANK_TEMPLATE = "00000000-0000-0000-0000-000000000000"
AUTO_SNAPSHOT = "Auto-generated for Backup VM"
"""How the engine describes the snapshot of a hybrid backup."""
GIB = 1 << 30


def new_id() -> str:
    return str(uuid.uuid4())


def now() -> datetime:
    return datetime.now(UTC)


@dataclass
class Timing:
    """How long the engine takes. Seconds."""

    step: float = 0.02
    """Between two phases of anything."""
    monitor: float = 0.1
    """Between two looks at running transfers."""
    restart: float = 0.3
    """How long a restarting engine does not answer."""
    ticket_life: float = 300
    ticket_allowance: float = 60
    """A ticket is renewed this long before it ends."""
    inactivity: float = 60
    """The engine's own limit for a transfer that nobody uses."""
    session_idle: float = 1800
    purge_succeeded: float = 900
    purge_failed: float = 1800


@dataclass
class Cluster:
    id: str
    name: str
    level: tuple[int, int]
    data_center_id: str

    @property
    def hybrid(self) -> bool:
        """Whether a plain backup is a hybrid one (the engine's UseHybridBackup)."""
        return self.level >= (4, 7)


@dataclass
class StorageDomain:
    id: str
    name: str
    folder: Path
    capacity: int
    full: bool = False
    """A fault: nothing is free."""


@dataclass
class Network:
    id: str
    name: str


@dataclass
class VnicProfile:
    id: str
    name: str
    network_id: str


@dataclass
class Host:
    id: str
    name: str
    cluster_ids: tuple[str, ...]
    imageio: ImageioHost


@dataclass
class Nic:
    id: str
    name: str
    mac: str
    profile_id: str | None
    interface: str = "virtio"
    plugged: bool = True
    linked: bool = True


@dataclass
class Disk:
    """A disk, attached or not. `images` are the ids of its layers, base first: one for each file."""

    id: str
    alias: str
    size: int
    format: str
    """What was asked for, `cow` or `raw`; the active layer's is Engine.disk_format."""
    sparse: bool
    storage_domain_id: str
    images: list[str]
    description: str = ""
    backup: str | None = "incremental"
    content_type: str = "data"
    status: str = "ok"
    shareable: bool = False
    wipe_after_delete: bool = False
    backup_mode: str | None = None
    creation: datetime = field(default_factory=now)
    transfer_id: str | None = None
    """The image transfer that owns the disk."""
    shelf: Machine | None = None
    """What holds the image while no VM has it."""
    files: tuple[Path, ...] = ()
    """The layers' files, base first, when the machine was last looked at."""

    @property
    def image_id(self) -> str:
        return self.images[-1]


@dataclass
class Attachment:
    disk_id: str
    interface: str = "virtio_scsi"
    bootable: bool = False
    active: bool = True
    read_only: bool = False
    pass_discard: bool = False


@dataclass
class Snapshot:
    id: str
    description: str
    disks: dict[str, str]
    """Image id of each disk, by disk id."""
    status: str = "ok"
    date: datetime = field(default_factory=now)
    machine_id: str = ""
    """What the machine calls it: a hybrid backup's is named as the backup."""
    backup_id: str | None = None
    persist_memory: bool = False


@dataclass
class Checkpoint:
    id: str
    parent_id: str | None
    disks: list[str]
    description: str = ""
    state: str = "created"
    creation: datetime = field(default_factory=now)


@dataclass
class Vm:
    id: str
    name: str
    cluster_id: str
    machine: Machine
    description: str = ""
    comment: str = ""
    memory: int = GIB
    sockets: int = 1
    cores: int = 2
    threads: int = 1
    os: str = "other_linux"
    time_zone: str = "Etc/GMT"
    bios: str = "q35_sea_bios"
    status: str = "down"
    host_id: str | None = None
    template_id: str = BLANK_TEMPLATE
    template_name: str = "Blank"
    creation: datetime = field(default_factory=now)
    hosted_engine: bool = False
    nics: list[Nic] = field(default_factory=list)
    attachments: dict[str, Attachment] = field(default_factory=dict)
    snapshots: list[Snapshot] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    active_snapshot_id: str = field(default_factory=new_id)
    preview: str | None = None
    """The snapshot that is being previewed."""
    ovf: str | None = None
    """A fault: what the engine gives for its configuration."""

    @property
    def running(self) -> bool:
        return self.status not in ("down", "image_locked")


FINISHED_BACKUP = ("succeeded", "failed")


@dataclass
class Backup:
    id: str
    vm_id: str
    kind: str
    """live, cold or hybrid."""
    disks: dict[str, str | None]
    """Backup mode of each disk by id; None until it is known."""
    description: str | None = None
    from_checkpoint: str | None = None
    to_checkpoint: str | None = None
    phase: str = "initializing"
    host_id: str | None = None
    snapshot_id: str | None = None
    require_consistency: bool = False
    stopped: bool = False
    creation: datetime = field(default_factory=now)
    modified: datetime = field(default_factory=now)
    finished: float | None = None
    """time.monotonic() of its end."""
    exports: dict[str, BackupExport] = field(default_factory=dict)
    """Of each disk."""
    hidden_checkpoint: int = 0
    """A fault: for so many more replies to_checkpoint_id is left out; -1: always."""


FINISHED_TRANSFER = ("finished_success", "finished_failure", "finished_cleanup")


@dataclass
class Transfer:
    id: str
    disk_id: str
    direction: str
    phase: str = "initializing"
    opening: bool = True
    """Its export and tickets are being made: until they are, none of it is taken down."""
    backup_id: str | None = None
    snapshot_image: str | None = None
    """Image id of the layer that is downloaded."""
    shallow: bool = False
    host_id: str | None = None
    wanted_host: str | None = None
    timeout_policy: str = "legacy"
    inactivity_timeout: int = 60
    format: str = "raw"
    ticket_id: str | None = None
    tickets: list[str] = field(default_factory=list)
    """All it ever had."""
    transfer_url: str | None = None
    proxy_url: str | None = None
    active: bool = False
    transferred: int = 0
    expires: float = 0.0
    """time.monotonic() when its ticket ends, as far as the engine knows."""
    finished: float | None = None
    vm_id: str | None = None
    no_renewal: bool = False
    """A fault: the engine does not renew the ticket by itself."""


@dataclass
class Job:
    id: str
    description: str
    correlation_id: str | None
    status: str = "started"
    start: datetime = field(default_factory=now)
    end: datetime | None = None


@dataclass
class Event:
    id: int
    code: int
    description: str
    severity: str = "normal"
    time: datetime = field(default_factory=now)
    correlation_id: str | None = None
    vm_id: str | None = None
    host_id: str | None = None
    origin: str = "oVirt"
    custom_id: int | None = None
