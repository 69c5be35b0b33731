"""vmfs ls: the volumes of a restore point, and the files in them."""

from __future__ import annotations

import argparse
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from vmfs.cli import common
from vmfs.cli.guest_arguments import (
    Problems,
    add_guest_command,
    point_and_guest,
    shown,
    take_words,
    text_of,
)
from vmfs.cli.tables import format_table, printable
from vmfs.volumes.files.client import GuestError
from vmfs.volumes.guest import Guest
from vmfs.volumes.layout import FoundVolume
from vmfs.volumes.tree import File, Tree, join

KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_BATCH = 1000
"""Lines that are aligned with each other."""


def register(subparsers: Any) -> None:
    parser = add_guest_command(
        subparsers,
        "ls",
        run,
        arguments="POINT [PATH]",
        help="list the volumes of a restore point, or files in it",
        description="List the files of a restore point, read from its disks without mounting anything. "
        "Without PATH, list its volumes, and where the guest mounts them.",
    )
    parser.add_argument("-a", "--all", action="store_true", help="show names that begin with a dot, too")
    parser.add_argument("-l", "--long", action="store_true", help="show mode, links, owner, size and time")
    parser.add_argument("-R", "--recursive", action="store_true", help="show what is in directories, too")


def run(args: argparse.Namespace) -> int:
    words = take_words(args, "ls", 1, 2, "a restore point, and a path or none")
    problems = Problems()
    with point_and_guest(args, words[0]) as (_, guest):
        if len(words) == 1:
            _list_volumes(guest, args)
            return 0
        tree, path = guest.locate(words[1])
        start = tree.find(path, follow=not args.long or path.endswith(b"/"))
        if args.json:
            common.print_json([_facts(file) for file in _files(tree, start, args, problems)])
        elif not start.is_directory:
            _print_files([start], args, whole=True)
        else:
            _print_tree(tree, start, args, problems)
    return problems.status


def _list_volumes(guest: Guest, args: argparse.Namespace) -> None:
    targets: dict[str, list[bytes]] = {}
    for mounted in guest.mounts:
        targets.setdefault(mounted.volume.key, []).append(mounted.target)
    volumes = guest.layout.volumes
    if args.json:
        common.print_json(
            {
                "volumes": [_volume_facts(volume, targets.get(volume.key, [])) for volume in volumes],
                "warnings": [*guest.layout.warnings, *guest.warnings],
            }
        )
        return
    guest.warnings[:0] = guest.layout.warnings
    rows = [
        (
            volume.name,
            volume.content.type if volume.content else "-",
            (volume.content and volume.content.label) or "-",
            common.format_size(volume.space.size),
            ", ".join(map(shown, targets.get(volume.key, []))) or "-",
        )
        for volume in volumes
    ]
    if rows:
        print(format_table(("VOLUME", "TYPE", "LABEL", ">SIZE", "MOUNTED AT"), rows))
    elif not args.quiet:
        print("The disks hold no volumes.")


def _volume_facts(volume: FoundVolume, targets: list[bytes]) -> dict[str, Any]:
    content = volume.content
    return {
        "name": volume.name,
        "key": volume.key,
        "kind": volume.kind,
        "size": volume.space.size,
        "type": content.type if content else None,
        "label": content.label if content else None,
        "uuid": content.uuid if content else None,
        "mounted_at": [text_of(target) for target in targets],
    }


def _wanted(name: bytes, args: argparse.Namespace) -> bool:
    return args.all or not name.startswith(b".")


def _directories(
    tree: Tree, start: File, args: argparse.Namespace, problems: Problems
) -> Iterator[tuple[File, list[File]]]:
    """Each directory that is to be listed, with the files to show of it. A directory that is in several
    places, as only a damaged file system has it, is listed once."""
    todo = [start]
    listed = set()
    while todo:
        directory = todo.pop()
        if directory.identity in listed:
            place = tree.prefix + directory.path
            problems.add(place, "this directory is in another place as well; left out here")
            continue
        listed.add(directory.identity)
        try:
            files = _children(tree, directory, args, problems)
        except GuestError as error:
            problems.add_error(tree.prefix + directory.path, error)
            continue
        yield directory, files
        if args.recursive:
            todo += [file for file in reversed(files) if file.is_directory]


def _children(tree: Tree, directory: File, args: argparse.Namespace, problems: Problems) -> list[File]:
    files = []
    for child in tree.children(directory):
        if child.file is None:
            place = tree.prefix + join(directory.path, child.name)
            problems.add(place, child.problem or "it cannot be read")
        elif _wanted(child.name, args):
            files.append(child.file)
    return files


def _files(tree: Tree, start: File, args: argparse.Namespace, problems: Problems) -> Iterator[File]:
    if not start.is_directory:
        yield start
        return
    for _, files in _directories(tree, start, args, problems):
        yield from files


def _print_tree(tree: Tree, start: File, args: argparse.Namespace, problems: Problems) -> None:
    first = True
    for directory, files in _directories(tree, start, args, problems):
        if args.recursive:
            print(("" if first else "\n") + shown(directory.path) + ":")
        first = False
        _print_files(files, args)


def _print_files(files: list[File], args: argparse.Namespace, *, whole: bool = False) -> None:
    """`whole` is to show paths."""
    for begin in range(0, len(files), _BATCH):
        batch = files[begin : begin + _BATCH]
        names = [shown(file.path if whole else file.path.rpartition(b"/")[2]) for file in batch]
        if not args.long:
            print("\n".join(map(printable, names)))
            continue
        rows = [(*_long(file), name + _arrow(file)) for file, name in zip(batch, names, strict=True)]
        # Only the table's lines: a heading in the midst of names would pass for one.
        header = ("", ">", ">", ">", ">", "", "")
        print("\n".join(format_table(header, rows).splitlines()[1:]))


def _long(file: File) -> tuple[str, ...]:
    facts = file.stat
    size = common.format_size(facts.size)
    if stat.S_ISCHR(facts.mode) or stat.S_ISBLK(facts.mode):
        size = f"{facts.device >> 8 & 0xFFF}, {facts.device & 0xFF | facts.device >> 12 & 0xFFF00}"
    return (
        stat.filemode(facts.mode),
        str(facts.links),
        str(facts.uid),
        str(facts.gid),
        size,
        show_time(facts.mtime),
    )


def _arrow(file: File) -> str:
    if not file.is_link:
        return ""
    try:
        return f" -> {shown(file.system.readlink(file.stat.node))}"
    except GuestError:
        return " -> ?"


def show_time(nanoseconds: int) -> str:
    """`2026-11-20 10:00:00` in UTC; what no calendar has is shown as a number."""
    try:
        return f"{_EPOCH + timedelta(seconds=nanoseconds // 10**9):%Y-%m-%d %H:%M:%S}"
    except OverflowError:
        return f"@{nanoseconds // 10**9}"


def _facts(file: File) -> dict[str, Any]:
    facts = file.stat
    found: dict[str, Any] = {
        "path": text_of(file.path),
        "type": KINDS.get(stat.S_IFMT(facts.mode), "unknown"),
        "mode": f"{stat.S_IMODE(facts.mode):04o}",
        "uid": facts.uid,
        "gid": facts.gid,
        "links": facts.links,
        "size": facts.size,
        "mtime_ns": facts.mtime,
        "ctime_ns": facts.ctime,
        "atime_ns": facts.atime,
    }
    if file.is_link:
        try:
            found["target"] = text_of(file.system.readlink(facts.node))
        except GuestError:
            found["target"] = None
    return found
