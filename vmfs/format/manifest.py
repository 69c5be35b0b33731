"""The manifest: what one restore point of one VM is. Its object is the only commit.

A manifest travels as canonical JSON (UTF-8, sorted keys, no spaces) inside a sealed
object; see docs/format.md. Ids are lower-case hex. Sizes are bytes.
"""

from __future__ import annotations

import json
import unicodedata
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from vmfs.format.errors import ContentError, UsageError

ID_SIZE = 32
SECTOR = 512
MAX_BLOCK = 1 << 20
MAX_BOOT_ORDER = (1 << 31) - 1
MAX_COUNTER = (1 << 63) - 1
MAX_NAME = 255
MAX_DISK_SIZE = 1 << 60

Consistency = Literal["crash", "filesystem", "offline"]
Mode = Literal["full", "incremental"]


def check_name(what: str, name: str) -> str:
    """The name, if it can serve as a VM, disk or artifact name: 1 to 255 bytes of UTF-8,
    no slash, no control character, not `.` or `..`. Raises UsageError otherwise."""
    shown = ascii(name if len(name) <= 40 else name[:40] + "…")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise UsageError(f"{what} {shown} is not valid UTF-8; give it another name") from None
    if not 1 <= size <= MAX_NAME:
        raise UsageError(f"{what} {shown} is {size} bytes long; use 1 to {MAX_NAME}")
    if "/" in name or name in (".", ".."):
        raise UsageError(f"{what} {shown} cannot be a file name; leave out slashes, '.' and '..'")
    if any(unicodedata.category(char) in ("Cc", "Zl", "Zp") for char in name):
        raise UsageError(f"{what} {shown} has a control character; give it another name")
    return name


@dataclass(frozen=True, slots=True, kw_only=True)
class Vm:
    """Who was backed up. `id` is the engine's id where there is an engine, else the name."""

    name: str
    id: str
    engine: str | None = None
    cluster: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """One disk of a point.

    `size` is the virtual size in bytes, `block_size` the logical block in bytes. `root` is the id of the
    map's root node, None when the whole disk reads as zeros. `allocated` is the bytes in chunks that are
    not all zeros. `full_reason` says why a disk was read in full although the run was incremental.
    `bytes_read` came from the source, `bytes_new` were not in the repository yet (plain), `bytes_stored`
    were added to it (compressed, sealed).
    """

    id: str
    alias: str
    size: int
    root: bytes | None
    allocated: int
    block_size: int = SECTOR
    bus: str | None = None
    boot_order: int | None = None
    checkpoint: str | None = None
    mode: Mode = "full"
    full_reason: str | None = None
    bytes_read: int = 0
    bytes_new: int = 0
    bytes_stored: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A small file kept beside the disks, such as `vm.ovf` or `domain.xml`. `id` names its blob; an empty
    file has none."""

    name: str
    id: bytes | None
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One restore point of one VM. `time` is UTC, when the disks' content was fixed; `parent` is the point
    whose maps an incremental started from."""

    vm: Vm
    time: datetime
    consistency: Consistency
    disks: tuple[Disk, ...]
    artifacts: tuple[Artifact, ...] = field(default=())
    parent: str | None = None
    producer: str = ""

    def disk(self, alias: str) -> Disk | None:
        """The disk of that alias, or None."""
        return next((disk for disk in self.disks if disk.alias == alias), None)

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        tree = asdict(self)
        tree["time"] = self.time.astimezone(UTC).isoformat(timespec="microseconds")
        for disk in tree["disks"]:
            disk["root"] = disk["root"].hex() if disk["root"] else None
        for artifact in tree["artifacts"]:
            artifact["id"] = artifact["id"].hex() if artifact["id"] else None
        return json.dumps(
            tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        ).encode()

    @staticmethod
    def from_bytes(data: bytes) -> Manifest:
        """Raises ContentError for anything that to_bytes would not have written: one point has one manifest,
        byte for byte, and every reader of a signed manifest understands the same by it."""
        try:
            manifest = _parse(json.loads(data))
            canonical = manifest.to_bytes() == data
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, UsageError) as error:
            raise ContentError(f"manifest makes no sense: {error}") from error
        except RecursionError:
            raise ContentError("manifest makes no sense: it nests too deep") from None
        if not canonical:
            raise ContentError("manifest makes no sense: it is not canonical JSON")
        return manifest


def _parse(tree: dict[str, Any]) -> Manifest:
    vm = Vm(**tree.pop("vm"))
    check_name("VM name", vm.name)
    _texts(vm.id)
    _texts(vm.engine, vm.cluster, none=True)
    disks = tuple(_parse_disk(disk) for disk in tree.pop("disks"))
    if len({disk.alias for disk in disks}) != len(disks):
        raise ValueError("two disks have one alias")
    artifacts = tuple(_parse_artifact(item) for item in tree.pop("artifacts"))
    if len({artifact.name for artifact in artifacts}) != len(artifacts):
        raise ValueError("two artifacts have one name")
    time = datetime.fromisoformat(tree.pop("time"))
    if time.tzinfo is None:
        raise ValueError("time has no zone")
    manifest = Manifest(vm=vm, time=time, disks=disks, artifacts=artifacts, **tree)
    if manifest.consistency not in ("crash", "filesystem", "offline"):
        raise ValueError("unknown consistency")
    _texts(manifest.producer)
    _texts(manifest.parent, none=True)
    return manifest


def _parse_disk(tree: dict[str, Any]) -> Disk:
    disk = Disk(**{**tree, "root": _parse_id(tree["root"])})
    check_name("disk alias", disk.alias)
    _texts(disk.id)
    _texts(disk.bus, disk.checkpoint, disk.full_reason, none=True)
    _bounded(disk.size)
    _bounded(disk.allocated)
    for counter in (disk.bytes_read, disk.bytes_new, disk.bytes_stored):
        _bounded(counter, 0, MAX_COUNTER)
    _bounded(disk.block_size, 1, MAX_BLOCK)
    if disk.boot_order is not None:
        _bounded(disk.boot_order, 0, MAX_BOOT_ORDER)
    if disk.mode not in ("full", "incremental"):
        raise ValueError("unknown mode")
    return disk


def _parse_artifact(tree: dict[str, Any]) -> Artifact:
    artifact = Artifact(**{**tree, "id": _parse_id(tree["id"])})
    check_name("artifact", artifact.name)
    if (_bounded(artifact.size) == 0) is not (artifact.id is None):
        raise ValueError("an artifact's size and id do not agree")
    return artifact


def _parse_id(text: str | None) -> bytes | None:
    if text is None:
        return None
    value = bytes.fromhex(text)
    if len(value) != ID_SIZE:
        raise ValueError("an id is not 32 bytes")
    return value


def _bounded(size: int, low: int = 0, high: int = MAX_DISK_SIZE) -> int:
    # bool is an int to Python, and not to JSON.
    if type(size) is not int or not low <= size <= high:
        raise ValueError("a number is out of bounds")
    return size


def _texts(*values: str | None, none: bool = False) -> None:
    if not all(isinstance(value, str) or (none and value is None) for value in values):
        raise ValueError("a text is not a text")
