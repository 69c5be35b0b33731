"""vmfs rebuild: bring back catalog and index from the store alone."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from vmfs.catalog.catalog import Catalog
from vmfs.cli import common
from vmfs.cli.tables import count, printable
from vmfs.errors import IntegrityError
from vmfs.repo.rebuild import rebuild_index


def register(subparsers: Any) -> None:
    common.add_repository_command(
        subparsers,
        "rebuild",
        run,
        help="bring back catalog and index",
        description="Throw away the catalog and the local index and make both again from the repository. In "
        "the repository, packs that no index covers are indexed, and index objects that are damaged are "
        "replaced. The exit status is 3 if something in the repository cannot be read.",
    )


def run(args: argparse.Namespace) -> int:
    with common.open_repository(args) as repository:
        index = rebuild_index(repository)
        with Catalog.open(common.catalog_url(repository, args), repository.id) as catalog:
            catalog.clear()
            damaged = catalog.sync(repository)
            notes = catalog.sync_files(repository)
            points, vms, files = len(catalog.points()), len(catalog.vms()), catalog.file_versions()
    sound = not damaged and not index.unreadable and not notes
    if args.json:
        facts: dict[str, Any] = {
            "points": points,
            "vms": vms,
            "file_versions": files,
            "damaged": [asdict(point) for point in damaged],
            "damaged_notes": [note._asdict() for note in notes],
        }
        common.print_json({**facts, "index": asdict(index), "sound": sound})
        return 0 if sound else IntegrityError.exit_status
    for point in damaged:
        print(f"damaged: restore point {point.id}: {printable(point.message)}")
    for note in notes:
        print(f"damaged: note {note.id} of restore point {note.point}: {printable(note.message)}")
    for name, problem in index.unreadable.items():
        print(f"damaged: {name}: {printable(problem)}")
    for name in index.replaced:
        print(f"replaced: {name}, which was damaged")
    if not args.quiet:
        versions = f", {count(files, 'version')} of files" if files else ""
        print(f"Catalog: {count(points, 'restore point')} of {count(vms, 'VM')}{versions}")
        print(f"Index: {count(index.blobs, 'blob')} in {count(index.packs, 'pack')}")
        if index.indexed:
            print(f"{count(index.indexed, 'pack')} had no index and are indexed again")
    return 0 if sound else IntegrityError.exit_status
