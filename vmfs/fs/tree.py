"""The file tree of a mounted repository. It knows nothing of FUSE.

    <vm>/<time>/disks/<alias>.raw, volumes/<volume>.raw, point.json, artifacts
    <vm>/<time>/files/<volume>/     what is in there is the business of vmfs.fs.guests
    <vm>/latest -> <time>
    damaged/<point id>      only when there are points whose manifest cannot be read

Used from one thread, except `load` and `open`, which may block and belong in another.
"""

from __future__ import annotations

from typing import NamedTuple

from vmfs.fs.content import Content
from vmfs.fs.entries import NO_CHILDREN, Children, Entry, Role
from vmfs.fs.inodes import Inodes
from vmfs.fs.listing import Listing
from vmfs.fs.points import Points


class Gone(NamedTuple):
    """A name that is no longer in the directory of that inode number."""

    parent: int
    name: bytes


class Tree:
    def __init__(self, listing: Listing, points: Points) -> None:
        self.listing = listing
        self.inodes = Inodes(listing.root)
        self._points = points

    def children(self, entry: Entry) -> Children | None:
        """What is in the directory, or None when that takes `load`."""
        if entry.role in (Role.ROOT, Role.VM, Role.DAMAGED):
            return self.listing.children.get(entry.key, NO_CHILDREN)
        return self._points.children(entry, load=False)

    def load(self, entry: Entry) -> Children:
        """What is in a directory of a point. Raises IntegrityError and StoreError. Any thread."""
        return self._points.children(entry, load=True) or NO_CHILDREN

    def present(self, entry: Entry) -> Entry:
        """The entry with its attributes as they are now."""
        return self._points.present(entry)

    def open(self, entry: Entry) -> Content:
        """The content of a file. Raises IntegrityError and StoreError. Any thread."""
        return self._points.open(entry)

    def replace(self, listing: Listing) -> list[Gone]:
        """Take over a newer state. Returns the names that a client may still believe in."""
        gone = []
        for key, before in self.listing.children.items():
            parent = self.inodes.referenced(key)
            if parent is None:
                continue
            now = listing.children.get(key, NO_CHILDREN)
            for name, entry in before.items():
                kept = now.get(name)
                if kept is None or kept.key != entry.key:
                    gone.append(Gone(parent, name))
        self.listing = listing
        for entry in listing.changing.values():
            self.inodes.update(entry)
        return gone
