"""What prune has condemned. Each prune adds one object, whose name is the generation it began.

Nothing is condemned yet by this version; a writer respects what a later one condemned.
"""

from __future__ import annotations

import json

from vmfs.errors import IntegrityError
from vmfs.format import sealed
from vmfs.format.keys import Keys, SealedType
from vmfs.repo import names
from vmfs.store import Store


def generation(store: Store) -> int:
    """How often the repository was pruned. Raises IntegrityError."""
    return max((_generation(name) for name, _ in store.list(names.TRASH)), default=0)


def _generation(name: str) -> int:
    try:
        return int(name.rsplit("/", 1)[1], 16)
    except ValueError:
        raise IntegrityError(f"{name} is no name of such an object; remove it") from None


def condemned_packs(store: Store, keys: Keys) -> frozenset[bytes]:
    """Names of packs that nothing new may rely on. Raises IntegrityError."""
    found: set[bytes] = set()
    for name, _ in list(store.list(names.TRASH)):
        plain = sealed.unseal(SealedType.TRASH, name, store.get(name), keys)
        try:
            found.update(bytes.fromhex(text) for text in json.loads(plain)["packs"])
        except (ValueError, KeyError, TypeError) as error:
            raise IntegrityError(f"{name} makes no sense: {error}") from error
    return frozenset(found)
