"""fstab of a guest: which lines count, and which volume each means."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmfs.volumes.fstab import MAX_ENTRIES, find_device, parse
from vmfs.volumes.layout import FileSystemFacts, FoundVolume
from vmfs.volumes.model import Volume
from vmfs.volumes.pieces import Zeros

FSTAB = rb"""
# /etc/fstab
UUID=1234 /                ext4 defaults,noatime 0 1
  LABEL=my\040data	/srv/my\040data xfs nofail 0
/dev/sdb1 /srv ext4
tmpfs /tmp tmpfs size=1g 0 0
proc /proc proc defaults 0 0
UUID=99 none swap sw 0 0
UUID=98 swap swap sw 0 0
/srv /mnt none bind 0 0
/dev/vda5 /home btrfs subvol=/@home,compress=zstd:1 0 0
broken
"""


def volume(
    key: str,
    *,
    label: str | None = None,
    uuid: str | None = None,
    kind: str = "ext4",
    partition: Volume | None = None,
    lvm: tuple[str, str] | None = None,
) -> FoundVolume:
    return FoundVolume(
        key=key,
        name="-".join(lvm) if lvm else key.replace("/", "-"),
        kind="lvm" if lvm else "md" if key.startswith("md") else "partition",
        space=Zeros(0),
        content=FileSystemFacts(kind, label, uuid),
        partition=partition,
        group=lvm[0] if lvm else None,
        logical=lvm[1] if lvm else None,
    )


PARTITION = Volume(name="p2", number=2, start=0, length=1, type="x", label="data part", uuid="aaaa-02")
VOLUMES = [
    volume("0/p1", label="boot", uuid="ABCD-1234"),
    volume("0/p2", label="my data", uuid="1234", partition=PARTITION),
    volume("1/p1", uuid="1234-raid", kind="linux_raid_member"),
    volume("md/77", label="raid", uuid="1234-raid"),
    volume("1"),
    volume("27/p3", label="far"),
    volume("lvm/a/b", lvm=("my-vg", "root")),
    volume("lvm/a/c", lvm=("my", "vg-root")),
]


def test_only_file_systems_of_volumes_count_outer_ones_first() -> None:
    entries = parse(FSTAB)
    assert [(entry.device, entry.target) for entry in entries] == [
        ("UUID=1234", b"/"),
        ("/dev/sdb1", b"/srv"),
        ("tmpfs", b"/tmp"),
        ("proc", b"/proc"),
        ("/dev/vda5", b"/home"),
        ("LABEL=my data", b"/srv/my data"),
    ]
    assert entries[4].options == {"subvol": "/@home", "compress": "zstd:1"}


@pytest.mark.parametrize(
    ("device", "key"),
    [
        ("UUID=1234", "0/p2"),
        ('UUID="abcd-1234"', "0/p1"),
        ("UUID=1234-raid", "md/77"),
        ("LABEL=my data", "0/p2"),
        ("LABEL=MY DATA", None),
        ("PARTUUID=AAAA-02", "0/p2"),
        ("PARTLABEL=data part", "0/p2"),
        ("/dev/disk/by-uuid/ABCD-1234", "0/p1"),
        (r"/dev/disk/by-label/my\x20data", "0/p2"),
        (r"/dev/disk/by-partlabel/data\x20part", "0/p2"),
        ("/dev/mapper/my--vg-root", "lvm/a/b"),
        ("/dev/mapper/my-vg--root", "lvm/a/c"),
        ("/dev/disk/by-id/dm-name-my--vg-root", "lvm/a/b"),
        ("/dev/my-vg/root", "lvm/a/b"),
        ("/dev/my/vg-root", "lvm/a/c"),
        ("/dev/md0", "md/77"),
        ("/dev/md/anything", "md/77"),
        ("/dev/sda1", "0/p1"),
        ("/dev/vda2", "0/p2"),
        ("/dev/xvdb", "1"),
        ("/dev/nvme0n1p2", "0/p2"),
        ("/dev/nvme1n1", "1"),
        ("/dev/sdab3", "27/p3"),
        ("/dev/sdz9", None),
        ("/dev/disk/by-path/pci-1", None),
        ("tmpfs", None),
        ("server:/export", None),
        ("UUID=", None),
        ("NONSENSE=1234", None),
        ("/dev/", None),
    ],
)
def test_devices(device: str, key: str | None) -> None:
    found = find_device(device, VOLUMES)
    assert (found.key if found else None) == key


def test_it_is_bounded() -> None:
    assert len(parse(b"UUID=1 /x ext4 defaults 0 0\n" * 100_000)) == MAX_ENTRIES
    assert parse(b"UUID=1 /" + b"x" * 5000 + b" ext4\n") == []


LINES = st.lists(
    st.one_of(
        st.binary(max_size=40), st.sampled_from([b"UUID=1", b"/dev/md/\\777", b"/", b"ext4", b"subvolid=9"])
    )
)


@given(st.lists(LINES.map(b" ".join), max_size=5).map(b"\n".join))
def test_whatever_it_holds_it_raises_nothing(content: bytes) -> None:
    for entry in parse(content):
        assert entry.target.startswith(b"/")
        find_device(entry.device, VOLUMES)
