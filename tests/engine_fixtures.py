"""A lab for the tests of a module, and a session with its engine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from engine_helpers import check_clean, connected
from lab_helpers import Lab, running_lab

from ingest.engine.session import Engine


@pytest.fixture(scope="module")
def shared_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with running_lab(tmp_path_factory.mktemp("lab")) as lab:
        yield lab


@pytest.fixture
def lab(shared_lab: Lab) -> Iterator[Lab]:
    """With no fault of another test's, and nothing left by this one's."""
    yield shared_lab
    shared_lab.faults.mend()
    check_clean(shared_lab)


@pytest.fixture
def engine(lab: Lab) -> Iterator[Engine]:
    with connected(lab) as engine:
        yield engine
