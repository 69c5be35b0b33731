"""vmfs history: every version of one file over all restore points of a VM."""

from __future__ import annotations

import argparse
import logging
import re
import stat
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from vmfs.catalog.catalog import Catalog
from vmfs.catalog.filesearch import FileQuery, FileRow
from vmfs.catalog.globs import Glob, compile_glob
from vmfs.catalog.resolve import show_time
from vmfs.cli import common, found_files
from vmfs.cli.tables import format_table
from vmfs.cli.unindexed import merge_rows, walk_points, warn_of_unindexed
from vmfs.errors import UsageError, VmfsError
from vmfs.format.filelist import to_text
from vmfs.repo.repository import Repository

if TYPE_CHECKING:
    from vmfs.search.content import Content

log = logging.getLogger(__name__)

MOST_READ = 1 << 30
"""Bytes of all versions together that are read without being told to: a matter of seconds."""
_SHOWN_DIGITS = 12
_DRIVE = re.compile(r"[A-Za-z]:[/\\]")


class Place(NamedTuple):
    """A path, of the guest where no volume is named."""

    volume: str | None
    path: str
    ignore_case: bool = False

    def is_path(self, path: str | None) -> bool:
        if path is None:
            return False
        path = found_files.text_of(path)
        return path.casefold() == self.path.casefold() if self.ignore_case else path == self.path


class Version(NamedTuple):
    """`content` is there if it was read, `problem` if it could not be."""

    row: FileRow
    content: Content | None = None
    problem: str | None = None


def register(subparsers: Any) -> None:
    parser = common.add_repository_command(
        subparsers,
        "history",
        run,
        help="every version of one file",
        description="Print every version of a file over all indexed restore points of a VM, oldest first: "
        "the first and last point that have it, its size, when it was changed, and the SHA-256 of what it "
        "holds. For that, all that differ in size, times or mode are read, if they are no more than "
        f"{common.format_size(MOST_READ)} together; those that hold the same are one version.",
    )
    parser.add_argument("words", nargs="*", metavar="VM PATH", help="a VM, and a path in it or VOLUME:PATH")
    reading = parser.add_mutually_exclusive_group()
    reading.add_argument(
        "--hash", action="store_const", const=True, help="read the versions however large they are"
    )
    reading.add_argument(
        "--no-hash",
        dest="hash",
        action="store_const",
        const=False,
        help="read nothing: versions differ in size, times or mode",
    )
    parser.add_argument(
        "--walk", action="store_true", help="look through points that are not indexed, which takes time"
    )


def run(args: argparse.Namespace) -> int:
    words = common.take_repository(args, args.words)
    if len(words) != 2:
        raise UsageError("vmfs history takes a repository, a VM and a path")
    vm, place = words[0], parse_place(words[1])
    with common.open_repository(args) as repository, common.open_catalog(repository, args) as catalog:
        catalog.select_vms(vm)
        found_files.sync_files(repository, catalog)
        query = FileQuery(path=_literally(place.path, ignore_case=place.ignore_case))
        rows = catalog.find_files(query, vm=vm)
        points = catalog.points(vm)
        unindexed = catalog.unindexed()
        missing = [point for point in points if point.id in unindexed]
        status = 0
        if args.walk:
            walked, status = walk_points(repository, missing, query)
            rows, missing = merge_rows([*rows, *walked]), []
        rows = _choose(rows, place)
        versions = [Version(row) for row in rows]
        if _is_to_be_read(rows, args):
            versions, failed = _read(repository, rows, args)
            status = max(status, failed)
        hint = "" if rows else _hint(catalog, vm, place)
    if args.json:
        left_out = [point.id for point in missing]
        common.print_json({"versions": list(map(_facts, versions)), "not_indexed": left_out})
    elif versions:
        _print(versions)
    warn_of_unindexed(len(missing), len(points))
    if not rows:
        which = "restore point" if args.walk else "indexed restore point"
        raise VmfsError(f"no {which} of {vm} has {words[1]}; {hint}")
    return status


def parse_place(text: str) -> Place:
    """Raises UsageError for what is no path."""
    drive = _DRIVE.match(text)
    volume, colon, path = ("", "", text) if drive or text.startswith("/") else text.partition(":/")
    if not colon and not drive and not text.startswith("/"):
        raise UsageError(f"{text!r} is no path; write it from the root, as /etc/fstab, or as VOLUME:/path")
    if drive:
        path = path.replace("\\", "/")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if len(parts) == bool(drive):
        raise UsageError(f"{text!r} is all of a file system; name a file or a directory in it")
    return Place(volume or None, "/".join(parts if drive else ["", *parts]), bool(drive))


def _literally(path: str, *, ignore_case: bool = False) -> Glob:
    """The pattern that only this path matches."""
    text = to_text(path.encode(errors="surrogateescape"))
    return compile_glob(re.sub(r"([*?\[\\])", r"\\\1", text), ignore_case=ignore_case)


def _choose(rows: Sequence[FileRow], place: Place) -> list[FileRow]:
    """By time. A path of the guest comes before the same path of any volume."""
    if place.volume is not None:
        rows = [
            row for row in rows if place.volume in (row.volume, row.volume_key) and place.is_path(row.path)
        ]
    elif guests := [row for row in rows if place.is_path(row.guest_path)]:
        rows = guests
    return sorted(rows, key=lambda row: (row.points[0].time, row.mtime, row.ctime))


def _hint(catalog: Catalog, vm: str, place: Place) -> str:
    """Why a path may not be there: lists of files have no paths through symbolic links."""
    above = place.path.rpartition("/")[0]
    while above:
        links = FileQuery(path=_literally(above), kinds=(stat.S_IFLNK,))
        if _choose(catalog.find_files(links, vm=vm), place._replace(path=above)):
            return f"{above} is a symbolic link: name the file by its place, see 'vmfs ls -l'"
        above = above.rpartition("/")[0]
    return "look for it with 'vmfs find'"


def _is_to_be_read(rows: Sequence[FileRow], args: argparse.Namespace) -> bool:
    if args.hash is not None:
        return bool(args.hash)
    size = sum(row.size for row in rows if stat.S_ISREG(row.mode))
    if size > MOST_READ:
        log.warning(
            "the versions are %s together and were not read: they differ in size, times or mode, and may "
            "hold the same; --hash reads them",
            common.format_size(size),
        )
    return size <= MOST_READ


def _read(
    repository: Repository, rows: Sequence[FileRow], args: argparse.Namespace
) -> tuple[list[Version], int]:
    """Each content once, as its newest version says of it, with all points that have it; and the exit
    status."""
    # What it takes to read file systems takes a while to import.
    from vmfs.cli.progress import ProgressBars
    from vmfs.search.content import Content, read_contents

    versions: dict[object, Version] = {}
    status = 0
    total = sum(row.size for row in rows if stat.S_ISREG(row.mode))
    with ProgressBars(quiet=args.quiet or args.json) as bars:
        contents = read_contents(repository, rows, lambda done: bars.update("reading", done, total))
        for row, content in zip(rows, contents, strict=True):
            path = found_files.shown_path(row)
            if isinstance(content, VmfsError):
                log.error("%s@%s: %s: %s", row.vm, show_time(row.points[-1].time), path, content)
                status = max(status, content.exit_status)
                versions[row] = Version(row, problem=str(content))
                continue
            key = row if content == Content() else (row.vm_id, path, content)
            known = versions.get(key)
            points = {*row.points, *(known.row.points if known else ())}
            ordered = tuple(sorted(points, key=lambda point: (point.time, point.id)))
            versions[key] = Version(replace(row, points=ordered), content)
    return sorted(versions.values(), key=lambda version: version.row.points[0].time), status


def _facts(version: Version) -> dict[str, Any]:
    row, content, problem = version
    target = content.target if content else None
    return {
        **found_files.facts_of(row),
        "sha256": content.sha256 if content else None,
        "target": None if target is None else target.decode(errors="surrogateescape"),
        "problem": problem,
    }


def _print(versions: Sequence[Version]) -> None:
    several = len({(version.row.vm_id, found_files.shown_path(version.row)) for version in versions}) > 1
    shown = [_shown_content(version) for version in versions]
    header = [*found_files.HEADER]
    header += ["CONTENT"] if any(shown) else []
    header += ["PATH"] if several else []
    rows = []
    for (row, *_), content in zip(versions, shown, strict=True):
        cells = [*found_files.cells_of(row)]
        cells += [content or "-"] if any(shown) else []
        cells += [found_files.shown_path(row)] if several else []
        rows.append(tuple(cells))
    print(format_table(tuple(header), rows))


def _shown_content(version: Version) -> str:
    """The beginning of the SHA-256, or where a link leads."""
    _, content, problem = version
    if problem is not None:
        return "cannot be read"
    if content is None:
        return ""
    if content.target is not None:
        return f"-> {content.target.decode(errors='backslashreplace')}"
    return (content.sha256 or "")[:_SHOWN_DIGITS]
