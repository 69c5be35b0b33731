"""vmfs history: every version of one file over all restore points of a VM."""

from __future__ import annotations

import argparse
import re
import stat
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from vmfs.catalog.filesearch import FileQuery, FileRow
from vmfs.catalog.globs import compile_glob
from vmfs.catalog.resolve import show_time
from vmfs.cli import common, found_files
from vmfs.cli.tables import format_table
from vmfs.errors import UsageError, VmfsError
from vmfs.format.filelist import to_text
from vmfs.repo.repository import Repository


class Version(NamedTuple):
    """`content` is the SHA-256 of what the file holds, in hex, if it was asked for."""

    row: FileRow
    content: str | None = None


def register(subparsers: Any) -> None:
    parser = common.add_repository_command(
        subparsers,
        "history",
        run,
        help="every version of one file",
        description="Print every version of a file over all indexed restore points of a VM, oldest first: "
        "when it was changed, its size, and the first and last point that have it. Versions differ in size, "
        "times or mode; with --hash, in what they hold.",
    )
    parser.add_argument("words", nargs="*", metavar="VM PATH", help="a VM, and a path in it or VOLUME:PATH")
    parser.add_argument(
        "--hash",
        action="store_true",
        help="read each version and print its SHA-256; versions with the same content are one",
    )


def run(args: argparse.Namespace) -> int:
    words = common.take_repository(args, args.words)
    if len(words) != 2:
        raise UsageError("vmfs history takes a repository, a VM and a path")
    vm, place = words
    with common.open_repository(args) as repository, common.open_catalog(repository, args) as catalog:
        catalog.select_vms(vm)
        found_files.sync_files(repository, catalog)
        volume, path = _split(place)
        query = FileQuery(path=compile_glob(_literally(to_text(path.encode(errors="surrogateescape")))))
        rows = _choose(catalog.find_files(query, vm=vm), volume, path)
        points = catalog.points(vm)
        unindexed = catalog.unindexed()
        missing = [point.id for point in points if point.id in unindexed]
        versions = _hashed(repository, rows) if args.hash else [Version(row) for row in rows]
    if args.json:
        facts = [{**found_files.facts_of(row), "sha256": content} for row, content in versions]
        common.print_json({"versions": facts, "not_indexed": missing})
    elif versions:
        _print(versions)
    found_files.warn_of_unindexed(len(missing), len(points))
    if not rows:
        raise VmfsError(f"no indexed restore point of {vm} has {place}; look for it with 'vmfs find'")
    return 0


def _split(place: str) -> tuple[str | None, str]:
    """(volume, path); no volume where the path is the guest's."""
    drive = re.match(r"[A-Za-z]:[/\\]", place)
    volume, colon, path = place.rpartition(":/")
    if colon and volume and not drive:
        return volume, f"/{path}".rstrip("/") or "/"
    if not place.startswith("/") and not drive:
        raise UsageError(f"{place!r} is no path; write it from the root, as /etc/fstab, or as VOLUME:/path")
    return None, place.replace("\\", "/") if drive else place.rstrip("/")


def _literally(path: str) -> str:
    """The pattern that only this path matches."""
    return re.sub(r"([*?\[\\])", r"\\\1", path)


def _choose(rows: Sequence[FileRow], volume: str | None, path: str) -> list[FileRow]:
    """By time. A path of the guest comes before the same path of any volume."""
    if volume is not None:
        rows = [
            row
            for row in rows
            if volume in (row.volume, row.volume_key) and found_files.text_of(row.path) == path
        ]
    elif guests := [row for row in rows if row.guest_path and found_files.text_of(row.guest_path) == path]:
        rows = guests
    return sorted(rows, key=lambda row: (row.points[0].time, row.mtime, row.ctime))


def _hashed(repository: Repository, rows: Sequence[FileRow]) -> list[Version]:
    """Each content once, as its newest version says of it, with all points that have it."""
    # What it takes to read file systems takes a while to import.
    from vmfs.search.look import content_hash

    versions: dict[object, Version] = {}
    for row in rows:
        content = content_hash(repository, row) if stat.S_ISREG(row.mode) else None
        key = (row.vm_id, row.volume_key, row.path, content or row)
        points = set(row.points)
        if key in versions:
            points |= set(versions[key].row.points)
        ordered = tuple(sorted(points, key=lambda point: (point.time, point.id)))
        versions[key] = Version(replace(row, points=ordered), content)
    return sorted(versions.values(), key=lambda version: version.row.points[0].time)


def _print(versions: Sequence[Version]) -> None:
    several = len({(row.vm_id, found_files.shown_path(row)) for row, _ in versions}) > 1
    header = ["FIRST", "LAST", ">POINTS", "T", ">SIZE", "MODIFIED"]
    header += ["SHA256"] if any(version.content for version in versions) else []
    header += ["PATH"] if several else []
    rows = []
    for row, content in versions:
        cells = [
            show_time(row.points[0].time),
            show_time(row.points[-1].time),
            str(len(row.points)),
            found_files.kind_letter(row.mode),
            common.format_size(row.size),
            found_files.shown_time(row.mtime),
        ]
        cells += [content or "-"] if "SHA256" in header else []
        cells += [found_files.shown_path(row)] if several else []
        rows.append(tuple(cells))
    print(format_table(tuple(header), rows))
