"""What is inside one restore point's directory. Loaded only when somebody looks into it, and kept for the
last few: a tree of 10,000 points must not be in memory because somebody ran find."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC
from typing import Any, Protocol

from vmfs.format.manifest import Artifact, Disk, Manifest
from vmfs.fs.content import BytesContent, Content, DiskContent, DiskReader
from vmfs.fs.entries import Children, Entry, Role
from vmfs.fs.layouts import PointLayout, disk_name, find_layout
from vmfs.fs.names import Wanted, unique
from vmfs.fs.once import OnceCache
from vmfs.volumes.facts import is_readable, volume_facts

DISKS = b"disks"
VOLUMES = b"volumes"
FILES = b"files"
POINT_JSON = b"point.json"
_KEPT_POINTS = 64


class LoadedPoint(Protocol):
    """The part of `vmfs.repo.repository.Point` that a mount needs."""

    @property
    def id(self) -> str: ...

    @property
    def manifest(self) -> Manifest: ...

    @property
    def signer(self) -> bytes: ...


class PointSource(Protocol):
    """The part of `vmfs.repo.repository.Repository` that a mount needs. Thread-safe."""

    chunk_size: int

    def load_point(self, point_id: str) -> LoadedPoint: ...

    def read_artifact(self, artifact: Artifact) -> bytes: ...

    def open_disk(self, disk: Disk) -> DiskReader: ...


@dataclass(frozen=True, slots=True)
class _Inside:
    point: LoadedPoint
    top: Children
    disks: Children
    names: tuple[bytes, ...]

    @property
    def manifest(self) -> Manifest:
        return self.point.manifest


class Points:
    """The directories below a point, and the files in them. Thread-safe; what is not at hand blocks."""

    def __init__(self, source: PointSource) -> None:
        self._source = source
        self.chunk_size = source.chunk_size
        self._points = OnceCache(self._load, _KEPT_POINTS)
        self._layouts = OnceCache(self._find_layout, _KEPT_POINTS)

    def children(self, entry: Entry, *, load: bool) -> Children | None:
        """What is in the directory. Without `load`, None unless that is known already. Raises IntegrityError
        and StoreError."""
        if entry.role in (Role.VOLUMES, Role.FILES):
            found = self.layout(entry.point) if load else self._layouts.peek(entry.point)
            if found is None:
                return None
            return _raw_files(found, entry) if entry.role is Role.VOLUMES else _file_systems(found, entry)
        inside = self._points.get(entry.point) if load else self._points.peek(entry.point)
        if inside is None:
            return None
        return inside.disks if entry.role is Role.DISKS else inside.top

    def open(self, entry: Entry) -> Content:
        """The content of a file. Raises IntegrityError and StoreError."""
        inside = self._points.get(entry.point)
        if entry.role is Role.POINT_JSON:
            return BytesContent(self._json(inside))
        if entry.role is Role.ARTIFACT:
            return BytesContent(self._source.read_artifact(inside.manifest.artifacts[entry.index]))
        if entry.role is Role.VOLUME:
            return self.layout(entry.point).content(entry.index)
        disk = inside.manifest.disks[entry.index]
        return DiskContent(disk_name(entry.point, disk.alias), self._source.open_disk(disk), 0, entry.size)

    def layout(self, point_id: str) -> PointLayout:
        """The volumes of a point. Raises IntegrityError and StoreError."""
        return self._layouts.get(point_id)

    def present(self, entry: Entry) -> Entry:
        """The entry as it is now: what is told of a point grows when its volumes were looked at."""
        if entry.role is not Role.POINT_JSON:
            return entry
        inside = self._points.peek(entry.point)
        if inside is None:
            return entry
        size = len(self._json(inside))
        return replace(entry, size=size, allocated=size)

    def _load(self, point_id: str) -> _Inside:
        point = self._source.load_point(point_id)
        manifest = point.manifest
        base = f"point/{point_id}"
        mtime = int(manifest.time.timestamp() * 1_000_000) * 1000
        disk_names = unique([Wanted(disk.alias, ".raw", disk.id[:8]) for disk in manifest.disks])
        disks = {
            name: Entry(f"{base}/disk/{index}", Role.DISK, mtime, disk.size, disk.allocated, point_id, index)
            for index, (name, disk) in enumerate(zip(disk_names, manifest.disks, strict=True))
        }
        text = _point_json(point, disk_names)
        top = {
            DISKS: Entry(f"{base}/disks", Role.DISKS, mtime, point=point_id),
            VOLUMES: Entry(f"{base}/volumes", Role.VOLUMES, mtime, point=point_id),
            FILES: Entry(f"{base}/files", Role.FILES, mtime, point=point_id),
            POINT_JSON: Entry(f"{base}/json", Role.POINT_JSON, mtime, len(text), len(text), point_id),
        }
        names = unique([_wanted(artifact) for artifact in manifest.artifacts], top)
        for index, (name, artifact) in enumerate(zip(names, manifest.artifacts, strict=True)):
            key = f"{base}/artifact/{index}"
            top[name] = Entry(key, Role.ARTIFACT, mtime, artifact.size, artifact.size, point_id, index)
        return _Inside(point, top, disks, tuple(disk_names))

    def _find_layout(self, point_id: str) -> PointLayout:
        disks = self._points.get(point_id).manifest.disks
        return find_layout(point_id, disks, [self._source.open_disk(disk) for disk in disks])

    def _json(self, inside: _Inside) -> bytes:
        return _point_json(inside.point, inside.names, self._layouts.peek(inside.point.id))


def _raw_files(found: PointLayout, directory: Entry) -> Children:
    return {
        name + b".raw": Entry(
            f"point/{found.point}/volume/{volume.key}",
            Role.VOLUME,
            directory.mtime_ns,
            volume.space.size,
            min(volume.space.size, found.allocated),
            found.point,
            index,
        )
        for index, (name, volume) in enumerate(zip(found.names, found.volumes, strict=True))
    }


def _file_systems(found: PointLayout, directory: Entry) -> Children:
    return {
        name: Entry(
            f"point/{found.point}/files/{volume.key}",
            Role.FILESYSTEM,
            directory.mtime_ns,
            point=found.point,
            index=index,
        )
        for index, (name, volume) in enumerate(zip(found.names, found.volumes, strict=True))
        if is_readable(volume)
    }


def _volumes(found: PointLayout) -> list[dict[str, Any]]:
    listed = []
    for index, (name, volume) in enumerate(zip(found.names, found.volumes, strict=True)):
        facts = volume_facts(volume)
        facts["file"] = f"volumes/{name.decode()}.raw"
        facts["files"] = f"files/{name.decode()}" if is_readable(volume) else None
        facts["warnings"] = found.warnings_of(index)
        listed.append(facts)
    return listed


def _wanted(artifact: Artifact) -> Wanted:
    stem, dot, ending = artifact.name.rpartition(".")
    identity = artifact.id.hex()[:8] if artifact.id else "empty"
    return Wanted(stem, dot + ending, identity) if stem else Wanted(artifact.name, "", identity)


def _point_json(point: LoadedPoint, disk_names: Sequence[bytes], found: PointLayout | None = None) -> bytes:
    """The manifest for people and scripts: what `vmfs show` would say, without asking the repository.
    `volumes` is null until somebody has looked into volumes/ or files/, and what a file system warns of is
    missing until somebody has looked into it."""
    manifest = point.manifest
    tree: dict[str, Any] = {"id": point.id}
    tree |= json.loads(manifest.to_bytes())
    tree["time"] = manifest.time.astimezone(UTC).isoformat()
    tree["signer"] = point.signer.hex()
    for disk, name in zip(tree["disks"], disk_names, strict=True):
        disk["file"] = f"disks/{name.decode()}"
    tree["volumes"] = None if found is None else _volumes(found)
    tree["volume_warnings"] = [] if found is None else list(found.layout.warnings)
    return json.dumps(tree, indent=2, ensure_ascii=False).encode() + b"\n"
