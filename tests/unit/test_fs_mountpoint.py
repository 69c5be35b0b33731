"""Where a mount may go, going into the background, and the words of mount(8)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mount_helpers import run, wait_until

from vmfs.cli import mount_helper
from vmfs.errors import UsageError, VmfsError
from vmfs.fs import mountpoint

pytestmark = pytest.mark.usefixtures("measured")


def test_a_good_mountpoint(tmp_path: Path) -> None:
    place, repository = tmp_path / "mnt", tmp_path / "repository"
    place.mkdir()
    repository.mkdir()
    (tmp_path / "link").symlink_to(place)
    assert mountpoint.check(place, [repository]) == place
    assert mountpoint.check(tmp_path / "x" / ".." / "mnt", [repository, tmp_path / "absent"]) == place
    assert mountpoint.check(tmp_path / "link", [repository]) == place


def test_bad_mountpoints(tmp_path: Path) -> None:
    repository = tmp_path / "a" / "repository"
    (repository / "packs").mkdir(parents=True)
    (tmp_path / "link").symlink_to(repository)
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    for place, message in (
        ("absent", "does not exist; make it with mkdir"),
        ("file", "not a directory"),
        ("full", "not empty"),
        ("a/repository", "is .*/repository itself"),
        ("link", "is .*/repository itself"),
        ("a/repository/packs", "is inside .*/a/repository"),
        ("a", "would hide it"),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            mountpoint.check(tmp_path / place, [repository])
        assert "\n" not in str(caught.value)


def test_proc_is_mounted_and_not_ours() -> None:
    assert mountpoint.mounted_at(Path("/proc")) is not None
    with pytest.raises(UsageError, match="already mounted"):
        mountpoint.check(Path("/proc"), [])
    with pytest.raises(UsageError, match="a mount of proc and not of vmfs"):
        mountpoint.unmount(Path("/proc"))


def test_unmounting_what_is_not_mounted(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not mounted"):
        mountpoint.unmount(tmp_path)


def test_mount_table_with_odd_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(
        "36 35 98:0 / /mnt/with\\040space\\134 rw shared:1 master:2 - fuse.vmfs vmfs:/a\\040b rw\n"
        "nonsense\n"
        "37 35 98:1 / / rw - ext4 /dev/root rw,errors=continue\n"
    )
    monkeypatch.setattr(mountpoint, "_MOUNTINFO", table)
    assert mountpoint.mounts() == [
        mountpoint.Mounted("98:0", "/mnt/with space\\", "fuse.vmfs", "vmfs:/a b"),
        mountpoint.Mounted("98:1", "/", "ext4", "/dev/root"),
    ]


def test_no_fuse_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mountpoint, "FUSE_DEVICE", tmp_path / "fuse")
    with pytest.raises(VmfsError, match=r"FUSE is not available.*missing; run 'modprobe fuse'"):
        mountpoint.check_fuse()
    (tmp_path / "fuse").mkdir()
    with pytest.raises(VmfsError, match="cannot be opened"):
        mountpoint.check_fuse()


def test_users_without_fusermount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mountpoint, "FUSE_DEVICE", Path(os.devnull))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(VmfsError, match="install the package fuse3"):
        mountpoint.check_fuse()


def test_users_that_may_not_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = tmp_path / "fuse.conf"
    monkeypatch.setattr(mountpoint, "_FUSE_CONF", conf)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UsageError, match="user_allow_other"):
        mountpoint.check_allow_other()
    conf.write_text("#user_allow_other\n")
    with pytest.raises(UsageError, match="user_allow_other"):
        mountpoint.check_allow_other()
    conf.write_text("mount_max = 5\nuser_allow_other\n")
    mountpoint.check_allow_other()


SERVE = """
import os, sys, time
from pathlib import Path
from vmfs.errors import IntegrityError
from vmfs.fs.daemon import run_in_background
place = Path(sys.argv[1])
def serve(ready):
    {body}
status = run_in_background(serve, place / "log")
print("parent", status, (place / "up").exists())
"""


def in_background(place: Path, body: str) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-c", SERVE.format(body=body), place, timeout=30)


def test_the_parent_returns_when_the_mount_is_up(tmp_path: Path) -> None:
    body = """time.sleep(0.3); (place / "up").touch(); ready()
    print("not to be seen"); print("nor this", file=sys.stderr)
    facts = [os.getsid(0) != os.getpid(), os.getcwd() == "/"]
    (place / "facts").write_text(repr(facts))
    while (place / "up").exists(): time.sleep(0.02)
    (place / "over").touch()"""
    done = in_background(tmp_path, body)
    assert (done.stdout, done.stderr) == ("parent 0 True\n", "")
    wait_until(lambda: (tmp_path / "facts").exists() and (tmp_path / "facts").read_text())
    assert (tmp_path / "facts").read_text() == "[True, True]"
    (tmp_path / "up").unlink()
    wait_until((tmp_path / "over").exists)


def test_the_parent_says_why_there_is_no_mount(tmp_path: Path) -> None:
    done = in_background(tmp_path, "raise IntegrityError('config is damaged')")
    assert done.stdout == "parent 3 False\n"
    assert done.stderr == "vmfs: config is damaged\n"


def test_a_daemon_that_dies_silently(tmp_path: Path) -> None:
    done = in_background(tmp_path, "os._exit(0)")
    assert done.stdout == "parent 1 False\n"
    assert "died before the mount was up" in done.stderr


def test_an_error_after_the_mount_was_up_is_logged(tmp_path: Path) -> None:
    done = in_background(tmp_path, "ready(); raise IntegrityError('later')")
    assert done.stdout.startswith("parent 0")
    wait_until(lambda: "the mount ended: later" in (tmp_path / "log").read_text())


def test_a_log_file_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    done = in_background(tmp_path, "ready()")
    assert done.stdout.startswith("parent 1")
    assert done.stderr == f"vmfs: log file {tmp_path}/log: Is a directory\n"


def test_the_words_of_mount() -> None:
    assert mount_helper.split("ro,uid=5,,passphrase_command=echo a\\,b,x-y") == [
        "ro",
        "uid=5",
        "passphrase_command=echo a,b",
        "x-y",
    ]
    assert mount_helper.translate("rw") == []
    assert mount_helper.translate("x-systemd.automount") == []
    assert mount_helper.translate("uid=5") == ["--uid=5"]
    assert mount_helper.translate("allow_other") == ["--allow-other"]
    assert mount_helper.translate("passphrase_file=/etc/a=b") == ["--passphrase-file=/etc/a=b"]
    assert mount_helper.translate("offset=5") is None
    assert mount_helper.is_mount_call(["/repo", "/mnt", "-o", "rw"])
    assert not mount_helper.is_mount_call(["mount", "/mnt", "-o", "rw"])
    assert not mount_helper.is_mount_call(["show", "repo", "point"])


@pytest.mark.parametrize(
    "words", [["/a"], ["/a", "/b", "-o"], ["/a", "/b", "-x"], ["/a", "/b", "-o", "size=5"]]
)
def test_wrong_calls_of_the_mount_helper(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert mount_helper.main(words) == 1
    assert capsys.readouterr().err.startswith("mount.fuse.vmfs: ")


def test_the_mount_helper_fakes() -> None:
    assert mount_helper.main(["/nowhere", "/nowhere", "-f", "-o", "rw"]) == 0
    assert mount_helper.main(["/nowhere", "/nowhere", "-f", "-s", "-o", "size=5"]) == 0
