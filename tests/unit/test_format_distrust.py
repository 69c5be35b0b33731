"""What a writer who holds the keys and lies can put into a repository, and who notices."""

from __future__ import annotations

import os
import secrets
from datetime import UTC, datetime

import pytest
from blake3 import blake3

from vmfs.errors import ContentError
from vmfs.format import blob, index, pack
from vmfs.format.keys import Epoch, Kind
from vmfs.format.manifest import Artifact, Disk, Manifest, Vm
from vmfs.repo import names
from vmfs.repo.repository import Repository
from vmfs.repo.verify import verify

CHUNK = 64 << 10


def put_blob(repository: Repository, kind: Kind, blob_id: bytes, plain: bytes, epoch: Epoch) -> None:
    """Store `plain` as the blob of that id, whatever its id ought to be, with pack and index that say so."""
    data = blob.seal(
        kind, blob_id, plain, epoch=epoch, nonce=secrets.token_bytes(12), repository_id=repository.id
    )
    entries = [pack.Entry(blob_id, 0, len(data), kind)]
    whole = data + pack.encode_directory(entries, len(data), repository.keys)
    name = blake3(whole).digest()
    repository.store.put(names.pack(name), [whole])
    rows = [index.ENTRY.pack(blob_id, 0, 0, len(data))]
    table = index.encode([index.PackRef(name, len(whole))], rows, repository.keys)
    repository.store.put(names.index(blake3(table).digest()), [table])
    repository.refresh()


def data_epoch(repository: Repository) -> Epoch:
    ((name, _),) = repository.store.list(names.EPOCHS)
    return repository.blobs.epoch(bytes.fromhex(name.rsplit("/", 1)[1]))


def test_node_and_artifact_of_another_content(repository: Repository) -> None:
    """Checked whenever they are read, so that a signed point vouches for its maps."""
    put_blob(repository, Kind.NODE, b"n" * 32, bytes(range(256)) * 32, repository.keys.metadata)
    with pytest.raises(ContentError, match="not what its id says"):
        repository.blobs.node(b"n" * 32)
    put_blob(repository, Kind.ARTIFACT, b"a" * 32, b"<ovf/>", repository.keys.metadata)
    with pytest.raises(ContentError, match="not what its id says"):
        repository.read_artifact(Artifact(name="vm.ovf", id=b"a" * 32, size=6))


def test_chunk_of_another_content_is_found_by_verify(repository: Repository) -> None:
    put_blob(repository, Kind.DATA, b"d" * 32, b"x" * CHUNK, data_epoch(repository))
    leaf = b"d" * 32 + bytes(8192 - 32)
    with repository.write_session() as session:
        root = session.store_blob(Kind.NODE, leaf).id
        disk = Disk(id="1", alias="vda", size=CHUNK, root=root, allocated=CHUNK)
        now = datetime.now(UTC)
        point_id = session.commit(
            Manifest(vm=Vm(name="v", id="v"), time=now, consistency="crash", disks=(disk,))
        )
    assert repository.blobs.chunk(b"d" * 32) == b"x" * CHUNK
    assert verify(repository).sound
    for report in (verify(repository, data=1), verify(repository, data=1, points=[point_id])):
        assert not report.sound
        assert any("what its id says" in finding.problem for finding in report.findings)
        assert [(hit.point, hit.disk) for hit in report.hits] == [(point_id, "vda")]


def test_blob_of_an_epoch_its_kind_cannot_have(repository: Repository) -> None:
    node = bytes(range(256)) * 32
    node_id = repository.keys.blob_id(Kind.NODE, node)
    put_blob(repository, Kind.NODE, node_id, node, data_epoch(repository))
    with pytest.raises(ContentError, match="epoch"):
        repository.blobs.node(node_id)


def test_chunk_of_another_size(repository: Repository) -> None:
    plain = b"x" * (CHUNK - 1)
    chunk_id = repository.keys.blob_id(Kind.DATA, plain)
    put_blob(repository, Kind.DATA, chunk_id, plain, data_epoch(repository))
    with pytest.raises(ContentError, match="chunk size"):
        repository.blobs.chunk(chunk_id)
    with pytest.raises(ContentError, match="chunk size"):
        repository.blobs.piece(chunk_id, 1, 2)


def test_chunk_that_is_too_large(repository: Repository) -> None:
    """Larger than the memory that there is for it."""
    plain = os.urandom(2 * CHUNK)
    chunk_id = repository.keys.blob_id(Kind.DATA, plain)
    put_blob(repository, Kind.DATA, chunk_id, plain, data_epoch(repository))
    with pytest.raises(ContentError, match="larger than the repository's chunks"):
        repository.blobs.piece(chunk_id, 1, 2)
