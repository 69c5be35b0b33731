"""The kit that runs scripts in a small guest with a kernel of its own."""

from __future__ import annotations

import hashlib
from pathlib import Path

import boot_helpers  # noqa: F401 - the path of the tools
import pytest
from guest import kit
from guest.cpio import Archive

pytestmark = pytest.mark.slow


def test_a_script_has_its_disks_and_files_and_leaves_what_it_wrote(tmp_path: Path) -> None:
    disks = [tmp_path / "a", tmp_path / "b, with a comma"]
    for number, disk in enumerate(disks):
        disk.write_bytes(bytes([number + 1]) * (32 << 20))
    said = kit.run(
        "set -e\n"
        "sha256sum </data/file\n"
        "dd if=/dev/vdb bs=1 count=1 status=none | od -An -tu1\n"
        "pvcreate -q /dev/vda >/dev/null 2>&1; vgcreate -q vg /dev/vda >/dev/null 2>&1\n"
        "lvcreate -q -n lv -l 100%FREE vg >/dev/null 2>&1; mkfs.ext4 -q /dev/vg/lv\n"
        "blkid -o value -s TYPE /dev/vg/lv\n"
        "vgchange -q -an vg\n",
        disks,
        files={"/data/file": b"hello"},
    )
    assert hashlib.sha256(b"hello").hexdigest() in said
    assert "2" in said.split()
    assert "ext4" in said
    assert b"LVM2 001" in disks[0].read_bytes()[:4096]
    assert disks[1].read_bytes() == b"\2" * (32 << 20)


def test_a_script_that_fails_is_told_with_what_it_said() -> None:
    with pytest.raises(kit.GuestError, match=r"status 3[\s\S]*half way"):
        kit.run("echo half way; exit 3", [])


def test_a_script_that_does_not_end_is_ended() -> None:
    with pytest.raises(kit.GuestError, match="did not end within 2 s"):
        kit.run("sleep 1000", [], seconds=2)


def test_the_same_files_make_the_same_archive() -> None:
    made = []
    for _ in range(2):
        archive = Archive()
        archive.file("a/b/c", b"x" * 5, 0o755)
        archive.link("a/l", "b/c")
        made.append(archive.to_bytes())
    assert made[0] == made[1]
    assert made[0].startswith(b"070701")
    assert len(made[0]) % 4 == 0
