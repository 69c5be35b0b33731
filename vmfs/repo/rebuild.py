"""Making the index again from the packs, which tell themselves what is in them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from blake3 import blake3

from vmfs.errors import IntegrityError, ObjectExistsError, ObjectMissingError, VersionError
from vmfs.format import index
from vmfs.repo import names
from vmfs.repo.index import load_index, read_directory
from vmfs.repo.repository import Repository
from vmfs.repo.segment import make_row, unique_sorted

_ROWS = 1 << 18
"""Entries after which an index object is written: bounds the memory."""


@dataclass(frozen=True, slots=True)
class RebuiltIndex:
    """`indexed` are the packs that no usable index object covered and that one covers now; `replaced` the
    damaged index objects that it stands for; `unreadable` what is still damaged, by object."""

    blobs: int
    packs: int
    indexed: int
    replaced: list[str]
    unreadable: dict[str, str]


def rebuild_index(repository: Repository) -> RebuiltIndex:
    """Bring back the local index from the store, and in the store the index of packs that have none.

    A damaged index object is deleted, once what takes its place is durable and every pack it could have
    covered was read. A repository that cannot be written to is left as it is. Raises StoreError.
    """
    if repository.store.writable:
        with repository.lease("writer"):
            indexed, replaced, unreadable = _repair(repository)
    else:
        indexed, replaced, unreadable = 0, [], {}
    # Without its table of contents the local cache counts as empty; what it held is removed by the next sync.
    for contents in (repository.cache_dir / "index").glob("*.json"):
        contents.unlink(missing_ok=True)
    repository.refresh()
    unreadable |= repository.index.damaged
    packs = repository.index.packs()
    return RebuiltIndex(len(repository.index), len(packs), indexed, replaced, unreadable)


def _repair(repository: Repository) -> tuple[int, list[str], dict[str, str]]:
    """(packs indexed, index objects replaced, what cannot be read)"""
    store = repository.store
    covered, damaged, unreadable = _look_through(repository)
    missing = [
        (name, size)
        for name, size in store.list(names.PACKS)
        if name not in covered and names.pack_digest(name)
    ]
    remade: set[str] = set()
    table: list[index.PackRef] = []
    rows: list[bytes] = []
    indexed = 0
    for name, size in missing:
        try:
            entries = read_directory(store, name, size, repository.keys)
        except ObjectMissingError:
            continue
        except IntegrityError as error:
            unreadable[name] = str(error)
            continue
        rows += (make_row(entry.id, len(table), entry.offset, entry.length) for entry in entries)
        table.append(index.PackRef(bytes.fromhex(name.rsplit("/", 1)[1]), size))
        indexed += 1
        if len(rows) >= _ROWS:
            remade.add(_put(repository, table, rows, damaged))
            table, rows = [], []
    if table:
        remade.add(_put(repository, table, rows, damaged))
    if any(name in unreadable for name, _ in missing):
        return indexed, [], unreadable | damaged
    for name in damaged.keys() - remade:
        store.delete(name)
    return indexed, sorted(damaged), unreadable


def _look_through(repository: Repository) -> tuple[set[str], dict[str, str], dict[str, str]]:
    """Of the store's index objects: the packs that the sound ones cover, the damaged ones, and those of a
    later program, which knows what to do with them."""
    covered: set[str] = set()
    damaged: dict[str, str] = {}
    later: dict[str, str] = {}
    for name, _ in list(repository.store.list(names.INDEX)):
        try:
            data = load_index(repository.store, name, repository.keys)
        except ObjectMissingError:
            continue
        except VersionError as error:
            later[name] = str(error)
        except IntegrityError as error:
            damaged[name] = str(error)
        else:
            header = index.parse_header(data, len(data))
            covered.update(names.pack(ref.name) for ref in index.packs(data, header))
    return covered, damaged, later


def _put(
    repository: Repository, table: list[index.PackRef], rows: list[bytes], damaged: Mapping[str, str]
) -> str:
    """The name of the index object, which may be that of a damaged one in whose place it comes."""
    data = index.encode(table, unique_sorted(rows), repository.keys)
    name = names.index(blake3(data).digest())
    if name in damaged:
        repository.store.delete(name)
    with suppress(ObjectExistsError):
        repository.store.put(name, [data])
    return name
