"""Which files differ between two trees: those of one guest at two points."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from vmfs.errors import VmfsError
from vmfs.volumes.files.client import GuestError
from vmfs.volumes.tree import MAX_DEPTH, File, Tree, join

PIECE = 4 << 20

Kind = Literal["added", "removed", "changed"]
Problem = Callable[[bytes, VmfsError], None]


class Change(NamedTuple):
    """`before` and `after` are the file as it was and is. `what` names what changed: type, content, mode,
    owner, time, target, attributes, device."""

    kind: Kind
    path: bytes
    before: File | None
    after: File | None
    what: tuple[str, ...] = ()


class Comparison:
    """`same` says whether two file systems are known to hold the same; nothing below is looked at then but
    what is mounted there. With `contents`, files of equal size, node and times are read all the same."""

    def __init__(
        self,
        before: Tree,
        after: Tree,
        problem: Problem,
        *,
        same: Callable[[File, File], bool] = lambda before, after: False,
        contents: bool = False,
    ) -> None:
        self._trees = before, after
        self._problem = problem
        self._same = same
        self._contents = contents
        self.bytes_read = 0

    def changes(self, before: File, after: File) -> Iterator[Change]:
        """Of two files and, if they are directories, of all in them, each directory before what is in it."""
        todo: list[tuple[File, File, int]] = [(before, after, 0)]
        entered = set()
        while todo:
            old, new, depth = todo.pop()
            if what := self._changed(old, new):
                yield Change("changed", new.path, old, new, what)
            if not (old.is_directory and new.is_directory):
                continue
            if (new.identity, old.identity) in entered or depth > MAX_DEPTH:
                self._problem(
                    new.path, VmfsError("this directory is in another place as well; left out here")
                )
                continue
            entered.add((new.identity, old.identity))
            if old.stat.node == new.stat.node and self._same(old, new):
                todo += [(*pair, depth + 1) for pair in self._mounted_below(old, new)]
                continue
            pairs = []
            for name, one, other in self._entries(old, new):
                if one is not None and other is not None:
                    if stat.S_IFMT(one.stat.mode) == stat.S_IFMT(other.stat.mode):
                        pairs.append((one, other, depth + 1))
                    else:
                        yield Change("changed", join(new.path, name), one, other, ("type",))
                elif other is not None:
                    yield from self.all("added", self._trees[1], other)
                elif one is not None:
                    yield from self.all("removed", self._trees[0], one)
            todo += reversed(pairs)

    def _entries(self, old: File, new: File) -> Iterator[tuple[bytes, File | None, File | None]]:
        listed: list[dict[bytes, File | None]] = []
        for tree, directory in zip(self._trees, (old, new), strict=True):
            found: dict[bytes, File | None] = {}
            try:
                for child in tree.children(directory):
                    if child.file is None:
                        self._problem(join(directory.path, child.name), VmfsError(child.problem or "?"))
                    found[child.name] = child.file
            except GuestError as error:
                self._problem(directory.path, error)
                return
            listed.append(found)
        one, other = listed
        for name in sorted(one.keys() | other.keys()):
            # What cannot be read on one side is no difference but a problem.
            if not (name in one and name in other and (one[name] is None or other[name] is None)):
                yield name, one.get(name), other.get(name)

    def all(self, kind: Kind, tree: Tree, start: File) -> Iterator[Change]:
        """A file that only one tree has, and all below it."""
        for step in tree.walk(start):
            path = b"/".join((start.path, *step.parts))
            if step.problem:
                self._problem(path, VmfsError(step.problem))
            elif step.file and not step.leaving:
                is_added = kind == "added"
                yield Change(kind, path, None if is_added else step.file, step.file if is_added else None)

    def _mounted_below(self, old: File, new: File) -> Iterator[tuple[File, File]]:
        """What is mounted below a directory, in either tree."""
        paths = {root.path for tree in self._trees for root in tree.mounts.values()}
        for path in sorted(paths, reverse=True):
            if path.startswith(new.path.rstrip(b"/") + b"/"):
                try:
                    before, after = (tree.find(path, follow=False) for tree in self._trees)
                except GuestError as error:
                    self._problem(path, error)
                    continue
                if before.system is not old.system or after.system is not new.system:
                    yield before, after

    def _changed(self, old: File, new: File) -> tuple[str, ...]:
        one, other = old.stat, new.stat
        what = []
        if old.is_regular and self._content_changed(old, new):
            what.append("content")
        if old.is_link:
            try:
                if old.system.readlink(one.node) != new.system.readlink(other.node):
                    what.append("target")
            except GuestError as error:
                self._problem(new.path, error)
        if one.mode != other.mode:
            what.append("mode")
        if (one.uid, one.gid) != (other.uid, other.gid):
            what.append("owner")
        if one.device != other.device:
            what.append("device")
        # A directory's time changes with its entries, which are told by themselves.
        if one.mtime != other.mtime and not old.is_directory:
            what.append("time")
        if one.ctime != other.ctime and self._attributes_changed(old, new):
            what.append("attributes")
        return tuple(what)

    def _attributes_changed(self, old: File, new: File) -> bool:
        try:
            return old.system.xattrs(old.stat.node) != new.system.xattrs(new.stat.node)
        except GuestError as error:
            self._problem(new.path, error)
            return False

    def _content_changed(self, old: File, new: File) -> bool:
        one, other = old.stat, new.stat
        if one.size != other.size:
            return True
        if not self._contents and (one.mtime, one.ctime, one.node) == (other.mtime, other.ctime, other.node):
            return False
        offset = 0
        try:
            while offset < one.size:
                pieces = [file.system.read(file.stat.node, offset, PIECE) for file in (old, new)]
                if pieces[0] != pieces[1]:
                    return True
                if not pieces[0]:
                    break
                offset += len(pieces[0])
                self.bytes_read += 2 * len(pieces[0])
        except GuestError as error:
            self._problem(new.path, error)
        return False
