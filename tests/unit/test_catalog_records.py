"""Manifests whose fields no database would take."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pytest

from vmfs.catalog.records import records_of
from vmfs.errors import ContentError
from vmfs.format.manifest import Artifact, Disk, Manifest, Vm

ID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
DISK = Disk(id="d", alias="vda", size=1 << 20, root=None, allocated=0)
MANIFEST = Manifest(
    vm=Vm(name="web", id="web"),
    time=datetime(2026, 11, 20, tzinfo=UTC),
    consistency="crash",
    disks=(DISK,),
    artifacts=(Artifact(name="vm.ovf", id=b"i" * 32, size=5),),
)


@dataclass
class Loaded:
    manifest: Manifest
    id: str = ID
    signer: bytes = b"s" * 32


def test_holds_no_key_and_no_blob_id() -> None:
    records = records_of(Loaded(MANIFEST))
    assert not [value for value in records.artifacts[0].values() if isinstance(value, bytes)]
    assert records.artifacts == [{"point": ID, "position": 0, "name": "vm.ovf", "size": 5}]


@pytest.mark.parametrize(
    "change",
    [
        {"bytes_read": -1},
        {"bytes_new": 1 << 63},
        {"bytes_stored": "5"},
        {"bytes_stored": True},
        {"full_reason": 5},
        {"id": None},
    ],
)
def test_refuses_values_of_another_kind(change: dict[str, Any]) -> None:
    manifest = replace(MANIFEST, disks=(replace(DISK, **change),))
    with pytest.raises(ContentError, match=next(iter(change)).replace("id", "disk id")):
        records_of(Loaded(manifest))


@pytest.mark.parametrize("point_id", ["", "x" * 26, ID.lower(), ID + "A", "8" + ID[1:]])
def test_refuses_a_name_that_is_no_ulid(point_id: str) -> None:
    with pytest.raises(ContentError, match="no ULID"):
        records_of(Loaded(MANIFEST, point_id))


@pytest.mark.parametrize(
    ("text", "kept"), [("a\0b", "a\ufffdb"), ("a\ud800b", "a?b"), ("größe\n", "größe\n"), ("", "")]
)
def test_text_is_made_fit_for_every_database(text: str, kept: str) -> None:
    manifest = replace(MANIFEST, producer=text, disks=(replace(DISK, full_reason=text),))
    records = records_of(Loaded(manifest))
    assert records.point["producer"] == kept
    assert records.disks[0]["full_reason"] == kept
