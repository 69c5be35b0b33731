"""--index of the commands that make restore points."""

from __future__ import annotations

import argparse
import logging

from vmfs.catalog.catalog import Catalog
from vmfs.cli.found_files import sync_files
from vmfs.errors import VmfsError
from vmfs.repo.repository import Repository

log = logging.getLogger(__name__)


def add_index_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--index",
        action="store_true",
        help="then list the files of the new restore point, for vmfs find and vmfs history",
    )


def index_new_point(
    args: argparse.Namespace, repository: Repository, catalog: Catalog, point_id: str
) -> None:
    """The backup is there whatever becomes of this: what goes wrong is warned of."""
    if not args.index:
        return
    # What it takes to read file systems takes a while to import, and most backups do without.
    from vmfs.cli.index import show_progress, siblings_of, summary, tell_problems
    from vmfs.search.index import Indexer

    quiet = args.quiet or args.json
    try:
        point = catalog.point(point_id)
        siblings = siblings_of(catalog, point) if point else [point_id]
        with show_progress(quiet=quiet) as progress, Indexer(repository, progress=progress) as indexer:
            result = indexer.index(point_id, siblings)
        tell_problems(result)
        sync_files(repository, catalog)
    except VmfsError as error:
        log.warning("the files of restore point %s are not indexed: %s", point_id, error)
        return
    if not quiet:
        print(f"  files: {summary(result)}")
