"""vmfs diff: what changed from one restore point to another: blocks, volumes, or files."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
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
from vmfs.volumes.tree import File

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
    """A volume at both points; `changed` bytes of what it lies on, all of it if it lies elsewhere now.
    `volume` is the newer."""

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
            _print_volumes(compare_volumes(layouts, before, after, disks), before, after, args)
        else:
            _print_disks(disks, before, after, args)
    return 0


def compare_disks(repository: Repository, before: Point, after: Point) -> list[DiskChange]:
    """The disks of both points, matched by id, else by alias."""
    chunk_size = repository.blobs.chunk_size
    old = list(before.manifest.disks)
    pairs: list[tuple[str, Disk | None, Disk | None]] = []
    for disk in after.manifest.disks:
        match = next((item for item in old if item.id == disk.id), None)
        match = match or next((item for item in old if item.alias == disk.alias), None)
        if match is not None:
            old.remove(match)
        pairs.append((disk.alias, match, disk))
    pairs += [(disk.alias, disk, None) for disk in old]
    return [
        DiskChange(alias, one, other, changed_ranges(repository.blobs.node, one, other, chunk_size))
        for alias, one, other in pairs
    ]


def compare_volumes(
    layouts: Sequence[Layout], before: Point, after: Point, disks: Sequence[DiskChange]
) -> list[VolumeChange]:
    old = {volume.key: volume for volume in layouts[0].volumes}
    numbers = [
        {id(disk): number for number, disk in enumerate(point.manifest.disks)} for point in (before, after)
    ]
    ranges = [(numbers[1][id(item.after)], item) for item in disks if item.after is not None]
    of_disk = {number: item.ranges for number, item in ranges}
    was = {numbers[0][id(item.before)]: number for number, item in ranges if item.before is not None}
    found = []
    for volume in layouts[1].volumes:
        earlier = old.pop(volume.key, None)
        ground = list(volume.space.footprint())
        moved = earlier is None or ground != [
            item._replace(disk=was.get(item.disk, -1)) for item in earlier.space.footprint()
        ]
        changed = (
            volume.space.size
            if moved
            else sum(overlap(of_disk[item.disk], item.offset, item.length) for item in ground)
        )
        found.append(VolumeChange(volume, earlier, volume, changed))
    return found + [VolumeChange(volume, volume, None, volume.space.size) for volume in old.values()]


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
        same = {item.volume.key for item in volumes if not item.changed and item.before and item.after}
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
    same: set[str],
    args: argparse.Namespace,
    problems: Problems,
) -> Iterator[Change]:
    """`same` are the keys of the volumes that hold the same at both points."""

    def is_same(before: File, after: File) -> bool:
        key = new.volume_of(after).key
        return key in same and old.volume_of(before).key == key

    starts = [guest.locate(place or "/") for guest in (old, new)]
    trees = [tree for tree, _ in starts]
    comparison = Comparison(trees[0], trees[1], problems.add_error, same=is_same, contents=args.contents)
    found: list[File | None] = []
    missing: list[GuestError] = []
    for tree, path in starts:
        try:
            found.append(tree.find(path))
        except GuestError as error:
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
