"""The lab's engine as the SDK sees it: sessions and backups, and what it refuses."""

from __future__ import annotations

import ssl
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ovirtsdk4
import pytest
from lab_client_helpers import GRAIN, SdkClient, refusal, sdk_client, three_disks
from lab_helpers import DEFAULT, LEGACY, MIB, Lab, LabVm, needs_lab, running_lab
from ovirtsdk4 import types

pytestmark = needs_lab

both_modes = pytest.mark.parametrize("cluster", [DEFAULT, LEGACY], ids=["hybrid", "live"])


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with running_lab(tmp_path_factory.mktemp("lab")) as lab:
        yield lab


@pytest.fixture
def sdk(lab: Lab) -> Iterator[SdkClient]:
    with sdk_client(lab) as client:
        yield client
    assert lab.leftovers() == []


# Sessions.


def test_what_the_engine_is(sdk: SdkClient, lab: Lab) -> None:
    product = sdk.system.get().product_info
    assert product.instance_id == lab.core.id
    assert {cluster.name: (cluster.version.major, cluster.version.minor) for cluster in clusters(sdk)} == {
        DEFAULT: (4, 7),
        LEGACY: (4, 6),
    }
    assert len(sdk.system.hosts_service().list()) == 2
    (domain,) = sdk.system.storage_domains_service().list(search="name=data")
    assert domain.available > 100 * MIB
    assert [profile.name for profile in sdk.system.vnic_profiles_service().list()] == ["ovirtmgmt", "backup"]


def clusters(sdk: SdkClient) -> Any:
    return sdk.system.clusters_service().list()


def test_the_authority_is_given_without_login(lab: Lab) -> None:
    url = lab.url.removesuffix("api") + "services/pki-resource?resource=ca-certificate&format=X509-PEM-CA"
    context = ssl.create_default_context(cafile=lab.ca_file)
    with urllib.request.urlopen(url, context=context) as answer:  # noqa: S310 our own
        assert answer.read() == lab.ca_file.read_bytes()


def test_wrong_password(lab: Lab) -> None:
    connection = ovirtsdk4.Connection(
        url=lab.url, username=lab.username, password="wrong", ca_file=str(lab.ca_file)
    )
    with pytest.raises(
        ovirtsdk4.AuthError, match="access_denied : Cannot authenticate user 'admin@internal'"
    ):
        connection.test(raise_exception=True)


def test_a_session_that_has_ended(sdk: SdkClient, lab: Lab) -> None:
    """The SDK logs in again; one with a token only cannot."""
    token = sdk.connection.authenticate()
    lab.sso.end_all()
    assert sdk.system.get()
    connection = ovirtsdk4.Connection(url=lab.url, token=token, ca_file=str(lab.ca_file))
    with pytest.raises(ovirtsdk4.AuthError):
        connection.test(raise_exception=True)


def test_the_engine_restarts(sdk: SdkClient, lab: Lab) -> None:
    vm = three_disks(lab)
    with sdk.backup(vm) as backup:
        lab.restart_engine(downtime=0)
        assert (
            sdk.read(vm, backup, "root") == (lab.backup_records(vm)[backup.id][vm.disks["root"]]).read_bytes()
        )


# Backups.


@both_modes
@pytest.mark.parametrize("up", [True, False], ids=["up", "down"])
def test_full_and_incremental(sdk: SdkClient, lab: Lab, cluster: str, up: bool, tmp_path: Path) -> None:
    """Each disk as it was at the instant of the backup, and what changed since the one before."""
    vm = three_disks(lab, cluster=cluster)
    if not up:
        vm.stop()
    with sdk.backup(vm) as backup:
        if up:
            vm.write("root", 0, b"too late")
        assert sdk.modes(vm, backup) == {"root": "full", "raw": "full", "deep": "full"}
        check(sdk, lab, vm, backup)
    first = backup.to_checkpoint_id
    if not up:
        vm.start()
        vm.write("root", 0, b"too late")
    vm.write("deep", 3 * MIB, b"changed")
    vm.write("raw", MIB, b"changed")
    if not up:
        vm.stop()
    with sdk.backup(vm, since=first) as backup:
        assert backup.from_checkpoint_id == first
        assert (backup.snapshot is None) == (cluster == LEGACY)
        assert sdk.modes(vm, backup) == {"root": "incremental", "raw": "full", "deep": "incremental"}
        check(sdk, lab, vm, backup)
        assert sdk.dirty(vm, backup, "root") == [(0, GRAIN)]
        assert sdk.dirty(vm, backup, "deep") == [(3 * MIB, GRAIN)]
    chain = sdk.vm(vm).checkpoints_service().list()
    assert [(each.id, each.parent_id) for each in chain] == [(first, None), (backup.to_checkpoint_id, first)]
    member_ids = sdk.vm(vm).checkpoints_service().checkpoint_service(first).disks_service().list()
    assert {disk.id for disk in member_ids} == {vm.disks["root"], vm.disks["deep"]}
    sdk.vm(vm).checkpoints_service().checkpoint_service(first).remove()
    (left,) = sdk.vm(vm).checkpoints_service().list()
    assert left.parent_id is None


def check(sdk: SdkClient, lab: Lab, vm: LabVm, backup: Any) -> None:
    records = lab.backup_records(vm)[backup.id]
    for alias, disk_id in vm.disks.items():
        assert sdk.read(vm, backup, alias) == records[disk_id].read_bytes(), alias


def test_legacy_on_a_new_cluster(sdk: SdkClient, lab: Lab) -> None:
    vm = three_disks(lab)
    with sdk.backup(vm, legacy=True) as backup:
        assert backup.snapshot is None
        locked = {str(sdk.disks.disk_service(disk).get().status) for disk in vm.disks.values()}
        assert locked == {"locked"}


def test_raw_disks_only(sdk: SdkClient, lab: Lab) -> None:
    """A live backup of raw disks takes no checkpoint."""
    vm = three_disks(lab, cluster=LEGACY)
    with sdk.backup(vm, disks=[vm.disks["raw"]]) as backup:
        assert backup.to_checkpoint_id is None
        assert sdk.read(vm, backup, "raw")[:3] == b"www"


@both_modes
def test_what_is_refused_during_a_backup(sdk: SdkClient, lab: Lab, cluster: str) -> None:
    vm = three_disks(lab, cluster=cluster)
    earlier = sdk.checkpoint(vm)
    snapshot = sdk.vm(vm).snapshots_service().list()[1]
    with sdk.backup(vm) as backup:
        for refused in (
            lambda: sdk.add_backup(vm),
            sdk.vm(vm).migrate,
            sdk.vm(vm).stop,
            sdk.vm(vm).snapshots_service().snapshot_service(snapshot.id).remove,
            sdk.vm(vm).checkpoints_service().checkpoint_service(earlier).remove,
            lambda: sdk.add_transfer(vm.disks["root"]),
        ):
            with refusal(409):
                refused()
        service = sdk.add_transfer(vm.disks["root"], backup=backup.id)
        sdk.until_phase(service, "transferring")
        with refusal(409):  # while there is a transfer
            sdk.vm(vm).backups_service().backup_service(backup.id).finalize()
        sdk.finish(service)
        with refusal(400):
            sdk.add_transfer(vm.disks["root"], backup=backup.id, format=types.DiskFormat.COW)


def test_bad_requests(sdk: SdkClient, lab: Lab) -> None:
    vm = three_disks(lab)
    for options in (
        {"since": "0c0c0c0c-0000-0000-0000-000000000001"},
        {"disks": ["0d0d0d0d-0000-0000-0000-000000000001"]},
    ):
        with refusal(400):
            sdk.add_backup(vm, **options)
    service = sdk.vm(vm).backups_service()
    disks = [types.Disk(id=disk) for disk in vm.disks.values()]
    asked = types.Backup(id="0b0b0b0b-0000-0000-0000-000000000001", disks=disks)
    one = service.backup_service(service.add(asked).id)
    sdk.until_phase(one, "ready")
    one.finalize()
    sdk.until_phase(one, "succeeded")
    with refusal(400):
        service.add(asked)
    with refusal(400):  # twice
        one.finalize()


def test_finalizing_early(sdk: SdkClient, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A live backup fails by it, a hybrid one ends as soon as it can."""
    answers: list[int | None] = []

    def finalize(facts: Mapping[str, Any]) -> None:
        try:
            sdk.vm(facts["vm"]).backups_service().backup_service(facts["backup"]).finalize()
        except ovirtsdk4.Error as error:
            answers.append(error.code)
        else:
            answers.append(200)

    # At a moment when the backup is not ready: in place of what else could happen there.
    monkeypatch.setitem(lab.faults.actions, "sso-expired", finalize)
    for cluster, answer, end in ((LEGACY, 400, "failed"), (DEFAULT, 200, "succeeded")):
        lab.faults.break_("sso-expired", at="backup-starting")
        service = sdk.add_backup(three_disks(lab, cluster=cluster))
        assert str(sdk.until_phase(service, "failed", "succeeded").phase) == end
        assert answers.pop() == answer


def test_a_hard_power_off(sdk: SdkClient, lab: Lab) -> None:
    """Real bitmaps become inconsistent: a live backup fails and takes all checkpoints with it; a hybrid one
    is ready, and its transfer fails."""
    live, hybrid = three_disks(lab, cluster=LEGACY), three_disks(lab)
    since = [sdk.checkpoint(vm) for vm in (live, hybrid)]
    for vm in (live, hybrid):
        vm.write("root", 0, b"changed")
        lab.faults.break_("power-off-hard", vm=vm.id)
    service = sdk.add_backup(live, since=since[0])
    assert str(sdk.until_phase(service, "ready", "failed").phase) == "failed"
    assert sdk.event_codes()[1] == 10791
    assert sdk.vm(live).checkpoints_service().list() == []
    with sdk.backup(hybrid, since=since[1]) as backup:
        assert sdk.modes(hybrid, backup)["root"] == "incremental"
        transfer = sdk.add_transfer(hybrid.disks["root"], backup=backup.id)
        assert str(sdk.until_phase(transfer, "finished_failure", "transferring").phase) == "finished_failure"
        (told,) = sdk.system.events_service().list(search="StartNbdServer", max=1)
        assert "Bitmap does not exist" in told.description


def test_backups_across_snapshots(sdk: SdkClient, lab: Lab) -> None:
    """Checkpoints stay when a snapshot is taken and removed."""
    vm = three_disks(lab)
    since = sdk.checkpoint(vm)
    vm.write("root", 0, b"one")
    snapshot = vm.snapshot()
    vm.write("root", 2 * MIB, b"two")
    with sdk.backup(vm, since=since) as backup:
        assert sdk.dirty(vm, backup, "root") == [(0, GRAIN), (2 * MIB, GRAIN)]
        check(sdk, lab, vm, backup)
    vm.remove_snapshot(snapshot)
    with sdk.backup(vm, since=since, legacy=True) as backup:
        assert sdk.dirty(vm, backup, "root") == [(0, GRAIN), (2 * MIB, GRAIN)]
        check(sdk, lab, vm, backup)
