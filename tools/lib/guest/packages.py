"""Debian packages, downloaded and unpacked side by side into a directory: a Linux to take pieces from.

Nothing is installed, and no maintainer script runs. apt knows the packages and checks what it downloads.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from guest.errors import GuestError

CACHE = Path(__file__).resolve().parents[3] / "build" / "guest"
"""Where everything is kept between runs. To be rid of it, remove it."""

KERNEL = "linux-image-cloud-amd64"
PACKAGES = (
    *(
        "busybox-static",
        "coreutils",
        "tar",
        "util-linux",
        "mount",
        "fdisk",
        "gdisk",
        "attr",
        "acl",
        "libcap2-bin",
    ),
    *("lvm2", "dmsetup", "mdadm", "thin-provisioning-tools"),
    *("e2fsprogs", "xfsprogs", "btrfs-progs", "dosfstools", "exfatprogs", "ntfs-3g"),
    *("extlinux", "syslinux-common", "zlib1g"),
)
_LAYOUT = 1
"""To be raised when what is unpacked here changes in a way that the names above do not tell."""
# What the programs link against are libraries; the rest of what packages depend on is for installed systems.
_LIBRARY = re.compile(r"lib(?!perl|python|pam|sqlite|slang|newt|debian-|file-|number-|text-)[a-z0-9.+-]+\Z")


def unpacked(cache: Path = CACHE) -> Path:
    """The directory with the packages' files, made if it is not there. Raises GuestError when apt cannot be
    reached. Several may ask at once."""
    text = "\n".join((KERNEL, *PACKAGES, str(_LAYOUT)))
    root = cache / f"root-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    with locked(cache):
        if not root.is_dir():
            for stale in cache.glob("root-*"):
                shutil.rmtree(stale)
            fresh = cache / "root.new"
            shutil.rmtree(fresh, ignore_errors=True)
            _unpack(fresh, cache / "archives")
            fresh.rename(root)
    return root


@contextmanager
def locked(cache: Path) -> Iterator[None]:
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def kernel_version(root: Path) -> str:
    """`6.1.0-18-cloud-amd64`."""
    return next((root / "boot").glob("vmlinuz-*")).name.removeprefix("vmlinuz-")


def _unpack(root: Path, archives: Path) -> None:
    shutil.rmtree(archives, ignore_errors=True)
    archives.mkdir(parents=True)
    try:
        names = _closure()
        _apt("apt-get", "-o", "APT::Sandbox::User=root", "download", "-qq", *names, folder=archives)
    except GuestError:
        if os.geteuid() != 0:
            raise
        # The lists of a fresh machine are empty, and those of an old one name versions that are gone.
        _apt("apt-get", "update", "-qq", folder=archives)
        names = _closure()
        _apt("apt-get", "-o", "APT::Sandbox::User=root", "download", "-qq", *names, folder=archives)
    for archive in sorted(archives.glob("*.deb")):
        _run(["dpkg-deb", "--extract", str(archive), str(root)])
    shutil.rmtree(archives)


def _closure() -> list[str]:
    """The kernel's real package, ours, and the libraries that they need."""
    flags = ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")
    tree = _apt("apt-cache", "depends", "--recurse", *(f"--no-{flag}" for flag in flags), *PACKAGES)
    libraries = {line for line in tree.splitlines() if _LIBRARY.match(line)}
    kernels = re.findall(r"Depends: (linux-image-\S+)", _apt("apt-cache", "depends", KERNEL))
    if not kernels:
        raise GuestError(f"apt knows no package {KERNEL}; run apt-get update")
    return sorted({*PACKAGES, *libraries, kernels[0]})


def _apt(*command: str, folder: Path | None = None) -> str:
    try:
        return _run(list(command), folder)
    except GuestError as error:
        raise GuestError(
            f"the packages of the test guest cannot be had from apt ({error}); is the network there, and "
            "are the sources of Debian configured? apt-get update says more"
        ) from None


def _run(command: list[str], folder: Path | None = None) -> str:
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C"},
        )
    except FileNotFoundError:
        raise GuestError(f"there is no {command[0]}; the test guest is made of Debian packages") from None
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise GuestError(f"{command[0]}: {last[-1] if last else f'status {done.returncode}'}")
    return done.stdout
