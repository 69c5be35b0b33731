"""Leases: who is using the repository right now, told to those who would remove something from it.

A lease is a sealed object that its holder replaces before it expires, by the store's clock. Nobody waits for
a lease, and a dead holder's needs no person to clear it: it expires, and on the same machine is seen to be
dead at once.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from threading import Event, Lock, Thread
from types import TracebackType
from typing import Literal

from ulid import ULID

from vmfs.errors import IntegrityError, ObjectMissingError, VmfsError
from vmfs.format import sealed
from vmfs.format.keys import Keys, SealedType
from vmfs.repo import names
from vmfs.store import Store

log = logging.getLogger(__name__)

TERM = timedelta(minutes=30)
Purpose = Literal["writer", "mount", "prune"]


@dataclass(frozen=True, slots=True)
class LeaseInfo:
    """`process` is the holder's pid and start time on `host`, whose present boot is `boot`."""

    purpose: str
    host: str
    boot: str
    process: str
    expires: str

    def alive(self, now: datetime) -> bool:
        if datetime.fromisoformat(self.expires) < now:
            return False
        if (self.host, self.boot) != (socket.gethostname(), _boot_id()):
            return True
        return self.process == _process(int(self.process.split(":")[0]))


class LeaseLostError(VmfsError):
    """The lease was removed by somebody else: what was written under it may be gone too."""


class Lease:
    """A lease held while the context lasts, renewed in the background."""

    def __init__(self, store: Store, keys: Keys, purpose: Purpose, term: timedelta = TERM) -> None:
        self._store = store
        self._keys = keys
        self._purpose = purpose
        self._term = term
        self._renewing = Lock()
        self._name = self._write()
        self._stop = Event()
        self._thread = Thread(target=self._renew, name="vmfs-lease", daemon=True)
        self._thread.start()

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    @property
    def name(self) -> str:
        """Of the object, until it is renewed."""
        return self._name

    @property
    def id(self) -> str:
        return self._name.rsplit("/", 1)[1]

    def check(self) -> None:
        """Raises LeaseLostError if the lease is no longer there."""
        with self._renewing:
            try:
                info = read_lease(self._store, self._name, self._keys)
            except (ObjectMissingError, IntegrityError):
                info = None
        if info is None or not info.alive(self._store.now()):
            raise LeaseLostError("this session's lease was lost, so nothing was committed; run it again")

    def abandon(self) -> None:
        """Leave it to be found, as after a crash."""
        self._stop.set()
        self._thread.join()

    def release(self) -> None:
        self.abandon()
        try:
            self._store.delete(self._name)
        except VmfsError as error:
            log.warning("lease %s stays until it expires: %s", self.id, error)

    def _write(self) -> str:
        now = self._store.now()
        info = LeaseInfo(
            purpose=self._purpose,
            host=socket.gethostname(),
            boot=_boot_id(),
            process=_process(os.getpid()),
            expires=(now + self._term).isoformat(),
        )
        name = names.lease(str(ULID.from_datetime(now)))
        nonce = secrets.token_bytes(12)
        plain = json.dumps(asdict(info)).encode()
        lease = sealed.seal(SealedType.LEASE, name, plain, nonce=nonce, keys=self._keys)
        try:
            self._store.put(name, [lease])
        except BaseException:
            # Ctrl-C may come when it is there already, and nobody would know its name.
            with suppress(VmfsError):
                self._store.delete(name)
            raise
        return name

    def _renew(self) -> None:
        while not self._stop.wait(self._term.total_seconds() / 3):
            try:
                with self._renewing:
                    # What somebody removed stays removed: this raises.
                    self._store.size(self._name)
                    old, self._name = self._name, self._write()
                    self._store.delete(old)
            except VmfsError as error:
                log.warning("lease could not be renewed: %s", error)


def read_lease(store: Store, name: str, keys: Keys) -> LeaseInfo:
    """Raises IntegrityError, ObjectMissingError."""
    try:
        info = LeaseInfo(**json.loads(sealed.unseal(SealedType.LEASE, name, store.get(name), keys)))
        # Here and not when it is used: whoever clears away dead leases must not fall over one of them.
        info.alive(store.now())
    except (ValueError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{name} makes no sense: {error}") from error
    return info


def clear_dead(store: Store, keys: Keys) -> list[str]:
    """Remove leases whose holders are gone; those that stay."""
    staying = []
    now = store.now()
    for name, _ in list(store.list(names.LEASES)):
        try:
            if read_lease(store, name, keys).alive(now):
                staying.append(name)
            else:
                store.delete(name)
        except ObjectMissingError:
            continue
        except IntegrityError as error:
            log.warning("%s", error)
            staying.append(name)
    return staying


def _boot_id() -> str:
    """Of this boot, and of this container in it: pids mean nothing in another's namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}:{os.stat('/proc/self/ns/pid').st_ino}"


def _process(pid: int) -> str:
    """A process's identity: pid and start time in clock ticks (proc(5)), so that a reused pid is told apart;
    a dead one's has no start time."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return f"{pid}:gone"
    state, *fields = stat.rsplit(")", 1)[1].split()
    # A zombie does nothing any more; when it goes is up to its parent.
    return f"{pid}:gone" if state in "ZX" else f"{pid}:{fields[18]}"
