"""Raw disk images and block devices."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator

from ingest.memory import Memory
from ingest.sources.base import Extent, SourceError
from vmfs.format.manifest import SECTOR

_BLKSSZGET = 0x1268
_QEMU_WRITE_LOCK = 101
"""The byte of an image file that a qemu process keeps locked while it may write to the image."""
_RWF_DONTCACHE = 0x80
"""preadv2(2), Linux 6.14: what this read brought into the page cache leaves it again."""


class FileSource:
    """A regular file or a block device. Raises SourceError when it is missing, not readable, of another kind,
    empty, not a multiple of 512 bytes, or open for writing in a qemu process."""

    def __init__(self, path: str | os.PathLike[str], *, name: str | None = None) -> None:
        self.name = os.fspath(path) if name is None else name
        self._fd = open_file(path, self.name)
        try:
            self._is_device = stat.S_ISBLK(os.fstat(self._fd).st_mode)
            self.size = self._measure()
            self.block_size = _logical_block(self._fd) if self._is_device else SECTOR
            self._check()
        except OSError as error:
            os.close(self._fd)
            raise SourceError(f"disk {self.name}: {error.strerror}") from None
        except BaseException:
            os.close(self._fd)
            raise

    def extents(self) -> Iterator[Extent]:
        """Holes are zeros. Raises SourceError when the file gets shorter meanwhile: what is past its end
        would look like a hole."""
        position = 0
        while position < self.size:
            try:
                data, end = (0, self.size) if self._is_device else self._next_data(position)
            except OSError as error:
                raise SourceError(
                    f"disk {self.name}: looking for holes at byte {position}: {error.strerror}"
                ) from None
            if data > position:
                yield Extent(position, data - position, True)
            if end > data:
                yield Extent(data, end - data, False)
            position = end

    def dirty_extents(self) -> None:
        """A raw disk has no dirty bitmap."""
        return None

    def reader(self, _: Memory | None = None) -> FileReader:
        return FileReader(self.name, self._fd)

    def close(self) -> None:
        os.close(self._fd)

    def _measure(self) -> int:
        return os.lseek(self._fd, 0, os.SEEK_END)

    def _check(self) -> None:
        if not self.size:
            raise SourceError(f"disk {self.name} is empty; a disk has at least {SECTOR} bytes")
        if self.size % SECTOR:
            raise SourceError(
                f"disk {self.name} has {self.size} bytes, which is not a multiple of {SECTOR}: it is cut "
                "short or not a raw disk image"
            )
        if _written_by_qemu(self._fd):
            raise SourceError(
                f"disk {self.name} is in use by a running VM; stop the VM, or back up an NBD export of it"
            )

    def _next_data(self, position: int) -> tuple[int, int]:
        """Start and end of the next run of data; both at the disk's end when only holes are left."""
        try:
            data = os.lseek(self._fd, position, os.SEEK_DATA)
            end = os.lseek(self._fd, data, os.SEEK_HOLE)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
                return position, self.size
            if error.errno != errno.ENXIO:
                raise
            # No data up to the end of the file, wherever that is now.
            data = end = self.size
        if self._measure() < self.size:
            raise SourceError(f"disk {self.name} became shorter while it was read; nothing may write to it")
        # A file that grows keeps the size that it had.
        return min(data, self.size), min(end, self.size)


class FileReader:
    """An open file of its own, so that the kernel's read-ahead sees one sequential reader."""

    def __init__(self, name: str, fd: int) -> None:
        self._name = name
        try:
            # The same file, even when another now has its name.
            self._fd = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        except OSError as error:
            raise SourceError(f"disk {name} cannot be opened: {error.strerror}") from None
        self._flags = _RWF_DONTCACHE

    def readinto(self, offset: int, buffer: memoryview) -> None:
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self._fd, [buffer[done:]], offset + done, self._flags)
            except OSError as error:
                if self._flags and error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
                    self._flags = 0
                    continue
                raise SourceError(
                    f"disk {self._name}: read error at byte {offset + done}: {error.strerror}"
                ) from None
            if not count:
                raise SourceError(
                    f"disk {self._name} ends at byte {offset + done} and was longer before: it became "
                    "shorter while it was read; nothing may write to it"
                )
            done += count
        if not self._flags:
            # A disk read once would push everything else out of the page cache, and filling fresh pages is
            # what limits the speed: giving each back at once more than doubles it.
            os.posix_fadvise(self._fd, offset, len(buffer), os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        os.close(self._fd)


def open_file(path: str | os.PathLike[str], name: str) -> int:
    """A descriptor of a file or block device, for reading. Raises SourceError for anything else."""
    try:
        # Opening a named pipe would wait for a writer without O_NONBLOCK, which disks ignore.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise SourceError(f"disk {name} does not exist") from None
    except PermissionError:
        raise SourceError(f"disk {name} is not readable by this user; run as one who may read it") from None
    except OSError as error:
        raise SourceError(f"disk {name} cannot be opened: {error.strerror}") from None
    except ValueError as error:
        raise SourceError(f"disk {name!a} cannot be opened: {error}") from None
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
        return fd
    os.close(fd)
    kind = "a directory" if stat.S_ISDIR(mode) else "neither a file nor a block device"
    raise SourceError(f"disk {name} is {kind}; give a disk image or a block device")


def _logical_block(fd: int) -> int:
    (size,) = struct.unpack("=I", fcntl.ioctl(fd, _BLKSSZGET, bytes(4)))
    return int(size)


def _written_by_qemu(fd: int) -> bool:
    """Whether a write lock would clash with one that qemu holds. File systems without locks know of none."""
    request = struct.pack("@hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, _QEMU_WRITE_LOCK, 1, 0)
    try:
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, request)
    except OSError:
        return False
    return bool(struct.unpack_from("@h", answer)[0] != fcntl.F_UNLCK)
