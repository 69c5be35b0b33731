"""vmfs boot: a real guest comes up from a restore point, writes, and the repository stays what it was."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from boot_helpers import Terminal, boot, make_bootable, on_terminal
from command_helpers import Site
from recovery_helpers import vmfs
from serve_helpers import fingerprint, processes, run, serve

from vmfs.boot.accel import trial
from vmfs.repo.notes import list_notes

TCG = ("--accel", "tcg", "--memory", "256M")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """VM `web01`, with a configuration of two processors, 300 MiB, and its second disk, on a SCSI controller,
    to boot from."""
    site = Site(tmp_path_factory.mktemp("boot"))
    site.init()
    make_bootable(site.root / "system")
    domain = site.root / "domain.xml"
    domain.write_text(
        "<domain type='kvm'><name>web01</name><memory unit='MiB'>300</memory><vcpu>2</vcpu>"
        "<os><type machine='pc-i440fx-7.2'>hvm</type></os><devices>"
        "<disk><target dev='data' bus='virtio'/></disk>"
        "<disk><target dev='system' bus='scsi'/><boot order='1'/></disk></devices></domain>"
    )
    (site.root / "data").write_bytes(bytes(1 << 20))
    site.ingest("web01", site.root / "data", site.root / "system", "--attach", domain)
    return site


@pytest.fixture
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture
def nobodys(site: Site) -> Iterator[Site]:
    """The repository again, where other users may look: pytest's own directories are closed to them."""
    root = Path(tempfile.mkdtemp(prefix="vmfs-test-"))
    root.chmod(0o755)
    found = Site(root)
    shutil.copytree(site.repository, found.repository)
    found.write_passphrase()
    run("chmod", "-R", "o+rX", found.repository, found.passphrase)
    yield found
    shutil.rmtree(root)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that everybody may use."""
    root = Path(tempfile.mkdtemp(prefix="vmfs-test-", dir="/var/tmp"))
    root.chmod(0o777)
    yield root
    shutil.rmtree(root)


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def log_in(terminal: Terminal) -> None:
    terminal.expect("web01 login:")
    terminal.send("root\n")
    terminal.expect("# ")


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    """The directories in the repository with files that are other, gone or new."""
    return {name.partition("/")[0] for name, _ in set(before.items()) ^ set(after.items())}


@pytest.mark.slow
def test_a_check_boots_the_guest_and_keeps_the_evidence(site: Site, scratch: Path) -> None:
    before = fingerprint(site.repository)
    done = site.vmfs(
        "boot", "web01@latest", "--check", "web01 login:", "--scratch", scratch, "--accel", "tcg", "--json"
    )
    facts = done.json()
    assert facts["passed"] is True
    assert facts["matched"] == "web01 login:"
    assert facts["ending"] == "acpi"
    assert "boots: 1" in facts["console"]
    assert facts["machine"] == {
        "type": "pc",
        "firmware": "bios",
        "memory_mib": 300,
        "cpus": 2,
        "accel": "tcg",
        "network": "none",
    }
    assert facts["bytes_written"] > 0
    assert changed(before, fingerprint(site.repository)) == {"notes"}
    assert before.items() <= fingerprint(site.repository).items()
    assert list(scratch.iterdir()) == []
    assert processes(rf"qemu-system.*{scratch}") == []
    with site.open() as repository:
        notes = list_notes(repository, facts["point"], "boot")
    assert [note.id for note in notes.found] == [facts["note"]]
    assert notes.found[0].facts["console"] == facts["console"]
    assert "passed in" in site.vmfs("show", "web01@latest").out
    assert site.vmfs("show", "web01@latest", "--json").json()["boot_test"]["matched"] == "web01 login:"


@pytest.mark.slow
def test_a_text_that_does_not_come_fails(site: Site) -> None:
    before = fingerprint(site.repository)
    done = site.vmfs("boot", "web01@latest", "--check", "never", "--timeout", 3, "--no-note", *TCG)
    assert done.status == 1
    assert "did not say 'never' within 3 s" in done.out
    assert fingerprint(site.repository) == before


@pytest.mark.slow
def test_what_is_written_inside_is_kept_by_a_name_and_nowhere_else(site: Site, scratch: Path) -> None:
    """On a terminal: log in, write, power off; the kept overlay has it, the repository and others do not."""
    before = fingerprint(site.repository)
    kept = ("--scratch", scratch, "--keep", "trial")
    with boot(site, "web01@latest", *kept) as (process, terminal):
        terminal.expect("Ctrl-A X")
        terminal.expect("boots: 1")
        log_in(terminal)
        terminal.send("head -c 3000000 /dev/urandom >/data; sha256sum </data; sync; echo do''ne\n")
        terminal.expect("done")
        busy = site.vmfs("boot", "web01@latest", "--check", "x", *kept)
        assert busy.status == 2
        assert "is in use" in busy.err
        terminal.send("poweroff\n")
        assert process.wait(60) == 0
    done = site.vmfs(
        "boot", "web01@latest", *kept, "--check", r"boots: \d+[\s\S]*login:", "--no-note", "--json", *TCG
    )
    assert "boots: 2" in done.json()["console"]
    # On the overlay of one point, the disks of another would be rubbish.
    site.ingest("web02", site.root / "system")
    other = site.vmfs("boot", "web02@latest", *kept, "--check", "x")
    assert other.status == 2
    assert "restore point" in other.err
    assert {item for item in before.items() if item[0].startswith(("packs/", "points/"))} <= set(
        fingerprint(site.repository).items()
    )


def test_a_kept_overlay_is_found_by_its_disk(tmp_path: Path) -> None:
    """Whichever disks the VM gets, and in whichever order."""
    site = Site(tmp_path)
    site.init()
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(bytes(1 << 20))
    site.ingest("web", tmp_path / "one", tmp_path / "two")
    kept = ("--scratch", tmp_path, "--keep", "kept", "--check", "never", "--no-note", *TCG)
    kept += ("--timeout", 1, "--shutdown-timeout", 1)
    for spec, overlays in (
        ("web@latest:two", ["disk1.qcow2"]),
        ("web@latest", ["disk0.qcow2", "disk1.qcow2"]),
    ):
        assert site.vmfs("boot", spec, *kept).status == 1
        assert sorted(path.name for path in (tmp_path / "kept").glob("*.qcow2")) == overlays


@pytest.mark.slow
@pytest.mark.parametrize("bus", ["ide", "virtio_scsi"])
def test_other_buses_boot_too_and_a_terminal_ends_it(site: Site, scratch: Path, bus: str) -> None:
    with boot(site, "web01@latest", "--bus", bus, "--scratch", scratch) as (process, terminal):
        log_in(terminal)
        terminal.send("findfs LABEL=root\n")
        # Which of the two disks comes first, Linux does not promise.
        terminal.expect("/dev/sd")
        terminal.send("\x01x")
        assert process.wait(30) == 0
    assert list(scratch.iterdir()) == []


@pytest.mark.slow
def test_uefi_comes_up_and_can_be_cut_off(site: Site, scratch: Path) -> None:
    """The guest has no boot loader for it: the firmware says so on the console, and heeds no button."""
    words = ("--firmware", "uefi", "--check", "BdsDxe: failed", "--shutdown-timeout", "1", "--no-note")
    facts = site.vmfs("boot", "web01@latest", *words, "--scratch", scratch, "--json", *TCG).json()
    assert facts["passed"] is True
    assert facts["machine"]["firmware"] == "uefi"
    assert facts["ending"] == "quit"
    assert list(scratch.iterdir()) == []


@pytest.mark.slow
def test_another_qemu_boots_from_what_is_served(site: Site, scratch: Path) -> None:
    """vmfs serve nbd, and over it a qcow2 overlay and a qemu that know nothing of vmfs."""
    before = fingerprint(site.repository)
    overlay = scratch / "overlay.qcow2"
    with serve(site, "web01@latest:system", "--socket", scratch / "nbd") as served:
        run("qemu-img", "create", "-q", "-f", "qcow2", "-b", served.uris[0], "-F", "raw", overlay)
        words = ["qemu-system-x86_64", "-accel", "tcg", "-m", "256", "-nodefaults", "-display", "none"]
        words += ["-serial", "mon:stdio", "-drive", f"file={overlay},if=virtio,format=qcow2"]
        with on_terminal([*words]) as (process, terminal):
            log_in(terminal)
            terminal.send("echo kept >/kept; sync; poweroff\n")
            assert process.wait(60) == 0
        assert (
            "identical"
            not in subprocess.run(
                ["qemu-img", "compare", "-f", "qcow2", "-F", "raw", overlay, site.root / "system"],
                capture_output=True,
                text=True,
            ).stdout
        )
    assert fingerprint(site.repository) == before


@pytest.mark.slow
def test_a_signal_ends_guest_and_server(site: Site, scratch: Path) -> None:
    with boot(site, "web01@latest", "--scratch", scratch) as (process, terminal):
        terminal.expect("Ctrl-A X")
        wait_until(lambda: bool(processes(rf"qemu-system.*{scratch}")))
        process.terminate()
        assert process.wait(30) == 128 + 15
    assert list(scratch.iterdir()) == []
    assert processes(rf"qemu-system.*{scratch}") == []


@pytest.mark.slow
def test_no_guest_outlives_a_killed_vmfs(site: Site, scratch: Path) -> None:
    with boot(site, "web01@latest", "--scratch", scratch) as (process, terminal):
        terminal.expect("Ctrl-A X")
        wait_until(lambda: bool(processes(rf"qemu-system.*{scratch}")))
        process.kill()
        wait_until(lambda: not processes(rf"qemu-system.*{scratch}"))


@pytest.mark.slow
@pytest.mark.root
def test_nobody_tests_a_backup_that_only_root_may_write(nobodys: Site, place: Path) -> None:
    before = fingerprint(nobodys.repository)
    words = ("web01@latest", "--check", "login:", "--scratch", place, *TCG)
    done = vmfs(nobodys, "boot", *words, nobody=place)
    assert done.status == 0, done.err
    assert "came up" in done.out
    assert "the evidence is not kept" in done.err
    assert fingerprint(nobodys.repository) == before


@pytest.mark.slow
def test_a_disk_that_does_not_boot_fails_the_check(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.init()
    (tmp_path / "empty").write_bytes(bytes(1 << 20))
    site.ingest("blank", tmp_path / "empty")
    done = site.vmfs("boot", "blank@latest", "--check", "login:", "--timeout", 2, *TCG)
    assert done.status == 1
    assert "is its console on the serial port?" in done.out
    with site.open() as repository:
        point = repository.point_ids()[0]
        assert list_notes(repository, point, "boot").found[0].facts["passed"] is False


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--check", "["], "no regular expression"),
        (["--keep", "x"], "--scratch DIR"),
        (["--json"], "--check"),
        (["--scratch", "/", "--keep", "../x", "--check", "x", "--accel", "tcg"], "no name for --keep"),
        (["--qemu-args", "'", "--check", "x", "--accel", "tcg"], "--qemu-args"),
        (["--qemu-args=-no-such", "--check", "x", "--accel", "tcg"], "-no-such: invalid option"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(tmp_path: Path, argv: list[str], said: str) -> None:
    site = Site(tmp_path)
    site.init()
    (tmp_path / "empty").write_bytes(bytes(1 << 20))
    site.ingest("blank", tmp_path / "empty")
    done = site.vmfs("boot", "blank@latest", *argv)
    assert done.status in (1, 2)
    assert said in done.err
    assert done.err.count("\n") == 1


def test_a_missing_qemu_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(tmp_path)
    site.init()
    monkeypatch.setenv("PATH", str(tmp_path))
    done = site.vmfs("boot", "web01@latest")
    assert done.status == 2
    assert "apt-get install qemu-system-x86" in done.err


def test_the_trial_guest_ends_where_guests_run() -> None:
    assert trial("qemu-system-x86_64", "tcg")
    assert not trial("/nowhere/qemu", "tcg")
