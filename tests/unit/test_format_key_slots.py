"""Key slots: what each check of them tells, and what slots that a store made up can do."""

from __future__ import annotations

import struct
from pathlib import Path

import conftest
import pytest
from blake3 import blake3

from vmfs.errors import UsageError
from vmfs.format import aead, keyslot
from vmfs.format.errors import AuthenticationError, ContentError, LengthError, MagicError, VersionError
from vmfs.format.keys import derive_keys
from vmfs.repo import keyring
from vmfs.repo.repository import Repository
from vmfs.repo.secret import KeyFile, Passphrase
from vmfs.store import LocalStore

ID = b"repository id 16"
NAME = "keys/0011223344556677"
MASTER, SEED = b"m" * 32, b"s" * 32
SECRET = b"secret"


def a_slot(
    *,
    kdf: int = 1,
    cost: int = 10,
    r: int = 8,
    p: int = 1,
    zero: int = 0,
    created: int = 0,
    label: bytes = b"label",
    master: bytes = MASTER,
    mac_master: bytes = MASTER,
    repository_id: bytes = ID,
    name: str = NAME,
) -> bytes:
    """A slot that says whatever it is told to, with everything in it that vouches for that."""
    head = keyslot.HEAD.pack(
        *(b"VMFK", 1, kdf, cost, r, p, zero, len(label), created, b"a" * 32, b"n" * 12, b"p" * 32)
    )
    head += label
    binding = repository_id + name.encode()
    slot = keyslot.Slot(keyslot.Kdf.KEY_FILE, 0, 0, 0, 0, b"a" * 32, b"n" * 12, b"p" * 32, "")
    if kdf == 1 and cost == 10:
        slot = slot._replace(kdf=keyslot.Kdf.SCRYPT, cost=cost, r=8, p=1)
    key = keyslot._wrapping_key(slot, SECRET)
    body = head + aead.provider.encrypt(key, b"n" * 12, master + SEED, head + binding)
    body += blake3(body + binding, key=derive_keys(mac_master, ID).slot).digest()
    return body + blake3(body).digest()


def summed(data: bytes) -> bytes:
    """The same with a checksum that holds."""
    return data[:-32] + blake3(data[:-32]).digest()


def opened(data: bytes) -> keyslot.Opened | None:
    return keyslot.unwrap(data, SECRET, name=NAME, repository_id=ID)


def test_order() -> None:
    data = a_slot()
    assert opened(data) == keyslot.Opened(MASTER, SEED)
    data = a_slot(zero=1)
    with pytest.raises(ContentError):
        keyslot.parse(data)
    data = data[:-1] + bytes((data[-1] ^ 1,))
    with pytest.raises(AuthenticationError):
        keyslot.parse(data)
    data = data[:-1]
    with pytest.raises(LengthError):
        keyslot.parse(data)
    data = data[:4] + b"\2" + data[5:]
    with pytest.raises(VersionError):
        keyslot.parse(data)
    data = b"X" + data[1:]
    with pytest.raises(MagicError):
        keyslot.parse(data)
    with pytest.raises(LengthError):
        keyslot.parse(data[:239])


@pytest.mark.parametrize(
    "data",
    [
        *(a_slot(kdf=kdf) for kdf in (0, 3, 255)),
        *(a_slot(cost=cost) for cost in (0, 9, 21, 22, 31, 63, 64, 255)),
        *(a_slot(r=r) for r in (0, 1, 9, 255)),
        *(a_slot(p=p) for p in (0, 2, 255)),
        *(a_slot(kdf=2, cost=cost, r=r, p=p) for cost, r, p in ((10, 0, 0), (0, 8, 0), (0, 0, 1))),
        a_slot(created=253_402_300_800_000),
        a_slot(created=(1 << 64) - 1),
        a_slot(label=b"\xff"),
        a_slot(label=b"\xed\xa0\x80"),
        a_slot(label=b"\x1b[2J"),
        a_slot(label=b"a\0"),
        a_slot(label=b"a\n"),
        a_slot(label="\x9b2J".encode()),
        a_slot(label=b"a" * 256),
        a_slot(label=b"a" * 65535),
    ],
)
def test_content(data: bytes) -> None:
    with pytest.raises(ContentError):
        keyslot.parse(data)
    with pytest.raises(ContentError):
        opened(data)


def test_largest_values() -> None:
    slot = keyslot.parse(a_slot(cost=20, created=253_402_300_799_999, label="é".encode() * 127 + b"."))
    assert (slot.cost, slot.label) == (20, "é" * 127 + ".")


def test_label_length_is_no_memory_bomb() -> None:
    data = a_slot()
    with pytest.raises(LengthError):
        keyslot.parse(summed(data[:10] + struct.pack("<H", 65535) + data[12:]))


def test_bound_to_name_and_repository() -> None:
    data = a_slot()
    assert keyslot.unwrap(data, SECRET, name="keys/0011223344556678", repository_id=ID) is None
    assert keyslot.unwrap(data, SECRET, name=NAME, repository_id=bytes(16)) is None
    assert keyslot.unwrap(data, b"Secret", name=NAME, repository_id=ID) is None


def test_every_clear_byte_is_authenticated() -> None:
    """A slot whose checksum was made to hold again tells nothing but that the secret does not fit."""
    data = a_slot()
    wrapped, mac, checksum = 96 + 5, 96 + 5 + 80, 96 + 5 + 80 + 32
    for at in [*range(20, wrapped + 2), mac - 1, mac, checksum - 1]:
        changed = summed(data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :])
        with pytest.raises(AuthenticationError):
            keyslot.authenticate(changed, MASTER, name=NAME, repository_id=ID)
        if at < mac:
            assert opened(changed) is None
        else:
            with pytest.raises(AuthenticationError):
                opened(changed)


def test_slot_of_another_maker() -> None:
    """AES-GCM does not commit to its key: a ciphertext can be made to open with two. The MAC by the master
    key does not hold then."""
    with pytest.raises(AuthenticationError, match="was not made by a holder"):
        opened(a_slot(mac_master=b"x" * 32))
    with pytest.raises(AuthenticationError, match="was not made by a holder"):
        opened(a_slot(master=b"x" * 32))


def test_damaged_and_made_up_slots_do_not_lock_out(repository: Repository, tmp_path: Path) -> None:
    root = tmp_path / "repository"
    (genuine,) = (root / "keys").iterdir()
    clear = genuine.read_bytes()
    (root / "keys" / "0000000000000000").write_bytes(a_slot())
    (root / "keys" / "0000000000000001").write_bytes(clear)
    (root / "keys" / "0000000000000002").write_bytes(b"")
    (root / "keys" / "0000000000000003").write_bytes(clear[:-1])
    store = LocalStore(root)
    unlocked = keyring.unlock(store, repository.id, conftest.SECRET)
    assert unlocked.slot_id == genuine.name

    def sound(slots: list[keyring.SlotInfo]) -> list[str]:
        return [slot.id for slot in slots if slot.error is None]

    assert sound(keyring.list_slots(store)) == [
        "0000000000000000",
        *sorted(("0000000000000001", genuine.name)),
    ]
    assert sound(keyring.list_slots(store, repository.keys)) == [genuine.name]
    with pytest.raises(UsageError, match="is the last key slot"):
        keyring.remove_slot(store, genuine.name, repository.keys)
    keyring.remove_slot(store, "0000000000000000", repository.keys)


def test_slots_that_cannot_be(repository: Repository) -> None:
    for label in ("a" * 256, "\x1b[0m", "\ud800"):
        with pytest.raises(UsageError, match="label"):
            repository.add_key(KeyFile(bytes(32)), label=label)
    for cost in (9, 21, 64, -1):
        with pytest.raises(UsageError, match="scrypt cost"):
            repository.add_key(Passphrase(b"x"), label="", cost=cost)
    slot = keyslot.new_slot(keyslot.Kdf.KEY_FILE, 0, 0, bytes(32), bytes(12), SEED, "a" * 256)
    with pytest.raises(ValueError, match="label"):
        keyslot.wrap(slot, keyslot.Opened(MASTER, SEED), SECRET, name=NAME, repository_id=ID)
