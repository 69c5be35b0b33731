"""A stream in the pax format, POSIX.1-2001, as GNU tar, bsdtar and Python read it: names of any bytes, times
to the nanosecond, extended attributes as `SCHILY.xattr.*` (star), sparse files as GNU's format 1.0, hard
links.

The module tarfile makes the plain headers; extended ones are made here, for it would mark names that are no
UTF-8 with a keyword that GNU tar does not know, and writes no sparse files.
"""

from __future__ import annotations

import stat
import tarfile
from collections.abc import Callable, Mapping

from vmfs.errors import VmfsError
from vmfs.recovery.acl import ACLS, acl_text
from vmfs.recovery.reading import PIECE, data_runs, pieces
from vmfs.volumes.files.client import GuestError
from vmfs.volumes.tree import File, Tree

BLOCK = 512
RECORD = 20 * BLOCK
_MAX_OCTAL_7 = 0o7777777
_MAX_OCTAL_11 = 0o77777777777
_TYPES = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
}


class TarWriter:
    """`write` takes all bytes it is given, or raises. What cannot be read is told to `problem` with its path,
    and the rest goes on."""

    def __init__(
        self,
        write: Callable[[bytes], None],
        problem: Callable[[bytes, VmfsError], None],
        progress: Callable[[int], None] = lambda done: None,
    ) -> None:
        """`progress` is told the bytes of data so far."""
        self.files = 0
        self.bytes = 0
        self._write = write
        self._problem = problem
        self._progress = progress
        self._written = 0
        self._names: dict[tuple[int, int], bytes] = {}

    def add(self, tree: Tree, start: File, name: bytes) -> None:
        """`start` and all below it, as `name`, relative; empty is the root, `.`."""
        for step in tree.walk(start):
            path = b"/".join((name or b".", *step.parts))
            place = tree.place_of(start, step)
            if step.problem:
                self._problem(place, VmfsError(step.problem))
            elif step.file is not None and not step.leaving:
                try:
                    self._add(path, place, step.file)
                    self.files += 1
                except GuestError as error:
                    self._problem(place, error)

    def finish(self) -> None:
        """The end of the archive."""
        self._put(bytes(2 * BLOCK))
        self._put(bytes(-self._written % RECORD))

    def _add(self, path: bytes, place: bytes, file: File) -> None:
        kind = _TYPES.get(stat.S_IFMT(file.stat.mode))
        if kind is None:
            raise GuestError(0, "a tar file has no sockets; left out")
        info = tarfile.TarInfo()
        info.type = kind
        info.mode = stat.S_IMODE(file.stat.mode)
        records: dict[bytes, bytes] = {}
        known = self._names.get(file.identity) if file.stat.links > 1 and not file.is_directory else None
        if known is not None:
            info.type = tarfile.LNKTYPE
            self._header(info, path, known, file, records, 0)
            return
        link = file.system.readlink(file.stat.node) if file.is_link else b""
        if stat.S_ISCHR(file.stat.mode) or stat.S_ISBLK(file.stat.mode):
            device = file.stat.device
            info.devmajor = min(device >> 8 & 0xFFF, _MAX_OCTAL_7)
            info.devminor = min(device & 0xFF | device >> 12 & 0xFFF00, _MAX_OCTAL_7)
        for key, value in file.system.xattrs(file.stat.node).items():
            if key in ACLS and (text := acl_text(value)) is not None:
                records[ACLS[key]] = text
            elif b"=" not in key and b"\0" not in key:
                records[b"SCHILY.xattr." + key] = value
        if file.is_regular:
            self._regular(info, path, place, file, records)
        else:
            self._header(info, path + b"/" if file.is_directory else path, link, file, records, 0)
        self._names[file.identity] = path

    def _regular(
        self, info: tarfile.TarInfo, path: bytes, place: bytes, file: File, records: dict[bytes, bytes]
    ) -> None:
        size = file.stat.size
        runs = data_runs(file)
        stored = sum(length for _, length in runs)
        if stored + BLOCK < size:
            sparse_map = _sparse_map([*runs, (size, 0)])
            records[b"GNU.sparse.major"] = b"1"
            records[b"GNU.sparse.minor"] = b"0"
            records[b"GNU.sparse.name"] = path
            records[b"GNU.sparse.realsize"] = b"%d" % size
            folder, _, name = path.rpartition(b"/")
            shown = b"/".join(filter(None, (folder, b"GNUSparseFile.0", name)))
            self._header(info, shown, b"", file, records, len(sparse_map) + stored)
            self._put(sparse_map)
        else:
            runs = [(0, size)] if size else []
            stored = size
            self._header(info, path, b"", file, records, size)
        missing = self._data(file, runs)
        self._put(bytes(-stored % BLOCK))
        if missing is not None:
            self._problem(place, missing)

    def _data(self, file: File, runs: list[tuple[int, int]]) -> GuestError | None:
        """The bytes of those runs. How many there will be has been said already: what cannot be read is
        zeros, and the error is returned."""
        told = sum(length for _, length in runs)
        done = 0
        problem = None
        try:
            for _, data in pieces(file, runs):
                self._put(data)
                done += len(data)
                self.bytes += len(data)
                self._progress(self.bytes)
        except GuestError as error:
            text = f"{error}; the archive has zeros for the rest of it"
            problem = GuestError(error.errno, text, error.exit_status)
        while done < told:
            zeros = bytes(min(PIECE, told - done))
            self._put(zeros)
            done += len(zeros)
        return problem

    def _header(
        self,
        info: tarfile.TarInfo,
        path: bytes,
        link: bytes,
        file: File,
        records: dict[bytes, bytes],
        size: int,
    ) -> None:
        facts = file.stat
        info.name = _plain(path)
        info.linkname = _plain(link) if link else ""
        seconds, rest = divmod(facts.mtime, 10**9)
        info.mtime = seconds if 0 <= seconds <= _MAX_OCTAL_11 else 0
        info.uid = facts.uid if facts.uid <= _MAX_OCTAL_7 else 0
        info.gid = facts.gid if facts.gid <= _MAX_OCTAL_7 else 0
        info.size = size if size <= _MAX_OCTAL_11 else 0
        wanted = {b"mtime": _time(facts.mtime), b"atime": _time(facts.atime)}
        if not rest and info.mtime == seconds:
            del wanted[b"mtime"]
        if info.name.encode() != path and b"GNU.sparse.name" not in records:
            wanted[b"path"] = path
        if info.linkname.encode() != link:
            wanted[b"linkpath"] = link
        for key, number, said in (
            (b"uid", facts.uid, info.uid),
            (b"gid", facts.gid, info.gid),
            (b"size", size, info.size),
        ):
            if number != said:
                wanted[key] = b"%d" % number
        self._put(_extended({**wanted, **records}))
        self._put(info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict"))

    def _put(self, data: bytes) -> None:
        if data:
            self._written += len(data)
            self._write(data)


def _sparse_map(runs: list[tuple[int, int]]) -> bytes:
    """How many runs, and each one's offset and length, as lines; filled up to whole blocks."""
    text = b"%d\n" % len(runs) + b"".join(b"%d\n%d\n" % run for run in runs)
    return text + bytes(-len(text) % BLOCK)


def _extended(records: Mapping[bytes, bytes]) -> bytes:
    """An extended header with those records, and the one that announces it."""
    content = b"".join(_record(key, value) for key, value in records.items())
    info = tarfile.TarInfo("././@PaxHeader")
    info.type = tarfile.XHDTYPE
    info.size = len(content)
    head = info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")
    return head + content + bytes(-len(content) % BLOCK)


def _record(key: bytes, value: bytes) -> bytes:
    """`LENGTH KEY=VALUE\\n`; the length counts itself."""
    rest = b" " + key + b"=" + value + b"\n"
    size = len(rest)
    while len(b"%d" % size) + len(rest) != size:
        size = len(b"%d" % size) + len(rest)
    return b"%d" % size + rest


def _plain(path: bytes) -> str:
    """What the plain header can hold of a name: for programs that know no other."""
    text = "".join(chr(byte) if 32 < byte < 127 else "_" for byte in path)
    return text[-100:].lstrip("/") or "_" if len(text) > 100 else text


def _time(nanoseconds: int) -> bytes:
    """Seconds with a fraction, down to minus infinity: -0.5 s is `-0.500000000`."""
    sign = b"-" if nanoseconds < 0 else b""
    seconds, rest = divmod(abs(nanoseconds), 10**9)
    return sign + (b"%d.%09d" % (seconds, rest) if rest else b"%d" % seconds)
