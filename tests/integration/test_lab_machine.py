"""Backups of the lab's machines: real qemu, real imageio, held to what the guest wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
from lab_machine_helpers import DISK_SIZE as SIZE
from lab_machine_helpers import (
    GRAIN,
    KIB,
    MIB,
    Backups,
    Machine,
    MachineError,
    QmpError,
    Site,
    Writer,
    begin,
    fill,
    nothing,
    same_as_shadow,
)
from ovirt_imageio._internal import http
from qemu_helpers import needs_qemu

pytestmark = needs_qemu
pytest_plugins = "lab_machine_fixtures"


def test_full_and_incrementals_under_a_writer_that_never_stops(
    machine: Machine, backups: Backups, mode: str
) -> None:
    machine.snapshot("user")
    with Writer(machine, {"cow": SIZE, "raw": SIZE // 2}) as writer:
        writer.wait_writes(20)
        backups.take(begin(machine, mode), "b0", {"cow": None, "raw": None}, "c0")
        for number in range(1, 6):
            writer.wait_writes(20)
            # raw by itself has no checkpoint; on its overlay it has
            disks = {"cow": f"c{number - 1}", "raw": f"c{number - 1}"}
            backups.take(begin(machine, mode), f"b{number}", disks, f"c{number}")
        assert not writer.errors
    assert machine.snapshots == ["user"]
    assert same_as_shadow(machine, "cow")
    assert same_as_shadow(machine, "raw")


def test_both_modes_in_turn_under_a_writer(machine: Machine, backups: Backups) -> None:
    with Writer(machine, {"cow": SIZE, "raw": SIZE // 2}) as writer:
        since = None
        for number, mode in enumerate(("live", "hybrid", "hybrid", "live", "live", "hybrid")):
            writer.wait_writes(10)
            backups.take(begin(machine, mode), f"b{number}", {"cow": since, "raw": None}, f"c{number}")
            since = f"c{number}"
        assert not writer.errors
    assert machine.checkpoints("cow") == [f"c{number}" for number in range(6)]
    assert machine.checkpoints("raw") == []
    assert all(machine.checkpoint_valid(f"c{number}", "cow") for number in range(6))


def test_an_incremental_transfers_what_was_written(machine: Machine, backups: Backups, mode: str) -> None:
    fill(machine, "cow", SIZE)
    backups.take(begin(machine, mode), "full", {"cow": None}, "c0")
    machine.write("cow", 5 * MIB + 100 * KIB, b"x" * 512)
    machine.write("cow", 10 * MIB - 512, b"y" * 1024)
    backups.take(begin(machine, mode), "incremental", {"cow": "c0"}, "c1")
    assert backups.transferred["cow"] == 3 * GRAIN
    backups.take(begin(machine, mode), "unchanged", {"cow": "c1"}, "c2")
    assert backups.transferred["cow"] == 0


def test_an_incremental_since_an_older_checkpoint(machine: Machine, backups: Backups, mode: str) -> None:
    backups.take(begin(machine, mode), "b0", {"cow": None}, "c0")
    first = dict(backups.held)
    for number in (1, 2):
        fill(machine, "cow", SIZE, seed=number, writes=5)
        backups.take(begin(machine, mode), f"b{number}", {"cow": f"c{number - 1}"}, f"c{number}")
    backups.take(begin(machine, mode), "b3", {"cow": "c0"}, "c3", parents=first)


def test_zeros_and_discards_are_changes(machine: Machine, backups: Backups, mode: str) -> None:
    machine.write("cow", 0, b"a" * MIB)
    machine.write("raw", 0, b"a" * MIB)
    backups.take(begin(machine, mode), "b0", {"cow": None, "raw": None}, "c0")
    for disk in ("cow", "raw"):
        machine.zero(disk, 1000 * 512, 100 * 512)
        machine.discard(disk, 100 * KIB, 300 * KIB)
        assert same_as_shadow(machine, disk)
    backups.take(begin(machine, mode), "b1", {"cow": "c0", "raw": None}, "c1")


def test_no_guest_write_is_in_flight_while_frozen(machine: Machine, tmp_path: Path) -> None:
    with Writer(machine, {"cow": MIB}) as writer:
        writer.wait_writes(5)
        with machine.frozen():
            before = machine.read("cow", 0, MIB)
            machine.record("cow", tmp_path / "record")
            assert machine.read("cow", 0, MIB) == before
        writer.wait_writes(5)
        assert not writer.errors
    assert (tmp_path / "record").read_bytes()[:MIB] == before
    assert (tmp_path / "record").stat().st_blocks * 512 <= 2 * MIB


def test_checkpoints_outlive_a_clean_stop(machine: Machine, backups: Backups) -> None:
    backups.take(machine.begin_live_backup, "b0", {"cow": None}, "c0")
    fill(machine, "cow", SIZE)
    machine.stop()
    assert machine.checkpoint_valid("c0", "cow")
    machine.start()
    assert machine.checkpoint_valid("c0", "cow")
    backups.take(machine.begin_live_backup, "b1", {"cow": "c0"}, "c1")


def test_a_kill_breaks_bitmaps(machine: Machine, backups: Backups) -> None:
    backups.take(machine.begin_live_backup, "b0", {"cow": None}, "c0")
    machine.stop()
    machine.start()
    backups.take(machine.begin_live_backup, "b1", {"cow": "c0"}, "c1")
    machine.kill()
    assert not machine.running
    assert machine.checkpoints("cow") == ["c0"]  # c1 was never saved
    assert not machine.checkpoint_valid("c0", "cow")
    exports = machine.begin_cold_backup("cold", {"cow": "c0"}, None, nothing)
    assert "inconsistent" in str(exports["cow"].error)
    machine.end_backup("cold")

    machine.start()
    assert machine.checkpoints("cow") == ["c0"]
    assert not machine.checkpoint_valid("c0", "cow")
    with pytest.raises(QmpError, match="'c0' is inconsistent"):
        machine.begin_live_backup("b2", {"cow": "c0"}, "c2", pytest.fail)
    with pytest.raises(QmpError, match="'c1' not found"):
        machine.begin_live_backup("b3", {"cow": "c1"}, "c2", pytest.fail)
    assert machine.backup is None
    assert machine.leftovers() == []
    for since, message in (("c0", "inconsistent"), ("c1", "Bitmap does not exist")):
        exports = machine.begin_hybrid_backup(f"hybrid {since}", {"cow": since}, f"new {since}", nothing)
        assert message in str(exports["cow"].error)
        machine.end_backup(f"hybrid {since}")
    assert machine.leftovers() == []
    assert machine.checkpoints("cow") == ["c0", "new c0", "new c1"]

    machine.remove_checkpoint("c0")
    assert machine.checkpoints("cow") == ["new c0", "new c1"]
    backups.take(machine.begin_live_backup, "b4", {"cow": None, "raw": None}, "c4")
    backups.take(machine.begin_live_backup, "b5", {"cow": "c4"}, "c5")


def test_a_machine_that_is_down(machine: Machine, backups: Backups) -> None:
    fill(machine, "cow", SIZE, seed=1)
    fill(machine, "raw", SIZE // 2, seed=1)
    with pytest.raises(MachineError, match="running"):
        machine.begin_cold_backup("b0", {"cow": None}, "c0", nothing)
    machine.stop()
    for attempt in (machine.begin_live_backup, machine.begin_hybrid_backup):
        with pytest.raises(MachineError, match="down"):
            attempt("b0", {"cow": None}, "c0", nothing)
    with pytest.raises(MachineError, match="down"):
        machine.write("cow", 0, b"x")
    backups.take(machine.begin_cold_backup, "b0", {"cow": None, "raw": None}, "c0")
    machine.start()
    fill(machine, "cow", SIZE, seed=2, writes=5)
    backups.take(machine.begin_live_backup, "b1", {"cow": "c0", "raw": None}, "c1")
    machine.snapshot("s")
    fill(machine, "cow", SIZE, seed=3, writes=5)
    machine.stop()
    backups.take(machine.begin_cold_backup, "b2", {"cow": "c1"}, "c2")  # over two layers
    exports = machine.begin_cold_backup("b3", {"cow": "absent"}, None, nothing)
    assert "Bitmap does not exist" in str(exports["cow"].error)
    machine.end_backup("b3")


def test_a_machine_cannot_start_during_its_cold_backup(machine: Machine, backups: Backups) -> None:
    machine.stop()
    machine.begin_cold_backup("b0", {"cow": None, "raw": None}, "c0", nothing)
    with pytest.raises(MachineError, match="lock"):
        machine.start()
    machine.end_backup("b0")
    machine.start()
    backups.take(machine.begin_live_backup, "b1", {"cow": None}, "c1")


def test_one_backup_at_a_time(machine: Machine, mode: str) -> None:
    machine.begin_live_backup("b0", {"cow": None}, "c0", nothing)
    assert machine.backup == "b0"
    assert "backup b0" in machine.leftovers()
    with pytest.raises(MachineError, match="backup b0 runs"):
        begin(machine, mode)("b1", {"cow": None}, "c1", nothing)
    machine.end_backup("another")
    assert machine.backup == "b0"
    machine.stop()
    assert machine.backup is None


def test_an_export_that_dies(machine: Machine, site: Site, mode: str) -> None:
    machine.write("cow", 0, b"x" * MIB)
    exports = begin(machine, mode)("b0", {"cow": None, "raw": None}, "c0", nothing)
    ticket = site.ticket(exports["cow"])
    with site.client(ticket) as client:
        assert client.read(0, bytearray(4096)) == 4096
        machine.drop_export("b0", "cow")
        with pytest.raises(http.Error) as failure:
            client.read(0, bytearray(4096))
        assert failure.value.code == 500
    site.host.remove_ticket(ticket)
    site.download(exports["raw"])
    machine.end_backup("b0")
    assert machine.leftovers() == []
