"""key add, remove and list."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_helpers import Site, call, spawn


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = Site(tmp_path)
    site.init()
    return site


def opens(site: Site, *secret: object) -> bool:
    return call("vmfs", "points", site.repository, "--cache-dir", site.cache, *secret).status == 0


def slots(site: Site) -> list[dict[str, str]]:
    listed: list[dict[str, str]] = call("vmfs", "key", "list", site.repository, "--json").json()
    return listed


def test_change_a_passphrase(site: Site, tmp_path: Path) -> None:
    new = tmp_path / "new"
    new.write_text("tr0ub4dor\n")
    added = site.vmfs(
        "key add", "--new-passphrase-file", new, "--label", "zwei 2", "--kdf-cost", 10, "--json"
    ).json()
    first, second = slots(site)
    assert (second["id"], second["label"], second["kdf"]) == (added["id"], "zwei 2", "passphrase")
    assert opens(site, "--passphrase-file", site.passphrase)
    assert opens(site, "--passphrase-file", new)

    # What one has opened with cannot be removed: nothing would show that another key works.
    refused = site.vmfs("key remove", first["id"])
    assert refused.status == 2
    assert "open it with another" in refused.err
    arguments = (site.repository, first["id"][:6], "--passphrase-file", new, "--cache-dir", site.cache)
    assert call("vmfs", "key", "remove", *arguments).status == 0
    assert not opens(site, "--passphrase-file", site.passphrase)
    assert opens(site, "--passphrase-file", new)
    assert [slot["id"] for slot in slots(site)] == [second["id"]]


def test_key_file(site: Site, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(bytes(range(64)))
    assert site.vmfs("key add", "--new-key-file", key).status == 0
    assert opens(site, "--key-file", key)
    key.write_bytes(bytes(range(1, 65)))
    assert not opens(site, "--key-file", key)
    assert {slot["kdf"] for slot in slots(site)} == {"passphrase", "key-file"}


def test_points_of_a_removed_key_stay(site: Site, tmp_path: Path) -> None:
    disk, key = tmp_path / "disk.raw", tmp_path / "key"
    disk.write_bytes(bytes(range(256)) * 512)
    key.write_bytes(bytes(64))
    site.ingest("web", disk)
    site.vmfs("key add", "--new-key-file", key)
    first = slots(site)[0]["id"]
    opened = ("--key-file", key, "--cache-dir", site.cache)
    assert call("vmfs", "key", "remove", site.repository, first, *opened).status == 0
    shown = call("vmfs", "show", site.repository, "web@latest", *opened)
    assert "Signed by:   a key that is gone" in shown.out
    assert call("vmfs", "verify", site.repository, "--data", *opened).status == 0


def test_listing_takes_no_key_and_shows_damage(site: Site) -> None:
    key = next((site.repository / "keys").iterdir())
    table = spawn("vmfs", "key", "list", site.repository)
    assert table.returncode == 0
    assert key.name.encode() in table.stdout
    key.write_bytes(key.read_bytes()[:50])
    (slot,) = slots(site)
    assert slot["error"]
    assert b"damaged" in spawn("vmfs", "key", "list", site.repository).stdout


@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        (["remove"], 2, "takes a repository and the id of a key slot"),
        (["remove", "ffff"], 2, "names no key slots; there are:"),
        (["add", "--new-passphrase-file", "/nowhere"], 1, "passphrase file /nowhere"),
        (["add", "--new-passphrase-command", "false"], 1, "passphrase command failed"),
        (["add", "--new-passphrase-command", "true"], 2, "the passphrase is empty"),
        (["add", "--new-key-file", "/dev/null"], 2, "key file is too short"),
    ],
)
def test_refusals(site: Site, argv: list[str], status: int, message: str) -> None:
    done = site.vmfs(f"key {argv[0]}", *argv[1:])
    assert done.status == status
    assert message in done.err
    assert len(slots(site)) == 1


def test_no_action() -> None:
    assert call("vmfs", "key").status == 2


def test_not_a_repository(tmp_path: Path) -> None:
    done = call("vmfs", "key", "list", tmp_path)
    assert done.status == 1
    assert "is not a vmfs repository" in done.err
