"""Guests that are made to do harm, and odd ones: nothing gets out of DEST, and every failure is a line."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from command_helpers import Site
from recovery_helpers import MIB, Filled, make_disk, mounted, needs_guests, run, vmfs

pytestmark = needs_guests

EXT4 = (Filled(32, ["mkfs.ext4", "-q", "-O", "^metadata_csum,^dir_index"], "/"),)


def back_up(root: Path, disk: Path) -> Site:
    site = Site(root)
    site.init()
    site.ingest("evil", f"vda={disk}")
    return site


def make_site(root: Path, fill: Callable[[Path], None], change: Callable[[Path], None]) -> Site:
    """A point of a guest whose disk is then changed behind the file system's back."""
    disk = root / "disk.raw"
    make_disk(disk, EXT4)
    with mounted(disk, EXT4, root / "guest") as guest:
        (guest / "etc").mkdir()
        (guest / "usr").mkdir()
        (guest / "etc/passwd").write_text("root\n")
        fill(guest)
    change(disk)
    return back_up(root, disk)


def rename(disk: Path, before: bytes, after: bytes) -> None:
    """In the entries of directories: a byte of length, one of type, the name."""
    content = bytearray(disk.read_bytes())
    assert len(before) == len(after)
    found = 0
    for kind in range(1, 8):
        entry = bytes([len(before), kind])
        at = content.find(entry + before)
        while at >= 0:
            content[at + 2 : at + 2 + len(before)] = after
            found += 1
            at = content.find(entry + before, at + 1)
    assert found
    disk.write_bytes(content)


def everything(root: Path) -> set[str]:
    return {
        os.path.relpath(os.path.join(folder, name), root)
        for folder, folders, names in os.walk(root)
        for name in folders + names
    }


def test_names_that_lead_out(tmp_path: Path) -> None:
    def fill(guest: Path) -> None:
        tree = guest / "tree"
        (tree / "ZQ").mkdir(parents=True)
        (tree / "ZQ" / "escaped").write_text("x")
        (tree / "upXescaped2").write_text("x")
        (tree / "ZZabsolute").write_text("x")
        (tree / "QXQ").mkdir()
        (tree / "QXQ" / "escaped3").write_text("x")
        (tree / "good").write_text("good")

    def change(disk: Path) -> None:
        rename(disk, b"ZQ", b"..")
        rename(disk, b"upXescaped2", b"../escaped2")
        rename(disk, b"ZZabsolute", b"/tmp/bsolu")
        rename(disk, b"QXQ", b"../")

    site = make_site(tmp_path, fill, change)
    target = tmp_path / "area" / "target"
    target.mkdir(parents=True)
    before = set(os.listdir("/tmp"))
    done = vmfs(site, "cp", "-a", "evil@latest", "/tree", target)
    assert "Traceback" not in done.err
    assert (target / "tree" / "good").read_text() == "good"
    assert everything(tmp_path / "area") == {"target", "target/tree", "target/tree/good"}
    assert "bsolu" not in set(os.listdir("/tmp")) - before
    archive = tmp_path / "out.tar"
    vmfs(site, "tar", "evil@latest", "/tree", "-o", archive)
    with tarfile.open(archive) as opened:
        assert opened.getnames() == ["tree", "tree/good"]


def test_a_link_and_a_directory_of_one_name(tmp_path: Path) -> None:
    """The link comes first, and points to a directory of this machine: nothing may be written there."""
    outside = tmp_path / "outside"
    outside.mkdir()

    def fill(guest: Path) -> None:
        (guest / "tree").mkdir()
        (guest / "tree" / "aa").symlink_to(outside)
        (guest / "tree" / "ab").mkdir()
        (guest / "tree" / "ab" / "planted").write_text("x")
        (guest / "tree" / "ac").symlink_to(outside / "planted2")
        (guest / "tree" / "ad").write_text("x")

    def change(disk: Path) -> None:
        rename(disk, b"ab", b"aa")
        rename(disk, b"ad", b"ac")

    site = make_site(tmp_path, fill, change)
    for force in ([], ["--force"]):
        done = vmfs(site, "cp", "-a", *force, "evil@latest", "/tree", tmp_path / "target")
        assert "Traceback" not in done.err
        assert os.listdir(outside) == []


def test_directories_in_a_circle(tmp_path: Path) -> None:
    def fill(guest: Path) -> None:
        (guest / "tree" / "a" / "b").mkdir(parents=True)
        (guest / "tree" / "a" / "b" / "file").write_text("x")

    def change(disk: Path) -> None:
        words = ["debugfs", "-w", "-R", "ln /tree /tree/a/b/again", f"{disk}?offset={MIB}"]
        subprocess.run(words, check=True, capture_output=True)

    site = make_site(tmp_path, fill, change)
    done = vmfs(site, "cp", "-a", "evil@latest", "/tree", tmp_path / "target")
    assert (done.status, done.err.count("\n")) == (1, 2)
    assert "/tree/a/b/again: this directory is in another place as well" in done.err
    assert (tmp_path / "target/a/b/file").exists()
    listed = vmfs(site, "ls", "-R", "evil@latest", "/tree")
    assert (listed.status, listed.out.count("file")) == (1, 1)
    archived = vmfs(site, "tar", "evil@latest", "/tree", "-o", tmp_path / "out.tar")
    assert archived.status == 1
    assert vmfs(site, "diff", "--files", "evil@latest", "evil@latest").status == 0


def test_an_fstab_full_of_traps(tmp_path: Path) -> None:
    def fill(guest: Path) -> None:
        lines = [
            "/dev/vda1 / ext4",
            "/dev/vda1 /../../../etc ext4",
            "/dev/vda1 /loop ext4",
            "/dev/vda1 /up ext4",
        ]
        (guest / "etc/fstab").write_text("\n".join([*lines, "x" * 2_000_000, "\\777 \\000 \\"]))
        (guest / "loop").symlink_to("loop")
        (guest / "up").symlink_to("../../..")

    site = make_site(tmp_path, fill, lambda disk: None)
    done = vmfs(site, "ls", "evil@latest")
    assert done.status == 0
    assert "too many symbolic links" in done.err
    # Its own root over /etc: what the guest asked for, and no way out of it.
    listed = vmfs(site, "ls", "evil@latest", "/etc/etc")
    assert "Traceback" not in listed.err
    assert vmfs(site, "ls", "-R", "evil@latest", "/").err.count("Traceback") == 0


def test_a_volume_that_cannot_be_read_is_no_empty_directory(tmp_path: Path) -> None:
    partitions = (
        Filled(32, ["mkfs.ext4", "-q"], "/"),
        Filled(16, ["mkfs.ext4", "-q", "-L", "other"], "/srv"),
        Filled(16, ["mkfs.ext4", "-q", "-L", "away"], "/opt"),
    )
    disk = tmp_path / "disk.raw"
    make_disk(disk, partitions)
    with mounted(disk, partitions, tmp_path / "guest") as guest:
        for name in ("etc", "usr", "late"):
            (guest / name).mkdir()
        (guest / "etc/fstab").write_text("/dev/vda2 /srv ext4\nLABEL=away /opt ext4\n/dev/vdx9 /late ext4\n")
        (guest / "srv/file").write_text("x")
    with disk.open("r+b") as file:
        # The superblock gives way to that of an encrypted volume.
        file.seek(33 * MIB)
        file.write(b"LUKS\xba\xbe\x00\x01" + bytes(8000))
    site = back_up(tmp_path, disk)
    mounts = {
        item["name"]: item["mounted_at"]
        for item in site.vmfs("ls", "evil@latest", "--json").json()["volumes"]
    }
    assert mounts == {"vda-p1": ["/"], "vda-p2": [], "vda-p3": ["/opt"]}
    done = vmfs(site, "ls", "evil@latest", "/srv")
    assert (done.status, done.out) == (1, "")
    assert "/srv of the guest cannot be read: volume vda-p2 holds crypto_LUKS" in done.err
    copied = vmfs(site, "cp", "-a", "evil@latest", "/", tmp_path / "copy")
    assert copied.status == 1
    assert (tmp_path / "copy/etc/fstab").exists()
    assert vmfs(site, "ls", "evil@latest", "/late").status == 0
    # It costs nobody what else was asked for.
    target = tmp_path / "target"
    target.mkdir()
    for words in (["tar", "-o", target / "tar"], ["iso", "-o", target / "iso"], ["cp"]):
        command, *options = words
        last = [target] if command == "cp" else []
        done = vmfs(site, command, *options, "evil@latest", "vda-p2:/", "/etc/fstab", *last)
        assert done.status == 1
        assert "vmfs: vda-p2:/: volume vda-p2 holds crypto_LUKS" in done.err
    assert (target / "fstab").read_text().startswith("/dev/vda2 /srv")
    with tarfile.open(target / "tar") as opened:
        assert opened.getnames() == ["etc/fstab"]
    assert (target / "iso").stat().st_size
    done = vmfs(site, "cp", "evil@latest", "none:/", "/etc/hostname", target)
    assert (done.status, "no volume 'none'" in done.err) == (2, True)


def test_file_systems_that_are_damaged(tmp_path: Path) -> None:
    """The places of inodes and directories overwritten with noise."""

    def fill(guest: Path) -> None:
        for number in range(200):
            (guest / f"folder {number % 10}").mkdir(exist_ok=True)
            (guest / f"folder {number % 10}" / str(number)).write_bytes(os.urandom(5000))

    def change(disk: Path) -> None:
        with disk.open("r+b") as file:
            for place in range(40):
                file.seek(MIB + 300_000 + place * 37_013)
                file.write(os.urandom(200))

    site = make_site(tmp_path, fill, change)
    for words in (
        ["ls", "-laR", "evil@latest", "vda-p1:/"],
        ["cp", "-a", "evil@latest", "vda-p1:/", tmp_path / "target"],
        ["tar", "evil@latest", "vda-p1:/", "-o", tmp_path / "out.tar"],
    ):
        command, *argv = words
        done = vmfs(site, str(command), *argv)
        assert done.status in (0, 1)
        assert "Traceback" not in done.err
    with tarfile.open(tmp_path / "out.tar") as opened:
        opened.getnames()


def test_a_disk_without_volumes(tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(os.urandom(MIB))
    site = back_up(tmp_path, disk)
    assert "no volumes" in vmfs(site, "ls", "evil@latest").out
    done = vmfs(site, "cat", "evil@latest", "/etc/fstab")
    assert (done.status, done.err.count("\n")) == (2, 1)
    assert "no volume looks like the root" in done.err


@pytest.mark.skipif(shutil.which("ntfs-3g") is None, reason="needs ntfs-3g and FUSE")
def test_a_guest_with_drive_letters(tmp_path: Path) -> None:
    partitions = (
        Filled(16, ["mkntfs", "-q", "-F", "-L", "Data"], "/d", "windows_names"),
        Filled(16, ["mkntfs", "-q", "-F", "-L", "System"], "/c", "windows_names"),
    )
    disk = tmp_path / "disk.raw"
    make_disk(disk, partitions, ids="EBD0A0A2-B9E5-4433-87C0-68B6B72699C7")
    with mounted(disk, partitions, tmp_path / "guest") as guest:
        (guest / "c/Windows/System32").mkdir(parents=True)
        (guest / "c/Users/Joe").mkdir(parents=True)
        (guest / "c/Users/Joe/Report.TXT").write_text("report")
        (guest / "d/Stuff").write_text("stuff")
    site = back_up(tmp_path, disk)
    mounts = {
        item["name"]: item["mounted_at"]
        for item in site.vmfs("ls", "evil@latest", "--json").json()["volumes"]
    }
    assert mounts == {"vda-p1": ["D:"], "vda-p2": ["C:"]}
    for path in (
        "/Users/Joe/Report.TXT",
        "c:/users/joe/report.txt",
        "C:\\USERS\\joe\\Report.txt",
        "/USERS/JOE/report.txt",
    ):
        assert vmfs(site, "cat", "evil@latest", path).out == "report"
    assert vmfs(site, "cat", "evil@latest", "D:/stuff").out == "stuff"
    done = vmfs(site, "cat", "evil@latest", "E:/stuff")
    assert (done.status, "it has C:, D:" in done.err) == (2, True)


@pytest.mark.skipif(shutil.which("mkfs.btrfs") is None, reason="needs btrfs-progs")
def test_subvolumes(tmp_path: Path) -> None:
    partitions = (Filled(128, ["mkfs.btrfs", "-q", "-L", "pool"], "/"),)
    disk = tmp_path / "disk.raw"
    make_disk(disk, partitions)
    with mounted(disk, partitions, tmp_path / "guest") as guest:
        for name in ("@", "@home", "@log"):
            run("btrfs", "subvolume", "create", guest / name)
        for folder in ("etc", "usr", "home", "var/log"):
            (guest / "@" / folder).mkdir(parents=True)
        number = run("btrfs", "inspect-internal", "rootid", guest / "@log").decode().strip()
        (guest / "@/etc/fstab").write_text(
            f"LABEL=pool / btrfs subvol=@ 0 0\nLABEL=pool /home btrfs subvol=/@home,compress=zstd 0 0\n"
            f"LABEL=pool /var/log btrfs subvolid={number} 0 0\n"
        )
        (guest / "@home/joe").write_text("joe")
        (guest / "@log/messages").write_text("messages")
        # Yesterday's root has an fstab as well.
        run("btrfs", "subvolume", "snapshot", "-r", guest / "@", guest / "before-update")
        (guest / "@/etc/hostname").write_text("now\n")
    site = back_up(tmp_path, disk)
    assert (
        vmfs(site, "cat", "evil@latest", "/etc/hostname", "/home/joe", "/var/log/messages").out
        == "now\njoemessages"
    )
    (volume,) = site.vmfs("ls", "evil@latest", "--json").json()["volumes"]
    assert volume["mounted_at"] == ["/", "/home", "/var/log"]
    assert vmfs(site, "ls", "evil@latest", "vda-p1:/").out.split() == ["@", "@home", "@log", "before-update"]
