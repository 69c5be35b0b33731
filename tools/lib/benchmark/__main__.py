"""tools/bench: the command."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path

from qemu import QemuError

from vmfs.cli.common import parse_size

from . import find, points
from .contenders import Borg, Contender, Restic, Vmfs, need
from .engine import EngineSection
from .files import FilesSection
from .image import make_image
from .process import BenchError, say
from .results import Results, machine_facts, table
from .suite import Suite

SECTIONS = ("full", "again", "incremental", "mounts", "doubled", "points", "engine", "find", "files")
GIB = 1 << 30


def main() -> int:
    arguments = parse()
    # A benchmark that is stopped takes its mounts and its gigabytes with it.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: sys.exit(128 + received))
    try:
        return measure(arguments)
    except (BenchError, QemuError) as error:
        say(f"failed: {error}")
        return 1
    except KeyboardInterrupt:
        say("stopped")
        return 128 + signal.SIGINT


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tools/bench",
        description="Measure vmfs beside restic, borg and the floors of the machine, on a disk image of real "
        "files. Writes bench.md and bench.json, and prints the table. Needs root and a quiet machine.",
    )
    parser.add_argument("--image", type=Path, help="take this raw image; else one is made")
    parser.add_argument(
        "--size",
        type=parse_size,
        help="of the image to make; default 8G, for engine alone 4G",
    )
    parser.add_argument("--data", type=parse_size, help="files to put into it; default 6G and 2G")
    parser.add_argument(
        "--source",
        type=Path,
        action="append",
        metavar="DIR",
        help="where its files come from; may be repeated; default /usr and /opt",
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=Path(os.environ.get("TMPDIR", "/var/tmp")),  # noqa: S108 - the folder in it is made safely
        metavar="DIR",
        help="where the repositories are made: this decides how fast they can be written. About four times "
        "--data is needed. Default $TMPDIR or /var/tmp",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("build/bench"), help="for the results; default build/bench"
    )
    parser.add_argument("--rounds", type=int, default=3, help="of everything; the median counts; default 3")
    parser.add_argument("--only", type=sections, default=SECTIONS, help=f"some of {','.join(SECTIONS)}")
    parser.add_argument("--no-peers", action="store_true", help="vmfs and the floors only")
    parser.add_argument("--borg-options", default="", help="more options for `borg create`, such as --sparse")
    parser.add_argument(
        "--points", type=counts, default=(1000, 10000), metavar="N,N", help="default 1000,10000"
    )
    parser.add_argument(
        "--peer-points",
        type=int,
        default=1000,
        metavar="N",
        help="points of restic and borg, which take about a second each to make; 0 for none; default 1000",
    )
    return parser.parse_args()


def sections(text: str) -> tuple[str, ...]:
    chosen = tuple(text.split(","))
    for name in chosen:
        if name not in SECTIONS:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(SECTIONS)}")
    return chosen


def counts(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)


def measure(arguments: argparse.Namespace) -> int:
    if os.getuid() != 0:
        raise BenchError("mounting disks needs root; run: sudo tools/bench")
    need("qemu-storage-daemon")
    if set(arguments.only) <= {"engine", "find", "files"}:
        arguments.no_peers = True
    if not arguments.no_peers:
        need("restic")
        need("borg")
    arguments.out.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="vmfs-bench.", dir=arguments.work)).resolve()
    try:
        run_sections(arguments, work)
    finally:
        if any(os.path.ismount(path) for path in work.glob("*/mnt")):
            say(f"{work}: something in it is still mounted, so it is left in place")
        else:
            shutil.rmtree(work)
    return 0


def run_sections(arguments: argparse.Namespace, work: Path) -> None:
    vmfs = Vmfs(work / "vmfs", Path(sys.executable).parent)
    restic = Restic(work / "restic")
    borg = Borg(work / "borg", arguments.borg_options.split())
    peers: list[Contender] = [] if arguments.no_peers else [restic, borg]
    results = Results(arguments.out, machine_facts(work))
    results.facts["programs"] = ", ".join(contender.version() for contender in (vmfs, *peers))
    chosen = set(arguments.only)
    if chosen - {"points", "find", "files"}:
        large = bool(chosen - {"points", "find", "files", "engine"})
        image = image_of(arguments, work, results, large=large)
        if large:
            suite = Suite(
                base=image,
                disk=work / "disk.raw",
                work=work,
                python=Path(sys.executable),
                vmfs=vmfs,
                peers=peers,
                rounds=arguments.rounds,
                results=results,
            )
            run_suite(suite, chosen)
        if "engine" in chosen:
            EngineSection(image, work / "engine", vmfs, arguments.rounds, results).run()
    if "files" in chosen:
        FilesSection(work / "files", vmfs, arguments.rounds, results).run()
    if "find" in chosen:
        find.measure_find(vmfs, results, arguments.rounds)
    if "points" in chosen:
        for count in arguments.points:
            points.measure_vmfs(vmfs, results, count, arguments.rounds)
        if peers and arguments.peer_points:
            points.measure_restic(restic, results, arguments.peer_points, arguments.rounds)
            points.measure_borg(borg, results, arguments.peer_points, arguments.rounds)
    sys.stdout.write(table(results))


def image_of(arguments: argparse.Namespace, work: Path, results: Results, *, large: bool) -> Path:
    """The user's, or one that is made."""
    image: Path | None = arguments.image
    if image is None:
        image = work / "image.raw"
        size = arguments.size or (8 * GIB if large else 4 * GIB)
        data = arguments.data or (6 * GIB if large else 2 * GIB)
        make_image(image, size, data, arguments.source or [Path("/usr"), Path("/opt")])
    status = image.stat()
    results.facts["image"] = (
        f"{status.st_size / GIB:.1f} GiB, {status.st_blocks * 512 / GIB:.1f} GiB of it data"
    )
    return image.resolve()


def run_suite(suite: Suite, chosen: Collection[str]) -> None:
    suite.prepare()
    # The others need a repository that is filled.
    suite.full(suite.rounds if "full" in chosen else 1)
    for name, section in (
        ("again", suite.again),
        ("incremental", suite.incremental),
        ("mounts", suite.mounts),
        ("doubled", suite.doubled),
    ):
        if name in chosen:
            section()
    suite.clean()


if __name__ == "__main__":
    sys.exit(main())
