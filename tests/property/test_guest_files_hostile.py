"""Damaged and forged file systems: whoever reads them stays up, within its limits, and says what is wrong."""

from __future__ import annotations

import stat
import subprocess
import sys
import time
from pathlib import Path

import guest_mutations
import pytest
from command_helpers import unmeasured
from guest_tree_helpers import BytesSpace
from hostile_images import IMAGES

from vmfs.volumes.files.client import FileSystem, GuestError, Limits, open_filesystem

MUTATIONS = 2000
THROUGH_WORKERS = 40
MEMORY = 768 << 20
LONGEST = 20.0
"""Seconds for one image; a worker is ended after 30 for one request."""


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.parametrize("type_", IMAGES)
def test_mutated_images_do_no_harm(tmp_path: Path, type_: str) -> None:
    image = IMAGES[type_](tmp_path)
    outcomes: list[list[str]] = []
    deaths = 0
    while len(outcomes) + deaths < MUTATIONS:
        first = len(outcomes) + deaths
        done = subprocess.run(
            [
                # What we start has our own highest memory for a beginning; what that starts has not.
                *("sh", "-c", '"$@"; exit $?', "sh"),
                *(sys.executable, "-I", guest_mutations.__file__, type_, str(image)),
                *(str(first), str(MUTATIONS - first), str(MEMORY)),
            ],
            capture_output=True,
            text=True,
            timeout=600,
            # It may not write a file.
            env=unmeasured(),
        )
        lines = done.stdout.splitlines()
        outcomes += [line.split() for line in lines]
        # The libraries in C may end a worker; what is written in Python may not.
        if done.returncode:
            assert type_ == "ntfs", done.stderr[-2000:]
            deaths += 1
            assert deaths < 10, done.stderr[-2000:]
    assert max(float(seconds) for _, seconds, _, _ in outcomes) < LONGEST
    assert max(int(kib) for _, _, kib, _ in outcomes) < MEMORY >> 10
    # Else nothing was tested: most of the mutations leave something to be read.
    assert sum(outcome.startswith("read:") for *_, outcome in outcomes) > MUTATIONS // 4


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.parametrize("type_", IMAGES)
def test_through_workers_each_failure_is_a_guest_error(tmp_path: Path, type_: str) -> None:
    image = IMAGES[type_](tmp_path).read_bytes()
    used = guest_mutations.used_blocks(image, b"MARKER")
    limits = Limits(seconds=10)
    started = time.monotonic()
    for number in range(10_000, 10_000 + THROUGH_WORKERS):
        space = BytesSpace(guest_mutations.mutate(image, used, number))
        try:
            filesystem = open_filesystem(space, type_, name="hostile", limits=limits)
        except GuestError as error:
            check(error)
            continue
        with filesystem:
            walk(filesystem)
    assert time.monotonic() - started < THROUGH_WORKERS * limits.seconds


def walk(filesystem: FileSystem) -> None:
    """GuestError is the one that it may raise."""
    try:
        pending = [filesystem.root()]
    except GuestError:
        return
    seen = set()
    while pending and len(seen) < 500:
        status = pending.pop()
        if status.node in seen:
            continue
        seen.add(status.node)
        try:
            if stat.S_ISDIR(status.mode):
                entries = filesystem.scan(status.node)
                pending += [entry.stat for entry in entries if entry.stat is not None]
            elif stat.S_ISLNK(status.mode):
                filesystem.readlink(status.node)
            elif stat.S_ISREG(status.mode):
                filesystem.read(status.node, 0, 64 << 10)
                filesystem.extents(status.node)
            filesystem.xattrs(status.node)
        except GuestError as error:
            check(error)


def check(error: GuestError) -> None:
    assert str(error).startswith("volume hostile: ")
    assert "\n" not in str(error)
