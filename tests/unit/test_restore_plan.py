"""What a restore decides before it does anything: names, space, storage domains, vNIC profiles."""

from __future__ import annotations

import pytest
from ovf_helpers import MACS, NICS, PLAIN

from ingest.engine.networks import Profile, find_profile, lost_profiles, parse_mapping, plan_nics
from ingest.engine.ovf import parse_ovf
from ingest.engine.restore_plan import free_name
from ingest.engine.storage import StorageDomain, check_space, choose_domain, space_needed
from vmfs.errors import UsageError, VmfsError

GIB = 1 << 30
FAST = StorageDomain(id="f", name="fast", available=10 * GIB, block=False)
LARGE = StorageDomain(id="l", name="large", available=900 * GIB, block=True)
SILENT = StorageDomain(id="s", name="silent", available=None, block=False)
PROFILES = [
    Profile(id="1", name="lan", network="lan"),
    Profile(id="2", name="lan", network="dmz"),
    Profile(id="3", name="backup", network="backup"),
]


def test_names() -> None:
    assert free_name("web", set()) == "web"
    assert free_name("web", {"web"}) == "web-1"
    assert free_name("web", {"web", "web-1", "web-3"}) == "web-2"
    assert free_name("x" * 255, {"x" * 255}) == "x" * 253 + "-1"


def test_domains() -> None:
    known = [FAST, LARGE, SILENT]
    assert choose_domain(known, "large", ["f"]) is LARGE
    assert choose_domain(known, "s", []) is SILENT
    assert choose_domain(known, None, [None, "gone", "f"]) is FAST
    assert choose_domain(known, None, [None, "silent"]) is SILENT
    assert choose_domain(known, None, [None, "gone"]) is LARGE
    with pytest.raises(
        UsageError, match="no storage domain 'x' for this; there is 'fast', 'large', 'silent'"
    ):
        choose_domain(known, "x", [])
    with pytest.raises(UsageError, match="no active storage domain"):
        choose_domain([], None, ["f"])
    twin = StorageDomain(id="t", name="fast", available=1, block=False)
    with pytest.raises(UsageError, match="2 storage domains are called 'fast'; give the id: f, t"):
        choose_domain([FAST, twin], "fast", [])


def test_space() -> None:
    assert space_needed(GIB, 5 << 20, "raw", sparse=True) == 5 << 20
    assert space_needed(GIB, 5 << 20, "raw", sparse=False) == GIB
    assert space_needed(GIB, 5 << 20, "cow", sparse=False) == GIB
    assert 5 << 20 < space_needed(GIB, 5 << 20, "cow", sparse=True) < 6 << 20
    # The last chunk of a disk reaches past its end.
    assert space_needed(5 << 20, 6 << 20, "raw", sparse=True) == 5 << 20
    check_space([(FAST, 9 * GIB), (LARGE, 100 * GIB), (SILENT, 1 << 60)])
    with pytest.raises(
        VmfsError, match=r"fast has 10\.0 GiB free, and the restore needs 12\.0 GiB; free some"
    ):
        check_space([(FAST, 6 * GIB), (LARGE, 1), (FAST, 6 * GIB)])


def test_profiles() -> None:
    assert parse_mapping(["lan", "dmz=backup", "a/b=c/d"]) == {"": "lan", "dmz": "backup", "a/b": "c/d"}
    assert find_profile(PROFILES, "backup") is PROFILES[2]
    assert find_profile(PROFILES, "dmz/lan") is PROFILES[1]
    assert find_profile(PROFILES, "1") is PROFILES[0]
    with pytest.raises(UsageError, match="2 vNIC profiles are called 'lan'; write one of dmz/lan, lan/lan"):
        find_profile(PROFILES, "lan")
    with pytest.raises(
        UsageError, match="no vNIC profile 'x' for this cluster; there is backup/backup, dmz/lan"
    ):
        find_profile(PROFILES, "x")
    for words in (["a=b", "a=c"], ["=a"], ["a="], [""]):
        with pytest.raises(UsageError):
            parse_mapping(words)


def test_nics() -> None:
    ovf = parse_ovf(PLAIN)
    planned, warnings = plan_nics(ovf, {}, {}, keep_mac=False, keep_ids=False)
    assert warnings == []
    assert all(
        nic.mac == "" and nic.id not in (None, *NICS) and not nic.unplugged for nic in planned.values()
    )
    in_use = {MACS[1].lower(): "other"}
    mapping = {"backup": PROFILES[2], "": PROFILES[0]}
    planned, (warning,) = plan_nics(ovf, mapping, in_use, keep_mac=True, keep_ids=True)
    assert warning.startswith(
        f"NIC nic2 stays unplugged: its MAC address {MACS[1].lower()} is in use by VM other"
    )
    assert [nic.unplugged for nic in planned.values()] == [False, True]
    assert [(nic.id, nic.mac) for nic in planned.values()] == [(None, None), (None, None)]
    assert [nic.profile for nic in planned.values()] == ["lan", "backup"]
    assert lost_profiles(ovf, [], planned) == []
    planned, _ = plan_nics(ovf, {"backup": PROFILES[2]}, {}, keep_mac=True, keep_ids=True)
    (lost,) = lost_profiles(ovf, PROFILES, planned)
    assert lost.startswith(
        "NIC nic1 will have no network: the engine has no vNIC profile ovirtmgmt/ovirtmgmt"
    )
