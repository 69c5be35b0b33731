"""What was measured: written as it comes, so that a run that is stopped has lost nothing."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from .process import Cost, say

MIB = 1 << 20


class Results:
    """Figures by measure and contender, each a list with one entry a round."""

    def __init__(self, folder: Path, facts: Mapping[str, object]) -> None:
        self._json = folder / "bench.json"
        self._markdown = folder / "bench.md"
        self.facts = dict(facts)
        self.figures: dict[str, dict[str, list[float]]] = {}
        self.costs: dict[str, dict[str, list[dict[str, float]]]] = {}

    def add(self, measure: str, contender: str, value: float) -> None:
        self.figures.setdefault(measure, {}).setdefault(contender, []).append(value)
        say(f"{measure}: {contender}: {value:,.4g}")
        self.save()

    def add_cost(self, measure: str, contender: str, cost: Cost) -> None:
        """The time under its own name, the memory under `<measure>, memory`."""
        self.costs.setdefault(measure, {}).setdefault(contender, []).append(cost.as_json())
        self.add(measure, contender, cost.seconds)
        self.figures.setdefault(f"{measure}, memory", {}).setdefault(contender, []).append(cost.peak_rss)
        self.save()

    def save(self) -> None:
        tree = {"facts": self.facts, "figures": self.figures, "costs": self.costs}
        self._json.write_text(json.dumps(tree, indent=1) + "\n")
        self._markdown.write_text(table(self))


class Row(NamedTuple):
    """One line of the table: a measure, and how its figures are shown."""

    measure: str
    label: str
    show: Callable[[float], str]


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"


def _milliseconds(value: float) -> str:
    return f"{value * 1000:.1f} ms"


def _rate(value: float) -> str:
    return f"{value / 1e6:,.0f} MB/s"


def _count(value: float) -> str:
    return f"{value:,.0f} /s"


def _bytes(value: float) -> str:
    return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:,.0f} MB"


def _mebibytes(value: float) -> str:
    return f"{value / MIB:,.0f} MiB"


ROWS: Sequence[Row] = (
    Row("full", "full ingest", _seconds),
    Row("full, memory", "full ingest: peak memory", _mebibytes),
    Row("repository", "repository after it", _bytes),
    Row("again, touched", "again, nothing changed, all re-read", _seconds),
    Row("again, known", "again, nothing changed, known without reading", _seconds),
    Row("0.1 %", "incremental, 0.1 % changed", _seconds),
    Row("0.1 %, read", "… read from the disk", _bytes),
    Row("0.1 %, grown", "… repository grown by", _bytes),
    Row("1 %", "incremental, 1 % changed", _seconds),
    Row("1 %, read", "… read from the disk", _bytes),
    Row("1 %, grown", "… repository grown by", _bytes),
    Row("1 % doubled", "the same changes, disk of twice the size", _seconds),
    Row("1 % doubled, read", "… read from the disk", _bytes),
    Row("direct", "sequential read, O_DIRECT 1 MiB", _rate),
    Row("direct, together", "… four readers at once, in sum", _rate),
    Row("buffered", "sequential read, buffered", _rate),
    Row("buffered, together", "… four readers at once, in sum", _rate),
    Row("random", "random 4 KiB reads, O_DIRECT", _count),
    Row("mount memory", "mount: peak memory after these reads", _mebibytes),
    Row("mount", "mount, few points", _seconds),
)


def point_rows(count: int) -> Sequence[Row]:
    """The lines for a repository with many points."""
    name = f"{count:,} points"
    return (
        Row(f"{name}: first mount", f"{name}: mount, nothing cached", _seconds),
        Row(f"{name}: mount", f"{name}: mount", _seconds),
        Row(f"{name}: listing", f"{name}: listing after it", _milliseconds),
        Row(f"{name}: points", f"{name}: `vmfs points`", _seconds),
        Row(f"{name}: first byte", f"{name}: first byte of a disk after open", _milliseconds),
        Row(f"{name}: memory", f"{name}: peak memory of the mount", _mebibytes),
    )


FIND_ROWS: Sequence[Row] = (
    Row("find: command", "find by name in 100 points of 100,000 files, the whole command", _seconds),
    Row("find: name", "… the question to the catalog alone", _milliseconds),
    Row("find: path", "… by path", _milliseconds),
    Row("find: size", "… by size", _milliseconds),
    Row("find: rebuild", "… filling the catalog from nothing", _seconds),
    Row("find: rebuild, memory", "… its peak memory", _mebibytes),
    Row("find: lists", "… the repository, which holds nothing else", _bytes),
    Row("find: catalog, a million", "… the catalog, for a million versions of files", _bytes),
)

FILES_ROWS: Sequence[Row] = (
    Row("files open", "a guest's file system: first listing of its root", _seconds),
    Row("files list", "20,000 files with their attributes", _seconds),
    Row("files copy", "a file of 500 MiB copied out", _rate),
)

ENGINE_ROWS: Sequence[Row] = (
    Row("engine backup", "full backup of a running VM", _rate),
    Row("engine backup, command", "… the whole command", _seconds),
    Row("engine backup, command, memory", "… its peak memory", _mebibytes),
    Row("engine restore", "restore to a new disk", _rate),
    Row("engine restore, command", "… the whole command", _seconds),
    Row("engine restore, command, memory", "… its peak memory", _mebibytes),
)

COLUMNS = ("vmfs", "restic", "borg", "constant bytes", "dd")
FILES_COLUMNS = ("vmfs, files/", "kernel, volumes/", "guestmount, disks/")
ENGINE_COLUMNS = ("vmfs", "imageio client", "bare loop")


def table(results: Results) -> str:
    """Markdown: the median of each figure, and the facts of the machine."""
    many = (name for name in results.figures if " points: " in name)
    counts = sorted({int(name.split()[0].replace(",", "")) for name in many})
    rows = [*ROWS, *FIND_ROWS, *(row for count in counts for row in point_rows(count))]
    lines = [*_table(results, rows, COLUMNS), *_table(results, FILES_ROWS, FILES_COLUMNS)]
    lines += _engine_table(results)
    facts = [f"- {name}: {value}" for name, value in results.facts.items()]
    return "\n".join([*lines, *facts]) + "\n"


def _table(results: Results, rows: Sequence[Row], columns: Sequence[str]) -> list[str]:
    """Nothing where nothing was measured."""
    measured = [row for row in rows if row.measure in results.figures]
    if not measured:
        return []
    lines = [f"| | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    for row in measured:
        figures = results.figures[row.measure]
        cells = [row.show(median(figures[name])) if name in figures else "" for name in columns]
        lines.append(f"| {row.label} | {' | '.join(cells)} |")
    return [*lines, ""]


def _engine_table(results: Results) -> list[str]:
    """With what share vmfs reaches of each of the others."""
    lines = _table(results, ENGINE_ROWS, ENGINE_COLUMNS)
    shares = []
    for measure in ("engine backup", "engine restore"):
        figures = {name: median(each) for name, each in results.figures.get(measure, {}).items()}
        for name in ENGINE_COLUMNS[1:]:
            if "vmfs" in figures and name in figures:
                shares.append(f"- {measure}: vmfs beside the {name}: {figures['vmfs'] / figures[name]:.0%}")
    return [*lines, *shares]


def machine_facts(work: Path) -> dict[str, object]:
    """What a reader needs to know of the machine to compare with another."""
    cpu = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "date": time.strftime("%Y-%m-%d"),
        "CPU": f"{cpu}, {os.cpu_count()} cores",
        "memory": f"{memory / (1 << 30):.0f} GiB",
        "system": _system(),
        "kernel": platform.release(),
        "Python": platform.python_version(),
        "load average at the start": round(os.getloadavg()[0], 2),
        "file system of the repositories": _file_system(work),
        "writing there, 2 GiB, through the page cache": f"{_write_speed(work) / 1e6:.0f} MB/s",
        "writing there, 2 GiB, O_DIRECT": _direct_write_speed(work),
    }


def _system() -> str:
    for line in Path("/etc/os-release").read_text().splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip('"')
    return platform.platform()


def _file_system(path: Path) -> str:
    result = subprocess.run(["stat", "-f", "-c", "%T", str(path)], capture_output=True, text=True, check=True)
    return result.stdout.strip()


def _write_speed(folder: Path, *options: str) -> float:
    """Bytes a second of a large file, durable at the end. `options` are more of dd's."""
    size = 2 << 30
    path = folder / "write-speed"
    begin = time.monotonic()
    try:
        subprocess.run(
            ["dd", "if=/dev/zero", f"of={path}", "bs=4M", f"count={size >> 22}", "conv=fsync", *options],
            check=True,
            capture_output=True,
        )
        return size / (time.monotonic() - begin)
    finally:
        path.unlink(missing_ok=True)


def _direct_write_speed(folder: Path) -> str:
    try:
        return f"{_write_speed(folder, 'oflag=direct') / 1e6:.0f} MB/s"
    except subprocess.CalledProcessError:
        return "not supported"
