"""vmfs diff: what changed from one restore point to another: blocks, volumes, or files."""

from __future__ import annotations

import argparse
import errno
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

from vmfs.cli import common
from vmfs.cli.guest_arguments import (
    Problems,
    add_guest_command,
    load_points,
    open_guest,
    point_disks,
    shown,
    take_words,
    text_of,
)
from vmfs.cli.tables import count, format_table
from vmfs.errors import UsageError
from vmfs.format.manifest import Disk
from vmfs.recovery.blocks import Range, changed_ranges, overlap
from vmfs.recovery.difference import Change, Comparison
from vmfs.repo.repository import Point, Repository
from vmfs.volumes.files.client import GuestError
from vmfs.volumes.guest import Guest
from vmfs.volumes.layout import FoundVolume, Layout, find_volumes
from vmfs.volumes.pieces import Ground, LaidSpace, Piece
from vmfs.volumes.tree import File

log = logging.getLogger(__name__)

_MARKS = {"added": "+", "removed": "-", "changed": "~"}


class DiskChange(NamedTuple):
    """A disk at both points; None where it is not there. `ranges` are in bytes."""

    alias: str
    before: Disk | None
    after: Disk | None
    ranges: list[Range]

    @property
    def changed(self) -> int:
        return sum(item.length for item in self.ranges)


class VolumeChange(NamedTuple):
    """A volume at both points; `changed` bytes of what it lies on, all of it if it lies elsewhere now. Where
    that is more than the volume, as of a thin pool, it is at most the volume. `volume` is the newer."""

    volume: FoundVolume
    before: FoundVolume | None
    after: FoundVolume | None
    changed: int


def register(subparsers: Any) -> None:
    parser = add_guest_command(
        subparsers,
        "diff",
        run,
        arguments="POINT POINT [PATH]",
        help="tell what changed between two restore points",
        description="Tell what changed from the first POINT to the second: how much of each disk, which the "
        "repository knows without reading any data; of each volume; or which files.",
    )
    level = parser.add_mutually_exclusive_group()
    level.add_argument("--volumes", action="store_true", help="tell how much of each volume changed")
    level.add_argument(
        "--files", action="store_true", help="list the files that changed, below PATH if given"
    )
    parser.add_argument(
        "--contents",
        action="store_true",
        help="with --files, compare the content even of files with equal size and times",
    )


def run(args: argparse.Namespace) -> int:
    words = take_words(
        args, "diff", 2, 3 if args.files else 2, "two restore points, and with --files a path or none"
    )
    if args.contents and not args.files:
        raise UsageError("--contents is for --files; give both")
    with common.open_repository(args) as repository:
        before, after = load_points(args, repository, words[:2])
        disks = compare_disks(repository, before, after)
        if args.files:
            return _files(repository, before, after, disks, words[2] if len(words) > 2 else None, args)
        if args.volumes:
            layouts = [find_volumes(point_disks(repository, point)) for point in (before, after)]
            for point, layout in zip((before, after), layouts, strict=True):
                for text in layout.warnings:
                    log.warning("%s: %s", point.id, text)
            _print_volumes(compare_volumes(layouts, before, after, disks), before, after, args)
        else:
            _print_disks(disks, before, after, args)
    return 0


def compare_disks(repository: Repository, before: Point, after: Point) -> list[DiskChange]:
    """The disks of both points, matched by id, else by alias."""
    chunk_size = repository.blobs.chunk_size
    old = list(before.manifest.disks)
    matches: dict[str, Disk] = {}
    # All by their ids first: an alias may be another disk's now.
    for name in (attrgetter("id"), attrgetter("alias")):
        for disk in after.manifest.disks:
            match = next((item for item in old if name(item) == name(disk)), None)
            if match is not None and disk.alias not in matches:
                old.remove(match)
                matches[disk.alias] = match
    pairs = [(disk.alias, matches.get(disk.alias), disk) for disk in after.manifest.disks]
    return [
        DiskChange(alias, one, other, changed_ranges(repository.blobs.node, one, other, chunk_size))
        for alias, one, other in [*pairs, *((disk.alias, disk, None) for disk in old)]
    ]


def compare_volumes(
    layouts: Sequence[Layout], before: Point, after: Point, disks: Sequence[DiskChange]
) -> list[VolumeChange]:
    numbers = [
        {id(disk): number for number, disk in enumerate(point.manifest.disks)} for point in (before, after)
    ]
    ranges = [(numbers[1][id(item.after)], item) for item in disks if item.after is not None]
    of_disk = {number: item.ranges for number, item in ranges}
    was = {numbers[0][id(item.before)]: number for number, item in ranges if item.before is not None}
    old = {_key_now(volume.key, was): volume for volume in layouts[0].volumes}
    found = []
    for volume in layouts[1].volumes:
        earlier = old.pop(volume.key, None)
        moved = earlier is None or list(volume.space.footprint()) != [
            item._replace(disk=was.get(item.disk, -1)) for item in earlier.space.footprint()
        ]
        changed = volume.space.size if moved else _changed(volume.space, of_disk)
        found.append(VolumeChange(volume, earlier, volume, changed))
    return found + [VolumeChange(volume, volume, None, volume.space.size) for volume in old.values()]


def _key_now(key: str, was: Mapping[int, int]) -> str:
    """The key that a volume of the older point has if it is there still: keys begin with the number of a
    disk, which is another when the order of the disks is."""
    number, slash, rest = key.partition("/")
    return f"{was.get(int(number), f'gone{number}')}{slash}{rest}" if number.isdecimal() else key


def _changed(space: LaidSpace, of_disk: Mapping[int, Sequence[Range]]) -> int:
    def within(places: Iterable[Piece | Ground]) -> int:
        return sum(overlap(of_disk[place.disk], place.offset, place.length) for place in places)

    # The legs of a mirror change together.
    found = max(map(within, space.copies()), default=None)
    return min(within(space.footprint()), space.size) if found is None else found


def _points(before: Point, after: Point) -> dict[str, Any]:
    return {"before": before.id, "after": after.id}


def _print_disks(disks: list[DiskChange], before: Point, after: Point, args: argparse.Namespace) -> None:
    if args.json:
        facts = [
            {
                "disk": item.alias,
                "size_before": item.before.size if item.before else None,
                "size_after": item.after.size if item.after else None,
                "changed": item.changed,
                "ranges": [part._asdict() for part in item.ranges],
            }
            for item in disks
        ]
        common.print_json({**_points(before, after), "disks": facts})
        return
    rows = [
        (
            item.alias,
            common.format_size(item.before.size) if item.before else "-",
            common.format_size(item.after.size) if item.after else "-",
            common.format_size(item.changed),
            str(len(item.ranges)),
        )
        for item in disks
    ]
    print(format_table(("DISK", ">SIZE BEFORE", ">AFTER", ">CHANGED", ">RANGES"), rows))


def _print_volumes(
    volumes: list[VolumeChange], before: Point, after: Point, args: argparse.Namespace
) -> None:
    if args.json:
        facts = [
            {
                "volume": item.volume.name,
                "key": item.volume.key,
                "type": item.volume.content.type if item.volume.content else None,
                "size_before": item.before.space.size if item.before else None,
                "size_after": item.after.space.size if item.after else None,
                "changed": item.changed,
            }
            for item in volumes
        ]
        common.print_json({**_points(before, after), "volumes": facts})
        return
    rows = [
        (
            item.volume.name,
            item.volume.content.type if item.volume.content else "-",
            common.format_size(item.before.space.size) if item.before else "-",
            common.format_size(item.after.space.size) if item.after else "-",
            common.format_size(item.changed),
        )
        for item in volumes
    ]
    print(format_table(("VOLUME", "TYPE", ">SIZE BEFORE", ">AFTER", ">CHANGED"), rows))


def _files(
    repository: Repository,
    before: Point,
    after: Point,
    disks: list[DiskChange],
    place: str | None,
    args: argparse.Namespace,
) -> int:
    problems = Problems()
    with open_guest(repository, before) as old, open_guest(repository, after) as new:
        volumes = compare_volumes([old.layout, new.layout], before, after, disks)
        same = {
            (item.before.key, item.after.key)
            for item in volumes
            if not item.changed and item.before and item.after
        }
        if args.json:
            changes = [_change_facts(change) for change in _changes(old, new, place, same, args, problems)]
            facts = {**_points(before, after), "files": changes}
            common.print_json({**facts, "problems": problems.count, "first_problems": problems.texts})
            return problems.status
        counts = dict.fromkeys(_MARKS, 0)
        for change in _changes(old, new, place, same, args, problems):
            counts[change.kind] += 1
            what = f"  ({', '.join(change.what)})" if change.what else ""
            print(f"{_MARKS[change.kind]} {shown(change.path)}{what}")
        if not args.quiet and not any(counts.values()):
            print("No file differs.")
        elif not args.quiet:
            print(", ".join(f"{count(number, 'file')} {kind}" for kind, number in counts.items()))
    return problems.status


def _changes(
    old: Guest,
    new: Guest,
    place: str | None,
    same: set[tuple[str, str]],
    args: argparse.Namespace,
    problems: Problems,
) -> Iterator[Change]:
    """`same` are the keys of the volumes that hold the same at both points, before and after."""

    def is_same(before: File, after: File) -> bool:
        return (old.volume_of(before).key, new.volume_of(after).key) in same

    starts = [guest.locate(place or "/") for guest in (old, new)]
    trees = [tree for tree, _ in starts]
    comparison = Comparison(trees[0], trees[1], problems.add_error, same=is_same, contents=args.contents)
    found: list[File | None] = []
    missing: list[GuestError] = []
    for tree, path in starts:
        try:
            found.append(tree.find(path))
        except GuestError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                # That it cannot be read does not say that it is not there.
                problems.add_error(os.fsencode(place or "/"), error)
                return iter(())
            found.append(None)
            missing.append(error)
    one, other = found
    if one is not None and other is not None:
        return comparison.changes(one, other)
    if one is None and other is None:
        problems.add_error(os.fsencode(place or "/"), missing[0])
    if one is not None:
        return comparison.all("removed", trees[0], one)
    return comparison.all("added", trees[1], other) if other else iter(())


def _change_facts(change: Change) -> dict[str, Any]:
    return {
        "change": change.kind,
        "path": text_of(change.path),
        "what": list(change.what),
        "size_before": change.before.stat.size if change.before else None,
        "size_after": change.after.stat.size if change.after else None,
        "mtime_ns_before": change.before.stat.mtime if change.before else None,
        "mtime_ns_after": change.after.stat.mtime if change.after else None,
    }
