"""Making the index again from the packs, which tell themselves what is in them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from blake3 import blake3

from vmfs.errors import IntegrityError, ObjectExistsError, ObjectMissingError, VersionError
from vmfs.format import index
from vmfs.repo import names
from vmfs.repo.index import index_from_directories, load_index
from vmfs.repo.repository import Repository
from vmfs.store import Store


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
    repository.index.clear()
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
    indexed = 0
    rest = iter(missing)
    while data := index_from_directories(store, rest, repository.keys, unreadable):
        remade.add(_put(store, data, damaged))
        indexed += index.parse_header(data, len(data)).packs
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


def _put(store: Store, data: bytes, damaged: Mapping[str, str]) -> str:
    """The name of the index object, which may be that of a damaged one in whose place it comes."""
    name = names.index(blake3(data).digest())
    if name in damaged:
        store.delete(name)
    with suppress(ObjectExistsError):
        store.put(name, [data])
    return name
