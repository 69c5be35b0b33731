"""A store in a directory: names, exclusive creation, what dead writers leave, errors that say what to do."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmfs.errors import ObjectExistsError, ObjectMissingError, StoreError, UsageError
from vmfs.store import LocalStore, open_store
from vmfs.store.posix import Posix

NAMES = st.from_regex(r"[A-Za-z0-9_-]{1,40}(/[A-Za-z0-9_-]{1,40}){0,3}", fullmatch=True)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    store = LocalStore(tmp_path / "store")
    store.prepare()
    return store


def everything(store: LocalStore) -> list[str]:
    return sorted(str(path.relative_to(store.root)) for path in store.root.rglob("*") if path.is_file())


def test_put_and_get(store: LocalStore) -> None:
    store.put("packs/ab/one", [b"first ", bytearray(b"second "), memoryview(b"third"), b""])
    content = b"first second third"
    assert store.get("packs/ab/one") == content
    assert store.size("packs/ab/one") == len(content)
    assert store.get_range("packs/ab/one", 6, 6) == b"second"
    assert store.get_range("packs/ab/one", 13, 100) == b"third"
    assert store.get_range("packs/ab/one", 100, 5) == b""
    assert list(store.list("packs")) == [("packs/ab/one", len(content))]
    assert everything(store) == ["packs/ab/one"]


def test_nobody_else_may_read(store: LocalStore) -> None:
    store.put("packs/ab/one", [b"secret"])
    for path in (store.root, *store.root.rglob("*")):
        assert path.stat().st_mode & 0o077 == 0, path


def test_many_parts(store: LocalStore) -> None:
    """More than one writev(2) takes."""
    parts = [bytes((number % 251,)) * (number % 7) for number in range(5000)]
    store.put("packs/ab/parts", parts)
    assert store.get("packs/ab/parts") == b"".join(parts)


@settings(deadline=None)
@given(content=st.binary(max_size=200), offset=st.integers(0, 250), length=st.integers(0, 250))
def test_ranges(tmp_path_factory: pytest.TempPathFactory, content: bytes, offset: int, length: int) -> None:
    store = LocalStore(tmp_path_factory.mktemp("ranges"))
    store.put("a", [content])
    expected = content[offset : offset + length]
    assert store.get_range("a", offset, length) == expected
    memory = bytearray(b"\xa5" * length)
    assert store.read_into("a", offset, memoryview(memory)) == len(expected)
    assert memory == expected + b"\xa5" * (length - len(expected))


@settings(deadline=None)
@given(names=st.sets(NAMES, max_size=6))
def test_listing(tmp_path_factory: pytest.TempPathFactory, names: set[str]) -> None:
    """Prefixes are whole segments; what is no object is not listed."""
    store = LocalStore(tmp_path_factory.mktemp("list"))
    kept: dict[str, int] = {}
    for name in sorted(names):
        if not any(other.startswith(f"{name}/") or name.startswith(f"{other}/") for other in kept):
            store.put(f"top/{name}", [b"x" * len(name)])
            kept[name] = len(name)
    assert dict(store.list("top")) == {f"top/{name}": size for name, size in kept.items()}
    for name in kept:
        prefix = f"top/{name}".rpartition("/")[0]
        assert dict(store.list(prefix)) == {
            f"top/{other}": size for other, size in kept.items() if f"top/{other}".startswith(f"{prefix}/")
        }
    assert not list(store.list("to"))


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/",
        "a/",
        "/a",
        "a//b",
        ".",
        "..",
        "a/../b",
        ".tmp-0123456789abcdef",
        "a/.b",
        "a b",
        "ü",
        "a\n",
        "a\0",
    ],
)
def test_names_that_are_none(store: LocalStore, name: str) -> None:
    actions: list[Callable[[], object]] = [
        lambda: store.put(name, [b"x"]),
        lambda: store.get(name),
        lambda: store.get_range(name, 0, 1),
        lambda: store.read_into(name, 0, memoryview(bytearray(1))),
        lambda: store.size(name),
        lambda: store.delete(name),
        lambda: list(store.list(name)),
        lambda: store.settle(name),
    ]
    for action in actions:
        with pytest.raises(ValueError, match="is no object name"):
            action()
    assert not everything(store)


def test_objects_never_change(store: LocalStore) -> None:
    store.put("points/one", [b"first"])
    with pytest.raises(ObjectExistsError, match="points/one is there already"):
        store.put("points/one", [b"second"])
    assert store.get("points/one") == b"first"
    assert everything(store) == ["points/one"]


def test_one_of_many_creators_wins(store: LocalStore) -> None:
    def put(number: int) -> int | None:
        try:
            LocalStore(store.root).put("points/one", [str(number).encode() * 1000])
        except ObjectExistsError:
            return None
        return number

    for turn in range(20):
        with ThreadPoolExecutor(8) as executor:
            (winner,) = [number for number in executor.map(put, range(8)) if number is not None]
        assert store.get("points/one") == str(winner).encode() * 1000
        store.delete("points/one")
        assert everything(store) == [], turn


def test_missing(store: LocalStore) -> None:
    for action in (store.get, store.size, lambda name: store.get_range(name, 0, 1)):
        with pytest.raises(ObjectMissingError, match="points/none is missing from /"):
            action("points/none")
    store.delete("points/none")
    assert not list(store.list("points"))


class Failing(Posix):
    """One of the system calls fails."""

    def __init__(self, call: str, number: int) -> None:
        self._error = OSError(number, os.strerror(number))
        setattr(self, call, self._fail)

    def _fail(self, *_: object) -> None:
        raise self._error


@pytest.mark.parametrize("call", ["mkdir", "create", "write", "fsync", "link", "fsync_directory"])
@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "no space left; free some and run again"),
        (errno.EDQUOT, "quota is used up; free some"),
        (errno.EROFS, "read-only; mount it writable"),
        (errno.EACCES, "permission denied; run as the repository's owner"),
        (errno.EPERM, "must allow hard links"),
        (errno.EIO, "I/O error; check the disk"),
        (errno.EMFILE, "too many open files; raise the limit"),
        (errno.ENOTSUP, "Operation not supported"),
    ],
)
def test_a_put_that_fails(tmp_path: Path, call: str, number: int, remedy: str) -> None:
    """One line with the thing, the place and the remedy; and no object."""
    store = LocalStore(tmp_path, Failing(call, number))
    with pytest.raises(StoreError) as caught:
        store.put("points/one", [b"content"])
    text = str(caught.value)
    assert text.startswith(f"cannot write points/one in {tmp_path}: ")
    assert remedy in text
    assert len(text.splitlines()) == 1
    assert not everything(store)


def test_a_root_that_is_gone(store: LocalStore) -> None:
    store.put("points/one", [b"x"])
    for path in sorted(store.root.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    store.root.rmdir()
    with pytest.raises(StoreError, match="is gone; is its file system mounted"):
        store.put("points/two", [b"x"])
    assert not store.root.exists()
    assert not store.writable


def test_a_directory_that_is_gone_is_made_again(store: LocalStore) -> None:
    store.put("packs/ab/one", [b"x"])
    store.delete("packs/ab/one")
    (store.root / "packs/ab").rmdir()
    (store.root / "packs").rmdir()
    store.put("packs/ab/two", [b"y"])
    assert store.get("packs/ab/two") == b"y"


def test_prepare(tmp_path: Path) -> None:
    LocalStore(tmp_path / "new").prepare()
    LocalStore(tmp_path / "new").prepare()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / ".hidden").write_bytes(b"")
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name, message in (
        ("full", "is not empty; a repository starts in an empty directory"),
        ("file", "is not a directory; choose another place"),
        ("dangling", "is not a directory; choose another place"),
        ("none/below", "does not exist; make it"),
    ):
        with pytest.raises(StoreError, match=message):
            LocalStore(tmp_path / name).prepare()


@pytest.mark.parametrize("location", ["s3://bucket", "http://host/path", ""])
def test_locations_that_are_none(location: str) -> None:
    with pytest.raises(UsageError, match="give"):
        open_store(location)


def test_locations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for location in ("store", f"{tmp_path}/store", f"file://{tmp_path}/store"):
        assert open_store(location).url == f"{tmp_path}/store"


def leave_temporary(directory: Path, number: int) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f".tmp-{number:016x}"
    path.write_bytes(b"half")
    return path


def test_sweep_takes_what_the_dead_left(store: LocalStore) -> None:
    store.put("packs/ab/one", [b"x"])
    left = [leave_temporary(store.root / place, n) for n, place in enumerate((".", "packs/ab", "leases"))]
    others = [store.root / "packs" / name for name in (".tmp-short", ".tmp-" + "g" * 16, "x.tmp-" + "0" * 16)]
    for path in others:
        path.write_bytes(b"")
    assert store.sweep("leases") == 1
    assert [path.exists() for path in left] == [True, True, False]
    assert store.sweep("nothing") == 0
    assert store.sweep() == 2
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in others)
    assert store.get("packs/ab/one") == b"x"


def test_sweep_leaves_what_the_living_hold(store: LocalStore) -> None:
    """Another process holds it locked; when it dies, the lock is gone."""
    held = leave_temporary(store.root / "packs", 1)
    program = (
        "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(held)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout
        holder.stdout.readline()
        assert store.sweep() == 0
        assert held.exists()
        holder.kill()
        holder.wait()
        assert store.sweep() == 1


def test_sweep_while_others_write(store: LocalStore) -> None:
    """No put fails for it, and nothing is lost."""
    ended = time.monotonic() + 1.0

    def write(worker: int) -> int:
        done = 0
        while time.monotonic() < ended:
            LocalStore(store.root).put(f"packs/{worker}-{done}", [b"x" * 1000])
            done += 1
        return done

    def sweep(_: int) -> int:
        while time.monotonic() < ended:
            LocalStore(store.root).sweep()
        return 0

    with ThreadPoolExecutor(6) as executor:
        written = [executor.submit(write, worker) for worker in range(4)]
        for future in [executor.submit(sweep, 0), executor.submit(sweep, 1)]:
            future.result()
        total = sum(future.result() for future in written)
    assert total == len(everything(store)) > 50
    assert all(size == 1000 for _, size in store.list("packs"))


def test_a_temporary_file_is_locked_from_its_first_byte(tmp_path: Path) -> None:
    fd = Posix().create(tmp_path / "file")
    try:
        with open(tmp_path / "file") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(fd)


class Recorder(Posix):
    """Which directories and files were synced, in which order of calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []

    def fsync(self, fd: int) -> None:
        self.calls.append(("fsync", ""))
        super().fsync(fd)

    def link(self, source: Path, target: Path) -> None:
        self.calls.append(("link", target.name))
        super().link(source, target)

    def fsync_directory(self, path: Path) -> None:
        self.calls.append(("fsync_directory", path.name))
        super().fsync_directory(path)


def test_order_of_a_put(tmp_path: Path) -> None:
    recorder = Recorder()
    store = LocalStore(tmp_path / "root", recorder)
    store.prepare()
    store.put("packs/ab/one", [b"x"])
    made = [("fsync_directory", tmp_path.name), ("fsync_directory", "root"), ("fsync_directory", "packs")]
    put = [("fsync", ""), ("link", "one"), ("fsync_directory", "ab")]
    assert recorder.calls == made + put
    recorder.calls.clear()
    store.delete("packs/ab/one")
    assert recorder.calls == [("fsync_directory", "ab")]


def test_directories_of_the_dead_are_synced(tmp_path: Path) -> None:
    """They are there, but nobody knows whether they would be after a power cut."""
    (tmp_path / "packs" / "ab").mkdir(parents=True)
    recorder = Recorder()
    store = LocalStore(tmp_path, recorder)
    store.settle("packs/ab")
    assert recorder.calls == [("fsync_directory", name) for name in (tmp_path.name, "packs", "ab")]
    recorder.calls.clear()
    store.put("packs/ab/one", [b"x"])
    store.settle("packs/none")
    assert recorder.calls == [("fsync", ""), ("link", "one"), ("fsync_directory", "ab")]
