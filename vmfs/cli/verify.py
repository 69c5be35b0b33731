"""vmfs verify: is everything in the repository whole?"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from vmfs.cli import common
from vmfs.cli.progress import ProgressBars
from vmfs.cli.tables import count
from vmfs.errors import IntegrityError
from vmfs.repo.verify import Finding, Hit, Report, verify

_SHOWN_RANGES = 8


def register(subparsers: Any) -> None:
    parser = common.add_repository_command(
        subparsers,
        "verify",
        run,
        help="check that everything in the repository is whole",
        description="Check every object's structure and every restore point's map, or with --data every "
        "byte. Damage is told by object, restore point and range of the disk; the exit status is then 3.",
    )
    parser.add_argument(
        "points",
        nargs="*",
        metavar="POINT",
        help="only these restore points: an id, a prefix, VM@latest, VM@TIME",
    )
    parser.add_argument(
        "--data",
        nargs="?",
        const=100.0,
        default=0.0,
        type=_percent,
        metavar="PERCENT",
        help="read every byte, or those of PERCENT of the packs, chosen at random",
    )


def run(args: argparse.Namespace) -> int:
    specs = common.take_repository(args, args.points)
    with common.open_repository(args) as repository:
        points = None
        if specs:
            with common.open_catalog(repository, args) as catalog:
                points = [catalog.resolve(spec) for spec in specs]
        with ProgressBars(quiet=args.quiet or args.json) as bars:
            report = verify(repository, data=args.data / 100, points=points, progress=bars.update)
    if args.json:
        common.print_json({**asdict(report), "sound": report.sound})
    else:
        _print(report, quiet=args.quiet)
    return 0 if report.sound else IntegrityError.exit_status


def _percent(text: str) -> float:
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = 0.0
    if not 0 < value <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is no percentage; write --data=10")
    return value


def _print(report: Report, *, quiet: bool) -> None:
    for finding in report.findings:
        print(_finding(finding))
    for hit in report.hits:
        print(_hit(hit))
    if report.sound and not quiet:
        read = f", {common.format_size(report.bytes_read)} read" if report.bytes_read else ""
        print(f"{count(report.points, 'restore point')}, {count(report.packs, 'pack')}{read}: all sound")
    elif not report.sound:
        # What a note said is no part of the point.
        points = len({hit.point for hit in report.hits if hit.note is None})
        print(
            f"{count(len(report.findings), 'object')} damaged, {points} of "
            f"{count(report.points, 'restore point')} hit"
        )


def _finding(finding: Finding) -> str:
    return f"damaged: {finding.object}: {finding.problem}"


def _hit(hit: Hit) -> str:
    where = f"restore point {hit.point}" + (f" of {hit.vm}" if hit.vm else "")
    if hit.artifact:
        return f"lost: {where}, {hit.artifact}"
    if hit.note == "files":
        return f"lost: {where}, its file list; 'vmfs index --again' makes it anew"
    if hit.note:
        return f"lost: {where}, a note of kind {hit.note}"
    if not hit.disk:
        return f"lost: {where}, all of it"
    ranges = [f"{item.start}+{item.length}" for item in hit.ranges[:_SHOWN_RANGES]]
    more = len(hit.ranges) - len(ranges)
    tail = f" and {more} more ranges" if more else ""
    return f"lost: {where}, disk {hit.disk}, bytes {', '.join(ranges)}{tail}"
