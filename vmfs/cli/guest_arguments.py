"""What the commands on the files of a restore point share: POINT and PATH, opening them, and what goes wrong
with single files."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vmfs.cli import common
from vmfs.cli.entry import one_line
from vmfs.errors import UsageError, VmfsError
from vmfs.repo.repository import Point, Repository
from vmfs.volumes.files.client import FileSystem, open_filesystem
from vmfs.volumes.guest import Guest
from vmfs.volumes.layout import FoundVolume, PointDisk, find_volumes
from vmfs.volumes.tree import File, show

log = logging.getLogger(__name__)

PATH_HELP = "a path in the guest, or VOLUME:PATH"
SHOWN_PROBLEMS = 100


class Problems:
    """Files that something was wrong with: said at once, and counted."""

    def __init__(self) -> None:
        self.count = 0
        self.status = 0
        """The exit status of the command: 1, or 3 where the repository is damaged."""
        self.texts: list[str] = []

    def add_error(self, path: bytes, error: VmfsError) -> None:
        self.add(path, str(error), error.exit_status)

    def add(self, path: bytes, text: str, status: int = VmfsError.exit_status) -> None:
        self.count += 1
        self.status = max(self.status, status)
        line = f"{show(path)}: {text}"
        if self.count <= SHOWN_PROBLEMS:
            self.texts.append(line)
            log.error("%s", line)
        elif self.count == SHOWN_PROBLEMS + 1:
            log.error("more files have problems; they are only counted from here on")


def add_guest_command(
    subparsers: Any, name: str, run: Any, *, arguments: str, prints_json: bool = True, **texts: str
) -> argparse.ArgumentParser:
    """A command on REPO, and POINT and PATHs. `arguments` names those after REPO in the usage."""
    parser = common.add_repository_command(subparsers, name, run, prints_json=prints_json, **texts)
    parser.add_argument(
        "words",
        nargs="*",
        metavar=arguments,
        help=f"a restore point (an id, a prefix, VM@latest, VM@TIME), and {PATH_HELP}",
    )
    return parser


def load_points(args: argparse.Namespace, repository: Repository, specs: list[str]) -> list[Point]:
    with common.open_catalog(repository, args) as catalog:
        return [repository.load_point(catalog.resolve(spec)) for spec in specs]


def point_disks(repository: Repository, point: Point) -> list[PointDisk]:
    return [
        PointDisk(disk.alias, repository.open_disk(disk), disk.block_size) for disk in point.manifest.disks
    ]


@contextmanager
def open_guest(repository: Repository, point: Point) -> Iterator[Guest]:
    """The files of a point. What is worth knowing of its volumes is said at the end; what is odd of its
    disks, only if something has failed."""
    with Guest(find_volumes(point_disks(repository, point)), open_volume) as guest:
        try:
            yield guest
        except VmfsError:
            guest.warnings[:0] = guest.layout.warnings
            raise
        finally:
            for text in guest.warnings:
                log.warning("%s", text)


def open_volume(volume: FoundVolume) -> FileSystem:
    kind = volume.content.type if volume.content else "none"
    return open_filesystem(volume.space, kind, name=volume.name)


@contextmanager
def point_and_guest(args: argparse.Namespace, spec: str) -> Iterator[tuple[Point, Guest]]:
    with common.open_repository(args) as repository:
        (point,) = load_points(args, repository, [spec])
        with open_guest(repository, point) as guest:
            yield point, guest


def find_file(guest: Guest, place: str, *, follow: bool = True) -> File:
    """Raises UsageError when there is no such volume, GuestError when there is no such file."""
    tree, path = guest.locate(place)
    return tree.find(path, follow=follow)


def take_words(args: argparse.Namespace, command: str, least: int, most: int | None, usage: str) -> list[str]:
    """The arguments after REPO, if they are as many as they should be. Raises UsageError."""
    words = common.take_repository(args, args.words)
    if len(words) < least or (most is not None and len(words) > most):
        raise UsageError(f"vmfs {command} takes a repository, {usage}")
    if "" in words:
        raise UsageError(f"vmfs {command} takes a repository, {usage}; one of them is empty")
    return words


def text_of(name: bytes) -> str:
    """For JSON: what is no UTF-8 is a surrogate, which the output shows as an escape."""
    return name.decode(errors="surrogateescape")


def shown(name: bytes) -> str:
    """A name or path for a line of text."""
    return one_line(show(name))
