"""Disk images of qemu, VMware, VirtualBox and Hyper-V, read through a `qemu-nbd` child.

Which format a file has is told by its first bytes, and those of a raw disk are its guest's to write: a guest
can make its disk look like a qcow2 image with `/etc/shadow` for backing file, and find that in a restore.
Therefore an image whose format was only recognised must be self-contained, and neither a block device nor
named as raw; to read any other, the user names the format. An image that somebody else made is
another matter: named as qcow2, it can have any file that this user may read for backing or data file. Backing
files whose format the image does not record, and those that are not local files, are always refused.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

from ingest.memory import Memory
from ingest.nbd import Address
from ingest.sources.base import BitmapError, Extent, SourceError
from ingest.sources.file import open_file
from ingest.sources.nbd import NbdReader, NbdSource
from vmfs.format.manifest import SECTOR

FORMATS = ("raw", "qcow2", "vmdk", "vdi", "vhdx", "vpc")
"""What the user may name, as qemu names them (vpc is Microsoft's VHD)."""

_MAGICS = (
    (0, b"QFI\xfb", "qcow2"),
    (0, b"KDMV", "vmdk"),
    (0, b"COWD", "vmdk"),
    (0, b"# Disk DescriptorFile", "vmdk"),
    (0x40, b"\x7f\x10\xda\xbe", "vdi"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"conectix", "vpc"),
)
_RAW_NAMES = (".raw", ".dd")
_MAX_CHAIN = 200
_INFO_TIMEOUT = 60.0
_START_TIMEOUT = 60.0
_END_TIMEOUT = 10.0
_MAX_ERRORS = 64 * 1024
_LEAKS_ONLY = 3
"""What qemu-img check returns for an image that is good and larger than it need be."""

_QCOW2 = struct.Struct(">4xI12xI24xQI36xI4x")
"""Of a qcow2 header: version, bits of a cluster, offset and clusters of the table of reference counts, and
the logarithm of the bits of one count."""
_MAX_CLUSTER_BITS = 21
_MAX_REFERENCE_TABLE = 8 << 20

# The shell outlives us just long enough to end qemu-nbd: its `read` returns when our end of the pipe is
# closed, which the kernel does however we die. Nothing milder than SIGKILL will do, for qemu-nbd loses it
# while it starts; the image is only read. Nor would PR_SET_PDEATHSIG, as it fires when the *thread* that
# started the child ends. The listening socket comes as descriptor 1 and is handed on as systemd does; when
# qemu-nbd is gone nobody holds it, and our connection breaks instead of waiting for ever.
_SUPERVISOR = """\
sh -c 'LISTEN_PID=$$ exec qemu-nbd "$@"' sh "$@" 3>&1 >/dev/null &
exec >&-
read -r _
kill -9 $! 2>/dev/null
wait $!
"""


class QemuSource:
    """An image file of one of the FORMATS. `guessed` says that the format is from `detect_format` and not
    from the user. `bitmap` names a persistent dirty bitmap of a qcow2 image.

    Raises BitmapError when the bitmap is missing or cannot be trusted, and SourceError for all else.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        format: str,
        *,
        guessed: bool = False,
        bitmap: str | None = None,
        name: str | None = None,
    ) -> None:
        self.name = os.fspath(path) if name is None else name
        # Absolute, since qemu takes what stands before a colon in a relative path for a protocol.
        image = os.path.abspath(path)
        with contextlib.ExitStack() as stack:
            top = self._watch(image, stack)
            for program in ("qemu-img", "qemu-nbd"):
                if shutil.which(program) is None:
                    raise SourceError(
                        f"disk {self.name} is a {format} image and {program} is missing; install qemu-utils"
                    )
            if guessed and (stat.S_ISBLK(os.fstat(top.fd).st_mode) or image.endswith(_RAW_NAMES)):
                raise SourceError(
                    f"disk {self.name} should be raw and begins like a {format} image, which its guest may "
                    f"have written; say which it is with --format raw or --format {format}"
                )
            chain = _chain(image, format, self.name, guessed=guessed)
            if bitmap is not None:
                _check_bitmap(self.name, format, bitmap, chain)
            self._files = [top, *(self._watch(info["filename"], stack) for info in chain[1:])]
            for info, file in zip(chain, self._files, strict=True):
                if info["format"] == "qcow2" and _seems_cut(file):
                    _check_whole(info["filename"], self.name)
            self._export = self._start(stack, image, format, bitmap)
            self._stack = stack.pop_all()
        self.size = self._export.size
        self.block_size = self._export.block_size

    def extents(self) -> Iterator[Extent]:
        return self._export.extents()

    def dirty_extents(self) -> Iterator[Extent] | None:
        return self._export.dirty_extents()

    def reader(self, _: Memory | None = None) -> QemuReader:
        return QemuReader(self, self._export.reader())

    def check_length(self) -> None:
        """Raises SourceError when a file of the image became shorter: qemu reads zeros behind its end."""
        for file in self._files:
            if os.lseek(file.fd, 0, os.SEEK_END) < file.size:
                raise SourceError(
                    f"disk {self.name} became shorter while it was read; nothing may write to it"
                )

    def close(self) -> None:
        self._stack.close()

    def _watch(self, path: str, stack: contextlib.ExitStack) -> _File:
        fd = open_file(path, self.name)
        stack.callback(os.close, fd)
        return _File(fd, os.lseek(fd, 0, os.SEEK_END))

    def _start(self, stack: contextlib.ExitStack, image: str, format: str, bitmap: str | None) -> NbdSource:
        server = _Server(image, format, bitmap)
        stack.callback(server.close)
        try:
            export = NbdSource(
                server.address, bitmap=bitmap, name=self.name, handshake_timeout=_START_TIMEOUT
            )
        except SourceError as error:
            raise _failure(self.name, server.close()) or error from None
        stack.callback(export.close)
        return export


class QemuReader:
    """A connection to the child."""

    def __init__(self, source: QemuSource, reader: NbdReader) -> None:
        self._source = source
        self._reader = reader

    def readinto(self, offset: int, buffer: memoryview) -> None:
        self._reader.readinto(offset, buffer)
        self._source.check_length()

    def close(self) -> None:
        self._reader.close()


class _File(NamedTuple):
    """A file of the image, and how long it was when it was opened (bytes)."""

    fd: int
    size: int


class _Server:
    """A qemu-nbd that serves one image to this process alone, on a socket that has no name in any directory.
    It ends with `close`, or when this process does."""

    def __init__(self, image: str, format: str, bitmap: str | None) -> None:
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            self._socket = _bind_unnamed(listener)
            stack.callback(os.close, self._socket)
            self.address = Address(export="", path=f"/proc/self/fd/{self._socket}")
            self._errors = stack.enter_context(tempfile.TemporaryFile())
            listener.listen(128)
            arguments = ["--read-only", f"--format={format}", "--shared=0", "--export-name="]
            arguments += [f"--bitmap={bitmap}"] if bitmap is not None else []
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _SUPERVISOR, "sh", *arguments, "--", image],
                stdin=subprocess.PIPE,
                stdout=listener.fileno(),
                stderr=self._errors,
                env={**os.environ, "LC_ALL": "C", "LISTEN_FDS": "1"},
                start_new_session=True,
            )
            listener.close()
            stack.pop_all()

    def close(self) -> str:
        """What qemu-nbd said on its error output."""
        if self._process.stdin is None or self._process.stdin.closed:
            return ""
        self._process.stdin.close()
        try:
            self._process.wait(_END_TIMEOUT)
        except subprocess.TimeoutExpired:
            # Stuck in the kernel, on dead storage: it ends when that lets it.
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        os.close(self._socket)
        with self._errors:
            self._errors.seek(0)
            return self._errors.read(_MAX_ERRORS).decode(errors="replace")


def detect_format(path: str | os.PathLike[str], name: str) -> str:
    """The format that the first bytes tell, `raw` when they tell none. Raises SourceError."""
    fd = open_file(path, name)
    try:
        head = os.pread(fd, SECTOR, 0)
    except OSError as error:
        raise SourceError(f"disk {name}: read error at byte 0: {error.strerror}") from None
    finally:
        os.close(fd)
    return next((format for at, magic, format in _MAGICS if head[at : at + len(magic)] == magic), "raw")


def _bind_unnamed(listener: socket.socket) -> int:
    """A descriptor of the socket's name, which is gone from its directory again: whoever has it can connect
    through /proc, nobody else can, and nothing is left behind."""
    with tempfile.TemporaryDirectory(prefix="vmfs-") as folder:
        directory = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # Through the descriptor, as the path of the folder may be longer than an address can be.
            listener.bind(f"/proc/self/fd/{directory}/nbd")
            return os.open("nbd", os.O_PATH | os.O_CLOEXEC, dir_fd=directory)
        finally:
            os.close(directory)


def _chain(image: str, format: str, name: str, *, guessed: bool) -> list[dict[str, Any]]:
    """What qemu-img tells of the image and of each of its backing files. Each is asked about by itself, so
    that nothing an image names is opened before it was checked."""
    chain = [_info(image, format, name)]
    if guessed and not _self_contained(image, chain[0]):
        raise SourceError(
            f"disk {name} begins like a {format} image that refers to other files; if it is one and you "
            f"trust it, say so with --format {format}"
        )
    while backing := chain[-1].get("full-backing-filename"):
        format = chain[-1].get("backing-filename-format", "")
        if not backing.startswith("/"):
            raise SourceError(
                f"disk {name} has the backing file {backing!a}, which is not a local file; "
                "copy the image with qemu-img convert first"
            )
        if not format:
            raise SourceError(
                f"disk {name} does not say which format its backing file {backing!a} has; "
                "record it with qemu-img rebase -u -b BACKING -F FORMAT IMAGE"
            )
        if len(chain) == _MAX_CHAIN:
            raise SourceError(f"disk {name} has more than {_MAX_CHAIN} backing files; merge some of them")
        chain.append(_info(backing, format, name))
    return chain


def _self_contained(image: str, info: dict[str, Any]) -> bool:
    details = info.get("format-specific", {}).get("data", {})
    files = [extent.get("filename") for extent in details.get("extents", [])]
    return "backing-filename" not in info and "data-file" not in details and set(files) <= {image}


def _info(path: str, format: str, name: str) -> dict[str, Any]:
    try:
        result = _qemu_img("info", "--output=json", "-f", format, path, timeout=_INFO_TIMEOUT)
    except subprocess.TimeoutExpired:
        raise SourceError(f"disk {name}: qemu-img took over {_INFO_TIMEOUT:g} seconds to open it") from None
    if result.returncode:
        problem = _failure(name, result.stderr[:_MAX_ERRORS].decode(errors="replace"))
        raise problem or SourceError(f"disk {name} is not a usable {format} image")
    return cast(dict[str, Any], json.loads(result.stdout))


def _qemu_img(*arguments: str, timeout: float | None = None) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["qemu-img", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=timeout,
        env={**os.environ, "LC_ALL": "C"},
        check=False,
    )


def _seems_cut(file: _File) -> bool:
    """Whether a qcow2 file ends before the last cluster that is in use according to its reference counts.
    qemu does not mind: what is missing reads as zeros."""
    header = os.pread(file.fd, _QCOW2.size, 0)
    if len(header) < _QCOW2.size:
        return True
    version, cluster_bits, table, table_clusters, order = _QCOW2.unpack(header)
    cluster = 1 << min(cluster_bits, _MAX_CLUSTER_BITS)
    bits = 1 << (min(order, 6) if version > 2 else 4)
    entries = os.pread(file.fd, min(table_clusters * cluster, _MAX_REFERENCE_TABLE), table)
    index = (len(entries.rstrip(b"\0")) - 1) // 8
    if index < 0:
        return True
    block = int.from_bytes(entries[index * 8 : index * 8 + 8], "big") & ~511
    used = len(os.pread(file.fd, cluster, block).rstrip(b"\0"))
    last = index * (cluster * 8 // bits) + (used - 1) * 8 // bits
    return not used or file.size <= last * cluster


def _check_whole(image: str, name: str) -> None:
    """After a crash the reference counts may go beyond the end of a good image, so ask qemu-img, which looks
    at all of the image's tables."""
    result = _qemu_img("check", "-q", "-f", "qcow2", image)
    if result.returncode not in (0, _LEAKS_ONLY):
        raise SourceError(f"disk {name} is cut short: clusters in use are missing from the end of {image!a}")


def _check_bitmap(name: str, format: str, bitmap: str, chain: list[dict[str, Any]]) -> None:
    """A bitmap that may have missed writes is worse than none."""
    if format != "qcow2":
        raise BitmapError(f"disk {name} is a {format} image, which has no dirty bitmaps; take a full backup")
    own = _bitmaps(chain[0])
    shown = f"disk {name}: dirty bitmap {bitmap!a}"
    if bitmap not in own:
        names = ", ".join(ascii(other) for other in sorted(own)[:10])
        raise BitmapError(f"{shown} does not exist; the image has {names or 'none, so take a full backup'}")
    if "in-use" in own[bitmap]:
        raise BitmapError(
            f"{shown} is inconsistent, since qemu did not end cleanly; add a new one and take a full backup"
        )
    if "auto" not in own[bitmap]:
        raise BitmapError(f"{shown} is disabled and may have missed changes; take a full backup")
    if any(bitmap in _bitmaps(info) for info in chain[1:]):
        raise BitmapError(
            f"{shown} goes on in a backing file, from before a snapshot; merge the two, or take a full backup"
        )


def _bitmaps(info: dict[str, Any]) -> dict[str, list[str]]:
    bitmaps = info.get("format-specific", {}).get("data", {}).get("bitmaps", [])
    return {item["name"]: item["flags"] for item in bitmaps}


def _failure(name: str, errors: str) -> SourceError | None:
    """What a qemu program said, in one line; None when it said nothing."""
    if "Is another process using the image" in errors or "Failed to get shared" in errors:
        return SourceError(
            f"disk {name} is in use by a running VM; stop the VM, or back up an NBD export of the disk"
        )
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    if not lines:
        return None
    text = "".join(char if char.isprintable() else "?" for char in lines[0])
    return SourceError(f"disk {name}: {text}")
