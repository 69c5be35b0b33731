"""vmfs init: make a repository."""

from __future__ import annotations

import argparse
from typing import Any

from vmfs.cli import common
from vmfs.cli.secrets import find_secret
from vmfs.repo.keyring import DEFAULT_COST
from vmfs.repo.repository import DEFAULT_CHUNK, Repository
from vmfs.store import open_store


def register(subparsers: Any) -> None:
    parser = common.add_repository_command(
        subparsers,
        "init",
        run,
        help="make a repository",
        description="Make an encrypted repository in a directory that is empty or does not exist. "
        "Whoever loses every passphrase and key file of a repository loses what is in it.",
    )
    parser.add_argument(
        "--chunk-size",
        type=common.parse_size,
        default=DEFAULT_CHUNK,
        metavar="SIZE",
        help="cut disks into chunks of SIZE, 64K to 4M; cannot be changed later; default 256K",
    )
    parser.add_argument(
        "--kdf-cost",
        type=int,
        default=DEFAULT_COST,
        metavar="N",
        help=f"scrypt cost of the passphrase, log2; default {DEFAULT_COST}: 128 MiB, half a second",
    )


def run(args: argparse.Namespace) -> int:
    settings = common.repository_settings(args)
    store = open_store(settings.url)
    secret = find_secret(args, settings, new=True)
    with Repository.create(
        store, secret, chunk_size=args.chunk_size, cost=args.kdf_cost, cache_root=common.cache_root(args)
    ) as repository:
        if args.json:
            common.print_json(
                {"repository": store.url, "id": repository.id.hex(), "chunk_size": repository.chunk_size}
            )
        elif not args.quiet:
            print(f"Made repository {store.url}, id {repository.id.hex()}.")
            print(
                "Keep its passphrase or key file in another place, and a copy of config, keys/ and epochs/."
            )
    return 0
