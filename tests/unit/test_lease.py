"""Leases: renewed while they are held, seen to be dead when they are not, and no commit without one."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from mount_helpers import wait_until

from vmfs.errors import IntegrityError, StoreError, VmfsError
from vmfs.format import sealed
from vmfs.format.keys import Kind, SealedType
from vmfs.format.manifest import Disk, Manifest, Vm
from vmfs.repo import lease as leases
from vmfs.repo import names
from vmfs.repo.lease import Lease, LeaseInfo, LeaseLostError, clear_dead, read_lease
from vmfs.repo.repository import Repository
from vmfs.repo.session import WriteSession
from vmfs.store import LocalStore

MANIFEST = Manifest(
    vm=Vm(name="vm", id="vm"),
    time=datetime(2026, 11, 20, tzinfo=UTC),
    consistency="crash",
    disks=(Disk(id="d", alias="d", size=512, root=None, allocated=0),),
)


def held(repository: Repository) -> list[str]:
    return sorted(name for name, _ in repository.store.list(names.LEASES))


def write(repository: Repository, info: LeaseInfo, name: str = "leases/01ARZ3NDEKTSV4RRFFQ69G5FAV") -> str:
    """A lease that says that, as some other program would."""
    plain = json.dumps(asdict(info)).encode()
    nonce = secrets.token_bytes(12)
    data = sealed.seal(SealedType.LEASE, name, plain, nonce=nonce, keys=repository.keys)
    repository.store.put(name, [data])
    return name


def mine(repository: Repository) -> LeaseInfo:
    """What a lease of this process says."""
    with repository.lease("writer") as lease:
        return read_lease(repository.store, names.lease(lease.id), repository.keys)


def trash_something(repository: Repository, generation: int, packs: list[str]) -> None:
    """What a prune of a later version does."""
    name = f"{names.TRASH}/{generation:016x}"
    plain = json.dumps({"packs": packs}).encode()
    nonce = secrets.token_bytes(12)
    data = sealed.seal(SealedType.TRASH, name, plain, nonce=nonce, keys=repository.keys)
    repository.store.put(name, [data])


def test_a_lease_says_who_and_until_when(repository: Repository) -> None:
    before = repository.store.now()
    with repository.lease("mount") as lease:
        assert held(repository) == [names.lease(lease.id)]
        info = read_lease(repository.store, names.lease(lease.id), repository.keys)
        assert info.purpose == "mount"
        assert info.process.split(":")[0] == str(os.getpid())
        assert before + leases.TERM <= datetime.fromisoformat(info.expires)
        assert info.alive(repository.store.now())
        lease.check()
    assert not held(repository)


def test_renewal(repository: Repository) -> None:
    with Lease(repository.store, repository.keys, "writer", timedelta(seconds=2)) as lease:
        seen = [lease.id]
        began = time.monotonic()
        while len(seen) < 4:
            assert time.monotonic() < began + 20, "it was not renewed"
            lease.check()
            assert 1 <= len(held(repository)) <= 2
            if lease.id != seen[-1]:
                seen.append(lease.id)
        assert time.monotonic() > began + 1.9, "renewed more often than is needed"
        assert seen == sorted(seen)
    assert not held(repository)


def test_what_somebody_removed_is_not_renewed(repository: Repository) -> None:
    with Lease(repository.store, repository.keys, "writer", timedelta(seconds=1.5)) as lease:
        repository.store.delete(names.lease(lease.id))
        time.sleep(1.2)
        assert not held(repository)
        with pytest.raises(LeaseLostError):
            lease.check()


def test_a_lost_lease(repository: Repository) -> None:
    with repository.lease("writer") as lease:
        repository.store.delete(names.lease(lease.id))
        with pytest.raises(LeaseLostError, match="nothing was committed; run it again"):
            lease.check()


def test_a_lease_that_expired(repository: Repository) -> None:
    """Its holder was suspended, or cut off from the store, for longer than its term."""
    lease = Lease(repository.store, repository.keys, "writer", timedelta(seconds=-1))
    try:
        with pytest.raises(LeaseLostError):
            lease.check()
    finally:
        lease.release()


def test_a_damaged_lease_is_a_lost_one(repository: Repository) -> None:
    with repository.lease("writer") as lease:
        path = Path(repository.store.url) / names.lease(lease.id)
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(LeaseLostError):
            lease.check()


@pytest.mark.parametrize(
    "plain", [b"", b"[]", b"{}", b"not json", b'{"purpose": "writer"}', b'{"stranger": 1}', b"\xff"]
)
def test_a_lease_that_makes_no_sense(repository: Repository, plain: bytes) -> None:
    name = names.lease("01ARZ3NDEKTSV4RRFFQ69G5FAV")
    data = sealed.seal(SealedType.LEASE, name, plain, nonce=bytes(12), keys=repository.keys)
    repository.store.put(name, [data])
    with pytest.raises(IntegrityError, match=r"makes no sense|is cut short"):
        read_lease(repository.store, name, repository.keys)
    # Nobody knows whose it is, so nobody removes it; and it is in nobody's way.
    assert clear_dead(repository.store, repository.keys) == [name]
    with repository.write_session() as session:
        session.commit(MANIFEST)


def test_dead_holders(repository: Repository) -> None:
    now = repository.store.now()
    info = mine(repository)
    hour = timedelta(hours=1)
    living = {
        "other host": replace(info, host="elsewhere", process="1:1"),
        "other boot": replace(info, boot="0" * 36, process="1:1"),
        "this process": info,
    }
    dead = {
        "expired": replace(info, expires=(now - hour).isoformat()),
        "expired elsewhere": replace(info, host="elsewhere", expires=(now - hour).isoformat()),
        "no such process": replace(info, process="4194305:77"),
        "its pid is another's now": replace(info, process=f"{os.getpid()}:1"),
    }
    names_of = {
        what: write(repository, info, names.lease(f"{number:026d}"))
        for number, (what, info) in enumerate((living | dead).items())
    }
    staying = clear_dead(repository.store, repository.keys)
    assert {what for what, name in names_of.items() if name in staying} == set(living)
    assert held(repository) == sorted(staying)


def test_a_process_that_died(repository: Repository) -> None:
    """A real one: alive while it runs, dead the moment it is no more."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    info = replace(mine(repository), process=leases._process(process.pid))
    assert info.alive(repository.store.now())
    process.kill()
    process.communicate()
    assert not info.alive(repository.store.now())


def test_a_zombie_is_no_holder(repository: Repository) -> None:
    """Killed, and not yet waited for by its parent: its entry in /proc is still there."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    info = replace(mine(repository), process=leases._process(process.pid))
    process.kill()
    wait_until(lambda: Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z")
    assert not info.alive(repository.store.now())
    process.communicate()


def test_the_lease_object_is_sealed_to_its_name(repository: Repository) -> None:
    with repository.lease("writer") as lease:
        data = repository.store.get(names.lease(lease.id))
        other = names.lease("0" * 26)
        repository.store.put(other, [data])
        with pytest.raises(IntegrityError):
            read_lease(repository.store, other, repository.keys)


def test_no_commit_without_a_lease(repository: Repository) -> None:
    with repository.write_session() as session:
        for name in held(repository):
            repository.store.delete(name)
        with pytest.raises(LeaseLostError):
            session.commit(MANIFEST)
    assert not repository.point_ids()


def test_no_commit_after_a_prune(repository: Repository) -> None:
    with repository.write_session() as session:
        trash_something(repository, 1, [])
        with pytest.raises(VmfsError, match="was pruned meanwhile, so nothing was committed; run it again"):
            session.commit(MANIFEST)
    assert not repository.point_ids()
    assert not held(repository)
    with repository.write_session() as session:
        session.commit(MANIFEST)
    assert len(repository.point_ids()) == 1


def test_condemned_packs_are_not_relied_upon(repository: Repository) -> None:
    chunk = b"x" * repository.chunk_size
    with repository.write_session() as session:
        stored = session.store_blob(Kind.DATA, chunk)
        assert stored.new
        session.commit(MANIFEST)
    location = repository.index.find(stored.id)
    assert location
    with repository.write_session() as session:
        assert not session.store_blob(Kind.DATA, chunk).new
    trash_something(repository, 1, [location.pack.hex()])
    with repository.write_session() as session:
        assert session.store_blob(Kind.DATA, chunk).new
        assert not session.store_blob(Kind.DATA, chunk).new
        session.commit(MANIFEST)
    packs = {name for name, _ in repository.store.list(names.PACKS)}
    assert len(packs) == 2


def test_the_highest_generation_counts(repository: Repository) -> None:
    for generation in (1, 10, 9):
        trash_something(repository, generation, ["ab" * 32])
    with repository.write_session() as session:
        # One that is lower was there all the time, for all that anybody can tell.
        trash_something(repository, 5, [])
        session.commit(MANIFEST)
    with repository.write_session() as session:
        trash_something(repository, 11, [])
        with pytest.raises(VmfsError, match="was pruned meanwhile"):
            session.commit(MANIFEST)


@pytest.mark.parametrize("name", ["nothex", "0001-old"])
def test_trash_that_is_none(repository: Repository, name: str) -> None:
    repository.store.put(f"{names.TRASH}/{name}", [b"x"])
    with pytest.raises(IntegrityError, match=f"trash/{name}"):
        repository.write_session()
    assert not held(repository)


def test_damaged_trash_stops_writers(repository: Repository) -> None:
    """What is condemned cannot be known, so nothing may be relied upon."""
    trash_something(repository, 1, [])
    path = next((Path(repository.store.url) / names.TRASH).iterdir())
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match=f"trash/{path.name}"):
        repository.write_session()
    assert not held(repository)


def test_leases_that_tell_a_session_to_look_round(repository: Repository) -> None:
    """Any but those that this repository, opened once, holds itself: to look through all packs takes long."""
    assert isinstance(repository.store, LocalStore)
    folder = repository.store.root / names.PACKS
    left = folder / ".tmp-0123456789abcdef"
    folder.mkdir(exist_ok=True)
    left.touch()
    with repository.lease("writer"), repository.write_session():
        assert left.exists()
    write(repository, mine(repository))
    with repository.lease("writer"), repository.write_session():
        assert not left.exists()


def test_a_session_that_ends_badly_leaves_no_lease(repository: Repository) -> None:
    def fail(session: WriteSession) -> None:
        session.store_blob(Kind.DATA, b"x" * repository.chunk_size)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), repository.write_session() as session:
        fail(session)
    assert not held(repository)
    assert not repository.point_ids()


def test_a_lease_that_cannot_be_removed_is_no_error(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It expires; the work is done."""

    def refuse(_: str) -> None:
        raise StoreError("no")

    with repository.write_session() as session:
        session.commit(MANIFEST)
        monkeypatch.setattr(repository.store, "delete", refuse)
    assert len(repository.point_ids()) == 1
    assert len(held(repository)) == 1
