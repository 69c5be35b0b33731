"""What can go wrong: every fault by its name, armed until it has happened as often as it was told to.

A fault is of one of two kinds. A *condition* changes what the engine does the next time it comes that way.
An *action* is done to the lab: at once, or at the next moment of a name (`at=`), so that it happens in the
middle.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

MOMENTS = {
    "backup-requested": "a backup has been accepted, and nothing of it has begun",
    "backup-starting": "a backup is about to reach the hypervisor",
    "backup-ready": "a backup has become ready",
    "backup-finalizing": "a backup is about to be ended",
    "transferring": "an image transfer has become ready",
    "reading": "an imageio client reads data (counted by skip=)",
    "writing": "an imageio client writes data (counted by skip=)",
    "data": "an imageio client reads or writes data (counted by skip=)",
    "extents": "an imageio client asks for extents",
    "disk-created": "a disk has been made",
    "upload-finalizing": "an upload is about to be ended",
}
"""When an action can happen."""


@dataclass(frozen=True)
class Fault:
    """`behaviour`: the number in the list of what a client must survive; 0: one of the bad days. `at`: the
    moment of an action when none is said; None: at once."""

    name: str
    what: str
    behaviour: int
    action: bool = False
    at: str | None = None


FAULTS = {
    fault.name: fault
    for fault in (
        Fault("checkpoint-redefine-fails", "a live backup fails; all checkpoints of its VM are gone", 1),
        Fault(
            "bitmap-broken",
            "the bitmap of a VM's newest checkpoint is gone (checkpoint=ID: of that one)",
            2,
            True,
        ),
        Fault(
            "checkpoint-absent", "to_checkpoint_id is left out of replies (replies=N; for ever by default)", 3
        ),
        Fault("disk-not-in-checkpoint", "a disk is not in the checkpoint asked for: full (disk=ID)", 4),
        Fault("conflict-vm-during-backup", "409 to a request for a backup: the VM is during a backup", 5),
        Fault("conflict-disk-locked", "409 to a request for a backup: disks are locked", 5),
        Fault("conflict-backup-not-ready", "409 to a request for a transfer: the backup is not ready", 5),
        Fault(
            "conflict-disk-transferred", "409 to a request for a transfer: the disk is being transferred", 5
        ),
        Fault("conflict-active-transfer", "409 to finalizing a backup: there is an active transfer", 5),
        Fault("conflict-related-operation", "409 to a request that changes something: related operation", 5),
        Fault(
            "checkpoint-unknown", "the engine forgets a VM's newest checkpoint: 400 (checkpoint=ID)", 6, True
        ),
        Fault("checkpoint-invalid", "a VM's newest checkpoint becomes invalid: 400 (checkpoint=ID)", 6, True),
        Fault("hosted-engine", "a VM turns out to be the engine's own: its backup is refused", 6, True),
        Fault(
            "finalize-refused", "400 to finalizing a backup, which ends nevertheless (an answer was lost)", 7
        ),
        Fault("finalize-slow", "finalizing a backup takes long (seconds=N, 3 by default)", 7),
        Fault("finalize-fails", "a backup fails while it is being finalized", 7),
        Fault("snapshot-leftover", "a hybrid backup succeeds and leaves its snapshot, with event 10813", 7),
        Fault("stale-snapshot", "a hybrid backup fails and leaves its snapshot", 8),
        Fault("backup-fails", "a backup fails before it is ready", 9),
        Fault("engine-restart", "the engine restarts: no answer for a while, all sessions end", 9, True),
        Fault(
            "backup-unmonitored", "the engine restarts and marks running backups as failed (10814)", 9, True
        ),
        Fault("backup-purged", "a backup that has ended is forgotten at once: 404", 9),
        Fault("transfer-purged", "a transfer that has ended is forgotten at once: 404", 9),
        Fault(
            "snapshot-restored", "a VM goes back to its oldest snapshot: all checkpoints are gone", 10, True
        ),
        Fault(
            "power-off-hard", "a VM's qemu is killed: bitmaps are inconsistent (up=no: stays down)", 10, True
        ),
        Fault(
            "inactivity",
            "a running transfer counts as unused, and its timeout policy is applied",
            11,
            True,
            "data",
        ),
        Fault("ticket-not-renewed", "the engine does not renew a ticket (life=N: which ends after N s)", 11),
        Fault("transfer-paused", "the engine pauses a transfer", 11, True, "data"),
        Fault("engine-finalizes-download", "the engine finalizes a download before the client does: 404", 12),
        Fault("upload-verification", "the verification of an upload fails: the disk is illegal", 13),
        Fault("ticket-busy", "the ticket of a transfer cannot be removed for a while (seconds=N, 2)", 14),
        Fault("slow-extents", "imageio answers a request for extents late (seconds=N, 5)", 15),
        Fault(
            "ticket-expired",
            "a ticket expires while it is in use: 403 until it is extended",
            16,
            True,
            "data",
        ),
        Fault("connection-closed", "imageio closes a connection without an answer", 16),
        Fault("nbd-dead", "the NBD server under a transfer dies: 500", 16, True, "data"),
        Fault("direct-unreachable", "the transfer_url cannot be reached; the proxy_url can", 17),
        Fault("all-unreachable", "neither transfer_url nor proxy_url can be reached", 17),
        Fault("sso-expired", "all sessions end: 401", 18, True),
        Fault("password-changed", "all sessions end, and the password is another", 18, True),
        Fault("connection-hangs", "the engine does not answer a request (seconds=N, 5)", 19),
        Fault("connection-dropped", "the engine closes a connection without having done anything", 19),
        Fault("answer-lost", "the engine does what was asked and closes the connection (path=REGEX)", 19),
        Fault("unavailable", "503 to a request, as Apache answers while the engine starts", 19),
        Fault(
            "imageio-restart",
            "the imageio daemons are killed and started again: all tickets are gone",
            0,
            True,
        ),
        Fault("imageio-down", "the imageio daemons of the hosts are killed", 0, True),
        Fault("vm-removed", "a VM is removed with its disks", 0, True),
        Fault("vm-migrated", "a VM moves to the other host; a running backup of it fails", 0, True),
        Fault("disk-added", "a new disk is attached to a VM (size=N)", 0, True),
        Fault("disk-removed", "a disk of a VM is removed (disk=ID; its last one)", 0, True),
        Fault("disk-resized", "a disk of a VM grows (disk=ID, size=N; the first, by 64 MiB)", 0, True),
        Fault("snapshot-taken", "a snapshot of a VM is taken", 0, True),
        Fault("snapshot-removed", "the oldest snapshot of a VM is removed", 0, True),
        Fault("name-not-unique", "another VM gets the same name", 0, True),
        Fault("storage-domain-full", "a storage domain has no space left: 409", 0, True),
        Fault("upload-no-space", "the storage domain runs full during an upload: 500", 0),
        Fault("certificate-expired", "the engine's certificate has expired", 0, True),
        Fault("certificate-foreign", "the engine's certificate is another authority's", 0, True),
        Fault("imageio-certificate-expired", "the imageio daemons' certificates have expired", 0, True),
        Fault("mac-in-use", "another VM takes the MAC address of a VM's first NIC", 0, True),
        Fault("ovf-hostile", "a VM's OVF is hostile (form=bomb|external|broken|huge|names)", 0, True),
        Fault("import-fails", "500 to making a VM from an OVF", 0),
    )
}


class UnknownFaultError(Exception):
    """No such fault, moment or option."""


@dataclass
class Armed:
    """A fault that waits. Its `options` narrow it (vm, disk, path …) or say how it is."""

    name: str
    left: int
    at: str | None
    skip: int
    options: dict[str, Any] = field(default_factory=dict)

    def fits(self, facts: Mapping[str, Any]) -> bool:
        """An option that is also a fact of what happens must be equal to it."""
        return all(facts.get(key, value) == value for key, value in self.options.items())


Undo = Callable[[], None]
Action = Callable[[Mapping[str, Any]], Undo | None]
"""Does it, and gives what undoes it, where it can be undone."""
NOW = "now"


class Faults:
    """Those that are armed. Thread-safe."""

    def __init__(self) -> None:
        self.used: Counter[str] = Counter()
        """How often each has happened."""
        self.actions: dict[str, Action] = {}
        self._armed: list[Armed] = []
        self._undo: list[tuple[str, Undo]] = []
        self._lock = threading.Lock()

    def break_(
        self, name: str, *, times: int = 1, at: str | None = None, skip: int = 0, **options: Any
    ) -> None:
        """Arm a fault for `times` (0: until mended), or do it, if it is an action that waits for no moment
        (`at`: one of MOMENTS, or "now"). The first `skip` occasions pass. Raises UnknownFaultError."""
        fault = FAULTS.get(name)
        if fault is None:
            raise UnknownFaultError(f"{name}: no such fault; see tools/lab break --list")
        if at is not None and at not in (*MOMENTS, NOW):
            raise UnknownFaultError(f"{at}: no such moment; one of {', '.join(MOMENTS)}, {NOW}")
        if at is not None and not fault.action:
            raise UnknownFaultError(f"{name}: happens by itself when it can; at= is for other faults")
        at = at or fault.at
        if fault.action and at in (None, NOW):
            self._act(name, options)
            return
        with self._lock:
            self._armed.append(Armed(name, times if times > 0 else -1, at, skip, options))

    def mend(self, name: str | None = None) -> None:
        """Disarm a fault, or all, and undo what it did where that can be undone."""
        with self._lock:
            self._armed = [armed for armed in self._armed if name is not None and armed.name != name]
            undo = [each for each in self._undo if name in (None, each[0])]
            self._undo = [each for each in self._undo if each not in undo]
        for _, act in reversed(undo):
            act()

    @property
    def armed(self) -> list[Armed]:
        with self._lock:
            return list(self._armed)

    def take(self, name: str, **facts: Any) -> dict[str, Any] | None:
        """The options of a condition that is to happen now, which is then counted; None: it does not."""
        with self._lock:
            found = self._find(lambda armed: armed.name == name and armed.at is None, facts)
        return found.options if found else None

    def moment(self, moment: str, **facts: Any) -> None:
        """A moment has come: what waits for it is done."""
        while True:
            with self._lock:
                found = self._find(lambda armed: armed.at == moment, facts)
            if found is None:
                return
            self._act(found.name, {**facts, **found.options})

    def waits_for(self, *names: str) -> bool:
        """Whether one of these faults, or one at one of these moments, is armed."""
        with self._lock:
            return any(armed.name in names or armed.at in names for armed in self._armed)

    def _find(self, wanted: Callable[[Armed], bool], facts: Mapping[str, Any]) -> Armed | None:
        for armed in self._armed:
            if not wanted(armed) or not armed.fits(facts):
                continue
            if armed.skip > 0:
                armed.skip -= 1
                continue
            armed.left -= 1
            if armed.left == 0:
                self._armed.remove(armed)
            if armed.at is None:
                self.used[armed.name] += 1
            return armed
        return None

    def _act(self, name: str, facts: Mapping[str, Any]) -> None:
        action = self.actions.get(name)
        if action is None:
            raise UnknownFaultError(f"{name}: not in this lab")
        with self._lock:
            self.used[name] += 1
        undo = action(facts)
        if undo is not None:
            with self._lock:
                self._undo.append((name, undo))
