"""vmfs mount: show the restore points as files."""

from __future__ import annotations

import argparse
import grp
import logging
import os
import pwd
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from vmfs.catalog import Catalog
from vmfs.cli import common
from vmfs.cli.secrets import find_secret
from vmfs.errors import UsageError
from vmfs.fs import mountpoint as places
from vmfs.fs.attributes import Ownership
from vmfs.fs.scratch import directory as scratch_directory
from vmfs.repo.repository import Repository, default_cache_root
from vmfs.store import LocalStore, Store, open_store

log = logging.getLogger(__name__)


def register(subparsers: Any) -> None:
    parser = common.add_repository_command(
        subparsers,
        "mount",
        run,
        prints_json=False,
        help="show the restore points as files",
        description="Mount the repository, read-only unless --scratch is given. Every restore point is a "
        "directory VM/TIME with the raw disks, their partitions and what was kept with them; VM/latest is "
        "the newest. New points appear by themselves. The command returns when the mount is up.",
        epilog="To loop-mount a partition: mount -o ro,loop,noload MOUNTPOINT/VM/latest/volumes/DISK-p1.raw "
        "DIR; for XFS, norecovery,nouuid in place of noload.",
    )
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", nargs="?", help="an empty directory")
    parser.add_argument("-f", "--foreground", action="store_true", help="stay in the foreground")
    parser.add_argument("--allow-other", action="store_true", help="let all users read the mount")
    parser.add_argument(
        "--scratch", metavar="DIR", help="let raw files be written to; what is written goes to DIR"
    )
    parser.add_argument(
        "--keep-scratch", metavar="NAME", help="keep what is written in DIR under NAME, and show it again"
    )
    parser.add_argument("--uid", type=_uid, metavar="USER", help="owner of the files; default you")
    parser.add_argument("--gid", type=_gid, metavar="GROUP", help="group of the files; default yours")
    parser.add_argument(
        "--log-file", metavar="FILE", help="log to FILE and not to syslog, when in the background"
    )


def run(args: argparse.Namespace) -> int:
    rest = common.take_repository(args, [args.mountpoint] if args.mountpoint else [])
    if len(rest) != 1:
        raise UsageError("vmfs mount takes a repository and a mountpoint")
    settings = common.repository_settings(args)
    store = open_store(settings.url)
    # The background process leaves this directory, so nothing may depend on it from here on.
    cache_root = (common.cache_root(args) or default_cache_root()).absolute()
    args.catalog = _absolute_sqlite(args.catalog or settings.catalog)
    places.check_fuse()
    shared = args.allow_other or args.uid not in (None, os.getuid())
    if shared:
        places.check_allow_other()
    scratch = _scratch(args, [*_directory(store), cache_root])
    path = places.check(Path(rest[0]), [*_directory(store), cache_root, *([scratch] if scratch else [])])
    ownership = Ownership(
        uid=os.getuid() if args.uid is None else args.uid,
        gid=os.getgid() if args.gid is None else args.gid,
        everybody=args.allow_other,
    )
    secret = find_secret(args, settings)

    def serve(ready: Callable[[], None]) -> None:
        # Imported late: pyfuse3 needs libfuse3, and its absence is told better than by an ImportError.
        from vmfs.fs import session

        options = session.MountOptions(
            mountpoint=path,
            ownership=ownership,
            allow_other=shared,
            scratch=scratch,
            keep_scratch=args.keep_scratch,
        )
        with (
            Repository.open(store, secret, cache_root=cache_root) as repository,
            closing(Catalog.open(common.catalog_url(repository, args), repository.id)) as catalog,
        ):
            session.serve(repository, catalog, options, ready)

    if args.foreground:
        serve(lambda: log.info("ready"))
        return 0
    from vmfs.fs.daemon import run_in_background

    return run_in_background(serve, Path(args.log_file).absolute() if args.log_file else None)


def _directory(store: Store) -> list[Path]:
    return [store.root] if isinstance(store, LocalStore) else []


def _scratch(args: argparse.Namespace, ours: list[Path]) -> Path | None:
    """The directory for what is written, if there is one."""
    if args.scratch is None:
        if args.keep_scratch is not None:
            raise UsageError("--keep-scratch needs --scratch DIR")
        return None
    return scratch_directory.check(Path(args.scratch), ours, args.keep_scratch)


def _absolute_sqlite(url: str | None) -> str | None:
    start, path = "sqlite:///", (url or "").removeprefix("sqlite:///")
    return start + os.path.abspath(path) if url and url.startswith(start) and path else url


def _uid(text: str) -> int:
    try:
        return int(text) if text.isdigit() else pwd.getpwnam(text).pw_uid
    except KeyError:
        raise argparse.ArgumentTypeError(f"there is no user {text!r}") from None


def _gid(text: str) -> int:
    try:
        return int(text) if text.isdigit() else grp.getgrnam(text).gr_gid
    except KeyError:
        raise argparse.ArgumentTypeError(f"there is no group {text!r}") from None
