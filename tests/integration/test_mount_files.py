"""files/ in real mounts: guests' file systems as the kernel made them, read without it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from kernel_tree_helpers import (
    RAW_OPTIONS,
    Fact,
    facts,
    fill,
    kernel_mount,
    make_file_system,
    need_mkfs,
    partition_of,
)
from mount_helpers import (
    MIB,
    add_point,
    command,
    forget_content,
    mounted,
    needs_fuse,
    needs_sfdisk,
    run,
    wait_until,
)

from vmfs.repo.repository import Repository

pytestmark = [needs_fuse, needs_sfdisk, pytest.mark.root, pytest.mark.usefixtures("measured")]

_SHUT_DOWN = 0x8004587D
_LOG_FLUSHED = struct.pack("I", 1)


def errno_of(action: Callable[[], object]) -> int | None:
    try:
        action()
    except OSError as error:
        return error.errno
    return None


def workers_of(pid: int) -> list[int]:
    """The processes that parse guests' file systems for a mount."""
    found = []
    for child in run("ps", "-o", "pid=", "--ppid", str(pid)).stdout.split():
        try:
            arguments = Path("/proc", child, "cmdline").read_bytes()
        except OSError:
            continue
        if b"/worker/__main__.py" in arguments:
            found.append(int(child))
    return found


def one_file_system(
    tmp_path: Path, kind: str, work: Callable[[Path], object], size: int | None = None, *options: str
) -> Path:
    """A disk of one partition with a new file system."""
    need_mkfs(kind)
    image = tmp_path / f"{kind}.image"
    make_file_system(kind, image, work, size, *options)
    return partition_of(image, tmp_path / f"{kind}.disk")


def differences(found: dict[bytes, Fact], truth: dict[bytes, Fact]) -> list[object]:
    names = sorted(found.keys() | truth.keys())
    return [(name, found.get(name), truth.get(name)) for name in names if found.get(name) != truth.get(name)]


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_every_file_is_as_the_kernel_has_it(repository: Repository, tmp_path: Path, kind: str) -> None:
    disk = one_file_system(tmp_path, kind, fill)
    with kernel_mount(tmp_path / f"{kind}.image", f"ro,{RAW_OPTIONS[kind]}") as top:
        truth = facts(top)
    assert len(truth) > 1500
    add_point(repository, {"sda": disk})
    with mounted(repository, tmp_path / "mnt") as mount:
        point = mount.path / "web" / "latest"
        files = point / "files" / "sda-p1"
        assert os.listdir(point / "files") == ["sda-p1"]
        assert differences(facts(files), truth) == []
        # Once more, now by names that the kernel has to ask for.
        subprocess.run(["sysctl", "-q", "vm.drop_caches=2"], check=True)
        for name in random.Random(3).sample(sorted(truth), 100):  # noqa: S311
            status = os.lstat(os.path.join(os.fsencode(files), name))
            assert (status.st_size, status.st_mtime_ns) == (truth[name].size, truth[name].mtime)
        with kernel_mount(point / "volumes" / "sda-p1.raw", f"ro,{RAW_OPTIONS[kind]}") as top:
            assert differences(facts(top), truth) == []
        volume = json.loads((point / "point.json").read_bytes())["volumes"][0]
        assert (volume["type"], volume["kind"], volume["file"], volume["files"], volume["warnings"]) == (
            kind,
            "partition",
            "volumes/sda-p1.raw",
            "files/sda-p1",
            [],
        )
        assert "unexpected" not in mount.log


def test_as_clients_copy(repository: Repository, tmp_path: Path) -> None:
    """cp, tar, rsync, du and find take all of it along, and nothing can be changed."""
    disk = one_file_system(tmp_path, "ext4", fill)
    add_point(repository, {"sda": disk})
    # On a file system that holds all of it: xattrs of `trusted.`, every time.
    with kernel_mount(tmp_path / "ext4.image") as original, mounted(repository, tmp_path / "mnt") as mount:
        files = mount.path / "web" / "latest" / "files" / "sda-p1"
        wanted = facts(original)
        copies = original.parent / f"{original.name}.copies"
        copies.mkdir()
        try:
            done = run("cp", "-a", "--sparse=always", files, copies / "cp")
            assert (done.returncode, done.stderr) == (0, "")
            packed = f"tar -C {files} --xattrs --xattrs-include=* --acls -cf - . | tar -C {copies}/tar"
            (copies / "tar").mkdir()
            done = run("bash", "-c", f"set -o pipefail; {packed} --xattrs --xattrs-include=* --acls -xpf -")
            assert done.returncode == 0, done.stderr
            assert "socket ignored" in done.stderr
            assert run("rsync", "-aHAXS", f"{files}/", copies / "rsync").returncode == 0
            for tool in ("cp", "tar", "rsync"):
                copied = facts(copies / tool)
                for name, fact in wanted.items():
                    if (tool == "tar" and name in (b"socket", b"")) or name == b"lost+found":
                        continue
                    # A directory's size is its file system's business, and tar makes times of whole seconds.
                    ignored = {"size": 0, "xattrs": ()} if fact.kind == 0o040000 else {}
                    if tool == "tar":
                        ignored["mtime"] = 0
                    assert copied[name]._replace(**ignored) == fact._replace(**ignored), (tool, name)
            assert (copies / "cp" / "sparse").stat().st_blocks * 512 < MIB
        finally:
            shutil.rmtree(copies)
        listed = subprocess.run(["find", files, "-print0"], check=True, capture_output=True).stdout
        assert listed.count(b"\0") == len(wanted)
        usage = run("du", "-s", "--apparent-size", "--block-size=1", files)
        assert usage.returncode == 0
        # What is allocated is told too, and not only the size.
        assert (files / "sparse").stat().st_blocks * 512 < MIB
        assert int(usage.stdout.split()[0]) >= 3 * MIB
        for action in (
            lambda: (files / "new").write_bytes(b""),
            lambda: (files / "size 1").write_bytes(b"x"),
            lambda: os.truncate(files / "size 1", 0),
            lambda: (files / "size 1").unlink(),
            lambda: os.setxattr(files / "size 1", "user.x", b"y"),
            lambda: os.rename(files / "size 1", files / "x"),
        ):
            assert errno_of(action) == errno.EROFS
        assert errno_of(lambda: (files / "none").stat()) == errno.ENOENT
        assert errno_of(lambda: os.listdir(files / "size 1")) == errno.ENOTDIR
        assert errno_of(lambda: os.getxattr(files / "size 1", "user.none")) == errno.ENODATA
        assert errno_of(lambda: os.getxattr(mount.path, "user.none")) == errno.EOPNOTSUPP
        # Nor does the guest's device lead to one of ours.
        assert errno_of(lambda: (files / "null").read_bytes()) == errno.EACCES
        assert "unexpected" not in mount.log


def fill_large(top: Path) -> None:
    folder = top / "large"
    folder.mkdir()
    for number in range(20_000):
        (folder / f"file {number}").touch()
    (top / "data").write_bytes(os.urandom(8 * MIB))


def test_a_large_directory(repository: Repository, tmp_path: Path) -> None:
    """Listed by several at once, each all of it once, while others read."""
    disk = one_file_system(tmp_path, "ext4", fill_large, None, "-N", "21000")
    add_point(repository, {"sda": disk})
    found: list[list[str]] = []
    with mounted(repository, tmp_path / "mnt") as mount:
        files = mount.path / "web" / "latest" / "files" / "sda-p1"
        threads = [
            threading.Thread(target=lambda: found.append(os.listdir(files / "large"))) for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        data = (files / "data").read_bytes()
        for thread in threads:
            thread.join()
        assert len(data) == 8 * MIB
        wanted = {f"file {number}" for number in range(20_000)}
        for names in found:
            assert len(names) == 20_000
            assert set(names) == wanted
        before = {entry.name: entry.inode() for entry in os.scandir(files / "large")}
        subprocess.run(["sysctl", "-q", "vm.drop_caches=2"], check=True)
        for name in ("file 0", "file 7777", "file 19999"):
            assert (files / "large" / name).stat().st_ino == before[name]
        assert len(set(before.values())) == 20_000
    with mounted(repository, tmp_path / "mnt2") as mount:
        again = mount.path / "web" / "latest" / "files" / "sda-p1" / "large"
        assert {entry.name: entry.inode() for entry in os.scandir(again)} == before


def test_two_points_at_once(repository: Repository, tmp_path: Path) -> None:
    """The same volume of two restore points: two workers, each with its own content."""
    truths = []
    for number in range(2):

        def work(top: Path, number: int = number) -> None:
            for name in range(50):
                (top / f"file {name}").write_bytes(os.urandom(10_000) + b"%d" % number)
            (top / f"only in {number}").write_bytes(b"")

        disk = one_file_system(tmp_path, "ext4", work)
        with kernel_mount(tmp_path / "ext4.image", "ro") as top:
            truths.append(facts(top))
        add_point(repository, {"sda": disk}, vm=f"vm{number}")
    found: dict[int, dict[bytes, Fact]] = {}
    with mounted(repository, tmp_path / "mnt") as mount:

        def read(number: int) -> None:
            found[number] = facts(mount.path / f"vm{number}" / "latest" / "files" / "sda-p1")

        threads = [threading.Thread(target=read, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(workers_of(mount.process.pid)) == 2
    assert [found[0], found[1]] == truths
    assert found[0] != found[1]


def fill_some(top: Path) -> None:
    for number in range(60):
        (top / f"file {number}").write_bytes(os.urandom(200_000))


def test_workers_that_are_killed(repository: Repository, tmp_path: Path) -> None:
    """At any moment: what is being read fails with EIO, or is right; what comes next is read by a new worker,
    and the rest of the mount never notices."""
    disks = {kind: one_file_system(tmp_path, kind, fill_some) for kind in ("ext4", "xfs")}
    add_point(repository, disks)
    truth = {}
    for kind in disks:
        with kernel_mount(tmp_path / f"{kind}.image", f"ro,{RAW_OPTIONS[kind]}") as top:
            truth[kind] = {path.name: path.read_bytes() for path in top.iterdir() if path.is_file()}
    wrong: list[object] = []
    failed: list[str] = []
    over = threading.Event()

    def read(kind: str, files: Path) -> None:
        mine = random.Random(kind)  # noqa: S311
        while not over.is_set():
            name = mine.choice(sorted(truth[kind]))
            try:
                forget_content(files / name)
                if (files / name).read_bytes() != truth[kind][name]:
                    wrong.append((kind, name))
            except OSError as error:
                failed.append(name)
                if error.errno != errno.EIO:
                    wrong.append(error)

    def read_raw(path: Path, content: bytes) -> None:
        while not over.is_set():
            forget_content(path)
            if path.read_bytes() != content:
                wrong.append(path)

    choice = random.Random(11)  # noqa: S311
    with mounted(repository, tmp_path / "mnt") as mount:
        point = mount.path / "web" / "latest"
        threads = [
            *(threading.Thread(target=read, args=(kind, point / "files" / f"{kind}-p1")) for kind in disks),
            threading.Thread(
                target=read_raw, args=(point / "disks" / "ext4.raw", disks["ext4"].read_bytes())
            ),
        ]
        for thread in threads:
            thread.start()
        try:
            for _ in range(9):
                wait_until(lambda: len(workers_of(mount.process.pid)) == 2)
                over.wait(choice.random() * 0.2)
                for worker in workers_of(mount.process.pid):
                    # Else it has ended since, by the last of these.
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(worker, signal.SIGKILL)
        finally:
            over.set()
            for thread in threads:
                thread.join()
        assert wrong == []
        assert failed
        for kind, files in truth.items():
            wait_until(lambda kind=kind: errno_of(lambda: os.listdir(point / "files" / f"{kind}-p1")) is None)
            for name, content in files.items():
                forget_content(point / "files" / f"{kind}-p1" / name)
                assert (point / "files" / f"{kind}-p1" / name).read_bytes() == content
        assert "ended by signal 9" in mount.log
        assert "unexpected" not in mount.log
        assert "Traceback" not in mount.log


def test_a_worker_that_hangs(repository: Repository, tmp_path: Path) -> None:
    """Stopped in the middle: those who look into its volume wait, and nobody else does."""
    add_point(repository, {"sda": one_file_system(tmp_path, "ext4", fill_some)}, vm="bad")
    add_point(repository, {"sda": one_file_system(tmp_path, "xfs", fill_some)}, vm="good")
    with mounted(repository, tmp_path / "mnt") as mount:
        bad = mount.path / "bad" / "latest" / "files" / "sda-p1"
        names = os.listdir(bad)
        (victim,) = workers_of(mount.process.pid)
        os.kill(victim, signal.SIGSTOP)
        results: list[int | None] = []
        threads = [
            threading.Thread(target=lambda name=name: results.append(errno_of((bad / name).read_bytes)))
            for name in names[:40]
        ]
        for thread in threads:
            thread.start()
        try:
            good = mount.path / "good" / "latest" / "files" / "sda-p1"
            assert len(facts(good)) == 61
            assert (mount.path / "bad" / "latest" / "disks" / "sda.raw").read_bytes()
        finally:
            os.kill(victim, signal.SIGCONT)
        for thread in threads:
            thread.join()
        assert set(results) <= {None, errno.EISDIR, errno.EIO}


def test_names_that_cannot_be_shown(repository: Repository, tmp_path: Path) -> None:
    """A name with a slash would end the listing of all others."""

    def work(top: Path) -> None:
        for name in ("before", "evil-name", "other-name", "zz-top-zz"):
            (top / name).write_bytes(name.encode())

    one_file_system(tmp_path, "ext4", work, None, "-O", "^metadata_csum")
    image = tmp_path / "ext4.image"
    data = image.read_bytes()
    for before, after in ((b"evil-name", b"../../etc"), (b"other-name", b"othe\0-name")):
        assert data.count(b"\x01" + before) >= 1
        data = data.replace(b"\x01" + before, b"\x01" + after)
    image.write_bytes(data)
    add_point(repository, {"sda": partition_of(image, tmp_path / "forged.disk")})
    with mounted(repository, tmp_path / "mnt") as mount:
        files = mount.path / "web" / "latest" / "files" / "sda-p1"
        assert set(os.listdir(files)) >= {"before", "zz-top-zz", "lost+found"}
        # In the place of what no name can hold is something else, or the name is left out.
        assert {name.replace("?", "/") for name in os.listdir(files) if "etc" in name} <= {
            "../../etc",
            "/../../etc",
        }
        assert (files / "zz-top-zz").read_bytes() == b"zz-top-zz"
        assert run("find", files).returncode == 0
        assert mount.process.poll() is None


def test_damaged_metadata_is_an_error_of_its_file(repository: Repository, tmp_path: Path) -> None:
    """Noise over parts of the file system: errors or entries, and never the end of the mount."""
    one_file_system(tmp_path, "ext4", fill_some)
    image = tmp_path / "ext4.image"
    data = bytearray(image.read_bytes())
    choice = random.Random(2)  # noqa: S311
    for _ in range(300):
        data[choice.randrange(4096, 4 * MIB)] = choice.randrange(256)
    image.write_bytes(data)
    add_point(repository, {"sda": partition_of(image, tmp_path / "damaged.disk"), "sdb": os.urandom(MIB)})
    with mounted(repository, tmp_path / "mnt") as mount:
        point = mount.path / "web" / "latest"
        run("find", point / "files", "-ls")
        run("tar", "-C", point / "files", "-cf", "/dev/null", ".")
        assert (point / "volumes" / "sda-p1.raw").read_bytes() == data
        assert len((point / "disks" / "sdb.raw").read_bytes()) == MIB
        assert mount.process.poll() is None
        assert "Traceback" not in mount.log


def test_a_dirty_log_is_said(repository: Repository, tmp_path: Path) -> None:
    """In point.json once somebody has looked, in the log, and by show at once."""
    need_mkfs("xfs")
    image = tmp_path / "xfs.image"

    def work(top: Path) -> None:
        (top / "file").write_bytes(b"new")
        descriptor = os.open(top, os.O_RDONLY)
        fcntl.ioctl(descriptor, _SHUT_DOWN, _LOG_FLUSHED)
        os.close(descriptor)

    make_file_system("xfs", image, work)
    add_point(repository, {"sda": partition_of(image, tmp_path / "disk"), "sdb": b"\1" * MIB})
    with mounted(repository, tmp_path / "mnt") as mount:
        point = mount.path / "web" / "latest"
        assert json.loads((point / "point.json").read_bytes())["volumes"] is None
        assert os.listdir(point / "volumes") == ["sda-p1.raw"]
        (volume,) = json.loads((point / "point.json").read_bytes())["volumes"]
        assert volume["warnings"] is None
        run("find", point / "files")
        (volume,) = json.loads((point / "point.json").read_bytes())["volumes"]
        assert [warning for warning in volume["warnings"] if "log" in warning]
        assert len((point / "point.json").read_bytes()) == (point / "point.json").stat().st_size
        assert [line for line in mount.log.splitlines() if "volume sda-p1 of point" in line and "log" in line]
    shown = json.loads(run(*command(repository, "show", repository.store.url, "web@latest", "--json")).stdout)
    assert shown["volumes"][0]["warnings"] == volume["warnings"]
    text = run(*command(repository, "show", repository.store.url, "web@latest")).stdout
    assert "sda-p1  partition" in text
    assert volume["warnings"][0] in text


# In a namespace whose /dev has a FUSE device for everybody, as every distribution has it.
_OF_A_USER = """
set -e
mount -t tmpfs none /dev
mknod -m 666 /dev/null c 1 3; mknod -m 666 /dev/urandom c 1 9; mknod -m 666 /dev/fuse c 10 229
ln -s /proc/self/fd /dev/fd
home=$1; shift
nobody="setpriv --reuid=65534 --regid=65534 --clear-groups"
# The interpreter may lie where only root can read; what is mounted is looked at without that.
able="--inh-caps=+dac_read_search --ambient-caps=+dac_read_search env HOME=$home"
$nobody $able "$@"
ls $home/mnt > $home/seen-by-root 2>&1 || true
cd $home/mnt/web/latest/files/sda-p1 2> /dev/null || true
$nobody sh -c 'cd "$1"/mnt/web/latest/files/sda-p1 && cat "mode 0" secret/key "mode 600" > "$1"/secrets &&
    tar --exclude=./socket -cf "$1"/all.tar .' sh $home
$nobody fusermount3 -u $home/mnt
"""


def test_an_unprivileged_user(repository: Repository, tmp_path: Path) -> None:
    """With nothing but read access to the repository: mounts by fusermount3, and reads what is root's in the
    guest, as nobody else gets in."""
    disk = one_file_system(tmp_path, "ext4", fill)
    with kernel_mount(tmp_path / "ext4.image", "ro") as top:
        truth = facts(top)
    add_point(repository, {"sda": disk})
    home = Path(subprocess.run(["mktemp", "-d"], check=True, capture_output=True, text=True).stdout.strip())
    try:
        shutil.copytree(repository.store.url, home / "repository")
        words = command(repository, "mount", home / "repository", home / "mnt")
        words[words.index("--cache-dir") + 1] = str(home / "cache")
        secret = words[words.index("--passphrase-file") + 1]
        words[words.index("--passphrase-file") + 1] = str(shutil.copy(secret, home / "passphrase"))
        (home / "mnt").mkdir()
        run("chmod", "-R", "a+rX,go-w", home)
        run("chown", "65534:65534", home, home / "mnt", home / "passphrase")
        (home / "passphrase").chmod(0o600)
        done = run("unshare", "--mount", "bash", "-c", _OF_A_USER, "bash", home, *words)
        assert done.returncode == 0, done.stderr
        assert "Permission denied" in (home / "seen-by-root").read_text()
        assert (home / "secrets").read_text() == "0of nobody's business600"
        listed = run("tar", "-tf", home / "all.tar").stdout.splitlines()
        assert len(listed) == len(truth) - 1
    finally:
        shutil.rmtree(home)


def test_others_are_held_by_the_modes_of_the_guest(repository: Repository, tmp_path: Path) -> None:
    add_point(repository, {"sda": one_file_system(tmp_path, "ext4", fill)})
    for parent in (tmp_path, *tmp_path.parents):
        if parent != Path("/") and parent.stat().st_mode & 0o005 != 0o005:
            parent.chmod(parent.stat().st_mode | 0o005)
    with mounted(repository, tmp_path / "mnt", "--allow-other") as mount:
        files = mount.path / "web" / "latest" / "files" / "sda-p1"
        as_nobody = ("setpriv", "--reuid=4321", "--regid=4321", "--clear-groups")
        assert run(*as_nobody, "cmp", files / "size 1", files / "size 1").returncode == 0
        for name in ("mode 0", "mode 600", "secret/key"):
            assert "Permission denied" in run(*as_nobody, "cat", files / name).stderr
        assert (files / "secret" / "key").read_bytes() == b"of nobody's business"
        # A guest's setuid program gives nobody anything here.
        table = Path("/proc/mounts").read_text().splitlines()
        assert ",nosuid,nodev," in next(line for line in table if f" {mount.path} " in line)
