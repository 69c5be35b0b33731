"""What a repository is made of, by size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from vmfs.repo import names
from vmfs.repo.repository import Repository

KINDS = (
    names.PACKS,
    names.INDEX,
    names.POINTS,
    names.NOTES,
    names.KEYS,
    names.EPOCHS,
    names.LEASES,
    names.TRASH,
)


class Total(NamedTuple):
    objects: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Statistics:
    """`stored` is by kind of object; `blobs` are the entries of the index; sizes in bytes."""

    stored: dict[str, Total]
    blobs: int
    cache: int

    @property
    def bytes(self) -> int:
        return sum(total.bytes for total in self.stored.values())


def measure(repository: Repository) -> Statistics:
    """Lists the store, reads nothing of it. Raises StoreError."""
    stored = {"config": Total(1, repository.store.size(names.CONFIG))}
    for kind in KINDS:
        sizes = [size for _, size in repository.store.list(kind)]
        stored[kind] = Total(len(sizes), sum(sizes))
    return Statistics(stored, len(repository.index), _size_of_cache(repository))


def _size_of_cache(repository: Repository) -> int:
    total = 0
    for path in repository.cache_dir.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            # Another process is at work in it.
            continue
    return total
