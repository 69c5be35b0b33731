"""The configuration file: names for repositories and engines, so that nobody has to type where they are.

    default = "main"

    [repository.main]
    url = "/backup/main"
    passphrase_file = "/etc/vmfs/main.pass"      # or passphrase_command, or key_file
    catalog = "postgresql+psycopg://vmfs@/vmfs"  # SQLite in the cache directory if left out

    [engine.rhv]
    url = "https://engine.example.com"
    username = "backup@internal"
    password_file = "/etc/vmfs/rhv.pass"         # or password_command, or the keyring
    ca_file = "/etc/vmfs/rhv.ca.pem"             # the system's CAs if left out

$VMFS_CONFIG if set; else ~/.config/vmfs/vmfs.toml over /etc/vmfs/vmfs.toml.
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import platformdirs

from vmfs.errors import VmfsError


@dataclass(frozen=True, slots=True)
class RepositorySettings:
    url: str
    passphrase_file: str | None = None
    passphrase_command: str | None = None
    key_file: str | None = None
    catalog: str | None = None


@dataclass(frozen=True, slots=True)
class EngineTable:
    """What the file says of an engine; `insecure` is to believe whoever answers."""

    url: str
    username: str | None = None
    password_file: str | None = None
    password_command: str | None = None
    ca_file: str | None = None
    insecure: bool = False


@dataclass(frozen=True, slots=True)
class Settings:
    repositories: dict[str, RepositorySettings]
    default: str | None = None
    engines: dict[str, EngineTable] = field(default_factory=dict)

    def find(self, name: str) -> RepositorySettings:
        """The repository of that name; a path or URL that is no name stands for itself."""
        return self.repositories.get(name) or RepositorySettings(url=name)


def load_settings() -> Settings:
    """Raises VmfsError for a file that cannot be understood."""
    if os.environ.get("VMFS_CONFIG"):
        return _read(own_config(), required=True)
    system = _read(Path("/etc/vmfs/vmfs.toml"))
    user = _read(own_config())
    return Settings(
        {**system.repositories, **user.repositories},
        user.default or system.default,
        {**system.engines, **user.engines},
    )


def own_config() -> Path:
    """The file of this user's: where a command writes what it is told to remember."""
    given = os.environ.get("VMFS_CONFIG")
    return Path(given) if given else platformdirs.user_config_path("vmfs") / "vmfs.toml"


def _read(path: Path, *, required: bool = False) -> Settings:
    try:
        tree = tomllib.loads(path.read_bytes().decode())
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        if required:
            raise VmfsError(f"configuration file {path}: {error.strerror}; check $VMFS_CONFIG") from None
        return Settings({})
    except OSError as error:
        raise VmfsError(f"configuration file {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise VmfsError(f"configuration file {path}: {error}; correct it") from None
    try:
        return parse_settings(tree)
    except ValueError as error:
        raise VmfsError(f"configuration file {path}: {error}") from None


def parse_settings(tree: dict[str, Any]) -> Settings:
    """Of a file that is valid TOML. Raises ValueError."""
    if unknown := tree.keys() - {"default", "repository", "engine"}:
        raise ValueError(f"unknown key {min(unknown)!r}; remove it")
    repositories = _tables(tree, "repository", RepositorySettings)
    default = tree.get("default")
    if default is not None and (not isinstance(default, str) or default not in repositories):
        raise ValueError(f"default names {default!r}, which is no [repository.…]; correct it")
    engines = _tables(tree, "engine", EngineTable)
    for name, engine in engines.items():
        if engine.password_file and engine.password_command:
            raise ValueError(f"[engine.{name}] has both password_file and password_command; remove one")
    return Settings(repositories, default, engines)


T = TypeVar("T", RepositorySettings, EngineTable)


def _tables(tree: dict[str, Any], kind: str, make: type[T]) -> dict[str, T]:
    """The tables [kind.NAME], by name. Raises ValueError."""
    tables = tree.get(kind, {})
    if not isinstance(tables, dict):
        raise ValueError(f"{kind} is no table; write [{kind}.NAME]")
    known = {item.name for item in fields(make)}
    switches = {item.name for item in fields(make) if isinstance(item.default, bool)}
    found = {}
    for name, table in tables.items():
        if not isinstance(table, dict) or "url" not in table:
            raise ValueError(f"[{kind}.{name}] has no url; add one")
        if unknown := table.keys() - known:
            raise ValueError(f"[{kind}.{name}] has an unknown key {min(unknown)!r}; remove it")
        for key, value in table.items():
            if key in switches:
                if not isinstance(value, bool):
                    raise ValueError(
                        f"[{kind}.{name}] has a {key} that is neither true nor false; correct it"
                    )
            elif not isinstance(value, str) or not value:
                raise ValueError(f"[{kind}.{name}] has a {key} that is no text; put it in quotes")
        found[name] = make(**table)
    return found
