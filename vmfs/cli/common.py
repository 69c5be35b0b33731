"""Arguments and openings that the commands share."""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmfs.cli.secrets import add_secret_arguments, find_secret
from vmfs.cli.settings import RepositorySettings, load_settings
from vmfs.errors import UsageError
from vmfs.repo.repository import Repository
from vmfs.store import open_store

if TYPE_CHECKING:
    from vmfs.catalog.catalog import Catalog

log = logging.getLogger(__name__)

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def add_verbosity(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-v", "--verbose", action="count", default=0, help="say more; twice, for debugging")
    parser.add_argument("-q", "--quiet", action="store_true", help="say nothing but errors")


def add_repository_command(
    subparsers: Any,
    name: str,
    run: Callable[[argparse.Namespace], int],
    *,
    prints_json: bool = True,
    **texts: str,
) -> argparse.ArgumentParser:
    """A command on a repository: REPO, all that opening it takes, and --json. `texts` are help, description
    and epilog. A command that takes positional arguments after REPO needs `take_repository`."""
    parser: argparse.ArgumentParser = subparsers.add_parser(name, **texts)
    parser.add_argument(
        "repository",
        nargs="?",
        metavar="REPO",
        help="directory of the repository, or its name in the configuration file; default $VMFS_REPOSITORY",
    )
    add_secret_arguments(parser)
    parser.add_argument(
        "--cache-dir", metavar="DIR", help="keep index and catalog below DIR; default $VMFS_CACHE_DIR"
    )
    parser.add_argument(
        "--catalog", metavar="URL", help="database of the catalog; default SQLite in the cache"
    )
    add_verbosity(parser)
    if prints_json:
        parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)
    return parser


def take_repository(args: argparse.Namespace, rest: list[str]) -> list[str]:
    """The positional arguments after REPO, where REPO may have been left out because the environment or the
    configuration names it: then what argparse took for REPO is the first of them."""
    # An empty one is an argument all the same: a shell's variable that is not set.
    if args.repository is not None and not names_repository(args.repository) and default_repository():
        rest = [args.repository, *rest]
        args.repository = None
    return rest


def repository_settings(args: argparse.Namespace) -> RepositorySettings:
    """Raises UsageError when no repository is named anywhere."""
    name = args.repository or default_repository()
    if not name:
        raise UsageError("no repository; give REPO or set VMFS_REPOSITORY")
    return load_settings().find(name)


def open_repository(args: argparse.Namespace) -> Repository:
    settings = repository_settings(args)
    store = open_store(settings.url)
    secret = find_secret(args, settings)
    return Repository.open(store, secret, cache_root=cache_root(args))


def cache_root(args: argparse.Namespace) -> Path | None:
    return Path(args.cache_dir) if args.cache_dir else None


def catalog_url(repository: Repository, args: argparse.Namespace) -> str | Path:
    """The URL that the user named, or the file of an SQLite database in the cache."""
    configured: str | None = args.catalog or repository_settings(args).catalog
    return configured or repository.cache_dir / "catalog.sqlite"


def open_catalog(repository: Repository, args: argparse.Namespace) -> Catalog:
    """The catalog, brought up to date with the store. Damaged points are warned of."""
    # SQLAlchemy takes a while to import, and not every command needs it.
    from vmfs.catalog.catalog import Catalog

    catalog = Catalog.open(catalog_url(repository, args), repository.id)
    for damaged in catalog.sync(repository):
        log.warning("restore point %s is damaged: %s", damaged.id, damaged.message)
    return catalog


def parse_size(text: str) -> int:
    """Bytes from `65536`, `256K`, `4M`. For argparse."""
    number, unit = text[:-1], text[-1:].lower()
    if unit.isdecimal():
        number, unit = text, ""
    # Digits of other scripts are none to a reader of the log.
    if unit not in _UNITS or not (number.isascii() and number.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write it as 65536, 256K or 4M")
    return int(number) * _UNITS[unit]


def format_size(size: float) -> str:
    """`1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def default_repository() -> str | None:
    """What stands for REPO where it is left out."""
    return os.environ.get("VMFS_REPOSITORY") or load_settings().default


def names_repository(text: str) -> bool:
    """Whether that is the name or the place of a repository."""
    # os.path takes any string; Path raises for names that are too long, or in places not for us to see.
    return text in load_settings().repositories or os.path.isfile(
        os.path.join(text.removeprefix("file://"), "config")
    )
