"""The kernel's requests for guests' files. Every one may wait for a worker process, which may hang until its
time is over: that is done in threads of their own, and few at once for each volume, so that one bad file
system holds up nobody but those who look into it."""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import TypeVar

import pyfuse3
import trio

from vmfs.fs.attributes import IMMUTABLE_TIMEOUT, absent
from vmfs.fs.entries import Entry
from vmfs.fs.guests.attributes import of_guest, of_unreadable
from vmfs.fs.guests.data import WORTH_ASKING
from vmfs.fs.guests.numbers import Volume, Volumes
from vmfs.fs.guests.opening import GuestSource
from vmfs.fs.log import warn_once
from vmfs.fs.reading import OpenFile, Reader
from vmfs.fs.workers import Workers
from vmfs.volumes.files.client import FileSystem, Found, GuestError, Stat

# What the kernel allows FUSE; NTFS has names of 255 UTF-16 units, so of up to 765 bytes.
MAX_NAME = 1024
_THREADS = 32
# A worker answers one request at a time; the other waits for it at the door.
_AT_ONCE = 2
_KEPT_XATTRS = 256
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Place:
    """A file of a guest: a node of a volume."""

    volume: Volume
    node: int


@dataclass(slots=True)
class OpenGuest:
    """One open handle of a guest's file. `data`: the file as pieces of disks, if it is known to be that;
    `asked` whether somebody was to find that out."""

    place: Place
    data: OpenFile | None = None
    asked: bool = False


@dataclass(slots=True)
class GuestDirectory:
    """An open directory, as it was when it was opened."""

    volume: Volume
    entries: Sequence[Found]


@dataclass(slots=True)
class _Door:
    """Where the requests for one volume wait for each other."""

    limit: trio.Semaphore = field(default_factory=lambda: trio.Semaphore(_AT_ONCE))
    users: int = 0


class GuestFiles:
    """Belongs to the thread of the event loop. A context manager: its threads live while it is entered."""

    def __init__(self, source: GuestSource, reader: Reader) -> None:
        self._source = source
        self._reader = reader
        self._volumes = Volumes()
        self._threads = Workers("vmfs-files", _THREADS)
        self._doors: dict[str, _Door] = {}
        self._xattrs: OrderedDict[tuple[str, int], dict[bytes, bytes]] = OrderedDict()

    def __enter__(self) -> GuestFiles:
        self._threads.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # First, as it ends the workers, and with them what the threads wait for.
        self._source.close()
        self._threads.__exit__(kind, error, trace)

    def place(self, number: int) -> Place:
        """The file of an inode number. Raises FUSEError."""
        try:
            volume = self._volumes.find(number)
            node = volume.node(number)
        except KeyError:
            raise pyfuse3.FUSEError(errno.ESTALE) from None
        if node is None:
            raise pyfuse3.FUSEError(errno.EIO)
        return Place(volume, node)

    async def root(self, entry: Entry) -> Place:
        """The top directory of a volume's files. Raises GuestError."""
        return Place(self._volume(entry), (await self._root(entry)).node)

    async def root_attributes(self, number: int, entry: Entry) -> pyfuse3.EntryAttributes:
        """Of that directory, which is in the mount under a number of the mount's own."""
        return of_guest(number, await self._root(entry))

    async def lookup(self, directory: Place, name: bytes) -> pyfuse3.EntryAttributes:
        """Raises FUSEError and GuestError."""
        if len(name) > MAX_NAME:
            raise pyfuse3.FUSEError(errno.ENAMETOOLONG)
        try:
            status = await self._call(directory.volume, lambda fs: fs.lookup(directory.node, name))
        except GuestError as error:
            if error.errno == errno.ENOENT:
                return absent(IMMUTABLE_TIMEOUT)
            raise
        volume = self._again(directory.volume)
        found = of_guest(volume.number(status.node), status)
        volume.held += 1
        return found

    async def getattr(self, number: int) -> pyfuse3.EntryAttributes:
        """Raises FUSEError and GuestError."""
        place = self.place(number)
        return of_guest(number, await self._call(place.volume, lambda fs: fs.stat(place.node)))

    def forget(self, number: int, count: int) -> None:
        self._volumes.forget(number, count)

    async def readlink(self, place: Place) -> bytes:
        """Raises GuestError."""
        target = await self._call(place.volume, lambda fs: fs.readlink(place.node))
        # As the kernel takes it: it ends at the first NUL, and a longer one would be refused as a whole.
        return target.split(b"\0", 1)[0][: os.pathconf("/", "PC_PATH_MAX") - 1]

    async def opendir(self, place: Place) -> GuestDirectory:
        """Raises GuestError."""
        entries = await self._call(place.volume, partial(scan_of, node=place.node))
        return GuestDirectory(place.volume, entries)

    def readdir(self, directory: GuestDirectory, start: int, token: pyfuse3.ReaddirToken) -> None:
        """Fill the kernel's buffer with the entries from number `start` on."""
        volume = self._again(directory.volume)
        for place in range(start, len(directory.entries)):
            name, status, _ = directory.entries[place]
            if status is None:
                attributes = of_unreadable(volume.unreadable())
            else:
                attributes = of_guest(volume.number(status.node), status)
            if not pyfuse3.readdir_reply(token, pyfuse3.FileNameT(name), attributes, place + 1):
                return
            volume.held += 1

    async def read(self, file: OpenGuest, offset: int, length: int) -> bytes | memoryview:
        """Raises GuestError. A view holds until the caller lets other tasks run."""
        place = file.place
        if length >= WORTH_ASKING and not file.asked:
            file.asked = True
            content = await self._ask(
                place.volume,
                partial(self._source.content, place.volume.point, place.volume.index, place.node),
            )
            file.data = OpenFile(content) if content is not None else None
        if file.data is not None:
            return await self._reader.read(file.data, offset, length)
        try:
            return await self._call(place.volume, lambda fs: fs.read(place.node, offset, length))
        except GuestError as error:
            if error.errno != errno.EINVAL:
                raise
            # It is of no known kind, and only shown as a file: damage, and no mistake of who reads.
            raise GuestError(errno.EIO, str(error), error.exit_status) from error

    async def xattrs(self, place: Place) -> dict[bytes, bytes]:
        """Raises GuestError."""
        key = (place.volume.key, place.node)
        known = self._xattrs.get(key)
        if known is None:
            try:
                known = await self._call(place.volume, lambda fs: fs.xattrs(place.node))
            except GuestError as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise
                known = {}
            self._xattrs[key] = known
            if len(self._xattrs) > _KEPT_XATTRS:
                self._xattrs.popitem(last=False)
        return known

    async def _root(self, entry: Entry) -> Stat:
        return await self._call(self._volume(entry), FileSystem.root)

    def _volume(self, entry: Entry) -> Volume:
        return self._volumes.get(entry.key, entry.point, entry.index)

    def _again(self, volume: Volume) -> Volume:
        """The volume, after others may have had its slot meanwhile."""
        return self._volumes.get(volume.key, volume.point, volume.index)

    async def _call(self, volume: Volume, work: Callable[[FileSystem], R]) -> R:
        """Have a thread ask the volume's file system. Raises GuestError, IntegrityError and StoreError."""
        return await self._ask(volume, partial(self._source.ask, volume.point, volume.index, work))

    async def _ask(self, volume: Volume, question: Callable[[], R]) -> R:
        """Have a thread do what makes the volume's worker work."""
        door = self._doors.setdefault(volume.key, _Door())
        door.users += 1
        try:
            async with door.limit:
                return await self._threads.run(question)
        finally:
            door.users -= 1
            if not door.users:
                del self._doors[volume.key]


def scan_of(filesystem: FileSystem, node: int) -> Sequence[Found]:
    """The entries of a directory that the kernel can be told of: one bad name would cost it all others."""
    entries = []
    for found in filesystem.scan(node):
        if not _is_name(found.name):
            warn_once(
                f"volume {filesystem.name}: the name {found.name[:80]!r} cannot be shown; it is left out"
            )
            continue
        if found.stat is None:
            warn_once(f"volume {filesystem.name}: {found.name[:80]!r} cannot be read: {found.problem}")
        entries.append(found)
    return entries


def _is_name(name: bytes) -> bool:
    return 0 < len(name) <= MAX_NAME and b"/" not in name and b"\0" not in name and name not in (b".", b"..")
