"""An ISO 9660 image of a guest's files, with Rock Ridge (for Unix: names, modes, owners, links) and Joliet
(for Windows): to be attached to a VM as a CD."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, BinaryIO, cast

from pycdlib import PyCdlib
from pycdlib.dates import DirectoryRecordDate
from pycdlib.pycdlibexception import PyCdlibException

from vmfs.errors import VmfsError
from vmfs.volumes.files.client import GuestError, Stat
from vmfs.volumes.tree import File, Tree

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_JOLIET_NAME = 64
_NOT_IN_JOLIET = frozenset('*/:;?\\"<>|')
_MAX_JOLIET_DEPTH = 8
_MAX_RR_NAME = 248

Problem = Callable[[bytes, VmfsError], None]


class IsoImage:
    """What cannot be on it, or be read, is told to `problem` with its path, and the rest goes on."""

    def __init__(
        self, label: str, problem: Problem, progress: Callable[[int, int], None] = lambda done, total: None
    ) -> None:
        """`label` is cut to what an ISO can have. `progress` is told bytes written and in all."""
        self.files = 0
        self._iso = PyCdlib()
        plain = "".join(char if char.isascii() and char.isalnum() else "_" for char in label.upper())
        # Level 4 lets directories be as deep as they are; programs of old read level 3 with at most eight.
        self._iso.new(interchange_level=4, joliet=3, rock_ridge="1.12", vol_ident=plain[:16])
        self._problem = problem
        self._progress = progress
        self._numbers = 0
        # What was added, with its serial number and paths on the plain ISO and in Joliet.
        self._added: list[tuple[Stat, int, str, str | None]] = []
        # The path on the image and the serial number of what has several names.
        self._links: dict[tuple[int, int], tuple[str, int]] = {}
        self._top = _Directory("", "")

    def add(self, tree: Tree, start: File, name: bytes) -> None:
        """`start`, and all below it, as `name` in the root of the image."""
        directories = [self._top]
        skipped: tuple[bytes, ...] | None = None
        for step in tree.walk(start):
            parts = (name, *step.parts)
            place = tree.place_of(start, step)
            if skipped is not None and parts[: len(skipped)] == skipped:
                continue
            skipped = None
            if step.problem or step.file is None:
                self._problem(place, VmfsError(step.problem or "it cannot be read"))
                continue
            if step.leaving:
                directories.pop()
                continue
            try:
                made = self._add(directories[-1], parts[-1], place, step.file)
            except GuestError as error:
                self._problem(place, error)
            except (PyCdlibException, UnicodeError, ValueError) as error:
                self._problem(place, VmfsError(f"it cannot be on an ISO: {error}"))
            else:
                self.files += 1
                if made is not None:
                    directories.append(made)
                continue
            if step.file.is_directory:
                skipped = parts

    def write(self, file: BinaryIO) -> None:
        """All of it, into an empty file."""
        # Only now: the library computes the whole layout anew when it is asked for a record after a change.
        for facts, serial, path, windows in self._added:
            self._describe(facts, serial, iso_path=path, joliet_path=windows)
        # The library counts the arguments, and would count that of a method as well.
        self._iso.write_fp(
            file, blocksize=1 << 20, progress_cb=lambda done, total, _: self._progress(done, total)
        )
        self._iso.close()

    def _add(self, directory: _Directory, name: bytes, place: bytes, file: File) -> _Directory | None:
        self._numbers += 1
        rock, joliet = directory.name(name)
        mode = file.stat.mode
        windows = (
            f"{directory.joliet}/{joliet}" if directory.joliet.count("/") < _MAX_JOLIET_DEPTH - 1 else None
        )
        if file.is_directory:
            path = f"{directory.iso}/D{self._numbers:07}"
            self._iso.add_directory(path, rr_name=rock, joliet_path=windows, file_mode=mode)
            self._added.append((file.stat, self._numbers, path, windows))
            return _Directory(path, windows if windows else directory.joliet + "/" * _MAX_JOLIET_DEPTH)
        path, serial = f"{directory.iso}/F{self._numbers:07}.;1", self._numbers
        if file.is_link:
            target = file.system.readlink(file.stat.node).decode()
            self._iso.add_symlink(path, rr_symlink_name=rock, rr_path=target)
            windows = None
        elif not file.is_regular:
            raise GuestError(0, "an ISO has files, directories and links only; left out")
        elif known := self._links.get(file.identity):
            first, serial = known
            self._iso.add_hard_link(iso_old_path=first, iso_new_path=path, rr_name=rock)
            if windows:
                self._iso.add_hard_link(iso_old_path=first, joliet_new_path=windows)
        else:
            content = cast(BinaryIO, _Content(file, place, self._problem))
            self._iso.add_fp(content, file.stat.size, path, rr_name=rock, joliet_path=windows, file_mode=mode)
            if file.stat.links > 1:
                self._links[file.identity] = path, serial
        self._added.append((file.stat, serial, path, windows))
        return None

    def _describe(self, facts: Stat, serial: int, **paths: str | None) -> None:
        """The file's time, owner and serial number; the library has all as of now, root's, and with the
        number 0, by which libarchive takes all files for one."""
        date = _date(facts.mtime)
        for kind, path in paths.items():
            if path is None:
                continue
            record: Any = self._iso.get_record(**{kind: path})
            record.date = date or record.date
            rock = getattr(record, "rock_ridge", None)
            for entries in filter(None, (rock.dr_entries, rock.ce_entries) if rock else ()):
                if entries.tf_record is not None and date:
                    # The library has taken one for the other: in RRIP 4.1.6, modification comes first.
                    entries.tf_record.access_time = entries.tf_record.modification_time = date
                if entries.px_record is not None:
                    entries.px_record.posix_user_id = facts.uid
                    entries.px_record.posix_group_id = facts.gid
                    entries.px_record.posix_serial_number = serial


def _date(nanoseconds: int) -> DirectoryRecordDate | None:
    """None for a time that an ISO cannot have."""
    try:
        time = _EPOCH + timedelta(seconds=nanoseconds // 10**9)
    except OverflowError:
        return None
    if not 1900 <= time.year <= 2155:
        return None
    return DirectoryRecordDate.from_fields(time.year - 1900, *time.timetuple()[1:6], 0)


class _Directory:
    """Where something goes, by its path on the plain ISO and in Joliet, and the names taken there."""

    def __init__(self, iso: str, joliet: str) -> None:
        self.iso = iso
        self.joliet = joliet
        self._taken: set[str] = set()

    def name(self, name: bytes) -> tuple[str, str]:
        """Those for Rock Ridge and Joliet. Bytes that are no UTF-8 are shown as escapes."""
        rock = name.decode(errors="backslashreplace")
        if len(rock.encode()) > _MAX_RR_NAME:
            rock = rock.encode()[:_MAX_RR_NAME].decode(errors="ignore")
        plain = "".join("_" if char in _NOT_IN_JOLIET or ord(char) < 32 else char for char in rock)
        # Joliet counts in UTF-16, and this library in characters of the lowest plane.
        plain = "".join(char if ord(char) <= 0xFFFF else "_" for char in plain)
        return self._unique(rock, _MAX_RR_NAME, "r"), self._unique(plain, _JOLIET_NAME, "j")

    def _unique(self, name: str, longest: int, kind: str) -> str:
        stem, dot, ending = name.rpartition(".")
        if not stem or len(ending) > 8:
            stem, dot, ending = name, "", ""
        attempt = 1
        while True:
            tail = ("" if attempt == 1 else f"~{attempt}") + dot + ending
            wanted = stem if len(name.encode()) <= longest else stem[: longest // (1 if kind == "j" else 4)]
            found = wanted[: longest - len(tail)] + tail if kind == "j" or attempt > 1 else wanted + tail
            key = f"{kind}{found.casefold() if kind == 'j' else found}"
            if key not in self._taken:
                self._taken.add(key)
                return found
            attempt += 1


class _Content(io.RawIOBase):
    """A file of the guest for the library to read when it writes. What cannot be read is zeros then, as the
    size has been said already."""

    # The library asks for it.
    mode = "rb"

    def __init__(self, file: File, place: bytes, problem: Problem) -> None:
        self._file = file
        self._place = place
        self._report: Problem | None = problem
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file.stat.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._file.stat.size - self._at)
        size = left if size < 0 else min(size, left)
        data = b""
        if self._report is not None and size:
            try:
                data = self._file.system.read(self._file.stat.node, self._at, size)
                if len(data) < size:
                    raise GuestError(
                        0, f"it ends after {self._at + len(data)} of {self._file.stat.size} bytes"
                    )
            except GuestError as error:
                text = f"{error}; the image has zeros from there on"
                self._report(self._place, GuestError(error.errno, text, error.exit_status))
                self._report = None
        data += bytes(size - len(data))
        self._at += size
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        with suppress(TypeError):
            memoryview(buffer)[: len(data)] = data
        return len(data)
