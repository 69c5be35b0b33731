"""Copying files and trees out of a guest into a directory of this machine."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from vmfs.errors import VmfsError
from vmfs.recovery.destination import Placing, enter_directory, open_below
from vmfs.recovery.reading import SMALL, data_runs, pieces
from vmfs.volumes.files.client import GuestError
from vmfs.volumes.tree import File, Tree

_FATAL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EROFS))
_FOR_ROOT = (b"security.", b"trusted.")
_SET_ID = stat.S_ISUID | stat.S_ISGID
_DEVICES = (stat.S_IFCHR, stat.S_IFBLK)
_NODES = (*_DEVICES, stat.S_IFIFO, stat.S_IFSOCK)


@dataclass(slots=True)
class Copied:
    """What was copied. `bytes` were read and written; `unkept` counts extended attributes that the target did
    not take, by their names' first part."""

    files: int = 0
    directories: int = 0
    links: int = 0
    bytes: int = 0
    unkept: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """`archive` keeps owners (as root), modes, times, links and extended attributes, and makes devices (as
    root); `force` replaces files."""

    archive: bool
    force: bool


class Copier:
    """Copies into the open directory `top`. What cannot be copied is told to `problem` with its path, and the
    rest goes on. Raises VmfsError when the target takes no more."""

    def __init__(
        self,
        top: int,
        how: How,
        problem: Callable[[bytes, VmfsError], None],
        progress: Callable[[int], None] = lambda done: None,
    ) -> None:
        """`progress` is told the bytes copied so far."""
        self.done = Copied()
        self._top = top
        self._how = how
        self._problem = problem
        self._progress = progress
        self._is_root = os.geteuid() == 0
        self._umask = os.umask(0)
        os.umask(self._umask)
        # Where the first name of a file with several is, below `top`; and which file of ours that is.
        self._names: dict[tuple[int, int], tuple[tuple[bytes, ...], int]] = {}

    def copy(self, tree: Tree, start: File, name: bytes) -> None:
        """`start`, and all below it if it is a directory, as `name`."""
        open_directories: list[int] = [self._top]
        skipped: tuple[bytes, ...] | None = None
        try:
            for step in tree.walk(start):
                parts = (name, *step.parts)
                if skipped is not None and parts[: len(skipped)] == skipped:
                    continue
                skipped = None
                if step.problem or step.file is None:
                    self._problem(tree.place_of(start, step), VmfsError(step.problem or "it cannot be read"))
                    continue
                try:
                    if step.leaving:
                        self._leave(open_directories.pop(), step.file)
                    elif step.file.is_directory:
                        entered, _ = enter_directory(open_directories[-1], parts[-1])
                        open_directories.append(entered)
                        self.done.directories += 1
                    else:
                        self._copy_file(open_directories[-1], parts, step.file)
                except OSError as error:
                    self._failed(tree.place_of(start, step), error)
                    if step.file.is_directory and not step.leaving:
                        skipped = parts
                except GuestError as error:
                    self._problem(tree.place_of(start, step), error)
        finally:
            for directory in open_directories[1:]:
                os.close(directory)

    def _failed(self, path: bytes, error: OSError) -> None:
        if error.errno in _FATAL:
            raise VmfsError(f"cannot write any more: {error.strerror}") from error
        self._problem(path, VmfsError(error.strerror or str(error)))

    def _copy_file(self, parent: int, parts: tuple[bytes, ...], file: File) -> None:
        kind = stat.S_IFMT(file.stat.mode)
        shared = self._how.archive and file.stat.links > 1
        if shared and self._link(parent, parts, file):
            return
        with Placing(parent, parts[-1], replace=self._how.force) as placing:
            if file.is_regular:
                self._write_regular(placing, file)
            elif file.is_link:
                target = file.system.readlink(file.stat.node)
                os.symlink(target, placing.temporary, dir_fd=parent)
                self._keep_by_name(placing, file)
            elif kind in _NODES and self._how.archive:
                self._make_node(placing, file, kind)
            else:
                raise GuestError(
                    errno.EOPNOTSUPP, "it is no file, directory or link; left out without --archive"
                )
            placing.publish()
        if file.is_link:
            self.done.links += 1
        else:
            self.done.files += 1
        if shared:
            made = os.stat(parts[-1], dir_fd=parent, follow_symlinks=False)
            self._names[file.identity] = (parts, made.st_ino)

    def _link(self, parent: int, parts: tuple[bytes, ...], file: File) -> bool:
        """Another name for what was copied already; False where it was not, or cannot have one."""
        known = self._names.get(file.identity)
        if known is None:
            return False
        (*above, first), inode = known
        try:
            directory = open_below(self._top, tuple(above))
        except OSError:
            return False
        try:
            # Somebody may have put another file there meanwhile.
            if os.stat(first, dir_fd=directory, follow_symlinks=False).st_ino != inode:
                return False
            with Placing(parent, parts[-1], replace=self._how.force) as placing:
                os.link(
                    first, placing.temporary, src_dir_fd=directory, dst_dir_fd=parent, follow_symlinks=False
                )
                placing.publish()
        except FileExistsError:
            raise
        except OSError:
            return False
        finally:
            os.close(directory)
        self.done.files += 1
        return True

    def _write_regular(self, placing: Placing, file: File) -> None:
        fd = placing.open()
        try:
            size = file.stat.size
            for offset, data in pieces(file, data_runs(file)):
                if size > SMALL or data.strip(b"\0"):
                    _write_at(fd, offset, data)
                self.done.bytes += len(data)
                self._progress(self.done.bytes)
            os.ftruncate(fd, size)
            self._keep(fd, file)
        finally:
            os.close(fd)

    def _make_node(self, placing: Placing, file: File, kind: int) -> None:
        if kind in _DEVICES and not self._is_root:
            raise GuestError(errno.EPERM, "devices can be made by root only; left out")
        os.mknod(placing.temporary, kind | 0o600, file.stat.device, dir_fd=placing.parent)
        self._keep_by_name(placing, file)
        # fchmodat follows links, and this is none: it was made under a name that nobody knows.
        mode = stat.S_IMODE(file.stat.mode)
        os.chmod(placing.temporary, mode if self._is_root else mode & ~_SET_ID, dir_fd=placing.parent)

    def _leave(self, fd: int, file: File) -> None:
        """All of a directory is there: it gets its mode and times."""
        try:
            self._keep(fd, file)
        finally:
            os.close(fd)

    def _keep(self, fd: int, file: File) -> None:
        """Owner, mode, attributes and times of a file or directory that is open. The order matters: a change
        of owner takes set-id bits and capabilities away, and an ACL changes the mode."""
        mode = stat.S_IMODE(file.stat.mode)
        if not self._how.archive:
            os.fchmod(fd, mode & 0o777 & ~self._umask)
            return
        owned = False
        if self._is_root:
            with suppress(OSError, OverflowError):
                os.fchown(fd, file.stat.uid, file.stat.gid)
                owned = True
        # What would run as its owner must not run as somebody else.
        os.fchmod(fd, mode if owned else mode & ~_SET_ID)
        self._keep_attributes(f"/proc/self/fd/{fd}", file, follow=True)
        with suppress(OverflowError):
            os.utime(fd, ns=(file.stat.atime, file.stat.mtime))

    def _keep_by_name(self, placing: Placing, file: File) -> None:
        """The same, but for the mode, of what cannot be opened."""
        if not self._how.archive:
            return
        name, parent = placing.temporary, placing.parent
        if self._is_root:
            with suppress(OSError, OverflowError):
                os.chown(name, file.stat.uid, file.stat.gid, dir_fd=parent, follow_symlinks=False)
        self._keep_attributes(f"/proc/self/fd/{parent}/{name.decode()}", file, follow=False)
        with suppress(OverflowError):
            os.utime(name, ns=(file.stat.atime, file.stat.mtime), dir_fd=parent, follow_symlinks=False)

    def _keep_attributes(self, path: str, file: File, *, follow: bool) -> None:
        for name, value in file.system.xattrs(file.stat.node).items():
            if not self._is_root and name.startswith(_FOR_ROOT):
                continue
            try:
                os.setxattr(path, name, value, follow_symlinks=follow)
            except (OSError, ValueError) as error:
                if isinstance(error, OSError) and error.errno in _FATAL - {errno.ENOSPC}:
                    raise
                kind = name.partition(b".")[0].decode(errors="backslashreplace")
                self.done.unkept[kind] = self.done.unkept.get(kind, 0) + 1


def _write_at(fd: int, offset: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        written = os.pwrite(fd, rest, offset)
        offset, rest = offset + written, rest[written:]
