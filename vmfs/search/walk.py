"""Walking a guest's file system for its names, by the worker that reads it. What it says is not believed:
names that cannot be are told and left out, and each directory is entered once."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from vmfs.format.filelist import MAX_ID, MAX_PATH, MAX_SIZE, Entry, to_text, valid_name
from vmfs.repo.filelists import MAX_PROBLEMS, Problem
from vmfs.volumes.files.client import FileSystem, Found, GuestError, Stat

MAX_ENTRIES = 50_000_000
"""Of one volume. A file system of more is hostile, or beyond what a list is good for."""
_STEP = 10_000
_SHOWN = 500
"""Characters of a path or of a reason that are kept in a note."""


@dataclass(slots=True)
class Walk:
    """A walk over one file system. Iterated once, it gives the entries, each directory's together and by
    name; then the rest is known. `prefixes` are the paths of the directories in `marked`, which has their
    nodes."""

    filesystem: FileSystem
    marked: frozenset[int] = frozenset()
    progress: Callable[[int], None] = lambda _: None
    """Told the number of entries so far, now and then."""
    entries: int = 0
    problem_count: int = 0
    problems: list[Problem] = field(default_factory=list)
    prefixes: dict[int, bytes] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Entry]:
        """Raises GuestError when not even the root can be read."""
        root = self.filesystem.root()
        entered = {root.node}
        self._mark(root.node, b"")
        todo: list[tuple[bytes, int]] = [(b"", root.node)]
        while todo:
            path, node = todo.pop()
            below: list[tuple[bytes, int]] = []
            for name, found in self._listed(path, node).items():
                whole = path + b"/" + name if path else name
                if found.stat is None:
                    self.tell(whole, found.problem or "it cannot be read")
                elif stat.S_ISDIR(found.stat.mode & MAX_ID):
                    if found.stat.node in entered:
                        self.tell(whole, "this directory is in another place as well; left out here")
                    elif len(whole) > MAX_PATH:
                        self.tell(whole, "its path is too long; what is in it is left out")
                    else:
                        entered.add(found.stat.node)
                        self._mark(found.stat.node, whole)
                        below.append((whole, found.stat.node))
                self.entries += 1
                if self.entries % _STEP == 0:
                    self.progress(self.entries)
                yield _entry(path, name, found.stat)
            if self.entries > MAX_ENTRIES and (todo or below):
                self.tell(path, f"there are more than {MAX_ENTRIES} files; the list ends here")
                break
            todo += reversed(below)
        self.progress(self.entries)

    def tell(self, path: bytes, problem: str) -> None:
        self.problem_count += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(Problem("/" + to_text(path)[:_SHOWN], printable_utf8(problem)[:_SHOWN]))

    def _listed(self, path: bytes, node: int) -> Mapping[bytes, Found]:
        try:
            found = sorted(self.filesystem.scan(node), key=lambda item: item.name)
        except GuestError as error:
            if not path:
                raise
            self.tell(path, f"its files cannot be listed: {error}")
            return {}
        listed: dict[bytes, Found] = {}
        for item in found:
            if not valid_name(item.name):
                self.tell(path + b"/" + item.name, "that is no file name; left out")
            elif item.name in listed:
                self.tell(
                    path + b"/" + item.name, "the directory has this name twice; the second is left out"
                )
            else:
                listed[item.name] = item
        return listed

    def _mark(self, node: int, path: bytes) -> None:
        if node in self.marked:
            self.prefixes.setdefault(node, path)


def printable_utf8(text: str) -> str:
    """The text as a note can keep it."""
    return text.encode("utf-8", "replace").decode()


def _entry(directory: bytes, name: bytes, found: Stat | None) -> Entry:
    if found is None:
        return Entry(directory, name, 0, 0, 0, 0, 0, 0)
    return Entry(
        directory,
        name,
        found.mode & MAX_ID,
        found.uid & MAX_ID,
        found.gid & MAX_ID,
        max(0, min(found.size, MAX_SIZE)),
        _time(found.mtime),
        _time(found.ctime),
    )


def _time(value: int) -> int:
    return max(-MAX_SIZE, min(value, MAX_SIZE))
