"""File systems under one root, as a guest mounts them: finding a file by its path, and walking.

Symbolic links are resolved inside the tree, absolute ones from its root, never from that of this machine.
Nothing of a file system is believed: names that could lead out of a directory are no names, a walk enters
each directory once, and both links and depth are bounded.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from vmfs.volumes.files.client import FileSystem, GuestError
from vmfs.volumes.files.worker.model import Stat

MAX_LINKS = 40
MAX_TARGET = 4096
MAX_DEPTH = 500
_FOLDED = frozenset(("ntfs", "vfat", "exfat"))


@dataclass(frozen=True, slots=True)
class File:
    """A file of a guest. `path` is where it was found, absolute."""

    system: FileSystem = field(repr=False)
    stat: Stat
    path: bytes

    @property
    def identity(self) -> tuple[int, int]:
        """The same for all names of one file."""
        return id(self.system), self.stat.node

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.stat.mode)

    @property
    def is_regular(self) -> bool:
        return stat.S_ISREG(self.stat.mode)

    @property
    def is_link(self) -> bool:
        return stat.S_ISLNK(self.stat.mode)


class Child(NamedTuple):
    """An entry of a directory; without `file` it cannot be read, and `problem` says why."""

    name: bytes
    file: File | None
    problem: str | None = None


class Step(NamedTuple):
    """A step of a walk. `parts` is the path below where the walk began. Directories come twice: before what
    is in them and, `leaving`, after. What cannot be read has no `file` but a `problem`; a directory that
    could not be listed comes with both before it is left."""

    parts: tuple[bytes, ...]
    file: File | None
    problem: str | None = None
    leaving: bool = False


class Tree:
    """`mounts` are the roots of file systems by the directories that they cover (`File.identity`); `prefix`
    is what a person puts before a path in it: `vda-p1:`, `D:`, or nothing."""

    def __init__(
        self, root: File, mounts: Mapping[tuple[int, int], File] | None = None, *, prefix: bytes = b""
    ) -> None:
        self.root = root
        self.prefix = prefix
        self.mounts = dict(mounts or {})
        self.closed: dict[tuple[int, int], GuestError] = {}
        """Directories over which a file system is mounted that cannot be read, and why: what lies under them
        would pass for its files."""

    def find(self, path: bytes, *, follow: bool = True) -> File:
        """The file at a path, which is taken from the root in any case; `follow` is for a link in its last
        part, those before are followed always. Raises GuestError."""
        return self.trail(path, follow=follow)[-1]

    def trail(self, path: bytes, *, follow: bool = True) -> list[File]:
        """All on the way from the root to the file, with links resolved. Raises GuestError."""
        trail = [self.root]
        todo = list(reversed(path.split(b"/")))
        links = 0
        while todo:
            name = todo.pop()
            here = trail[-1]
            if not here.is_directory:
                raise GuestError(errno.ENOTDIR, f"{show(self.prefix + here.path)} is no directory")
            if name in (b"", b"."):
                continue
            if name == b"..":
                if len(trail) > 1:
                    trail.pop()
                continue
            file = self._lookup(here, name)
            if file.is_link and (follow or any(todo)):
                links += 1
                if links > MAX_LINKS:
                    raise GuestError(errno.ELOOP, f"{show(self.prefix + file.path)}: too many symbolic links")
                target = file.system.readlink(file.stat.node)
                if len(target) > MAX_TARGET:
                    raise GuestError(
                        errno.ENAMETOOLONG,
                        f"{show(self.prefix + file.path)}: its target is too long for a path",
                    )
                if target.startswith(b"/"):
                    del trail[1:]
                todo.extend(reversed(target.split(b"/")))
                continue
            trail.append(file)
        return trail

    def children(self, directory: File) -> Iterator[Child]:
        """By name. Raises GuestError when it cannot be listed."""
        self._check(directory)
        for found in sorted(directory.system.scan(directory.stat.node), key=lambda found: found.name):
            name = found.name
            if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
                yield Child(name, None, "that is no file name")
            elif found.stat is None:
                yield Child(name, None, found.problem or "it cannot be read")
            else:
                file = File(directory.system, found.stat, join(directory.path, name))
                yield Child(name, self._covered(file))

    def walk(self, start: File) -> Iterator[Step]:
        """`start`, and all below it if it is a directory. Raises nothing of the guest's."""
        entered: set[tuple[int, int]] = set()
        yield Step((), start)
        if not start.is_directory:
            return
        entered.add(start.identity)
        parts: tuple[bytes, ...] = ()
        levels = [(parts, start, self._listed(parts, start))]
        while levels:
            parts, directory, steps = levels[-1]
            step = next(steps, None)
            if step is None:
                levels.pop()
                yield Step(parts, directory, leaving=True)
                continue
            file = step.file
            if file is None or not file.is_directory or step.problem:
                yield step
                continue
            if file.identity in entered:
                yield Step(step.parts, None, "this directory is in another place as well; left out here")
            elif len(levels) >= MAX_DEPTH:
                yield Step(step.parts, None, f"more than {MAX_DEPTH} directories deep; left out")
            else:
                entered.add(file.identity)
                yield step
                levels.append((step.parts, file, self._listed(step.parts, file)))

    def place_of(self, start: File, step: Step) -> bytes:
        """Where a step of a walk is, for a person."""
        return self.prefix + (b"/".join((start.path.rstrip(b"/"), *step.parts)) or b"/")

    def _listed(self, parts: tuple[bytes, ...], directory: File) -> Iterator[Step]:
        try:
            for child in self.children(directory):
                yield Step((*parts, child.name), child.file, child.problem)
        except GuestError as error:
            yield Step(parts, directory, f"its files cannot be listed: {error}")

    def _lookup(self, directory: File, name: bytes) -> File:
        self._check(directory)
        system = directory.system
        path = join(directory.path, name)
        try:
            found = system.lookup(directory.stat.node, name)
        except GuestError as error:
            if error.errno != errno.ENOENT:
                raise
            other = self._other_case(directory, name) if system.type in _FOLDED else None
            if other is None:
                raise GuestError(errno.ENOENT, f"there is no {show(path)}") from None
            found, path = other.stat, other.path
        return self._covered(File(system, found, path))

    def _other_case(self, directory: File, name: bytes) -> File | None:
        wanted = _fold(name)
        for found in directory.system.scan(directory.stat.node):
            if found.stat is not None and _fold(found.name) == wanted:
                return File(directory.system, found.stat, join(directory.path, found.name))
        return None

    def _check(self, directory: File) -> None:
        if error := self.closed.get(directory.identity):
            raise error

    def _covered(self, file: File) -> File:
        if file.is_directory and (root := self.mounts.get(file.identity)):
            return File(root.system, root.stat, file.path)
        return file


def join(directory: bytes, name: bytes) -> bytes:
    return directory.rstrip(b"/") + b"/" + name


def show(path: bytes) -> str:
    """For a person."""
    return path.decode(errors="backslashreplace")


def _fold(name: bytes) -> str:
    return name.decode(errors="surrogateescape").casefold()
