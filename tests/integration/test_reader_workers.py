"""XFS and Btrfs read by a confined worker: nothing that the readers need is missing there, and forged images
do the caller no harm."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest
from hostile_helpers import fill_small, forge_btrfs, forge_xfs, metadata_of, mutants
from kernel_tree_helpers import facts, fill, kernel_mount, make_file_system, need_mkfs
from reader_helpers import FileDevice, reader_facts

from vmfs.volumes.files.client import FileSystem, GuestError, Limits, open_filesystem
from vmfs.volumes.files.worker.btrfs import BtrfsReader
from vmfs.volumes.files.worker.xfs import XfsReader

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root (loop mounts)"),
]
READERS = {"xfs": XfsReader, "btrfs": BtrfsReader}
FORGES = {"xfs": forge_xfs, "btrfs": forge_btrfs}
IMAGES = 40


@pytest.mark.parametrize("kind", READERS)
def test_a_worker_gives_what_the_kernel_gives(tmp_path: Path, kind: str) -> None:
    need_mkfs(kind)
    image = tmp_path / "image"
    make_file_system(kind, image, fill)
    with kernel_mount(image, "ro") as top:
        device = FileDevice(image)
        with open_filesystem(device, kind, name="of the test") as filesystem:
            assert reader_facts(filesystem) == facts(top)
            assert filesystem.warnings == ()
        device.close()


@pytest.mark.parametrize("checksum", ["crc32c", "xxhash", "sha256", "blake2"])
@pytest.mark.parametrize("compression", ["zlib", "lzo", "zstd"])
def test_a_worker_has_all_libraries_for_btrfs(tmp_path: Path, checksum: str, compression: str) -> None:
    need_mkfs("btrfs")
    image = tmp_path / "image"
    make_file_system("btrfs", image, lambda top: None, None, "--csum", checksum)
    content = bytes(range(256)) * 2000
    with kernel_mount(image, f"compress-force={compression}") as top:
        (top / "file").write_bytes(content)
        subprocess.run(["btrfs", "subvolume", "create", top / "sub"], check=True, capture_output=True)
        subprocess.run(["btrfs", "subvolume", "set-default", "256", top], check=True)
    device = FileDevice(image)
    with open_filesystem(device, "btrfs", name="of the test") as filesystem:
        file = filesystem.lookup(filesystem.root().node, b"file")
        assert filesystem.read(file.node, 0, len(content)) == content
        assert filesystem.default_subvolume == 256
    device.close()


@pytest.mark.parametrize("kind", READERS)
def test_forged_images_through_workers(tmp_path: Path, kind: str) -> None:
    need_mkfs(kind)
    image = tmp_path / "image"
    make_file_system(kind, image, lambda top: fill_small(top, 60))
    base = image.read_bytes()
    places = metadata_of(READERS[kind], base)
    limits = Limits(seconds=20.0, memory=512 << 20)
    read = 0
    failures = []
    for _, forged in mutants(base, places, IMAGES, FORGES[kind], seed=7):
        try:
            with open_filesystem(forged, kind, name="of the test", limits=limits) as filesystem:
                pid = filesystem.worker_pid
                read += _read_all(filesystem)
                # The same worker to the end: none died, or came to its limits.
                assert filesystem.worker_pid == pid
        except GuestError as error:
            failures.append(str(error))
    assert read > IMAGES
    assert len(failures) < IMAGES
    assert not [text for text in failures if "\n" in text or "died" in text]


def _read_all(filesystem: FileSystem) -> int:
    folders = [filesystem.root()]
    seen = {folders[0].node}
    count = 0
    while folders:
        try:
            entries = filesystem.scan(folders.pop().node)
        except GuestError:
            continue
        for entry in entries:
            found = entry.stat
            if found is None or found.node in seen:
                continue
            seen.add(found.node)
            try:
                filesystem.xattrs(found.node)
                if stat.S_ISDIR(found.mode):
                    folders.append(found)
                elif stat.S_ISREG(found.mode):
                    filesystem.read(found.node, 0, 1 << 20)
                    filesystem.extents(found.node)
                elif stat.S_ISLNK(found.mode):
                    filesystem.readlink(found.node)
                count += 1
            except GuestError:
                continue
    return count
