"""A session in a repository that has lost a pack says so before it relies on it."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

import pytest

from vmfs.format.keys import Kind
from vmfs.format.manifest import Manifest, Vm
from vmfs.repo import names
from vmfs.repo.repository import Repository


def test_lost_packs_are_warned_of(repository: Repository, caplog: pytest.LogCaptureFixture) -> None:
    with repository.write_session() as session:
        session.store_blob(Kind.DATA, bytes(range(256)) * 256)
        vm = Vm(name="web", id="web")
        session.commit(Manifest(vm=vm, time=datetime.now(UTC), consistency="crash", disks=()))
    ((name, _),) = repository.store.list(names.PACKS)
    with caplog.at_level(logging.WARNING), repository.write_session():
        assert not caplog.records
    repository.store.delete(name)
    with caplog.at_level(logging.WARNING), repository.write_session():
        assert f"missing or cut short: {name}; new restore points will share that damage" in caplog.text
