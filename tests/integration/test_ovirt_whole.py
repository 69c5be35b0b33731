"""The whole way round, by the commands: a VM with a file system is backed up, changed, destroyed, and
restored from every point; what is in it is what was in it then."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from command_helpers import Site, call
from lab_helpers import MIB, DiskRecipe, Lab, LabVm, login_options, needs_lab

from ingest.engine.session import Engine
from ingest.engine.settings import EngineSettings

pytest_plugins = "engine_fixtures"
pytestmark = [needs_lab, pytest.mark.root]

SIZE = 96 * MIB
START = MIB
Files = dict[str, str]
"""Digests by path."""


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = Site(tmp_path)
    made.init()
    return made


def command(lab: Lab, site: Site, name: str, *given: object) -> Any:
    words = [name, site.repository, *given, *site.options(), *login_options(lab), "--json"]
    return call("vmfs-ingest", *words).json()


def file_system(folder: Path) -> Path:
    """A disk with a GPT and ext4, full of files."""
    tree = folder / "tree"
    (tree / "deep" / "er").mkdir(parents=True)
    for number in range(200):
        (tree / "deep" / f"file {number}").write_bytes(hashlib.sha512(b"%d" % number).digest() * (number * 4))
    (tree / "large").write_bytes(hashlib.sha512(b"large").digest() * (MIB // 8))
    disk = folder / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(SIZE)
    subprocess.run(["sfdisk", "-q", disk], input=b"label: gpt\nstart=2048\n", check=True, timeout=60)
    offset, length = f"offset={START}", f"{(SIZE - 2 * START) // 1024}k"
    words = ["mkfs.ext4", "-q", "-F", "-E", f"{offset},nodiscard", "-d", tree, disk, length]
    subprocess.run(words, check=True, timeout=60)
    return disk


@contextmanager
def loop_mounted(disk: Path, place: Path, options: str) -> Iterator[Path]:
    place.mkdir(exist_ok=True)
    limit = SIZE - 2 * START
    subprocess.run(
        ["mount", "-o", f"loop,offset={START},sizelimit={limit},{options}", disk, place],
        check=True,
        timeout=60,
    )
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True, timeout=60)


def files(disk: Path, place: Path) -> Files:
    with loop_mounted(disk, place, "ro,noload") as root:
        return {
            str(path.relative_to(root)): hashlib.blake2b(path.read_bytes()).hexdigest()
            for path in sorted(root.rglob("*"))
            if path.is_file()
        }


def change_files(lab: Lab, vm: LabVm, folder: Path, number: int) -> None:
    """As the guest does, through its disk: its blocks are those of a copy that was changed by a kernel."""
    disk_id = vm.disks["system"]
    before = lab.content(disk_id, folder / "before.raw")
    after = folder / "after.raw"
    subprocess.run(["cp", "--sparse=always", before, after], check=True)
    with loop_mounted(after, folder / "mnt", "rw") as root:
        (root / f"new {number}").write_bytes(hashlib.sha512(b"new%d" % number).digest() * 5000)
        (root / "deep" / f"file {10 + number}").unlink()
        (root / "deep" / f"file {20 + number}").write_bytes(b"changed")
    with before.open("rb") as old, after.open("rb") as new:
        for offset in range(0, SIZE, 4096):
            block = new.read(4096)
            if old.read(4096) != block:
                vm.machine.write(disk_id, offset, block)


def destroy(lab: Lab, vm_id: str) -> None:
    settings = EngineSettings(
        name="lab", url=lab.url, username=lab.username, password=lab.password, ca_file=str(lab.ca_file)
    )
    with Engine.connect(settings, patience=20) as engine:
        service = engine.services().vms_service().vm_service(vm_id)
        engine.ask("stop", service.stop, repeat=True)
        engine.wait("stop", service.get, lambda found: found.status.value == "down", limit=30)
        engine.ask("remove", service.remove, repeat=True)
        vms = engine.services().vms_service()
        engine.wait("remove", vms.list, lambda found: vm_id not in {each.id for each in found}, limit=30)


def test_restored_from_any_point(lab: Lab, site: Site, tmp_path: Path) -> None:
    recipe = DiskRecipe("system", SIZE, bootable=True, source=file_system(tmp_path))
    vm = lab.create_vm("web", [recipe])
    points: list[str] = []
    held: list[Files] = []
    for number in range(3):
        if number:
            change_files(lab, vm, tmp_path, number)
        facts = command(lab, site, "backup", "--vm", "web")
        assert [disk["mode"] for disk in facts["disks"]] == ["incremental" if number else "full"]
        points.append(facts["id"])
        held.append(files(lab.content(vm.disks["system"], tmp_path / "now.raw"), tmp_path / "mnt"))
    assert len({frozenset(each.items()) for each in held}) == 3
    records = [found[vm.disks["system"]] for found in lab.backup_records(vm).values()]
    destroy(lab, vm.id)
    with pytest.raises(LookupError):
        lab.vm("web")
    for number, point in enumerate(points):
        restored = command(lab, site, "restore", point, "--start")
        assert restored["vm"]["name"] == ("web" if number == 0 else f"web-{number}")
        assert restored["vm"]["started"]
        (disk,) = restored["disks"]
        content = lab.content(disk["id"], tmp_path / f"restored-{number}.raw")
        subprocess.run(["cmp", content, records[number]], check=True, timeout=60)
        assert files(content, tmp_path / "mnt") == held[number]
        assert abs(content.stat().st_blocks - records[number].stat().st_blocks) * 512 <= 0.05 * SIZE
    assert lab.leftovers() == []
