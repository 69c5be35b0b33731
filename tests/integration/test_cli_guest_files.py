"""ls, cat, cp and tar on the files of a guest: all as the kernel saw it, and nothing that leads out of it."""

from __future__ import annotations

import io
import json
import os
import shutil
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_helpers import Site
from recovery_helpers import (
    MIB,
    NOBODY,
    Filled,
    Truth,
    fill,
    make_disk,
    mounted,
    needs_guests,
    run,
    truth,
    vmfs,
)

pytestmark = needs_guests

ROOT_ID = "11111111-2222-3333-4444-555555555555"
PARTITIONS = (
    Filled(96, ["mkfs.ext4", "-q", "-U", ROOT_ID], "/"),
    Filled(40, ["mkfs.xfs", "-q", "-L", "home"], "/home"),
    Filled(16, ["mkfs.ext4", "-q", "-L", "boot dir"], "/boot"),
)
FSTAB = f"""# a comment
UUID={ROOT_ID} / ext4 defaults 0 1
LABEL=home  /home  xfs  defaults  0 2
/dev/disk/by-label/boot\\x20dir /boot ext4 noauto 0 0
/dev/vda9 /nowhere ext4 defaults 0 0
UUID="{ROOT_ID}" none swap sw 0 0
"""


class Guest:
    """A point of a guest, and the truth of it."""

    def __init__(self, root: Path) -> None:
        self.site = Site(root)
        self.disk = root / "disk.raw"
        make_disk(self.disk, PARTITIONS)
        with mounted(self.disk, PARTITIONS, root / "guest") as guest:
            fill(guest)
            (guest / "etc/fstab").write_text(FSTAB)
            (guest / "home/joe/.ssh").mkdir(parents=True)
            (guest / "home/joe/report").write_bytes(os.urandom(2 * MIB))
            os.symlink("/etc/hostname", guest / "home/joe/name")
            (guest / "boot/vmlinuz").write_bytes(os.urandom(MIB))
        with mounted(self.disk, PARTITIONS, root / "guest", read_only=True) as guest:
            self.truth = truth(guest)
        self.site.init()
        self.site.ingest("web", f"vda={self.disk}")

    def below(self, path: bytes) -> dict[bytes, Truth]:
        """The truth of a directory, by path below it."""
        start = path + b"/"
        found = {name[len(start) :]: facts for name, facts in self.truth.items() if name.startswith(start)}
        return {b".": self.truth[path], **found}


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    """Where other users may look: pytest's own directories are closed to them."""
    root = Path(tempfile.mkdtemp(prefix="vmfs-test-"))
    try:
        root.chmod(0o755)
        made = Guest(root)
        run("chmod", "-R", "o+rX", made.site.repository, made.site.passphrase)
        yield made
    finally:
        shutil.rmtree(root)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that everybody may use, on a file system that takes all attributes."""
    root = Path(tempfile.mkdtemp(prefix="vmfs-test-", dir="/var/tmp"))
    root.chmod(0o777)
    yield root
    shutil.rmtree(root)


def strip(facts: dict[bytes, Truth], *, user: bool = False) -> dict[bytes, Truth]:
    """Without what a copy cannot have, for a user who is not root."""
    if not user:
        return facts
    return {
        name: one._replace(
            uid=NOBODY,
            gid=NOBODY,
            mode=one.mode & ~(stat.S_ISUID | stat.S_ISGID),
            xattrs={
                key: value for key, value in one.xattrs.items() if not key.startswith(("security", "trusted"))
            },
        )
        for name, one in facts.items()
        if not (stat.S_ISCHR(one.mode) or stat.S_ISBLK(one.mode))
    }


def test_volumes_and_where_they_are_mounted(guest: Guest) -> None:
    found = guest.site.vmfs("ls", "web@latest", "--json").json()
    assert [(item["name"], item["type"], item["mounted_at"]) for item in found["volumes"]] == [
        ("vda-p1", "ext4", ["/"]),
        ("vda-p2", "xfs", ["/home"]),
        ("vda-p3", "ext4", ["/boot"]),
    ]
    text = guest.site.vmfs("ls", "web@latest").out
    assert "boot dir" in text
    assert "96.0 MiB" in text


def test_every_file_is_listed_as_the_kernel_has_it(guest: Guest) -> None:
    found = guest.site.vmfs("ls", "-aR", "web@latest", "/", "--json").json()
    listed = {
        os.fsencode(item["path"].lstrip("/")): (
            int(item["mode"], 8),
            item["uid"],
            item["gid"],
            item["mtime_ns"],
            item.get("target"),
        )
        for item in found
    }
    expected = {
        name: (
            stat.S_IMODE(facts.mode),
            facts.uid,
            facts.gid,
            facts.mtime,
            facts.content if stat.S_ISLNK(facts.mode) else None,
        )
        for name, facts in guest.truth.items()
        if name != b"."
    }
    assert listed == expected


def test_a_listing_for_people(guest: Guest) -> None:
    plain = guest.site.vmfs("ls", "web@latest", "/odd").out.splitlines()
    assert "new\\nline" in plain
    assert "size-4096" in plain
    assert "..hidden" not in plain
    assert "..hidden" in guest.site.vmfs("ls", "-a", "web@latest", "/odd").out.splitlines()
    long = guest.site.vmfs("ls", "-l", "web@latest", "/odd/size-3000000").out.split()
    assert long[0] == "-rw-r--r--"
    assert long[4:6] == ["2.9", "MiB"]
    assert long[-1] == "/odd/size-3000000"
    assert "-> /etc/hostname" in guest.site.vmfs("ls", "-l", "web@latest", "/odd/absolute").out
    assert "8, 300" in guest.site.vmfs("ls", "-l", "web@latest", "/odd/disk").out


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/etc/hostname", b"web01\n"),
        ("/odd/absolute", b"web01\n"),
        ("/odd/upwards", b"web01\n"),
        ("/../../etc/../etc/hostname", b"web01\n"),
        ("/home/joe/../../etc/hostname", b"web01\n"),
        ("/home/joe/name", b"web01\n"),
        ("etc/hostname", b"web01\n"),
        ("vda-p1:/etc/hostname", b"web01\n"),
        ("vda-p1:odd/absolute", b"web01\n"),
        ("/odd/forbidden", b"nobody may read this\n"),
        ("/odd/new\nline", b"new\nline"),
        ("/odd/latin-1 \udce9", b"latin-1 \xe9"),
    ],
)
def test_cat(guest: Guest, path: str, expected: bytes) -> None:
    done = vmfs(guest.site, "cat", "web@latest", path)
    assert (done.status, done.out.encode("latin-1"), done.err) == (0, expected, "")


def test_cat_of_other_volumes(guest: Guest) -> None:
    done = vmfs(guest.site, "cat", "web@latest", "/var/joe/report", "/boot/vmlinuz")
    report, kernel = guest.truth[b"home/joe/report"], guest.truth[b"boot/vmlinuz"]
    assert (done.status, len(done.out)) == (0, report.size + kernel.size)


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/odd/shadow", 1, "there is no /etc/shadow"),
        ("/odd/loop1", 1, "too many symbolic links"),
        ("/odd/dangling", 1, "there is no"),
        ("/etc/hostname/x", 1, "is no directory"),
        ("/etc", 1, "it is a directory"),
        ("/odd/fifo", 1, "no regular file"),
        ("vda-p2:/etc/hostname", 1, "there is no /etc"),
        ("vda-p7:/etc/hostname", 2, "it has 'vda-p1', 'vda-p2', 'vda-p3'"),
    ],
)
def test_what_cannot_be_read_is_told_in_a_line(guest: Guest, path: str, status: int, said: str) -> None:
    done = vmfs(guest.site, "cat", "web@latest", path)
    assert (done.status, done.out) == (status, "")
    assert said in done.err
    assert done.err.count("\n") == 1


def test_cp_of_everything_keeps_everything(guest: Guest, place: Path) -> None:
    done = vmfs(guest.site, "cp", "-a", "web@latest", "/", place / "all")
    assert (done.status, done.err) == (0, "")
    copied = truth(place / "all")
    assert copied.keys() == guest.truth.keys()
    wrong = {name: (facts, copied[name]) for name, facts in guest.truth.items() if copied[name] != facts}
    # The socket-like loops of links count their names per file system, as the kernel does.
    assert wrong == {}
    assert (place / "all/odd/size-4097").samefile(place / "all/var/hard link")
    for name in ("sparse", "hole at the end"):
        assert (place / "all/odd" / name).stat().st_blocks * 512 < MIB


def test_cp_by_nobody(guest: Guest, place: Path) -> None:
    done = vmfs(guest.site, "cp", "-a", "web@latest", "/odd", place / "odd", nobody=place)
    assert done.status == 1, done.err
    assert done.err.endswith("could not be copied; 1524 files copied\n"), done.err
    assert sorted(line.split(":")[1].strip() for line in done.err.splitlines()[:-1]) == [
        "/odd/disk",
        "/odd/null",
    ]
    expected = strip(guest.below(b"odd"), user=True)
    # nobody cannot look into what nobody may read.
    copied = truth(place / "odd")
    for facts in (expected, copied):
        for name in (b"size-4097", b"deep/hard link"):
            facts[name] = facts[name]._replace(links=0)
    assert copied == expected


@pytest.mark.parametrize(
    "words",
    [
        ("ls", "web@latest"),
        ("ls", "-laR", "web@latest", "/odd"),
        ("cat", "web@latest", "/home/joe/report"),
        ("tar", "web@latest", "/odd"),
        ("iso", "web@latest", "/etc", "-o", "PLACE/out.iso"),
        ("diff", "web@latest", "web@latest"),
        ("diff", "--volumes", "web@latest", "web@latest"),
        ("diff", "--files", "web@latest", "web@latest"),
    ],
    ids=" ".join,
)
def test_each_command_by_nobody(guest: Guest, place: Path, words: tuple[str, ...]) -> None:
    command, *argv = (word.replace("PLACE", str(place)) for word in words)
    done = vmfs(guest.site, command, *argv, nobody=place)
    assert (done.status, done.err) == (0, "")


def test_cp_of_single_files(guest: Guest, place: Path) -> None:
    site = guest.site
    assert vmfs(site, "cp", "web@latest", "/etc/fstab", place).status == 0
    assert (place / "fstab").read_text() == FSTAB
    assert vmfs(site, "cp", "web@latest", "/odd/absolute", place / "name").status == 0
    assert not (place / "name").is_symlink()
    assert vmfs(site, "cp", "-a", "web@latest", "/odd/absolute", place / "link").status == 0
    assert os.readlink(place / "link") == "/etc/hostname"
    tool = vmfs(site, "cp", "web@latest", "/usr/bin/tool", place)
    assert (tool.status, stat.S_IMODE((place / "tool").stat().st_mode)) == (0, 0o755)
    assert "--archive or --recursive" in vmfs(site, "cp", "web@latest", "/etc", place).err
    facts = vmfs(site, "cp", "-r", "web@latest", "/home", "/boot", place, "--json").json()
    assert facts["files"] == 2
    assert facts["links"] == 1
    assert (place / "home/joe/report").stat().st_size == 2 * MIB


def test_cp_replaces_only_when_told(guest: Guest, place: Path) -> None:
    (place / "fstab").write_text("mine")
    (place / "elsewhere").write_text("mine, too")
    (place / "hostname").symlink_to("elsewhere")
    refused = vmfs(guest.site, "cp", "web@latest", "/etc/fstab", "/etc/hostname", place)
    assert refused.status == 1
    assert refused.err.count("--force") == 2
    assert (place / "fstab").read_text() == "mine"
    assert vmfs(guest.site, "cp", "--force", "web@latest", "/etc/fstab", "/etc/hostname", place).status == 0
    assert (place / "fstab").read_text() == FSTAB
    assert (place / "hostname").read_text() == "web01\n"
    assert not (place / "hostname").is_symlink()
    assert (place / "elsewhere").read_text() == "mine, too"
    assert sorted(os.listdir(place)) == ["elsewhere", "fstab", "hostname"]


def test_cp_does_not_follow_links_at_the_target(guest: Guest, place: Path) -> None:
    """Somebody has put a link where a directory of the guest goes."""
    (place / "out").mkdir()
    (place / "other").mkdir()
    (place / "out/etc").symlink_to(place / "other")
    done = vmfs(guest.site, "cp", "-a", "--force", "web@latest", "/etc", "/home/joe", place / "out")
    assert done.status == 1
    assert "/etc: " in done.err
    assert os.listdir(place / "other") == []
    assert (place / "out/joe/report").exists()


def test_cp_to_where_there_is_nothing(guest: Guest, place: Path) -> None:
    done = vmfs(guest.site, "cp", "web@latest", "/etc/fstab", "/etc/hostname", place / "none")
    assert (done.status, done.err.count("\n")) == (2, 1)
    done = vmfs(guest.site, "cp", "web@latest", "/etc/fstab", place / "none/none")
    assert (done.status, done.err.count("\n")) == (2, 1)
    assert os.listdir(place) == []


def test_cp_to_a_directory_that_is_not_there(guest: Guest, place: Path) -> None:
    """Written with a slash, it is a directory that is meant."""
    for words in ((), ("-a",)):
        done = vmfs(guest.site, "cp", *words, "web@latest", "/etc/fstab", f"{place}/none/")
        assert (done.status, done.err) == (2, f"vmfs: {place}/none/ is no directory; make it first\n")
    assert os.listdir(place) == []
    assert vmfs(guest.site, "cp", "-r", "web@latest", "/etc", f"{place}/etc2/").status == 0
    assert (place / "etc2/fstab").read_text() == FSTAB


@pytest.mark.parametrize("below", ["", "packs"])
def test_cp_does_not_write_into_the_repository(guest: Guest, place: Path, below: str) -> None:
    (place / "link").symlink_to(guest.site.repository / below)
    before = sorted(guest.site.repository.rglob("*"))
    done = vmfs(guest.site, "cp", "-r", "web@latest", "/etc", place / "link")
    assert (done.status, done.err.count("\n")) == (2, 1)
    assert "is inside the repository" in done.err
    assert sorted(guest.site.repository.rglob("*")) == before


def test_cp_onto_a_full_file_system(guest: Guest, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=1m", "none", small)
    try:
        done = vmfs(guest.site, "cp", "web@latest", "/home/joe/report", small)
        assert (done.status, os.listdir(small)) == (1, [])
        assert "No space left on device" in done.err
        assert done.err.count("\n") == 1
    finally:
        run("umount", small)


def test_tar_is_read_by_gnu_tar(guest: Guest, place: Path) -> None:
    archive = place / "out.tar"
    done = vmfs(guest.site, "tar", "web@latest", "/", "-o", archive)
    assert (done.status, done.err) == (0, "")
    (place / "out").mkdir()
    said = subprocess.run(
        ["tar", "-C", place / "out", "--xattrs", "--xattrs-include=*", "--acls", "-xpf", archive],
        check=True,
        capture_output=True,
    ).stderr
    assert [line for line in said.splitlines() if b"time stamp" not in line] == []
    copied = truth(place / "out")
    assert copied.keys() == guest.truth.keys()
    assert {name: (facts, copied[name]) for name, facts in guest.truth.items() if copied[name] != facts} == {}
    assert (place / "out/odd/sparse").stat().st_blocks * 512 < MIB
    assert archive.stat().st_size < 16 * MIB


def test_tar_is_read_by_bsdtar(guest: Guest, place: Path) -> None:
    if shutil.which("bsdtar") is None:
        pytest.skip("needs libarchive-tools")
    # It complains of names that are no UTF-8, unless they are marked in a way that GNU tar complains of.
    names = (
        "deep",
        "big",
        "sparse",
        "size-1",
        "naïve 名前 🐟",
        "new\nline",
        "n" * 255,
        "disk",
        "fifo",
    )
    places = [f"/odd/{name}" for name in names]
    streamed = vmfs(guest.site, "tar", "web@latest", *places, "vda-p2:/joe")
    assert (streamed.status, streamed.err) == (0, "")
    archive = streamed.out.encode("latin-1")
    run("env", "LC_ALL=C.UTF-8", "bsdtar", "-C", place, "-xpf", "-", stdin=archive)
    copied = truth(place / "odd")
    wanted = tuple(map(os.fsencode, names))
    for name, facts in guest.below(b"odd").items():
        if name.startswith(wanted) and not name.startswith(b"size-3"):
            # Extended attributes it keeps as its options and the file system are.
            assert copied[name]._replace(xattrs={}, links=0) == facts._replace(xattrs={}, links=0)
    assert (place / "vda-p2/joe/report").stat().st_size == 2 * MIB


def names_in_tar(guest: Guest, *places: str) -> list[str]:
    done = vmfs(guest.site, "tar", "web@latest", *places)
    assert (done.status, done.err) == (0, "")
    with tarfile.open(fileobj=io.BytesIO(done.out.encode("latin-1"))) as archive:
        return archive.getnames()


def test_tar_of_names_that_go_upwards(guest: Guest) -> None:
    assert names_in_tar(guest, "/usr/../etc/./fstab", "/../boot/vmlinuz") == ["etc/fstab", "boot/vmlinuz"]


@pytest.mark.parametrize("command", ["tar", "iso"])
def test_nothing_to_archive_is_no_file(guest: Guest, place: Path, command: str) -> None:
    done = vmfs(guest.site, command, "web@latest", "/nothing", "-o", place / "out")
    assert (done.status, done.out) == (1, "")
    assert f"{place}/out is not written" in done.err
    assert os.listdir(place) == []
    done = vmfs(guest.site, command, "web@latest", "/etc", "-o", place)
    assert (done.status, done.err) == (2, f"vmfs: {place} is a directory; name a file in it\n")


def test_an_iso_onto_a_full_file_system(guest: Guest, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=1m", "none", small)
    try:
        done = vmfs(guest.site, "iso", "web@latest", "/home/joe/report", "-o", small / "out.iso")
        assert (done.status, os.listdir(small)) == (1, [])
        assert done.err.startswith(f"vmfs: cannot write {small}/out.iso: no space left")
    finally:
        run("umount", small)


@pytest.mark.parametrize("command", ["ls", "cat", "tar"])
def test_an_empty_argument_is_not_all(guest: Guest, command: str) -> None:
    """A shell's variable that is not set."""
    done = vmfs(guest.site, command, "web@latest", "")
    assert (done.status, done.out) == (2, "")
    assert "one of them is empty" in done.err


def test_tar_of_several_volumes_keeps_them_apart(guest: Guest) -> None:
    joe = ["joe", "joe/.ssh", "joe/name", "joe/report"]
    whole = names_in_tar(guest, "vda-p2:/", "vda-p3:/")
    assert [name for name in whole if name.startswith("vda-p2")] == ["vda-p2", *(f"vda-p2/{x}" for x in joe)]
    assert [name for name in whole if not name.startswith("vda-p2")] == [
        "vda-p3",
        "vda-p3/lost+found",
        "vda-p3/vmlinuz",
    ]
    assert names_in_tar(guest, "vda-p2:/joe", "vda-p3:/vmlinuz") == [
        *(f"vda-p2/{name}" for name in joe),
        "vda-p3/vmlinuz",
    ]
    # What the guest has mounted is one tree, with the names that it has there.
    assert names_in_tar(guest, "/etc/fstab", "/home/joe/name", "vda-p2:/joe/name") == [
        "etc/fstab",
        "home/joe/name",
        "vda-p2/joe/name",
    ]
    # So is one volume.
    assert names_in_tar(guest, "vda-p2:/joe/name", "vda-p2:/joe/.ssh") == ["joe/name", "joe/.ssh"]
    assert names_in_tar(guest, "vda-p2:/") == [".", *(f"./{name}" for name in joe)]


def test_iso(guest: Guest, place: Path) -> None:
    if shutil.which("xorriso") is None:
        pytest.skip("needs xorriso")
    image = place / "out.iso"
    done = vmfs(guest.site, "iso", "web@latest", "/etc", "/odd", "/boot/vmlinuz", "-o", image, "--json")
    assert done.status == 1
    assert json.loads(done.out)["problems"] == 3
    assert {line.split(":")[1].strip() for line in done.err.splitlines()} == {
        "/odd/fifo",
        "/odd/disk",
        "/odd/null",
    }
    run("xorriso", "-osirrox", "on", "-indev", image, "-extract", "/", place / "out")
    copied = truth(place / "out")
    expected = {**guest.below(b"odd")}
    shown = {b"latin-1 \xe9": b"latin-1 \\xe9"}
    for name, facts in expected.items():
        if stat.S_IFMT(facts.mode) in (stat.S_IFREG, stat.S_IFLNK) and len(name) < 200 and facts.mtime > 0:
            found = copied[b"odd/" + shown.get(name, name)]
            assert (found.content, found.mode, found.uid, found.gid) == facts[6:7] + facts[0:3], name
            assert stat.S_ISLNK(facts.mode) or found.mtime // 10**9 == facts.mtime // 10**9
    assert copied[b"vmlinuz"].content == guest.truth[b"boot/vmlinuz"].content
    assert copied[b"etc/hostname"].uid == 1_000_000


def test_iso_by_joliet(guest: Guest, place: Path) -> None:
    if shutil.which("isoinfo") is None:
        pytest.skip("needs isoinfo")
    vmfs(guest.site, "iso", "web@latest", "/odd", "-o", place / "out.iso")
    listed = run("isoinfo", "-J", "-f", "-i", place / "out.iso").decode(errors="replace").splitlines()
    assert "/odd/size-3000000" in listed
    assert sum(line.startswith("/odd/big/") for line in listed) == 1500
