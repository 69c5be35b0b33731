"""Key slots of a repository: several ways in, none lost by accident, and damage told from a wrong secret."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import COST, SECRET
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mount_helpers import damage

from vmfs.errors import IntegrityError, UsageError
from vmfs.repo import keyring, names
from vmfs.repo.keyring import SecretError
from vmfs.repo.repository import Repository
from vmfs.repo.secret import KeyFile, Passphrase, Secret
from vmfs.store import LocalStore

OTHER = Passphrase("zweiter Schlüssel".encode())
KEY_FILE = KeyFile(bytes(range(64)))


def opens(repository: Repository, secret: Secret) -> str:
    """The id of the slot that it opens with."""
    return keyring.unlock(repository.store, repository.id, secret).slot_id


def damage_slot(repository: Repository, slot_id: str) -> None:
    damage(repository, names.key_slot(slot_id), at=-1)


def test_several_slots_open_one_repository(repository: Repository, tmp_path: Path) -> None:
    second = repository.add_key(OTHER, label="second", cost=COST)
    third = repository.add_key(KEY_FILE, label="file")
    assert opens(repository, SECRET) == repository.slot_id
    assert opens(repository, OTHER) == second
    assert opens(repository, KEY_FILE) == third
    slots = keyring.list_slots(repository.store, repository.keys)
    assert [(slot.id, slot.kdf, slot.label) for slot in slots] == [
        (repository.slot_id, "passphrase", "first"),
        (second, "passphrase", "second"),
        (third, "key-file", "file"),
    ]
    assert len({slot.public for slot in slots}) == 3
    for secret in (SECRET, OTHER, KEY_FILE):
        store = LocalStore(Path(repository.store.url))
        with Repository.open(store, secret, cache_root=tmp_path / "other") as opened:
            assert opened.keys.master == repository.keys.master


def test_the_same_secret_twice(repository: Repository) -> None:
    """Two slots, either of which may go."""
    twin = repository.add_key(SECRET, label="twin", cost=COST)
    keyring.remove_slot(repository.store, repository.slot_id, repository.keys)
    assert opens(repository, SECRET) == twin


@pytest.mark.parametrize("wrong", [Passphrase(b"correct horse "), Passphrase(b"Correct horse"), OTHER])
def test_wrong_passphrase(repository: Repository, wrong: Passphrase) -> None:
    with pytest.raises(SecretError, match=r"wrong passphrase for .*; check it") as caught:
        opens(repository, wrong)
    assert caught.value.exit_status == 1
    assert repr(wrong.secret)[2:-1] not in str(caught.value)


def test_wrong_kind_of_secret(repository: Repository) -> None:
    with pytest.raises(SecretError, match="has no key slot for a key file; give the other kind of key"):
        opens(repository, KEY_FILE)
    repository.add_key(KEY_FILE, label="file")
    with pytest.raises(SecretError, match="wrong key file"):
        opens(repository, KeyFile(bytes(64)))


def test_damage_is_told_from_a_wrong_passphrase(repository: Repository) -> None:
    damage_slot(repository, repository.slot_id)
    for secret in (SECRET, OTHER):
        with pytest.raises(IntegrityError, match=f"keys/{repository.slot_id}: .*restore it from a copy"):
            opens(repository, secret)


def test_a_damaged_slot_is_in_nobody_elses_way(repository: Repository) -> None:
    second = repository.add_key(OTHER, label="second", cost=COST)
    damage_slot(repository, repository.slot_id)
    assert opens(repository, OTHER) == second
    # It may be the slot of that passphrase, so this is not said to be a wrong one.
    with pytest.raises(IntegrityError):
        opens(repository, SECRET)
    slots = {slot.id: slot for slot in keyring.list_slots(repository.store)}
    assert slots[second].error is None
    assert "checksum" in str(slots[repository.slot_id].error)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 220), bit=st.integers(0, 7), cut=st.booleans())
def test_any_damage_to_a_slot(repository: Repository, at: int, bit: int, cut: bool) -> None:
    path = Path(repository.store.url) / names.key_slot(repository.slot_id)
    whole = path.read_bytes()
    at %= len(whole)
    changed = whole[:at] if cut else whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :]
    path.write_bytes(changed)
    try:
        with pytest.raises(IntegrityError):
            opens(repository, SECRET)
    finally:
        path.write_bytes(whole)
    assert opens(repository, SECRET) == repository.slot_id


def test_no_slot_at_all(repository: Repository) -> None:
    repository.store.delete(names.key_slot(repository.slot_id))
    with pytest.raises(IntegrityError, match="has lost its key slots; restore keys/ from a copy"):
        opens(repository, SECRET)


def test_a_slot_of_another_repository(repository: Repository, tmp_path: Path) -> None:
    """It opens nothing here, whatever it is called."""
    with Repository.create(
        LocalStore(tmp_path / "other"), OTHER, cost=COST, cache_root=tmp_path / "cache"
    ) as other:
        data = other.store.get(names.key_slot(other.slot_id))
        for name in (other.slot_id, "0" * 16):
            repository.store.put(names.key_slot(name), [data])
    with pytest.raises(SecretError):
        opens(repository, OTHER)
    assert opens(repository, SECRET) == repository.slot_id
    errors = [slot.error for slot in keyring.list_slots(repository.store, repository.keys)]
    assert sum(error is None for error in errors) == 1


def test_a_slot_under_another_name(repository: Repository) -> None:
    data = repository.store.get(names.key_slot(repository.slot_id))
    repository.store.delete(names.key_slot(repository.slot_id))
    repository.store.put(names.key_slot("0" * 16), [data])
    with pytest.raises(SecretError):
        opens(repository, SECRET)


def test_remove(repository: Repository) -> None:
    second = repository.add_key(OTHER, label="second", cost=COST)
    keyring.remove_slot(repository.store, repository.slot_id, repository.keys)
    with pytest.raises(SecretError):
        opens(repository, SECRET)
    assert opens(repository, OTHER) == second


@pytest.mark.parametrize("named", ["", "nothing", "0123456789abcdef0"])
def test_remove_what_is_not_there(repository: Repository, named: str) -> None:
    with pytest.raises(UsageError, match=f"names no key slots; there are: {repository.slot_id}"):
        keyring.remove_slot(repository.store, named, repository.keys)
    assert opens(repository, SECRET)


def test_remove_by_a_prefix(repository: Repository) -> None:
    ids = [repository.slot_id, *(repository.add_key(KEY_FILE, label=str(n)) for n in range(20))]
    by_first: dict[str, list[str]] = {}
    for slot_id in ids:
        by_first.setdefault(slot_id[0], []).append(slot_id)
    ambiguous = next(first for first, slots in by_first.items() if len(slots) > 1)
    with pytest.raises(UsageError, match=f"'{ambiguous}' names {len(by_first[ambiguous])} key slots"):
        keyring.remove_slot(repository.store, ambiguous, repository.keys)
    keyring.remove_slot(repository.store, ids[1][:12], repository.keys)
    assert ids[1] not in {slot.id for slot in keyring.list_slots(repository.store)}


def test_the_last_slot_stays(repository: Repository) -> None:
    with pytest.raises(UsageError, match="is the last key slot; add another before you remove it"):
        keyring.remove_slot(repository.store, repository.slot_id, repository.keys)
    assert opens(repository, SECRET)


def test_the_last_slot_that_works_stays(repository: Repository) -> None:
    broken = repository.add_key(OTHER, label="second", cost=COST)
    damage_slot(repository, broken)
    with pytest.raises(UsageError, match="last key slot"):
        keyring.remove_slot(repository.store, repository.slot_id, repository.keys)
    keyring.remove_slot(repository.store, broken, repository.keys)
    assert opens(repository, SECRET)


def test_each_slot_signs_with_a_key_of_its_own(repository: Repository) -> None:
    second = repository.add_key(OTHER, label="second", cost=COST)
    public = {slot.id: slot.public for slot in keyring.list_slots(repository.store)}
    assert public[second] != public[repository.slot_id]


@pytest.mark.parametrize("secret", [b"", b"x" * 31])
def test_secrets_that_are_none(secret: bytes) -> None:
    with pytest.raises(UsageError, match="key file is too short"):
        KeyFile(secret)
    if not secret:
        with pytest.raises(UsageError, match="passphrase is empty"):
            Passphrase(secret)


def test_secrets_do_not_show() -> None:
    assert "horse" not in repr(SECRET)
    assert "horse" not in f"{SECRET}"


@settings(max_examples=25, deadline=None)
@given(secret=st.binary(min_size=1, max_size=100))
def test_any_passphrase(tmp_path_factory: pytest.TempPathFactory, secret: bytes) -> None:
    place = tmp_path_factory.mktemp("any")
    with Repository.create(
        LocalStore(place / "store"), Passphrase(secret), cost=COST, cache_root=place / "cache"
    ) as repository:
        assert opens(repository, Passphrase(secret)) == repository.slot_id
        with pytest.raises(SecretError):
            opens(repository, Passphrase(secret + b"!"))
