"""vmfs-ingest backup: a VM of an engine, while it runs."""

from __future__ import annotations

import argparse
import gc
from contextlib import ExitStack
from typing import Any

from ingest.audit import Audit, Finding
from ingest.cli.engines import add_engine_arguments, connection_count, open_engine
from ingest.cli.facts import disk_facts, disk_summary
from ingest.engine.hooks import DEFAULT_LIMIT, make_hook
from ingest.engine.run import CONNECTIONS, Options, Outcome, back_up_vm
from vmfs.cli import common
from vmfs.cli.index_option import add_index_option, index_new_point
from vmfs.cli.progress import ProgressBars
from vmfs.errors import UsageError
from vmfs.format.manifest import Disk


def register(subparsers: Any) -> None:
    parser = common.add_repository_command(
        subparsers,
        "backup",
        run,
        help="back up a VM of an oVirt, OLVM or RHV engine",
        description="Back up the disks and the configuration of a VM, which may run meanwhile, as a new "
        "restore point. What the engine knows not to have changed since an earlier restore point is not "
        "read; where it cannot tell, a disk is read in full, and the summary says why.",
    )
    parser.add_argument("--vm", required=True, metavar="NAME", help="the VM's name or id")
    add_engine_arguments(parser)
    parser.add_argument(
        "--disk",
        action="append",
        default=[],
        metavar="ALIAS",
        help="back up only this disk, by its alias or id; may be repeated. Default all but those whose "
        "description in the engine has backup=0",
    )
    parser.add_argument("--full", action="store_true", help="read all of the disks")
    parser.add_argument(
        "--audit",
        type=_percent,
        metavar="PERCENT",
        help="of what is said not to have changed, read PERCENT again, drawn by lot, and compare it with the "
        "earlier restore point; a disk where it differs is read in full",
    )
    parser.add_argument(
        "--mode",
        choices=("auto", "live", "hybrid"),
        default="auto",
        help="live: QEMU copies what the guest overwrites meanwhile; hybrid: by a snapshot, which is merged "
        "afterwards; auto, the default: as the engine has it for the VM's cluster",
    )
    parser.add_argument(
        "--require-consistency",
        action="store_true",
        help="make no backup if the guest's file systems cannot be quiesced",
    )
    parser.add_argument(
        "--connections",
        type=connection_count,
        default=CONNECTIONS,
        metavar="N",
        help=f"connections to imageio for a disk; default {CONNECTIONS}",
    )
    parser.add_argument("--pre", metavar="COMMAND", help="run COMMAND before the backup begins")
    parser.add_argument("--post", metavar="COMMAND", help="run COMMAND when all is done, or has failed")
    parser.add_argument(
        "--hook-timeout",
        type=_seconds,
        default=DEFAULT_LIMIT,
        metavar="SECONDS",
        help=f"end a COMMAND that takes longer; default {DEFAULT_LIMIT:g}",
    )
    parser.add_argument(
        "--hook-policy",
        choices=("abort", "warn"),
        default="abort",
        help="what the failure of a COMMAND is: an error, the default, or a warning",
    )
    add_index_option(parser)


def run(args: argparse.Namespace) -> int:
    options = _options(args)
    with ExitStack() as opened:
        repository = opened.enter_context(common.open_repository(args))
        catalog = opened.enter_context(common.open_catalog(repository, args))
        engine = opened.enter_context(open_engine(args))
        bars = opened.enter_context(ProgressBars(quiet=args.quiet or args.json))
        # What was imported stays: the collector need not look at it again, with all threads waiting.
        gc.freeze()
        outcome = back_up_vm(
            repository,
            catalog,
            engine,
            args.vm,
            options,
            progress=lambda now: bars.update(now.alias, now.done, now.total),
        )
        catalog.sync(repository)
        bars.close()
        if not args.json and not args.quiet:
            _print(outcome)
        index_new_point(args, repository, catalog, outcome.point.id)
    if args.json:
        common.print_json(_facts(outcome))
    return 0


def _options(args: argparse.Namespace) -> Options:
    if args.full and args.audit is not None:
        raise UsageError("--audit compares what is not read, and --full reads all; leave out one of them")
    kept = {"policy": args.hook_policy, "limit": args.hook_timeout}
    return Options(
        disks=tuple(args.disk),
        full=args.full,
        audit=None if args.audit is None else Audit(args.audit),
        mode=args.mode,
        require_consistency=args.require_consistency,
        connections=args.connections,
        pre=None if args.pre is None else make_hook("pre", args.pre, **kept),
        post=None if args.post is None else make_hook("post", args.post, **kept),
    )


def _facts(outcome: Outcome) -> dict[str, Any]:
    manifest = outcome.point.manifest
    findings = {finding.alias: finding for finding in outcome.findings}
    return {
        "id": outcome.point.id,
        "vm": manifest.vm.name,
        "vm_id": manifest.vm.id,
        "engine": manifest.vm.engine,
        "time": manifest.time.isoformat(),
        "consistency": manifest.consistency,
        "parent": manifest.parent,
        "disks": [_disk_facts(disk, findings.get(disk.alias)) for disk in manifest.disks],
        "left_out": [{"alias": alias, "reason": reason} for alias, reason in outcome.left_out],
        "artifacts": [{"name": item.name, "size": item.size} for item in manifest.artifacts],
        "cleaned_up": outcome.cleaned,
        "checkpoints_removed": outcome.removed,
    }


def _disk_facts(disk: Disk, finding: Finding | None) -> dict[str, Any]:
    return {
        "id": disk.id,
        **disk_facts(disk),
        "audit": finding
        and {"compared": finding.compared, "read": finding.read, "mismatch": finding.mismatch},
    }


def _print(outcome: Outcome) -> None:
    manifest = outcome.point.manifest
    print(f"Restore point {outcome.point.id} of {manifest.vm.name} ({manifest.consistency})")
    findings = {finding.alias: finding for finding in outcome.findings}
    for disk in manifest.disks:
        print(f"  {disk.alias}: {disk_summary(disk)}{_audit(findings.get(disk.alias))}")
    for alias, reason in outcome.left_out:
        print(f"  {alias}: left out ({reason})")


def _audit(finding: Finding | None) -> str:
    if finding is None:
        return ""
    if finding.mismatch is not None:
        return "; AUDIT FAILED"
    return f"; audit of {common.format_size(finding.compared)} passed"


def _percent(text: str) -> float:
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = 0.0
    if not 0 < value <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is no share; give a percentage above 0, to 100")
    return value


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no time; give seconds")
    return value
