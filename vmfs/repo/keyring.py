"""The key slots of a repository: making, opening, adding, removing. No data is ever rewritten for it."""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime

from vmfs.errors import IntegrityError, UsageError, VmfsError
from vmfs.format import keyslot
from vmfs.format.keys import Keys
from vmfs.repo import names
from vmfs.repo.secret import Secret
from vmfs.store import Store

log = logging.getLogger(__name__)

DEFAULT_COST = 17
"""log2 of scrypt's N: 128 MiB and about half a second a try."""


class SecretError(VmfsError):
    """No key slot opens with the passphrase or key file given."""


@dataclass(frozen=True, slots=True)
class SlotInfo:
    """`id` names the slot; `public` is the Ed25519 key that its holder signs points with. `error` is set,
    and the rest empty, when the slot is damaged."""

    id: str
    kdf: str
    label: str
    created: datetime | None
    public: bytes
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Unlocked:
    slot_id: str
    opened: keyslot.Opened


def add_slot(
    store: Store, repository_id: bytes, master: bytes, secret: Secret, *, label: str, cost: int = DEFAULT_COST
) -> str:
    """Store a new slot for the master key, with a signing key of its own; its id. Raises UsageError for a
    label or cost that cannot be."""
    if not keyslot.valid_label(label):
        raise UsageError(
            f"label {label[:40]!a} cannot be; use up to {keyslot.MAX_LABEL} bytes, no control characters"
        )
    if not keyslot.MIN_COST <= cost <= keyslot.MAX_COST:
        raise UsageError(f"scrypt cost {cost} cannot be; use {keyslot.MIN_COST} to {keyslot.MAX_COST}")
    slot_id = secrets.token_hex(8)
    name = names.key_slot(slot_id)
    seed = secrets.token_bytes(32)
    created_ms = int(store.now().timestamp() * 1000)
    salt, nonce = secrets.token_bytes(32), secrets.token_bytes(12)
    slot = keyslot.new_slot(secret.kdf, cost, created_ms, salt, nonce, seed, label)
    opened = keyslot.Opened(master, seed)
    data = keyslot.wrap(slot, opened, secret.secret, name=name, repository_id=repository_id)
    store.put(name, [data])
    return slot_id


def unlock(store: Store, repository_id: bytes, secret: Secret) -> Unlocked:
    """Open the first slot that the secret fits. Raises SecretError, or IntegrityError when it fits none and
    a slot is damaged."""
    damaged: list[str] = []
    tried = 0
    for name in _slots(store):
        try:
            data = store.get(name)
            if keyslot.parse(data).kdf is not secret.kdf:
                continue
            tried += 1
            opened = keyslot.unwrap(data, secret.secret, name=name, repository_id=repository_id)
        except IntegrityError as error:
            log.warning("%s: %s", name, error)
            damaged.append(f"{name}: {error}")
            continue
        if opened:
            return Unlocked(name.rsplit("/", 1)[1], opened)
    if damaged:
        raise IntegrityError(f"no key slot opens; {damaged[0]}: restore it from a copy, or use another key")
    if not _slots(store):
        raise IntegrityError(f"{store.url} has lost its key slots; restore keys/ from a copy")
    what = "passphrase" if secret.kdf is keyslot.Kdf.SCRYPT else "key file"
    if not tried:
        raise SecretError(f"{store.url} has no key slot for a {what}; give the other kind of key")
    raise SecretError(f"wrong {what} for {store.url}; check it, and that this is the right repository")


def list_slots(store: Store, keys: Keys | None = None) -> list[SlotInfo]:
    """Every slot, damaged ones too, oldest first. With `keys`, a slot that no holder of the master key made
    counts as damaged; without, what slots say of themselves is no more than what the store says."""
    return sorted(
        (_info(store, name, keys) for name in _slots(store)),
        key=lambda info: (info.created or datetime.max.replace(tzinfo=UTC), info.id),
    )


def remove_slot(store: Store, slot_id: str, keys: Keys | None = None) -> None:
    """Raises UsageError for an unknown slot and for the last one that works."""
    slots = list_slots(store, keys)
    found = [slot for slot in slots if slot.id.startswith(slot_id)] if slot_id else []
    if len(found) != 1:
        known = ", ".join(slot.id for slot in slots)
        raise UsageError(f"{slot_id!r} names {len(found) or 'no'} key slots; there are: {known}")
    if not any(slot.error is None and slot.id != found[0].id for slot in slots):
        raise UsageError(f"{found[0].id} is the last key slot; add another before you remove it")
    store.delete(names.key_slot(found[0].id))


def _slots(store: Store) -> list[str]:
    return sorted(name for name, _ in store.list(names.KEYS))


def _info(store: Store, name: str, keys: Keys | None) -> SlotInfo:
    slot_id = name.rsplit("/", 1)[1]
    try:
        data = store.get(name)
        slot = keyslot.parse(data)
        if keys:
            keyslot.authenticate(data, keys.master, name=name, repository_id=keys.repository_id)
    except IntegrityError as error:
        return SlotInfo(slot_id, "", "", None, b"", str(error))
    created = datetime.fromtimestamp(slot.created_ms / 1000, UTC)
    kdf = "passphrase" if slot.kdf is keyslot.Kdf.SCRYPT else "key-file"
    return SlotInfo(slot_id, kdf, slot.label, created, slot.public)
