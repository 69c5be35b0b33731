"""`vmfs mount` and `vmfs umount` as a person or fstab calls them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from mount_helpers import MIB, VMFS, WHEN, add_point, command, is_mounted, needs_fuse, run, wait_until

from vmfs.repo import names
from vmfs.repo.repository import Repository

pytestmark = [needs_fuse, pytest.mark.root, pytest.mark.usefixtures("measured")]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "mnt"
    path.mkdir()
    yield path
    while is_mounted(path):
        subprocess.run(["umount", "-l", path], check=True)


@pytest.fixture
def filled(repository: Repository) -> Repository:
    add_point(repository, {"sda": b"\1" * MIB})
    return repository


def mount(repository: Repository, place: Path, *options: str | Path) -> subprocess.CompletedProcess[str]:
    return run(*command(repository, "mount", *options, repository.store.url, place))


def lines(text: str) -> list[str]:
    return text.splitlines()


def test_mount_and_umount(filled: Repository, place: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    done = mount(filled, place, "--log-file", log)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (place / "web" / "latest" / "disks" / "sda.raw").read_bytes() == b"\1" * MIB
    again = mount(filled, place)
    assert again.returncode == 2
    assert lines(again.stderr) == [
        f"vmfs: {place}: already mounted (vmfs:{filled.store.url}); 'vmfs umount' it, or choose another place"
    ]
    assert run(VMFS, "umount", place).returncode == 0
    assert not is_mounted(place)
    wait_until(lambda: "is unmounted from" in log.read_text())
    wait_until(lambda: not list(filled.store.list(names.LEASES)))
    missing = run(VMFS, "umount", place)
    assert (missing.returncode, lines(missing.stderr)) == (2, [f"vmfs: {place} is not mounted"])


def test_relative_paths(filled: Repository, place: Path, tmp_path: Path) -> None:
    """The background process leaves the directory that they were relative to."""
    (tmp_path / "pass").write_bytes(b"correct horse\n")
    words = [VMFS, "mount", "--passphrase-file", "pass", "--cache-dir", "cache", "--log-file", "log"]
    words += ["--catalog", "sqlite:///some.sqlite", Path(filled.store.url).name, "mnt"]
    done = run(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    add_point(filled, {"sda": b"\2" * MIB}, time=WHEN + timedelta(hours=1))
    wait_until(lambda: os.readlink(place / "web" / "latest") == "2026-11-20T110000Z")
    assert "is mounted at" in (tmp_path / "log").read_text()
    assert (tmp_path / "some.sqlite").exists()
    assert run(VMFS, "umount", "mnt", cwd=tmp_path).returncode == 0


def test_output_pipe_is_not_kept_open(filled: Repository, place: Path) -> None:
    """Whoever reads the output of the command sees its end, though the mount goes on."""
    words = command(filled, "mount", filled.store.url, place)
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=30, check=True)
    assert done.stdout == b""
    assert is_mounted(place)


def test_busy(filled: Repository, place: Path) -> None:
    assert mount(filled, place).returncode == 0
    with (place / "web" / "latest" / "disks" / "sda.raw").open("rb") as file:
        done = run(VMFS, "umount", place)
        assert done.returncode == 1
        assert len(lines(done.stderr)) == 1
        assert f"{place} is busy" in done.stderr
        assert "--lazy" in done.stderr
        assert is_mounted(place)
        assert run(VMFS, "umount", "--lazy", place).returncode == 0
        assert not is_mounted(place)
        assert file.read() == b"\1" * MIB
    wait_until(lambda: not list(filled.store.list(names.LEASES)))


def test_wrong_passphrase(filled: Repository, place: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("battery staple\n")
    done = run(VMFS, "mount", "--passphrase-file", wrong, filled.store.url, place)
    assert done.returncode == 1
    assert len(lines(done.stderr)) == 1
    assert "passphrase" in done.stderr
    assert not is_mounted(place)


def test_bad_calls(filled: Repository, place: Path, tmp_path: Path) -> None:
    store = Path(filled.store.url)
    (tmp_path / "file").write_text("")
    (tmp_path / "full" / "x").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    for where, status, message in (
        (tmp_path / "absent", 2, "does not exist"),
        (tmp_path / "file", 2, "is not a directory"),
        (tmp_path / "full", 2, "is not empty"),
        (store, 2, "which vmfs reads"),
        (store / "packs", 2, "is inside"),
        (tmp_path, 2, "would hide it"),
    ):
        done = mount(filled, where)
        assert (done.returncode, len(lines(done.stderr))) == (status, 1), done.stderr
        assert message in done.stderr
    done = run(*command(filled, "mount", tmp_path / "empty", place))
    assert done.returncode == 1
    assert "is not a vmfs repository" in done.stderr
    assert run(*command(filled, "mount", filled.store.url)).returncode == 2
    assert run(*command(filled, "mount", "--uid", "no such user", filled.store.url, place)).returncode == 2


def test_no_fuse_here(filled: Repository, place: Path) -> None:
    """In a mount namespace whose /dev has no fuse."""
    script = 'mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && mknod /dev/urandom c 1 9 && "$@"'
    words = command(filled, "mount", filled.store.url, place)
    done = run("unshare", "--mount", "sh", "-c", script, "sh", *words)
    assert done.returncode == 1
    assert len(lines(done.stderr)) == 1
    assert "FUSE is not available: /dev/fuse is missing" in done.stderr


@pytest.fixture
def installed_helper() -> Iterator[None]:
    """The helper where mount(8) looks for it, as the documentation says to put it there."""
    target = VMFS.with_name("mount.fuse.vmfs")
    link = Path("/sbin/mount.fuse.vmfs")
    assert target.exists(), "the package is installed without its mount helper; install it anew"
    if link.exists():
        yield
        return
    link.unlink(missing_ok=True)
    link.symlink_to(target)
    yield
    link.unlink()


@pytest.mark.usefixtures("installed_helper")
def test_mount_t_fuse_vmfs(filled: Repository, place: Path, tmp_path: Path) -> None:
    secret = tmp_path / "pass"
    secret.write_text("correct horse\n")
    options = (
        f"passphrase_file={secret},cache_dir={tmp_path / 'cache'},allow_other,uid=65534,_netdev,x-gvfs-hide"
    )
    done = run("mount", "-t", "fuse.vmfs", filled.store.url, place, "-o", options)
    assert done.returncode == 0, done.stderr
    disk = place / "web" / "latest" / "disks" / "sda.raw"
    assert disk.read_bytes() == b"\1" * MIB
    assert disk.stat().st_uid == 65534
    assert run("umount", place).returncode == 0

    fstab = tmp_path / "fstab"
    fstab.write_text(f"{filled.store.url} {place} fuse.vmfs noauto,nofail,ro,{options} 0 0\n")
    done = run("mount", "--fstab", fstab, place)
    assert done.returncode == 0, done.stderr
    assert disk.read_bytes() == b"\1" * MIB
    assert run("umount", place).returncode == 0

    secret.write_text("wrong\n")
    failed = run("mount", "-t", "fuse.vmfs", filled.store.url, place, "-o", options)
    assert failed.returncode == 32
    assert "passphrase" in failed.stderr
    unknown = run("mount", "-t", "fuse.vmfs", filled.store.url, place, "-o", "offset_of_moon=5")
    assert unknown.returncode == 1
    assert "unknown mount option" in unknown.stderr


def test_mount_fuse3_calls_vmfs_itself(filled: Repository, place: Path, tmp_path: Path) -> None:
    """Without a helper of ours, mount(8) runs mount.fuse3, and that `vmfs REPO DIR -o …` from $PATH."""
    secret = tmp_path / "pass"
    secret.write_text("correct horse\n")
    environment = {**os.environ, "PATH": f"{VMFS.parent}:{os.environ['PATH']}"}
    options = f"rw,passphrase_file={secret},cache_dir={tmp_path / 'cache'}"
    words = ["/sbin/mount.fuse3", filled.store.url, place, "-o", options, "-t", "fuse.vmfs"]
    done = run(*words, env=environment)
    assert done.returncode == 0, done.stderr
    assert (place / "web" / "latest" / "disks" / "sda.raw").read_bytes() == b"\1" * MIB
