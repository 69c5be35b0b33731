"""The lab, held to clients that are not ours: ovirt-img, and the SDK's own example of a backup program. Both
as they are published."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab_client_helpers import sdk_client
from lab_helpers import DEFAULT, LEGACY, MIB, DiskRecipe, Lab, LabVm, needs_lab, running_lab
from qemu_helpers import run

pytestmark = [needs_lab, pytest.mark.slow]

SDK = "ovirt-engine-sdk-python"
SECTION = "lab"
OVIRT_IMG = Path(sys.executable).with_name("ovirt-img")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with running_lab(tmp_path_factory.mktemp("lab")) as lab:
        yield lab


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """They ship in the SDK's source distribution, of the version that is installed."""
    folder = tmp_path_factory.mktemp("sdk")
    wanted = f"{SDK}=={importlib.metadata.version(SDK)}"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
    command = [*pip, "--no-deps", "--no-binary", ":all:", "--dest", str(folder), wanted]
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    archives = list(folder.glob("*.tar.gz"))
    if result.returncode or len(archives) != 1:
        pytest.skip(f"{wanted} cannot be fetched: {result.stderr.strip()[-200:]}")
    with tarfile.open(archives[0]) as archive:
        archive.extractall(folder, filter="data")
    return next(folder.glob("*/examples"))


@pytest.fixture
def home(lab: Lab, tmp_path: Path) -> Path:
    """Where both clients find their configuration."""
    config = tmp_path / "home" / ".config"
    config.mkdir(parents=True)
    settings = (
        f"[{SECTION}]\n"
        f"engine_url = {lab.url.removesuffix('/ovirt-engine/api')}\n"
        f"username = {lab.username}\n"
        f"password = {lab.password}\n"
        f"cafile = {lab.ca_file}\n"
    )
    for name in ("ovirt.conf", "ovirt-img.conf"):
        (config / name).write_text(settings)
    return config.parent


def call(home: Path, *command: str | Path, cwd: Path | None = None) -> str:
    environment = {**os.environ, "HOME": str(home), "XDG_CONFIG_HOME": str(home / ".config")}
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=environment,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        timeout=300,
    )
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    return result.stdout


def same(image: Path, record: Path) -> bool:
    return "identical" in run("qemu-img", "compare", image, record)


@pytest.mark.parametrize("cluster", [DEFAULT, LEGACY], ids=["hybrid", "live"])
def test_backup_vm(lab: Lab, examples: Path, home: Path, tmp_path: Path, cluster: str) -> None:
    """Full and incremental, as qcow2 files on one another."""
    recipes = [
        DiskRecipe("root", 8 * MIB, bootable=True, snapshots=1, chunks=[(MIB, b"r" * MIB)]),
        DiskRecipe("raw", 4 * MIB, format="raw", chunks=[(MIB, b"w" * MIB)]),
    ]
    vm = lab.create_vm(f"sdk-{cluster}", recipes, cluster=cluster)
    target = tmp_path / "backups"
    target.mkdir()

    def back_up(kind: str, *options: str) -> None:
        program = [sys.executable, "backup_vm.py", "-c", SECTION, "--logfile", str(tmp_path / "log")]
        words = [*program, kind, "--backup-dir", str(target), *options, vm.id]
        call(home, *words, cwd=examples)
        check(lab, vm, target)

    back_up("full")
    vm.write("root", 5 * MIB, b"changed")
    vm.machine.zero(vm.disks["root"], MIB, MIB // 2)
    vm.write("raw", 0, b"changed")
    back_up("incremental", "--from-checkpoint-uuid", vm.record.checkpoints[-1].id)
    modes = sorted(path.name.split(".")[3] for path in target.glob("*.qcow2"))
    assert modes == ["full", "full", "full", "incremental"]
    assert lab.leftovers() == []


def check(lab: Lab, vm: LabVm, folder: Path) -> None:
    """What the newest backup wrote is what the disks held."""
    *_, records = lab.backup_records(vm).values()
    checkpoint = vm.record.checkpoints[-1].id
    for disk_id, record in records.items():
        (image,) = folder.glob(f"*.{checkpoint}.{disk_id}.*")
        assert same(image, record)


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_ovirt_img(lab: Lab, home: Path, tmp_path: Path, form: str) -> None:
    """A disk uploaded and downloaded again."""
    source, back = tmp_path / "source.raw", tmp_path / f"back.{form}"
    with source.open("wb") as file:
        file.truncate(16 * MIB)
        file.seek(3 * MIB)
        file.write(os.urandom(2 * MIB))
    options = ["-c", SECTION]
    call(home, OVIRT_IMG, "upload-disk", *options, "-s", "data", "-f", form, "--name", f"up-{form}", source)
    with sdk_client(lab) as sdk:
        (disk,) = sdk.disks.list(search=f"name=up-{form}")
        assert str(disk.status) == "ok"
    assert same(lab.content(disk.id, tmp_path / "content.raw"), source)
    call(home, OVIRT_IMG, "download-disk", *options, "-f", form, disk.id, back)
    assert same(back, source)
    transfers = [each for each in lab.transfer_stats() if each["disk_id"] == disk.id]
    assert [(each["direction"], each["phase"]) for each in transfers] == [
        ("upload", "finished_success"),
        ("download", "finished_success"),
    ]
    assert lab.leftovers() == []
