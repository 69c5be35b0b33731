"""vmfs-ingest image as users call it: what it says and keeps, and every way in which it may be refused."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from command_helpers import Site, call, program, spawn
from qemu_helpers import NbdServer, StorageDaemon, create_image, needs_qemu, run
from refusal_helpers import can_drop_rights, listing, refused, unprivileged

from ingest.chain import plan_disks
from vmfs.format.blob import MAX_PLAIN

MIB = 1 << 20


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = Site(tmp_path)
    made.init()
    return made


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(os.urandom(65536) + bytes(MIB) + b"end".ljust(512))
    return path


def refuse(site: Site, status: int, *argv: object, vm: str = "web") -> str:
    """The one line with which a backup is refused."""
    return refused(
        site.root, status, "vmfs-ingest", "image", site.repository, *site.options(), "--vm", vm, *argv
    )


def fail(site: Site, *argv: object) -> str:
    """The one line of a backup that fails while it runs: what it stored is kept for the next try, and there
    is no point, no lease and nothing half-written."""
    before = listing(site.repository)
    done = spawn("vmfs-ingest", "image", site.repository, *site.options(), "--vm", "web", *argv)
    lines = done.stderr.decode().splitlines()
    assert (done.returncode, done.stdout, len(lines)) == (1, b"", 1), lines
    clean(site, before)
    return lines[0]


def clean(site: Site, before: dict[str, int | str]) -> None:
    after = listing(site.repository)
    new = [Path(name).relative_to(site.repository) for name in after.keys() - before.keys()]
    assert {path.parts[0] for path in new} <= {"packs", "index", "leases"}
    assert not any(path.name.startswith(".") for path in new)
    assert not any((site.repository / path).is_file() for path in new if path.parts[0] == "leases")
    assert all(after[name] == size for name, size in before.items())
    assert site.vmfs("verify", "--data", "--json").json()["sound"]


def is_reading(site: Site) -> bool:
    """Whether a backup is under way: a lease is taken when the disks are open and before they are read."""
    leases = site.repository / "leases"
    return leases.exists() and any(leases.iterdir())


@contextmanager
def once_reading(site: Site, action: Callable[[], None]) -> Iterator[None]:
    """The action is done as soon as a backup reads, at the latest when the block is left."""
    over = threading.Event()

    def wait() -> None:
        while not over.is_set() and not is_reading(site):
            time.sleep(0.0005)
        action()

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def points(site: Site) -> list[str]:
    return [path.name for path in (site.repository / "points").glob("*")]


# What it says


def test_facts(site: Site, disk: Path, tmp_path: Path) -> None:
    (tmp_path / "vm.ovf").write_text("<ovf/>")
    done = spawn(
        "vmfs-ingest", "image", site.repository, *site.options(), "--vm", "web", disk, "--json",
        "--attach", tmp_path / "vm.ovf", "--checkpoint", "chk1", f"second={disk}", "--consistency", "offline",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    facts = json.loads(done.stdout)
    assert points(site) == [facts["id"]]
    assert (facts["vm"], facts["parent"]) == ("web", None)
    assert facts["artifacts"] == [{"name": "vm.ovf", "size": 6}]
    first, second = facts["disks"]
    assert (first["alias"], second["alias"]) == ("disk", "second")
    assert first["size"] == second["size"] == disk.stat().st_size
    # They are the same, and read side by side.
    assert first["bytes_new"] + second["bytes_new"] == 131072
    assert first["mode"] == "full"
    assert first["full_reason"] is None
    assert first["checkpoint"] == "chk1"


def test_text(site: Site, disk: Path) -> None:
    done = site.ingest("web", disk)
    (point,) = points(site)
    lines = done.out.splitlines()
    assert lines[0] == f"Restore point {point} of web"
    assert lines[1].startswith("  disk: full, 1.1 MiB read of 1.1 MiB, 128.0 KiB new, ")
    assert (len(lines), done.err) == (2, "")
    assert site.ingest("web", disk, "-q").out == ""


@needs_qemu
def test_why_a_disk_was_read_in_full(site: Site, tmp_path: Path) -> None:
    image = create_image(tmp_path / "a.qcow2", "qcow2", MIB)
    run("qemu-img", "bitmap", "--add", image, "inc")
    assert "a: full (no restore point of this VM yet), " in site.ingest("web", "--bitmap", "inc", image).out
    assert "a: incremental, 0 B read of " in site.ingest("web", "--bitmap", "inc", image).out
    healed = site.ingest("web", "--bitmap", "gone", "--heal", image)
    assert "dirty bitmap 'gone' does not exist" in healed.out
    assert "reading the disk in full" in healed.err
    assert healed.err.count("\n") == 1


@pytest.mark.parametrize(
    "order",
    [
        "REPO --vm web ONE --json TWO",
        "--vm web REPO ONE TWO --json",
        "--json --vm=web -q REPO ONE --checkpoint c TWO",
        "REPO ONE TWO --vm web --json",
    ],
)
def test_options_stand_anywhere(site: Site, disk: Path, order: str) -> None:
    names = {"REPO": str(site.repository), "ONE": str(disk), "TWO": f"two={disk}"}
    words = [names.get(word, word) for word in order.split()]
    done = call("vmfs-ingest", "image", *site.options(), *words)
    assert [found["alias"] for found in done.json()["disks"]] == ["disk", "two"]


def test_the_environment_names_repository_and_secret(
    site: Site, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VMFS_REPOSITORY", str(site.repository))
    monkeypatch.setenv("VMFS_CACHE_DIR", str(site.cache))
    for name, value in (("FILE", str(site.passphrase)), ("COMMAND", f"cat '{site.passphrase}'")):
        monkeypatch.setenv(f"VMFS_PASSPHRASE_{name}", value)
        point = call("vmfs-ingest", "image", "--vm", "web", disk, f"b={disk}", "--json").json()["id"]
        # A repository that is named goes first.
        assert call("vmfs-ingest", "image", site.repository, "--vm", "web", disk).status == 0
        for argv in (
            ["points"], ["show", point], ["verify"], ["verify", point], ["stats"], ["key", "list"],
            ["rebuild"], ["export", f"{point}:disk", "-o", site.root / f"out-{name}"],
        ):  # fmt: skip
            done = call("vmfs", *argv)
            assert (done.status, done.err) == (0, ""), argv
        assert (site.root / f"out-{name}").read_bytes() == disk.read_bytes()
        monkeypatch.delenv(f"VMFS_PASSPHRASE_{name}")
    done = call("vmfs", "points")
    assert (done.status, done.err) == (
        2,
        "vmfs: no passphrase; give --passphrase-file, --passphrase-command or --key-file\n",
    )


def test_a_configuration_file_names_repositories(
    site: Site, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "vmfs.toml"
    config.write_text(
        f'default = "main"\n[repository.main]\nurl = "{site.repository}"\n'
        f'passphrase_file = "{site.passphrase}"\n'
    )
    monkeypatch.setenv("VMFS_CONFIG", str(config))
    monkeypatch.setenv("VMFS_CACHE_DIR", str(site.cache))
    for argv in ([disk], ["main", disk], [disk, f"b={disk}"]):
        assert call("vmfs-ingest", "image", "--vm", "web", *argv).status == 0
    assert call("vmfs", "verify").status == 0
    config.write_text("[repository.main]\n")
    refuse(site, 1, disk)


def test_nobody_reads_what_it_says(site: Site, disk: Path) -> None:
    """Then the backup was taken all the same."""
    words = [program("vmfs-ingest"), "image", site.repository, *site.options(), "--vm", "web", disk, "--json"]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(list(map(str, words)), stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")
    assert len(points(site)) == 1


# Names


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("", "is 0 bytes long"),
        (".", "cannot be a file name"),
        ("..", "cannot be a file name"),
        ("../../etc", "cannot be a file name"),
        ("a/b", "cannot be a file name"),
        ("a\nb", "control character"),
        ("a\x1b[2Jb", "control character"),
        ("\u2028", "control character"),
        ("x" * 300, "is 300 bytes long; use 1 to 255"),
        ("ü" * 128, "is 256 bytes long; use 1 to 255"),
        (os.fsdecode(b"caf\xe9"), "not valid UTF-8"),
    ],
    ids=ascii,
)
def test_vm_names_that_cannot_be(site: Site, disk: Path, name: str, told: str) -> None:
    line = refuse(site, 2, disk, vm=name)
    assert line.startswith("vmfs-ingest: VM name ")
    assert told in line


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("={disk}", "disk alias '' is 0 bytes long"),
        ("..={disk}", "cannot be a file name"),
        ("a\tb={disk}", "control character"),
        ("x" * 300 + "={disk}", "is 300 bytes long"),
        (os.fsdecode(b"caf\xe9={disk}"), "not valid UTF-8"),
        ("a=", "has no path"),
        ("", "has no path"),
        (os.fsdecode(b"/nowhere/caf\xe9.raw"), "write ALIAS="),
        ("/nowhere/" + "x" * 300, "write ALIAS="),
        ("nbd://", "is not an NBD address"),
        ("nbds://host/x", "TLS is not supported"),
        ("a={disk} {disk}", "two disks are called 'a'"),
        ("{disk} {disk}", "two disks are called 'disk'; tell them apart with ALIAS="),
    ],
    ids=ascii,
)
def test_disks_that_cannot_be(site: Site, disk: Path, spec: str, told: str) -> None:
    words = [word.format(disk=disk) for word in spec.split(" ")]
    if spec.startswith("a={disk} "):
        words[1] = f"a={words[1]}"
    assert told in refuse(site, 2, *words)


def test_odd_names_that_can_be(site: Site, disk: Path) -> None:
    """Spaces, quotes, leading dots and dashes, other scripts, and a path that is no text under an alias."""
    odd = Path(os.fsdecode(os.fsencode(site.root) + b"/d\xff\n.raw"))
    odd.write_bytes(disk.read_bytes())
    vm = " .web'\"@latest\\ 東京 "
    facts = json.loads(
        spawn("vmfs-ingest", "image", site.repository, *site.options(), f"--vm={vm}", "--json", "--",
              f"-a b.c={odd}", f"ü={disk}").stdout
    )  # fmt: skip
    assert facts["vm"] == vm
    assert [found["alias"] for found in facts["disks"]] == ["-a b.c", "ü"]
    out = site.root / "out"
    assert site.vmfs("export", f"{facts['id']}:-a b.c", "-o", out).status == 0
    assert out.read_bytes() == disk.read_bytes()


# Sources


def odd_size(folder: Path) -> str:
    (folder / "odd.raw").write_bytes(bytes(1000))
    return f"{folder}/odd.raw"


def empty(folder: Path) -> str:
    (folder / "empty.raw").touch()
    return f"{folder}/empty.raw"


def pipe(folder: Path) -> str:
    os.mkfifo(folder / "pipe.raw")
    return f"{folder}/pipe.raw"


def broken_image(folder: Path) -> str:
    (folder / "broken.qcow2").write_bytes(b"QFI\xfb" + bytes(1000))
    return f"{folder}/broken.qcow2"


def cut_image(folder: Path) -> str:
    image = create_image(folder / "cut.qcow2", "qcow2", MIB)
    os.truncate(image, 1024)
    return str(image)


@needs_qemu
@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda folder: f"{folder}/missing.raw", "does not exist"),
        (lambda folder: f"a={folder}", "is a directory; give a disk image or a block device"),
        (lambda folder: "null=/dev/null", "is neither a file nor a block device"),
        (pipe, "is neither a file nor a block device"),
        (odd_size, "has 1000 bytes, which is not a multiple of 512"),
        (empty, "is empty"),
        (broken_image, "broken.qcow2: qemu-img: Could not open"),
        (cut_image, "is cut short"),
        (lambda folder: f"nbd+unix:///x?socket={folder}/nothing", "cannot connect: No such file"),
        (lambda folder: "a=nbd://localhost:1/x", "cannot connect: "),
        (lambda folder: f"a={folder}/{'x' * 300}", "cannot be opened: File name too long"),
    ],
)
def test_sources_that_cannot_be_read(site: Site, make: Callable[[Path], str], told: str) -> None:
    source = make(site.root)
    line = refuse(site, 1, source)
    assert line.startswith("vmfs-ingest: disk ")
    assert told in line


@can_drop_rights
def test_a_source_that_may_not_be_read(site: Site, disk: Path) -> None:
    disk.chmod(0)
    words = unprivileged("vmfs-ingest", "image", site.repository, *site.options(), "--vm", "web", disk)
    line = refused(site.root, 1, *words)
    assert line.endswith("is not readable by this user; run as one who may read it")


def test_a_good_disk_beside_a_bad_one(site: Site, disk: Path) -> None:
    """Nothing is read before all are opened."""
    refuse(site, 1, disk, f"b={site.root}/missing.raw")


def test_a_source_that_shrinks_while_it_is_read(site: Site) -> None:
    disk = site.root / "large.raw"
    piece = os.urandom(MIB)
    with disk.open("wb") as file:
        for _ in range(256):
            file.write(piece)
    with once_reading(site, lambda: os.truncate(disk, MIB + 512)):
        line = fail(site, disk)
    assert "became shorter while it was read; nothing may write to it" in line
    assert points(site) == []


@needs_qemu
def test_a_read_error_in_the_middle(site: Site) -> None:
    image = site.root / "bad.raw"
    image.write_bytes(os.urandom(8 * MIB))
    good = site.root / "good.raw"
    good.write_bytes(os.urandom(MIB))
    with StorageDaemon(site.root, image, "raw", fail_at=5 * MIB + 512) as daemon:
        line = fail(site, good, f"bad={daemon.export_nbd()}")
    assert "read error at byte" in line
    assert points(site) == []
    site.ingest("web", good)


@needs_qemu
def test_a_server_that_dies_in_the_middle(site: Site) -> None:
    """The export is there and is listed, and then nobody answers."""
    image = site.root / "a.raw"
    image.write_bytes(os.urandom(MIB) * 64)
    with (
        NbdServer("-r", "-f", "raw", "-e", "0", image) as server,
        once_reading(site, server.process.kill),
    ):
        line = fail(site, f"a={server.uri()}")
    assert line.startswith("vmfs-ingest: disk ")
    assert points(site) == []


def test_a_server_that_speaks_something_else(site: Site) -> None:
    with socket.create_server(("localhost", 0)) as listener:
        port = listener.getsockname()[1]

        def serve() -> None:
            client, _ = listener.accept()
            with client:
                client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        line = refuse(site, 1, f"a=nbd://localhost:{port}/x")
        thread.join()
    assert f"localhost:{port}" in line


# Bitmaps


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return create_image(tmp_path / "a.qcow2", "qcow2", MIB)


@needs_qemu
def test_a_bitmap_that_does_not_exist(site: Site, image: Path) -> None:
    site.ingest("web", image)
    assert "dirty bitmap 'inc' does not exist; the image has none" in refuse(
        site, 1, "--bitmap", "inc", image
    )
    run("qemu-img", "bitmap", "--add", image, "other")
    assert "the image has 'other'" in refuse(site, 1, "--bitmap", "inc", image)
    with NbdServer("-r", "-f", "qcow2", "-e", "0", image) as server:
        line = refuse(site, 1, "--bitmap", "inc", f"a={server.uri()}")
        assert "exports no dirty bitmap 'inc'" in line


@needs_qemu
def test_a_bitmap_of_a_raw_disk(site: Site, disk: Path) -> None:
    site.ingest("web", disk)
    assert "is raw and has no dirty bitmap 'inc'" in refuse(site, 1, "--bitmap", "inc", disk)


@needs_qemu
def test_an_inconsistent_bitmap(site: Site, image: Path) -> None:
    site.ingest("web", image)
    run("qemu-img", "bitmap", "--add", image, "inc")
    daemon = StorageDaemon(site.root, image, "qcow2")
    daemon.io("write 0 64k")
    daemon.kill()
    assert "dirty bitmap 'inc' is inconsistent" in refuse(site, 1, "--bitmap", "inc", image)
    facts = site.ingest("web", "--bitmap", "inc", "--heal", "--json", image).json()
    assert "inconsistent" in facts["disks"][0]["full_reason"]


@needs_qemu
def test_a_bitmap_of_a_disk_of_another_size(site: Site, image: Path) -> None:
    point = site.ingest("web", "--json", image).json()["id"]
    run("qemu-img", "resize", "-q", image, str(2 * MIB))
    run("qemu-img", "bitmap", "--add", image, "inc")
    line = refuse(site, 1, "--bitmap", "inc", image)
    assert line.endswith(
        f"has {2 * MIB} bytes, and had {MIB} in restore point {point}: bitmap 'inc' is of a disk of another "
        "size; use --full"
    )
    facts = site.ingest("web", "--bitmap", "inc", "--heal", "--json", image).json()
    assert "another size" in facts["disks"][0]["full_reason"]


@needs_qemu
def test_a_checkpoint_that_no_point_has(site: Site, image: Path) -> None:
    site.ingest("web", "--checkpoint", "chk0", image)
    run("qemu-img", "bitmap", "--add", image, "inc")
    line = refuse(site, 1, "--bitmap", "inc", image)
    assert "no restore point of this VM was taken at checkpoint 'inc'" in line


@needs_qemu
def test_a_bitmap_that_is_begun_anew_with_another_backup(
    site: Site, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After we have looked for the point that it tells the changes since."""
    run("qemu-img", "bitmap", "--add", image, "inc")
    site.ingest("web", image)
    other: list[str] = []

    def plan(*arguments: Any, **options: Any) -> Any:
        monkeypatch.undo()
        run("qemu-io", "-f", "qcow2", "-c", "write -P 7 0 64k", image)
        other.append(site.ingest("web", "--bitmap", "inc", "--json", image).json()["id"])
        run("qemu-img", "bitmap", "--clear", image, "inc")
        return plan_disks(*arguments, **options)

    monkeypatch.setattr("ingest.cli.image.plan_disks", plan)
    done = call(
        "vmfs-ingest", "image", site.repository, "--vm", "web", "--bitmap", "inc", image, *site.options()
    )
    assert (done.status, done.out) == (1, "")
    assert done.err.startswith(f"vmfs-ingest: another backup of VM web has made restore point {other[0]}")
    assert "0 B read" in site.ingest("web", "--bitmap", "inc", image).out
    with site.open() as repository:
        point = repository.load_point(repository.point_ids()[-1])
        assert repository.open_disk(point.manifest.disks[0]).read(0, 65536) == b"\7" * 65536


@needs_qemu
def test_a_disk_that_a_vm_has_open(site: Site, image: Path, disk: Path) -> None:
    for path, format in ((image, "qcow2"), (disk, "raw")):
        with StorageDaemon(site.root, path, format) as daemon:
            daemon.io("write 0 512")
            assert "is in use by a running VM" in refuse(site, 1, path)


@pytest.mark.parametrize("name", ["", "no\nsuch", "x" * 2000, os.fsdecode(b"\xff")], ids=ascii)
@pytest.mark.parametrize("what", ["bitmap", "checkpoint"])
def test_bitmap_names_that_cannot_be(site: Site, disk: Path, what: str, name: str) -> None:
    """An empty one, of a variable that is not set, must not mean that all is to be read."""
    assert refuse(site, 2, f"--{what}", name, disk).startswith(f"vmfs-ingest: {what} '")


# Attached files


def attachments() -> Iterator[tuple[str, int, str]]:
    yield "missing.xml", 1, "No such file or directory"
    yield ".", 2, "artifact ''"
    yield "..", 2, "cannot be a file name"
    yield "folder", 1, "Is a directory"
    yield "large", 1, "is too large; at most"
    yield "secret", 1, "Permission denied"
    yield os.fsdecode(b"caf\xe9"), 2, "not valid UTF-8"
    yield "line\nend", 2, "control character"


@can_drop_rights
@pytest.mark.parametrize(("name", "status", "told"), list(attachments()), ids=ascii)
def test_files_that_cannot_be_attached(site: Site, disk: Path, name: str, status: int, told: str) -> None:
    (site.root / "folder").mkdir()
    (site.root / "secret").touch(mode=0)
    for other in (os.fsdecode(b"caf\xe9"), "line\nend"):
        (site.root / other).touch()
    with (site.root / "large").open("wb") as file:
        file.truncate(MAX_PLAIN + 1)
    path = f"{site.root}/{name}" if name != "." else "."
    words = unprivileged(
        "vmfs-ingest", "image", site.repository, *site.options(), "--vm", "web", disk, "--attach", path
    )
    assert told in refused(site.root, status, *words)


def test_two_attached_files_of_one_name(site: Site, disk: Path) -> None:
    for folder in ("a", "b"):
        (site.root / folder).mkdir()
        (site.root / folder / "vm.ovf").write_text(folder)
    argv = ("--attach", site.root / "a/vm.ovf", "--attach", site.root / "b/vm.ovf")
    assert "two attached files are called vm.ovf; rename one" in refuse(site, 2, disk, *argv)


def test_a_large_file_and_an_empty_one_are_kept(site: Site, disk: Path) -> None:
    large, empty_file = site.root / "large.xml", site.root / "empty"
    large.write_bytes(b"x" * MAX_PLAIN)
    empty_file.touch()
    facts = site.ingest("web", disk, "--attach", large, "--attach", empty_file, "--json").json()
    assert facts["artifacts"] == [
        {"name": "large.xml", "size": MAX_PLAIN},
        {"name": "empty", "size": 0},
    ]
    assert site.vmfs("verify", "--data").status == 0


# Options, repository and cache


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--bitmap", "b", "--full"], "not allowed with argument"),
        (["--format", "zip"], "invalid choice"),
        (["--consistency", "maybe"], "invalid choice"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
        (["--json=yes"], "ignored explicit argument"),
    ],
)
def test_options_that_cannot_be(site: Site, disk: Path, options: list[str], told: str) -> None:
    assert told in refuse(site, 2, disk, *options)


def test_what_has_to_be_given(site: Site, disk: Path) -> None:
    command = ("vmfs-ingest", "image", site.repository, *site.options())
    assert "--vm" in refused(site.root, 2, *command, disk)
    assert "disk" in refused(site.root, 2, *command, "--vm", "web").lower()
    assert "--vm" in refused(site.root, 2, *command, disk, "--vm")
    assert "COMMAND" in refused(site.root, 2, "vmfs-ingest")
    assert "invalid choice" in refused(site.root, 2, "vmfs-ingest", "picture", disk)


def test_no_repository(site: Site, disk: Path) -> None:
    for place in (site.root / "nowhere", site.root, disk):
        command = ("vmfs-ingest", "image", place, *site.options(), "--vm", "web", disk)
        line = refused(site.root, 1, *command)
        assert str(place) in line


def test_wrong_passphrase(site: Site, disk: Path) -> None:
    site.passphrase.write_text("wrong")
    assert f"wrong passphrase for {site.repository}" in refuse(site, 1, disk)


@can_drop_rights
def test_a_repository_that_is_read_only(site: Site, disk: Path) -> None:
    site.ingest("web", disk)
    folders = [site.repository, *(path for path in site.repository.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o500)
    words = unprivileged("vmfs-ingest", "image", site.repository, *site.options(), "--vm", "web", disk)
    line = refused(site.root, 1, *words)
    assert "permission denied; run as the repository's owner" in line
    for folder in folders:
        folder.chmod(0o700)


def test_a_cache_that_cannot_be(site: Site, disk: Path) -> None:
    """Is no reason to fail: a temporary one is used."""
    options = ["--passphrase-file", site.passphrase, "--cache-dir", disk / "x"]
    done = call("vmfs-ingest", "image", site.repository, "--vm", "web", disk, *options)
    assert done.status == 0
    assert done.err.count("\n") == 1
    assert "using a temporary one" in done.err


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small file system")
@pytest.mark.parametrize("what", ["repository", "cache"])
def test_no_space_left(tmp_path: Path, what: str) -> None:
    site = Site(tmp_path)
    small = tmp_path / what
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "small", small], check=True)
    try:
        site.init()
        disk = tmp_path / "disk.raw"
        disk.write_bytes(os.urandom(4 * MIB))
        if what == "cache":
            subprocess.run(["dd", "if=/dev/zero", f"of={small}/filler"], capture_output=True, check=False)
        before = listing(site.repository)
        done = spawn("vmfs-ingest", "image", site.repository, *site.options(), "--vm", "web", disk)
        lines = done.stderr.decode().splitlines()
        assert done.returncode == 1, lines
        assert b"Traceback" not in done.stderr
        assert points(site) == []
        assert "no space left" in lines[-1].lower()
        if what == "repository":
            assert len(lines) == 1
            clean(site, before)
        else:
            assert str(site.cache) in lines[-1]
        subprocess.run(["mount", "-o", "remount,size=16m", small], check=True)
        assert site.ingest("web", disk).status == 0
        assert len(points(site)) == 1
        assert not any((site.repository / "leases").iterdir())
        assert site.vmfs("verify", "--data").status == 0
    finally:
        subprocess.run(["umount", "-l", small], check=True)


def test_ctrl_c_leaves_no_point(site: Site) -> None:
    disk = site.root / "large.raw"
    with disk.open("wb") as file:
        for _ in range(192):
            file.write(os.urandom(MIB))
    before = listing(site.repository)
    words = [program("vmfs-ingest"), "image", site.repository, *site.options(), "--vm", "web", disk]
    for number, said in ((signal.SIGINT, b"interrupted"), (signal.SIGTERM, b"terminated")):
        process = subprocess.Popen(list(map(str, words)), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        while process.poll() is None and not is_reading(site):
            time.sleep(0.001)
        time.sleep(0.02)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (128 + number, b"")
        assert err == b"vmfs-ingest: " + said + b"\n"
        clean(site, before)
    assert points(site) == []
