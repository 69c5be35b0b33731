"""vmfs index, find and history on real images: made by mkfs, changed through the kernel, read by the
workers."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from command_helpers import Done, Site, call
from file_index_helpers import HOME_AT, HOME_SIZE, ROOT_AT, ROOT_SIZE, GuestImage
from guest_tree_helpers import mounted_ntfs
from postgres_helpers import make_database, postgres_server

from vmfs.repo import names, notes
from vmfs.repo.filelists import find_lists, read_entries, read_lists
from vmfs.volumes.files import client

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mkfs.ext4") is None, reason="needs root and mkfs"),
]


class Guest:
    """A VM that is backed up now and then."""

    def __init__(self, root: Path) -> None:
        self.site = Site(root)
        self.site.init()
        self.image = GuestImage(root / "guest.img", root / "content")
        self.points: list[str] = []

    def back_up(self, *options: str) -> str:
        done = self.site.ingest("web01", f"sda={self.image.path}", "--json", *options)
        self.points.append(json.loads(done.out)["id"])
        return self.points[-1]

    def damage(self, point: str, offset: int, disk_number: int = 0) -> None:
        """Of the chunk that has that byte of a disk of a point."""
        with self.site.open() as repository:
            disk = repository.load_point(point).manifest.disks[disk_number]
            (chunk,) = repository.open_disk(disk).chunk_ids(offset // repository.chunk_size, 1)
            assert chunk is not None
            place = repository.index.find(chunk)
            assert place is not None
            with (self.site.repository / names.pack(place.pack)).open("r+b") as pack:
                pack.seek(place.offset + place.length // 2)
                pack.write(bytes(16))

    def run(self, *words: object) -> Done:
        command, *rest = words
        return self.site.vmfs(str(command), *rest)


@pytest.fixture
def guest(tmp_path: Path) -> Guest:
    (tmp_path / "content").mkdir()
    return Guest(tmp_path)


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the file systems that a worker was started for."""
    begun: list[str] = []
    whole = client.FileSystem._start

    def start(self: client.FileSystem) -> object:
        begun.append(self.name)
        return whole(self)

    monkeypatch.setattr(client.FileSystem, "_start", start)
    return begun


def test_the_list_is_what_the_kernel_sees(guest: Guest) -> None:
    point = guest.back_up("--index")
    with guest.site.open() as repository:
        stored, damaged = find_lists(repository, point)
        assert stored is not None
        assert damaged == []
        lists = read_lists(stored)
        found = {
            (volume.key, entry.path): entry
            for volume in lists.volumes
            for entry in read_entries(repository, volume)
        }
    assert [(volume.key, volume.type, volume.mounts) for volume in lists.volumes] == [
        ("0/p1", "ext4", (("/", ""),)),
        ("0/p2", "ext4", (("/home", ""),)),
    ]
    for key, start, size in (("0/p1", ROOT_AT, ROOT_SIZE), ("0/p2", HOME_AT, HOME_SIZE)):
        with guest.image.mounted(start, size) as top:
            seen = {os.fsencode(path.relative_to(top)): os.lstat(path) for path in top.rglob("*")}
        assert seen.keys() == {path for of, path in found if of == key}
        for path, facts in seen.items():
            entry = found[key, path]
            assert (entry.mode, entry.uid, entry.gid) == (facts.st_mode, facts.st_uid, facts.st_gid)
            assert (entry.size, entry.mtime, entry.ctime) == (
                facts.st_size,
                facts.st_mtime_ns,
                facts.st_ctime_ns,
            )


def test_an_unchanged_volume_costs_nothing(guest: Guest, starts: list[str]) -> None:
    guest.back_up("--index")
    assert set(starts) == {"sda-p1", "sda-p2"}
    starts.clear()
    guest.back_up("--index")
    assert starts == []
    with guest.image.mounted(HOME_AT, HOME_SIZE) as home:
        (home / "ada/new.txt").write_text("new\n")
    guest.back_up("--index")
    assert set(starts) == {"sda-p2"}
    with guest.site.open() as repository:
        lists = [
            read_lists(found)
            for found, _ in (find_lists(repository, point) for point in guest.points)
            if found
        ]
        noted = [len(notes.list_notes(repository, point).found) for point in guest.points]
    first, same, last = lists
    assert same == first
    assert last.volumes[0].pieces == first.volumes[0].pieces
    assert last.volumes[0].walked == guest.points[0]
    assert last.volumes[1].pieces != first.volumes[1].pieces
    assert last.volumes[1].mounts == first.volumes[1].mounts == (("/home", ""),)
    starts.clear()
    again = guest.run("index", "--all", "--json").json()["points"]
    assert [point["new"] for point in again] == [False] * 3
    assert starts == []
    with guest.site.open() as repository:
        assert (
            noted == [len(notes.list_notes(repository, point).found) for point in guest.points] == [1, 1, 1]
        )


def test_an_older_point_is_indexed_from_a_later_one(guest: Guest, starts: list[str]) -> None:
    older = guest.back_up()
    newer = guest.back_up("--index")
    starts.clear()
    done = guest.run("index", older, "--json").json()["points"]
    assert [(point["walked"], point["unchanged"]) for point in done] == [([], ["sda-p1", "sda-p2"])]
    assert starts == []
    (found,) = guest.run("find", "payroll.xlsx", "--json").json()["files"]
    assert [point["id"] for point in found["points"]] == [older, newer]


def test_finding(guest: Guest) -> None:
    first = guest.back_up("--index")
    with guest.image.mounted(HOME_AT, HOME_SIZE) as home:
        (home / "ada/notes.txt").write_text("two, longer\n")
        (home / "ada/payroll.xlsx").unlink()
        (home / "ada/big.bin").write_bytes(bytes(3 << 20))
    second = guest.back_up()

    def find(*words: object) -> list[tuple[str, list[str]]]:
        done = guest.run("find", *words, "--json").json()
        assert done["not_indexed"] == []
        return [(file["guest_path"], [point["id"] for point in file["points"]]) for file in done["files"]]

    done = guest.run("find", "notes.txt")
    assert "1 of 2 restore points is not indexed" in done.err
    assert "vmfs index" in done.err
    assert find("notes.txt", "--walk") == [
        ("/home/ada/notes.txt", [first]),
        ("/home/ada/notes.txt", [second]),
    ]
    assert find("hostname", "--walk") == [("/etc/hostname", [first, second])]
    assert guest.run("index", "--vm", "web01").status == 0
    assert find("payroll*") == [("/home/ada/payroll.xlsx", [first])]
    assert find("PAYROLL*") == []
    assert find("PAYROLL*", "-i") == [("/home/ada/payroll.xlsx", [first])]
    assert find("payroll*", "--latest") == []
    assert find("payroll*", "--point", first) == [("/home/ada/payroll.xlsx", [first])]
    assert find("/etc/*", "--type", "l") == [("/etc/localtime", [first, second])]
    assert find("/etc/**", "--type", "f") == [
        ("/etc/fstab", [first, second]),
        ("/etc/hostname", [first, second]),
    ]
    assert find("ada/n?te[a-z].txt", "--latest") == [("/home/ada/notes.txt", [second])]
    # The path within the volume will do as well, and that in the guest beyond a place where it is mounted.
    assert find("/ada/big.bin") == find("/home/**/big.bin") == [("/home/ada/big.bin", [second])]
    assert find("--size", "+1M") == [("/home/ada/big.bin", [second])]
    assert find("--size", "+2K", "--size=-4K", "--type", "f") == [("/usr/bin/env", [first, second])]
    assert find("--newer", "1h", "--name", "hostname") == [("/etc/hostname", [first, second])]
    assert find("--older", "2020", "--name", "hostname") == []
    assert find("--newer", "2020-01-01T00:00", "--older", "2100", "--name", "hostname") != []
    text = guest.run("find", "--name", "notes.txt").out.splitlines()
    assert text[0].split() == ["VM", "FIRST", "LAST", "POINTS", "T", "SIZE", "MODIFIED", "PATH"]
    assert [line.split()[-1] for line in text[1:]] == ["/home/ada/notes.txt"] * 2


def points_of(rows: list[dict[str, Any]]) -> list[list[str]]:
    return [[point["id"] for point in row["points"]] for row in rows]


def test_history(guest: Guest) -> None:
    notes_file = "/home/ada/notes.txt"
    contents = [b"one\n", b"two, longer\n", b"two, longer\n", b"one\n"]
    for number, content in enumerate(contents):
        with guest.image.mounted(HOME_AT, HOME_SIZE) as home:
            if number and content != contents[number - 1]:
                (home / "ada/notes.txt").write_bytes(content)
            elif number:
                os.utime(home / "ada/notes.txt", (1_700_000_000, 1_700_000_000))
        guest.back_up("--index")

    def versions(*words: object) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = guest.run("history", "web01", *words, "--json").json()["versions"]
        return found

    listed = versions(notes_file, "--no-hash")
    assert [(item["size"], points) for item, points in zip(listed, points_of(listed), strict=True)] == [
        (len(content), [point]) for content, point in zip(contents, guest.points, strict=True)
    ]
    assert {item["sha256"] for item in listed} == {None}
    hashed = versions(notes_file)
    assert [(item["sha256"], points) for item, points in zip(hashed, points_of(hashed), strict=True)] == [
        (sha256(b"one\n").hexdigest(), [guest.points[0], guest.points[3]]),
        (sha256(b"two, longer\n").hexdigest(), guest.points[1:3]),
    ]
    assert hashed[0]["mtime_ns"] == listed[3]["mtime_ns"]
    assert versions(notes_file, "--hash") == hashed
    for other in ("sda-p2:/ada/notes.txt", "0/p2:/ada/notes.txt", "//home/./ada//notes.txt"):
        assert versions(other) == hashed
    assert len(guest.run("history", "web01", notes_file, "--no-hash").out.splitlines()) == 5
    header, *lines = guest.run("history", "web01", notes_file).out.splitlines()
    assert header.split() == ["FIRST", "LAST", "POINTS", "T", "SIZE", "MODIFIED", "CONTENT"]
    assert [line.split()[-1] for line in lines] == [item["sha256"][:12] for item in hashed]
    (directory,) = versions("/home/ada")
    assert (directory["type"], directory["sha256"], directory["problem"]) == ("d", None, None)


def test_history_of_what_is_not_there(guest: Guest) -> None:
    guest.back_up("--index")
    for path, said in (
        ("/home/ada/nothing*", "no indexed restore point of web01 has /home/ada/nothing*; look for it with"),
        ("/etc/localtime/x", "/etc/localtime is a symbolic link"),
        ("/home/ada:/notes.txt", "no indexed restore point of web01 has /home/ada:/notes.txt"),
        ("sda-p1:/ada/notes.txt", "no indexed restore point of web01 has sda-p1:/ada/notes.txt"),
    ):
        missing = guest.run("history", "web01", path)
        assert (missing.status, missing.out) == (1, "")
        assert said in missing.err
    wrong = guest.run("history", "web01", "notes.txt")
    assert (wrong.status, wrong.err.count("\n")) == (2, 1)
    assert "from the root" in wrong.err


def test_history_of_links_is_where_they_led(guest: Guest) -> None:
    for target in ("one", "two", "one"):
        with guest.image.mounted(ROOT_AT, ROOT_SIZE) as root:
            (root / "etc/localtime").unlink()
            (root / "etc/localtime").symlink_to(target)
        guest.back_up("--index")
    first, second, third = guest.points
    found = guest.run("history", "web01", "/etc/localtime", "--json").json()["versions"]
    assert [item["target"] for item in found] == ["one", "two"]
    assert points_of(found) == [[first, third], [second]]
    out = guest.run("history", "web01", "/etc/localtime").out.splitlines()
    assert [line.rpartition("  ")[2] for line in out[1:]] == ["-> one", "-> two"]


def test_history_reads_a_gibibyte_unless_told_to_read_more(guest: Guest) -> None:
    size = (1 << 30) + 1
    with guest.image.mounted(HOME_AT, HOME_SIZE) as home:
        os.truncate(home / "ada/notes.txt", 0)
        os.truncate(home / "ada/notes.txt", size)
    guest.back_up("--index")
    done = guest.run("history", "web01", "/home/ada/notes.txt", "--json")
    assert [item["sha256"] for item in done.json()["versions"]] == [None]
    assert done.err.count("\n") == 1
    assert "the versions are 1.0 GiB together and were not read" in done.err
    quick = guest.run("history", "web01", "/home/ada/notes.txt", "--no-hash", "--json")
    assert (quick.out, quick.err) == (done.out, "")
    whole = guest.run("history", "web01", "/home/ada/notes.txt", "--hash", "--json")
    digest = sha256()
    for at in range(0, size, 1 << 20):
        digest.update(bytes(min(1 << 20, size - at)))
    assert [item["sha256"] for item in whole.json()["versions"]] == [digest.hexdigest()]


def test_history_tells_what_it_cannot_read(guest: Guest) -> None:
    contents = [secrets.token_bytes(300_000) for _ in range(3)]
    for number, content in enumerate(contents):
        with guest.image.mounted(HOME_AT, HOME_SIZE) as home:
            (home / "ada/notes.txt").write_bytes(content)
        guest.back_up("--index")
        if number == 1:
            middle = guest.image.path.read_bytes().index(content[200_000:204_096])
    guest.damage(guest.points[1], middle)
    done = guest.run("history", "web01", "/home/ada/notes.txt", "--json")
    assert done.status == 3
    versions = json.loads(done.out)["versions"]
    assert [item["sha256"] for item in versions] == [
        sha256(contents[0]).hexdigest(),
        None,
        sha256(contents[2]).hexdigest(),
    ]
    assert [bool(item["problem"]) for item in versions] == [False, True, False]
    assert points_of(versions) == [[point] for point in guest.points]
    assert done.err.count("\n") == 1
    assert f"/home/ada/notes.txt: {versions[1]['problem']}" in done.err
    text = guest.run("history", "web01", "/home/ada/notes.txt")
    assert text.status == 3
    lines = text.out.splitlines()[1:]
    assert [line.endswith("  cannot be read") for line in lines] == [False, True, False]


def test_a_volume_that_is_lost_is_none_without_files(guest: Guest) -> None:
    """What tells that it is a file system cannot be read."""
    point = guest.back_up()
    guest.damage(point, HOME_AT + 1024)
    lost = "volume sda-p2: what it holds cannot be read"
    walked = guest.run("find", "--walk", "notes.txt")
    assert (walked.status, walked.out) == (3, "")
    assert lost in walked.err
    indexed = guest.run("index", point, "--json")
    assert indexed.status == 1
    root, home = json.loads(indexed.out)["points"][0]["volumes"]
    assert (root["listed"], home["listed"]) == (True, False)
    assert "what it holds cannot be read" in home["error"]
    found = guest.run("find", "notes.txt", "--json").json()
    assert ([volume["volume"] for volume in found["not_listed"]], found["files"]) == (["sda-p2"], [])
    read = guest.run("cat", point, "sda-p2:/ada/notes.txt")
    assert (read.status, read.out) == (3, "")
    assert lost in read.err
    # Nor is the directory that it is mounted over the guest's.
    for words in (["ls", point, "/home"], ["cat", point, "/home/ada/notes.txt"]):
        read = guest.run(*words)
        assert (read.status, read.out) == (3, "")
        assert "/home of the guest may be on a volume that cannot be read" in read.err
    copied = guest.run("cp", "-a", point, "/", guest.site.root / "copy")
    assert copied.status == 1
    assert "/home: its files cannot be listed" in copied.err
    assert (guest.site.root / "copy/etc/hostname").exists()


def test_a_disk_that_is_lost_is_told(guest: Guest) -> None:
    """Its volumes are not even known by name."""
    second = guest.site.root / "second.img"
    shutil.copy(guest.image.path, second)
    with second.open("r+b") as file:
        # Chunks that the first disk does not have, with both tables.
        file.write(b"loader")
        file.seek(-32768, os.SEEK_END)
        file.write(b"not the first disk")
    done = guest.site.ingest("web01", f"sda={guest.image.path}", f"sdb={second}", "--json")
    point = json.loads(done.out)["id"]
    for offset in (0, second.stat().st_size - 1):
        guest.damage(point, offset, disk_number=1)
    walked = guest.run("find", "--walk", "payroll.xlsx")
    assert (walked.status, len(walked.out.splitlines())) == (3, 2)
    assert walked.err.count("\n") == 1
    indexed = guest.run("index", point)
    assert indexed.status == 1
    assert indexed.err.count("\n") == 1
    assert "volumes may be missing" in indexed.err


def test_patterns_as_people_write_them(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    with guest.image.mounted(HOME_AT, HOME_SIZE) as home:
        (home / "ada/-n").write_text("")
        Path(os.fsdecode(os.fsencode(home) + b"/ada/\xff")).write_text("")
    guest.back_up("--index")
    assert guest.run("find", "/etc/", "--json").json()["files"][0]["path"] == "/etc"
    assert guest.run("find", "*\udcff*").out.endswith(" /home/ada/\\xff\n")
    monkeypatch.setenv("VMFS_REPOSITORY", str(guest.site.repository))
    for words in (("--", "-n"), ("--latest", "--", "-n"), ("--name=-n",)):
        found = call("vmfs", "find", "--json", *guest.site.options(), *words).json()["files"]
        assert [file["guest_path"] for file in found] == ["/home/ada/-n"]
    empty = call("vmfs", "find", *guest.site.options(), "")
    assert (empty.status, empty.out) == (2, "")
    assert "is no pattern" in empty.err


@pytest.mark.skipif(not (shutil.which("mkntfs") and shutil.which("ntfs-3g")), reason="needs ntfs-3g and FUSE")
def test_drive_letters(tmp_path: Path) -> None:
    """Capitals and small letters are the same, and the path may be as Windows writes it."""
    site = Site(tmp_path)
    site.init()
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(16 << 20)
    run("mkntfs", "-q", "-F", image)
    with mounted_ntfs(image, tmp_path / "mount") as mount:
        (mount / "Windows/System32").mkdir(parents=True)
        (mount / "Users/Joe").mkdir(parents=True)
        (mount / "Users/Joe/Report.TXT").write_text("report")
    site.ingest("win", f"sda={image}", "--index")
    for pattern in ("C:/Users/Joe/*.TXT", "c:/users/**/report.*", "C:\\USERS\\joe\\Report.txt"):
        (found,) = site.vmfs("find", pattern, "--json").json()["files"]
        assert found["guest_path"] == "C:/Users/Joe/Report.TXT"
    for path in ("C:/Users/Joe/Report.TXT", "c:\\users\\JOE\\report.txt", "sda:/Users/Joe/Report.TXT"):
        (version,) = site.vmfs("history", "win", path, "--json").json()["versions"]
        assert version["sha256"] == sha256(b"report").hexdigest()


def test_names_that_play_tricks(guest: Guest) -> None:
    tricky = [
        b"bad\xff\xfename",
        b"line\nend",
        b"\x1b[31mred",
        b"star*[a]?",
        b"back\\slash",
        "ü\U0010ff41é".encode(),
        b"%41_%",
        b"' OR 1=1 --",
        b"n" * 255,
    ]
    with guest.image.mounted(ROOT_AT, ROOT_SIZE) as root:
        for name in tricky:
            Path(os.fsdecode(os.fsencode(root) + b"/var/log/" + name)).write_bytes(name)
    guest.back_up("--index")
    found = guest.run("find", "/var/log/*", "--json").json()["files"]
    assert {os.fsencode(file["path"]) for file in found} == {b"/var/log/" + name for name in tricky}
    for name in tricky:
        versions = guest.run("history", "web01", os.fsdecode(b"/var/log/" + name), "--json")
        (version,) = versions.json()["versions"]
        assert version["sha256"] == sha256(name).hexdigest()
    out = guest.run("find", "/var/log/*").out
    assert "\x1b" not in out
    assert len(out.splitlines()) == 1 + len(tricky)


@pytest.fixture(scope="module")
def postgres() -> Iterator[Path]:
    with postgres_server() as directory:
        yield directory


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_rebuilt_catalog_answers_the_same(guest: Guest, kind: str, request: pytest.FixtureRequest) -> None:
    words = [guest.site.repository, *guest.site.options()]
    if kind == "postgresql":
        url = make_database(request.getfixturevalue("postgres"), secrets.token_hex(8))
        words += ["--catalog", url.render_as_string(hide_password=False)]

    def find(*more: object) -> object:
        return call("vmfs", "find", *words, *more, "--json").json()["files"]

    def answers() -> list[object]:
        return [find(), find("*a*"), find("/home/**"), find("--latest"), find("xlsx"), find("*.xls*", "-i")]

    for number in range(3):
        with guest.image.mounted(HOME_AT, HOME_SIZE) as home:
            (home / "ada/notes.txt").write_text(str(number) * number)
            os.close(os.open(os.fsencode(home) + b"/\xffname%d" % number, os.O_CREAT | os.O_WRONLY))
        point = guest.back_up()
        assert call("vmfs", "index", *words, point).status == 0
        before = answers()
    rebuilt = call("vmfs", "rebuild", *words, "--json").json()
    assert rebuilt["file_versions"] >= 15
    assert rebuilt["damaged_notes"] == []
    assert answers() == before
    assert len(find("*.xlsx", "-i")[0]["points"]) == 3  # type: ignore[index]


def test_damaged_notes_are_told_and_hide_no_point(guest: Guest) -> None:
    first, second = guest.back_up("--index"), guest.back_up("--index")
    assert guest.run("verify").status == 0
    (note,) = (guest.site.repository / "notes" / first).iterdir()
    data = bytearray(note.read_bytes())
    data[-20] ^= 1
    note.write_bytes(data)
    shutil.rmtree(guest.site.cache)
    assert {point["id"] for point in guest.run("points", "--json").json()["points"]} == {first, second}
    done = guest.run("find", "hostname", "--json")
    assert [point["id"] for point in done.json()["files"][0]["points"]] == [second]
    assert done.json()["not_indexed"] == [first]
    assert f"file list of restore point {first} is damaged" in done.err
    verified = guest.run("verify")
    assert verified.status == 3
    assert f"damaged: notes/{first}/{note.name}" in verified.out
    assert "0 of 2 restore points hit" in verified.out
    # Made again, it stands for the damaged one.
    assert guest.run("index", first).status == 0
    assert guest.run("find", "hostname", "--json").json()["not_indexed"] == []


def test_a_lost_piece_is_told_and_made_again(guest: Guest) -> None:
    point = guest.back_up()
    packs = set((guest.site.repository / "packs").rglob("*"))
    assert guest.run("index", point).status == 0
    (pack,) = (
        path for path in (guest.site.repository / "packs").rglob("*") if path.is_file() and path not in packs
    )
    whole = pack.read_bytes()
    pack.write_bytes(whole[:100] + bytes(60) + whole[160:])
    verified = guest.run("verify", "--data")
    assert verified.status == 3
    assert f"lost: restore point {point} of web01, its file list" in verified.out
    shutil.rmtree(guest.site.cache)
    done = guest.run("find", "hostname")
    assert f"file list of restore point {point} is damaged" in done.err
    assert guest.run("export", point, "-o", guest.site.root / "out.raw").status == 0
    assert guest.run("index", point, "--again").status == 0
    done = guest.run("find", "hostname", "--json")
    assert len(done.json()["files"]) == 1
    assert done.err == ""
    assert "lost:" not in guest.run("verify", "--data").out


def test_a_file_system_that_cannot_be_read_is_said(guest: Guest) -> None:
    with guest.image.path.open("r+b") as file:
        # Descriptors of the block groups.
        file.seek(HOME_AT + 2048)
        file.write(os.urandom(2048))
    point = guest.back_up()
    done = guest.run("index", point, "--json")
    assert done.status == 1
    (facts,) = json.loads(done.out)["points"]
    root, home = facts["volumes"]
    assert root["entries"] > 5
    assert home["error"] or home["problem_count"]
    assert "sda-p2" in done.err
    searched = guest.run("find", "hostname", "--json").json()
    assert searched["files"]
    assert [volume["volume"] for volume in searched["not_listed"]] == (["sda-p2"] if home["error"] else [])
    again = guest.run("index", point, "--again", "--json")
    assert json.loads(again.out)["points"][0]["unchanged"] == ["sda-p1"]


@pytest.mark.skipif(not (shutil.which("mkfs.btrfs") and shutil.which("mkfs.xfs")), reason="needs their mkfs")
def test_subvolumes_have_the_guests_paths(tmp_path: Path, starts: list[str]) -> None:
    site = Site(tmp_path)
    site.init()
    root, data = tmp_path / "root.img", tmp_path / "data.img"
    for image, size, make in ((root, 130, "btrfs"), (data, 310, "xfs")):
        with image.open("wb") as file:
            file.truncate(size << 20)
        run(f"mkfs.{make}", "-q", "-f", image)
    uuid = run("blkid", "-p", "-s", "UUID", "-o", "value", root).strip()
    place = tmp_path / "mnt"
    place.mkdir()
    run("mount", "-o", "loop", root, place)
    try:
        for name in ("@", "@home"):
            run("btrfs", "subvolume", "create", place / name)
        for folder in ("@/etc", "@/usr", "@/home", "@home/ada"):
            (place / folder).mkdir(exist_ok=True)
        lines = (f"UUID={uuid} / btrfs subvol=@ 0 0", f"UUID={uuid} /home btrfs subvol=@home 0 0")
        (place / "@/etc/fstab").write_text("\n".join(lines) + "\n")
        (place / "@home/ada/x.txt").write_text("hi\n")
    finally:
        run("umount", place)
    run("mount", "-o", "loop", data, place)
    (place / "y.txt").write_text("data\n")
    run("umount", place)
    site.ingest("web01", f"vda={root}", f"vdb={data}", "--index")
    assert set(starts) == {"vda", "vdb"}
    found = site.vmfs("find", "--type", "f", "--json").json()["files"]
    assert [(file["volume"], file["path"], file["guest_path"]) for file in found] == [
        ("vda", "/@/etc/fstab", "/etc/fstab"),
        ("vda", "/@home/ada/x.txt", "/home/ada/x.txt"),
        ("vdb", "/y.txt", None),
    ]
    assert len(site.vmfs("find", "/home/**/x.txt", "--json").json()["files"]) == 1
    (version,) = site.vmfs("history", "web01", "/home/ada/x.txt", "--json").json()["versions"]
    assert version["sha256"] == sha256(b"hi\n").hexdigest()
    assert site.vmfs("history", "web01", "vdb:/y.txt").status == 0


def run(*argv: object) -> str:
    words = [str(word) for word in argv]
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout
