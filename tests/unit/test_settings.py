"""The configuration files: what they may say, and what is told when they cannot be understood."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmfs.cli.settings import RepositorySettings, Settings, load_settings
from vmfs.errors import VmfsError

GOOD = """
default = "main"
[repository.main]
url = "/backup/main"
passphrase_file = "/etc/vmfs/main.pass"
catalog = "postgresql+psycopg://vmfs@/vmfs"
[repository."with space"]
url = "/backup/other"
key_file = "/etc/vmfs/key"
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "vmfs.toml"
    monkeypatch.setenv("VMFS_CONFIG", str(path))
    return path


def test_named_repositories(config: Path) -> None:
    config.write_text(GOOD)
    settings = load_settings()
    assert settings.default == "main"
    assert settings.find("main") == RepositorySettings(
        "/backup/main", passphrase_file="/etc/vmfs/main.pass", catalog="postgresql+psycopg://vmfs@/vmfs"
    )
    assert settings.find("with space").key_file == "/etc/vmfs/key"
    assert settings.find("/some/path") == RepositorySettings("/some/path")


def test_an_empty_file_says_nothing(config: Path) -> None:
    config.write_text("")
    assert load_settings() == Settings({})


def test_no_file_is_needed() -> None:
    assert load_settings() == Settings({})


def test_the_users_file_goes_over_that_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "vmfs").mkdir()
    (tmp_path / "vmfs/vmfs.toml").write_text(GOOD)
    assert load_settings().default == "main"


def test_text_of_other_scripts(config: Path) -> None:
    config.write_bytes('[repository."büro"]\nurl = "/sauvegardé"\n'.encode())
    assert load_settings().find("büro").url == "/sauvegardé"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"url = [", "Invalid value"),
        (b"\xff = 1", "utf-8"),
        (b"[repository.a]\n", "[repository.a] has no url"),
        (b"[repository]\na = 5\n", "[repository.a] has no url"),
        (b'repository = "x"\n', "write [repository.NAME]"),
        (b"[[repository]]\nurl = 'x'\n", "write [repository.NAME]"),
        (b"[repository.a]\nurl = 5\n", "has a url that is no text"),
        (b"[repository.a]\nurl = ''\n", "has a url that is no text"),
        (b"[repository.a]\nurl = 'x'\npassphrase = 'y'\n", "unknown key 'passphrase'"),
        (b"[repository.a]\nurl = 'x'\nkey_file = ['y']\n", "has a key_file that is no text"),
        (b"default = 'b'\n[repository.a]\nurl = 'x'\n", "default names 'b'"),
        (b"default = ['a']\n[repository.a]\nurl = 'x'\n", "default names ['a']"),
        (b"[repositories.a]\nurl = 'x'\n", "unknown key 'repositories'"),
    ],
)
def test_what_cannot_be_understood(config: Path, text: bytes, told: str) -> None:
    config.write_bytes(text)
    with pytest.raises(VmfsError) as caught:
        load_settings()
    assert str(caught.value).startswith(f"configuration file {config}: ")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_was_asked_for_must_be_there(config: Path) -> None:
    with pytest.raises(VmfsError, match=r"No such file or directory; check \$VMFS_CONFIG"):
        load_settings()
    config.mkdir()
    with pytest.raises(VmfsError, match="Is a directory"):
        load_settings()
