"""The engine's OVF: what is read of it, and what a restore changes in it."""

from __future__ import annotations

import time

import pytest
from ovf_helpers import BASE_IMAGE, DISKS, DOMAIN, IMAGES, MACS, NICS, NOBODY, PLAIN, SAMPLE, VM

from ingest.engine.ovf import Changes, NewDisk, NewNic, OvfError, parse_ovf, rewrite_ovf
from ingest.engine.xmlspans import MAX_DEPTH, MAX_ELEMENTS, MAX_SIZE

NEW = [f"beef0000-0000-4000-8000-00000000000{number}" for number in range(6)]
SAME = {disk: NewDisk(id=disk) for disk in DISKS}

BOMB_SECONDS = 60
"""Of processor time: what goes off takes hours."""


def replaced(*pairs: tuple[str, str], base: bytes = PLAIN) -> bytes:
    """The OVF with these texts instead of those, each of which must be there."""
    text = base.decode()
    for old, new in pairs:
        assert old in text, old
        text = text.replace(old, new)
    return text.encode()


def element(tag: str, holds: str, base: bytes = PLAIN) -> str:
    """The innermost element of that tag that holds the text."""
    text = base.decode()
    end = text.index(f"</{tag}>", text.index(holds)) + len(f"</{tag}>")
    start = max(
        text.rfind(f"<{tag} ", 0, text.index(holds) + 1), text.rfind(f"<{tag}>", 0, text.index(holds))
    )
    return text[start:end]


def test_what_it_tells() -> None:
    ovf = parse_ovf(SAMPLE)
    assert (ovf.name, ovf.vm_id, ovf.cluster) == ("web", VM, "Default")
    assert [disk.id for disk in ovf.disks] == list(DISKS)
    assert [disk.image_id for disk in ovf.disks] == list(IMAGES), "the active images"
    root, data = ovf.disks
    assert (root.alias, root.format, root.sparse, root.interface) == ("root", "cow", True, "virtio_scsi")
    assert (root.bootable, data.bootable) == (True, False)
    assert root.description == "it's <mine>"
    assert root.storage_domain_id == DOMAIN
    assert [nic.id for nic in ovf.nics] == list(NICS)
    assert [nic.mac for nic in ovf.nics] == [mac.lower() for mac in MACS]
    assert [(nic.name, nic.network, nic.profile) for nic in ovf.nics] == [
        ("nic1", "ovirtmgmt", "ovirtmgmt"),
        ("nic2", "ovirtmgmt", "backup"),
    ]
    assert ovf.disk(DISKS[1].upper()) is data
    assert ovf.disk(VM) is None


def test_nothing_asked_nothing_changed() -> None:
    assert rewrite_ovf(PLAIN, Changes(disks=SAME)) == PLAIN
    same = Changes(name="web", vm_id=VM, cluster="Default", disks=SAME, nics={NICS[0]: NewNic(mac=MACS[0])})
    assert rewrite_ovf(PLAIN, same) == PLAIN


def test_snapshots_are_left_out() -> None:
    assert rewrite_ovf(SAMPLE, Changes(disks=SAME)) == PLAIN


def test_byte_order_mark_and_line_ends_stay() -> None:
    data = b"\xef\xbb\xbf" + PLAIN.replace(b"><Name>", b">\r\n\t<Name>")
    changed = rewrite_ovf(data, Changes(name="new", disks=SAME))
    assert changed == data.replace(b"<Name>web<", b"<Name>new<")


def test_names_and_ids() -> None:
    changes = Changes(
        name="a<b>&c",
        vm_id=NEW[0],
        cluster='"Other"',
        disks={
            DISKS[0]: NewDisk(id=NEW[1], image_id=NEW[2], storage_domain_id=NEW[3]),
            DISKS[1]: NewDisk(id=NEW[4], image_id=NEW[5]),
        },
    )
    changed = rewrite_ovf(PLAIN, changes)
    first = element("Item", f"<rasd:InstanceId>{IMAGES[0]}")
    moved = first.replace(DOMAIN, NEW[3])
    assert changed == replaced(
        (first, moved),
        ("<Name>web</Name>", "<Name>a&lt;b&gt;&amp;c</Name>"),
        ("<ClusterName>Default<", '<ClusterName>"Other"<'),
        (VM, NEW[0]),
        (DISKS[0], NEW[1]),
        (IMAGES[0], NEW[2]),
        (DISKS[1], NEW[4]),
        (IMAGES[1], NEW[5]),
    )
    again = parse_ovf(changed)
    assert (again.name, again.vm_id, again.cluster) == ("a<b>&c", NEW[0], '"Other"')
    assert [(disk.id, disk.image_id) for disk in again.disks] == [(NEW[1], NEW[2]), (NEW[4], NEW[5])]


def test_a_disk_is_taken_out() -> None:
    changed = rewrite_ovf(PLAIN, Changes(disks={DISKS[0]: NewDisk(id=DISKS[0])}))
    expected = replaced(
        (element("File", DISKS[1]), ""),
        (element("Disk", f'ovf:diskId="{IMAGES[1]}"'), ""),
        (element("Item", f"<rasd:InstanceId>{IMAGES[1]}"), ""),
    )
    assert changed == expected
    assert [disk.alias for disk in parse_ovf(changed).disks] == ["root"]
    assert parse_ovf(rewrite_ovf(PLAIN, Changes())).disks == ()


def test_format_and_allocation() -> None:
    disks = {DISKS[0]: NewDisk(id=DISKS[0], format="raw", sparse=False), DISKS[1]: NewDisk(id=DISKS[1])}
    changed = rewrite_ovf(PLAIN, Changes(disks=disks))
    old = element("Disk", f'ovf:diskId="{IMAGES[0]}"')
    new = old.replace("COW", "RAW").replace('"Sparse"', '"Preallocated"')
    new = new.replace(
        "http://www.gnome.org/~markmc/qcow-image-format.html",
        "http://www.vmware.com/specifications/vmdk.html#sparse",
    )
    assert changed == replaced((old, new))


def test_nics() -> None:
    nics = {
        NICS[0]: NewNic(id=NEW[0], mac="", profile="dmz", network="lan"),
        NICS[1]: NewNic(unplugged=True),
    }
    changed = rewrite_ovf(PLAIN, Changes(disks=SAME, nics=nics))
    first, second = (element("Item", f"<rasd:InstanceId>{nic}") for nic in NICS)
    expected = replaced(
        (second, second.replace("<IsPlugged>true<", "<IsPlugged>false<")),
        (f"<rasd:MACAddress>{MACS[0]}<", "<rasd:MACAddress><"),
        (
            "<rasd:OtherResourceType>ovirtmgmt</rasd:OtherResourceType><rasd:ResourceSubType>3"
            "</rasd:ResourceSubType><rasd:Connection>ovirtmgmt<",
            "<rasd:OtherResourceType>dmz</rasd:OtherResourceType><rasd:ResourceSubType>3"
            "</rasd:ResourceSubType><rasd:Connection>lan<",
        ),
        (NICS[0], NEW[0]),
    )
    assert first in PLAIN.decode()
    assert changed == expected
    assert [nic.mac for nic in parse_ovf(changed).nics] == [None, MACS[1].lower()]


def test_empty_tags_are_filled() -> None:
    data = replaced(("<ClusterName>Default</ClusterName>", "<ClusterName />"))
    assert parse_ovf(data).cluster is None
    changed = rewrite_ovf(data, Changes(cluster="Big", disks=SAME))
    assert changed == replaced(("<ClusterName>Default<", "<ClusterName>Big<"))


def test_lun() -> None:
    lun = f'<File ovf:id="{NEW[0]}" ovf:href="{NEW[0]}" ovf:disk_storage_type="LUN"/></References>'
    disk = f'<Disk ovf:diskId="{NEW[0]}" ovf:fileRef="{NEW[0]}" ovf:boot="false"/></Section><Content'
    data = replaced(("</References>", lun), ("</Section><Content", disk))
    assert [(found.id, found.lun) for found in parse_ovf(data).disks] == [
        (DISKS[0], False),
        (DISKS[1], False),
        (NEW[0], True),
    ]
    assert rewrite_ovf(data, Changes(disks=SAME)) == PLAIN


ENTITIES = "".join(f'<!ENTITY e{n} "{"&e%d;" % (n - 1) * 10}">' for n in range(1, 10))  # noqa: UP031
HOSTILE = {
    "empty": (b"", "no element found"),
    "no XML": (b"hello", "not well-formed"),
    "another format": (b"<domain/>", "begins with 'domain'"),
    "cut off": (PLAIN[:-20], "not well-formed"),
    "bomb": (
        f'<!DOCTYPE x [<!ENTITY e0 "lol">{ENTITIES}]><x>&e9;</x>'.encode(),
        "document type or entities",
    ),
    "quadratic bomb": (
        b'<!DOCTYPE x [<!ENTITY a "' + b"a" * 50000 + b'">]><x>' + b"&a;" * 5000 + b"</x>",
        "document type or entities",
    ),
    "external entity": (
        b'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><x>&a;</x>',
        "document type or entities",
    ),
    "external DTD": (b'<!DOCTYPE x SYSTEM "http://127.0.0.1:9/x.dtd"><x/>', "document type or entities"),
    "unknown entity": (b"<x>&nbsp;</x>", "undefined entity"),
    "UTF-16": (PLAIN.decode().encode("utf-16"), "NUL bytes"),
    "UTF-16 without a mark": ("<a/>".encode("utf-16-le"), "NUL bytes"),
    "Latin-1": (PLAIN.decode().replace("東京", "").encode("latin-1"), "not UTF-8"),
    "says UTF-7": (PLAIN.replace(b"UTF-8", b"UTF-7"), "says that it is 'UTF-7'"),
    "says UTF-16": (PLAIN.replace(b"UTF-8", b"UTF-16"), "says that it is 'UTF-16'"),
    "NUL": (PLAIN.replace(b"web", b"w\0b"), "NUL bytes"),
    "deep": (b"<a>" * 100_000 + b"</a>" * 100_000, f"deeper than {MAX_DEPTH}"),
    "many elements": (b"<a>" + b"<b/>" * MAX_ELEMENTS + b"</a>", f"more than {MAX_ELEMENTS} elements"),
    "large": (b" " * (MAX_SIZE + 1), f"at most {MAX_SIZE} are read"),
    "two attributes": (b'<x xmlns:a="u" xmlns:b="v" a:i="1" b:i="2"/>', "two attributes of one name"),
    "no Content": (b"<Envelope/>", "no Content"),
    "no references": (replaced(("References>", "Refs>")), "no References"),
    "no disk section": (replaced(("ovf:DiskSection_Type", "x")), "no DiskSection"),
    "no system": (replaced(("ovf:OperatingSystemSection_Type", "x")), "no OperatingSystemSection"),
    "no hardware": (replaced(("ovf:VirtualHardwareSection_Type", "x")), "no VirtualHardwareSection"),
    "no name": (replaced(("<Name>web</Name>", "")), "a VM has no name"),
    "a name of two lines": (replaced(("<Name>web<", "<Name>w\nb<")), "'w\\\\nb' is no name of a VM"),
    "a long name": (replaced(("<Name>web<", f"<Name>{'x' * 300}<")), "is no name of a VM"),
    "a VM id that is a path": (replaced((VM, "../../etc/passwd")), "'../../etc/passwd' is no id of a VM"),
    "a disk id that is none": (replaced((DISKS[0], "1 or 1=1")), "'1 or 1=1' is no id of a disk"),
    "an image id that is none": (replaced((IMAGES[0], "x")), "'x' is no id of a image"),
    "an image twice": (replaced((IMAGES[1], IMAGES[0])), "twice"),
    "a NIC twice": (replaced((NICS[1], NICS[0])), "twice"),
    "an image without disk": (replaced((element("Disk", f'ovf:diskId="{IMAGES[1]}"'), "")), "is no disk's"),
    "a disk without file": (replaced((element("File", DISKS[1]), "")), "is in no reference"),
    "a MAC address that is none": (replaced((MACS[0], "00:11:22")), "'00:11:22' is no MAC address"),
    "a NIC id that is none": (replaced((NICS[1], "eth0")), "'eth0' is no id of a NIC"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(name: str) -> None:
    data, message = HOSTILE[name]
    begun = time.process_time()
    with pytest.raises(OvfError) as caught:
        parse_ovf(data)
    assert time.process_time() - begun < BOMB_SECONDS
    text = str(caught.value)
    assert message.replace("\\\\", "\\") in text
    assert text.startswith("the kept OVF cannot be used: ")
    assert "\n" not in text
    assert len(text) < 200
    with pytest.raises(OvfError):
        rewrite_ovf(data, Changes())


def test_many_comments_are_no_work() -> None:
    """What the parser gives in pieces is put together once."""
    text = "a<!---->" * 200_000
    data = replaced(("<Comment></Comment>", f"<Comment>{text}</Comment>"))
    begun = time.process_time()
    assert parse_ovf(data).name == "web"
    assert time.process_time() - begun < BOMB_SECONDS


def test_unknown_disk() -> None:
    with pytest.raises(OvfError, match="knows no disk"):
        rewrite_ovf(PLAIN, Changes(disks={NEW[0]: NewDisk(id=NEW[0])}))


def test_parent_of_a_disk_with_snapshot() -> None:
    changed = rewrite_ovf(SAMPLE, Changes(disks=SAME)).decode()
    assert BASE_IMAGE not in changed
    assert changed.count(f"<rasd:Parent>{NOBODY}<") == 2
