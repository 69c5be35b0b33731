"""Where the bytes are: immutable objects by name."""

from pathlib import Path

from vmfs.errors import UsageError
from vmfs.store.base import Store
from vmfs.store.local import LocalStore

__all__ = ["LocalStore", "Store", "open_store"]


def open_store(location: str) -> Store:
    """The store at `location`: a directory, as a path or a file:// URL."""
    if location.startswith("file://"):
        location = location.removeprefix("file://")
    elif "://" in location:
        raise UsageError(f"{location}: only local directories can hold a repository so far; give a path")
    if not location:
        raise UsageError("the repository has an empty name; give the path of a directory")
    return LocalStore(Path(location).absolute())
