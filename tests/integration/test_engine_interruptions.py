"""A backup that is interrupted, at any moment and in any way, leaves nothing in the engine; one that is
killed leaves what the next run ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from engine_helpers import REPOSITORY, Guest, connected, small_guest
from lab_helpers import DEFAULT, LEGACY, Lab, needs_lab
from ovirtsdk4 import types

from ingest.engine import backups, cleanup, snapshots
from ingest.engine.cleanup import clean_up_backups, clean_up_disks
from ingest.engine.made import adopt_disks
from ingest.engine.marks import make_mark
from ingest.engine.session import Engine
from ingest.engine.transfers import download
from ingest.engine.vms import get_disk
from vmfs.cli.entry import Terminated

pytestmark = needs_lab
pytest_plugins = ["engine_fixtures"]

CLUSTERS = pytest.mark.parametrize("cluster", [DEFAULT, LEGACY], ids=["hybrid", "live"])
RUN = "01JD5Z8Q8Y0000000000000000"


def backed_up(guest: Guest) -> None:
    """A backup that is read and compared."""
    with guest.backup() as backup:
        assert guest.read(backup) == guest.record(backup)


class Blow(BaseException):
    """An interruption that nobody knows of."""


@CLUSTERS
@pytest.mark.parametrize("error", [KeyboardInterrupt, Terminated(15), Blow, ZeroDivisionError("ours")])
def test_an_error_in_the_middle_leaves_nothing(
    lab: Lab, engine: Engine, cluster: str, error: BaseException | type[BaseException]
) -> None:
    guest = small_guest(lab, engine, cluster=cluster)
    expected = error if isinstance(error, type) else type(error)
    with (
        pytest.raises(expected),
        guest.backup() as backup,
        download(engine, disk_id=guest.disks[0], backup_id=backup.id),
    ):
        raise error
    assert lab.leftovers() == []


@CLUSTERS
@pytest.mark.parametrize(
    "moment", ["backup-requested", "backup-starting", "backup-ready", "backup-finalizing"]
)
def test_an_interruption_at_any_moment_leaves_nothing(
    lab: Lab, engine: Engine, cluster: str, moment: str
) -> None:
    guest = small_guest(lab, engine, cluster=cluster)
    interrupt_at(lab, moment)
    with pytest.raises(KeyboardInterrupt):
        backed_up(guest)
    assert lab.leftovers() == []
    backed_up(guest)


@pytest.mark.parametrize("path", ["/backups$", "/imagetransfers$"])
def test_an_interruption_while_an_answer_is_awaited(
    lab: Lab, engine: Engine, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was asked for is made all the same, later than we look for it the first time."""
    guest = small_guest(lab, engine)
    served = lab.api.handle

    def late(request: Any) -> Any:
        if request.method == "POST" and request.path.endswith(path.rstrip("$")):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)
        return served(request)

    monkeypatch.setattr(lab.server._server, "handler", late)
    with pytest.raises(KeyboardInterrupt):
        backed_up(guest)
    assert lab.leftovers() == []


def interrupt_at(lab: Lab, moment: str) -> None:
    """Ctrl-C, when the lab comes to this moment."""
    lab.faults.actions["snapshot-taken"] = lambda facts: os.kill(os.getpid(), signal.SIGINT)
    lab.faults.break_("snapshot-taken", at=moment)


def test_an_error_is_not_hidden_by_an_engine_that_is_down(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    with connected(lab, patience=0.3) as engine:
        guest = small_guest(lab, engine)
        own = "12345678-1234-1234-1234-123456789abc"

        def fail() -> None:
            with guest.backup(backup_id=own):
                lab.server.stop()
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        assert f"backup {own} is left to the next run to end" in caplog.text
        lab.server.start()
        backups.finish_backup(engine, guest.vm, own)


# Killed.

KILLED = """
import json, sys, time
from ingest.engine.backups import running_backup
from ingest.engine.session import Engine
from ingest.engine.settings import EngineSettings
from ingest.engine.transfers import download
from ingest.engine.vms import get_vm

told = json.loads(sys.argv[1])
with Engine.connect(EngineSettings(**told["settings"])) as engine:
    vm = get_vm(engine, told["vm"])
    with running_backup(engine, vm, told["disks"], description=told["mark"]) as backup:
        with download(engine, disk_id=told["disks"][0], backup_id=backup.id):
            print("reading", flush=True)
            time.sleep(1000)
"""


@contextmanager
def killed_backup(guest: Guest) -> Iterator[None]:
    """A process that is killed in the middle of a backup, when the block begins."""
    settings = guest.engine.settings
    told = {
        "settings": {
            name: getattr(settings, name) for name in ("name", "url", "username", "password", "ca_file")
        },
        "vm": guest.made.id,
        "disks": guest.disks,
        "mark": str(make_mark(RUN, REPOSITORY)),
    }
    words = [sys.executable, "-c", KILLED, json.dumps(told)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"reading\n"
        process.kill()
    yield


def clean(
    guest: Guest, *, repository: str = "deadbeef", alive: Callable[[str], bool] = lambda _: False
) -> list[str]:
    return clean_up_backups(guest.engine, guest.vm, repository=repository, alive=alive)


@CLUSTERS
def test_what_a_killed_run_has_left_is_ended(
    lab: Lab, engine: Engine, cluster: str, caplog: pytest.LogCaptureFixture
) -> None:
    guest = small_guest(lab, engine, cluster=cluster)
    with killed_backup(guest):
        assert lab._leftovers()
        done = clean(guest)
    assert [text.split(" ")[0] for text in done] == ["ended", "VM"]
    assert all(text in caplog.text for text in done)
    assert lab.leftovers() == []
    assert clean(guest) == []
    backed_up(guest)


def test_what_others_do_is_left_alone(lab: Lab, engine: Engine) -> None:
    guest = small_guest(lab, engine)
    with guest.backup() as backup:
        assert clean(guest, repository="feedbeef") == []
        assert clean(guest, alive=lambda run: run == RUN) == []
        assert guest.read(backup) == guest.record(backup)


def test_a_snapshot_that_a_killed_run_has_left_is_removed(lab: Lab, engine: Engine) -> None:
    """The engine has ended the backup by then, and does not say any more whose the snapshot was."""
    guest = small_guest(lab, engine)
    with killed_backup(guest):
        lab.restart_engine(unmonitored=True, downtime=0)
    assert len(snapshots.backup_snapshots(engine, guest.vm)) == 1
    done = clean(guest)
    assert len(done) == 1
    assert "removed snapshot" in done[0]
    assert lab.leftovers() == []
    backed_up(guest)


def test_a_snapshot_of_a_backup_that_goes_on_is_left_alone(lab: Lab, engine: Engine) -> None:
    guest = small_guest(lab, engine)
    with guest.backup(run="another-run"):
        assert clean(guest, alive=lambda run: run == "another-run") == []
        assert len(snapshots.backup_snapshots(engine, guest.vm)) == 1


def test_a_backup_that_ends_while_we_look_was_not_interrupted(
    lab: Lab, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """And its run with it: it was going on when the engine told of it, and is not when we ask for the run."""
    guest = small_guest(lab, engine)
    with ExitStack() as backup:
        backup.enter_context(guest.backup())

        def alive(_: str) -> bool:
            backup.close()
            return False

        assert clean(guest, alive=alive) == []
    assert caplog.text == ""


def test_a_backup_that_begins_while_we_clean_up_keeps_its_snapshot(
    lab: Lab, engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    guest = small_guest(lab, engine.with_patience(1.0))
    finish = cleanup.finish_backup
    with ExitStack() as other, killed_backup(guest):

        def finish_and_let_another_begin(*arguments: Any, **options: Any) -> None:
            finish(*arguments, **options)
            other.enter_context(guest.backup(run="another-run"))

        monkeypatch.setattr(cleanup, "finish_backup", finish_and_let_another_begin)
        clean(guest, alive=lambda run: run == "another-run")
        assert "snapshot" not in caplog.text
        assert len(snapshots.backup_snapshots(engine, guest.vm)) == 1


@pytest.mark.parametrize("how", ["attached", "described"])
def test_a_disk_that_is_finished_while_we_look_stays(lab: Lab, engine: Engine, how: str) -> None:
    """Its restore was at work on it when the engine told of it, and has ended when we ask for the run."""
    guest = small_guest(lab, engine, up=False)
    (disk_id,) = guest.disks
    attachment = lab.core.vm(guest.vm.id).attachments[disk_id]
    disk = lab.core.disk(disk_id)
    disk.description = str(make_mark(RUN, REPOSITORY))
    del lab.core.vm(guest.vm.id).attachments[disk_id]

    def alive(_: str) -> bool:
        lab.core.vm(guest.vm.id).attachments[disk_id] = attachment
        if how == "described":
            disk.description = "the root disk"
        return False

    assert clean_up_disks(engine, repository="deadbeef", alive=alive) == []
    assert disk_id in lab.core.disks


def test_a_disk_that_gets_its_own_description_while_we_look_keeps_it(lab: Lab, engine: Engine) -> None:
    guest = small_guest(lab, engine, up=False)
    disk = lab.core.disk(guest.disks[0])
    disk.description = str(make_mark(RUN, REPOSITORY))

    def alive(_: str) -> bool:
        disk.description = "the root disk"
        return False

    adopt_disks(engine, repository="deadbeef", alive=alive)
    assert disk.description == "the root disk"


def test_disks_that_a_killed_restore_has_left_are_removed(lab: Lab, engine: Engine) -> None:
    disks = engine.services().disks_service()
    ids = {}
    for name, description in (
        ("left", str(make_mark(RUN, REPOSITORY))),
        ("alive", str(make_mark("alive-run", REPOSITORY))),
        ("foreign", str(make_mark(RUN, bytes(16)))),
        ("other", "vmfs is written here too"),
    ):
        made = disks.add(
            types.Disk(
                name=name,
                description=description,
                format=types.DiskFormat.COW,
                provisioned_size=1 << 20,
                storage_domains=[types.StorageDomain(id=lab.domain().id)],
            )
        )
        ids[name] = made.id
        engine.wait(name, lambda: get_disk(engine, made.id).status, lambda now: now == "ok", limit=60)  # noqa: B023
    upload = (
        engine.services()
        .image_transfers_service()
        .add(
            types.ImageTransfer(
                direction=types.ImageTransferDirection.UPLOAD,
                format=types.DiskFormat.RAW,
                disk=types.Disk(id=ids["left"]),
            )
        )
    )
    assert upload.id
    done = clean_up_disks(engine, repository="deadbeef", alive=lambda run: run == "alive-run")
    assert done
    assert {name for name, disk_id in ids.items() if disk_id in lab.core.disks} == {
        "alive",
        "foreign",
        "other",
    }
    assert clean_up_disks(engine, repository="deadbeef", alive=lambda run: run == "alive-run") == []
