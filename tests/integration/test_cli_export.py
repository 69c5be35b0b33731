"""export: the same bytes, in every way out, and nothing half-written."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from command_helpers import Site, program

from vmfs.format.keys import Kind
from vmfs.format.manifest import Disk, Manifest, Vm
from vmfs.repo.diskmap import EMPTY

MIB = 1 << 20
SIZE = 40 * MIB + 512


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Site:
    site = Site(tmp_path_factory.mktemp("site"))
    site.init()
    with disk(site).open("wb") as file:
        file.truncate(SIZE)
        for offset, length in ((0, 100_000), (5 * MIB - 512, 3 * MIB), (30 * MIB, 4096), (SIZE - 512, 512)):
            file.seek(offset)
            file.write(os.urandom(length))
    site.ingest("web", f"vda={disk(site)}")
    empty = site.root / "empty.raw"
    with empty.open("wb") as file:
        file.truncate(3 * MIB)
    site.ingest("two:2", f"a:b={empty}", f"vdb={disk(site)}")
    return site


def disk(site: Site) -> Path:
    return site.root / "disk.raw"


def command(site: Site, *argv: object) -> list[str]:
    """The words that export in a process of its own."""
    return [program("vmfs"), "export", *map(str, [site.repository, *argv, *site.options()])]


def stream(site: Site, *argv: object) -> subprocess.CompletedProcess[bytes]:
    """Export to standard output."""
    return subprocess.run(command(site, *argv, "-o", "-"), capture_output=True, check=False)


def compare(disk: Path, image: Path) -> None:
    """The qcow2 image is sound, and the same disk."""
    subprocess.run(["qemu-img", "check", image], check=True, capture_output=True)
    words = ["qemu-img", "compare", "-f", "raw", "-F", "qcow2", disk, image]
    subprocess.run(words, check=True, capture_output=True)


def test_raw_file(made: Site, tmp_path: Path) -> None:
    out = tmp_path / "out.raw"
    facts = made.vmfs("export", "web@latest", "-o", out, "--json").json()
    assert out.read_bytes() == disk(made).read_bytes()
    status = out.stat()
    assert stat.S_IMODE(status.st_mode) == 0o600
    # Holes stay holes, in chunks of 64 KiB.
    assert status.st_blocks * 512 <= facts["written"] + MIB < 5 * MIB
    assert (facts["size"], facts["disk"], facts["format"]) == (SIZE, "vda", "raw")
    assert os.listdir(tmp_path) == ["out.raw"]


def test_raw_stream(made: Site) -> None:
    done = stream(made, "web@latest")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == disk(made).read_bytes()


def test_qcow2(made: Site, tmp_path: Path) -> None:
    out = tmp_path / "out.qcow2"
    made.vmfs("export", "web@latest:vda", "-o", out, "--format", "qcow2", "--json").json()
    compare(disk(made), out)
    assert out.stat().st_size < 5 * MIB
    streamed = stream(made, "web@latest:vda", "--format", "qcow2")
    assert (streamed.returncode, streamed.stderr) == (0, b"")
    assert streamed.stdout == out.read_bytes()


def test_a_disk_of_zeros(made: Site, tmp_path: Path) -> None:
    for form in ("raw", "qcow2"):
        out = tmp_path / form
        assert made.vmfs("export", "two:2@latest:a:b", "-o", out, "--format", form).status == 0
        as_raw = ["qemu-img", "convert", "-f", form, "-O", "raw", out, tmp_path / "raw2"]
        subprocess.run(as_raw, check=True)
        assert (tmp_path / "raw2").read_bytes() == bytes(3 * MIB)
    assert (tmp_path / "raw").stat().st_blocks == 0


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("two:2@latest", "has 2 disks; write POINT:DISK, DISK is 'a:b', 'vdb'"),
        ("two:2@latest:vdx", "has no disk 'vdx'; it has 'a:b', 'vdb'"),
        ("wbe@latest:vda", "there is no VM 'wbe' in the repository; there is 'web'"),
        ("web@1999-01-01T10:00", "has no point at or before 1999-01-01T10:00"),
        ("01ARZ:vda", "there is no point '01ARZ'"),
        ("web", "'web' is a VM, not a point"),
        ("web@latest:", "has no disk ''"),
    ],
)
def test_disks_that_are_not_there(made: Site, tmp_path: Path, spec: str, message: str) -> None:
    done = made.vmfs("export", spec, "-o", tmp_path / "out")
    assert done.status == 2
    assert message in done.err
    assert not list(tmp_path.iterdir())


def test_points_whose_text_has_colons(made: Site, tmp_path: Path) -> None:
    point = made.vmfs("show", "web@latest", "--json").json()
    for spec in (
        f"web@{point['time']}",
        f"web@{point['time'][:19]}Z:vda",
        f"{point['id'].lower()}:vda",
    ):
        facts = made.vmfs("export", spec, "-o", tmp_path / "out", "--force", "--json").json()
        assert facts["point"] == point["id"]


def test_what_is_there_is_replaced_only_by_force(made: Site, tmp_path: Path) -> None:
    out, link = tmp_path / "out", tmp_path / "link"
    out.write_text("precious")
    link.symlink_to("out")
    done = made.vmfs("export", "web@latest", "-o", link)
    assert done.status == 2
    assert "is there already" in done.err
    assert out.read_text() == "precious"
    assert made.vmfs("export", "web@latest", "-o", link, "--force").status == 0
    assert link.is_symlink()
    assert out.read_bytes() == disk(made).read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["link", "out"]


def test_places_that_cannot_be(made: Site, tmp_path: Path) -> None:
    for place, status, message in (
        (tmp_path, 2, "is a directory; name a file in it"),
        ("/dev/null", 2, "is no regular file; write into it with: -o - >"),
        (tmp_path / "no" / "where", 1, "there is no such directory"),
        (made.repository / "out", 2, "is inside the repository"),
        (made.repository / "packs" / ".." / "config", 2, "is inside the repository"),
        ("/proc/nowhere", 1, "cannot write /proc/nowhere"),
    ):
        done = made.vmfs("export", "web@latest", "-o", place, "--force")
        assert done.status == status, done
        assert message in done.err
    assert not list(tmp_path.iterdir())


def test_json_does_not_mix_with_the_disk(made: Site) -> None:
    assert made.vmfs("export", "web@latest", "-o", "-", "--json").status == 2
    assert made.vmfs("export", "web@latest").status == 2


def test_damage_leaves_no_file(made: Site, tmp_path: Path) -> None:
    packs = [path for path in (made.repository / "packs").rglob("*") if path.is_file()]
    largest = max(packs, key=lambda path: path.stat().st_size)
    whole = largest.read_bytes()
    half = len(whole) // 2
    try:
        largest.write_bytes(whole[:half] + bytes([whole[half] ^ 1]) + whole[half + 1 :])
        for form in ("raw", "qcow2"):
            done = made.vmfs("export", "web@latest", "-o", tmp_path / "out", "--format", form)
            assert done.status == 3
            assert f"packs/{largest.parent.name}/{largest.name}" in done.err
            assert not list(tmp_path.iterdir())
        streamed = stream(made, "web@latest")
        assert streamed.returncode == 3
        assert disk(made).read_bytes().startswith(streamed.stdout)
    finally:
        largest.write_bytes(whole)


def test_a_reader_that_has_seen_enough(made: Site) -> None:
    words = command(made, "web@latest", "-o", "-")
    child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stderr is not None
    with child.stdout, child.stderr:
        child.stdout.read(1000)
        child.stdout.close()
        assert child.stderr.read() == b""
    assert child.wait() == 128 + signal.SIGPIPE


def test_full_device(made: Site) -> None:
    words = command(made, "web@latest", "-o", "-")
    with open("/dev/full", "wb") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1
    assert b"cannot write to standard output: No space left on device" in done.stderr


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """With a disk that takes a moment to write."""
    site = Site(tmp_path_factory.mktemp("large"))
    site.init()
    with disk(site).open("wb") as file:
        for _ in range(100):
            file.write(os.urandom(MIB))
    site.ingest("large", disk(site))
    return site


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_ended_by_a_signal_leaves_nothing(large: Site, tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "out"
    child = subprocess.Popen(command(large, "large@latest", "-o", out), stderr=subprocess.PIPE)
    assert child.stderr is not None
    with child.stderr:
        while child.poll() is None and not _has_written(child.pid, tmp_path):
            time.sleep(0.001)
        child.send_signal(number)
        child.wait()
        said = child.stderr.read()
    assert child.returncode in (-number, 128 + number), said
    assert not list(tmp_path.iterdir())


def _has_written(pid: int, directory: Path) -> bool:
    """Whether it has an unnamed file there open, with something in it."""
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if os.readlink(fd).startswith(f"{directory}/#") and fd.stat().st_blocks > 2048:
                return True
        except OSError:
            continue
    return False


def test_into_a_small_file_system(made: Site, tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands for a file system that cannot hold the file."""
    limit = ["sh", "-c", 'ulimit -f 2048; exec "$@"', "sh"]
    words = command(made, "web@latest", "-o", tmp_path / "out")
    done = subprocess.run([*limit, *words], capture_output=True, check=False)
    assert done.returncode == 1
    assert b"cannot hold a file that large" in done.stderr
    assert not list(tmp_path.iterdir())


def test_64_tib_disk(tmp_path: Path) -> None:
    """What counts is the data and not the size."""
    site = Site(tmp_path)
    site.init()
    size, chunk = 64 << 40, b"data" * (16 << 10)
    places = (0, 500 << 30, size - len(chunk))
    with site.open() as repository, repository.write_session() as session:
        writer = session.map_writer(size, EMPTY)
        for place in places:
            writer.set(place // len(chunk), session.store_blob(Kind.DATA, chunk).id)
        made = writer.finish()
        huge = Disk(id="d", alias="d", size=size, root=made.root, allocated=made.allocated)
        now = datetime.now(UTC)
        session.commit(Manifest(vm=Vm(name="huge", id="huge"), time=now, consistency="crash", disks=(huge,)))
    out = tmp_path / "out.qcow2"
    began = time.monotonic()
    assert site.vmfs("export", "huge@latest", "-o", out, "--format", "qcow2").status == 0
    assert time.monotonic() - began < 60
    assert out.stat().st_size < 3 * MIB
    subprocess.run(["qemu-img", "check", out], check=True, capture_output=True)
    mapped = subprocess.run(["qemu-img", "map", "--output=json", out], check=True, capture_output=True).stdout
    found = [(part["start"], part["length"]) for part in json.loads(mapped) if part["data"]]
    assert found == [(place, len(chunk)) for place in places]


def test_json_on_failure_is_a_line_of_error(made: Site, tmp_path: Path) -> None:
    done = made.vmfs("export", "web@1999", "-o", tmp_path / "out", "--json")
    assert (done.status, done.out) == (2, "")
    assert done.err.count("\n") == 1
