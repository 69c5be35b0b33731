"""100 restore points with file lists of 100,000 files each: what it costs to find one of them."""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from vmfs.catalog.catalog import Catalog
from vmfs.catalog.filesearch import FileQuery
from vmfs.catalog.globs import compile_glob
from vmfs.format import filelist
from vmfs.format.filelist import Entry
from vmfs.format.keys import Kind
from vmfs.format.manifest import Disk, Manifest, Vm
from vmfs.repo.filelists import KIND, FileLists, Mount, VolumeList
from vmfs.repo.notes import make_note
from vmfs.repo.repository import Repository
from vmfs.repo.secret import Passphrase
from vmfs.store import open_store

from .contenders import PASSPHRASE, Vmfs
from .points import FIRST_TIME
from .process import BenchError, output, run, say, tree_size
from .results import Results

POINTS = 100
FILES = 100_000
CHANGES = 500
"""Files of a point that are not as in the one before; spread over all directories, the worst case."""
_NAMES = ("report", "lib", "module", "img", "data", "index")
_ENDINGS = ("txt", "so", "py", "conf", "xlsx", "jpg")


def make_lists(repository: Path) -> None:
    """Points of a VM `files` and their notes, by the ways of the format; only the disks are empty."""
    choose = random.Random("files")  # noqa: S311 - repeatable is what is wanted
    with (
        Repository.open(open_store(str(repository)), Passphrase(PASSPHRASE.encode())) as opened,
        opened.write_session() as session,
    ):
        for number, entries in enumerate(_trees(choose)):
            manifest = Manifest(
                vm=Vm(name="files", id="files"),
                time=FIRST_TIME + timedelta(days=number),
                consistency="crash",
                disks=(Disk(id="disk", alias="disk", size=1 << 30, root=None, allocated=0),),
                producer="benchmark",
            )
            point = session.commit(manifest)
            runs = filelist.cut(entries)
            pieces = tuple(session.store_blob(Kind.ARTIFACT, filelist.encode(run)).id for run in runs)
            volume = VolumeList(
                key="0",
                name="disk",
                kind="disk",
                type="ext4",
                mounts=(Mount("/", ""),),
                pieces=pieces,
                entries=len(entries),
                listed=True,
                walked=point,
            )
            facts, blobs = FileLists(volumes=(volume,)).to_facts()
            session.commit_note(point, make_note(opened, KIND, facts, blobs))
            if (number + 1) % 20 == 0:
                say(f"made the lists of {number + 1} points")


def _trees(choose: random.Random) -> Iterator[list[Entry]]:
    """The entries of one point after another."""
    folders = [
        "/".join(f"{choose.choice(_NAMES)}{choose.randrange(30)}" for _ in range(choose.randrange(1, 6)))
        for _ in range(FILES // 12)
    ]
    places = {
        (
            choose.choice(folders).encode(),
            f"{choose.choice(_NAMES)}-{n:05x}.{choose.choice(_ENDINGS)}".encode(),
        )
        for n in range(FILES)
    }
    began = 1_700_000_000_000_000_000
    entries = [
        Entry(directory, name, 0o100644, 0, 0, choose.randrange(1 << 20), began + number, began + number)
        for number, (directory, name) in enumerate(sorted(places))
    ]
    for point in range(POINTS):
        for at in choose.sample(range(len(entries)), CHANGES if point else 0):
            now = began + point * 86_400_000_000_000
            entries[at] = entries[at]._replace(size=entries[at].size + 1, mtime=now, ctime=now)
        yield entries


def measure_find(contender: Vmfs, results: Results, rounds: int) -> None:
    """Fill a catalog from the notes; then ask it, by the command and by the query alone."""
    contender.create()
    say(f"making file lists: {POINTS} points of {FILES:,} files")
    environment = {**os.environ, **contender.env, "PYTHONPATH": os.pathsep.join(sys.path)}
    run([sys.executable, "-m", "benchmark.find", str(contender.repository)], environment, contender.log)
    results.add("find: lists", contender.name, tree_size(contender.repository))
    vmfs = contender.ingest_command.with_name("vmfs")
    results.add_cost(
        "find: rebuild",
        contender.name,
        run([vmfs, "rebuild", contender.repository], contender.env, contender.log),
    )
    with Repository.open(
        open_store(str(contender.repository)),
        Passphrase(PASSPHRASE.encode()),
        cache_root=Path(contender.env["VMFS_CACHE_DIR"]),
    ) as repository:
        path = repository.cache_dir / "catalog.sqlite"
        with Catalog.open(path, repository.id) as catalog:
            versions = catalog.file_versions()
            results.add("find: catalog, a million", contender.name, path.stat().st_size / versions * 1e6)
            for number in range(rounds):
                for measure, query in (
                    ("find: name", FileQuery(name=compile_glob(f"*-0{number + 1}a3*.xlsx"))),
                    ("find: path", FileQuery(path=compile_glob(f"/lib{number}/**/*.conf"))),
                    ("find: size", FileQuery(smallest=(1 << 20) - 20 * (number + 1))),
                ):
                    begin = time.monotonic()
                    catalog.find_files(query)
                    results.add(measure, contender.name, time.monotonic() - begin)
    for number in range(rounds):
        begin = time.monotonic()
        found = output([vmfs, "find", contender.repository, f"*-0{number + 1}b*", "--json"], contender.env)
        results.add("find: command", contender.name, time.monotonic() - begin)
        files = json.loads(found)["files"]
        if {len(file["points"]) for file in files} == set() or max(len(f["points"]) for f in files) != POINTS:
            raise BenchError("vmfs find does not find what was made")


if __name__ == "__main__":
    make_lists(Path(sys.argv[1]))
