"""What else befalls the lab's machines: snapshots, kills, resizing, disks that come and go, uploads."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lab_machine_helpers import DISK_SIZE as SIZE
from lab_machine_helpers import (
    MIB,
    BackupExport,
    Backups,
    Daemon,
    Machine,
    MachineError,
    QmpError,
    Site,
    Writer,
    begin,
    create_image,
    fill,
    nothing,
    same_as_shadow,
)
from qemu_helpers import needs_qemu

pytestmark = needs_qemu
pytest_plugins = "lab_machine_fixtures"


@pytest.mark.parametrize("running", [True, False], ids=["up", "down"])
@pytest.mark.parametrize("inner", [False, True], ids=["active", "inner"])
def test_checkpoints_go_through_snapshots(
    machine: Machine, backups: Backups, running: bool, inner: bool
) -> None:
    def power(*, on: bool) -> None:
        if not running:
            machine.start() if on else machine.stop()

    fill(machine, "cow", SIZE, seed=1)
    backups.take(machine.begin_live_backup, "b0", {"cow": None, "raw": None}, "c0")
    fill(machine, "cow", SIZE, seed=2, writes=5)
    power(on=False)
    machine.snapshot("s1")
    power(on=True)
    assert machine.active_format("raw") == "cow"
    fill(machine, "cow", SIZE, seed=3, writes=5)
    backups.take(machine.begin_live_backup, "b1", {"cow": "c0"}, "c1")
    fill(machine, "cow", SIZE, seed=4, writes=5)
    fill(machine, "raw", SIZE // 2, seed=4, writes=5)
    if inner:
        power(on=False)
        machine.snapshot("s2")
        power(on=True)
        fill(machine, "cow", SIZE, seed=5, writes=5)
    power(on=False)
    machine.remove_snapshot("s1")
    power(on=True)
    assert machine.snapshots == (["s2"] if inner else [])
    assert machine.checkpoint_valid("c0", "cow")
    assert machine.checkpoint_valid("c1", "cow")
    backups.take(machine.begin_hybrid_backup, "b2", {"cow": "c1", "raw": None}, "c2")
    assert backups.transferred["cow"] < SIZE // 2
    assert machine.active_format("raw") == ("cow" if inner else "raw")
    assert same_as_shadow(machine, "raw")


def test_snapshots_are_taken_and_removed_under_a_writer(machine: Machine, backups: Backups) -> None:
    with Writer(machine, {"cow": SIZE, "raw": SIZE // 2}) as writer:
        backups.take(machine.begin_live_backup, "b0", {"cow": None, "raw": None}, "c0")
        for name in ("s1", "s2", "s3"):
            writer.wait_writes(10)
            machine.snapshot(name)
        for name in ("s2", "s1", "s3"):
            writer.wait_writes(10)
            machine.remove_snapshot(name)
        backups.take(machine.begin_live_backup, "b1", {"cow": "c0", "raw": None}, "c1")
        assert not writer.errors
    assert len(machine.disks["cow"].paths) == 1
    assert same_as_shadow(machine, "raw")


def test_a_reverted_snapshot_takes_all_checkpoints(
    machine: Machine, backups: Backups, tmp_path: Path
) -> None:
    fill(machine, "cow", SIZE, seed=1)
    fill(machine, "raw", SIZE // 2, seed=1)
    backups.take(machine.begin_live_backup, "b0", {"cow": None}, "c0")
    machine.snapshot("s1")
    for disk in ("cow", "raw"):
        machine.record(disk, tmp_path / disk)
    fill(machine, "cow", SIZE, seed=2)
    fill(machine, "raw", SIZE // 2, seed=2)
    backups.take(machine.begin_live_backup, "b1", {"cow": "c0"}, "c1")
    machine.snapshot("s2")
    with pytest.raises(MachineError, match="running"):
        machine.revert_snapshot("s1")
    machine.stop()
    machine.revert_snapshot("s1")
    machine.start()
    assert machine.snapshots == ["s1"]
    for disk in ("cow", "raw"):
        assert machine.checkpoints(disk) == []
        assert machine.shadow(disk).read_bytes() == (tmp_path / disk).read_bytes()
        assert same_as_shadow(machine, disk)
    with pytest.raises(QmpError, match="c1"):
        machine.begin_live_backup("b2", {"cow": "c1"}, "c2", nothing)
    assert machine.leftovers() == []
    backups.take(machine.begin_hybrid_backup, "b3", {"cow": None, "raw": None}, "c3")


def test_after_a_kill_the_shadow_is_still_what_the_disk_holds(machine: Machine) -> None:
    for seed in range(5):
        with Writer(machine, {"cow": SIZE, "raw": SIZE // 2}, seed=seed) as writer:
            writer.wait_writes(20)
            machine.kill()
        assert all(isinstance(error, MachineError) for error in writer.errors)
        assert len(writer.errors) == 2
        machine.start()
        assert same_as_shadow(machine, "cow")
        assert same_as_shadow(machine, "raw")


@pytest.mark.parametrize(
    "moment", ["block-commit", "job-complete", "job-dismiss", "transaction", "blockdev-del"]
)
def test_a_kill_in_the_middle_of_a_merge(
    machine: Machine, backups: Backups, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """`moment`: the first command of that name is qemu's last."""
    backups.take(machine.begin_live_backup, "b0", {"cow": None, "raw": None}, "c0")
    with Writer(machine, {"cow": SIZE, "raw": SIZE // 2}) as writer:
        machine.begin_hybrid_backup("b1", {"cow": None, "raw": None}, "c1", nothing)
        writer.wait_writes(20)
        with monkeypatch.context() as patch:
            patch.setattr(Daemon, "execute", killing(moment))
            with pytest.raises(MachineError):
                machine.end_backup("b1")
        machine.kill()
    assert machine.backup is None
    machine.start()
    assert same_as_shadow(machine, "cow")
    assert same_as_shadow(machine, "raw")
    machine.end_backup("b1")
    assert machine.snapshots == []
    assert machine.leftovers() == []
    assert same_as_shadow(machine, "cow")
    assert same_as_shadow(machine, "raw")
    assert not machine.checkpoint_valid("c1", "cow")
    backups.take(machine.begin_hybrid_backup, "b2", {"cow": None, "raw": None}, "c2")


@pytest.mark.parametrize(
    ("mode", "moment"),
    [
        ("hybrid", "blockdev-add"),
        ("hybrid", "transaction"),
        # In hybrid mode qemu-nbd exports, not this process.
        ("live", "blockdev-add"),
        ("live", "transaction"),
        ("live", "block-export-add"),
    ],
)
def test_a_kill_at_the_beginning_of_a_backup(
    machine: Machine, backups: Backups, monkeypatch: pytest.MonkeyPatch, mode: str, moment: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Daemon, "execute", killing(moment))
        with contextlib.suppress(MachineError):  # hybrid: qemu-nbd does not notice
            begin(machine, mode)("b0", {"cow": None, "raw": None}, "c0", nothing)
    assert not machine.running
    assert machine.backup is None
    machine.start()
    machine.end_backup("b0")
    assert machine.snapshots == []
    assert machine.leftovers() == []
    backups.take(begin(machine, mode), "b1", {"cow": None, "raw": None}, "c1")


def test_a_backup_whose_instant_fails_leaves_nothing(machine: Machine, backups: Backups, mode: str) -> None:
    def fail() -> None:
        raise OSError("no space for the record")

    backups.take(begin(machine, mode), "b0", {"cow": None, "raw": None}, "c0")
    fill(machine, "cow", SIZE, writes=5)
    with pytest.raises(OSError, match="no space"):
        begin(machine, mode)("b1", {"cow": "c0", "raw": None}, "c1", fail)
    assert machine.backup is None
    assert machine.snapshots == []
    assert machine.leftovers() == []
    if mode == "live":
        assert machine.checkpoints("cow") == ["c0"]
    backups.take(begin(machine, mode), "b2", {"cow": "c0", "raw": None}, "c2")


def killing(moment: str) -> Callable[..., Any]:
    """Daemon.execute, but that qemu is killed when it has done the first command of that name."""
    execute = Daemon.execute

    def execute_and_kill(daemon: Daemon, command: str, **arguments: Any) -> Any:
        answer = execute(daemon, command, **arguments)
        if command == moment:
            daemon.kill()
            os.waitid(os.P_PID, daemon.pid, os.WEXITED | os.WNOWAIT)
        return answer

    return execute_and_kill


def test_a_kill_in_the_middle_of_backups(machine: Machine, backups: Backups) -> None:
    machine.begin_live_backup("b0", {"cow": None, "raw": None}, "c0", nothing)
    machine.kill()
    assert machine.backup is None
    assert machine.leftovers() == []
    machine.end_backup("b0")
    machine.start()
    machine.begin_hybrid_backup("b1", {"cow": None, "raw": None}, "c1", nothing)
    machine.kill()
    assert machine.backup is None
    assert machine.snapshots == ["b1"]
    machine.end_backup("b1")  # the machine is down
    assert machine.snapshots == []
    machine.start()
    backups.take(machine.begin_live_backup, "b2", {"cow": None, "raw": None}, "c2")


def test_a_hybrid_backup_can_leave_its_snapshot(machine: Machine, backups: Backups) -> None:
    machine.begin_hybrid_backup("b0", {"cow": None, "raw": None}, "c0", nothing)
    machine.end_backup("b0", merge=False)
    assert machine.backup is None
    assert machine.snapshots == ["b0"]
    machine.remove_snapshot("b0")
    assert machine.snapshots == []


@pytest.mark.parametrize("running", [True, False], ids=["up", "down"])
def test_resize(machine: Machine, backups: Backups, running: bool) -> None:
    fill(machine, "cow", SIZE)
    backups.take(machine.begin_live_backup, "b0", {"cow": None, "raw": None}, "c0")
    if not running:
        machine.stop()
    machine.resize("cow", SIZE + 5 * MIB)
    machine.resize("raw", SIZE)
    with pytest.raises(MachineError, match="cannot be resized"):
        machine.resize("cow", SIZE)
    machine.start()
    assert machine.disks["cow"].size == SIZE + 5 * MIB
    machine.write("cow", SIZE + MIB, b"new")
    machine.write("raw", SIZE - 3, b"new")
    with pytest.raises(MachineError, match="outside"):
        machine.write("raw", SIZE - 2, b"new")
    backups.take(machine.begin_live_backup, "b1", {"cow": "c0", "raw": None}, "c1")
    assert len(backups.held["cow"]) == SIZE + 5 * MIB
    backups.take(machine.begin_hybrid_backup, "b2", {"cow": "c1", "raw": None}, "c2")


def test_resize_above_a_snapshot(machine: Machine, backups: Backups) -> None:
    backups.take(machine.begin_live_backup, "b0", {"cow": None, "raw": None}, "c0")
    machine.snapshot("s1")
    machine.resize("cow", SIZE + MIB)
    machine.resize("raw", SIZE)
    machine.write("cow", SIZE, b"a" * MIB)
    with pytest.raises(QmpError, match="different size"):
        machine.begin_live_backup("b1", {"cow": "c0"}, "c1", nothing)
    machine.remove_snapshot("s1")
    assert same_as_shadow(machine, "cow")
    assert same_as_shadow(machine, "raw")
    backups.take(machine.begin_live_backup, "b2", {"cow": None, "raw": None}, "c2")


def test_disks_come_and_go(machine: Machine, backups: Backups, tmp_path: Path) -> None:
    backups.take(machine.begin_live_backup, "b0", {"cow": None, "raw": None}, "c0")
    added = create_image("added", tmp_path / "added.qcow2", "cow", 2 * MIB)
    machine.add_disk(added)
    machine.write("added", MIB, b"here")
    assert not machine.checkpoint_valid("c0", "added")
    with pytest.raises(QmpError, match="c0"):
        machine.begin_live_backup("b1", {"cow": "c0", "added": "c0"}, "c1", nothing)
    assert machine.leftovers() == []
    backups.take(machine.begin_live_backup, "b2", {"cow": "c0", "added": None, "raw": None}, "c2")
    with pytest.raises(MachineError, match="has this disk"):
        machine.add_disk(added)
    machine.begin_live_backup("b3", {"added": None}, "c3", nothing)
    with pytest.raises(MachineError, match="backup b3"):
        machine.remove_disk("added")
    machine.end_backup("b3")
    machine.remove_disk("added")
    assert set(machine.disks) == {"cow", "raw"}
    with pytest.raises(MachineError, match="no such disk"):
        machine.write("added", 0, b"x")
    machine.stop()
    machine.add_disk(added)
    machine.start()
    assert machine.read("added", MIB, 4) == b"here"
    assert machine.checkpoint_valid("c2", "added")


def test_disks_that_come_with_content_and_a_chain(site: Site, tmp_path: Path) -> None:
    images = [create_image(name, tmp_path / name, fmt, SIZE) for name, fmt in (("a", "cow"), ("b", "raw"))]
    first = Machine(tmp_path / "first", images)
    first.start()
    fill(first, "a", SIZE, seed=1)
    fill(first, "b", SIZE, seed=2)
    first.snapshot("s")
    fill(first, "a", SIZE, seed=3)
    first.stop()
    first.close()
    second = Machine(tmp_path / "second", list(first.disks.values()))
    try:
        assert second.shadow("a").read_bytes() == first.shadow("a").read_bytes()
        second.start()
        backups = Backups(site, second)
        backups.take(second.begin_hybrid_backup, "b0", {"a": None, "b": None}, "c0")
        fill(second, "b", SIZE, seed=4, writes=4)
        backups.take(second.begin_live_backup, "b1", {"a": "c0", "b": "c0"}, "c1")
        assert [len(disk.paths) for disk in second.disks.values()] == [2, 2]
    finally:
        second.close()


def test_checkpoints_are_removed_from_all_layers(machine: Machine, backups: Backups) -> None:
    backups.take(machine.begin_live_backup, "b0", {"cow": None, "raw": None}, "c0")
    machine.snapshot("s1")
    backups.take(machine.begin_live_backup, "b1", {"cow": "c0", "raw": None}, "c1")
    machine.snapshot("s2")
    machine.write("cow", 0, b"x")
    backups.take(machine.begin_live_backup, "b2", {"cow": "c1", "raw": "c1"}, "c2")
    assert machine.checkpoints("cow") == ["c0", "c1", "c2"]
    machine.remove_checkpoint("c0")
    machine.remove_checkpoint("never was")
    assert machine.checkpoints("cow") == ["c1", "c2"]
    backups.take(machine.begin_live_backup, "b3", {"cow": "c1"}, "c3")
    machine.stop()
    machine.remove_checkpoint("c1")
    assert machine.checkpoints("cow") == ["c2", "c3"]
    machine.start()
    backups.take(machine.begin_hybrid_backup, "b4", {"cow": "c2"}, "c4")


def test_upload(machine: Machine, site: Site, tmp_path: Path) -> None:
    """Into disks of a machine that is down, as into new ones."""
    with pytest.raises(MachineError, match="running"):
        machine.export_image("cow", writable=True)
    fill(machine, "cow", SIZE)
    fill(machine, "raw", SIZE // 2)
    machine.stop()
    for disk, image in machine.disks.items():
        url = machine.export_image(disk, writable=True)
        assert machine.leftovers() == [f"export of disk {disk}"]
        export = BackupExport(url, None, image.size)
        ticket = site.ticket(export, ops=("write",))
        with site.client(ticket) as client:
            client.zero(0, image.size)
            client.write(MIB, b"restored")
            client.flush()
        state = site.host.remove_ticket(ticket)
        assert state is not None
        assert state["transferred"] == image.size
        machine.close_export(disk)
        content = machine.shadow(disk).read_bytes()
        assert content == bytes(MIB) + b"restored" + bytes(image.size - MIB - 8)
        assert image.paths[0].stat().st_blocks * 512 < MIB
    machine.start()
    assert same_as_shadow(machine, "cow")
    assert same_as_shadow(machine, "raw")
