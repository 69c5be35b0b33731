"""A run of ours, and whether another one is still going on: what a run has left in the engine is cleaned up
only when it is dead.

A run holds an abstract Unix socket of its name (unix(7)): the kernel lets go of it however the process ends,
it needs no place in any file system, and all users of the machine see it.
"""

from __future__ import annotations

import logging
import socket
from types import TracebackType

from blake3 import blake3
from ulid import ULID

from vmfs.errors import IntegrityError, ObjectMissingError
from vmfs.repo import names
from vmfs.repo.lease import read_lease
from vmfs.repo.repository import Repository

log = logging.getLogger(__name__)


class Run:
    """A run that is going on while the context lasts. `id` tells it, and the machine that it runs on."""

    def __init__(self) -> None:
        self.id = f"{ULID()}-{_host_tag(socket.gethostname())}"
        self._held = socket.socket(socket.AF_UNIX)
        self._held.bind(_address(self.id))
        self._held.listen(1)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()


def is_alive(repository: Repository, run_id: str) -> bool:
    """Whether that run, of this repository, is going on. Of one on another machine nothing is known but the
    leases of those who use the repository, which every run holds: where there is one, it is taken to be
    alive."""
    if run_id.rpartition("-")[2] != _host_tag(socket.gethostname()):
        return _is_used_elsewhere(repository)
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(_address(run_id))
        except ConnectionRefusedError:
            return False
        except OSError as error:
            # Nobody accepts, so more than a few who ask would have to wait: there is a run to ask.
            log.debug("run %s: %s", run_id, error)
    return True


def _is_used_elsewhere(repository: Repository) -> bool:
    now = repository.store.now()
    for name, _ in list(repository.store.list(names.LEASES)):
        try:
            lease = read_lease(repository.store, name, repository.keys)
        except (ObjectMissingError, IntegrityError):
            continue
        if lease.host != socket.gethostname() and lease.alive(now):
            return True
    return False


def _address(run_id: str) -> str:
    return f"\0vmfs-run-{run_id}"


def _host_tag(host: str) -> str:
    return blake3(host.encode()).hexdigest(4)
