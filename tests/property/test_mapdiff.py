"""Two disks are the same in a range exactly where their bytes are, whatever their sizes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import COST, SECRET
from hypothesis import given
from hypothesis import strategies as st

from vmfs.format.keys import Kind
from vmfs.format.manifest import Disk
from vmfs.repo.diskmap import EMPTY
from vmfs.repo.mapdiff import same_bytes
from vmfs.repo.reader import DiskReader
from vmfs.repo.repository import Repository
from vmfs.repo.session import WriteSession
from vmfs.store import LocalStore

CHUNK = 64 << 10
FAR = 256 * 256 + 3
"""A chunk of a disk whose map has three levels."""

disks = st.tuples(
    st.sampled_from([4, 300, FAR + 2]),
    st.dictionaries(st.sampled_from([0, 1, 2, 3, 255, 256, 299, FAR]), st.integers(0, 2), max_size=6),
)
places = st.sampled_from([0, 1, 2, 3, 4, 200, 256, 300, FAR, FAR + 2])
shifts = st.sampled_from([-512, 0, 0, 512])


@pytest.fixture(scope="module")
def stored() -> Iterator[tuple[Repository, list[bytes]]]:
    """A repository with three chunks that differ in their last 4 KiB, of which the first is zeros."""
    with tempfile.TemporaryDirectory() as directory:
        store = LocalStore(Path(directory) / "repository")
        with Repository.create(
            store, SECRET, chunk_size=CHUNK, cost=COST, cache_root=Path(directory)
        ) as made:
            contents = [bytes(CHUNK), *(bytes(CHUNK - 4096) + bytes([n]) * 4096 for n in (1, 2))]
            yield made, contents


def make(session: WriteSession, contents: list[bytes], spec: tuple[int, dict[int, int]]) -> Disk:
    chunks, chosen = spec
    writer = session.map_writer(chunks * CHUNK, EMPTY)
    for index, which in sorted(chosen.items()):
        if index < chunks:
            writer.set(index, session.store_blob(Kind.DATA, contents[which]).id if which else None)
    made = writer.finish()
    return Disk(id="d", alias="d", size=made.size, root=made.root, allocated=made.allocated)


@given(one=disks, other=disks, first=places, low=shifts, last=places, high=shifts)
def test_same_bytes(
    stored: tuple[Repository, list[bytes]],
    one: tuple[int, dict[int, int]],
    other: tuple[int, dict[int, int]],
    first: int,
    low: int,
    last: int,
    high: int,
) -> None:
    repository, contents = stored
    start, end = max(0, first * CHUNK + low), last * CHUNK + high
    if end <= start:
        return
    with repository.write_session() as session:
        left, right = make(session, contents, one), make(session, contents, other)
        session._settle()
    repository.refresh()
    told = same_bytes(repository.blobs, left, right, start, end - start)
    if end > min(left.size, right.size):
        assert not told
        return
    readers = [DiskReader(disk, repository.blobs) for disk in (left, right)]
    # Where neither has data there is nothing to compare.
    wanted = all(
        readers[0].read(at, length) == readers[1].read(at, length)
        for at, length in (
            (max(index * CHUNK, start), min((index + 1) * CHUNK, end) - max(index * CHUNK, start))
            for index in {*one[1], *other[1]}
            if index * CHUNK < end and (index + 1) * CHUNK > start
        )
    )
    assert told is wanted


def test_what_is_shared_is_not_loaded(stored: tuple[Repository, list[bytes]]) -> None:
    repository, contents = stored
    with repository.write_session() as session:
        spec = (FAR + 2, {0: 1, 300: 1, FAR: 2})
        left = make(session, contents, spec)
        right = make(session, contents, (FAR + 2, {**spec[1], 0: 2}))
        session._settle()
    repository.refresh()
    loaded: list[bytes] = []

    class Counting:
        chunk_size = CHUNK

        def node(self, node_id: bytes) -> bytes:
            loaded.append(node_id)
            return repository.blobs.node(node_id)

    assert same_bytes(Counting(), left, left, 0, left.size)  # type: ignore[arg-type]
    assert loaded == []
    assert same_bytes(Counting(), left, right, CHUNK * 256, CHUNK * (FAR - 255))  # type: ignore[arg-type]
    # The roots, and one node below each: what they share is under them.
    assert len(loaded) <= 4
    assert not same_bytes(repository.blobs, left, right, 0, CHUNK)
