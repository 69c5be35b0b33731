"""Uploads through a real imageio daemon over TLS into images that a real qemu-nbd writes."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from qemu_helpers import needs_qemu, qemu_io, run
from upload_helpers import (
    KIB,
    MIB,
    Authority,
    EndedError,
    ImageioHost,
    Upload,
    content,
    imageio,
    new_image,
    store,
)

from ingest.engine.sparse import BLOCK, CLUSTER
from ingest.engine.upload import TransferLostError, Uploaded, UploadError, upload_disk
from vmfs.errors import IntegrityError
from vmfs.repo.reader import DiskReader
from vmfs.repo.repository import Repository

pytestmark = needs_qemu

SIZE = 40 * MIB
DATA = [
    (0, 4 * KIB),
    (200 * KIB, 90 * KIB),
    (5 * MIB - 64 * KIB, 9 * MIB),
    (20 * MIB + 12 * KIB, 8 * KIB),
    (20 * MIB + 64 * KIB, 64 * KIB),
    (SIZE - 4 * KIB, 4 * KIB),
]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[tuple[ImageioHost, Authority]]:
    with imageio(tmp_path / "imageio") as running:
        yield running


@pytest.fixture
def new_upload(
    tmp_path: Path, daemon: tuple[ImageioHost, Authority]
) -> Iterator[Callable[[str, int], Upload]]:
    host, authority = daemon
    made: list[Upload] = []

    def make(fmt: str, size: int) -> Upload:
        folder = tmp_path / f"target{len(made)}"
        folder.mkdir()
        made.append(Upload(host, new_image(folder, fmt, size), fmt, size, ca_file=authority.ca_file))
        return made[-1]

    yield make
    for upload in made:
        upload.finish()


def send(reader: DiskReader, upload: Upload, **options: object) -> Uploaded:
    settings = {"blank": True, "granule": BLOCK, "ca_file": str(upload.ca_file), "patience": 30.0}
    return upload_disk(reader, upload, **(settings | options))  # type: ignore[arg-type]


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


@pytest.mark.parametrize(("fmt", "granule"), [("raw", BLOCK), ("qcow2", CLUSTER)])
@pytest.mark.parametrize("connections", [1, 4])
def test_new_disk_is_equal_and_sparse(
    tmp_path: Path,
    repository: Repository,
    new_upload: Callable[[str, int], Upload],
    fmt: str,
    granule: int,
    connections: int,
) -> None:
    original = content(1, SIZE, DATA)
    reader = store(repository, {"sda": original})["sda"]
    upload = new_upload(fmt, SIZE)
    seen: list[int] = []
    done = send(reader, upload, granule=granule, connections=connections, progress=seen.append)
    upload.finish()
    assert upload.content(tmp_path / "raw") == original
    assert done.zeroed == 0
    assert done.losses == 0
    # The same image as qemu-img would make of the same disk: that is what sparse means.
    plain, copy = tmp_path / "plain.raw", tmp_path / f"copy.{fmt}"
    plain.write_bytes(original)
    sparse_copy(plain, copy, fmt)
    assert allocated(upload.image) <= allocated(copy) * 1.05
    assert max(seen) == sum(extent.length for extent in reader.extents() if not extent.zero)


def sparse_copy(source: Path, target: Path, fmt: str) -> None:
    run("qemu-img", "convert", "-S", "4k", "-f", "raw", "-O", fmt, source, target)


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_old_content_is_gone(
    tmp_path: Path, repository: Repository, new_upload: Callable[[str, int], Upload], fmt: str
) -> None:
    original = content(2, SIZE, DATA)
    reader = store(repository, {"sda": original})["sda"]
    upload = new_upload(fmt, SIZE)
    upload.lose_nbd()
    qemu_io(upload.image, fmt, f"write -P 0x41 0 {SIZE}")
    upload.resume()
    done = send(reader, upload, blank=False)
    upload.finish()
    assert upload.content(tmp_path / "raw") == original
    assert done.sent + done.zeroed == SIZE


def test_empty_and_odd_sizes(
    tmp_path: Path, repository: Repository, new_upload: Callable[[str, int], Upload]
) -> None:
    disks = {
        "empty": bytes(3 * MIB),
        "odd": content(3, 5 * MIB + 512, [(5 * MIB, 512), (100, 1)]),
        "full": content(4, 4 * MIB, [(0, 4 * MIB)]),
    }
    for alias, reader in store(repository, disks).items():
        upload = new_upload("raw", reader.size)
        send(reader, upload)
        upload.finish()
        assert upload.content(tmp_path / "raw") == disks[alias]
        if alias == "empty":
            assert allocated(upload.image) <= 64 * KIB


class Interrupting:
    """A reader during whose reading something happens, once, when that many bytes have been read."""

    def __init__(self, reader: DiskReader, after: int, happens: Callable[[], None]) -> None:
        self._reader = reader
        self._left = after
        self._happens: Callable[[], None] | None = happens
        self.size = reader.size
        self.extents = reader.extents

    def read(self, offset: int, length: int) -> bytes:
        data = self._reader.read(offset, length)
        self._left -= length
        if self._left < 0 and (happens := self._happens):
            self._happens = None
            happens()
        return data


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
@pytest.mark.parametrize("event", ["daemon killed", "paused", "nbd lost"])
def test_goes_on_after(
    tmp_path: Path, repository: Repository, new_upload: Callable[[str, int], Upload], fmt: str, event: str
) -> None:
    original = content(5, SIZE, [(MIB, 30 * MIB)])
    reader = store(repository, {"sda": original})["sda"]
    upload = new_upload(fmt, SIZE)
    events = {"daemon killed": upload.host.kill, "paused": upload.pause, "nbd lost": upload.lose_nbd}
    broken = Interrupting(reader, 15 * MIB, events[event])
    done = send(broken, upload, segment=16 * MIB)  # type: ignore[arg-type]
    upload.finish()
    assert upload.resumes == 1
    assert done.losses >= 1
    assert upload.content(tmp_path / "raw") == original


def test_paused_for_good(repository: Repository, new_upload: Callable[[str, int], Upload]) -> None:
    reader = store(repository, {"sda": content(6, SIZE, DATA)})["sda"]
    upload = new_upload("raw", SIZE)

    def refuse() -> None:
        raise EndedError("the engine has ended the upload")

    upload.revive = refuse  # type: ignore[method-assign]
    broken = Interrupting(reader, MIB, upload.pause)
    with pytest.raises(EndedError, match="the engine has ended the upload"):
        send(broken, upload)  # type: ignore[arg-type]


def test_another_transfer_goes_on(
    tmp_path: Path, repository: Repository, new_upload: Callable[[str, int], Upload]
) -> None:
    """Where the daemon has forgotten its tickets and nobody gives them to it again."""
    original = content(12, SIZE, [(MIB, 30 * MIB)])
    reader = store(repository, {"sda": original})["sda"]
    upload = new_upload("qcow2", SIZE)
    upload.revive = lambda: None  # type: ignore[method-assign]
    done = Uploaded()

    def restart() -> None:
        upload.host.kill()
        upload.host.start()

    broken = Interrupting(reader, 25 * MIB, restart)
    with pytest.raises(TransferLostError, match="does not know the ticket"):
        send(broken, upload, segment=8 * MIB, done=done)  # type: ignore[arg-type]
    assert 8 * MIB <= done.flushed <= 24 * MIB
    upload.finish()
    upload.begin()
    seen: list[int] = []
    before = done.sent
    assert send(reader, upload, done=done, progress=seen.append) is done
    assert before + 6 * MIB <= done.sent <= 30 * MIB
    assert min(seen) > before
    upload.finish()
    assert upload.content(tmp_path / "raw") == original


def test_daemon_stays_away(repository: Repository, new_upload: Callable[[str, int], Upload]) -> None:
    reader = store(repository, {"sda": content(7, SIZE, DATA)})["sda"]
    upload = new_upload("raw", SIZE)
    upload.revive = lambda: None  # type: ignore[method-assign]
    broken = Interrupting(reader, MIB, upload.host.kill)
    with pytest.raises(UploadError, match=r"disk .*: imageio at 127\.0\.0\.1:\d+: it does not answer"):
        send(broken, upload, patience=1.0)  # type: ignore[arg-type]


def test_proxy_where_the_host_cannot_be_reached(
    tmp_path: Path, repository: Repository, new_upload: Callable[[str, int], Upload]
) -> None:
    original = content(8, SIZE, DATA)
    reader = store(repository, {"sda": original})["sda"]
    upload = new_upload("raw", SIZE)
    upload.proxy_url = upload.url
    with socket.create_server(("127.0.0.1", 0)) as closed:
        upload.direct = f"https://127.0.0.1:{closed.getsockname()[1]}"
    send(reader, upload)
    upload.finish()
    assert upload.content(tmp_path / "raw") == original


def test_foreign_certificate(
    tmp_path: Path, repository: Repository, new_upload: Callable[[str, int], Upload]
) -> None:
    reader = store(repository, {"sda": content(9, SIZE, DATA)})["sda"]
    foreign = Authority.create(tmp_path / "foreign")
    upload = new_upload("raw", SIZE)
    with pytest.raises(UploadError, match=r"certificate is not trusted: .*; see ca_file"):
        send(reader, upload, ca_file=str(foreign.ca_file))
    send(reader, upload, ca_file=str(foreign.ca_file), insecure=True)


def test_smaller_target(repository: Repository, new_upload: Callable[[str, int], Upload]) -> None:
    reader = store(repository, {"sda": content(10, SIZE, DATA)})["sda"]
    upload = new_upload("raw", SIZE - MIB)
    with pytest.raises(UploadError, match=r"it refuses: .*out of"):
        send(reader, upload)


def test_damaged_repository(repository: Repository, new_upload: Callable[[str, int], Upload]) -> None:
    reader = store(repository, {"sda": content(11, SIZE, DATA)})["sda"]
    upload = new_upload("raw", SIZE)
    shutil.rmtree(repository.store.root / "packs")  # type: ignore[attr-defined]
    with pytest.raises(IntegrityError, match="missing from the store"):
        send(reader, upload)
