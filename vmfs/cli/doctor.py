"""vmfs doctor: can this machine do what it should, and is the repository in order?"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from vmfs.cli import common
from vmfs.cli.checks import Check, machine
from vmfs.cli.tables import printable
from vmfs.errors import VmfsError
from vmfs.repo.repository import default_cache_root
from vmfs.store import open_store


def register(subparsers: Any) -> None:
    common.add_repository_command(
        subparsers,
        "doctor",
        run,
        help="check this machine, and a repository's state",
        description="Check what vmfs needs of this machine and, if REPO is given, that the repository can be "
        "opened and is in order; whether its data is whole is for vmfs verify. What is wrong is told with a "
        "remedy. The exit status is 1 if a check fails; warnings do not count.",
    )


def run(args: argparse.Namespace) -> int:
    checks = []
    for check in _checks(args):
        checks.append(check)
        if not args.json and not (args.quiet and check.status == "ok"):
            _print(check)
    failed = any(check.status == "fail" for check in checks)
    if args.json:
        common.print_json({"checks": [asdict(check) for check in checks], "ok": not failed})
    return VmfsError.exit_status if failed else 0


def _checks(args: argparse.Namespace) -> Iterator[Check]:
    yield from machine(common.cache_root(args) or default_cache_root())
    if not (args.repository or common.default_repository()):
        return
    # Late, for a doctor that can still speak where SQLAlchemy is what is missing.
    from vmfs.cli import repository_checks

    settings = common.repository_settings(args)
    try:
        store = open_store(settings.url)
        yield from repository_checks.repository(
            store,
            lambda: common.open_repository(args),
            lambda repository: common.catalog_url(repository, args),
        )
    except VmfsError as error:
        yield Check("repository", "fail", str(error))


def _print(check: Check) -> None:
    print(f"{check.status:<5} {check.name}: {printable(check.message)}")
    if check.remedy:
        print(f"      -> {check.remedy}")
