"""Which engine is meant, what logs in to it, and how our own objects in it are known."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import keyring.backend
import keyring.errors
import pytest

from ingest.cli.configuration import remember_engine, write_file
from ingest.cli.engines import add_engine_arguments, find_engine
from ingest.engine.checkpoints import still_needed
from ingest.engine.events import EngineEvent, tell, tells_broken_chain
from ingest.engine.marks import Mark, make_mark, read_mark
from ingest.engine.settings import EngineSettings, api_url, base_url
from ingest.engine.trust import parse_fingerprint
from vmfs.cli.entry import Parser
from vmfs.cli.settings import EngineTable, load_settings
from vmfs.errors import UsageError, VmfsError

CONFIG = """
# kept
[engine.rhv]
url = "https://engine.example.com"   # the old one
username = "backup@internal"
password_file = "{password}"

[engine.lab]
url = "lab.example.com:8443"
username = "admin@internal"
insecure = true
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "vmfs.toml"
    (tmp_path / "password").write_text("s3 c&r \nnot this\n")
    path.write_text(CONFIG.format(password=tmp_path / "password"))
    monkeypatch.setenv("VMFS_CONFIG", str(path))
    return path


@pytest.fixture
def _no_keyring(monkeypatch: pytest.MonkeyPatch) -> None:
    """An import of it fails, as without the extra."""
    monkeypatch.setitem(sys.modules, "keyring", None)


class Kept(keyring.backend.KeyringBackend):
    """A keyring in memory: a test must not see the user's own."""

    priority = 1  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.passwords: dict[tuple[str, str], str] = {}
        self.locked = False

    def get_password(self, service: str, username: str) -> str | None:
        if self.locked:
            raise keyring.errors.KeyringLocked("nobody has unlocked it")
        return self.passwords.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self.passwords[service, username] = password


@pytest.fixture
def kept() -> Iterator[Kept]:
    before = keyring.get_keyring()
    kept = Kept()
    keyring.set_keyring(kept)
    yield kept
    keyring.set_keyring(before)


def arguments(*words: str) -> argparse.Namespace:
    parser = Parser()
    add_engine_arguments(parser)
    return parser.parse_args(words)


@pytest.mark.parametrize(
    "text",
    [
        "engine.example.com",
        "https://engine.example.com",
        "https://engine.example.com/",
        "https://engine.example.com/ovirt-engine",
        "https://engine.example.com/ovirt-engine/",
        "https://engine.example.com/ovirt-engine/api",
        "https://engine.example.com/ovirt-engine/api/",
    ],
)
def test_the_api_is_found_from_any_address_of_an_engine(text: str) -> None:
    assert api_url(text) == "https://engine.example.com/ovirt-engine/api"


def test_ports_and_ip_addresses_are_kept() -> None:
    assert api_url("127.0.0.1:8443") == "https://127.0.0.1:8443/ovirt-engine/api"
    assert api_url("https://[fd00::1]:444") == "https://[fd00::1]:444/ovirt-engine/api"
    assert base_url(api_url("[fd00::1]")) == "https://[fd00::1]"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("http://engine", "does not begin with https://"),
        ("", "no host name"),
        ("https://", "no host name"),
        ("https://engine/api", "not an engine's URL"),
        ("https://engine/ovirt-engine/api?x=1", "not an engine's URL"),
        ("https://admin:secret@engine", "leave user name and password out"),
        ("https://engine:port", "is no URL"),
        ("https://engine:99999", "is no URL"),
        ("https://[fd00::1", "is no URL"),
        ("https://engi ne", "no host name"),
        ("https://engine\n", "no host name"),
    ],
)
def test_what_is_no_address_of_an_engine(text: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        api_url(text)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_an_engine_by_its_name(config: Path) -> None:
    assert find_engine(arguments("--engine", "rhv")) == EngineSettings(
        name="rhv",
        url="https://engine.example.com/ovirt-engine/api",
        username="backup@internal",
        password="s3 c&r ",
    )


def test_an_engine_by_its_url_is_the_one_of_the_file(config: Path) -> None:
    assert find_engine(arguments("--engine", "https://engine.example.com/")).name == "rhv"


def test_options_come_before_the_file(config: Path, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("other")
    (tmp_path / "ca.pem").write_text("a certificate")
    found = find_engine(
        arguments(
            *("--engine", "lab", "--username", "me@ldap", "--password-file", str(tmp_path / "other")),
            *("--ca-file", str(tmp_path / "ca.pem")),
        )
    )
    assert (found.username, found.password) == ("me@ldap", "other")
    assert found.ca_file == str(tmp_path / "ca.pem")
    assert not found.insecure


def test_no_file_is_needed(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("secret")
    (tmp_path / "ca.pem").write_text("a certificate")
    found = find_engine(
        arguments(
            *("--engine", "https://engine:8443", "--username", "u@internal"),
            *("--password-file", str(tmp_path / "password"), "--ca-file", str(tmp_path / "ca.pem")),
        )
    )
    assert found.url == "https://engine:8443/ovirt-engine/api"
    assert found.name == "engine:8443"


def test_the_only_engine_needs_no_name(config: Path) -> None:
    with pytest.raises(UsageError, match=r"give --engine \(there are several"):
        find_engine(arguments())
    config.write_text(config.read_text().split("[engine.lab]")[0])
    assert find_engine(arguments()).name == "rhv"


def test_a_password_by_a_command(config: Path) -> None:
    config.write_text(
        '[engine.rhv]\nurl = "engine"\nusername = "u"\npassword_command = "printf \'one\\\\ntwo\'"\n'
    )
    assert find_engine(arguments()).password == "one"


def test_a_password_of_the_keyring(config: Path, kept: Kept) -> None:
    config.write_text('[engine.rhv]\nurl = "engine"\nusername = "u"\n')
    keyring.set_password("https://engine", "u", "kept")
    assert find_engine(arguments()).password == "kept"


def test_a_keyring_that_is_locked_or_empty(config: Path, kept: Kept) -> None:
    config.write_text('[engine.rhv]\nurl = "engine"\nusername = "u"\n')
    for kept.locked in (False, True):
        with pytest.raises(UsageError, match="no password for the engine"):
            find_engine(arguments())


@pytest.mark.usefixtures("_no_keyring")
@pytest.mark.parametrize(
    ("text", "words", "told"),
    [
        ("", (), "there is none in the configuration file"),
        ("", ("--engine", "rhv"), "has no engine 'rhv'; add it with: vmfs-ingest engine trust"),
        ("[engine.a]\nurl = 'e'", (), "no user name; give --username"),
        ("[engine.a]\nurl = 'e'\nusername = 'u'", (), "no password for the engine; give --password-file"),
        ("[engine.a]\nurl = 'e'\nusername = 'u'\npassword_file = '/no'", (), "password file of engine a"),
        ("[engine.a]\nurl = 'e'\nusername = 'u'\npassword_file = '/dev/null'", (), "is empty"),
        (
            "[engine.a]\nurl = 'e'\nusername = 'u'\npassword_command = 'false'",
            (),
            "failed with exit status 1",
        ),
        ("[engine.a]\nurl = 'e'\nusername = 'u'\npassword_command = '\"'", (), "check its quotes"),
        ("[engine.a]\nurl = 'e'\nusername = 'u'\nca_file = '/no'", (), "there is no CA file /no"),
        ("[engine.a]\nurl = 'http://e'\nusername = 'u'", (), "does not begin with https://"),
    ],
)
def test_what_cannot_be_found(config: Path, text: str, words: tuple[str, ...], told: str) -> None:
    config.write_text(text)
    with pytest.raises(VmfsError) as caught:
        find_engine(arguments(*words))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_file_of_the_system_and_of_the_user(config: Path) -> None:
    assert load_settings().engines["lab"] == EngineTable(
        "lab.example.com:8443", username="admin@internal", insecure=True
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[engine.a]\n", "[engine.a] has no url"),
        ("engine = 1\n", "write [engine.NAME]"),
        ("[engine.a]\nurl = 1\n", "has a url that is no text"),
        ("[engine.a]\nurl = 'x'\npassword = 'y'\n", "unknown key 'password'"),
        ("[engine.a]\nurl = 'x'\ninsecure = 'yes'\n", "insecure that is neither true nor false"),
        ("[engine.a]\nurl = 'x'\ninsecure = 1\n", "insecure that is neither true nor false"),
        (
            "[engine.a]\nurl = 'x'\npassword_file = 'y'\npassword_command = 'z'\n",
            "both password_file and password_command",
        ),
    ],
)
def test_tables_that_cannot_be_understood(config: Path, text: str, told: str) -> None:
    config.write_text(text)
    with pytest.raises(VmfsError) as caught:
        load_settings()
    assert told in str(caught.value)


def test_settings_do_not_show_the_password() -> None:
    settings = EngineSettings(name="a", url="b", username="c", password="secret", token="ticket")
    assert "secret" not in repr(settings)
    assert "ticket" not in repr(settings)


def test_remembering_an_engine_leaves_the_rest_as_it_is(config: Path) -> None:
    config.chmod(0o640)
    before = config.read_text()
    remember_engine("rhv", {"ca_file": "/etc/ca.pem"})
    assert config.read_text() == before.replace('password"\n', 'password"\nca_file = "/etc/ca.pem"\n')
    assert config.stat().st_mode & 0o777 == 0o640
    remember_engine("new", {"url": "https://other"})
    assert load_settings().engines["new"] == EngineTable("https://other")
    assert load_settings().engines["rhv"].ca_file == "/etc/ca.pem"
    assert "# the old one" in config.read_text()


def test_remembering_an_engine_makes_the_file(config: Path) -> None:
    config.unlink()
    remember_engine("new", {"url": "https://other", "username": 'q"uote'})
    assert load_settings().engines == {"new": EngineTable("https://other", username='q"uote')}
    assert config.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", ["engine = 5\n", "a = [", "[engine.new]\nwrong = 1\n", "\xff"])
def test_a_file_that_cannot_be_understood_is_left_alone(config: Path, text: str) -> None:
    config.write_bytes(text.encode("latin-1"))
    with pytest.raises(VmfsError, match="configuration file"):
        remember_engine("new", {"url": "https://other"})
    assert config.read_bytes() == text.encode("latin-1")
    assert [item.name for item in config.parent.iterdir() if item.name.startswith(".")] == []


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(VmfsError, match="cannot be written"):
        write_file(tmp_path / "file" / "below", b"", mode=0o600)


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_file(tmp_path / "link", b"text", mode=0o600)
    assert os.readlink(tmp_path / "link") == str(tmp_path / "real")
    assert (tmp_path / "real").read_bytes() == b"text"


def test_our_marks() -> None:
    mark = make_mark("01JD5Z8Q8Y0000000000000000", bytes.fromhex("DEADBEEF" + 12 * "00"))
    assert str(mark) == "vmfs 01JD5Z8Q8Y0000000000000000 deadbeef"
    assert read_mark(str(mark)) == mark == Mark("01JD5Z8Q8Y0000000000000000", "deadbeef")
    with pytest.raises(ValueError, match="run id"):
        make_mark("a b", b"1234")


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "vmfs",
        "nightly",
        "vmfs x deadbeef",
        "my vmfs 01JD5Z8Q8Y deadbeef",
        "vmfs 01JD5Z8Q8Y DEADBEEF",
    ],
)
def test_what_is_not_ours(text: str | None) -> None:
    assert read_mark(text) is None


def test_fingerprints() -> None:
    digits = "0123456789abcdef" * 4
    shown = parse_fingerprint(digits)
    assert shown.startswith("01:23:45")
    assert parse_fingerprint(f"SHA256={shown}".replace("SHA256=", "sha256=")) == shown
    assert parse_fingerprint(shown.lower()) == shown
    for wrong in ("", digits[:-1], digits + "0", "z" + digits[1:]):
        with pytest.raises(UsageError, match="no SHA-256 fingerprint"):
            parse_fingerprint(wrong)


def test_what_events_say() -> None:
    events = [EngineEvent(2, 1, "b."), EngineEvent(1, 1, "a"), EngineEvent(3, 1, "b."), EngineEvent(4, 1, "")]
    assert tell(sorted(events), "-") == "a; b"
    assert tell([], "-") == "-"


@pytest.mark.parametrize(
    "event",
    [
        EngineEvent(1, 10791, "anything"),
        EngineEvent(1, 0, "Failed to redefine checkpoint; Full backup is now needed."),
        EngineEvent(1, 0, "VDSM failed: Bitmap does not exist: {'bitmap': 'c1'}"),
        EngineEvent(1, 0, "Bitmap c1 is inconsistent"),
        EngineEvent(1, 0, "Checkpoint inconsistent: missing or broken bitmap"),
        EngineEvent(1, 0, "missing dirty bitmap for disk vda"),
    ],
)
def test_events_that_tell_of_a_broken_chain(event: EngineEvent) -> None:
    assert tells_broken_chain([EngineEvent(0, 0, "Backup started"), event])


def test_events_that_tell_of_something_else() -> None:
    assert not tells_broken_chain([EngineEvent(1, 0, "Backup was taken with a checkpoint")])


def test_checkpoints_that_are_still_needed() -> None:
    def needed(*newest_first: dict[str, str], existing: str, disks: str = "a b") -> set[str]:
        return still_needed(newest_first, existing=existing.split(), disks=disks.split())

    assert needed({"a": "c3"}, {"a": "c2"}, {"a": "c1"}, existing="c1 c2") == {"c2"}
    assert needed({}, {"a": "c2"}, existing="c2") == {"c2"}
    in_turns = {"a": "c3"}, {"b": "c2"}, {"a": "c1", "b": "c1"}
    assert needed(*in_turns, existing="c1 c2 c3") == {"c2", "c3"}
    assert needed(*in_turns, existing="c1 c2 c3", disks="a") == {"c3"}
    assert needed({"a": "c3"}, existing="") == set()
    assert needed(existing="c1") == set()
