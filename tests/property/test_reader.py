"""Reading a disk of a repository against the bytes that were put in."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmfs.errors import IntegrityError
from vmfs.format import node
from vmfs.format.keys import Kind
from vmfs.format.manifest import Disk, Manifest, Vm
from vmfs.repo import names
from vmfs.repo.blobs import BlobReader
from vmfs.repo.diskmap import EMPTY
from vmfs.repo.reader import DiskExtent, DiskReader
from vmfs.repo.repository import Repository

CHUNK = 64 << 10
LEAF = node.FANOUT * CHUNK

# The repository of all examples is one: what is stored already is found again, as it should be.
one_repository = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

Content = dict[int, bytes]
"""The bytes of the chunks of a disk that are not zeros, by number."""


def pattern(seed: int) -> bytes:
    """The bytes of a chunk, of which no two at different places are equal."""
    return b"".join(((seed << 32) | at).to_bytes(8, "little") for at in range(1, CHUNK // 8 + 1))


PATTERNS = [pattern(seed) for seed in range(1, 6)]


def write(repository: Repository, size: int, content: Content) -> DiskReader:
    """A disk of `size` bytes; what of the last chunk is past its end must be zeros."""
    with repository.write_session() as session:
        writer = session.map_writer(size, EMPTY)
        for index, plain in sorted(content.items()):
            writer.set(index, session.store_blob(Kind.DATA, plain).id)
        written = writer.finish()
        disk = Disk(id="d", alias="d", size=size, root=written.root, allocated=written.allocated)
        session.commit(
            Manifest(
                vm=Vm(name="web", id="web"), time=datetime.now(UTC), consistency="offline", disks=(disk,)
            )
        )
    # With caches of its own: nothing is in them yet.
    return DiskReader(disk, BlobReader(repository.store, repository.keys, repository.index, CHUNK))


def expected(content: Content, size: int, offset: int, length: int) -> bytes:
    end = min(offset + length, size)
    pieces = []
    while offset < end:
        index, start = divmod(offset, CHUNK)
        stop = min(CHUNK, start + end - offset)
        pieces.append(content.get(index, bytes(CHUNK))[start:stop])
        offset += stop - start
    return b"".join(pieces)


@st.composite
def disks(draw: st.DrawFn) -> tuple[int, dict[int, int]]:
    """A size, and the numbers of patterns by chunk."""
    size = draw(st.sampled_from((512, CHUNK, 4 * CHUNK + 512, LEAF - 512, LEAF, LEAF + 512, 3 * LEAF + 1536)))
    limit = node.chunk_count(size, CHUNK)
    near = st.sampled_from((0, limit - 1, limit // 2, min(limit - 1, node.FANOUT)))
    places = st.builds(lambda place, shift: min(limit - 1, max(0, place + shift)), near, st.integers(-3, 3))
    return size, draw(st.dictionaries(places, st.integers(0, len(PATTERNS) - 1), max_size=8))


def filled(size: int, chosen: dict[int, int]) -> Content:
    content = {index: PATTERNS[number] for index, number in chosen.items()}
    last = node.chunk_count(size, CHUNK) - 1
    if last in content:
        content[last] = content[last][: size - last * CHUNK].ljust(CHUNK, b"\0")
    return content


def ranges(size: int) -> st.SearchStrategy[tuple[int, int]]:
    """Offset and length, also past the end, often at the borders of chunks."""
    borders = st.builds(
        lambda chunk, shift: max(0, chunk * CHUNK + shift),
        st.integers(0, size // CHUNK + 1),
        st.integers(-2, 2),
    )
    offsets = st.one_of(st.integers(0, size + 5), borders)
    return st.tuples(offsets, st.one_of(st.integers(0, 3 * CHUNK), st.just(0), st.just(2 * size)))


@one_repository
@given(disk=disks(), data=st.data())
def test_reads(repository: Repository, disk: tuple[int, dict[int, int]], data: st.DataObject) -> None:
    size, content = disk[0], filled(*disk)
    reader = write(repository, size, content)
    seen = set[bytes]()
    for offset, length in data.draw(st.lists(ranges(size), min_size=1, max_size=8), label="ranges"):
        wanted = expected(content, size, offset, length)
        cached = reader.cached(offset, length)
        parts = range(offset // CHUNK, -(-min(offset + length, size) // CHUNK)) if wanted else ()
        ids = {_id(reader, index) for index in parts if index in content}
        assert cached == (wanted if ids <= seen else None)
        seen |= ids
        # Twice: a chunk that is only looked into is kept the second time.
        assert reader.read(offset, length) == wanted
        assert reader.read(offset, length) == wanted
        assert reader.cached(offset, length) == wanted


@one_repository
@given(disk=disks(), data=st.data())
def test_chunk_ids_and_extents(
    repository: Repository, disk: tuple[int, dict[int, int]], data: st.DataObject
) -> None:
    size, content = disk[0], filled(*disk)
    reader = write(repository, size, content)
    limit = node.chunk_count(size, CHUNK)
    first = data.draw(st.integers(0, limit + 3), label="first")
    count = data.draw(st.integers(0, limit + 300), label="count")
    assert [chunk is not None for chunk in reader.chunk_ids(first, count)] == [
        index in content for index in range(first, first + count)
    ]
    start = data.draw(st.integers(0, size), label="start")
    end = data.draw(st.one_of(st.none(), st.integers(0, size + CHUNK)), label="end")
    found = list(reader.extents(start, end))
    assert found == by_bytes(content, start, min(end if end is not None else size, size))


def by_bytes(content: Content, start: int, end: int) -> list[DiskExtent]:
    """Extents, chunk by chunk."""
    found: list[DiskExtent] = []
    while start < end:
        index = start // CHUNK
        length = min((index + 1) * CHUNK, end) - start
        zero = index not in content
        if found and found[-1].zero == zero:
            last = found.pop()
            found.append(DiskExtent(last.start, last.length + length, zero))
        else:
            found.append(DiskExtent(start, length, zero))
        start += length
    return found


def _id(reader: DiskReader, index: int) -> bytes:
    (chunk,) = reader.chunk_ids(index, 1)
    assert chunk is not None
    return chunk


def test_a_sparse_disk_of_64_tib(repository: Repository) -> None:
    size = 64 << 40
    places = [0, 1, 77_777, (size // CHUNK) // 2, size // CHUNK - 1]
    content = {place: PATTERNS[number] for number, place in enumerate(places)}
    reader = write(repository, size, content)
    for place in places:
        start = max(0, place * CHUNK - 10)
        assert reader.read(start, CHUNK + 20) == expected(content, size, start, CHUNK + 20)
    assert reader.read(size - 3, 100) == content[places[-1]][-3:]
    assert reader.read(size, 1) == b""
    extents = list(reader.extents())
    assert sum(extent.length for extent in extents) == size
    assert [extent for extent in extents if not extent.zero] == [
        DiskExtent(0, 2 * CHUNK, False),
        *(DiskExtent(place * CHUNK, CHUNK, False) for place in places[2:]),
    ]
    assert list(reader.extents(5 << 40, 6 << 40)) == [DiskExtent(5 << 40, 1 << 40, True)]


def test_prefetch_brings_chunks_into_the_cache(repository: Repository) -> None:
    content = {0: PATTERNS[0], 3: PATTERNS[1]}
    reader = write(repository, 4 * CHUNK, content)
    assert reader.cached(0, CHUNK) is None
    assert reader.cached(CHUNK, 2 * CHUNK) == bytes(2 * CHUNK)
    reader.prefetch(0, 1000)
    assert reader.cached(0, 4 * CHUNK) == expected(content, 4 * CHUNK, 0, 4 * CHUNK)


def test_a_chunk_that_is_looked_into_again_is_kept(repository: Repository) -> None:
    """Once is no reason to decompress all of it. Whoever begins at its start may go on."""
    content = {0: PATTERNS[0], 3: PATTERNS[1]}
    reader = write(repository, 4 * CHUNK, content)
    assert reader.cached(CHUNK, 2 * CHUNK) == bytes(2 * CHUNK)
    for kept in (False, True):
        assert reader.cached(3 * CHUNK, CHUNK) is None
        assert reader.read(3 * CHUNK + 700, 99) == content[3][700:799]
        assert (reader.cached(3 * CHUNK, CHUNK) == content[3]) is kept
    assert reader.read(0, 10) == content[0][:10]
    assert reader.cached(0, CHUNK) == content[0]


def test_many_threads_read_one_disk(repository: Repository) -> None:
    size = 2 * LEAF + 512
    content = {index: PATTERNS[index % 5] for index in range(0, 2 * node.FANOUT, 37)}
    reader = write(repository, size, content)
    work = [(at * 97 * 512 % size, CHUNK + 512 * (at % 200)) for at in range(400)]
    with ThreadPoolExecutor(8) as executor:
        for (offset, length), got in zip(work, executor.map(lambda w: reader.read(*w), work), strict=True):
            assert got == expected(content, size, offset, length)


def test_a_bad_chunk_spoils_no_more_than_itself(repository: Repository, tmp_path: Path) -> None:
    content = {0: PATTERNS[0], 1: PATTERNS[1], 5: PATTERNS[2]}
    reader = write(repository, 6 * CHUNK, content)
    location = repository.index.find(_id(reader, 1))
    assert location is not None
    with (tmp_path / "repository" / names.pack(location.pack)).open("r+b") as file:
        file.seek(location.offset + location.length - 1)
        last = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([last[0] ^ 1]))
    for offset, length in ((CHUNK, 1), (0, 2 * CHUNK), (2 * CHUNK - 1, 2), (CHUNK + 9, 9)):
        with pytest.raises(IntegrityError, match=f"disk bytes from {CHUNK}: packs/"):
            reader.read(offset, length)
    assert reader.read(0, CHUNK) == content[0]
    assert reader.read(2 * CHUNK, 4 * CHUNK) == bytes(3 * CHUNK) + content[5]
    reader.prefetch(0, 6)
    assert reader.cached(0, 2 * CHUNK) is None
