"""Objects under names that are not theirs, and objects that only a holder of the keys could have made wrong:
no wrong bytes, no bomb, and verify names them."""

from __future__ import annotations

import shutil
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import lz4.block
import pytest
from blake3 import blake3
from damage_helpers import Damage, Scene, Seen, all_objects, judge, read_everything
from fault_helpers import CHUNK, open_at

from vmfs.format import aead, blob, index, pack
from vmfs.format.keys import Kind, blob_key
from vmfs.repo import names
from vmfs.repo.index import read_directory
from vmfs.repo.repository import Repository
from vmfs.repo.verify import verify

pytest_plugins = "fault_fixtures"


def test_a_manifest_under_another_name(scene: Scene, damage: Damage) -> None:
    first, second = sorted(scene.contents)[:2]
    stranger = "0" * 26
    shutil.copy(damage.root / names.point(first), damage.root / names.point(stranger))
    with open_at(damage.root, damage.place / "cache") as repository:
        report = verify(repository, data=1.0)
        assert [finding.object for finding in report.findings] == [names.point(stranger)]
        assert [hit.point for hit in report.hits] == [stranger]
    (damage.root / names.point(stranger)).rename(damage.root / names.point(second))
    seen = judge(damage.open_with(damage.place / "cache"), scene, names.point(second))
    assert seen.points == {second}


@pytest.mark.parametrize(
    "new", ["packs/ab/ab", "packs/zz", "packs/{half}/{digest}-old", "packs/00/{digest}", "packs/{other}"]
)
def test_a_pack_under_another_name(scene: Scene, damage: Damage, new: str) -> None:
    moved = 0
    for name in all_objects(scene.root):
        if not name.startswith(names.PACKS):
            continue
        _, half, digest = name.split("/")
        other = blake3(digest.encode()).hexdigest()
        target = new.format(half=half, digest=digest, other=f"{other[:2]}/{other}")
        if target == name:
            continue
        (damage.root / target).parent.mkdir(exist_ok=True)
        (damage.root / name).rename(damage.root / target)
        for number in range(2):
            cache = damage.place / ("cache" if number else f"fresh-{half}")
            seen = judge(damage.open_with(cache), scene, name, target)
            assert seen.reads or seen.artifacts
        (damage.root / target).rename(damage.root / name)
        moved += 1
    assert moved


def test_strangers_in_the_repository(scene: Scene, damage: Damage) -> None:
    """Files that are none of ours: told of where they look like ours, and no harm to anything."""
    strangers = ["packs/LOST", "epochs/old", "index/x", "points/list", "leases/held", "trash/x", "keys/copy"]
    ignored = [
        "packs/read.me",
        "points/old/kept",
        ".hidden",
        "lost-and-found",
        "packs/00/.tmp-0123456789abcdef",
    ]
    for name in strangers + ignored:
        path = damage.root / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"stranger")
    with open_at(damage.root, damage.place / "cache") as repository:
        report = verify(repository, data=1.0)
        assert {finding.object for finding in report.findings} == set(strangers)
        assert {hit.point for hit in report.hits} == {"list"}
        assert read_everything(repository, scene) == Seen()


@dataclass
class Forger:
    """Has the keys and writes what no honest program would."""

    repository: Repository

    def blob(self, blob_id: bytes, plain: bytes, *, plain_length: int, codec: int, stored: bytes) -> bytes:
        """A data blob with a valid seal, whatever its header says."""
        keys = self.repository.keys
        epoch = self.repository.blobs.epoch(self.epoch_id())
        nonce = bytes(12)
        header = blob.HEADER.pack(
            blob.MAGIC, 1, Kind.DATA, codec, 0, epoch.id, blob_id, plain_length, len(stored), nonce
        )
        key = blob_key(epoch, Kind.DATA, blob_id)
        return header + aead.provider.encrypt(key, nonce, stored, header + keys.repository_id)

    def epoch_id(self) -> bytes:
        (name,) = (name for name, _ in self.repository.store.list(names.EPOCHS))
        found = names.epoch_id(name)
        assert found
        return found

    def pack(self, blobs: list[tuple[bytes, bytes]]) -> bytes:
        """A pack of (id, data blob), its directory sealed."""
        entries = []
        offset = 0
        for blob_id, data in blobs:
            entries.append(pack.Entry(blob_id, offset, len(data), Kind.DATA))
            offset += len(data)
        body = b"".join(data for _, data in blobs)
        return body + pack.encode_directory(entries, offset, self.repository.keys)


def data_pack(repository: Repository) -> tuple[bytes, list[pack.Entry]]:
    """Content and entries of the pack with the first chunk of the first point; its entry comes first."""
    manifest = repository.load_point(repository.point_ids()[0]).manifest
    (chunk_id,) = repository.open_disk(manifest.disks[0]).chunk_ids(0, 1)
    assert chunk_id
    location = repository.index.find(chunk_id)
    assert location
    name = names.pack(location.pack)
    content = repository.store.get(name)
    entries = read_directory(repository.store, name, len(content), repository.keys)
    return content, sorted(entries, key=lambda entry: entry.id != chunk_id)


LIES: dict[str, Callable[[bytes], dict[str, object]]] = {
    "bomb": lambda plain: {
        "plain_length": blob.MAX_PLAIN,
        "codec": 1,
        "stored": lz4.block.compress(bytes(64 << 20), store_size=False),
    },
    "longer": lambda plain: {"plain_length": CHUNK + 1, "codec": 1, "stored": compressed(plain)},
    "shorter": lambda plain: {"plain_length": CHUNK - 1, "codec": 1, "stored": compressed(plain)},
    "no chunk": lambda plain: {"plain_length": 5, "codec": 0, "stored": plain[:5]},
    "huge": lambda plain: {"plain_length": (1 << 32) - 1, "codec": 1, "stored": compressed(plain)},
    "nothing": lambda plain: {"plain_length": 0, "codec": 0, "stored": plain},
    "raw longer": lambda plain: {"plain_length": CHUNK - 1, "codec": 0, "stored": plain},
    "raw shorter": lambda plain: {"plain_length": CHUNK + 1, "codec": 0, "stored": plain},
    "no lz4": lambda plain: {"plain_length": CHUNK, "codec": 1, "stored": b"\xff" * 300},
    "codec": lambda plain: {"plain_length": CHUNK, "codec": 9, "stored": plain},
    "other content": lambda plain: {"plain_length": CHUNK, "codec": 0, "stored": plain[::-1]},
}


def compressed(plain: bytes) -> bytes:
    packed: bytes = lz4.block.compress(plain, store_size=False)
    return packed


@pytest.mark.parametrize("lie", LIES)
def test_a_blob_whose_header_lies(scene: Scene, damage: Damage, lie: str) -> None:
    """Sealed by one who has the keys, in a pack and an index that are in order: still no wrong bytes, no more
    memory than a blob may have, and found by verify."""
    with open_at(damage.root, damage.place / "cache") as repository:
        forger = Forger(repository)
        content, entries = data_pack(repository)
        plain = repository.blobs.chunk(entries[0].id)
        forged = forger.blob(entries[0].id, plain, **LIES[lie](plain))  # type: ignore[arg-type]
        blobs = [(entry.id, content[entry.offset : entry.offset + entry.length]) for entry in entries]
        new = forger.pack([(entries[0].id, forged), *blobs[1:]])
        old_name, new_name = names.pack(blake3(content).digest()), names.pack(blake3(new).digest())
        replace_indexes(repository, damage.root, old_name, new_name, new)
    if lie == "other content":
        # The seal is right and binds the id: only verify, which hashes the content, can tell.
        with open_at(damage.root, damage.place / "new") as repository:
            report = verify(repository, data=1.0)
            assert {finding.object for finding in report.findings} == {new_name}
            assert report.hits
        return
    tracemalloc.start()
    try:
        seen = judge(damage.open_with(damage.place / "new"), scene, new_name)
        assert tracemalloc.get_traced_memory()[1] < 48 << 20
    finally:
        tracemalloc.stop()
    assert all(0 in chunks for (_, alias), chunks in seen.reads.items() if alias == "root")
    assert len(seen.reads) >= 2


def replace_indexes(repository: Repository, root: Path, old_name: str, new_name: str, new: bytes) -> None:
    """Put the pack in place of the other, and in the place of all index objects one that is right."""
    (root / old_name).unlink()
    (root / new_name).parent.mkdir(exist_ok=True)
    (root / new_name).write_bytes(new)
    for path in (root / names.INDEX).iterdir():
        path.unlink()
    packs = list(repository.store.list(names.PACKS))
    made = repository.index.from_directories(packs)
    assert made
    (root / names.index(blake3(made).digest())).write_bytes(made)


WRONG: dict[str, Callable[[int, int, int], tuple[int, int, int]]] = {
    "offset": lambda number, offset, length: (number, offset + 1, length),
    "far offset": lambda number, offset, length: (number, offset + (1 << 31), length),
    "length": lambda number, offset, length: (number, offset, length - 1),
    "no length": lambda number, offset, length: (number, offset, 0),
    "neighbour": lambda number, offset, length: (number, offset + length, length),
    "pack": lambda number, offset, length: (1 - number, offset, length),
}


@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "known"])
@pytest.mark.parametrize("wrong", WRONG)
def test_an_index_that_names_wrong_places(scene: Scene, damage: Damage, wrong: str, fresh: bool) -> None:
    """With a right MAC, as a program with a bug might write it."""
    with open_at(damage.root, damage.place / "cache") as repository:
        keys = repository.keys
        for path in (damage.root / names.INDEX).iterdir():
            data = path.read_bytes()
            header = index.check(data, keys)
            if header.packs > 1:
                break
        else:
            pytest.fail("no index object is of two packs")
        refs = index.packs(data, header)
        rows = [
            index.ENTRY.unpack_from(data, header.entries_offset + number * index.ENTRY.size)
            for number in range(header.entries)
        ]
    forged = index.encode(
        refs, [index.ENTRY.pack(blob_id, *WRONG[wrong](*place)) for blob_id, *place in rows], keys
    )
    name = names.index(blake3(forged).digest())
    path.unlink()
    (damage.root / name).write_bytes(forged)
    seen = judge(damage.open_with(damage.place / ("none" if fresh else "cache")), scene, name)
    assert seen.reads
