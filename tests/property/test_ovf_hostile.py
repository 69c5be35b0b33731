"""OVFs that somebody has tampered with: an OvfError of one line, or an OVF that means what was read of it."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from ovf_helpers import DISKS, PLAIN, SAMPLE

from ingest.engine.ovf import Changes, NewDisk, NewNic, Ovf, OvfError, parse_ovf, rewrite_ovf

thorough = settings(deadline=None, max_examples=400)

TOKENS = [
    *(b"<", b">", b"/>", b"</", b"&", b"&amp;", b"&#0;", b"&#x41;", b'"', b"'", b"=", b"]]>", b"<![CDATA["),
    *(b"<!--", b"-->", b"<?x?>", b"<!DOCTYPE a>", b"\0", b"\xff", b"\xef\xbb\xbf", b"\n", b" "),
    *(b"<Item>", b"</Item>", b"<Name>x</Name>", b"<Section>", b"</Section>", b' ovf:id="x"', b"xmlns:ovf"),
    *(b"rasd:", b"<Snapshot>", b"10", b"17", DISKS[0].encode(), DISKS[1].encode()),
]


@st.composite
def tampered(draw: st.DrawFn) -> bytes:
    """The sample with a few pieces taken out, doubled, moved or replaced."""
    data = draw(st.sampled_from((SAMPLE, PLAIN)))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.sampled_from((0, 1, 5, 40, 400))))
        copied = draw(st.integers(0, len(data)))
        size = draw(st.integers(0, 600))
        pieces = st.one_of(
            st.sampled_from(TOKENS), st.binary(max_size=8), st.just(data[copied : copied + size])
        )
        data = data[:start] + draw(pieces) + data[end:]
    return data


def try_parse(data: bytes) -> Ovf | None:
    refusal = ""
    try:
        return parse_ovf(data)
    except OvfError as error:
        refusal = str(error)
    assert "\n" not in refusal
    return None


@thorough
@given(data=tampered())
def test_tampered(data: bytes) -> None:
    ovf = try_parse(data)
    if ovf is None:
        return
    changes = Changes(
        name="restored",
        vm_id="beef0000-0000-4000-8000-000000000000",
        disks={disk.id: NewDisk(id=disk.id) for disk in ovf.disks},
        nics={nic.id: NewNic(mac="") for nic in ovf.nics},
    )
    again = parse_ovf(rewrite_ovf(data, changes))
    assert again.vm_id == "beef0000-0000-4000-8000-000000000000"
    assert again.name == "restored"
    assert [disk.id for disk in again.disks] == [disk.id for disk in ovf.disks]
    assert [disk.image_id for disk in again.disks] == [disk.image_id for disk in ovf.disks]
    assert [nic.id for nic in again.nics] == [nic.id for nic in ovf.nics]
    assert parse_ovf(rewrite_ovf(data, Changes())).disks == ()


@thorough
@given(data=st.binary(max_size=300))
def test_noise(data: bytes) -> None:
    assert try_parse(data) is None


@thorough
@given(name=st.text(min_size=1, max_size=40), cluster=st.text(max_size=40), alias=st.text(max_size=40))
def test_what_is_written_is_escaped(name: str, cluster: str, alias: str) -> None:
    """Names are no way to write other elements: all but the texts is as it was."""
    changes = Changes(
        name=name,
        cluster=cluster,
        disks={DISKS[0]: NewDisk(id=DISKS[0], alias=alias), DISKS[1]: NewDisk(id=DISKS[1])},
    )
    changed = rewrite_ovf(PLAIN, changes)
    back = Changes(
        name="web",
        cluster="Default",
        disks={DISKS[0]: NewDisk(id=DISKS[0], alias="root"), DISKS[1]: NewDisk(id=DISKS[1])},
    )
    refusal = ""
    try:
        assert rewrite_ovf(changed, back) == PLAIN
    except OvfError as error:
        refusal = str(error)
    assert not refusal or "name" in refusal
