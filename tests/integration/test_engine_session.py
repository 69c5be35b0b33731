"""A session with the engine of the lab: logging in, and outliving what passes."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from engine_helpers import connected, meanwhile, settings
from lab.pki import Authority
from lab_helpers import Lab
from ovirtsdk4 import types
from qemu_helpers import needs_qemu

from ingest.engine.errors import (
    ConflictError,
    EngineError,
    LoginError,
    NotFoundError,
    RefusedError,
    TrustError,
    UnavailableError,
    WaitError,
)
from ingest.engine.session import Engine
from vmfs.errors import VmfsError

pytestmark = needs_qemu


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(tmp_path_factory.mktemp("lab"), hosts=1) as lab:
        yield lab


@pytest.fixture
def lab(shared: Lab) -> Iterator[Lab]:
    """With no fault of another test's."""
    yield shared
    shared.faults.mend()
    assert shared.problems == []


def vms(engine: Engine) -> int:
    return len(engine.ask("VMs", lambda: engine.services().vms_service().list(), repeat=True))


def add_disk(engine: Engine, lab: Lab, disk_id: str) -> object:
    """A POST."""
    disks = engine.services().disks_service()
    return disks.add(
        types.Disk(
            id=disk_id,
            name="new",
            format=types.DiskFormat.COW,
            provisioned_size=1 << 20,
            storage_domains=[types.StorageDomain(id=lab.domain().id)],
        )
    )


def test_logging_in_and_out(lab: Lab) -> None:
    before = lab.sso.sessions
    with connected(lab) as engine:
        assert engine.id == lab.core.id
        assert engine.product == "oVirt Engine 4.5.6-1.el9"
        assert lab.sso.sessions == before + 1
    assert lab.sso.sessions == before


def test_logging_out_of_an_engine_that_is_gone(lab: Lab) -> None:
    with connected(lab) as engine:
        lab.server.stop()
    lab.server.start()
    assert engine.id


@pytest.mark.parametrize("other", [{"password": "wrong"}, {"username": "nobody@internal"}])
def test_wrong_credentials(lab: Lab, other: dict[str, str]) -> None:
    begun = time.monotonic()
    with pytest.raises(LoginError) as caught:
        Engine.connect(settings(lab, **other), patience=60)
    assert time.monotonic() - begun < 30
    assert f"login as {other.get('username', lab.username)} failed: Cannot authenticate user" in str(
        caught.value
    )
    assert "check user name" in str(caught.value)
    assert "wrong" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_certificate_of_another_authority(lab: Lab, tmp_path: Path) -> None:
    foreign = Authority.create(tmp_path / "foreign")
    with pytest.raises(TrustError, match=r"is not of the CA in .*engine trust https://127\.0\.0\.1:\d+"):
        Engine.connect(settings(lab, ca_file=str(foreign.ca_file)))
    with pytest.raises(TrustError, match=r"its certificate is not trusted .*fetch the engine's CA"):
        Engine.connect(settings(lab, ca_file=None))
    with Engine.connect(settings(lab, ca_file=None, insecure=True)) as engine:
        assert engine.id == lab.core.id


def test_a_ca_file_that_is_none(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    for name, told in (("ca.pem", "holds no certificate in PEM form"), ("none.pem", "No such file")):
        with pytest.raises(TrustError, match=told):
            Engine.connect(settings(lab, ca_file=str(tmp_path / name)))


@pytest.fixture
def _own_certificate_again(lab: Lab) -> Iterator[None]:
    yield
    lab.server.stop()
    lab.server.use(lab.certificate)
    lab.server.start()


@pytest.mark.usefixtures("_own_certificate_again")
def test_an_expired_certificate(lab: Lab) -> None:
    lab.faults.break_("certificate-expired")
    with pytest.raises(TrustError, match=r"certificate has expired; renew the engine's certificate"):
        Engine.connect(settings(lab))


def test_what_is_no_engine(lab: Lab) -> None:
    """The address of the imageio daemon."""
    port = lab.hosts[0].imageio.port
    with pytest.raises(UnavailableError, match="does not serve its login") as caught:
        Engine.connect(settings(lab, url=f"https://127.0.0.1:{port}/ovirt-engine/api"), patience=0.2)
    assert "\n" not in str(caught.value)


def test_a_name_that_does_not_exist(lab: Lab) -> None:
    url = "https://no-such-host.invalid/ovirt-engine/api"
    with pytest.raises(UnavailableError, match=r"cannot be reached: .*check the name"):
        Engine.connect(settings(lab, url=url), patience=0)


def test_an_engine_that_is_down_is_waited_for(lab: Lab) -> None:
    lab.server.stop()

    def start() -> None:
        time.sleep(0.5)
        lab.server.start()

    with meanwhile(start), connected(lab) as engine:
        assert engine.id == lab.core.id


def test_an_engine_that_stays_down(lab: Lab) -> None:
    with connected(lab, patience=0.3) as engine:
        lab.server.stop()
        try:
            with pytest.raises(UnavailableError, match=r"VMs: engine lab at .* cannot be reached") as caught:
                vms(engine)
        finally:
            lab.server.start()
        assert not caught.value.sent
        assert vms(engine) == 0


def test_an_engine_that_restarts_in_the_middle(lab: Lab) -> None:
    with connected(lab) as engine, meanwhile(lambda: lab.restart_engine(downtime=0.5)):
        for _ in range(50):
            assert vms(engine) == 0


@pytest.mark.parametrize("fault", ["unavailable", "connection-dropped", "answer-lost"])
def test_a_request_that_may_be_repeated_is(lab: Lab, fault: str, caplog: pytest.LogCaptureFixture) -> None:
    with connected(lab) as engine:
        lab.faults.break_(fault, times=3, path="/vms")
        assert vms(engine) == 0
    assert lab.faults.used[fault] >= 3
    assert "trying again for" in caplog.text


def test_a_request_that_hangs_is_repeated(lab: Lab) -> None:
    with connected(lab, timeout=0.5) as engine:
        lab.faults.break_("connection-hangs", path="/vms", seconds=10)
        begun = time.monotonic()
        assert vms(engine) == 0
    assert time.monotonic() - begun < 9


def test_a_request_that_hangs_holds_up_no_other_thread(lab: Lab) -> None:
    with connected(lab) as engine:
        lab.faults.break_("connection-hangs", path="/vms", seconds=5)
        done: list[float] = []

        def hang() -> None:
            vms(engine)
            done.append(time.monotonic())

        with meanwhile(hang):
            while lab.faults.armed:
                time.sleep(0.01)
            engine.ask("clusters", lambda: engine.services().clusters_service().list(), repeat=True)
            assert not done


def test_an_interruption_does_not_wait_for_an_answer(lab: Lab) -> None:
    with connected(lab) as engine:
        lab.faults.break_("connection-hangs", path="/vms", seconds=20)

        def interrupt() -> None:
            while lab.faults.armed:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)

        begun = time.monotonic()
        with meanwhile(interrupt), pytest.raises(KeyboardInterrupt):
            vms(engine)
        assert time.monotonic() - begun < 15


def test_what_must_not_be_repeated_is_not(lab: Lab) -> None:
    with connected(lab) as engine:
        lab.faults.break_("answer-lost", method="POST", path="/disks")
        disk_id = "11111111-2222-3333-4444-555555555551"
        with pytest.raises(UnavailableError) as caught:
            engine.ask("disk", lambda: add_disk(engine, lab, disk_id), repeat=False)
        assert caught.value.sent
        assert engine.services().disks_service().disk_service(disk_id).get().id == disk_id


@pytest.mark.parametrize("fault", ["answer-lost", "connection-dropped", "unavailable"])
def test_what_was_made_though_the_answer_was_lost_is_found(lab: Lab, fault: str) -> None:
    with connected(lab) as engine:
        number = ["answer-lost", "connection-dropped", "unavailable"].index(fault)
        disk_id = f"11111111-2222-3333-4444-66666666666{number}"
        disk = engine.services().disks_service().disk_service(disk_id)

        def find() -> object | None:
            try:
                return engine.ask("disk", lambda: disk.get(), repeat=True)
            except NotFoundError:
                return None

        lab.faults.break_(fault, method="POST", path="/disks")
        before = len(lab.api.log)
        made = engine.create("disk", lambda: add_disk(engine, lab, disk_id), find)
        assert made.id == disk_id  # type: ignore[attr-defined]
        sent = [line for line in lab.api.log[before:] if line.startswith("POST /ovirt-engine/api/disks")]
        assert len(sent) == (1 if fault == "answer-lost" else 2)


def test_what_was_sent_twice_and_is_refused_is_looked_for(lab: Lab) -> None:
    """The first request is carried out only after we have looked for it in vain."""
    with connected(lab) as engine:
        disk_id = "11111111-2222-3333-4444-777777777777"
        looks = iter([None, "found"])
        lab.faults.break_("answer-lost", method="POST", path="/disks")
        found = engine.create("disk", lambda: add_disk(engine, lab, disk_id), lambda: next(looks))
        assert found == "found"


def test_a_conflict_that_passes_is_waited_for(lab: Lab) -> None:
    with connected(lab) as engine:
        lab.faults.break_("conflict-related-operation", method="POST", path="/disks", times=3)
        disk_id = "11111111-2222-3333-4444-888888888888"
        engine.ask("disk", lambda: add_disk(engine, lab, disk_id), repeat=False)
        assert lab.faults.used["conflict-related-operation"] == 3
        lab.faults.break_("conflict-related-operation", method="POST", path="/disks")
        with pytest.raises(ConflictError, match="Related operation is currently in progress"):
            engine.ask("disk", lambda: add_disk(engine, lab, disk_id), repeat=False, wait_for_conflicts=False)


def test_a_conflict_that_does_not_pass_in_time(lab: Lab) -> None:
    with connected(lab, patience=0.3) as engine:
        lab.faults.break_("conflict-related-operation", method="POST", path="/disks", times=0)
        with pytest.raises(ConflictError) as caught:
            engine.ask("disk", lambda: add_disk(engine, lab, "x"), repeat=False)
        assert str(caught.value).startswith("disk: Cannot ")


def test_answers_that_are_final(lab: Lab) -> None:
    with connected(lab) as engine:
        disks = engine.services().disks_service()
        transfers = engine.services().image_transfers_service()
        nothing = types.Disk(id="no-such")
        with pytest.raises(NotFoundError) as missing:
            engine.ask("disk", lambda: disks.disk_service("no-such").get(), repeat=True)
        assert missing.value.code == 404
        with pytest.raises(RefusedError) as refused:
            engine.ask("transfer", lambda: transfers.add(types.ImageTransfer(disk=nothing)), repeat=True)
        assert refused.value.code == 400
        for error in (missing.value, refused.value):
            assert isinstance(error, EngineError)
            assert "\n" not in str(error)


def test_a_session_that_has_ended_is_begun_again(lab: Lab) -> None:
    with connected(lab) as engine:
        lab.faults.break_("sso-expired")
        assert vms(engine) == 0


def test_threads_begin_a_new_session_together(lab: Lab) -> None:
    with connected(lab) as engine:
        lab.faults.break_("sso-expired")
        before = len(lab.api.log)
        ready = threading.Barrier(8)

        def use(_: int) -> int:
            ready.wait()
            return vms(engine)

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(use, range(8))) == [0] * 8
        logins = [line for line in lab.api.log[before:] if "sso/oauth/token" in line]
        assert len(logins) == 1


def test_a_token_cannot_begin_a_new_session(lab: Lab) -> None:
    token = lab.sso.login({"username": lab.username, "password": lab.password})
    with Engine.connect(settings(lab, username=None, password=None, token=token)) as engine:
        assert vms(engine) == 0
        lab.faults.break_("sso-expired")
        with pytest.raises(LoginError, match="the session of this token has ended"):
            vms(engine)


def test_a_token_is_not_ours_to_end(lab: Lab) -> None:
    token = lab.sso.login({"username": lab.username, "password": lab.password})
    Engine.connect(settings(lab, username=None, password=None, token=token)).close()
    assert lab.sso.accepts(token)


def test_a_password_that_was_changed(lab: Lab) -> None:
    before = lab.password
    with connected(lab) as engine:
        try:
            lab.faults.break_("password-changed")
            with pytest.raises(LoginError, match="check user name"):
                vms(engine)
        finally:
            lab.sso.password = before


def test_waiting_has_a_limit(lab: Lab) -> None:
    with connected(lab) as engine:
        counts = iter(range(100))
        assert engine.wait("count", lambda: next(counts), lambda count: count == 5, limit=30) == 5
        with pytest.raises(WaitError, match="count: not done in 0 s"):
            engine.wait("count", lambda: 0, bool, limit=0.2)


def test_errors_of_our_own_pass_through(lab: Lab) -> None:
    def fail() -> None:
        raise KeyError("a mistake of ours")

    with connected(lab) as engine, pytest.raises(KeyError):
        engine.ask("mistake", fail, repeat=True)


def test_patience_is_not_used_twice(lab: Lab) -> None:
    """A call within a call."""
    with connected(lab, patience=1.0) as engine:
        lab.server.stop()
        begun = time.monotonic()
        try:
            with pytest.raises(VmfsError):
                engine.ask("outer", lambda: vms(engine), repeat=True)
        finally:
            lab.server.start()
        assert time.monotonic() - begun < 1.9
