"""What the fault tests share: small repositories, checks, and a medium that forgets what is not synced."""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import pytest
from conftest import COST, SECRET

from ingest.pipeline import PlannedDisk, ingest
from ingest.sources.file import FileSource
from vmfs.errors import IntegrityError, VmfsError
from vmfs.format.manifest import Disk, Vm
from vmfs.repo import names
from vmfs.repo.index import read_directory
from vmfs.repo.repository import Point, Repository
from vmfs.repo.secret import Secret
from vmfs.repo.verify import verify
from vmfs.store import LocalStore
from vmfs.store.posix import Buffer, Posix

CHUNK = 64 << 10

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")

Contents = Mapping[str, Mapping[str, bytes]]
"""What each point's disks hold, by point id and alias."""


def text_chunk(seed: int) -> bytes:
    """A chunk that compresses to a few hundred bytes."""
    return bytes([(seed * 37 + 11) % 255 + 1]) * (CHUNK - 8) + seed.to_bytes(8, "little")


def noise_chunk(seed: int) -> bytes:
    """A chunk that does not compress."""
    return random.Random(seed).randbytes(CHUNK)  # noqa: S311


def write_disk(path: Path, content: bytes) -> Path:
    """A raw disk image; chunks of zeros become holes."""
    with path.open("wb") as file:
        for start in range(0, len(content), CHUNK):
            piece = content[start : start + CHUNK]
            if any(piece):
                file.seek(start)
                file.write(piece)
        file.truncate(len(content))
    return path


def back_up(
    repository: Repository,
    vm: str,
    disks: Mapping[str, Path],
    *,
    artifacts: Mapping[str, bytes] | None = None,
    workers: int = 2,
) -> Point:
    """A point of the raw files given by alias."""
    with ExitStack() as opened:
        planned = []
        for alias, path in disks.items():
            source = FileSource(path)
            opened.callback(source.close)
            planned.append(PlannedDisk(alias, source))
        return ingest(repository, Vm(name=vm, id=vm), planned, artifacts=artifacts, workers=workers)


def create_at(root: Path, cache: Path, *, posix: Posix | None = None, chunk_size: int = CHUNK) -> Repository:
    return Repository.create(
        LocalStore(root, posix), SECRET, chunk_size=chunk_size, cost=COST, cache_root=cache
    )


def open_at(root: Path, cache: Path, *, posix: Posix | None = None, secret: Secret = SECRET) -> Repository:
    return Repository.open(LocalStore(root, posix), secret, cache_root=cache)


def read_disk(repository: Repository, disk: Disk) -> bytes:
    return repository.open_disk(disk).read(0, disk.size)


def check_points(repository: Repository, contents: Contents) -> None:
    """The repository has exactly these points, and each is byte-equal."""
    assert repository.point_ids() == sorted(contents)
    for point_id, disks in contents.items():
        check_point(repository, point_id, disks)


def check_point(repository: Repository, point_id: str, disks: Mapping[str, bytes]) -> None:
    manifest = repository.load_point(point_id).manifest
    assert {disk.alias for disk in manifest.disks} == set(disks)
    for disk in manifest.disks:
        assert read_disk(repository, disk) == disks[disk.alias], f"{point_id}, {disk.alias}"


def check_sound(repository: Repository) -> None:
    report = verify(repository, data=1.0)
    assert report.sound, (report.findings, report.hits)


def stored_twice(repository: Repository) -> list[str]:
    """Blobs that lie in more than one pack: what a retry stored again although it was durable."""
    counts: Counter[bytes] = Counter()
    for name, size in repository.store.list(names.PACKS):
        counts.update(entry.id for entry in read_directory(repository.store, name, size, repository.keys))
    return [blob_id.hex() for blob_id, count in counts.items() if count > 1]


def temporary_files(root: Path) -> list[Path]:
    return list(root.rglob(".tmp-*"))


def copy_tree(source: Path, target: Path) -> Path:
    """A copy that shares the files' bytes: objects are never changed in place."""
    shutil.copytree(source, target, copy_function=os.link)
    return target


_NEED_SPACE = ("mkdir", "create", "write", "link")


class Killed(BaseException):
    """The process ends here; nothing that comes after happens."""


@dataclass(slots=True)
class _File:
    """`written` is what the process wrote, `synced` how much of it is on the medium for sure. A file that was
    there before has its bytes at `origin` and is whole."""

    written: bytearray = field(default_factory=bytearray)
    synced: int | None = None
    origin: Path | None = None


@dataclass(slots=True)
class _Directory:
    """`live` is what programs see, `durable` what is on the medium for sure, `pending` what lies between."""

    live: dict[str, _File | _Directory] = field(default_factory=dict)
    durable: dict[str, _File | _Directory] = field(default_factory=dict)
    pending: list[tuple[str, _File | _Directory | None]] = field(default_factory=list)

    def change(self, name: str, entry: _File | _Directory | None) -> None:
        if entry is None:
            self.live.pop(name, None)
        else:
            self.live[name] = entry
        self.pending.append((name, entry))

    def sync(self) -> None:
        self.durable = dict(self.live)
        self.pending.clear()


class Medium:
    """A disk with a volatile cache, below the directory `top`: POSIX promises no more than this models.

    A file's bytes are there for sure once it is synced, a directory's entries once the directory is, in both
    cases whatever else is; a change that was not synced may be there or not.
    """

    def __init__(self, top: Path) -> None:
        """What is below `top` now is durable. It must not be changed but through a CrashPosix."""
        self.top = top
        self._root = self._scan(top)

    def _scan(self, path: Path) -> _Directory:
        directory = _Directory()
        for entry in os.scandir(path):
            inner = Path(entry.path)
            directory.live[entry.name] = self._scan(inner) if entry.is_dir() else _File(origin=inner)
        directory.sync()
        return directory

    def directory(self, path: Path) -> _Directory:
        found = self._root
        for part in path.relative_to(self.top).parts:
            inner = found.live[part]
            assert isinstance(inner, _Directory)
            found = inner
        return found

    def cut_power(self, target: Path, chance: random.Random | None = None) -> Path:
        """Make at `target` what a machine would find after a power cut now: nothing that was not synced, or
        with `chance` any part of it."""
        self._lay_out(self._root, target, chance)
        return target

    def _lay_out(self, directory: _Directory, target: Path, chance: random.Random | None) -> None:
        target.mkdir()
        entries = dict(directory.durable)
        for name, change in directory.pending:
            if chance is None or chance.random() < 0.5:
                continue
            if change is None:
                entries.pop(name, None)
            else:
                entries[name] = change
        for name, entry in entries.items():
            if isinstance(entry, _Directory):
                self._lay_out(entry, target / name, chance)
            elif entry.origin:
                os.link(entry.origin, target / name)
            else:
                (target / name).write_bytes(_after_cut(entry, chance))


def _after_cut(file: _File, chance: random.Random | None) -> bytes:
    whole = bytes(file.written)
    if file.synced == len(whole):
        return whole
    kept = whole[: file.synced or 0]
    rest = len(whole) - len(kept)
    if chance is None:
        return kept
    return kept + chance.choice(
        (b"", bytes(rest), chance.randbytes(rest), whole[-rest:], whole[-rest:][: rest // 2])
    )


@dataclass(slots=True)
class Fault:
    """What goes wrong at operation number `at`, counted from 0 (`only` those of one sort, if given).

    `kind`: "EIO" or "ENOSPC", the call fails with nothing done; "kill", the process ends before it; "tear",
    a write stops half-way with ENOSPC; "tear-kill", the process ends half-way. With `lasting`, what failed
    goes on failing: with ENOSPC all that needs space, with EIO everything. With `killed_after`, the process
    ends so many operations later.
    """

    kind: str
    at: int
    only: str | None = None
    lasting: bool = False
    killed_after: int | None = None
    hit: bool = False
    operation: str = ""


class CrashPosix(Posix):
    """The system calls of a store on a Medium, one of which goes wrong. Syncing costs nothing here: what
    would be lost without it is for the Medium to tell."""

    def __init__(self, medium: Medium, fault: Fault | None = None) -> None:
        self._medium = medium
        self._fault = fault
        self._lock = Lock()
        self._dead = False
        self._open: dict[int, _File] = {}
        self._since = 0
        self.count = 0

    def mkdir(self, path: Path) -> None:
        with self._lock:
            self._step("mkdir")
            super().mkdir(path)
            parent = self._medium.directory(path.parent)
            if path.name not in parent.live:
                parent.change(path.name, _Directory())

    def create(self, path: Path) -> int:
        with self._lock:
            self._step("create")
            fd = super().create(path)
            self._open[fd] = _File()
            self._medium.directory(path.parent).change(path.name, self._open[fd])
            return fd

    def write(self, fd: int, parts: Sequence[Buffer]) -> None:
        data = b"".join(bytes(part) for part in parts)
        with self._lock:
            try:
                self._step("write")
            except _Torn as torn:
                self._write(fd, data[: len(data) // 2])
                raise torn.then from None
            self._write(fd, data)

    def fsync(self, fd: int) -> None:
        with self._lock:
            self._step("fsync")
            self._open[fd].synced = len(self._open[fd].written)

    def link(self, source: Path, target: Path) -> None:
        with self._lock:
            self._step("link")
            super().link(source, target)
            file = self._medium.directory(source.parent).live[source.name]
            self._medium.directory(target.parent).change(target.name, file)

    def unlink(self, path: Path) -> None:
        with self._lock:
            self._step("unlink")
            file = self._medium.directory(path.parent).live.get(path.name)
            if isinstance(file, _File) and file.origin:
                file.written, file.origin = bytearray(path.read_bytes()), None
                file.synced = len(file.written)
            super().unlink(path)
            self._medium.directory(path.parent).change(path.name, None)

    def fsync_directory(self, path: Path) -> None:
        with self._lock:
            self._step("fsync_directory")
            self._medium.directory(path).sync()

    def _write(self, fd: int, data: bytes) -> None:
        super().write(fd, [data])
        self._open[fd].written += data

    def _step(self, operation: str) -> None:
        if self._dead:
            raise Killed
        fault = self._fault
        if fault is None:
            return
        if fault.hit:
            self._step_after(fault, operation)
            return
        if fault.only not in (None, operation):
            return
        number = self.count
        self.count += 1
        if number != fault.at:
            return
        fault.hit = True
        fault.operation = operation
        self._dead = fault.kind in ("kill", "tear-kill")
        if fault.kind.startswith("tear"):
            raise _Torn(Killed() if self._dead else _os_error("ENOSPC"))
        raise Killed if self._dead else _os_error(fault.kind)

    def _step_after(self, fault: Fault, operation: str) -> None:
        self._since += 1
        if self._since == fault.killed_after:
            self._dead = True
            raise Killed
        if fault.lasting and (fault.kind == "EIO" or operation in _NEED_SPACE):
            raise _os_error(fault.kind)


class _Torn(Exception):
    def __init__(self, then: BaseException) -> None:
        self.then = then


def _os_error(name: str) -> OSError:
    number = getattr(errno, name)
    return OSError(number, os.strerror(number))


def fails_clearly(action: Callable[[], object]) -> VmfsError | None:
    """The error that the action ends with, None if it ends well; only errors meant for users may come."""
    failure = None
    try:
        action()
    except VmfsError as error:
        failure = error
    assert failure is None or is_clear(failure)
    return failure


def is_clear(error: VmfsError) -> bool:
    """Whether the message is one line."""
    return len(str(error).splitlines()) == 1


def unreadable_chunks(repository: Repository, disk: Disk, truth: bytes) -> list[int]:
    """Numbers of the chunks that cannot be read. Every other one must be right."""
    reader = repository.open_disk(disk)
    bad: list[int] = []

    def read(start: int, size: int) -> None:
        try:
            right = truth.startswith(reader.read(start, size), start)
        except IntegrityError as error:
            right = is_clear(error)
            if size == CHUNK:
                bad.append(start // CHUNK)
            else:
                for piece in range(start, min(start + size, disk.size), CHUNK):
                    read(piece, CHUNK)
        assert right, f"wrong bytes or an unclear error in the {size} bytes from {start}"

    for start in range(0, disk.size, 16 * CHUNK):
        read(start, 16 * CHUNK)
    return bad
