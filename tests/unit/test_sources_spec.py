"""How disks are named on a command line."""

from __future__ import annotations

import pytest

from ingest.nbd import Address
from ingest.sources import DiskSpec, parse_spec
from vmfs.errors import UsageError


@pytest.mark.parametrize(
    ("text", "alias", "location"),
    [
        ("disk.raw", "disk", "disk.raw"),
        ("/srv/vm/root.disk.qcow2", "root.disk", "/srv/vm/root.disk.qcow2"),
        ("/dev/vg/lv", "lv", "/dev/vg/lv"),
        ("sda=/srv/x.raw", "sda", "/srv/x.raw"),
        ("sda=a=b.raw", "sda", "a=b.raw"),
        ("./a=b.raw", "a=b", "./a=b.raw"),
        ("/srv/a=b/c.raw", "c", "/srv/a=b/c.raw"),
        ("nbd://host/sda", "sda", "nbd://host/sda"),
        ("nbd://host", "host", "nbd://host"),
        ("nbd+unix:///?socket=/run/vm.sock", "vm", "nbd+unix:///?socket=/run/vm.sock"),
        ("nbd+unix:///vda?socket=/run/vm.sock", "vda", "nbd+unix:///vda?socket=/run/vm.sock"),
        ("nbd:localhost:10809:exportname=x", "x", "nbd:localhost:10809:exportname=x"),
        ("sda=nbd+unix:///?socket=/run/a=b", "sda", "nbd+unix:///?socket=/run/a=b"),
    ],
)
def test_alias_and_location(text: str, alias: str, location: str) -> None:
    assert parse_spec(text) == DiskSpec(alias, location)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no path"),
        ("sda=", "has no path"),
        ("=x.raw", "is 0 bytes long"),
        ("..=x.raw", "cannot be a file name"),
        ("a\nb=x.raw", "control character"),
        ("b" * 300 + "=x.raw", "300 bytes long"),
        ("/srv/" + "b" * 300 + ".raw", "write ALIAS="),
        ("/srv/\udcff.raw", "not valid UTF-8"),
        ("/", "write ALIAS="),
        ("nbd://host/a/b", "write ALIAS="),
    ],
)
def test_bad_names(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse_spec(text)
    assert "\n" not in str(caught.value)


def test_formats() -> None:
    assert parse_spec("x.img", format="raw").format == "raw"
    with pytest.raises(UsageError, match="unknown disk format 'qcow3'; use one of raw, qcow2"):
        parse_spec("x.img", format="qcow3")
    with pytest.raises(UsageError, match="leave out the format"):
        parse_spec("nbd://host/x", format="qcow2")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("nbd://host", Address("", host="host")),
        ("nbd://host:99/", Address("", host="host", port=99)),
        ("nbd://[::1]:99/x", Address("x", host="::1", port=99)),
        ("nbd://host//x", Address("/x", host="host")),
        ("nbd://host/a%20b%2Fc", Address("a b/c", host="host")),
        ("nbd+unix:///?socket=/a/b", Address("", path="/a/b")),
        ("nbd+unix:///x?socket=/a%3Fb", Address("x", path="/a?b")),
        ("nbd:unix:/a/b", Address("", path="/a/b")),
        ("nbd:unix:/a:b:exportname=x:y", Address("x:y", path="/a:b")),
        ("nbd:host:99", Address("", host="host", port=99)),
        ("nbd:[::1]:99:exportname=x", Address("x", host="::1", port=99)),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert Address.parse(text) == address


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nbds://host/x", "TLS is not supported"),
        ("nbd+vsock://2/x", "scheme nbd\\+vsock is not supported"),
        ("nbd+unix:///x", "needs \\?socket="),
        ("nbd+unix://host/x?socket=/a", "no host"),
        ("nbd:///x", "has no host"),
        ("nbd://host/x?socket=/a", "goes with nbd\\+unix"),
        ("nbd://host:99999/x", "ort out of range"),
        ("nbd://host:x/", "not an NBD address"),
        ("nbd://[::1/x", "not an NBD address"),
        ("nbd://host/x#y", "fragment"),
        ("nbd:host", "neither a URI nor"),
        ("nbd:host:0", "out of range"),
        ("nbd://host/%00", "NUL"),
        ("nbd://host/" + "x" * 5000, "longer than 4096"),
    ],
)
def test_bad_addresses(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Address.parse(text)
