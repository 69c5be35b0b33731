"""What `vmfs doctor REPO` looks at in a repository. Reads no data: that is for `vmfs verify`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from vmfs.catalog.catalog import Catalog
from vmfs.cli.checks import Check, attempt, space
from vmfs.cli.tables import count
from vmfs.errors import IntegrityError, ObjectMissingError, UsageError, VmfsError
from vmfs.format import config
from vmfs.repo import names
from vmfs.repo.keyring import list_slots
from vmfs.repo.lease import read_lease
from vmfs.repo.repository import Repository, read_config
from vmfs.store import LocalStore, Store

_TEMPORARY = ".tmp-"


def repository(
    store: Store, open_repository: Callable[[], Repository], catalog_url: Callable[[Repository], str | Path]
) -> Iterator[Check]:
    """All checks of a repository; one that is none gets no further than the first."""
    config_check = attempt("config", lambda: _config(store), "check the path; or restore config from a copy")
    yield config_check
    if config_check.status == "ok":
        yield from _closed(store)
        yield from _opened(open_repository, catalog_url)


def _closed(store: Store) -> Iterator[Check]:
    """What can be seen without a key."""
    yield attempt("keys", lambda: _keys(store), "restore keys/ from a copy")
    if store.writable:
        yield Check("writable", "ok", f"{store.url} can be written to")
    else:
        remedy = "to back up into it, run as its owner and mount its file system writable"
        yield Check("writable", "warn", f"{store.url} can only be read", remedy)
    if isinstance(store, LocalStore):
        yield space("space", store.root, "the repository")


def _opened(
    open_repository: Callable[[], Repository], catalog_url: Callable[[Repository], str | Path]
) -> Iterator[Check]:
    """What takes a key."""
    try:
        repository = open_repository()
    except UsageError as error:
        yield Check("open", "warn", f"not opened, so the rest is not checked: {error}")
        return
    except VmfsError as error:
        yield Check("open", "fail", str(error))
        return
    with repository:
        yield Check("open", "ok", f"opens with key slot {repository.slot_id}")
        yield _index(repository)
        yield attempt("points", lambda: _points(repository, catalog_url(repository)))
        yield attempt("leases", lambda: _leases(repository))


def _config(store: Store) -> Check:
    settings = config.decode(read_config(store))
    return Check("config", "ok", f"repository {settings.repository_id.hex()}")


def _keys(store: Store) -> Check:
    slots = list_slots(store)
    damaged = [slot for slot in slots if slot.error is not None]
    sound = len(slots) - len(damaged)
    if not sound:
        raise IntegrityError("there is no key slot that is whole: nobody can open the repository")
    if damaged:
        message = (
            f"{count(len(damaged), 'key slot')} of {len(slots)} damaged: {damaged[0].id}: {damaged[0].error}"
        )
        return Check("keys", "warn", message, "restore keys/ from a copy, or remove the slot")
    return Check("keys", "ok", count(sound, "key slot"))


def _index(repository: Repository) -> Check:
    if damaged := repository.index.damaged:
        name, problem = min(damaged.items())
        message = (
            f"{count(len(damaged), 'index object')} damaged, the packs stand in for them: {name}: {problem}"
        )
        return Check("index", "warn", message, "vmfs rebuild")
    if orphans := len(repository.index.unindexed_packs()):
        message = f"{count(orphans, 'pack')} in no index, left by an interrupted run or being written now"
        return Check("index", "warn", message, "none needed: the next backup makes use of them")
    return Check(
        "index",
        "ok",
        f"{count(len(repository.index), 'blob')} in {count(len(repository.index.packs()), 'pack')}",
    )


def _points(repository: Repository, url: str | Path) -> Check:
    with Catalog.open(url, repository.id) as catalog:
        damaged = catalog.sync(repository)
        points, vms = len(catalog.points()), len(catalog.vms())
    if damaged:
        message = f"{count(len(damaged), 'restore point')} damaged: {damaged[0].id}: {damaged[0].message}"
        return Check("points", "fail", message, "vmfs verify tells what is lost; restore points/ from a copy")
    return Check("points", "ok", f"{count(points, 'restore point')} of {count(vms, 'VM')}")


def _leases(repository: Repository) -> Check:
    store = repository.store
    alive, stale = [], 0
    now = store.now()
    for name, _ in list(store.list(names.LEASES)):
        try:
            lease = read_lease(store, name, repository.keys)
        except ObjectMissingError:
            continue
        except IntegrityError:
            stale += 1
            continue
        if lease.alive(now):
            alive.append(f"{lease.purpose} on {lease.host} until {lease.expires[:19]}Z")
        else:
            stale += 1
    leftovers = _leftovers(store) if not alive else 0
    if stale or leftovers:
        found = f"{count(stale, 'lease')} and {count(leftovers, 'temporary file')}"
        return Check(
            "leases", "warn", f"{found} of runs that were killed", "none needed: the next backup clears them"
        )
    return Check(
        "leases", "ok", f"in use by {'; '.join(alive)}" if alive else "nobody is using the repository"
    )


def _leftovers(store: Store) -> int:
    """Half-written files; some are there while somebody writes."""
    if not isinstance(store, LocalStore):
        return 0
    found = 0
    for _, _, files in os.walk(store.root):
        found += sum(file.startswith(_TEMPORARY) for file in files)
    return found
