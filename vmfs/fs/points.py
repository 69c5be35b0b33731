"""What is inside one restore point's directory. Loaded only when somebody looks into it, and kept for the
last few: a tree of 10,000 points must not be in memory because somebody ran find."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC
from typing import Any, Protocol

from vmfs.errors import IntegrityError, StoreError, VmfsError
from vmfs.format.manifest import Artifact, Disk, Manifest
from vmfs.fs.content import BytesContent, Content, DiskContent, DiskReader
from vmfs.fs.entries import Children, Entry, Role
from vmfs.fs.log import warn_once
from vmfs.fs.names import Wanted, unique
from vmfs.fs.once import OnceCache
from vmfs.volumes import parse

DISKS = b"disks"
VOLUMES = b"volumes"
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
    manifest: Manifest
    top: Children
    disks: Children
    names: tuple[bytes, ...]
    json: bytes


class Points:
    """The directories below a point, and the files in them. Thread-safe; what is not at hand blocks."""

    def __init__(self, source: PointSource) -> None:
        self._source = source
        self._points = OnceCache(self._load, _KEPT_POINTS)
        self._volumes = OnceCache(self._load_volumes, _KEPT_POINTS)

    def children(self, entry: Entry, *, load: bool) -> Children | None:
        """What is in the directory. Without `load`, None unless that is known already. Raises IntegrityError
        and StoreError."""
        if entry.role is Role.VOLUMES:
            return self._volumes.get(entry.point) if load else self._volumes.peek(entry.point)
        inside = self._points.get(entry.point) if load else self._points.peek(entry.point)
        if inside is None:
            return None
        return inside.disks if entry.role is Role.DISKS else inside.top

    def open(self, entry: Entry) -> Content:
        """The content of a file. Raises IntegrityError and StoreError."""
        inside = self._points.get(entry.point)
        if entry.role is Role.POINT_JSON:
            return BytesContent(inside.json)
        if entry.role is Role.ARTIFACT:
            return BytesContent(self._source.read_artifact(inside.manifest.artifacts[entry.index]))
        disk = inside.manifest.disks[entry.index]
        label = f"point {entry.point}, disk {disk.alias}"
        return DiskContent(label, self._source.open_disk(disk), entry.start, entry.size)

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
            POINT_JSON: Entry(f"{base}/json", Role.POINT_JSON, mtime, len(text), len(text), point_id),
        }
        names = unique([_wanted(artifact) for artifact in manifest.artifacts], top)
        for index, (name, artifact) in enumerate(zip(names, manifest.artifacts, strict=True)):
            key = f"{base}/artifact/{index}"
            top[name] = Entry(key, Role.ARTIFACT, mtime, artifact.size, artifact.size, point_id, index)
        return _Inside(manifest, top, disks, tuple(disk_names), text)

    def _load_volumes(self, point_id: str) -> Children:
        inside = self._points.get(point_id)
        mtime = inside.top[VOLUMES].mtime_ns
        entries: list[Entry] = []
        wanted: list[Wanted] = []
        failed: list[VmfsError] = []
        for index, disk in enumerate(inside.manifest.disks):
            reader = self._source.open_disk(disk)
            try:
                table = parse(reader.read, disk.size, disk.block_size)
            except (IntegrityError, StoreError) as error:
                warn_once(
                    f"point {point_id}, disk {disk.alias}: no volumes, its table cannot be read: {error}"
                )
                failed.append(error)
                continue
            for warning in table.warnings:
                warn_once(f"point {point_id}, disk {disk.alias}: {warning}")
            for volume in table.volumes:
                key = f"point/{point_id}/volume/{index}/{volume.number}"
                allocated = min(volume.length, disk.allocated)
                entries.append(
                    Entry(key, Role.VOLUME, mtime, volume.length, allocated, point_id, index, volume.start)
                )
                wanted.append(Wanted(disk.alias, f"-{volume.name}.raw", disk.id[:8]))
        if failed and not entries:
            raise failed[0]
        return dict(zip(unique(wanted), entries, strict=True))


def _wanted(artifact: Artifact) -> Wanted:
    stem, dot, ending = artifact.name.rpartition(".")
    identity = artifact.id.hex()[:8] if artifact.id else "empty"
    return Wanted(stem, dot + ending, identity) if stem else Wanted(artifact.name, "", identity)


def _point_json(point: LoadedPoint, disk_names: list[bytes]) -> bytes:
    """The manifest for people and scripts: what `vmfs show` would say, without asking the repository."""
    manifest = point.manifest
    tree: dict[str, Any] = {"id": point.id}
    tree |= json.loads(manifest.to_bytes())
    tree["time"] = manifest.time.astimezone(UTC).isoformat()
    tree["signer"] = point.signer.hex()
    for disk, name in zip(tree["disks"], disk_names, strict=True):
        disk["file"] = f"disks/{name.decode()}"
    return json.dumps(tree, indent=2, ensure_ascii=False).encode() + b"\n"
