"""The worker that reads guests' file systems: what it cannot do, and what its client does when it dies."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from guest_tree_helpers import BytesSpace, FileSpace, run

from vmfs.errors import IntegrityError, StoreError
from vmfs.volumes.files import client
from vmfs.volumes.files.client import FileSystem, GuestError, Limits, open_filesystem
from vmfs.volumes.files.pool import FileSystems

WORKER = Path(client.__file__).parent / "worker"
CONTENT = random.Random(3).randbytes(3_000_000)  # noqa: S311


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("worker")
    tree = folder / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(CONTENT)
    for number in range(100):
        (tree / f"small {number}").write_bytes(b"%d" % number)
    image = folder / "image"
    image.touch()
    os.truncate(image, 16 << 20)
    run("mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, image)
    return image


@pytest.fixture
def filesystem(image: Path) -> Iterator[FileSystem]:
    with open_filesystem(FileSpace(image), "ext4", name="test", limits=Limits(seconds=5)) as filesystem:
        yield filesystem


def file_node(filesystem: FileSystem) -> int:
    return filesystem.lookup(filesystem.root().node, b"file").node


@pytest.mark.root
def test_a_worker_has_given_up_what_it_does_not_need(filesystem: FileSystem) -> None:
    assert filesystem.confinement == ("network", "user", "limits", "privileges", "calls")
    own = Path(f"/proc/{filesystem.worker_pid}")
    status = dict(line.split(":\t", 1) for line in (own / "status").read_text().splitlines())
    assert status["Uid"].split() == status["Gid"].split() == ["65534"] * 4
    assert status["Groups"].split() == []
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
    assert (own / "environ").read_bytes() == b""
    assert os.readlink(own / "cwd") == "/"
    assert os.readlink(own / "ns/net") != os.readlink("/proc/self/ns/net")
    open_files = {os.readlink(link) for link in (own / "fd").iterdir()}
    assert len(open_files) == 2
    assert "/dev/null" in open_files
    limits = (own / "limits").read_text().splitlines()
    values = {line[:26].strip(): line[26:].split()[:2] for line in limits[1:]}
    assert values["Max address space"] == [str(768 << 20)] * 2
    for name in ("Max file size", "Max processes", "Max open files", "Max core file size"):
        assert values[name] == ["0", "0"], name
    assert values["Max cpu time"][0] != "unlimited"


PROBE = """
    import ctypes, os, socket, subprocess, sys, threading
    sys.path.insert(0, sys.argv[1])
    from worker import sandbox
    seccomp = sys.argv[2] == "calls"
    if not seccomp:
        sandbox.confine_calls = lambda: False
    os.environ["SECRET"] = "secret"
    left = socket.socketpair()[0]
    leaked = os.open("/etc/passwd", os.O_RDONLY)
    libc = ctypes.CDLL(None, use_errno=True)
    print(*sandbox.confine(keep=1, memory=768 << 20, cpu_seconds=60), flush=True)

    def attempt(name, action):
        try:
            result = action()
        except (OSError, RuntimeError) as error:
            os.write(1, f"{name} refused\\n".encode())
        else:
            os.write(1, f"{name} {result}\\n".encode())

    def call(*arguments):
        if libc.syscall(*arguments) < 0:
            raise OSError(ctypes.get_errno(), "refused")
        return "done"

    attempt("socket", lambda: socket.socket(socket.AF_INET))
    attempt("unix", lambda: socket.socket(socket.AF_UNIX))
    attempt("write", lambda: os.open("/tmp/worker-wrote-this", os.O_WRONLY | os.O_CREAT))
    attempt("read", lambda: os.open("/etc/hostname", os.O_RDONLY))
    attempt("leaked", lambda: os.read(leaked, 1))
    attempt("fork", os.fork)
    attempt("spawn", lambda: os.posix_spawn("/bin/true", ["true"], {}))
    if seccomp:
        attempt("execve", lambda: os.execve("/bin/true", ["true"], {}))
        attempt("ptrace", lambda: call(101, 16, os.getppid(), 0, 0))
        attempt("kill", lambda: os.kill(os.getppid(), 0))
        attempt("thread", lambda: threading.Thread(target=print).start())
    os.write(1, f"environment {len(os.environ)}\\n".encode())
"""


@pytest.mark.root
@pytest.mark.parametrize("user", [0, 65533])
@pytest.mark.parametrize("calls", ["calls", "no-calls"])
def test_a_worker_can_neither_open_nor_start_nor_reach_anything(user: int, calls: str) -> None:
    # With the interpreter of the system and a copy, which every user may read.
    interpreter = "/usr/bin/python3"
    if not os.access(interpreter, os.X_OK):
        pytest.skip("there is no /usr/bin/python3")
    folder = tempfile.mkdtemp()
    try:
        os.chmod(folder, 0o755)
        shutil.copytree(WORKER, Path(folder) / "worker")
        done = subprocess.run(
            [interpreter, "-I", "-B", "-c", textwrap.dedent(PROBE), folder, calls],
            capture_output=True,
            text=True,
            user=user,
            group=user,
            extra_groups=[],
        )
    finally:
        shutil.rmtree(folder)
    assert done.returncode == 0, done.stderr
    confinement, *lines = done.stdout.splitlines()
    assert {"network", "user", "limits", "privileges"} <= set(confinement.split())
    assert ("calls" in confinement.split()) == (calls == "calls")
    answers = dict(line.split(" ", 1) for line in lines)
    refused = {"socket", "unix", "write", "read", "leaked", "fork", "spawn"}
    if calls == "calls":
        refused |= {"execve", "ptrace", "kill", "thread"}
    assert {name for name, answer in answers.items() if answer == "refused"} == refused
    assert answers["environment"] == "0"
    assert not Path("/tmp/worker-wrote-this").exists()


def test_a_worker_imports_nothing_of_vmfs_and_no_gpl_library(filesystem: FileSystem) -> None:
    """Of all readers."""
    names = sorted(client.READERS)
    code = "\n".join(
        (
            "import sys, importlib",
            f"sys.path.insert(0, {str(WORKER.parent)!r})",
            "from worker import program, readers",
            f"for name in {names!r}: readers.load(name)",
            "print(*sorted({name.split('.')[0] for name in sys.modules}))",
        )
    )
    modules = set(subprocess.check_output([sys.executable, "-I", "-B", "-c", code], text=True).split())
    assert "pyfsntfs" in modules
    assert not modules & {"vmfs", "ingest", "ovirt_imageio", "ovirtsdk4", "pytsk3", "dissect"}


def test_each_file_of_the_worker_names_its_licence() -> None:
    for path in WORKER.rglob("*.py"):
        assert path.read_text().startswith("# SPDX-License-Identifier: MIT\n"), path


def test_many_threads_read_at_once(filesystem: FileSystem) -> None:
    node = file_node(filesystem)

    def check(seed: int) -> None:
        rng = random.Random(seed)  # noqa: S311
        for _ in range(30):
            offset = rng.randrange(len(CONTENT))
            length = rng.choice((1, 4096, 2_000_000))
            assert filesystem.read(node, offset, length) == CONTENT[offset : offset + length]

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(check, range(8)))


def test_killed_at_random_moments_each_answer_is_right_or_an_error(filesystem: FileSystem) -> None:
    node = file_node(filesystem)
    names = {entry.name for entry in filesystem.scan(filesystem.root().node)}
    stop = threading.Event()
    errors: list[GuestError] = []
    right = 0

    def read(seed: int) -> int:
        rng = random.Random(seed)  # noqa: S311
        done = 0
        while not stop.is_set():
            offset = rng.randrange(len(CONTENT))
            try:
                assert filesystem.read(node, offset, 1_500_000) == CONTENT[offset : offset + 1_500_000]
                assert {entry.name for entry in filesystem.scan(filesystem.root().node)} == names
                done += 1
            except GuestError as error:
                errors.append(error)
        return done

    rng = random.Random(1)  # noqa: S311
    with ThreadPoolExecutor(4) as threads:
        readers = [threads.submit(read, seed) for seed in range(4)]
        kills = 0
        while kills < 10:
            time.sleep(rng.random() * 0.2)
            pid = filesystem.worker_pid
            if pid is not None:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
                kills += 1
                _wait_for_another(filesystem, pid)
        stop.set()
        right = sum(reader.result() for reader in readers)
    assert right
    assert errors
    assert {error.errno for error in errors} == {errno.EIO}
    assert all("volume test: its worker ended by signal 9" in str(error) for error in errors)
    assert filesystem.read(node, 0, len(CONTENT)) == CONTENT


def _wait_for_another(filesystem: FileSystem, pid: int) -> None:
    deadline = time.monotonic() + 20
    while filesystem.worker_pid in (pid, None) and time.monotonic() < deadline:
        time.sleep(0.01)


def test_a_worker_that_hangs_is_ended(image: Path) -> None:
    with open_filesystem(FileSpace(image), "ext4", name="test", limits=Limits(seconds=0.5)) as filesystem:
        node = file_node(filesystem)
        pid = filesystem.worker_pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(GuestError, match=r"ended after 0\.5 s") as caught:
            filesystem.stat(node)
        assert caught.value.errno == errno.EIO
        assert not Path(f"/proc/{pid}").exists()
        assert filesystem.read(node, 0, len(CONTENT)) == CONTENT


def test_the_time_that_the_repository_takes_is_not_the_workers(image: Path) -> None:
    class Slow(BytesSpace):
        def read(self, offset: int, length: int) -> bytes:
            time.sleep(0.3)
            return super().read(offset, length)

    space = Slow(image.read_bytes())
    with open_filesystem(space, "ext4", name="test", limits=Limits(seconds=1)) as filesystem:
        assert filesystem.read(file_node(filesystem), 0, len(CONTENT)) == CONTENT


def test_a_worker_may_not_have_more_memory_than_is_allowed(image: Path) -> None:
    limits = Limits(memory=16 << 20)
    with (
        pytest.raises(GuestError) as caught,
        open_filesystem(FileSpace(image), "ext4", name="test", limits=limits) as filesystem,
    ):
        filesystem.read(file_node(filesystem), 0, len(CONTENT))
    assert caught.value.errno == errno.EIO


def test_a_file_system_that_kills_its_workers_gets_no_more_of_them(filesystem: FileSystem) -> None:
    root = filesystem.root().node
    for _ in range(client.STARTS):
        pid = filesystem.worker_pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(GuestError, match="signal 9"):
            filesystem.stat(root)
        try:
            filesystem.open()
        except GuestError as error:
            assert "times within" in str(error)  # noqa: PT017
            break
    else:
        pytest.fail("there was always another one")


@pytest.mark.parametrize("kind", [IntegrityError, StoreError])
def test_an_error_of_the_repository_is_the_cause(image: Path, kind: type[IntegrityError]) -> None:
    class Broken(BytesSpace):
        broken = False

        def read(self, offset: int, length: int) -> bytes:
            if self.broken:
                raise kind("pack 3f: chunk is damaged")
            return super().read(offset, length)

    space = Broken(image.read_bytes())
    with open_filesystem(space, "ext4", name="web01-p2", limits=Limits()) as filesystem:
        node = file_node(filesystem)
        space.broken = True
        with pytest.raises(GuestError) as caught:
            filesystem.read(node, 1 << 20, 1 << 20)
        assert str(caught.value) == "volume web01-p2: pack 3f: chunk is damaged"
        assert caught.value.errno == errno.EIO
        assert caught.value.exit_status == kind.exit_status
        assert isinstance(caught.value.__cause__, kind)
        space.broken = False
        pid = filesystem.worker_pid
        assert filesystem.read(node, 1 << 20, 1 << 20) == CONTENT[1 << 20 : 2 << 20]
        assert filesystem.worker_pid == pid


def test_what_cannot_be_is_said_with_the_systems_numbers(filesystem: FileSystem) -> None:
    node = file_node(filesystem)
    root = filesystem.root().node
    for number, call in (
        (errno.ENOENT, lambda: filesystem.lookup(root, b"nothing")),
        (errno.ENOTDIR, lambda: filesystem.scan(node)),
        (errno.EINVAL, lambda: filesystem.readlink(node)),
        (errno.EINVAL, lambda: filesystem.read(root, 0, 1)),
        (errno.EIO, lambda: filesystem.stat(1 << 40)),
        (errno.ENAMETOOLONG, lambda: filesystem.lookup(root, b"x" * 5000)),
    ):
        with pytest.raises(GuestError) as caught:
            call()
        assert caught.value.errno == number


@pytest.mark.parametrize(
    ("type_", "number"), [("swap", errno.EOPNOTSUPP), ("ext4", errno.EIO), ("xfs", errno.EIO)]
)
def test_what_has_no_reader_or_is_something_else(type_: str, number: int) -> None:
    with pytest.raises(GuestError) as caught:
        open_filesystem(BytesSpace(bytes(1 << 20)), type_, name="test")
    assert caught.value.errno == number
    assert client.readable(type_) == (number == errno.EIO)


def test_closed_is_closed(image: Path) -> None:
    filesystem = open_filesystem(FileSpace(image), "ext4", name="test")
    pid = filesystem.worker_pid
    filesystem.close()
    assert not Path(f"/proc/{pid}").exists()
    with pytest.raises(GuestError, match="closed"):
        filesystem.root()


def test_a_pool_has_no_more_workers_than_it_may(image: Path) -> None:
    space = FileSpace(image)
    with FileSystems(workers=2) as pool:
        opened = [pool.open("point", str(number), space, "ext4", name=str(number)) for number in range(5)]
        assert pool.open("point", "3", space, "ext4", name="3") is opened[3]

        def check(number: int) -> None:
            filesystem = opened[number % 5]
            assert filesystem.read(file_node(filesystem), 0, 10) == CONTENT[:10]

        for number in range(10):
            check(number)
            assert sum(filesystem.worker_pid is not None for filesystem in opened) <= 2
        # More at once than there may be: none fails, and there are not many more for long.
        with ThreadPoolExecutor(5) as threads:
            list(threads.map(check, range(100)))
        check(0)
        check(1)
        assert sum(filesystem.worker_pid is not None for filesystem in opened) <= 2
        pool.forget("point")
        assert [filesystem.worker_pid for filesystem in opened] == [None] * 5
