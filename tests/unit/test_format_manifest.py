"""The manifest has one form, and no other is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from vmfs.format.errors import ContentError, UsageError
from vmfs.format.manifest import Artifact, Disk, Manifest, Vm, check_name

MANIFEST = Manifest(
    vm=Vm(name="web", id="4f1c", engine="https://engine.example/", cluster="rack 1"),
    time=datetime(2026, 11, 20, 10, tzinfo=UTC),
    consistency="crash",
    disks=(
        Disk(
            id="1", alias="vda", size=1 << 30, root=b"\xab" * 32, allocated=1 << 20, boot_order=1, bus="scsi"
        ),
        Disk(id="2", alias="vdb", size=512, root=None, allocated=0, full_reason="new", checkpoint="c"),
    ),
    artifacts=(Artifact(name="vm.ovf", id=b"\x01" * 32, size=6), Artifact(name="e", id=None, size=0)),
    parent="01KFZ9M5T0ABCDEFGHJKMNPQRS",
    producer="vmfs",
)
DATA = MANIFEST.to_bytes()

Edit = Callable[[dict[str, Any]], None]


def edited(edit: Edit) -> bytes:
    tree = json.loads(DATA)
    edit(tree)
    return json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def test_round_trip() -> None:
    assert Manifest.from_bytes(DATA) == MANIFEST
    assert edited(lambda tree: None) == DATA


def test_time_is_written_in_utc() -> None:
    there = Manifest(
        vm=Vm(name="v", id="v"),
        time=datetime(2026, 11, 20, 12, tzinfo=timezone(timedelta(hours=2))),
        consistency="offline",
        disks=(),
    )
    assert b'"time":"2026-11-20T10:00:00.000000+00:00"' in there.to_bytes()


VALUES: dict[str, list[Any]] = {
    "vm.name": ["", "a/b", ".", "..", "a\n", "a\x7f", "a\u2028", "é" * 128, None, 1, True, ["a"], {}],
    "vm.id": [None, 1, True, [], {}],
    "vm.engine": [1, False, []],
    "vm.cluster": [1, False, {}],
    "disks.0.alias": ["", "a/b", "..", "a\0", None, 1, "vdb"],
    "disks.0.id": [None, 1],
    "disks.0.size": [-1, (1 << 60) + 1, 10**4000, True, False, None, 1.0, "1", []],
    "disks.0.allocated": [-1, (1 << 60) + 1, True, None, 0.5],
    "disks.0.block_size": [0, -512, (1 << 20) + 1, True, None, 512.0],
    "disks.0.boot_order": [-1, 1 << 31, True, 1.0, "1"],
    "disks.0.bus": [1, True, []],
    "disks.0.checkpoint": [1, True, []],
    "disks.0.full_reason": [1, True, []],
    "disks.0.bytes_read": [-1, 1 << 63, True, None, 1.5],
    "disks.0.bytes_new": [-1, 1 << 63, True, None, "0"],
    "disks.0.bytes_stored": [-1, 1 << 63, True, None, []],
    "disks.0.mode": ["", "Full", None, 1, ["full"]],
    "disks.0.root": ["", "ab" * 31, "ab" * 33, "AB" * 32, " " + "ab" * 32, "zz" * 32, 1, True, [], "é" * 64],
    "disks.1.alias": ["vda"],
    "artifacts.0.name": ["", "a/b", "e", 1, None],
    "artifacts.0.id": [None, "ab", 1],
    "artifacts.0.size": [0, -1, True, None, 6.0],
    "artifacts.1.size": [1],
    "artifacts.1.id": ["01" * 32],
    "consistency": ["", "Crash", None, 1, ["crash"]],
    "parent": [1, True, []],
    "producer": [None, 1, []],
    "time": [
        *("", "2026-11-20", "2026-11-20T10:00:00.000000", "2026-11-20T10:00:00+00:00"),
        *("2026-11-20T10:00:00.000000Z", "2026-11-20T12:00:00.000000+02:00", "20261120T100000.000000+0000"),
        *("0001-01-01T00:00:00.000000+23:59", "9999-12-31T23:59:59.999999-23:59"),
        *(None, 0, "2026-02-30T10:00:00.000000+00:00"),
    ],
    "vm": [None, [], "x", {}, {"name": "v"}],
    "disks": [None, {}, {"0": 1}, "x", [1], [None], [[]]],
    "artifacts": [None, {"0": 1}, "x", [1], [{}]],
}


@pytest.mark.parametrize(
    ("path", "value"),
    [(path, value) for path, values in VALUES.items() for value in values],
    ids=lambda v: str(v)[:20],
)
def test_impossible_values(path: str, value: Any) -> None:
    def edit(tree: dict[str, Any]) -> None:
        *above, last = path.split(".")
        for key in above:
            tree = tree[int(key)] if isinstance(tree, list) else tree[key]
        tree[last] = value

    with pytest.raises(ContentError, match="manifest makes no sense"):
        Manifest.from_bytes(edited(edit))


@pytest.mark.parametrize(
    "edit",
    [
        lambda tree: tree.pop("parent"),
        lambda tree: tree.pop("vm"),
        lambda tree: tree.pop("consistency"),
        lambda tree: tree["vm"].pop("cluster"),
        lambda tree: tree["disks"][0].pop("bus"),
        lambda tree: tree["artifacts"][0].pop("size"),
        lambda tree: tree.update(note="x"),
        lambda tree: tree["vm"].update(note=None),
        lambda tree: tree["disks"][0].update(note=1),
        lambda tree: tree["artifacts"][0].update(note=1),
    ],
)
def test_missing_and_unknown_fields(edit: Edit) -> None:
    with pytest.raises(ContentError):
        Manifest.from_bytes(edited(edit))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"1",
        DATA[:-1],
        DATA + b" ",
        DATA + DATA,
        b"\n" + DATA,
        b"\xef\xbb\xbf" + DATA,
        DATA.decode().encode("utf-16"),
        DATA.decode().encode("utf-32-le"),
        DATA.replace(b'"crash"', b'"cr\xffash"'),
        DATA.replace(b'"web"', b'"w\\u0065b"'),
        DATA.replace(b'"web"', b'"\\ud800"'),
        DATA.replace(b'"4f1c"', b'"\\ud800"'),
        DATA.replace(b"https://", b"https:\\/\\/"),
        DATA.replace(b'"allocated":0', b'"allocated":-0'),
        DATA.replace(b'"allocated":0', b'"allocated":00'),
        DATA.replace(b'"allocated":0', b'"allocated":0e0'),
        DATA.replace(b'"allocated":0', b'"allocated":NaN'),
        DATA.replace(b'"allocated":0', b'"allocated":-Infinity'),
        DATA.replace(b'"producer":"vmfs"', b'"producer":NaN'),
        DATA.replace(b'"producer":"vmfs"', b'"producer":"vmfs","producer":"vmfs"'),
        DATA.replace(b'"name":"web"', b'"name":"other","name":"web"'),
        DATA.replace(b'"allocated":0', b'"allocated":' + b"9" * 10_000),
        DATA.replace(b'"disks":[', b'"disks": ['),
        DATA.replace(b'{"artifacts"', b'{"zzz":1,"artifacts"'),
        b"[" * 100_000,
        b'{"a":' * 100_000,
        DATA.replace(b'"producer":"vmfs"', b'"producer":' + b"[" * 100_000 + b"]" * 100_000),
    ],
    ids=lambda data: repr(data[:12]),
)
def test_other_forms_of_json(data: bytes) -> None:
    assert data != DATA
    with pytest.raises(ContentError):
        Manifest.from_bytes(data)


@pytest.mark.parametrize(
    "name", ["a", "é", "★" * 85, " ", "a b", ".a", "...", "\u202e", "\u00ad", "-rf", "a\\b", "%s"]
)
def test_names_that_can_be(name: str) -> None:
    assert check_name("VM", name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "/", "a/b", "a" * 256, "★" * 86, "\udcff", "a\0", "\x85"])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_name("VM", name)
    assert str(caught.value).isprintable()
