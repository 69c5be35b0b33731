"""The files of a restore point as its guest saw them: from the root file system, with the others mounted
where its fstab says, or for Windows by drive letters; or those of one volume."""

from __future__ import annotations

import errno
import logging
import re
import stat
from collections.abc import Callable, Iterator
from typing import NamedTuple

from vmfs.errors import UsageError, VmfsError
from vmfs.volumes import fstab
from vmfs.volumes.files.client import FileSystem, GuestError
from vmfs.volumes.files.pool import FewWorkers
from vmfs.volumes.layout import FoundVolume, Layout
from vmfs.volumes.tree import File, Tree, show

log = logging.getLogger(__name__)

READABLE = frozenset(("ext2", "ext3", "ext4", "xfs", "btrfs", "ntfs", "vfat", "exfat", "iso9660"))
"""File systems that there is a reader for, by the names of blkid."""
_OF_LINUX_ROOTS = frozenset(("ext2", "ext3", "ext4", "xfs", "btrfs"))
_OF_WINDOWS = frozenset(("ntfs", "vfat", "exfat"))
_NO_DRIVES = frozenset(
    (
        "c12a7328-f81f-11d2-ba4b-00a0c93ec93b",  # EFI system partition
        "de94bba4-06d1-4d40-a16a-bfd50179d6ac",  # Windows recovery
        "0x27",
        "0xef",
    )
)
_MAX_SUBVOLUMES = 64
# The node of the root directory of a Btrfs subvolume, as worker/btrfs numbers them.
_TOP_LEVEL, _TREE_SHIFT, _FIRST_INODE = 5, 40, 256
_DRIVE = re.compile(r"([A-Za-z]):(?=[/\\]|$)")


class Mounted(NamedTuple):
    """A volume in its place: `target` is a path of the guest, or a drive as `D:`."""

    target: bytes
    volume: FoundVolume
    tree: Tree


class _Candidate(NamedTuple):
    """What may be the root of a Linux guest. The best is the greatest `rank`."""

    volume: FoundVolume
    root: File
    entries: list[fstab.Entry]
    rank: tuple[bool, int, int]


class Guest:
    """All of a point's files. File systems are opened when they are needed, and kept open until `close`, but
    however many volumes a guest has, few have a worker; one thread at a time."""

    def __init__(self, layout: Layout, open_volume: Callable[[FoundVolume], FileSystem]) -> None:
        """`open_volume` raises VmfsError where a volume's file system cannot be read."""
        self.layout = layout
        self.warnings: list[str] = []
        """What is worth knowing of the volumes that were opened so far; lines for a person."""
        self._open = open_volume
        self._systems: dict[str, FileSystem | VmfsError] = {}
        self._few = FewWorkers()
        self._mounts: tuple[Mounted, ...] | None = None
        self._is_windows = False

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for system in self._systems.values():
            if not isinstance(system, VmfsError):
                system.close()
        self._systems.clear()

    @property
    def mounts(self) -> tuple[Mounted, ...]:
        """Where the guest has its volumes, the root first; empty when no root was found."""
        if self._mounts is None:
            self._mounts = self._find_mounts()
        return self._mounts

    def target_of(self, tree: Tree) -> bytes | None:
        """Where the guest has a tree that `locate` gave; nowhere if a volume was named. Opens none."""
        return next((mounted.target for mounted in self._mounts or () if mounted.tree is tree), None)

    def locate(self, place: str) -> tuple[Tree, bytes]:
        """The tree and the path in it that PATH or VOLUME:PATH means; of a Windows guest also D:PATH. Raises
        UsageError when there is no such volume, and VmfsError when it cannot be read."""
        if not place.startswith("/"):
            if named := self._named_volume(place):
                volume, rest = named
                return self.tree_of(volume), _bytes(rest)
            if self.mounts and self._is_windows:
                return self._on_drive(place)
            volume_name, colon, rest = place.partition(":")
            if colon and rest.startswith("/"):
                known = ", ".join(repr(volume.name) for volume in self._readable()) or "none with files"
                raise UsageError(f"the restore point has no volume {volume_name!r}; it has {known}")
        if not self.mounts:
            names = ", ".join(f"{volume.name}:/" for volume in self._readable())
            raise UsageError(
                "no volume looks like the root of a system"
                + (f"; name one, and a path in it: {names}" if names else ", and none has files")
            )
        return self.mounts[0].tree, _bytes(place)

    def tree_of(self, volume: FoundVolume) -> Tree:
        """One volume's file system by itself. Raises VmfsError when it cannot be read."""
        return Tree(self._root_of(volume), prefix=_bytes(f"{volume.name}:"))

    def volume_of(self, file: File) -> FoundVolume:
        """Where a file that was found through here lies."""
        for volume in self.layout.volumes:
            if self._systems.get(volume.key) is file.system:
                return volume
        raise KeyError(file.path)

    def _named_volume(self, place: str) -> tuple[FoundVolume, str] | None:
        """Names may hold colons: the longest that fits wins."""
        fitting = [
            (len(name), volume)
            for volume in self.layout.volumes
            for name in (volume.name, volume.key)
            if place.startswith(f"{name}:")
        ]
        if not fitting:
            return None
        length, volume = max(fitting, key=lambda pair: pair[0])
        return volume, place[length + 1 :]

    def _on_drive(self, place: str) -> tuple[Tree, bytes]:
        match = _DRIVE.match(place)
        letter = f"{match[1]}:".upper().encode() if match else b"C:"
        path = _bytes(place[match.end() :] if match else place).replace(b"\\", b"/")
        for mounted in self.mounts:
            if mounted.target == letter:
                return mounted.tree, path
        known = ", ".join(show(mounted.target) for mounted in self.mounts)
        raise UsageError(f"the guest has no drive {letter.decode()}; it has {known}")

    def _readable(self) -> list[FoundVolume]:
        return [
            volume for volume in self.layout.volumes if volume.content and volume.content.type in READABLE
        ]

    def _system(self, volume: FoundVolume) -> FileSystem:
        known = self._systems.get(volume.key)
        if known is None:
            try:
                if volume.problem is not None:
                    text = f"volume {volume.name}: what it holds cannot be read: {volume.problem}"
                    raise GuestError(errno.EIO, text, volume.problem.exit_status)
                if volume.content is None or volume.content.type not in READABLE:
                    what = f"holds {volume.content.type}" if volume.content else "holds no known file system"
                    raise GuestError(
                        errno.EOPNOTSUPP, f"volume {volume.name} {what}, which has no files to read"
                    )
                known = self._open(volume)
                self._few.add(known)
                self.warnings += [f"volume {volume.name}: {text}" for text in known.warnings]
            except VmfsError as error:
                known = error
            self._systems[volume.key] = known
        if isinstance(known, VmfsError):
            raise known
        return known

    def _root_of(self, volume: FoundVolume) -> File:
        system = self._system(volume)
        return File(system, system.root(), b"/")

    def _find_mounts(self) -> tuple[Mounted, ...]:
        candidates: list[_Candidate] = []
        windows: list[tuple[FoundVolume, File]] = []
        for volume in self._readable():
            try:
                root = self._root_of(volume)
                if root.system.type in _OF_LINUX_ROOTS:
                    candidates += self._linux_roots(volume, root)
                elif root.system.type == "ntfs" and _is_windows(root):
                    windows.append((volume, root))
            except VmfsError as error:
                # It names the volume.
                self.warnings.append(str(error))
        if candidates:
            return self._mount_linux(max(candidates, key=lambda candidate: candidate.rank))
        if windows:
            self._is_windows = True
            return self._mount_windows(*windows[0])
        return ()

    def _linux_roots(self, volume: FoundVolume, top: File) -> Iterator[_Candidate]:
        """The root of a file system, or subvolumes of Btrfs that look like one."""
        roots = [top]
        if top.system.type == "btrfs":
            roots += _subvolumes(Tree(top))
        for root in roots:
            tree = Tree(File(root.system, root.stat, b"/"))
            if not _is_linux(tree):
                continue
            entries = fstab.parse(_content(tree, b"/etc/fstab"))
            itself = any(entry.target == b"/" and self._means(entry, volume, root) for entry in entries)
            newest = max(_changed(tree, path) for path in (b"/etc", b"/var/log", b"/var/lib"))
            yield _Candidate(volume, tree.root, entries, (itself, len(entries) > 0, newest))

    def _means(self, entry: fstab.Entry, volume: FoundVolume, root: File) -> bool:
        found = fstab.find_device(entry.device, self.layout.volumes)
        if found is None or found.key != volume.key:
            return False
        try:
            return self._mounted_root(entry, found).identity == root.identity
        except VmfsError:
            return False

    def _mounted_root(self, entry: fstab.Entry, volume: FoundVolume) -> File:
        """The directory that is seen where a line of fstab is mounted: of Btrfs, its subvolume's."""
        top = self._root_of(volume)
        if top.system.type != "btrfs":
            return top
        if path := entry.options.get("subvol"):
            return Tree(top).find(_bytes(path), follow=False)
        number = entry.options.get("subvolid", "")
        chosen = (
            int(number)
            if number.isdecimal() and len(number) < 9
            else getattr(top.system, "default_subvolume", None)
        )
        if not chosen or chosen == _TOP_LEVEL:
            return top
        return File(top.system, top.system.stat(chosen << _TREE_SHIFT | _FIRST_INODE), b"/")

    def _mount_linux(self, chosen: _Candidate) -> tuple[Mounted, ...]:
        tree = Tree(chosen.root)
        mounts = [Mounted(b"/", chosen.volume, tree)]
        for entry in chosen.entries:
            volume = fstab.find_device(entry.device, self.layout.volumes)
            if entry.target.strip(b"/") == b"":
                continue
            if volume is None:
                self._close_what_may_be_lost(tree, entry)
                continue
            try:
                place = tree.find(entry.target)
                if not place.is_directory:
                    raise GuestError(errno.ENOTDIR, "it is no directory")
            except GuestError as error:
                self.warnings.append(f"nothing is mounted at {show(entry.target)} of the guest: {error}")
                continue
            try:
                root = self._mounted_root(entry, volume)
            except VmfsError as error:
                text = f"{show(entry.target)} of the guest cannot be read: {error}"
                self.warnings.append(text)
                tree.closed[place.identity] = GuestError(errno.EIO, text, error.exit_status)
                continue
            # What is mounted over a root that was mounted here covers that.
            tree.mounts[place.identity] = File(root.system, root.stat, place.path)
            mounts.append(Mounted(place.path, volume, tree))
        return tuple(mounts)

    def _close_what_may_be_lost(self, tree: Tree, entry: fstab.Entry) -> None:
        """A directory that a volume is mounted over which was not found, maybe because that cannot be read:
        what lies under it would pass for its files."""
        problems = self.layout.problems
        if not problems or not fstab.is_volume(entry.device):
            return
        text = f"{show(entry.target)} of the guest may be on a volume that cannot be read: {problems[0]}"
        try:
            place = tree.find(entry.target)
        except GuestError:
            return
        self.warnings.append(text)
        tree.closed[place.identity] = GuestError(errno.EIO, text, problems[0].exit_status)

    def _mount_windows(self, system: FoundVolume, root: File) -> tuple[Mounted, ...]:
        """Which volume has which letter stands in the registry; C:, and the others by their order, is what
        nearly all guests have."""
        mounts = [Mounted(b"C:", system, Tree(root, prefix=b"C:"))]
        for volume in self._readable():
            if volume.key == system.key or len(mounts) > 23:
                continue
            kind = volume.partition.type if volume.partition else ""
            if volume.content is None or volume.content.type not in _OF_WINDOWS or kind in _NO_DRIVES:
                continue
            drive = b"%c:" % (ord("C") + len(mounts))
            try:
                tree = Tree(self._root_of(volume), prefix=drive)
            except VmfsError:
                continue
            mounts.append(Mounted(drive, volume, tree))
        return tuple(mounts)


def _subvolumes(tree: Tree) -> Iterator[File]:
    """Where distributions put their root: a directory of the top level, or openSUSE's snapshots of it."""
    try:
        tops = [child.file for child in tree.children(tree.root) if child.file and child.file.is_directory]
    except GuestError:
        return
    for top in tops[:_MAX_SUBVOLUMES]:
        yield top
        try:
            snapshots = tree.find(top.path + b"/.snapshots", follow=False)
            numbered = [child.file for child in tree.children(snapshots) if child.file]
        except GuestError:
            continue
        for one in numbered[-_MAX_SUBVOLUMES:]:
            try:
                yield tree.find(one.path + b"/snapshot", follow=False)
            except GuestError:
                continue


def _is_linux(tree: Tree) -> bool:
    """/etc with an fstab or a release, and something to run."""
    return (
        _is(tree, b"/etc", stat.S_ISDIR)
        and any(
            _is(tree, path, stat.S_ISREG)
            for path in (b"/etc/fstab", b"/etc/os-release", b"/usr/lib/os-release", b"/etc/passwd")
        )
        and any(_is(tree, path, stat.S_ISDIR) for path in (b"/usr", b"/bin", b"/sbin", b"/nix"))
    )


def _is_windows(root: File) -> bool:
    return _is(Tree(root), b"/Windows/System32", stat.S_ISDIR)


def _is(tree: Tree, path: bytes, kind: Callable[[int], bool]) -> bool:
    try:
        return kind(tree.find(path).stat.mode)
    except GuestError:
        return False


def _changed(tree: Tree, path: bytes) -> int:
    try:
        return tree.find(path).stat.mtime
    except GuestError:
        return 0


def _content(tree: Tree, path: bytes) -> bytes:
    try:
        file = tree.find(path)
        return file.system.read(file.stat.node, 0, fstab.MAX_BYTES) if file.is_regular else b""
    except GuestError:
        return b""


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogateescape")
