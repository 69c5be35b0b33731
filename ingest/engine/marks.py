"""How we know our own: the description that every backup and disk we make in an engine carries."""

from __future__ import annotations

import re
from typing import NamedTuple

_PATTERN = re.compile(r"vmfs (?P<run>[0-9A-Za-z-]{8,64}) (?P<repository>[0-9a-f]{8})")


class Mark(NamedTuple):
    """`run` is the id of a backup or restore run, `repository` begins the repository's id: 8 hex digits."""

    run: str
    repository: str

    def __str__(self) -> str:
        return f"vmfs {self.run} {self.repository}"


def make_mark(run: str, repository_id: bytes) -> Mark:
    """Raises ValueError for a run id that would not be found again."""
    mark = Mark(run, short_id(repository_id))
    if read_mark(str(mark)) != mark:
        raise ValueError(f"run id {run!a}")
    return mark


def short_id(repository_id: bytes) -> str:
    """The beginning of a repository's id, as marks tell it: 8 hex digits."""
    return repository_id.hex()[:8]


def read_mark(description: str | None) -> Mark | None:
    """The mark that a description is, or None if it is none of ours."""
    found = _PATTERN.fullmatch(description or "")
    return Mark(found["run"], found["repository"]) if found else None
