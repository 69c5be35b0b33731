"""vmfs init as users call it: what it makes, and every way in which it may be refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from blake3 import blake3
from command_helpers import Site, spawn
from refusal_helpers import can_drop_rights, refused, unprivileged


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = Site(tmp_path)
    made.write_passphrase()
    return made


QUICK = ("--kdf-cost", 10)


def test_a_repository_is_made(site: Site) -> None:
    done = spawn("vmfs", "init", site.repository, *site.options(), *QUICK)
    assert (done.returncode, done.stderr) == (0, b"")
    assert str(site.repository).encode() in done.stdout
    assert sorted(path.name for path in site.repository.iterdir()) == ["config", "epochs", "keys"]
    assert all(path.stat().st_mode & 0o077 == 0 for path in site.repository.rglob("*"))
    assert site.vmfs("verify").status == 0


def test_json_and_chunk_size(site: Site) -> None:
    done = spawn("vmfs", "init", "--json", "--chunk-size", "1M", site.repository, *site.options(), *QUICK)
    facts = json.loads(done.stdout)
    assert facts["chunk_size"] == 1 << 20
    assert facts["repository"] == str(site.repository)
    assert len(facts["id"]) == 32


def test_an_empty_directory_will_do(site: Site) -> None:
    site.repository.mkdir()
    assert spawn("vmfs", "init", site.repository, *site.options(), *QUICK).returncode == 0


def test_a_path_that_is_no_text(site: Site) -> None:
    path = os.fsencode(site.root) + b"/re\xffpo"
    done = spawn("vmfs", "init", os.fsdecode(path), *site.options(), *QUICK)
    assert (done.returncode, done.stderr) == (0, b"")
    assert os.path.isfile(path + b"/config")
    done = spawn("vmfs", "verify", os.fsdecode(path), *site.options(), "--json")
    assert json.loads(done.stdout)["sound"]


def test_quiet(site: Site) -> None:
    done = spawn("vmfs", "init", "-q", site.repository, *site.options(), *QUICK)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_a_key_file(site: Site) -> None:
    key = site.root / "key"
    key.write_bytes(os.urandom(64))
    assert spawn("vmfs", "init", site.repository, "--key-file", key).returncode == 0
    assert spawn("vmfs", "verify", site.repository, "--key-file", key).returncode == 0


def test_not_empty(site: Site) -> None:
    site.repository.mkdir()
    (site.repository / "letter").write_text("dear")
    line = refused(site.root, 1, "vmfs", "init", site.repository, *site.options(), *QUICK)
    assert line.endswith("is not empty; a repository starts in an empty directory")


def test_twice(site: Site) -> None:
    site.init()
    refused(site.root, 1, "vmfs", "init", site.repository, *site.options(), *QUICK)
    assert site.vmfs("verify").status == 0


@pytest.mark.parametrize("kind", ["file", "dangling link"])
def test_not_a_directory(site: Site, kind: str) -> None:
    if kind == "file":
        site.repository.write_text("x")
    else:
        site.repository.symlink_to("nowhere")
    line = refused(site.root, 1, "vmfs", "init", site.repository, *site.options(), *QUICK)
    assert "is not a directory; choose another place" in line


def test_below_what_is_not_there(site: Site) -> None:
    line = refused(site.root, 1, "vmfs", "init", site.root / "no/where", *site.options(), *QUICK)
    assert f"{site.root / 'no'} does not exist" in line


@can_drop_rights
@pytest.mark.parametrize("mode", [0o000, 0o500])
def test_no_permission(site: Site, mode: int) -> None:
    parent = site.root / "parent"
    parent.mkdir()
    parent.chmod(mode)
    words = unprivileged("vmfs", "init", parent / "repository", *site.options(), *QUICK)
    line = refused(site.root, 1, *words)
    assert "permission denied; run as the repository's owner" in line


@pytest.mark.parametrize(
    ("options", "status", "told"),
    [
        (["--chunk-size", "100K"], 2, "power of two"),
        (["--chunk-size", "8M"], 2, "64K to 4M"),
        (["--chunk-size", "many"], 2, "'many' is not a size"),
        (["--chunk-size", ""], 2, "is not a size"),
        (["--chunk-size", "\u0661M"], 2, "is not a size"),
        (["--chunk-size", "\u00b2M"], 2, "is not a size"),
        (["--kdf-cost", "5"], 2, "scrypt cost 5"),
        (["--kdf-cost", "99"], 2, "scrypt cost 99"),
        (["--kdf-cost", "x"], 2, "invalid int value"),
        (["--nonsense"], 2, "--nonsense"),
    ],
)
def test_options_that_cannot_be(site: Site, options: list[str], status: int, told: str) -> None:
    assert told in refused(site.root, status, "vmfs", "init", site.repository, *site.options(), *options)


def test_no_repository_is_named(site: Site) -> None:
    line = refused(site.root, 2, "vmfs", "init", *site.options())
    assert line == "vmfs: no repository; give REPO or set VMFS_REPOSITORY"


@pytest.mark.parametrize("place", ["s3://bucket/x", "http://host/x"])
def test_places_that_cannot_be(site: Site, place: str) -> None:
    line = refused(site.root, 2, "vmfs", "init", place, *site.options())
    assert line == f"vmfs: {place}: only local directories can hold a repository so far; give a path"


@pytest.mark.parametrize(
    ("secret", "status", "told"),
    [
        (["--passphrase-file", "missing"], 1, "passphrase file missing: No such file or directory"),
        (["--passphrase-file", "/"], 1, "passphrase file /: Is a directory"),
        (["--passphrase-file", "empty"], 2, "the passphrase is empty"),
        (["--passphrase-file", "blank"], 2, "the passphrase is empty"),
        (["--key-file", "short"], 2, "the key file is too short"),
        (["--passphrase-command", "false"], 1, "failed with exit status 1"),
        (["--passphrase-command", "sh -c 'kill -9 $$'"], 1, "ended by signal 9"),
        (["--passphrase-command", "no-such-program -x"], 1, "no-such-program: No such file or directory"),
        (["--passphrase-command", "echo 'x"], 2, "check its quotes"),
        (["--passphrase-command", "true"], 2, "the passphrase is empty"),
        (["--passphrase-command", ""], 2, "no passphrase; give --passphrase-file"),
        ([], 2, "no passphrase; give --passphrase-file, --passphrase-command or --key-file"),
        (["--key-file", "short", "--passphrase-file", "empty"], 2, "not allowed with argument"),
    ],
)
def test_secrets_that_cannot_be(site: Site, secret: list[str], status: int, told: str) -> None:
    (site.root / "empty").write_bytes(b"")
    (site.root / "blank").write_bytes(b"\nsecond line\n")
    (site.root / "short").write_bytes(b"too short")
    line = refused(site.root, status, "vmfs", "init", site.repository, *secret, cwd=site.root)
    assert told in line


def test_the_first_line_is_the_passphrase(site: Site) -> None:
    site.init()
    for content in (b"correct horse", b"correct horse\r\n", b"correct horse\nmore\n"):
        site.passphrase.write_bytes(content)
        assert site.vmfs("verify").status == 0
    done = spawn("vmfs", "verify", site.repository, "--passphrase-command", "echo correct horse")
    assert done.returncode == 0


OPENING = (("points",), ("verify",), ("stats",), ("rebuild",))
"""Commands that open a repository and need no more than that."""


@pytest.mark.parametrize("command", OPENING, ids=" ".join)
def test_wrong_passphrase(site: Site, command: tuple[str, ...]) -> None:
    site.init()
    site.passphrase.write_text("wrong horse\n")
    line = refused(site.root, 1, "vmfs", *command, site.repository, *site.options())
    assert (
        line
        == f"vmfs: wrong passphrase for {site.repository}; check it, and that this is the right repository"
    )


@pytest.mark.parametrize("command", OPENING, ids=" ".join)
def test_not_a_repository(site: Site, command: tuple[str, ...]) -> None:
    site.repository.mkdir()
    (site.repository / "letter").write_text("dear")
    for place in (site.repository, site.root / "nowhere"):
        line = refused(site.root, 1, "vmfs", *command, place, *site.options())
        assert line.startswith(f"vmfs: {place} is not a vmfs repository; ")
    refused(site.root, 1, "vmfs", *command, site.repository / "letter", *site.options())


@pytest.mark.parametrize("command", OPENING, ids=" ".join)
def test_a_repository_of_a_later_version(site: Site, command: tuple[str, ...]) -> None:
    site.init()
    config = site.repository / "config"
    data = bytearray(config.read_bytes())
    data[4] += 1
    config.chmod(0o600)
    config.write_bytes(data[:-32] + blake3(data[:-32]).digest())
    line = refused(site.root, 3, "vmfs", *command, site.repository, *site.options())
    assert line == "vmfs: the repository has format version 2; this program knows 1: use a later vmfs"


def test_a_damaged_config(site: Site) -> None:
    site.init()
    config = site.repository / "config"
    good = config.read_bytes()
    for bad in (b"", good[:50], b"x" + good[1:], good[:20] + b"xx" + good[22:], good + b"x"):
        config.write_bytes(bad)
        done = site.vmfs("points")
        assert (done.status, done.out, done.err.count("\n")) == (3, "", 1)
        assert "config is" in done.err
